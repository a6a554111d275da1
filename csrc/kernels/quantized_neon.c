/*
 * quantized_neon.c - the integer kernels with 128-bit registers (NEON of 64-bit ARM, without the
 * optional dot product instructions).
 *
 * int8: smull multiplies two rows into 8 int16. addp adds neighbours of two such results: two
 * products, at most 2 * 128 * 127 = 32512, fit an int16. sadalp adds neighbours of those to 4 int32,
 * one a row: at most 512 * 128 * 127 for the longest group.
 *
 * int4: weights are 0 to 15 as they lie, plus 8. Each int16 takes 8 products of a group of 32, at most
 * 8 * 15 * 127 = 15240, and addp of two such 30480. 8 times the sum of x is taken off after, or the
 * minimum times that sum is added (Q4_1).
 */
#include "quantized.h"

#if defined(L2C_ARM)
#include <arm_neon.h>
#include <math.h>
#include <string.h>

#if defined(__GNUC__) && !defined(__clang__) /* as neon.c says */
#pragma GCC push_options
#pragma GCC optimize("no-schedule-insns")
#endif

#define INLINE static inline __attribute__((always_inline))

/* ---- float16 ------------------------------------------------------------------------------------ */

void l2c_neon_f32_to_f16(uint16_t *out, const float *x, size_t n) {
    size_t i = 0;
    for (; i + 4 <= n; i += 4) vst1_u16(out + i, vreinterpret_u16_f16(vcvt_f16_f32(vld1q_f32(x + i))));
    for (; i < n; i++) out[i] = l2c_float_to_half(x[i]);
}

void l2c_neon_f16_to_f32(float *out, const uint16_t *x, size_t n) {
    size_t i = 0;
    for (; i + 4 <= n; i += 4) vst1q_f32(out + i, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(x + i))));
    for (; i < n; i++) out[i] = l2c_half_to_float(x[i]);
}

/* ---- Activations ---------------------------------------------------------------------------- */

/* A whole group of a multiple of 16 values. */
INLINE void quantize_group(int8_t *q, float *scale, int32_t *sum, const float *x, size_t group) {
    uint32x4_t most = vdupq_n_u32(0);
    for (size_t i = 0; i < group; i += 4)
        most = vmaxq_u32(most, vandq_u32(vreinterpretq_u32_f32(vld1q_f32(x + i)), vdupq_n_u32(0x7FFFFFFF)));
    uint32_t bits = vmaxvq_u32(most);
    float largest;
    memcpy(&largest, &bits, sizeof largest);
    int usable = bits < 0x7F800000u && largest >= L2C_QUANTIZE_LEAST;
    *scale = bits >= 0x7F800000u ? NAN : usable ? largest / 127.0f : 0.0f;
    *sum = 0;
    if (!usable) {
        memset(q, 0, group);
        return;
    }
    float inverse = 127.0f / largest;
    int32x4_t sums = vdupq_n_s32(0);
    for (size_t i = 0; i < group; i += 16) {
        int32x4_t v[4]; /* fcvtns rounds to even, as adding 1.5 * 2^23 does */
        UNROLL for (int k = 0; k < 4; k++) {
            v[k] = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x + i + 4 * k), inverse));
            sums = vaddq_s32(sums, v[k]);
        }
        int16x8_t low = vcombine_s16(vmovn_s32(v[0]), vmovn_s32(v[1]));
        int16x8_t high = vcombine_s16(vmovn_s32(v[2]), vmovn_s32(v[3]));
        vst1q_s8(q + i, vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
    }
    *sum = vaddvq_s32(sums);
}

void l2c_neon_quantize(const l2c_quantized *to, size_t row, const float *x, size_t n) {
    size_t group = to->group, groups = to->width / group;
    if (group % 16 != 0 || n != to->width) {
        l2c_scalar_quantize(to, row, x, n);
        return;
    }
    for (size_t g = 0; g < groups; g++)
        quantize_group(to->q + row * to->width + g * group, &to->scales[row * groups + g],
                       &to->sums[row * groups + g], x + g * group, group);
}

/* ---- Products -------------------------------------------------------------------------------- */

enum { TILE = 2, AT_ONCE = 1, COLUMNS = 4 }; /* quantized_tiles.h; there are 32 registers */

#include "quantized_neon.h"

typedef int8x16_t weights_8;
typedef halves weights_4;
typedef int32x4_t sums_8;
typedef struct {
    int16x8_t low, high; /* of rows 0 and 1, 2 and 3 */
} sums_4;

INLINE weights_8 load_8(const unsigned char *data) { return vreinterpretq_s8_u8(vld1q_u8(data)); }

INLINE sums_8 begin_8(int32_t x_sum) {
    (void)x_sum;
    return vdupq_n_s32(0);
}

INLINE sums_8 step_8(sums_8 s, weights_8 weights, const l2c_quantized *x, size_t at) {
    int8x16_t xj = broadcast(x->q + at);
    return vpadalq_s16(s, vpaddq_s16(vmull_s8(vget_low_s8(weights), vget_low_s8(xj)), vmull_high_s8(weights, xj)));
}

INLINE vec end_8(sums_8 s, int t) {
    (void)t;
    return vcvtq_f32_s32(s);
}

INLINE weights_4 load_4(const unsigned char *data) { return split(vld1q_u8(data)); }

INLINE sums_4 begin_4(int32_t offset) {
    (void)offset;
    return (sums_4){vdupq_n_s16(0), vdupq_n_s16(0)};
}

INLINE sums_4 step_4(sums_4 s, weights_4 weights, const l2c_quantized *x, size_t at) {
    int8x16_t x_low = broadcast(x->q + at), x_high = broadcast(x->q + at + 16);
    s.low = vmlal_s8(s.low, vget_low_s8(weights.low), vget_low_s8(x_low));
    s.high = vmlal_high_s8(s.high, weights.low, x_low);
    s.low = vmlal_s8(s.low, vget_low_s8(weights.high), vget_low_s8(x_high));
    s.high = vmlal_high_s8(s.high, weights.high, x_high);
    return s;
}

INLINE vec end_4(sums_4 s, int t, int32_t offset) {
    (void)t;
    return vcvtq_f32_s32(vpadalq_s16(vdupq_n_s32(offset), vpaddq_s16(s.low, s.high)));
}

#include "quantized_tiles.h"

INTEGER_MATMULS(neon)

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC pop_options
#endif
#endif
