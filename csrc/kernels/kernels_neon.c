/*
 * kernels_neon.c - kernels.h's definitions with 128-bit registers (NEON of 64-bit ARM, which every
 * such processor has; nothing optional).
 *
 * The 16 lanes of a sum are four registers: the tree adds the first and the third, the second and
 * the fourth, then the two. There are no masks: tails are copied into 16 zeroed floats, which gives
 * the zeros that the definition asks for and touches no byte past the end.
 *
 * vfmaq_f32(s, a, b) is s + a * b, rounded once. exp has comparisons and a selection where the scalar
 * code has `?:`, so that NaN passes for certain.
 */
#include "quantized.h"

#if defined(L2C_ARM)
#include <arm_neon.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

/* gcc's scheduler before register allocation moves loads ahead until the sums no longer fit the registers
 * and are kept on the stack. */
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC push_options
#pragma GCC optimize("no-schedule-insns")
#endif

#include "kernels_plain.h"

#define INLINE static inline __attribute__((always_inline))

enum { QUAD = 4, LANES = 16 };

typedef struct {
    float32x4_t quad[4];
} lanes;

INLINE lanes zero(void) {
    lanes v;
    UNROLL for (int k = 0; k < 4; k++) v.quad[k] = vdupq_n_f32(0.0f);
    return v;
}

INLINE lanes load(const float *p) {
    lanes v;
    UNROLL for (int k = 0; k < 4; k++) v.quad[k] = vld1q_f32(p + k * QUAD);
    return v;
}

/* n < 16 elements, then zeros */
INLINE void copy_tail(float tail[LANES], const float *p, size_t n) {
    memset(tail, 0, LANES * sizeof *tail);
    memcpy(tail, p, n * sizeof *tail);
}

INLINE lanes load_tail(const float *p, size_t n) {
    float tail[LANES];
    copy_tail(tail, p, n);
    return load(tail);
}

INLINE lanes multiply_add(lanes a, lanes b, lanes s) {
    UNROLL for (int k = 0; k < 4; k++) s.quad[k] = vfmaq_f32(s.quad[k], a.quad[k], b.quad[k]);
    return s;
}

/* Lanes i and i+8, then i and i+4. */
INLINE float32x4_t fold(lanes s) {
    return vaddq_f32(vaddq_f32(s.quad[0], s.quad[2]), vaddq_f32(s.quad[1], s.quad[3]));
}

/* Lanes i and i+2, i and i+1, for one folded sum and for four at once. */
INLINE float sum_folded(float32x4_t v) {
    float32x2_t u = vadd_f32(vget_low_f32(v), vget_high_f32(v));
    return vget_lane_f32(u, 0) + vget_lane_f32(u, 1);
}

INLINE float32x4_t sum_folded_2(float32x4_t a, float32x4_t b) { /* [a0+a2 a1+a3 b0+b2 b1+b3] */
    float64x2_t a2 = vreinterpretq_f64_f32(a), b2 = vreinterpretq_f64_f32(b);
    return vaddq_f32(vreinterpretq_f32_f64(vzip1q_f64(a2, b2)), vreinterpretq_f32_f64(vzip2q_f64(a2, b2)));
}

INLINE float32x4_t sum_folded_4(float32x4_t a, float32x4_t b, float32x4_t c, float32x4_t d) {
    return vpaddq_f32(sum_folded_2(a, b), sum_folded_2(c, d));
}

static float neon_dot(const float *a, const float *b, size_t n) {
    lanes s = zero();
    size_t j = 0;
    for (; j + LANES <= n; j += LANES) s = multiply_add(load(a + j), load(b + j), s);
    if (j < n) s = multiply_add(load_tail(a + j, n - j), load_tail(b + j, n - j), s);
    return sum_folded(fold(s));
}

/* 4 weight rows, w_stride apart, against one row of x: 16 sums in flight. */
INLINE float32x4_t dot_4x1(const float *x, const float *w, size_t w_stride, size_t n) {
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
    return sum_folded_4(fold(s[0]), fold(s[1]), fold(s[2]), fold(s[3]));
}

/* Two of the four registers of 4 weight rows against 3 rows of x: 24 sums, and 5 registers for what is
 * loaded. Half of the lanes a pass, because 14 loads then do for 24 products; 2 weight rows with all
 * of their lanes would need 20. The registers of a pass are those that the tree adds first. */
typedef struct {
    float32x4_t sum[3][4][2];
} half_tile;

INLINE void half_step(half_tile *s, const float *x, size_t x_stride, const float *w, size_t w_stride) {
    UNROLL for (int k = 0; k < 2; k++) {
        float32x4_t wj[4];
        UNROLL for (int i = 0; i < 4; i++) wj[i] = vld1q_f32(w + (size_t)i * w_stride + 2 * k * QUAD);
        UNROLL for (int r = 0; r < 3; r++) {
            float32x4_t xj = vld1q_f32(x + (size_t)r * x_stride + 2 * k * QUAD);
            UNROLL for (int i = 0; i < 4; i++) s->sum[r][i][k] = vfmaq_f32(s->sum[r][i][k], wj[i], xj);
        }
    }
}

/* first = 0: lanes 0 to 3 and 8 to 11; first = 4: the others. Their tails: 3 rows of x, 4 of w. */
INLINE void half_4x3(float32x4_t folded[3][4], const float *x, size_t x_stride, const float *w, size_t w_stride,
                     size_t n, size_t first, float tails[7][LANES]) {
    half_tile s;
    UNROLL for (int r = 0; r < 3; r++)
        UNROLL for (int i = 0; i < 4; i++) s.sum[r][i][0] = s.sum[r][i][1] = vdupq_n_f32(0.0f);
    size_t j = 0;
    for (; j + LANES <= n; j += LANES) half_step(&s, x + j + first, x_stride, w + j + first, w_stride);
    if (j < n) half_step(&s, tails[0] + first, LANES, tails[3] + first, LANES);
    UNROLL for (int r = 0; r < 3; r++)
        UNROLL for (int i = 0; i < 4; i++) folded[r][i] = vaddq_f32(s.sum[r][i][0], s.sum[r][i][1]);
}

/* Results of neighbouring weight rows go out_step apart, of neighbouring rows of x out_stride. */
static void dot_4x3(float *out, size_t out_step, size_t out_stride, const float *x, size_t x_stride,
                    const float *w, size_t w_stride, size_t n) {
    float tails[7][LANES];
    size_t whole = n / LANES * LANES;
    if (whole < n) {
        for (size_t r = 0; r < 3; r++) copy_tail(tails[r], x + r * x_stride + whole, n - whole);
        for (size_t i = 0; i < 4; i++) copy_tail(tails[3 + i], w + i * w_stride + whole, n - whole);
    }
    float32x4_t even[3][4], odd[3][4];
    half_4x3(even, x, x_stride, w, w_stride, n, 0, tails);
    half_4x3(odd, x, x_stride, w, w_stride, n, QUAD, tails);
    UNROLL for (int r = 0; r < 3; r++) {
        float sums[4];
        UNROLL for (int i = 0; i < 4; i++) even[r][i] = vaddq_f32(even[r][i], odd[r][i]);
        vst1q_f32(sums, sum_folded_4(even[r][0], even[r][1], even[r][2], even[r][3]));
        UNROLL for (int i = 0; i < 4; i++) out[(size_t)r * out_stride + (size_t)i * out_step] = sums[i];
    }
}

/* Weights outside, rows inside, and weight rows a quarter of the matrix apart, for the reasons that
 * kernels_avx512.c gives. */
static void neon_matmul(float *out, size_t out_stride, const float *x, size_t x_stride,
                        size_t n_rows, const float *w, size_t n, size_t begin, size_t end) {
    size_t quarter = (end - begin) / 4, i = begin;
    for (; i < begin + quarter; i++) {
        size_t r = 0;
        for (; r + 3 <= n_rows; r += 3)
            dot_4x3(out + r * out_stride + i, quarter, out_stride, x + r * x_stride, x_stride, w + i * n, quarter * n, n);
        for (; r < n_rows; r++) {
            float sums[4];
            vst1q_f32(sums, dot_4x1(x + r * x_stride, w + i * n, quarter * n, n));
            for (size_t k = 0; k < 4; k++) out[r * out_stride + i + k * quarter] = sums[k];
        }
    }
    for (i = begin + 4 * quarter; i < end; i++)
        for (size_t r = 0; r < n_rows; r++) out[r * out_stride + i] = neon_dot(w + i * n, x + r * x_stride, n);
}

INLINE float32x4_t power_of_two(int32x4_t n) {
    return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(n, vdupq_n_s32(127)), 23));
}

/* The 4 exponentials of x; step by step as exp_one in kernels_scalar.c. */
INLINE float32x4_t exp_4(float32x4_t x) {
    const float32x4_t least = vdupq_n_f32(L2C_EXP_LOW), most = vdupq_n_f32(L2C_EXP_HIGH);
    const float32x4_t round = vdupq_n_f32(L2C_EXP_ROUND);
    x = vbslq_f32(vcgtq_f32(least, x), least, x); /* false for NaN, which stays */
    x = vbslq_f32(vcltq_f32(most, x), most, x);
    float32x4_t shifted = vfmaq_f32(round, x, vdupq_n_f32(L2C_EXP_LOG2E));
    int32x4_t n = vsubq_s32(vreinterpretq_s32_f32(shifted), vdupq_n_s32(L2C_EXP_ROUND_BITS));
    float32x4_t whole = vsubq_f32(shifted, round);
    float32x4_t r = vfmaq_f32(x, whole, vdupq_n_f32(-L2C_EXP_LN2_HIGH));
    r = vfmaq_f32(r, whole, vdupq_n_f32(-L2C_EXP_LN2_LOW));
    float32x4_t p = vfmaq_f32(vdupq_n_f32(L2C_EXP_P4), vdupq_n_f32(L2C_EXP_P5), r);
    p = vfmaq_f32(vdupq_n_f32(L2C_EXP_P3), p, r);
    p = vfmaq_f32(vdupq_n_f32(L2C_EXP_P2), p, r);
    p = vfmaq_f32(vdupq_n_f32(L2C_EXP_P1), p, r);
    p = vfmaq_f32(vdupq_n_f32(L2C_EXP_P0), p, r);
    p = vaddq_f32(vfmaq_f32(r, p, vmulq_f32(r, r)), vdupq_n_f32(1.0f));
    int32x4_t half = vshrq_n_s32(n, 1);
    p = vmulq_f32(p, power_of_two(half));
    return vmulq_f32(p, power_of_two(vsubq_s32(n, half)));
}

/* At most 4 elements, then zeros. */
INLINE float32x4_t load_part(const float *p, size_t n) {
    if (n >= QUAD) return vld1q_f32(p);
    float all[QUAD] = {0};
    memcpy(all, p, n * sizeof *all);
    return vld1q_f32(all);
}

INLINE void store_part(float *p, float32x4_t v, size_t n) {
    if (n >= QUAD) {
        vst1q_f32(p, v);
    } else {
        float all[QUAD];
        vst1q_f32(all, v);
        memcpy(p, all, n * sizeof *all);
    }
}

static void neon_exp(float *out, const float *x, size_t n) {
    for (size_t j = 0; j < n; j += QUAD) store_part(out + j, exp_4(load_part(x + j, n - j)), n - j);
}

static float neon_max(const float *x, size_t n) {
    float32x4_t m = vdupq_n_f32(x[0]);
    size_t j = 0;
    for (; j + QUAD <= n; j += QUAD) m = vmaxq_f32(m, vld1q_f32(x + j));
    float best = vmaxvq_f32(m);
    for (; j < n; j++) best = x[j] > best ? x[j] : best;
    return best;
}

static float neon_exp_sum(float *x, size_t n) {
    float32x4_t m = vdupq_n_f32(neon_max(x, n));
    lanes sums = zero();
    size_t j = 0;
    for (; j + LANES <= n; j += LANES)
        UNROLL for (int k = 0; k < 4; k++) {
            float32x4_t e = exp_4(vsubq_f32(vld1q_f32(x + j + k * QUAD), m));
            vst1q_f32(x + j + k * QUAD, e);
            sums.quad[k] = vaddq_f32(sums.quad[k], e);
        }
    if (j < n) {
        for (size_t k = j; k < n; k += QUAD) store_part(x + k, exp_4(vsubq_f32(load_part(x + k, n - k), m)), n - k);
        lanes rest = load_tail(x + j, n - j); /* its zeros change no sum: those are not -0 */
        UNROLL for (int k = 0; k < 4; k++) sums.quad[k] = vaddq_f32(sums.quad[k], rest.quad[k]);
    }
    return sum_folded(fold(sums));
}

static void neon_softmax(float *x, size_t n) {
    float32x4_t divisor = vdupq_n_f32(neon_exp_sum(x, n));
    for (size_t j = 0; j < n; j += QUAD) store_part(x + j, vdivq_f32(load_part(x + j, n - j), divisor), n - j);
}

static void neon_swiglu(float *gate, const float *up, size_t n) {
    const float32x4_t one = vdupq_n_f32(1.0f);
    for (size_t j = 0; j < n; j += QUAD) {
        float32x4_t g = load_part(gate + j, n - j);
        float32x4_t sigmoid = vdivq_f32(one, vaddq_f32(one, exp_4(vnegq_f32(g))));
        store_part(gate + j, vmulq_f32(vmulq_f32(g, sigmoid), load_part(up + j, n - j)), n - j);
    }
}

/* Sums of `registers` * 4 neighbouring columns, from *i on, stay in registers over all rows. */
INLINE void mix_columns(float *out, const float *weights, const float *rows, size_t n, size_t width, size_t *i,
                        int registers) {
    float32x4_t s[16];
    UNROLL for (int k = 0; k < registers; k++) s[k] = vdupq_n_f32(0.0f);
    for (size_t t = 0; t < n; t++) {
        float32x4_t weight = vdupq_n_f32(weights[t]);
        const float *row = rows + t * width + *i;
        UNROLL for (int k = 0; k < registers; k++) s[k] = vfmaq_f32(s[k], weight, vld1q_f32(row + k * QUAD));
    }
    UNROLL for (int k = 0; k < registers; k++) vst1q_f32(out + *i + k * QUAD, s[k]);
    *i += (size_t)registers * QUAD;
}

static void mix_row(float *out, const float *weights, const float *rows, size_t n, size_t width) {
    size_t i = 0;
    while (i + 16 * QUAD <= width) mix_columns(out, weights, rows, n, width, &i, 16);
    if (i + 12 * QUAD <= width) mix_columns(out, weights, rows, n, width, &i, 12);
    if (i + 8 * QUAD <= width) mix_columns(out, weights, rows, n, width, &i, 8);
    while (i + QUAD <= width) mix_columns(out, weights, rows, n, width, &i, 1);
    for (; i < width; i++) {
        float s = 0.0f;
        for (size_t t = 0; t < n; t++) s = fmaf(weights[t], rows[t * width + i], s);
        out[i] = s;
    }
}

static void neon_mix(float *out, size_t out_stride, const float *weights, size_t weights_stride, size_t n_rows,
                     size_t step, const float *rows, size_t n, size_t width) {
    for (size_t r = 0; r < n_rows; r++)
        mix_row(out + r * out_stride, weights + r * weights_stride, rows, n + r * step, width);
}

const l2c_kernels l2c_kernels_neon = {
    .name = "neon",
    .dot = neon_dot,
    .matmul = neon_matmul,
    .exp = neon_exp,
    .exp_sum = neon_exp_sum,
    .softmax = neon_softmax,
    .max = neon_max,
    .swiglu = neon_swiglu,
    .mix = neon_mix,
    L2C_PLAIN_KERNELS,
    .narrow = l2c_neon_narrow,
    .widen = l2c_neon_widen,
    .quantize = l2c_neon_quantize,
    .matmul_q8 = l2c_neon_matmul_q8,
    .matmul_q4 = l2c_neon_matmul_q4,
    .matmul_q4_1 = l2c_neon_matmul_q4_1,
};

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC pop_options
#endif
#endif
