/*
 * quantized_simd128.c - the integer kernels in WebAssembly's SIMD.
 *
 * i32x4.dot_i16x8_s multiplies 8 int16 and adds neighbours: 4 int32 sums of two products. Bytes are widened
 * before it, 16 of them (4 rows x 4 columns) to two registers, of rows 0 and 1 and of rows 2 and 3, so that a row
 * has two sums in a register. They are added once a group. An int32 takes at most 512 * 128 * 127 of the longest
 * group; int4's weights are 0 to 15 as they lie, plus 8, and 8 times the sum of x is taken off after, or the
 * minimum times that sum is added (Q4_1).
 */
#include "quantized.h"

#if defined(L2C_SIMD128)
#include <math.h>
#include <string.h>

#include "fused_simd128.h"

enum { TILE = 2, QUADS = 4 }; /* quantized_tiles.h; registers of a value of each of 16 rows */
#define UNROLL_STORES UNROLL

typedef v128_t sixteen[QUADS];

/* ---- Activations ---------------------------------------------------------------------------- */

/* A whole group of a multiple of 16 values. */
INLINE void quantize_group(int8_t *q, float *scale, int32_t *sum, const float *x, size_t group) {
    v128_t most = wasm_i32x4_splat(0);
    for (size_t i = 0; i < group; i += 4)
        most = wasm_u32x4_max(most, wasm_v128_and(wasm_v128_load(x + i), wasm_i32x4_splat(0x7FFFFFFF)));
    most = wasm_u32x4_max(most, wasm_i32x4_shuffle(most, most, 2, 3, 0, 1));
    most = wasm_u32x4_max(most, wasm_i32x4_shuffle(most, most, 1, 0, 3, 2));
    uint32_t bits = (uint32_t)wasm_i32x4_extract_lane(most, 0);
    float largest;
    memcpy(&largest, &bits, sizeof largest);
    int usable = bits < 0x7F800000u && largest >= L2C_QUANTIZE_LEAST;
    *scale = bits >= 0x7F800000u ? NAN : usable ? largest / 127.0f : 0.0f;
    *sum = 0;
    if (!usable) {
        memset(q, 0, group);
        return;
    }
    v128_t inverse = wasm_f32x4_splat(127.0f / largest), sums = wasm_i32x4_splat(0);
    for (size_t i = 0; i < group; i += 16) {
        v128_t v[4];
        UNROLL for (int k = 0; k < 4; k++) {
            v128_t shifted = wasm_f32x4_add(wasm_f32x4_mul(wasm_v128_load(x + i + 4 * k), inverse),
                                            wasm_f32x4_splat(L2C_QUANTIZE_ROUND));
            v[k] = wasm_i32x4_sub(shifted, wasm_f32x4_splat(L2C_QUANTIZE_ROUND));
            sums = wasm_i32x4_add(sums, v[k]);
        }
        v128_t low = wasm_i16x8_narrow_i32x4(v[0], v[1]), high = wasm_i16x8_narrow_i32x4(v[2], v[3]);
        wasm_v128_store(q + i, wasm_i8x16_narrow_i16x8(low, high));
    }
    sums = wasm_i32x4_add(sums, wasm_i32x4_shuffle(sums, sums, 2, 3, 0, 1));
    *sum = wasm_i32x4_extract_lane(sums, 0) + wasm_i32x4_extract_lane(sums, 1);
}

void l2c_simd128_quantize(const l2c_quantized *to, size_t row, const float *x, size_t n) {
    size_t group = to->group, groups = to->width / group;
    if (group % 16 != 0 || n != to->width) {
        l2c_scalar_quantize(to, row, x, n);
        return;
    }
    for (size_t g = 0; g < groups; g++)
        quantize_group(to->q + row * to->width + g * group, &to->scales[row * groups + g],
                       &to->sums[row * groups + g], x + g * group, group);
}

/* ---- Products -------------------------------------------------------------------------------- */

/* 16 results; the last block of a matrix has fewer. */
INLINE void store(float *out, const sixteen sums, size_t valid) {
    float all[L2C_BLOCK_ROWS];
    float *to = valid >= L2C_BLOCK_ROWS ? out : all;
    UNROLL for (int k = 0; k < QUADS; k++) wasm_v128_store(to + 4 * k, sums[k]);
    if (to == all) memcpy(out, all, valid * sizeof *out);
}

/* Four bytes of x as int16, twice. */
INLINE v128_t four_of(const int8_t *q) { return wasm_i16x8_extend_low_i8x16(wasm_v128_load32_splat(q)); }

/* A row's two sums are neighbours: rows 0 and 1 in `low`, 2 and 3 in `high`. */
INLINE v128_t of_rows(v128_t low, v128_t high) {
    return wasm_i32x4_add(wasm_i32x4_shuffle(low, high, 0, 2, 4, 6), wasm_i32x4_shuffle(low, high, 1, 3, 5, 7));
}

INLINE v128_t dot_add(v128_t s, v128_t a, v128_t b) { return wasm_i32x4_add(s, wasm_i32x4_dot_i16x8(a, b)); }

INLINE void tile_q8(sixteen *sums, const l2c_quantized *x, size_t r, const l2c_matrix *w,
                    const unsigned char *block, size_t apart, int tile, int blocks) {
    size_t group = w->group, groups = w->padded / group;
    const int8_t *data = (const int8_t *)block + l2c_block_scale_bytes(L2C_WEIGHTS_Q8, groups);
    const int8_t *q = x->q + r * x->width;
    UNROLL for (int i = 0; i < tile * blocks; i++)
        UNROLL for (int k = 0; k < QUADS; k++) sums[i][k] = wasm_f32x4_splat(0.0f);
    for (size_t g = 0; g < groups; g++, block += 64) {
        v128_t s[TILE][QUADS][2]; /* of rows 0 and 1, 2 and 3 of each 4 */
        UNROLL for (int i = 0; i < tile * blocks; i++)
            UNROLL for (int k = 0; k < QUADS; k++) s[i][k][0] = s[i][k][1] = wasm_i32x4_splat(0);
        for (size_t j = 0; j < group; j += 4, data += 64, q += 4)
            UNROLL for (int b = 0; b < blocks; b++)
                UNROLL for (int k = 0; k < QUADS; k++) {
                    v128_t weights = wasm_v128_load(data + (size_t)b * apart + 16 * k);
                    v128_t low = wasm_i16x8_extend_low_i8x16(weights), high = wasm_i16x8_extend_high_i8x16(weights);
                    UNROLL for (int t = 0; t < tile; t++) {
                        v128_t xj = four_of(q + (size_t)t * x->width), *sum = s[t * blocks + b][k];
                        sum[0] = dot_add(sum[0], low, xj);
                        sum[1] = dot_add(sum[1], high, xj);
                    }
                }
        UNROLL for (int t = 0; t < tile; t++) {
            v128_t scale = wasm_f32x4_splat(x->scales[(r + (size_t)t) * groups + g]);
            UNROLL for (int b = 0; b < blocks; b++)
                UNROLL for (int k = 0; k < QUADS; k++) {
                    v128_t weight = wasm_v128_load((const float *)(block + (size_t)b * apart) + 4 * k);
                    v128_t *both = s[t * blocks + b][k], *sum = &sums[t * blocks + b][k];
                    v128_t dot = wasm_f32x4_convert_i32x4(of_rows(both[0], both[1]));
                    *sum = fused_add(dot, wasm_f32x4_mul(weight, scale), *sum);
                }
        }
    }
}

/* Four float16 numbers as floats. */
INLINE v128_t halves(const uint16_t *p) {
    float four[4];
    l2c_scalar_f16_to_f32(four, p, 4);
    return wasm_v128_load(four);
}

INLINE void tile_4_bits(sixteen *sums, const l2c_quantized *x, size_t r, const l2c_matrix *w,
                        const unsigned char *block, size_t apart, int tile, int blocks, int minima) {
    size_t groups = w->padded / L2C_Q4_GROUP;
    const unsigned char *data = block + l2c_block_scale_bytes(minima ? L2C_WEIGHTS_Q4_1 : L2C_WEIGHTS_Q4, groups);
    const int8_t *q = x->q + r * x->width;
    UNROLL for (int i = 0; i < tile * blocks; i++)
        UNROLL for (int k = 0; k < QUADS; k++) sums[i][k] = wasm_f32x4_splat(0.0f);
    for (size_t g = 0; g < groups; g++, block += minima ? 64 : 32, q += L2C_Q4_GROUP) {
        v128_t s[TILE][QUADS][2];
        UNROLL for (int i = 0; i < tile * blocks; i++)
            UNROLL for (int k = 0; k < QUADS; k++) s[i][k][0] = s[i][k][1] = wasm_i32x4_splat(0);
        for (size_t j = 0; j < 16; j += 4, data += 64)
            UNROLL for (int b = 0; b < blocks; b++)
                UNROLL for (int k = 0; k < QUADS; k++) {
                    v128_t both = wasm_v128_load(data + (size_t)b * apart + 16 * k);
                    v128_t low = wasm_v128_and(both, wasm_i8x16_splat(15)), high = wasm_u8x16_shr(both, 4);
                    UNROLL for (int t = 0; t < tile; t++) {
                        const int8_t *p = q + (size_t)t * x->width + j;
                        v128_t x_low = four_of(p), x_high = four_of(p + 16), *sum = s[t * blocks + b][k];
                        sum[0] = dot_add(sum[0], wasm_i16x8_extend_low_i8x16(low), x_low);
                        sum[1] = dot_add(sum[1], wasm_i16x8_extend_high_i8x16(low), x_low);
                        sum[0] = dot_add(sum[0], wasm_i16x8_extend_low_i8x16(high), x_high);
                        sum[1] = dot_add(sum[1], wasm_i16x8_extend_high_i8x16(high), x_high);
                    }
                }
        UNROLL for (int t = 0; t < tile; t++) {
            size_t at = (r + (size_t)t) * groups + g;
            v128_t scale = wasm_f32x4_splat(x->scales[at]);
            v128_t offset = wasm_i32x4_splat(minima ? 0 : -8 * x->sums[at]);
            v128_t x_sum = wasm_f32x4_splat(minima ? x->scales[at] * (float)x->sums[at] : 0.0f);
            UNROLL for (int b = 0; b < blocks; b++)
                UNROLL for (int k = 0; k < QUADS; k++) {
                    const uint16_t *scales = (const uint16_t *)(block + (size_t)b * apart) + 4 * k;
                    v128_t *both = s[t * blocks + b][k], *sum = &sums[t * blocks + b][k];
                    v128_t dot = wasm_f32x4_convert_i32x4(wasm_i32x4_add(offset, of_rows(both[0], both[1])));
                    *sum = fused_add(dot, wasm_f32x4_mul(halves(scales), scale), *sum);
                    if (minima) *sum = fused_add(halves(scales + L2C_BLOCK_ROWS), x_sum, *sum);
                }
        }
    }
}

#include "quantized_tiles.h"

INTEGER_MATMULS(simd128)
#endif
