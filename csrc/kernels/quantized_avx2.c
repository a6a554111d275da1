/*
 * quantized_avx2.c - the integer kernels with 256-bit registers (AVX2, F16C).
 *
 * int8: vpmaddwd multiplies int16 and adds neighbours. A register of weights holds 8 rows x 4
 * columns of bytes; shifted left by 8 it is columns 0 and 2 as int16, masked with 0xFF00 columns 1
 * and 3, both times 256. The activations lie in that order (`pairs`). Sums are 256 times the
 * product: a step adds at most 256 * 4 * 128 * 127, and 128 steps (a group of 512) fit 31 bits.
 *
 * int4: vpmaddubsw multiplies unsigned by signed bytes. Weights are 0 to 15, so a pair is at most
 * 2 * 15 * 127, and the 8 of a group of 32 fit 15 bits; 8 times the sum of x is taken off after, or the
 * minimum times that sum is added (Q4_1).
 *
 * (vpmaddubsw for int8 would need signs moved from weights to activations, and more instructions
 * on the two units that multiply: measured slower.)
 */
#include "quantized.h"

#if defined(L2C_X86)
#include <math.h>
#include <string.h>

#include "intrinsics.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#elif defined(__GNUC__)
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

#define INLINE static inline __attribute__((always_inline))

/* ---- float16 ------------------------------------------------------------------------------------ */

void l2c_avx2_f32_to_f16(uint16_t *out, const float *x, size_t n) {
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm_storeu_si128((__m128i *)(out + i), _mm256_cvtps_ph(_mm256_loadu_ps(x + i), _MM_FROUND_TO_NEAREST_INT));
    for (; i < n; i++) out[i] = l2c_float_to_half(x[i]);
}

void l2c_avx2_f16_to_f32(float *out, const uint16_t *x, size_t n) {
    size_t i = 0;
    for (; i + 8 <= n; i += 8) _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(x + i))));
    for (; i < n; i++) out[i] = l2c_half_to_float(x[i]);
}

/* ---- Activations ---------------------------------------------------------------------------- */

INLINE __m256i magnitude_bits(const float *x) {
    return _mm256_and_si256(_mm256_loadu_si256((const __m256i *)x), _mm256_set1_epi32(0x7FFFFFFF));
}

INLINE int32_t horizontal_max(__m256i v) {
    __m128i u = _mm_max_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    u = _mm_max_epi32(u, _mm_shuffle_epi32(u, 0x4E));
    return _mm_cvtsi128_si32(_mm_max_epi32(u, _mm_shuffle_epi32(u, 0xB1)));
}

INLINE int32_t horizontal_sum(__m256i v) {
    __m128i u = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    u = _mm_add_epi32(u, _mm_shuffle_epi32(u, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(u, _mm_shuffle_epi32(u, 0xB1)));
}

/* A whole group of a multiple of 16 values. */
INLINE void quantize_group(int8_t *q, int16_t *pairs, float *scale, int32_t *sum, const float *x, size_t group) {
    __m256i most = _mm256_setzero_si256(), sums = most;
    for (size_t i = 0; i < group; i += 8) most = _mm256_max_epi32(most, magnitude_bits(x + i));
    int32_t bits = horizontal_max(most);
    float largest, inverse = 0.0f;
    memcpy(&largest, &bits, sizeof largest);
    int usable = bits < 0x7F800000 && largest >= L2C_QUANTIZE_LEAST;
    *scale = bits >= 0x7F800000 ? NAN : usable ? largest / 127.0f : 0.0f;
    if (!usable) {
        memset(q, 0, group);
        memset(pairs, 0, group * sizeof *pairs);
        *sum = 0;
        return;
    }
    inverse = 127.0f / largest;
    __m256 by = _mm256_set1_ps(inverse);
    const __m256i order = _mm256_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15,
                                           0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15);
    for (size_t i = 0; i < group; i += 16) {
        __m256i a = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + i), by));
        __m256i b = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + i + 8), by));
        sums = _mm256_add_epi32(sums, _mm256_add_epi32(a, b));
        __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xD8);
        _mm256_storeu_si256((__m256i *)(pairs + i), _mm256_shuffle_epi8(words, order));
        __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
        _mm_storeu_si128((__m128i *)(q + i), bytes);
    }
    *sum = horizontal_sum(sums);
}

void l2c_avx2_quantize(const l2c_quantized *to, size_t row, const float *x, size_t n) {
    size_t group = to->group, groups = to->width / group;
    if (group % 16 != 0 || n != to->width) {
        l2c_scalar_quantize(to, row, x, n);
        return;
    }
    for (size_t g = 0; g < groups; g++) {
        size_t at = row * to->width + g * group;
        quantize_group(to->q + at, to->pairs + at, &to->scales[row * groups + g], &to->sums[row * groups + g],
                       x + g * group, group);
    }
}

/* ---- Products -------------------------------------------------------------------------------- */

#include "quantized_avx2.h"

typedef struct {
    __m256i even, odd; /* columns 0 and 2, 1 and 3 */
} weights_8;
typedef __m256i sums_8, sums_4; /* sums_4: two int16 a row */

INLINE weights_8 load_8(const unsigned char *data) {
    __m256i a = load_bytes(data);
    return (weights_8){_mm256_slli_epi16(a, 8), _mm256_and_si256(a, _mm256_set1_epi16((short)0xFF00))};
}

INLINE sums_8 begin_8(int32_t x_sum) {
    (void)x_sum;
    return _mm256_setzero_si256();
}

INLINE sums_8 step_8(sums_8 s, weights_8 weights, const l2c_quantized *x, size_t at) {
    s = _mm256_add_epi32(s, _mm256_madd_epi16(weights.even, broadcast(x->pairs + at)));
    return _mm256_add_epi32(s, _mm256_madd_epi16(weights.odd, broadcast(x->pairs + at + 2)));
}

INLINE vec end_8(sums_8 s, int t) {
    (void)t;
    return _mm256_cvtepi32_ps(_mm256_srai_epi32(s, 8));
}

INLINE sums_4 begin_4(int32_t offset) {
    (void)offset;
    return _mm256_setzero_si256();
}

INLINE sums_4 step_4(sums_4 s, weights_4 weights, const l2c_quantized *x, size_t at) {
    s = _mm256_add_epi16(s, _mm256_maddubs_epi16(weights.low, broadcast(x->q + at)));
    return _mm256_add_epi16(s, _mm256_maddubs_epi16(weights.high, broadcast(x->q + at + 16)));
}

INLINE vec end_4(sums_4 s, int t, int32_t offset) {
    (void)t;
    __m256i dot = _mm256_madd_epi16(s, _mm256_set1_epi16(1));
    return _mm256_cvtepi32_ps(_mm256_add_epi32(dot, _mm256_set1_epi32(offset)));
}

#include "quantized_tiles.h"

INTEGER_MATMULS(avx2)

#if defined(__clang__)
#pragma clang attribute pop
#elif defined(__GNUC__)
#pragma GCC pop_options
#endif
#endif
