/*
 * avx2.c - simd.h's primitives with 256-bit registers, and its tile of products.
 *
 * Instructions: AVX2 and FMA. The 16 lanes of a sum are two registers, lanes 0 to 7 and 8 to 15, which the
 * tree adds first. Tails are read under a mask, which gives the zeros that the definition asks for
 * and touches no byte past the end. The tile: 12 of 16 registers are sums, of one half of the lanes of 4
 * weight rows and 3 rows of x. Nothing can overflow but floats, and those as IEEE says.
 */
#include "quantized.h"

#if defined(L2C_X86)
#include <float.h>
#include <math.h>
#include <stdint.h>

#include "intrinsics.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#elif defined(__GNUC__)
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif

#include "plain.h"

#define INLINE static inline __attribute__((always_inline))

enum { LANES = 16, WIDTH = 8, REGISTERS = 2, TILE_ROWS = 3, SUM_ROWS = 1, MASKED = 0 };

typedef __m256 vec;
typedef __m256i integers;
typedef struct {
    vec v[REGISTERS];
} lanes;

INLINE vec set(float x) { return _mm256_set1_ps(x); }
INLINE vec load(const float *p) { return _mm256_loadu_ps(p); }
INLINE void store(float *p, vec v) { _mm256_storeu_ps(p, v); }
INLINE vec add(vec a, vec b) { return _mm256_add_ps(a, b); }
INLINE vec subtract(vec a, vec b) { return _mm256_sub_ps(a, b); }
INLINE vec multiply(vec a, vec b) { return _mm256_mul_ps(a, b); }
INLINE vec divide(vec a, vec b) { return _mm256_div_ps(a, b); }
INLINE vec larger(vec a, vec b) { return _mm256_max_ps(a, b); }
INLINE vec negate(vec a) { return _mm256_xor_ps(a, _mm256_set1_ps(-0.0f)); }
INLINE vec multiply_add(vec a, vec b, vec s) { return _mm256_fmadd_ps(a, b, s); }

/* The first n of 8 lanes; n may be more than 8 or less than 0. */
INLINE __m256i first_lanes(ptrdiff_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

INLINE vec load_part(const float *p, size_t n) { return _mm256_maskload_ps(p, first_lanes((ptrdiff_t)n)); }
INLINE vec load_part_or(const float *p, size_t n, vec rest) {
    return _mm256_blendv_ps(rest, load_part(p, n), _mm256_castsi256_ps(first_lanes((ptrdiff_t)n)));
}

/* Through memory: a masked store costs AMD's processors some twenty instructions. */
INLINE void store_part(float *p, vec v, size_t n) {
    if (n >= WIDTH) {
        store(p, v);
    } else {
        float all[WIDTH];
        store(all, v);
        for (size_t i = 0; i < n; i++) p[i] = all[i];
    }
}

INLINE lanes load_tail(const float *p, size_t n) {
    lanes s = {{_mm256_maskload_ps(p, first_lanes((ptrdiff_t)n)), _mm256_setzero_ps()}};
    if (n > WIDTH) s.v[1] = _mm256_maskload_ps(p + WIDTH, first_lanes((ptrdiff_t)n - WIDTH));
    return s;
}

/* max and min give the second operand if one is NaN */
INLINE vec clamp(vec x, vec low, vec high) { return _mm256_min_ps(high, _mm256_max_ps(low, x)); }
INLINE vec zero_below(vec v, vec x, vec least) { return _mm256_and_ps(v, _mm256_cmp_ps(x, least, _CMP_NLT_UQ)); }

INLINE integers bits(vec v) { return _mm256_castps_si256(v); }
INLINE integers set_integer(int32_t n) { return _mm256_set1_epi32(n); }
INLINE integers subtract_integers(integers a, integers b) { return _mm256_sub_epi32(a, b); }
INLINE integers half_of(integers n) { return _mm256_srai_epi32(n, 1); }
INLINE vec power_of_two(integers n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
}

INLINE float largest(vec v) {
    __m128 u = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    u = _mm_max_ps(u, _mm_permute_ps(u, 0x4E));
    u = _mm_max_ps(u, _mm_permute_ps(u, 0xB1));
    return _mm_cvtss_f32(u);
}

/* Lanes i and i+8, i and i+4, i and i+2, i and i+1, for one sum and for four at once. */
INLINE float sum_lanes(lanes s) {
    __m256 v = _mm256_add_ps(s.v[0], s.v[1]);
    __m128 u = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    u = _mm_add_ps(u, _mm_permute_ps(u, 0x4E));
    u = _mm_add_ps(u, _mm_permute_ps(u, 0xB1));
    return _mm_cvtss_f32(u);
}

INLINE __m128 sum_lanes_4(lanes a, lanes b, lanes c, lanes d) {
    __m256 a8 = _mm256_add_ps(a.v[0], a.v[1]), b8 = _mm256_add_ps(b.v[0], b.v[1]);
    __m256 c8 = _mm256_add_ps(c.v[0], c.v[1]), d8 = _mm256_add_ps(d.v[0], d.v[1]);
    __m256 ac = _mm256_add_ps(_mm256_permute2f128_ps(a8, c8, 0x20), _mm256_permute2f128_ps(a8, c8, 0x31));
    __m256 bd = _mm256_add_ps(_mm256_permute2f128_ps(b8, d8, 0x20), _mm256_permute2f128_ps(b8, d8, 0x31));
    /* [a0+a2 a1+a3 b0+b2 b1+b3 | the same of c and d] */
    __m256 v = _mm256_add_ps(_mm256_shuffle_ps(ac, bd, 0x44), _mm256_shuffle_ps(ac, bd, 0xEE));
    v = _mm256_add_ps(v, _mm256_permute_ps(v, 0xB1));
    __m128 low = _mm256_castps256_ps128(v), high = _mm256_extractf128_ps(v, 1);
    return _mm_shuffle_ps(low, high, 0x88);
}

#include "simd.h"

/* 4 weight rows, w_stride apart, against one row of x. */
INLINE __m128 dot_4x1(const float *x, const float *w, size_t w_stride, size_t n) {
    lanes s[4] = {zero(), zero(), zero(), zero()};
    size_t j = 0;
    for (; j + LANES <= n; j += LANES) {
        lanes xj = load_lanes(x + j);
        UNROLL for (int i = 0; i < 4; i++) s[i] = multiply_add_lanes(load_lanes(w + (size_t)i * w_stride + j), xj, s[i]);
    }
    if (j < n) {
        lanes xj = load_tail(x + j, n - j);
        UNROLL for (int i = 0; i < 4; i++)
            s[i] = multiply_add_lanes(load_tail(w + (size_t)i * w_stride + j, n - j), xj, s[i]);
    }
    return sum_lanes_4(s[0], s[1], s[2], s[3]);
}

/* Half of the lanes, first = 0 or 8, of 4 weight rows, w_stride apart, against 3 rows of x: 12 sums in
 * flight need 7 loads a step, where both halves at once would have registers for 4 sums only. */
INLINE void half_4x3(__m256 s[3][4], const float *x, size_t x_stride, const float *w, size_t w_stride,
                            size_t n, size_t first) {
    UNROLL for (int r = 0; r < 3; r++)
        UNROLL for (int i = 0; i < 4; i++) s[r][i] = _mm256_setzero_ps();
    size_t j = 0;
    for (; j + LANES <= n; j += LANES) {
        __m256 wj[4];
        UNROLL for (int i = 0; i < 4; i++) wj[i] = _mm256_loadu_ps(w + (size_t)i * w_stride + j + first);
        UNROLL for (int r = 0; r < 3; r++) {
            __m256 xj = _mm256_loadu_ps(x + (size_t)r * x_stride + j + first);
            UNROLL for (int i = 0; i < 4; i++) s[r][i] = _mm256_fmadd_ps(wj[i], xj, s[r][i]);
        }
    }
    if (j == n) return;
    __m256i mask = first_lanes((ptrdiff_t)(n - j) - (ptrdiff_t)first);
    UNROLL for (int i = 0; i < 4; i++) {
        __m256 wj = _mm256_maskload_ps(w + (size_t)i * w_stride + j + first, mask);
        UNROLL for (int r = 0; r < 3; r++)
            s[r][i] = _mm256_fmadd_ps(wj, _mm256_maskload_ps(x + (size_t)r * x_stride + j + first, mask), s[r][i]);
    }
}

/* Results of neighbouring weight rows go out_step apart, of neighbouring rows of x out_stride. */
INLINE void dot_4x3(float *out, size_t out_step, size_t out_stride, const float *x, size_t x_stride,
                           const float *w, size_t w_stride, size_t n) {
    __m256 low[3][4], high[3][4];
    half_4x3(low, x, x_stride, w, w_stride, n, 0);
    half_4x3(high, x, x_stride, w, w_stride, n, WIDTH);
    UNROLL for (int r = 0; r < 3; r++) {
        float sums[4];
        _mm_storeu_ps(sums, sum_lanes_4((lanes){{low[r][0], high[r][0]}}, (lanes){{low[r][1], high[r][1]}},
                                        (lanes){{low[r][2], high[r][2]}}, (lanes){{low[r][3], high[r][3]}}));
        UNROLL for (int i = 0; i < 4; i++) out[(size_t)r * out_stride + (size_t)i * out_step] = sums[i];
    }
}

INLINE void dot_tile(float *out, size_t out_step, size_t out_stride, const float *x, size_t x_stride, const float *w,
                     size_t w_stride, size_t n, const float *next, size_t n_next, int rows) {
    (void)next, (void)n_next;
    if (rows == TILE_ROWS) {
        dot_4x3(out, out_step, out_stride, x, x_stride, w, w_stride, n);
    } else {
        float sums[4];
        _mm_storeu_ps(sums, dot_4x1(x, w, w_stride, n));
        for (size_t i = 0; i < 4; i++) out[i * out_step] = sums[i];
    }
}

/* Instruction sets that differ in their integer products alone. */
#define TABLE(isa)                              \
    const l2c_kernels l2c_kernels_##isa = {     \
        .name = #isa,                           \
        L2C_SIMD_KERNELS,                       \
        L2C_PLAIN_KERNELS,                      \
        .f32_to_f16 = l2c_avx2_f32_to_f16,      \
        .f16_to_f32 = l2c_avx2_f16_to_f32,      \
        .quantize = l2c_avx2_quantize,          \
        .matmul_q8 = l2c_##isa##_matmul_q8,     \
        .matmul_q4 = l2c_##isa##_matmul_q4,     \
        .matmul_q4_1 = l2c_##isa##_matmul_q4_1, \
    }

TABLE(avx2);
#if defined(L2C_AVXVNNI)
TABLE(avxvnni);
#endif

#if defined(__clang__)
#pragma clang attribute pop
#elif defined(__GNUC__)
#pragma GCC pop_options
#endif
#endif
