/*
 * scalar.c - the oracle: kernels.h's definitions in plain C, one statement an operation.
 */
#include <float.h>
#include <stdint.h>
#include <string.h>

#include "fused.h"
#include "quantized.h"

#include "plain.h"

enum { LANES = 16 };

static float sum_lanes(float *lane) {
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++) lane[i] += lane[i + half];
    return lane[0];
}

static float scalar_dot(const float *a, const float *b, size_t n) {
    float lane[LANES] = {0};
    size_t j = 0;
    for (; j + LANES <= n; j += LANES)
        for (int i = 0; i < LANES; i++) lane[i] = L2C_FMAF(a[j + i], b[j + i], lane[i]);
    if (j < n)
        for (size_t i = 0; i < LANES; i++) {
            int inside = j + i < n;
            lane[i] = L2C_FMAF(inside ? a[j + i] : 0.0f, inside ? b[j + i] : 0.0f, lane[i]);
        }
    return sum_lanes(lane);
}

static void scalar_matmul(float *out, size_t out_stride, const float *x, size_t x_stride,
                          size_t n_rows, const float *w, size_t n, size_t begin, size_t end) {
    for (size_t i = begin; i < end; i++)
        for (size_t r = 0; r < n_rows; r++)
            out[r * out_stride + i] = scalar_dot(w + i * n, x + r * x_stride, n);
}

static float power_of_two(int32_t n) {
    uint32_t bits = ((uint32_t)n + 127u) << 23;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static float exp_one(float x) {
    if (x < L2C_EXP_LOW) return 0.0f; /* comparisons this way round let NaN through */
    x = L2C_EXP_HIGH < x ? L2C_EXP_HIGH : x;
    float shifted = L2C_FMAF(x, L2C_EXP_LOG2E, L2C_EXP_ROUND);
    uint32_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    int32_t n = (int32_t)(bits - L2C_EXP_ROUND_BITS);
    float whole = shifted - L2C_EXP_ROUND;
    float r = L2C_FMAF(whole, -L2C_EXP_LN2_HIGH, x);
    r = L2C_FMAF(whole, -L2C_EXP_LN2_LOW, r);
    float p = L2C_FMAF(L2C_EXP_P5, r, L2C_EXP_P4);
    p = L2C_FMAF(p, r, L2C_EXP_P3);
    p = L2C_FMAF(p, r, L2C_EXP_P2);
    p = L2C_FMAF(p, r, L2C_EXP_P1);
    p = L2C_FMAF(p, r, L2C_EXP_P0);
    p = L2C_FMAF(p, r * r, r) + 1.0f;
    /* In two steps, since 2^n itself can be out of range where the product is not. */
    int32_t half = n >> 1;
    return p * power_of_two(half) * power_of_two(n - half);
}

static void scalar_exp(float *out, const float *x, size_t n) {
    for (size_t j = 0; j < n; j++) out[j] = exp_one(x[j]);
}

static float scalar_max(const float *x, size_t n) {
    float m = x[0];
    for (size_t j = 1; j < n; j++) m = x[j] > m ? x[j] : m;
    return m;
}

static float scalar_exp_sum(float *x, size_t n) {
    float m = scalar_max(x, n), lane[LANES] = {0};
    for (size_t begin = 0; begin < n; begin += L2C_SUM_BLOCK) {
        float block[LANES] = {0};
        for (size_t j = begin; j < n && j < begin + L2C_SUM_BLOCK; j++) {
            x[j] = exp_one(x[j] - m);
            block[j % LANES] += x[j];
        }
        for (int i = 0; i < LANES; i++) lane[i] += block[i]; /* 0 + the first is the first: no exp is -0 */
    }
    return sum_lanes(lane);
}

static void scalar_softmax(float *x, size_t n) {
    float sum = scalar_exp_sum(x, n);
    float least = sum * FLT_MIN;
    for (size_t j = 0; j < n; j++) x[j] = x[j] < least ? 0.0f : x[j] / sum;
}

static void scalar_swiglu(float *gate, const float *up, size_t n) {
    for (size_t j = 0; j < n; j++) {
        float sigmoid = 1.0f / (1.0f + exp_one(-gate[j]));
        gate[j] = gate[j] * sigmoid * up[j];
    }
}

static void scalar_weighted_sum(float *out, size_t out_stride, const float *weights, size_t weights_stride,
                                size_t n_rows, size_t step, const float *values, ptrdiff_t n, size_t width,
                                int accumulate) {
    for (size_t r = 0; r < n_rows; r++, out += out_stride, weights += weights_stride) {
        size_t own = l2c_in_block(n, r, step);
        if (own == 0) continue;
        for (size_t i = 0; i < width; i++) {
            float sum = 0.0f;
            for (size_t t = 0; t < own; t++) sum = L2C_FMAF(weights[t], values[t * width + i], sum);
            out[i] = accumulate ? out[i] + sum : sum;
        }
    }
}

const l2c_kernels l2c_kernels_scalar = {
    .name = "scalar",
    .dot = scalar_dot,
    .matmul = scalar_matmul,
    .exp = scalar_exp,
    .exp_sum = scalar_exp_sum,
    .softmax = scalar_softmax,
    .max = scalar_max,
    .swiglu = scalar_swiglu,
    .weighted_sum = scalar_weighted_sum,
    L2C_PLAIN_KERNELS,
    .f32_to_f16 = l2c_scalar_f32_to_f16,
    .f16_to_f32 = l2c_scalar_f16_to_f32,
    .quantize = l2c_scalar_quantize,
    .matmul_q8 = l2c_scalar_matmul_q8,
    .matmul_q4 = l2c_scalar_matmul_q4,
    .matmul_q4_1 = l2c_scalar_matmul_q4_1,
};
