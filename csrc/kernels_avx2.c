/*
 * kernels_avx2.c - kernels.h's definitions with 256-bit registers (AVX2, FMA).
 *
 * The 16 lanes of a sum are two registers, `low` (lanes 0 to 7) and `high` (8 to 15), which the
 * tree adds first. Tails are read under a mask, which gives the zeros that the definition asks for
 * and touches no byte past the end. Rows of x share
 * the loads of weight rows, 2 against 2.
 */
#include "kernels.h"

#if defined(L2C_X86)
#include <immintrin.h>
#include <stdint.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#elif defined(__GNUC__)
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif

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

/* 2 weight rows against 2 rows of x: [w0 x0, w1 x0, w0 x1, w1 x1]. */
static inline __m128 dot_2x2(const float *x0, const float *x1, const float *w0, const float *w1, size_t n) {
    lanes s[4] = {zero(), zero(), zero(), zero()};
    for (size_t j = 0; j < n; j += LANES) {
        int whole = j + LANES <= n;
        lanes a = whole ? load(w0 + j) : load_tail(w0 + j, n - j);
        lanes b = whole ? load(w1 + j) : load_tail(w1 + j, n - j);
        lanes xj = whole ? load(x0 + j) : load_tail(x0 + j, n - j);
        s[0] = multiply_add(a, xj, s[0]);
        s[1] = multiply_add(b, xj, s[1]);
        xj = whole ? load(x1 + j) : load_tail(x1 + j, n - j);
        s[2] = multiply_add(a, xj, s[2]);
        s[3] = multiply_add(b, xj, s[3]);
    }
    return sum_lanes_4(s[0], s[1], s[2], s[3]);
}

/* Weights outside, rows inside, and weight rows a quarter of the matrix apart, for the reasons that
 * kernels_avx512.c gives. */
static void avx2_matmul(float *out, size_t out_stride, const float *x, size_t x_stride,
                        size_t n_rows, const float *w, size_t n, size_t begin, size_t end) {
    size_t quarter = (end - begin) / 4, i = begin;
    for (; i < begin + quarter; i++) {
        const float *wi = w + i * n;
        size_t r = 0;
        float sums[4];
        for (; r + 2 <= n_rows; r += 2)
            for (size_t k = 0; k < 4; k += 2) {
                const float *x0 = x + r * x_stride, *w0 = wi + k * quarter * n;
                float *out0 = out + r * out_stride + i + k * quarter;
                _mm_storeu_ps(sums, dot_2x2(x0, x0 + x_stride, w0, w0 + quarter * n, n));
                out0[0] = sums[0];
                out0[quarter] = sums[1];
                out0[out_stride] = sums[2];
                out0[out_stride + quarter] = sums[3];
            }
        if (r == n_rows) continue;
        _mm_storeu_ps(sums, dot_4x1(x + r * x_stride, wi, quarter * n, n));
        for (size_t k = 0; k < 4; k++) out[r * out_stride + i + k * quarter] = sums[k];
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

static void avx2_exp(float *out, const float *x, size_t n) {
    for (size_t j = 0; j < n; j += HALF) {
        __m256i mask = first_lanes((ptrdiff_t)(n - j));
        _mm256_maskstore_ps(out + j, mask, exp_8(_mm256_maskload_ps(x + j, mask)));
    }
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

static float avx2_softmax(float *x, size_t n) {
    __m256 m = _mm256_set1_ps(avx2_max(x, n));
    lanes sums = zero();
    for (size_t j = 0; j < n; j += HALF) {
        __m256i mask = first_lanes((ptrdiff_t)(n - j));
        __m256 e = exp_8(_mm256_sub_ps(_mm256_maskload_ps(x + j, mask), m));
        _mm256_maskstore_ps(x + j, mask, e);
        e = _mm256_and_ps(e, _mm256_castsi256_ps(mask));
        if (j % LANES == 0) sums.low = _mm256_add_ps(sums.low, e);
        else sums.high = _mm256_add_ps(sums.high, e);
    }
    float sum = sum_lanes(sums);
    __m256 divisor = _mm256_set1_ps(sum);
    for (size_t j = 0; j < n; j += HALF) {
        __m256i mask = first_lanes((ptrdiff_t)(n - j));
        _mm256_maskstore_ps(x + j, mask, _mm256_div_ps(_mm256_maskload_ps(x + j, mask), divisor));
    }
    return sum;
}

static void avx2_swiglu(float *gate, const float *up, size_t n) {
    const __m256 one = _mm256_set1_ps(1.0f), sign = _mm256_set1_ps(-0.0f);
    for (size_t j = 0; j < n; j += HALF) {
        __m256i mask = first_lanes((ptrdiff_t)(n - j));
        __m256 g = _mm256_maskload_ps(gate + j, mask);
        __m256 sigmoid = _mm256_div_ps(one, _mm256_add_ps(one, exp_8(_mm256_xor_ps(g, sign))));
        __m256 u = _mm256_maskload_ps(up + j, mask);
        _mm256_maskstore_ps(gate + j, mask, _mm256_mul_ps(_mm256_mul_ps(g, sigmoid), u));
    }
}

/* Sums of up to 32 neighbouring columns stay in registers over all rows. */
static void avx2_mix(float *out, const float *weights, const float *rows, size_t n, size_t width) {
    for (size_t i = 0; i < width; i += 4 * HALF) {
        __m256i mask[4]; /* empty for columns past the end: those loads touch nothing */
        __m256 s[4];
        UNROLL for (size_t k = 0; k < 4; k++) {
            mask[k] = first_lanes((ptrdiff_t)(width - i) - (ptrdiff_t)(k * HALF));
            s[k] = _mm256_setzero_ps();
        }
        for (size_t t = 0; t < n; t++) {
            __m256 weight = _mm256_set1_ps(weights[t]);
            const float *row = rows + t * width + i;
            UNROLL for (int k = 0; k < 4; k++)
                s[k] = _mm256_fmadd_ps(weight, _mm256_maskload_ps(row + k * HALF, mask[k]), s[k]);
        }
        UNROLL for (int k = 0; k < 4; k++) _mm256_maskstore_ps(out + i + k * HALF, mask[k], s[k]);
    }
}

const l2c_kernels l2c_kernels_avx2 = {
    .name = "avx2",
    .dot = avx2_dot,
    .matmul = avx2_matmul,
    .exp = avx2_exp,
    .softmax = avx2_softmax,
    .max = avx2_max,
    .swiglu = avx2_swiglu,
    .mix = avx2_mix,
};

#if defined(__clang__)
#pragma clang attribute pop
#elif defined(__GNUC__)
#pragma GCC pop_options
#endif
#endif
