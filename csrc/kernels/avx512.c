/*
 * avx512.c - simd.h's primitives with 512-bit registers, and its tile of products.
 *
 * Instructions: AVX-512 F and DQ. A register is the 16 lanes of a sum. Tails are read and written under a
 * mask, which costs nothing, gives the zeros that the definition asks for and touches no byte past the end.
 * The tile: 16 sums in flight, of 4 weight rows and up to 4 rows of x, hide the FMA's latency of 4 cycles
 * on two ports; 4 loads a row of x do for them. Nothing can overflow but floats, and those as IEEE says.
 */
#include "quantized.h"

#if defined(L2C_X86)
#include <float.h>
#include <math.h>
#include <stdint.h>

#include "intrinsics.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,avx512f,avx512dq,avx512bw,avx512vl"))), \
                             apply_to = function)
#elif defined(__GNUC__)
#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512dq,avx512bw,avx512vl")
#endif

#include "plain.h"

#define INLINE static inline __attribute__((always_inline))

enum { LANES = 16, WIDTH = 16, REGISTERS = 1, TILE_ROWS = 4, SUM_ROWS = 4, MASKED = 1 };

typedef __m512 vec;
typedef __m512i integers;
typedef struct {
    vec v[REGISTERS];
} lanes;

INLINE vec set(float x) { return _mm512_set1_ps(x); }
INLINE vec load(const float *p) { return _mm512_loadu_ps(p); }
INLINE void store(float *p, vec v) { _mm512_storeu_ps(p, v); }
INLINE vec add(vec a, vec b) { return _mm512_add_ps(a, b); }
INLINE vec subtract(vec a, vec b) { return _mm512_sub_ps(a, b); }
INLINE vec multiply(vec a, vec b) { return _mm512_mul_ps(a, b); }
INLINE vec divide(vec a, vec b) { return _mm512_div_ps(a, b); }
INLINE vec larger(vec a, vec b) { return _mm512_max_ps(a, b); }
INLINE vec negate(vec a) { return _mm512_xor_ps(a, _mm512_set1_ps(-0.0f)); }
INLINE vec multiply_add(vec a, vec b, vec s) { return _mm512_fmadd_ps(a, b, s); }

/* n <= 16: without branches, which short tails would feel */
INLINE __mmask16 first(size_t n) { return (__mmask16)((1u << n) - 1); }
INLINE vec load_part(const float *p, size_t n) { return _mm512_maskz_loadu_ps(first(n), p); }
INLINE vec load_part_or(const float *p, size_t n, vec rest) { return _mm512_mask_loadu_ps(rest, first(n), p); }
INLINE void store_part(float *p, vec v, size_t n) { _mm512_mask_storeu_ps(p, first(n), v); }
INLINE lanes load_tail(const float *p, size_t n) { return (lanes){{load_part(p, n)}}; }

/* max and min give the second operand if one is NaN */
INLINE vec clamp(vec x, vec low, vec high) { return _mm512_min_ps(high, _mm512_max_ps(low, x)); }
INLINE vec zero_below(vec v, vec x, vec least) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, least, _CMP_NLT_UQ), v);
}

INLINE integers bits(vec v) { return _mm512_castps_si512(v); }
INLINE integers set_integer(int32_t n) { return _mm512_set1_epi32(n); }
INLINE integers subtract_integers(integers a, integers b) { return _mm512_sub_epi32(a, b); }
INLINE integers half_of(integers n) { return _mm512_srai_epi32(n, 1); }
INLINE vec power_of_two(integers n) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(n, _mm512_set1_epi32(127)), 23));
}

INLINE float largest(vec v) { return _mm512_reduce_max_ps(v); }

/* Lanes i and i+8, i and i+4, i and i+2, i and i+1, for one sum and for four at once. */
INLINE float sum_lanes(lanes s) {
    __m512 v = s.v[0];
    v = _mm512_add_ps(v, _mm512_shuffle_f32x4(v, v, 0x4E));
    v = _mm512_add_ps(v, _mm512_shuffle_f32x4(v, v, 0xB1));
    v = _mm512_add_ps(v, _mm512_permute_ps(v, 0x4E));
    v = _mm512_add_ps(v, _mm512_permute_ps(v, 0xB1));
    return _mm512_cvtss_f32(v);
}

INLINE __m128 sum_lanes_4(__m512 a, __m512 b, __m512 c, __m512 d) {
    __m512 ab = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xEE));
    __m512 cd = _mm512_add_ps(_mm512_shuffle_f32x4(c, d, 0x44), _mm512_shuffle_f32x4(c, d, 0xEE));
    __m512 v = _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xDD));
    v = _mm512_add_ps(v, _mm512_permute_ps(v, 0x4E));
    v = _mm512_add_ps(v, _mm512_permute_ps(v, 0xB1));
    const __m512i firsts = _mm512_setr_epi32(0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12);
    return _mm512_castps512_ps128(_mm512_permutexvar_ps(firsts, v));
}

#include "simd.h"

/* sums += the next 16 elements of 4 weight rows, w_stride apart, times those of `rows` rows of x. */
INLINE void dot_step(__m512 sums[][4], const float *x, size_t x_stride, const float *w, size_t w_stride,
                     __mmask16 mask, int rows) {
    __m512 wj[4];
    UNROLL for (int i = 0; i < 4; i++) wj[i] = _mm512_maskz_loadu_ps(mask, w + (size_t)i * w_stride);
    UNROLL for (int r = 0; r < rows; r++) {
        __m512 xj = _mm512_maskz_loadu_ps(mask, x + (size_t)r * x_stride);
        UNROLL for (int i = 0; i < 4; i++) sums[r][i] = _mm512_fmadd_ps(wj[i], xj, sums[r][i]);
    }
}

INLINE void dot_tile(float *out, size_t out_step, size_t out_stride, const float *x, size_t x_stride, const float *w,
                     size_t w_stride, size_t n, const float *next, size_t n_next, int rows) {
    const __mmask16 all = 0xFFFF;
    __m512 sums[4][4];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int i = 0; i < 4; i++) sums[r][i] = _mm512_setzero_ps();
    size_t j = 0;
    for (; j + LANES <= n_next; j += LANES) {
        UNROLL for (int i = 0; i < 4; i++) L2C_PREFETCH(next + (size_t)i * w_stride + j);
        dot_step(sums, x + j, x_stride, w + j, w_stride, all, rows);
    }
    for (; j + LANES <= n; j += LANES) dot_step(sums, x + j, x_stride, w + j, w_stride, all, rows);
    if (j < n) dot_step(sums, x + j, x_stride, w + j, w_stride, first(n - j), rows);
    UNROLL for (int r = 0; r < rows; r++) {
        float four[4];
        _mm_storeu_ps(four, sum_lanes_4(sums[r][0], sums[r][1], sums[r][2], sums[r][3]));
        UNROLL for (int i = 0; i < 4; i++) out[(size_t)r * out_stride + (size_t)i * out_step] = four[i];
    }
}

const l2c_kernels l2c_kernels_avx512 = {
    .name = "avx512",
    L2C_SIMD_KERNELS,
    L2C_PLAIN_KERNELS,
    .f32_to_f16 = l2c_avx2_f32_to_f16,
    .f16_to_f32 = l2c_avx2_f16_to_f32,
    .quantize = l2c_avx2_quantize,
    .matmul_q8 = l2c_avx512_matmul_q8,
    .matmul_q4 = l2c_avx512_matmul_q4,
    .matmul_q4_1 = l2c_avx512_matmul_q4_1,
};

#if defined(__clang__)
#pragma clang attribute pop
#elif defined(__GNUC__)
#pragma GCC pop_options
#endif
#endif
