/*
 * quantized_dotprod.c - the integer products with NEON's dot product instructions (FEAT_DotProd); float16 and
 * activations are quantized_neon.c's.
 *
 * sdot multiplies signed bytes and adds four neighbours to an int32: of a register of weights, 4 columns of each of 4
 * rows. A group of int8 adds up to at most 512 * 128 * 127. int4 weights are 0 to 15 as they lie.
 */
#include "quantized.h"

#if defined(L2C_ARM_DOTPROD)
#include <arm_neon.h>
#include <string.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("dotprod"))), apply_to = function)
#elif defined(__GNUC__)
#pragma GCC push_options
#pragma GCC target("arch=armv8.2-a+dotprod")
#pragma GCC optimize("no-schedule-insns") /* as neon.c says */
#endif

#define INLINE static inline __attribute__((always_inline))

enum { TILE = 4, AT_ONCE = 1, COLUMNS = 4 }; /* quantized_tiles.h; 16 of 32 registers are sums of a group */

#include "quantized_neon.h"

typedef int8x16_t weights_8;
typedef halves weights_4;
typedef int32x4_t sums_8, sums_4;

INLINE weights_8 load_8(const unsigned char *data) { return vreinterpretq_s8_u8(vld1q_u8(data)); }

INLINE sums_8 begin_8(int32_t x_sum) {
    (void)x_sum;
    return vdupq_n_s32(0);
}

INLINE sums_8 step_8(sums_8 s, weights_8 weights, const l2c_quantized *x, size_t at) {
    return vdotq_s32(s, weights, broadcast(x->q + at));
}

INLINE vec end_8(sums_8 s, int t) {
    (void)t;
    return vcvtq_f32_s32(s);
}

INLINE weights_4 load_4(const unsigned char *data) { return split(vld1q_u8(data)); }

INLINE sums_4 begin_4(int32_t offset) { return vdupq_n_s32(offset); }

INLINE sums_4 step_4(sums_4 s, weights_4 weights, const l2c_quantized *x, size_t at) {
    s = vdotq_s32(s, weights.low, broadcast(x->q + at));
    return vdotq_s32(s, weights.high, broadcast(x->q + at + 16));
}

INLINE vec end_4(sums_4 s, int t, int32_t offset) {
    (void)t, (void)offset;
    return vcvtq_f32_s32(s);
}

#include "quantized_tiles.h"

INTEGER_MATMULS(dotprod)

#if defined(__clang__)
#pragma clang attribute pop
#elif defined(__GNUC__)
#pragma GCC pop_options
#endif
#endif
