/*
 * quantize.c - weights to int8 or int4 in groups, packed for the kernels; and a row of them back.
 */
#include <math.h>
#include <string.h>

#include "gguf.h"
#include "internal.h"
#include "kernels/quantized.h"

/* ---- Layout (kernels.h) ------------------------------------------------------------------------ */

l2c_matrix l2c_matrix_packed(l2c_weights type, size_t rows, size_t cols, size_t group) {
    l2c_matrix m = {.type = type, .rows = rows, .cols = cols, .group = group};
    m.padded = (cols + group - 1) / group * group;
    size_t data = m.padded * L2C_BLOCK_ROWS;
    m.block_bytes = l2c_block_scale_bytes(type, m.padded / group) + (type == L2C_WEIGHTS_Q8 ? data : data / 2);
    return m;
}

size_t l2c_matrix_bytes(const l2c_matrix *m) {
    if (m->type == L2C_WEIGHTS_F32) return m->rows * m->cols * sizeof(float);
    if (m->type == L2C_WEIGHTS_FILE) return m->rows * m->cols + m->rows * m->cols / m->group * sizeof(float);
    if (m->type == L2C_WEIGHTS_GGUF) return m->rows * (m->cols / m->blocks->values * m->blocks->bytes);
    return (m->rows + L2C_BLOCK_ROWS - 1) / L2C_BLOCK_ROWS * m->block_bytes;
}

static float file_scale(const l2c_matrix *w, size_t group) {
    float scale; /* int8 tensors of any length come before it, so it may lie at any address */
    memcpy(&scale, w->scales + group * sizeof scale, sizeof scale);
    return scale;
}

/* n values of a row that is not packed, from column `start` on; of a GGUF file, 32 or fewer, which lie
 * in one block of more than one value. */
static void read_values(float *x, const l2c_matrix *from, size_t row, size_t start, size_t n) {
    size_t at = row * from->cols + start;
    if (from->type == L2C_WEIGHTS_F32) {
        memcpy(x, (const float *)from->data + at, n * sizeof *x);
    } else if (from->type == L2C_WEIGHTS_FILE) {
        const int8_t *q = (const int8_t *)from->data + at;
        for (size_t j = 0; j < n; j++) x[j] = (float)q[j] * file_scale(from, (at + j) / from->group);
    } else {
        const l2c_block_type *blocks = from->blocks;
        const unsigned char *block = (const unsigned char *)from->data + at / blocks->values * blocks->bytes;
        blocks->read(x, block, at % blocks->values, n);
    }
}

/* A row that is not packed, in float32. */
static void unpack_row(float *to, const l2c_matrix *from, size_t row) {
    size_t part = from->type == L2C_WEIGHTS_GGUF ? L2C_Q4_GROUP : from->cols;
    for (size_t start = 0; start < from->cols; start += part) {
        size_t n = from->cols - start < part ? from->cols - start : part;
        read_values(to + start, from, row, start, n);
    }
}

void l2c_matrix_row(float *x, const l2c_matrix *w, size_t row) {
    if (w->type != L2C_WEIGHTS_Q8 && w->type != L2C_WEIGHTS_Q4 && w->type != L2C_WEIGHTS_Q4_1) {
        unpack_row(x, w, row);
        return;
    }
    size_t lane = row % L2C_BLOCK_ROWS;
    const unsigned char *block = l2c_block(w, row);
    const unsigned char *data = block + l2c_block_scale_bytes(w->type, w->padded / w->group) + 4 * lane;
    for (size_t j = 0; j < w->cols; j++) {
        size_t at = j / w->group * L2C_BLOCK_ROWS + lane;
        if (w->type == L2C_WEIGHTS_Q8) {
            x[j] = (float)(int8_t)data[j / 4 * 64 + j % 4] * ((const float *)block)[at];
        } else {
            size_t k = j % 16;
            int both = data[j / 32 * 256 + k / 4 * 64 + k % 4], q = j % 32 < 16 ? both & 15 : both >> 4;
            if (w->type == L2C_WEIGHTS_Q4) {
                x[j] = (float)(q - 8) * l2c_half_to_float(((const uint16_t *)block)[at]);
                continue;
            }
            const uint16_t *scale = (const uint16_t *)block + j / L2C_Q4_GROUP * 2 * L2C_BLOCK_ROWS + lane;
            x[j] = l2c_half_to_float(scale[0]) * (float)q + l2c_half_to_float(scale[L2C_BLOCK_ROWS]);
        }
    }
}

/* ---- float32 to groups --------------------------------------------------------------------------- */

/* As llama2.c's exporter: the largest magnitude becomes 127. */
static float quantize_q8(int8_t *q, const float *x, size_t n) {
    float largest = 0.0f;
    for (size_t i = 0; i < n; i++) largest = fabsf(x[i]) > largest ? fabsf(x[i]) : largest;
    float scale = largest / 127.0f, inverse = largest >= L2C_QUANTIZE_LEAST ? 127.0f / largest : 0.0f;
    for (size_t i = 0; i < n; i++) {
        float shifted = x[i] * inverse + L2C_QUANTIZE_ROUND;
        int32_t bits;
        memcpy(&bits, &shifted, sizeof bits);
        q[i] = (int8_t)bits;
    }
    return scale;
}

/* -8 to 7 times a scale; returns the sum of squared errors. Eight sums, so that compilers see eight
 * lanes. */
static float round_q4(float *q, const float *x, float scale) {
    float inverse = scale != 0.0f ? 1.0f / scale : 0.0f, error[8] = {0};
    for (size_t i = 0; i < L2C_Q4_GROUP; i += 8)
        for (size_t k = 0; k < 8; k++) {
            float v = x[i + k] * inverse;
            v = v < -8.0f ? -8.0f : v;
            v = v > 7.0f ? 7.0f : v;
            q[i + k] = (v + L2C_QUANTIZE_ROUND) - L2C_QUANTIZE_ROUND;
            error[k] += (x[i + k] - q[i + k] * scale) * (x[i + k] - q[i + k] * scale);
        }
    return ((error[0] + error[4]) + (error[1] + error[5])) + ((error[2] + error[6]) + (error[3] + error[7]));
}

/* The value of largest magnitude becomes -8, the end with the longer reach, or somewhat less: of a
 * few such scales the one with the smallest squared error. Returns a float16. */
static uint16_t quantize_q4(int8_t *q, const float *x) {
    static const float reach[] = {-8.0f, -8.7f, -7.4f};
    float extreme = 0.0f, best = INFINITY, tried[2][L2C_Q4_GROUP] = {0};
    for (size_t i = 0; i < L2C_Q4_GROUP; i++) extreme = fabsf(x[i]) > fabsf(extreme) ? x[i] : extreme;
    uint16_t chosen = 0;
    int which = 0; /* of `tried` holds the best so far */
    for (size_t k = 0; k < sizeof reach / sizeof *reach; k++) {
        uint16_t half = l2c_float_to_half(extreme / reach[k]);
        float error = round_q4(tried[!which], x, l2c_half_to_float(half));
        if (!(error < best)) continue;
        best = error;
        chosen = half;
        which = !which;
    }
    for (size_t i = 0; i < L2C_Q4_GROUP; i++) q[i] = (int8_t)tried[which][i];
    return chosen;
}

/* ---- Packing --------------------------------------------------------------------------------------- */

static void put_q8(const l2c_matrix *m, unsigned char *block, size_t lane, size_t g, const int8_t *q, float scale) {
    unsigned char *data = block + l2c_block_scale_bytes(m->type, m->padded / m->group) + 4 * lane;
    ((float *)block)[g * L2C_BLOCK_ROWS + lane] = scale;
    for (size_t j = 0; j < m->group; j += 4) memcpy(data + (g * m->group + j) * L2C_BLOCK_ROWS, q + j, 4);
}

static void put_q4(const l2c_matrix *m, unsigned char *block, size_t lane, size_t g, const l2c_group *from) {
    unsigned char *data = block + l2c_block_scale_bytes(m->type, m->padded / m->group) + 4 * lane + g * 256;
    int minima = m->type == L2C_WEIGHTS_Q4_1, zero = minima ? 0 : 8;
    uint16_t *scale = (uint16_t *)block + g * (minima ? 2 : 1) * L2C_BLOCK_ROWS + lane;
    scale[0] = from->scale;
    if (minima) scale[L2C_BLOCK_ROWS] = from->minimum;
    for (size_t j = 0; j < 16; j++)
        data[j / 4 * 64 + j % 4] = (unsigned char)((from->q[j] + zero) | (from->q[16 + j] + zero) << 4);
}

/* One row's group g into its place; x has the group's values, zeros after the last column. */
static void pack_group(const l2c_matrix *m, unsigned char *block, size_t lane, size_t g, const float *x) {
    if (m->type == L2C_WEIGHTS_Q8) {
        int8_t q[L2C_MAX_PACKED_GROUP];
        float scale = quantize_q8(q, x, m->group);
        put_q8(m, block, lane, g, q, scale);
    } else {
        l2c_group group;
        group.scale = quantize_q4(group.q, x);
        put_q4(m, block, lane, g, &group);
    }
}

static int all_finite(const float *x, size_t n) {
    float sum = 0.0f;
    for (size_t i = 0; i < n; i++) sum += x[i] * 0.0f;
    return sum == 0.0f;
}

/* Group g of a row, where the integers are kept as they are; 0 where they are not. */
static int copy_group(const l2c_matrix *to, unsigned char *block, size_t lane, size_t g, const l2c_matrix *from,
                      size_t row, int *finite) {
    size_t at = row * from->cols + g * to->group;
    if (from->type == L2C_WEIGHTS_FILE && to->type == L2C_WEIGHTS_Q8) {
        put_q8(to, block, lane, g, (const int8_t *)from->data + at, file_scale(from, at / from->group));
        return 1;
    }
    const l2c_block_type *blocks = from->type == L2C_WEIGHTS_GGUF ? from->blocks : NULL;
    if (blocks == NULL || blocks->group == NULL || blocks->nearest != to->type) return 0;
    l2c_group group = {.minimum = 0};
    blocks->group(&group, (const unsigned char *)from->data + at / blocks->values * blocks->bytes, at % blocks->values);
    float scale = l2c_half_to_float(group.scale);
    *finite = isfinite(scale) && isfinite(l2c_half_to_float(group.minimum));
    if (to->type == L2C_WEIGHTS_Q8) put_q8(to, block, lane, g, group.q, scale);
    else put_q4(to, block, lane, g, &group);
    return 1;
}

l2c_status l2c_matrix_pack(const l2c_matrix *to, unsigned char *memory, const l2c_matrix *from, size_t begin,
                           size_t end) {
    for (size_t row = begin; row < end; row++) {
        if (to->type == L2C_WEIGHTS_F32) {
            unpack_row((float *)(void *)memory + row * to->cols, from, row);
            continue;
        }
        unsigned char *block = memory + row / L2C_BLOCK_ROWS * to->block_bytes;
        size_t lane = row % L2C_BLOCK_ROWS;
        float values[L2C_MAX_PACKED_GROUP];
        for (size_t g = 0; g * to->group < to->padded; g++) {
            size_t start = g * to->group, given = from->cols - start < to->group ? from->cols - start : to->group;
            int finite = 1;
            if (!copy_group(to, block, lane, g, from, row, &finite)) {
                memset(values, 0, sizeof values);
                read_values(values, from, row, start, given);
                finite = all_finite(values, given);
                if (finite) pack_group(to, block, lane, g, values);
            }
            if (!finite) return L2C_NONFINITE;
        }
    }
    return L2C_OK;
}
