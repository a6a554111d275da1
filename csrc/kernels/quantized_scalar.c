/*
 * quantized_scalar.c - the oracle of the integer kernels, and the conversions of float16.
 */
#include <math.h>
#include <string.h>

#include "fused.h"
#include "quantized.h"

static uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static float value_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

float l2c_half_to_float(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, rest = (uint32_t)(half & 0x7FFF) << 13;
    if (rest >= 0x0F800000u) return value_of(sign | (rest + (224u << 23))); /* infinity, NaN */
    if (rest >= 0x00800000u) return value_of(sign | (rest + (112u << 23)));
    float tiny = (float)(half & 0x3FF) * 5.9604644775390625e-8f; /* denormal: units of 2^-24 */
    return sign ? -tiny : tiny;
}

uint16_t l2c_float_to_half(float value) {
    uint32_t bits = bits_of(value), sign = bits >> 16 & 0x8000, rest = bits & 0x7FFFFFFF;
    if (rest > 0x7F800000u) return (uint16_t)(sign | 0x7E00);
    if (rest >= 0x477FF000u) return (uint16_t)(sign | 0x7C00); /* 65520 and more round to infinity */
    if (rest < 0x38800000u) /* denormal: adding 0.5 rounds to units of 2^-24 */
        return (uint16_t)(sign | (bits_of(value_of(rest) + 0.5f) - bits_of(0.5f)));
    rest += 0xFFF + (rest >> 13 & 1);
    return (uint16_t)(sign | ((rest - (112u << 23)) >> 13));
}

void l2c_scalar_f32_to_f16(uint16_t *out, const float *x, size_t n) {
    for (size_t i = 0; i < n; i++) out[i] = l2c_float_to_half(x[i]);
}

void l2c_scalar_f16_to_f32(float *out, const uint16_t *x, size_t n) {
    for (size_t i = 0; i < n; i++) out[i] = l2c_half_to_float(x[i]);
}

/* One group, of which the first n values are given and the rest are zeros. */
static void quantize_group(const l2c_quantized *to, size_t at, float *scale, int32_t *sum, const float *x, size_t n) {
    uint32_t most = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t magnitude = bits_of(x[i]) & 0x7FFFFFFF;
        most = magnitude > most ? magnitude : most;
    }
    float largest = value_of(most), inverse = 0.0f;
    *sum = 0;
    if (most >= 0x7F800000u) *scale = NAN;
    else if (largest < L2C_QUANTIZE_LEAST) *scale = 0.0f;
    else {
        *scale = largest / 127.0f;
        inverse = 127.0f / largest;
    }
    for (size_t i = 0; i < to->group; i++) {
        int32_t q = 0;
        if (i < n && inverse > 0.0f)
            q = (int32_t)(bits_of(x[i] * inverse + L2C_QUANTIZE_ROUND) - bits_of(L2C_QUANTIZE_ROUND));
        to->q[at + i] = (int8_t)q;
        to->pairs[at + (i & ~(size_t)3) + (i % 4 == 1 ? 2 : i % 4 == 2 ? 1 : i % 4)] = (int16_t)q;
        *sum += q;
    }
}

void l2c_scalar_quantize(const l2c_quantized *to, size_t row, const float *x, size_t n) {
    size_t groups = to->width / to->group;
    for (size_t g = 0; g < groups; g++) {
        size_t start = g * to->group, given = n > start ? n - start : 0;
        quantize_group(to, row * to->width + start, &to->scales[row * groups + g], &to->sums[row * groups + g],
                       x + (given ? start : 0), given < to->group ? given : to->group);
    }
}

void l2c_scalar_matmul_q8(float *out, size_t out_stride, const l2c_quantized *x, size_t first, size_t n_rows,
                          const l2c_matrix *w, size_t begin, size_t end) {
    size_t groups = w->padded / w->group;
    for (size_t i = begin; i < end; i++) {
        const unsigned char *block = l2c_block(w, i);
        const float *scales = (const float *)block + i % L2C_BLOCK_ROWS;
        const int8_t *data = (const int8_t *)block + l2c_block_scale_bytes(w->type, groups) + i % L2C_BLOCK_ROWS * 4;
        for (size_t r = 0; r < n_rows; r++) {
            const int8_t *q = x->q + (first + r) * x->width;
            float sum = 0.0f;
            for (size_t g = 0; g < groups; g++) {
                int32_t dot = 0; /* at most 512 * 128 * 127 */
                for (size_t j = g * w->group; j < (g + 1) * w->group; j++)
                    dot += (int32_t)data[j / 4 * 64 + j % 4] * q[j];
                sum = L2C_FMAF((float)dot, scales[g * L2C_BLOCK_ROWS] * x->scales[(first + r) * groups + g], sum);
            }
            out[r * out_stride + i] = sum;
        }
    }
}

static void matmul_q4(float *out, size_t out_stride, const l2c_quantized *x, size_t first, size_t n_rows,
                      const l2c_matrix *w, size_t begin, size_t end, int minima) {
    size_t groups = w->padded / L2C_Q4_GROUP, step = (minima ? 2 : 1) * L2C_BLOCK_ROWS;
    int32_t zero = minima ? 0 : 8;
    for (size_t i = begin; i < end; i++) {
        const unsigned char *block = l2c_block(w, i);
        const uint16_t *scales = (const uint16_t *)block + i % L2C_BLOCK_ROWS;
        const unsigned char *data = block + l2c_block_scale_bytes(w->type, groups) + i % L2C_BLOCK_ROWS * 4;
        for (size_t r = 0; r < n_rows; r++) {
            const int8_t *q = x->q + (first + r) * x->width;
            float sum = 0.0f;
            for (size_t g = 0; g < groups; g++) {
                int32_t dot = 0;
                for (size_t j = 0; j < L2C_Q4_GROUP / 2; j++) {
                    unsigned char both = data[g * 256 + j / 4 * 64 + j % 4];
                    dot += ((int32_t)(both & 15) - zero) * q[g * L2C_Q4_GROUP + j];
                    dot += ((int32_t)(both >> 4) - zero) * q[g * L2C_Q4_GROUP + 16 + j];
                }
                size_t at = (first + r) * groups + g;
                sum = L2C_FMAF((float)dot, l2c_half_to_float(scales[g * step]) * x->scales[at], sum);
                if (!minima) continue;
                float minimum = l2c_half_to_float(scales[g * step + L2C_BLOCK_ROWS]);
                sum = L2C_FMAF(minimum, x->scales[at] * (float)x->sums[at], sum);
            }
            out[r * out_stride + i] = sum;
        }
    }
}

void l2c_scalar_matmul_q4(float *out, size_t out_stride, const l2c_quantized *x, size_t first, size_t n_rows,
                          const l2c_matrix *w, size_t begin, size_t end) {
    matmul_q4(out, out_stride, x, first, n_rows, w, begin, end, 0);
}

void l2c_scalar_matmul_q4_1(float *out, size_t out_stride, const l2c_quantized *x, size_t first, size_t n_rows,
                            const l2c_matrix *w, size_t begin, size_t end) {
    matmul_q4(out, out_stride, x, first, n_rows, w, begin, end, 1);
}
