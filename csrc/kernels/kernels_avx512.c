/*
 * kernels_avx512.c - kernels.h's definitions with 512-bit registers (AVX-512 F, DQ).
 *
 * The 16 lanes of a sum are one register. Tails are read under a mask, which gives the zeros that
 * the definition asks for and touches no byte past the end. Up to 4 rows
 * of x share the loads of 4 weight rows.
 */
#include "quantized.h"

#if defined(L2C_X86)
#include <immintrin.h>
#include <stdint.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,avx512f,avx512dq,avx512bw,avx512vl"))), \
                             apply_to = function)
#elif defined(__GNUC__)
#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512dq,avx512bw,avx512vl")
#endif

#include "kernels_plain.h"

#define INLINE static inline __attribute__((always_inline))

enum { LANES = 16 };

static inline __mmask16 tail_mask(size_t n) { return (__mmask16)((1u << (n % LANES)) - 1); }

/* Lanes i and i+8, i and i+4, i and i+2, i and i+1, for one sum and for four at once. */
static inline float sum_lanes(__m512 v) {
    v = _mm512_add_ps(v, _mm512_shuffle_f32x4(v, v, 0x4E));
    v = _mm512_add_ps(v, _mm512_shuffle_f32x4(v, v, 0xB1));
    v = _mm512_add_ps(v, _mm512_permute_ps(v, 0x4E));
    v = _mm512_add_ps(v, _mm512_permute_ps(v, 0xB1));
    return _mm512_cvtss_f32(v);
}

static inline __m128 sum_lanes_4(__m512 a, __m512 b, __m512 c, __m512 d) {
    __m512 ab = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xEE));
    __m512 cd = _mm512_add_ps(_mm512_shuffle_f32x4(c, d, 0x44), _mm512_shuffle_f32x4(c, d, 0xEE));
    __m512 v = _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xDD));
    v = _mm512_add_ps(v, _mm512_permute_ps(v, 0x4E));
    v = _mm512_add_ps(v, _mm512_permute_ps(v, 0xB1));
    const __m512i firsts = _mm512_setr_epi32(0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12);
    return _mm512_castps512_ps128(_mm512_permutexvar_ps(firsts, v));
}

static float avx512_dot(const float *a, const float *b, size_t n) {
    __m512 sum = _mm512_setzero_ps();
    size_t j = 0;
    for (; j + LANES <= n; j += LANES)
        sum = _mm512_fmadd_ps(_mm512_loadu_ps(a + j), _mm512_loadu_ps(b + j), sum);
    if (j < n) {
        __mmask16 mask = tail_mask(n);
        sum = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(mask, a + j), _mm512_maskz_loadu_ps(mask, b + j), sum);
    }
    return sum_lanes(sum);
}

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

/* 4 weight rows, w_stride apart, against `rows` rows of x, x_stride apart. Results of neighbouring
 * weight rows go out_step apart, of neighbouring rows of x out_stride apart. Meanwhile asks for the
 * first n_next elements of 4 more weight rows at `next`. */
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
    if (j < n) dot_step(sums, x + j, x_stride, w + j, w_stride, tail_mask(n), rows);
    UNROLL for (int r = 0; r < rows; r++) {
        float four[4];
        _mm_storeu_ps(four, sum_lanes_4(sums[r][0], sums[r][1], sums[r][2], sums[r][3]));
        UNROLL for (int i = 0; i < 4; i++) out[(size_t)r * out_stride + (size_t)i * out_step] = four[i];
    }
}

/* Weights outside, rows inside: each weight comes from memory once. The 4 weight rows of a step are
 * a quarter of the matrix apart. Each is then a stream of its own that the hardware prefetcher
 * follows, and 4 streams bring a third more from memory than one; neighbouring rows side by side,
 * which share pages, confuse it and bring half.
 *
 * With several rows of x, the streams rest while a weight row is used again, and the prefetcher loses
 * them. So each tile fetches its share of a weight row to come: the next but one, as the next is too
 * near, unless rows are so long that it would be gone from the cache again. */
enum { SHORT_ROW = 1000 };

static void avx512_matmul(float *out, size_t out_stride, const float *x, size_t x_stride,
                          size_t n_rows, const float *w, size_t n, size_t begin, size_t end) {
    size_t quarter = (end - begin) / 4, i = begin, tiles = (n_rows + 3) / 4;
    size_t part = n_rows == 1 ? 0 : (n / LANES + tiles - 1) / tiles * LANES, ahead = n < SHORT_ROW ? 2 * n : n;
#define TILE(rows) dot_tile(out + r * out_stride + i, quarter, out_stride, x + r * x_stride, x_stride, \
                            w + i * n, quarter * n, n, w + i * n + ahead + r / 4 * part, part, rows)
    for (; i < begin + quarter; i++) {
        size_t r = 0;
        for (; r + 4 <= n_rows; r += 4) TILE(4);
        if (n_rows - r == 3) TILE(3);
        else if (n_rows - r == 2) TILE(2);
        else if (n_rows - r == 1) TILE(1);
    }
#undef TILE
    for (i = begin + 4 * quarter; i < end; i++)
        for (size_t r = 0; r < n_rows; r++) out[r * out_stride + i] = avx512_dot(w + i * n, x + r * x_stride, n);
}

static inline __m512 power_of_two(__m512i n) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(n, _mm512_set1_epi32(127)), 23));
}

/* The 16 exponentials of x; step by step as exp_one in kernels_scalar.c. */
static inline __m512 exp_16(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(L2C_EXP_LOW), x); /* the second operand if one is NaN */
    x = _mm512_min_ps(_mm512_set1_ps(L2C_EXP_HIGH), x);
    __m512 round = _mm512_set1_ps(L2C_EXP_ROUND);
    __m512 shifted = _mm512_fmadd_ps(x, _mm512_set1_ps(L2C_EXP_LOG2E), round);
    __m512i n = _mm512_sub_epi32(_mm512_castps_si512(shifted), _mm512_set1_epi32(L2C_EXP_ROUND_BITS));
    __m512 whole = _mm512_sub_ps(shifted, round);
    __m512 r = _mm512_fmadd_ps(whole, _mm512_set1_ps(-L2C_EXP_LN2_HIGH), x);
    r = _mm512_fmadd_ps(whole, _mm512_set1_ps(-L2C_EXP_LN2_LOW), r);
    __m512 p = _mm512_fmadd_ps(_mm512_set1_ps(L2C_EXP_P5), r, _mm512_set1_ps(L2C_EXP_P4));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(L2C_EXP_P3));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(L2C_EXP_P2));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(L2C_EXP_P1));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(L2C_EXP_P0));
    p = _mm512_add_ps(_mm512_fmadd_ps(p, _mm512_mul_ps(r, r), r), _mm512_set1_ps(1.0f));
    __m512i half = _mm512_srai_epi32(n, 1);
    p = _mm512_mul_ps(p, power_of_two(half));
    return _mm512_mul_ps(p, power_of_two(_mm512_sub_epi32(n, half)));
}

static void avx512_exp(float *out, const float *x, size_t n) {
    for (size_t j = 0; j < n; j += LANES) {
        __mmask16 mask = j + LANES <= n ? (__mmask16)0xFFFF : tail_mask(n);
        _mm512_mask_storeu_ps(out + j, mask, exp_16(_mm512_maskz_loadu_ps(mask, x + j)));
    }
}

static float avx512_max(const float *x, size_t n) {
    __m512 m = _mm512_set1_ps(x[0]);
    size_t j = 0;
    for (; j + LANES <= n; j += LANES) m = _mm512_max_ps(m, _mm512_loadu_ps(x + j));
    if (j < n) m = _mm512_max_ps(m, _mm512_mask_loadu_ps(m, tail_mask(n), x + j));
    return _mm512_reduce_max_ps(m);
}

static float avx512_exp_sum(float *x, size_t n) {
    __m512 m = _mm512_set1_ps(avx512_max(x, n)), sums = _mm512_setzero_ps();
    size_t j = 0;
    for (; j + LANES <= n; j += LANES) {
        __m512 e = exp_16(_mm512_sub_ps(_mm512_loadu_ps(x + j), m));
        _mm512_storeu_ps(x + j, e);
        sums = _mm512_add_ps(sums, e);
    }
    if (j < n) {
        __mmask16 mask = tail_mask(n);
        __m512 e = exp_16(_mm512_sub_ps(_mm512_maskz_loadu_ps(mask, x + j), m));
        _mm512_mask_storeu_ps(x + j, mask, e);
        sums = _mm512_mask_add_ps(sums, mask, sums, e);
    }
    return sum_lanes(sums);
}

static void avx512_softmax(float *x, size_t n) {
    __m512 divisor = _mm512_set1_ps(avx512_exp_sum(x, n));
    for (size_t j = 0; j < n; j += LANES) {
        __mmask16 mask = j + LANES <= n ? (__mmask16)0xFFFF : tail_mask(n);
        _mm512_mask_storeu_ps(x + j, mask, _mm512_div_ps(_mm512_maskz_loadu_ps(mask, x + j), divisor));
    }
}

static void avx512_swiglu(float *gate, const float *up, size_t n) {
    const __m512 one = _mm512_set1_ps(1.0f), sign = _mm512_set1_ps(-0.0f);
    for (size_t j = 0; j < n; j += LANES) {
        __mmask16 mask = j + LANES <= n ? (__mmask16)0xFFFF : tail_mask(n);
        __m512 g = _mm512_maskz_loadu_ps(mask, gate + j);
        __m512 sigmoid = _mm512_div_ps(one, _mm512_add_ps(one, exp_16(_mm512_xor_ps(g, sign))));
        __m512 u = _mm512_maskz_loadu_ps(mask, up + j);
        _mm512_mask_storeu_ps(gate + j, mask, _mm512_mul_ps(_mm512_mul_ps(g, sigmoid), u));
    }
}

/* s += weights[t] * rows[t] for `registers` * 16 neighbouring columns, the last ones under a mask. */
INLINE void mix_step(__m512 s[4], float weight, const float *row, __mmask16 last, int registers) {
    __m512 w = _mm512_set1_ps(weight);
    UNROLL for (int k = 0; k + 1 < registers; k++) s[k] = _mm512_fmadd_ps(w, _mm512_loadu_ps(row + k * LANES), s[k]);
    int k = registers - 1;
    s[k] = _mm512_fmadd_ps(w, _mm512_maskz_loadu_ps(last, row + k * LANES), s[k]);
}

/* The sums of these columns stay in registers over all rows, those of up to 4 rows of weights at once:
 * they share the loads, and one alone would wait for its own additions. */
INLINE void mix_columns(float *out, size_t out_stride, const float *weights, size_t weights_stride, size_t step,
                        const float *rows, size_t n, size_t width, __mmask16 last, int registers, int n_rows) {
    __m512 s[4][4];
    UNROLL for (int r = 0; r < n_rows; r++)
        UNROLL for (int k = 0; k < registers; k++) s[r][k] = _mm512_setzero_ps();
    for (size_t t = 0; t < n; t++)
        UNROLL for (int r = 0; r < n_rows; r++)
            mix_step(s[r], weights[(size_t)r * weights_stride + t], rows + t * width, last, registers);
    UNROLL for (int r = 1; r < n_rows; r++)
        for (size_t t = n; t < n + (size_t)r * step; t++)
            mix_step(s[r], weights[(size_t)r * weights_stride + t], rows + t * width, last, registers);
    UNROLL for (int r = 0; r < n_rows; r++) {
        float *to = out + (size_t)r * out_stride;
        UNROLL for (int k = 0; k + 1 < registers; k++) _mm512_storeu_ps(to + k * LANES, s[r][k]);
        _mm512_mask_storeu_ps(to + (registers - 1) * LANES, last, s[r][registers - 1]);
    }
}

static void avx512_mix(float *out, size_t out_stride, const float *weights, size_t weights_stride, size_t n_rows,
                       size_t step, const float *rows, size_t n, size_t width) {
    for (size_t r = 0, some; r < n_rows; r += some) {
        some = n_rows - r >= 4 ? 4 : 1;
        for (size_t i = 0; i < width; i += 4 * LANES) {
            size_t left = width - i < 4 * LANES ? width - i : 4 * LANES;
            __mmask16 last = left % LANES == 0 ? (__mmask16)0xFFFF : tail_mask(left);
#define MIX(registers, n_rows)                                                                              \
    mix_columns(out + r * out_stride + i, out_stride, weights + r * weights_stride, weights_stride, step,  \
                rows + i, n + r * step, width, last, registers, n_rows)
#define MIX_ROWS(registers) do { if (some == 4) MIX(registers, 4); else MIX(registers, 1); } while (0)
            if (left > 3 * LANES) MIX_ROWS(4);
            else if (left > 2 * LANES) MIX_ROWS(3);
            else if (left > LANES) MIX_ROWS(2);
            else MIX_ROWS(1);
#undef MIX_ROWS
#undef MIX
        }
    }
}

const l2c_kernels l2c_kernels_avx512 = {
    .name = "avx512",
    .dot = avx512_dot,
    .matmul = avx512_matmul,
    .exp = avx512_exp,
    .exp_sum = avx512_exp_sum,
    .softmax = avx512_softmax,
    .max = avx512_max,
    .swiglu = avx512_swiglu,
    .mix = avx512_mix,
    L2C_PLAIN_KERNELS,
    .narrow = l2c_avx2_narrow,
    .widen = l2c_avx2_widen,
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
