/*
 * runq.c - llama2.c's runq.c, step by step: int8 products of a file's own layout, sums in one
 * lane, in order, multiplied and added separately; exp from libm.
 *
 * It is for v2 files whose groups the packed kernels do not take: llama2.c's exporter makes
 * group_size divide dim, but not hidden_dim. runq.c then leaves out what is past a row's last whole
 * group, and reads the scale of group "flat index / group_size" although groups straddle rows
 * (llama2.c pull request 532). Such files exist; this gives runq.c's results for them, to the bit,
 * and the Python package warns. (To the bit, because quantizing activations turns a last bit of a
 * sum into another int8 now and then, and from there on into other logits.)
 */
#include <math.h>
#include <string.h>

#include "quantized.h"

#include "plain.h"

static float runq_dot(const float *a, const float *b, size_t n) {
    float sum = 0.0f;
    for (size_t j = 0; j < n; j++) sum += a[j] * b[j];
    return sum;
}

static void runq_matmul(float *out, size_t out_stride, const float *x, size_t x_stride, size_t n_rows,
                        const float *w, size_t n, size_t begin, size_t end) {
    for (size_t i = begin; i < end; i++)
        for (size_t r = 0; r < n_rows; r++) out[r * out_stride + i] = runq_dot(x + r * x_stride, w + i * n, n);
}

static void runq_exp(float *out, const float *x, size_t n) {
    for (size_t j = 0; j < n; j++) out[j] = expf(x[j]);
}

static float runq_max(const float *x, size_t n) {
    float m = x[0];
    for (size_t j = 1; j < n; j++) m = x[j] > m ? x[j] : m;
    return m;
}

static float runq_exp_sum(float *x, size_t n) {
    float m = runq_max(x, n), sum = 0.0f;
    for (size_t j = 0; j < n; j++) {
        x[j] = expf(x[j] - m);
        sum += x[j];
    }
    return sum;
}

static void runq_softmax(float *x, size_t n) {
    float sum = runq_exp_sum(x, n);
    for (size_t j = 0; j < n; j++) x[j] /= sum;
}

static void runq_swiglu(float *gate, const float *up, size_t n) {
    for (size_t j = 0; j < n; j++) {
        float value = gate[j];
        value *= 1.0f / (1.0f + expf(-value));
        gate[j] = value * up[j];
    }
}

/* Positions one by one, across the blocks. */
static void runq_weighted_sum(float *out, size_t out_stride, const float *weights, size_t weights_stride, size_t n_rows,
                              size_t step, const float *values, ptrdiff_t n, size_t width, int accumulate) {
    for (size_t r = 0; r < n_rows; r++, out += out_stride, weights += weights_stride) {
        size_t own = l2c_in_block(n, r, step);
        if (!accumulate) memset(out, 0, width * sizeof *out);
        for (size_t t = 0; t < own; t++)
            for (size_t i = 0; i < width; i++) out[i] += weights[t] * values[t * width + i];
    }
}

void l2c_runq_quantize(const l2c_quantized *to, size_t row, const float *x, size_t n) {
    size_t groups = n / to->group; /* and what is past them stays out */
    int8_t *q = to->q + row * to->width;
    for (size_t g = 0; g < groups; g++) {
        const float *group = x + g * to->group;
        float largest = 0.0f;
        for (size_t i = 0; i < to->group; i++) {
            float magnitude = fabsf(group[i]);
            if (!(magnitude <= largest)) largest = magnitude; /* lets NaN through to the scale */
            if (magnitude != magnitude) break;
        }
        float scale = largest / 127.0f;
        to->scales[row * groups + g] = scale;
        for (size_t i = 0; i < to->group; i++) {
            float value = roundf(group[i] / scale);
            /* 0 / 0 in a group of zeros, and whatever is not finite, whose scale carries it on */
            q[g * to->group + i] = value >= -127.0f && value <= 127.0f ? (int8_t)value : 0;
        }
    }
}

static float scale_at(const l2c_matrix *w, size_t group) {
    float scale; /* at any address: int8 tensors of any length come before it */
    memcpy(&scale, w->scales + group * sizeof scale, sizeof scale);
    return scale;
}

static float dot_int8(const int8_t *q, const float *scales, const l2c_matrix *w, size_t row) {
    const int8_t *weights = (const int8_t *)w->data + row * w->cols;
    float sum = 0.0f;
    for (size_t j = 0; j + w->group <= w->cols; j += w->group) {
        int32_t dot = 0; /* at most 128 * 127 * group, which checkpoint.c bounds */
        for (size_t k = 0; k < w->group; k++) dot += (int32_t)q[j + k] * weights[j + k];
        sum += (float)dot * scale_at(w, (row * w->cols + j) / w->group) * scales[j / w->group];
    }
    return sum;
}

void l2c_runq_matmul(float *out, size_t out_stride, const l2c_quantized *x, size_t first, size_t n_rows,
                     const l2c_matrix *w, size_t begin, size_t end) {
    for (size_t i = begin; i < end; i++) /* weights outside: each comes from memory once */
        for (size_t r = 0; r < n_rows; r++)
            out[r * out_stride + i] = dot_int8(x->q + (first + r) * x->width,
                                               x->scales + (first + r) * (x->width / x->group), w, i);
}

const l2c_kernels l2c_kernels_runq = {
    .name = "runq",
    .dot = runq_dot,
    .matmul = runq_matmul,
    .exp = runq_exp,
    .exp_sum = runq_exp_sum,
    .softmax = runq_softmax,
    .max = runq_max,
    .swiglu = runq_swiglu,
    .weighted_sum = runq_weighted_sum,
    L2C_PLAIN_KERNELS,
    .f32_to_f16 = l2c_scalar_f32_to_f16,
    .f16_to_f32 = l2c_scalar_f16_to_f32,
    .quantize = l2c_runq_quantize,
    .matmul_q8 = l2c_runq_matmul,
};
