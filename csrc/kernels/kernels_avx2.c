/*
 * kernels_avx2.c - kernels.h's definitions with 256-bit registers (AVX2, FMA).
 *
 * The 16 lanes of a sum are two registers, `low` (lanes 0 to 7) and `high` (8 to 15), which the
 * tree adds first. Tails are read under a mask, which gives the zeros that the definition asks for
 * and touches no byte past the end.
 */
#include "quantized.h"

#if defined(L2C_X86)
#include <immintrin.h>
#include <stdint.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#elif defined(__GNUC__)
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif

#include "kernels_plain.h"

enum { HALF = 8, LANES = 16 };

/* The first n of 8 lanes; n may be more than 8 or less than 0. */
static inline __m256i first_lanes(ptrdiff_t n) {
    int count = n > HALF ? HALF : n < 0 ? 0 : (int)n;
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

typedef struct {
    __m256 low, high;
} lanes;

static inline lanes load(const float *p) {
    return (lanes){_mm256_loadu_ps(p), _mm256_loadu_ps(p + HALF)};
}

/* n < 16 elements, then zeros */
static inline lanes load_tail(const float *p, size_t n) {
    lanes v = {_mm256_maskload_ps(p, first_lanes((ptrdiff_t)n)), _mm256_setzero_ps()};
    if (n > HALF) v.high = _mm256_maskload_ps(p + HALF, first_lanes((ptrdiff_t)n - HALF));
    return v;
}

static inline lanes zero(void) { return (lanes){_mm256_setzero_ps(), _mm256_setzero_ps()}; }

static inline lanes multiply_add(lanes a, lanes b, lanes s) {
    return (lanes){_mm256_fmadd_ps(a.low, b.low, s.low), _mm256_fmadd_ps(a.high, b.high, s.high)};
}

/* Lanes i and i+8, i and i+4, i and i+2, i and i+1, for one sum and for four at once. */
static inline float sum_lanes(lanes s) {
    __m256 v = _mm256_add_ps(s.low, s.high);
    __m128 u = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    u = _mm_add_ps(u, _mm_permute_ps(u, 0x4E));
    u = _mm_add_ps(u, _mm_permute_ps(u, 0xB1));
    return _mm_cvtss_f32(u);
}

static inline __m128 sum_lanes_4(lanes a, lanes b, lanes c, lanes d) {
    __m256 a8 = _mm256_add_ps(a.low, a.high), b8 = _mm256_add_ps(b.low, b.high);
    __m256 c8 = _mm256_add_ps(c.low, c.high), d8 = _mm256_add_ps(d.low, d.high);
    __m256 ac = _mm256_add_ps(_mm256_permute2f128_ps(a8, c8, 0x20), _mm256_permute2f128_ps(a8, c8, 0x31));
    __m256 bd = _mm256_add_ps(_mm256_permute2f128_ps(b8, d8, 0x20), _mm256_permute2f128_ps(b8, d8, 0x31));
    /* [a0+a2 a1+a3 b0+b2 b1+b3 | the same of c and d] */
    __m256 v = _mm256_add_ps(_mm256_shuffle_ps(ac, bd, 0x44), _mm256_shuffle_ps(ac, bd, 0xEE));
    v = _mm256_add_ps(v, _mm256_permute_ps(v, 0xB1));
    __m128 low = _mm256_castps256_ps128(v), high = _mm256_extractf128_ps(v, 1);
    return _mm_shuffle_ps(low, high, 0x88);
}

static float avx2_dot(const float *a, const float *b, size_t n) {
    lanes s = zero();
    size_t j = 0;
    for (; j + LANES <= n; j += LANES) s = multiply_add(load(a + j), load(b + j), s);
    if (j < n) s = multiply_add(load_tail(a + j, n - j), load_tail(b + j, n - j), s);
    return sum_lanes(s);
}

/* 4 weight rows, w_stride apart, against one row of x. */
static inline __m128 dot_4x1(const float *x, const float *w, size_t w_stride, size_t n) {
    lanes s[4] = {zero(), zero(), zero(), zero()};
    size_t j = 0;
    for (; j + LANES <= n; j += LANES) {
        lanes xj = load(x + j);
        UNROLL for (int i = 0; i < 4; i++) s[i] = multiply_add(load(w + (size_t)i * w_stride + j), xj, s[i]);
    }
    if (j < n) {
        lanes xj = load_tail(x + j, n - j);
        UNROLL for (int i = 0; i < 4; i++)
            s[i] = multiply_add(load_tail(w + (size_t)i * w_stride + j, n - j), xj, s[i]);
    }
    return sum_lanes_4(s[0], s[1], s[2], s[3]);
}

/* Half of the lanes, first = 0 or 8, of 4 weight rows, w_stride apart, against 3 rows of x: 12 sums in
 * flight need 7 loads a step, where both halves at once would have registers for 4 sums only. */
static inline void half_4x3(__m256 s[3][4], const float *x, size_t x_stride, const float *w, size_t w_stride,
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
static inline void dot_4x3(float *out, size_t out_step, size_t out_stride, const float *x, size_t x_stride,
                           const float *w, size_t w_stride, size_t n) {
    __m256 low[3][4], high[3][4];
    half_4x3(low, x, x_stride, w, w_stride, n, 0);
    half_4x3(high, x, x_stride, w, w_stride, n, HALF);
    UNROLL for (int r = 0; r < 3; r++) {
        float sums[4];
        _mm_storeu_ps(sums, sum_lanes_4((lanes){low[r][0], high[r][0]}, (lanes){low[r][1], high[r][1]},
                                        (lanes){low[r][2], high[r][2]}, (lanes){low[r][3], high[r][3]}));
        UNROLL for (int i = 0; i < 4; i++) out[(size_t)r * out_stride + (size_t)i * out_step] = sums[i];
    }
}

/* Weights outside, rows inside, and weight rows a quarter of the matrix apart, for the reasons that
 * kernels_avx512.c gives. */
static void avx2_matmul(float *out, size_t out_stride, const float *x, size_t x_stride,
                        size_t n_rows, const float *w, size_t n, size_t begin, size_t end) {
    size_t quarter = (end - begin) / 4, i = begin;
    for (; i < begin + quarter; i++) {
        size_t r = 0;
        for (; r + 3 <= n_rows; r += 3)
            dot_4x3(out + r * out_stride + i, quarter, out_stride, x + r * x_stride, x_stride, w + i * n, quarter * n, n);
        for (; r < n_rows; r++) {
            float sums[4];
            _mm_storeu_ps(sums, dot_4x1(x + r * x_stride, w + i * n, quarter * n, n));
            for (size_t k = 0; k < 4; k++) out[r * out_stride + i + k * quarter] = sums[k];
        }
    }
    for (i = begin + 4 * quarter; i < end; i++)
        for (size_t r = 0; r < n_rows; r++) out[r * out_stride + i] = avx2_dot(w + i * n, x + r * x_stride, n);
}

static inline __m256 power_of_two(__m256i n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
}

/* The 8 exponentials of x; step by step as exp_one in kernels_scalar.c. */
static inline __m256 exp_8(__m256 x) {
    x = _mm256_max_ps(_mm256_set1_ps(L2C_EXP_LOW), x); /* the second operand if one is NaN */
    x = _mm256_min_ps(_mm256_set1_ps(L2C_EXP_HIGH), x);
    __m256 round = _mm256_set1_ps(L2C_EXP_ROUND);
    __m256 shifted = _mm256_fmadd_ps(x, _mm256_set1_ps(L2C_EXP_LOG2E), round);
    __m256i n = _mm256_sub_epi32(_mm256_castps_si256(shifted), _mm256_set1_epi32(L2C_EXP_ROUND_BITS));
    __m256 whole = _mm256_sub_ps(shifted, round);
    __m256 r = _mm256_fmadd_ps(whole, _mm256_set1_ps(-L2C_EXP_LN2_HIGH), x);
    r = _mm256_fmadd_ps(whole, _mm256_set1_ps(-L2C_EXP_LN2_LOW), r);
    __m256 p = _mm256_fmadd_ps(_mm256_set1_ps(L2C_EXP_P5), r, _mm256_set1_ps(L2C_EXP_P4));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(L2C_EXP_P3));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(L2C_EXP_P2));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(L2C_EXP_P1));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(L2C_EXP_P0));
    p = _mm256_add_ps(_mm256_fmadd_ps(p, _mm256_mul_ps(r, r), r), _mm256_set1_ps(1.0f));
    __m256i half = _mm256_srai_epi32(n, 1);
    p = _mm256_mul_ps(p, power_of_two(half));
    return _mm256_mul_ps(p, power_of_two(_mm256_sub_epi32(n, half)));
}

/* Tails go through memory: a masked store costs AMD's processors some twenty instructions. */
static inline __m256 load_part(const float *p, size_t n) {
    return n >= HALF ? _mm256_loadu_ps(p) : _mm256_maskload_ps(p, first_lanes((ptrdiff_t)n));
}

static inline void store_part(float *p, __m256 v, size_t n) {
    if (n >= HALF) {
        _mm256_storeu_ps(p, v);
    } else {
        float all[HALF];
        _mm256_storeu_ps(all, v);
        for (size_t i = 0; i < n; i++) p[i] = all[i];
    }
}

static void avx2_exp(float *out, const float *x, size_t n) {
    for (size_t j = 0; j < n; j += HALF) store_part(out + j, exp_8(load_part(x + j, n - j)), n - j);
}

static float avx2_max(const float *x, size_t n) {
    __m256 m = _mm256_set1_ps(x[0]);
    size_t j = 0;
    for (; j + HALF <= n; j += HALF) m = _mm256_max_ps(m, _mm256_loadu_ps(x + j));
    __m128 u = _mm_max_ps(_mm256_castps256_ps128(m), _mm256_extractf128_ps(m, 1));
    u = _mm_max_ps(u, _mm_permute_ps(u, 0x4E));
    u = _mm_max_ps(u, _mm_permute_ps(u, 0xB1));
    float best = _mm_cvtss_f32(u);
    for (; j < n; j++) best = x[j] > best ? x[j] : best;
    return best;
}

static float avx2_exp_sum(float *x, size_t n) {
    __m256 m = _mm256_set1_ps(avx2_max(x, n));
    lanes sums = zero();
    size_t j = 0;
    for (; j + LANES <= n; j += LANES) {
        __m256 low = exp_8(_mm256_sub_ps(_mm256_loadu_ps(x + j), m));
        __m256 high = exp_8(_mm256_sub_ps(_mm256_loadu_ps(x + j + HALF), m));
        _mm256_storeu_ps(x + j, low);
        _mm256_storeu_ps(x + j + HALF, high);
        sums = (lanes){_mm256_add_ps(sums.low, low), _mm256_add_ps(sums.high, high)};
    }
    if (j < n) {
        for (size_t k = j; k < n; k += HALF) store_part(x + k, exp_8(_mm256_sub_ps(load_part(x + k, n - k), m)), n - k);
        lanes rest = load_tail(x + j, n - j);
        sums = (lanes){_mm256_add_ps(sums.low, rest.low), _mm256_add_ps(sums.high, rest.high)};
    }
    return sum_lanes(sums);
}

static void avx2_softmax(float *x, size_t n) {
    __m256 divisor = _mm256_set1_ps(avx2_exp_sum(x, n));
    for (size_t j = 0; j < n; j += HALF) store_part(x + j, _mm256_div_ps(load_part(x + j, n - j), divisor), n - j);
}

static void avx2_swiglu(float *gate, const float *up, size_t n) {
    const __m256 one = _mm256_set1_ps(1.0f), sign = _mm256_set1_ps(-0.0f);
    for (size_t j = 0; j < n; j += HALF) {
        __m256 g = load_part(gate + j, n - j);
        __m256 sigmoid = _mm256_div_ps(one, _mm256_add_ps(one, exp_8(_mm256_xor_ps(g, sign))));
        store_part(gate + j, _mm256_mul_ps(_mm256_mul_ps(g, sigmoid), load_part(up + j, n - j)), n - j);
    }
}

/* Sums of `registers` * 8 neighbouring columns stay in registers over all rows. */
#define MIX_COLUMNS(registers)                                                                 \
    do {                                                                                       \
        __m256 s[registers];                                                                   \
        UNROLL for (int k = 0; k < registers; k++) s[k] = _mm256_setzero_ps();                 \
        for (size_t t = 0; t < n; t++) {                                                       \
            __m256 weight = _mm256_set1_ps(weights[t]);                                        \
            const float *row = rows + t * width + i;                                           \
            UNROLL for (int k = 0; k < registers; k++)                                         \
                s[k] = _mm256_fmadd_ps(weight, _mm256_loadu_ps(row + k * HALF), s[k]);         \
        }                                                                                      \
        UNROLL for (int k = 0; k < registers; k++) _mm256_storeu_ps(out + i + k * HALF, s[k]); \
        i += registers * HALF;                                                                 \
    } while (0)

static void mix_row(float *out, const float *weights, const float *rows, size_t n, size_t width) {
    size_t i = 0;
    while (i + 8 * HALF <= width) MIX_COLUMNS(8);
    if (i + 6 * HALF <= width) MIX_COLUMNS(6);
    if (i + 4 * HALF <= width) MIX_COLUMNS(4);
    while (i + HALF <= width) MIX_COLUMNS(1);
    if (i < width) {
        __m256 s = _mm256_setzero_ps();
        for (size_t t = 0; t < n; t++)
            s = _mm256_fmadd_ps(_mm256_set1_ps(weights[t]), load_part(rows + t * width + i, width - i), s);
        store_part(out + i, s, width - i);
    }
}

static void avx2_mix(float *out, size_t out_stride, const float *weights, size_t weights_stride, size_t n_rows,
                     size_t step, const float *rows, size_t n, size_t width) {
    for (size_t r = 0; r < n_rows; r++)
        mix_row(out + r * out_stride, weights + r * weights_stride, rows, n + r * step, width);
}

const l2c_kernels l2c_kernels_avx2 = {
    .name = "avx2",
    .dot = avx2_dot,
    .matmul = avx2_matmul,
    .exp = avx2_exp,
    .exp_sum = avx2_exp_sum,
    .softmax = avx2_softmax,
    .max = avx2_max,
    .swiglu = avx2_swiglu,
    .mix = avx2_mix,
    L2C_PLAIN_KERNELS,
    .narrow = l2c_avx2_narrow,
    .widen = l2c_avx2_widen,
    .quantize = l2c_avx2_quantize,
    .matmul_q8 = l2c_avx2_matmul_q8,
    .matmul_q4 = l2c_avx2_matmul_q4,
    .matmul_q4_1 = l2c_avx2_matmul_q4_1,
};

#if defined(__clang__)
#pragma clang attribute pop
#elif defined(__GNUC__)
#pragma GCC pop_options
#endif
#endif
