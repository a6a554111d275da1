/*
 * neon.c - simd.h's primitives with 128-bit registers, and its tile of products.
 *
 * Instructions: NEON of 64-bit ARM, which every such processor has; nothing optional. The 16 lanes of a
 * sum are four registers: the tree adds the first and the third, the second and the fourth, then the two.
 * There are no masks: tails are copied into zeroed floats, which gives the zeros that the definition asks
 * for and touches no byte past the end. The tile: 24 of 32 registers are sums, of one half of the lanes of 4
 * weight rows and 3 rows of x. Nothing can overflow but floats, and those as IEEE says.
 *
 * vfmaq_f32(s, a, b) is s + a * b, rounded once. exp has comparisons and a selection where the scalar
 * code has `?:`, so that NaN passes for certain.
 */
#include "quantized.h"

#if defined(L2C_ARM)
#include <arm_neon.h>
#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

/* gcc's scheduler before register allocation moves loads ahead until the sums no longer fit the registers
 * and are kept on the stack. */
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC push_options
#pragma GCC optimize("no-schedule-insns")
#endif

#include "plain.h"

#define INLINE static inline __attribute__((always_inline))

enum { LANES = 16, WIDTH = 4, REGISTERS = 4, TILE_ROWS = 3, SUM_ROWS = 1, MASKED = 0 };

typedef float32x4_t vec;
typedef int32x4_t integers;
typedef struct {
    vec v[REGISTERS];
} lanes;

INLINE vec set(float x) { return vdupq_n_f32(x); }
INLINE vec load(const float *p) { return vld1q_f32(p); }
INLINE void store(float *p, vec v) { vst1q_f32(p, v); }
INLINE vec add(vec a, vec b) { return vaddq_f32(a, b); }
INLINE vec subtract(vec a, vec b) { return vsubq_f32(a, b); }
INLINE vec multiply(vec a, vec b) { return vmulq_f32(a, b); }
INLINE vec divide(vec a, vec b) { return vdivq_f32(a, b); }
INLINE vec larger(vec a, vec b) { return vmaxq_f32(a, b); }
INLINE vec negate(vec a) { return vnegq_f32(a); }
INLINE vec multiply_add(vec a, vec b, vec s) { return vfmaq_f32(s, a, b); }

INLINE vec load_part_or(const float *p, size_t n, vec rest) {
    if (n >= WIDTH) return load(p);
    float all[WIDTH];
    store(all, rest);
    memcpy(all, p, n * sizeof *all);
    return load(all);
}

INLINE vec load_part(const float *p, size_t n) { return load_part_or(p, n, set(0.0f)); }

INLINE void store_part(float *p, vec v, size_t n) {
    if (n >= WIDTH) {
        store(p, v);
    } else {
        float all[WIDTH];
        store(all, v);
        memcpy(p, all, n * sizeof *all);
    }
}

/* n < 16 elements, then zeros */
INLINE void copy_tail(float tail[LANES], const float *p, size_t n) {
    memset(tail, 0, LANES * sizeof *tail);
    memcpy(tail, p, n * sizeof *tail);
}

INLINE lanes load_tail(const float *p, size_t n) {
    float tail[LANES];
    lanes s;
    copy_tail(tail, p, n);
    UNROLL for (int k = 0; k < REGISTERS; k++) s.v[k] = load(tail + k * WIDTH);
    return s;
}

INLINE vec clamp(vec x, vec low, vec high) { /* comparisons are false for NaN, which stays */
    x = vbslq_f32(vcgtq_f32(low, x), low, x);
    return vbslq_f32(vcltq_f32(high, x), high, x);
}

INLINE vec zero_below(vec v, vec x, vec least) {
    return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(v), vcltq_f32(x, least)));
}

INLINE integers bits(vec v) { return vreinterpretq_s32_f32(v); }
INLINE integers set_integer(int32_t n) { return vdupq_n_s32(n); }
INLINE integers subtract_integers(integers a, integers b) { return vsubq_s32(a, b); }
INLINE integers half_of(integers n) { return vshrq_n_s32(n, 1); }
INLINE vec power_of_two(integers n) {
    return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(n, vdupq_n_s32(127)), 23));
}

INLINE float largest(vec v) { return vmaxvq_f32(v); }

/* Lanes i and i+8, then i and i+4. */
INLINE float32x4_t fold(lanes s) {
    return vaddq_f32(vaddq_f32(s.v[0], s.v[2]), vaddq_f32(s.v[1], s.v[3]));
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

INLINE float sum_lanes(lanes s) { return sum_folded(fold(s)); }

#include "simd.h"

/* 4 weight rows, w_stride apart, against one row of x: 16 sums in flight. */
INLINE float32x4_t dot_4x1(const float *x, const float *w, size_t w_stride, size_t n) {
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
        UNROLL for (int i = 0; i < 4; i++) wj[i] = vld1q_f32(w + (size_t)i * w_stride + 2 * k * WIDTH);
        UNROLL for (int r = 0; r < 3; r++) {
            float32x4_t xj = vld1q_f32(x + (size_t)r * x_stride + 2 * k * WIDTH);
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
    half_4x3(odd, x, x_stride, w, w_stride, n, WIDTH, tails);
    UNROLL for (int r = 0; r < 3; r++) {
        float sums[4];
        UNROLL for (int i = 0; i < 4; i++) even[r][i] = vaddq_f32(even[r][i], odd[r][i]);
        vst1q_f32(sums, sum_folded_4(even[r][0], even[r][1], even[r][2], even[r][3]));
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
        vst1q_f32(sums, dot_4x1(x, w, w_stride, n));
        for (size_t i = 0; i < 4; i++) out[i * out_step] = sums[i];
    }
}

/* Instruction sets that differ in their integer products alone. */
#define TABLE(isa)                              \
    const l2c_kernels l2c_kernels_##isa = {     \
        .name = #isa,                           \
        L2C_SIMD_KERNELS,                       \
        L2C_PLAIN_KERNELS,                      \
        .f32_to_f16 = l2c_neon_f32_to_f16,      \
        .f16_to_f32 = l2c_neon_f16_to_f32,      \
        .quantize = l2c_neon_quantize,          \
        .matmul_q8 = l2c_##isa##_matmul_q8,     \
        .matmul_q4 = l2c_##isa##_matmul_q4,     \
        .matmul_q4_1 = l2c_##isa##_matmul_q4_1, \
    }

TABLE(neon);
#if defined(L2C_ARM_DOTPROD)
TABLE(dotprod);
TABLE(i8mm);
#endif

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC pop_options
#endif
#endif
