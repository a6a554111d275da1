/*
 * quantize.c - int8 in groups that share a float32 scale, with runq.c's arithmetic.
 *
 * A row of n values has n / group_size groups. llama2.c's exporter makes group_size divide dim, but
 * not hidden_dim. runq.c then leaves out what is past a row's last whole group, and reads the scale
 * of group "flat index / group_size" although groups straddle rows (llama2.c pull request 532). Such
 * files exist, and this file gives runq.c's results for them; the Python package warns.
 */
#include <math.h>
#include <string.h>

#include "internal.h"

static float scale_at(const l2c_matrix *w, size_t group) {
    float scale; /* int8 tensors of any length come before it, so it may lie at any address */
    memcpy(&scale, w->scales + group * sizeof scale, sizeof scale);
    return scale;
}

void l2c_quantize_row(int8_t *q, float *scales, const float *x, size_t n, size_t group_size) {
    for (size_t g = 0; g < n / group_size; g++) {
        const float *group = x + g * group_size;
        float largest = 0.0f;
        for (size_t i = 0; i < group_size; i++) {
            float magnitude = fabsf(group[i]);
            if (!(magnitude <= largest)) largest = magnitude; /* lets NaN through to the scale */
            if (magnitude != magnitude) break;
        }
        float scale = largest / 127.0f;
        scales[g] = scale;
        for (size_t i = 0; i < group_size; i++) {
            float value = roundf(group[i] / scale);
            /* 0 / 0 in a group of zeros, and whatever is not finite, whose scale carries it on */
            q[g * group_size + i] = value >= -127.0f && value <= 127.0f ? (int8_t)value : 0;
        }
    }
}

void l2c_dequantize_row(float *x, const l2c_matrix *w, size_t row, size_t group_size) {
    for (size_t j = 0; j < w->cols; j++) {
        size_t flat = row * w->cols + j;
        x[j] = (float)w->q8[flat] * scale_at(w, flat / group_size);
    }
}

static float dot_q8(const int8_t *q, const float *scales, const l2c_matrix *w, size_t row, size_t group_size) {
    const int8_t *weights = w->q8 + row * w->cols;
    float sum = 0.0f;
    for (size_t j = 0; j + group_size <= w->cols; j += group_size) {
        int32_t dot = 0; /* at most 128 * 127 * group_size, which checkpoint.c bounds */
        for (size_t k = 0; k < group_size; k++) dot += (int32_t)q[j + k] * weights[j + k];
        sum += (float)dot * scale_at(w, (row * w->cols + j) / group_size) * scales[j / group_size];
    }
    return sum;
}

void l2c_matmul_q8(float *out, const l2c_activations *in, size_t n, const l2c_matrix *w, size_t group_size,
                   size_t begin, size_t end) {
    for (size_t i = begin; i < end; i++) /* weights outside: each comes from memory once */
        for (size_t r = 0; r < n; r++)
            out[r * w->rows + i] = dot_q8(in->q8 + r * in->width, in->scales + r * (in->width / group_size),
                                          w, i, group_size);
}
