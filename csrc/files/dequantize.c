/*
 * dequantize.c - the types of GGUF's tensors, and float32 from their blocks.
 *
 * Formats are those of llama.cpp (ggml-common.h). d and m stand for float16 numbers, q for small
 * unsigned integers; each value is computed in float32, in the order of the formula in its comment,
 * which makes the results those of the gguf package's quants.dequantize to the bit.
 */
#include <string.h>

#include "gguf.h"
#include "kernels/quantized.h"

enum { PART = 32 }; /* values that a block_reader of larger blocks reads */

static uint16_t bits16(const unsigned char *at) {
    uint16_t bits;
    memcpy(&bits, at, sizeof bits);
    return bits;
}

static float half_at(const unsigned char *at) { return l2c_half_to_float(bits16(at)); }

static int low(unsigned char byte) { return byte & 15; }
static int high(unsigned char byte) { return byte >> 4; }

/* ---- Single values ----------------------------------------------------------------------------------- */

static void read_f32(float *x, const unsigned char *block, size_t start, size_t n) {
    (void)start;
    memcpy(x, block, n * sizeof *x);
}

static void read_f16(float *x, const unsigned char *block, size_t start, size_t n) {
    (void)start;
    for (size_t j = 0; j < n; j++) x[j] = half_at(block + 2 * j);
}

/* The upper half of a float32. */
static void read_bf16(float *x, const unsigned char *block, size_t start, size_t n) {
    (void)start;
    for (size_t j = 0; j < n; j++) {
        uint32_t bits = (uint32_t)bits16(block + 2 * j) << 16;
        memcpy(&x[j], &bits, sizeof bits);
    }
}

/* ---- Blocks of 32 ------------------------------------------------------------------------------------ */

/* x = q * d: d, 32 signed bytes */
static void read_q8_0(float *x, const unsigned char *block, size_t start, size_t n) {
    (void)start, (void)n;
    float d = half_at(block);
    for (size_t j = 0; j < PART; j++) x[j] = (float)(int8_t)block[2 + j] * d;
}

/* x = d * (q - 8): d, 16 bytes of which the low halves are the first 16 values */
static void read_q4_0(float *x, const unsigned char *block, size_t start, size_t n) {
    (void)start, (void)n;
    float d = half_at(block);
    for (size_t j = 0; j < PART / 2; j++) {
        x[j] = d * (float)(low(block[2 + j]) - 8);
        x[j + 16] = d * (float)(high(block[2 + j]) - 8);
    }
}

/* x = d * q + m: d, m, 16 bytes as above */
static void read_q4_1(float *x, const unsigned char *block, size_t start, size_t n) {
    (void)start, (void)n;
    float d = half_at(block), m = half_at(block + 2);
    for (size_t j = 0; j < PART / 2; j++) {
        x[j] = d * (float)low(block[4 + j]) + m;
        x[j + 16] = d * (float)high(block[4 + j]) + m;
    }
}

/* Fifth bits, 32 of them, and 16 bytes as above: q[j] of 0 to 31 */
static int five_bits(const unsigned char *bits, size_t j) {
    unsigned char both = bits[4 + j % 16];
    return (j < 16 ? low(both) : high(both)) | (bits[j / 8] >> j % 8 & 1) << 4;
}

/* x = d * (q - 16): d, fifth bits, the rest */
static void read_q5_0(float *x, const unsigned char *block, size_t start, size_t n) {
    (void)start, (void)n;
    float d = half_at(block);
    for (size_t j = 0; j < PART; j++) x[j] = d * (float)(five_bits(block + 2, j) - 16);
}

/* x = d * q + m: d, m, fifth bits, the rest */
static void read_q5_1(float *x, const unsigned char *block, size_t start, size_t n) {
    (void)start, (void)n;
    float d = half_at(block), m = half_at(block + 2);
    for (size_t j = 0; j < PART; j++) x[j] = d * (float)five_bits(block + 4, j) + m;
}

/* ---- Blocks of 256: groups of 32 that share d and m, with a scale and a minimum of 6 bits each -------- */

typedef struct {
    float scale, minimum;
} range6;

/* d, m, 12 bytes of bits: scales and minima 0 to 3 are the low 6 bits of bytes 0 to 3 and 4 to 7; of 4
 * to 7, the low 4 bits are in the halves of bytes 8 to 11, and the high 2 bits above those of 0 to 3. */
static range6 group_range(const unsigned char *block, size_t g) {
    const unsigned char *bits = block + 4;
    int scale = bits[g] & 63, minimum = bits[g + 4] & 63;
    if (g >= 4) {
        scale = low(bits[g + 4]) | bits[g - 4] >> 6 << 4;
        minimum = high(bits[g + 4]) | bits[g] >> 6 << 4;
    }
    return (range6){half_at(block) * (float)scale, half_at(block + 2) * (float)minimum};
}

/* x = d * scale * q - m * minimum: ranges as above; 4 times 32 bytes of which the low halves are one
 * group and the high halves the next */
static void read_q4_k(float *x, const unsigned char *block, size_t start, size_t n) {
    (void)n;
    size_t g = start / PART;
    range6 r = group_range(block, g);
    const unsigned char *halves = block + 16 + g / 2 * PART;
    for (size_t j = 0; j < PART; j++)
        x[j] = r.scale * (float)(g % 2 ? high(halves[j]) : low(halves[j])) - r.minimum;
}

/* The same with a fifth bit: bit g of 32 bytes between ranges and halves */
static void read_q5_k(float *x, const unsigned char *block, size_t start, size_t n) {
    (void)n;
    size_t g = start / PART;
    range6 r = group_range(block, g);
    const unsigned char *fifth = block + 16, *halves = block + 48 + g / 2 * PART;
    for (size_t j = 0; j < PART; j++) {
        int q = (g % 2 ? high(halves[j]) : low(halves[j])) | (fifth[j] >> g & 1) << 4;
        x[j] = r.scale * (float)q - r.minimum;
    }
}

/* x = d * scale * (q - 32): low 4 bits of q in 128 bytes, of which 64 are the low halves' groups 0 and
 * 1, then the high halves' 2 and 3 (and again for 4 to 7); high 2 bits in 64 bytes, four groups in each
 * 32; 16 signed bytes of scales, of 16 values each; d */
static void read_q6_k(float *x, const unsigned char *block, size_t start, size_t n) {
    (void)n;
    size_t g = start / PART, k = g % 4;
    const unsigned char *halves = block + g / 4 * 64 + k % 2 * PART, *upper = block + 128 + g / 4 * PART;
    const unsigned char *scales = block + 192 + 2 * g;
    float d = half_at(block + 208);
    for (size_t j = 0; j < PART; j++) {
        int q = (k < 2 ? low(halves[j]) : high(halves[j])) | (upper[j] >> 2 * k & 3) << 4;
        x[j] = d * (float)(int8_t)scales[j / 16] * (float)(q - 32);
    }
}

/* ---- Groups whose integers packed weights can keep ----------------------------------------------------- */

static void group_q8_0(l2c_group *to, const unsigned char *block, size_t start) {
    (void)start;
    to->scale = bits16(block);
    memcpy(to->q, block + 2, sizeof to->q);
}

static void group_q4_0(l2c_group *to, const unsigned char *block, size_t start) {
    (void)start;
    to->scale = bits16(block);
    for (size_t j = 0; j < PART / 2; j++) {
        to->q[j] = (int8_t)(low(block[2 + j]) - 8);
        to->q[j + 16] = (int8_t)(high(block[2 + j]) - 8);
    }
}

static void group_q4_1(l2c_group *to, const unsigned char *block, size_t start) {
    (void)start;
    to->scale = bits16(block);
    to->minimum = bits16(block + 2);
    for (size_t j = 0; j < PART / 2; j++) {
        to->q[j] = (int8_t)low(block[4 + j]);
        to->q[j + 16] = (int8_t)high(block[4 + j]);
    }
}

/* The products of 6 bits and a float16 become float16, each wrong by 2^-11 of itself at most, however
 * small: below 2^-13 they are exact, being multiples of 2^-24 as all float16 are. Above 65504 they
 * become infinity. */
static void group_q4_k(l2c_group *to, const unsigned char *block, size_t start) {
    size_t g = start / PART;
    range6 r = group_range(block, g);
    const unsigned char *halves = block + 16 + g / 2 * PART;
    to->scale = l2c_float_to_half(r.scale);
    to->minimum = l2c_float_to_half(-r.minimum);
    for (size_t j = 0; j < PART; j++) to->q[j] = (int8_t)(g % 2 ? high(halves[j]) : low(halves[j]));
}

/* ---- The types ---------------------------------------------------------------------------------------- */

#define NONE L2C_WEIGHTS_GGUF, NULL
#define F32 L2C_WEIGHTS_F32
#define Q8 L2C_WEIGHTS_Q8

/* By GGML's number. */
static const l2c_block_type types[] = {
    [0] = {"F32", 1, 4, read_f32, F32, NULL},
    [1] = {"F16", 1, 2, read_f16, F32, NULL},
    [2] = {"Q4_0", 32, 18, read_q4_0, L2C_WEIGHTS_Q4, group_q4_0},
    [3] = {"Q4_1", 32, 20, read_q4_1, L2C_WEIGHTS_Q4_1, group_q4_1},
    [6] = {"Q5_0", 32, 22, read_q5_0, Q8, NULL},
    [7] = {"Q5_1", 32, 24, read_q5_1, Q8, NULL},
    [8] = {"Q8_0", 32, 34, read_q8_0, Q8, group_q8_0},
    [9] = {"Q8_1", 32, 40, NULL, NONE},
    [10] = {"Q2_K", 256, 84, NULL, NONE},
    [11] = {"Q3_K", 256, 110, NULL, NONE},
    [12] = {"Q4_K", 256, 144, read_q4_k, L2C_WEIGHTS_Q4_1, group_q4_k},
    [13] = {"Q5_K", 256, 176, read_q5_k, Q8, NULL},
    [14] = {"Q6_K", 256, 210, read_q6_k, Q8, NULL},
    [15] = {"Q8_K", 256, 292, NULL, NONE},
    [16] = {"IQ2_XXS", 256, 66, NULL, NONE},
    [17] = {"IQ2_XS", 256, 74, NULL, NONE},
    [18] = {"IQ3_XXS", 256, 98, NULL, NONE},
    [19] = {"IQ1_S", 256, 50, NULL, NONE},
    [20] = {"IQ4_NL", 32, 18, NULL, NONE},
    [21] = {"IQ3_S", 256, 110, NULL, NONE},
    [22] = {"IQ2_S", 256, 82, NULL, NONE},
    [23] = {"IQ4_XS", 256, 136, NULL, NONE},
    [24] = {"I8", 1, 1, NULL, NONE},
    [25] = {"I16", 1, 2, NULL, NONE},
    [26] = {"I32", 1, 4, NULL, NONE},
    [27] = {"I64", 1, 8, NULL, NONE},
    [28] = {"F64", 1, 8, NULL, NONE},
    [29] = {"IQ1_M", 256, 56, NULL, NONE},
    [30] = {"BF16", 1, 2, read_bf16, F32, NULL},
    [34] = {"TQ1_0", 256, 54, NULL, NONE},
    [35] = {"TQ2_0", 256, 66, NULL, NONE},
    [39] = {"MXFP4", 32, 17, NULL, NONE},
    [40] = {"NVFP4", 64, 36, NULL, NONE},
    [41] = {"Q1_0", 128, 18, NULL, NONE},
};

const l2c_block_type *l2c_block_type_of(uint32_t number) {
    return number < sizeof types / sizeof *types && types[number].name != NULL ? &types[number] : NULL;
}
