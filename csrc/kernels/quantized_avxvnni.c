/*
 * quantized_avxvnni.c - the integer products with 256-bit registers and AVX-VNNI, for processors that have vpdpbusd but
 * not AVX-512; float16 and activations are quantized_avx2.c's.
 *
 * vpdpbusd multiplies unsigned by signed bytes and adds four neighbours to an int32. As in quantized_avx512.c, int8
 * weights become unsigned by adding 128 (flipping the top bit), and 128 times the sum of x is taken off at the start:
 * sums stay below 512 * 255 * 127. int4 weights are 0 to 15 as they lie.
 */
#include "quantized.h"

#if defined(L2C_AVXVNNI)
#include <string.h>

#include "intrinsics.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avxvnni"))), apply_to = function)
#elif defined(__GNUC__)
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avxvnni")
#endif

#define INLINE static inline __attribute__((always_inline))

#include "quantized_avx2.h"

typedef __m256i weights_8, sums_8, sums_4;

INLINE __m256i dot_add(__m256i s, __m256i weights, const int8_t *q) {
    return _mm256_dpbusd_avx_epi32(s, weights, broadcast(q));
}

INLINE weights_8 load_8(const unsigned char *data) {
    return _mm256_xor_si256(load_bytes(data), _mm256_set1_epi8((char)0x80));
}

INLINE sums_8 begin_8(int32_t x_sum) { return _mm256_set1_epi32(-128 * x_sum); }

INLINE sums_8 step_8(sums_8 s, weights_8 weights, const l2c_quantized *x, size_t at) {
    return dot_add(s, weights, x->q + at);
}

INLINE vec end_8(sums_8 s, int t) {
    (void)t;
    return _mm256_cvtepi32_ps(s);
}

INLINE sums_4 begin_4(int32_t offset) { return _mm256_set1_epi32(offset); }

INLINE sums_4 step_4(sums_4 s, weights_4 weights, const l2c_quantized *x, size_t at) {
    return dot_add(dot_add(s, weights.low, x->q + at), weights.high, x->q + at + 16);
}

INLINE vec end_4(sums_4 s, int t, int32_t offset) {
    (void)t, (void)offset;
    return _mm256_cvtepi32_ps(s);
}

#include "quantized_tiles.h"

INTEGER_MATMULS(avxvnni)

#if defined(__clang__)
#pragma clang attribute pop
#elif defined(__GNUC__)
#pragma GCC pop_options
#endif
#endif
