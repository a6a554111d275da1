/*
 * kernels_runq.c - the float32 steps between int8 products, with llama2.c's own arithmetic: sums in
 * one lane, in order, multiplied and added separately; exp from libm.
 *
 * Quantizing activations turns a difference in the last bit of a sum into a different int8 now and
 * then, and from there on into different logits (about 0.1 on stories260K). So a v2 file tells
 * runq.c's story only if these sums are runq.c's as well. They are the same on every machine with
 * the same libm, whichever instruction set it has.
 */
#include <math.h>
#include <string.h>

#include "kernels.h"

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

static float runq_softmax(float *x, size_t n) {
    float m = runq_max(x, n), sum = 0.0f;
    for (size_t j = 0; j < n; j++) {
        x[j] = expf(x[j] - m);
        sum += x[j];
    }
    for (size_t j = 0; j < n; j++) x[j] /= sum;
    return sum;
}

static void runq_swiglu(float *gate, const float *up, size_t n) {
    for (size_t j = 0; j < n; j++) {
        float value = gate[j];
        value *= 1.0f / (1.0f + expf(-value));
        gate[j] = value * up[j];
    }
}

static void runq_mix(float *out, const float *weights, const float *rows, size_t n, size_t width) {
    memset(out, 0, width * sizeof *out);
    for (size_t t = 0; t < n; t++)
        for (size_t i = 0; i < width; i++) out[i] += weights[t] * rows[t * width + i];
}

const l2c_kernels l2c_kernels_runq = {
    .name = "runq",
    .dot = runq_dot,
    .matmul = runq_matmul,
    .exp = runq_exp,
    .softmax = runq_softmax,
    .max = runq_max,
    .swiglu = runq_swiglu,
    .mix = runq_mix,
};
