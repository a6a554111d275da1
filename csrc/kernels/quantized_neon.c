/*
 * quantized_neon.c - the integer kernels with 128-bit registers (NEON of 64-bit ARM, without the
 * optional dot product instructions).
 *
 * A register of weights holds 4 rows x 4 columns of bytes, one of x the same 4 columns four times.
 *
 * int8: smull multiplies two rows into 8 int16. addp adds neighbours of two such results: two
 * products, at most 2 * 128 * 127 = 32512, fit an int16. sadalp adds neighbours of those to 4 int32,
 * one a row: at most 512 * 128 * 127 for the longest group.
 *
 * int4: weights are 0 to 15 as they lie, plus 8. Each int16 takes 8 products of a group of 32, at most
 * 8 * 15 * 127 = 15240, and addp of two such 30480. 8 times the sum of x is taken off after, or the
 * minimum times that sum is added (Q4_1).
 */
#include "quantized.h"

#if defined(L2C_ARM)
#include <arm_neon.h>
#include <math.h>
#include <string.h>

#if defined(__GNUC__) && !defined(__clang__) /* as neon.c says */
#pragma GCC push_options
#pragma GCC optimize("no-schedule-insns")
#endif

#define INLINE static inline __attribute__((always_inline))

enum { TILE = 2, QUADS = 4 }; /* quantized_tiles.h: there are 32 registers; those of a value of each of 16 rows */
#define UNROLL_STORES UNROLL

typedef float32x4_t sixteen[QUADS];

/* ---- float16 ------------------------------------------------------------------------------------ */

void l2c_neon_f32_to_f16(uint16_t *out, const float *x, size_t n) {
    size_t i = 0;
    for (; i + 4 <= n; i += 4) vst1_u16(out + i, vreinterpret_u16_f16(vcvt_f16_f32(vld1q_f32(x + i))));
    for (; i < n; i++) out[i] = l2c_float_to_half(x[i]);
}

void l2c_neon_f16_to_f32(float *out, const uint16_t *x, size_t n) {
    size_t i = 0;
    for (; i + 4 <= n; i += 4) vst1q_f32(out + i, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(x + i))));
    for (; i < n; i++) out[i] = l2c_half_to_float(x[i]);
}

/* ---- Activations ---------------------------------------------------------------------------- */

/* A whole group of a multiple of 16 values. */
INLINE void quantize_group(int8_t *q, float *scale, int32_t *sum, const float *x, size_t group) {
    uint32x4_t most = vdupq_n_u32(0);
    for (size_t i = 0; i < group; i += 4)
        most = vmaxq_u32(most, vandq_u32(vreinterpretq_u32_f32(vld1q_f32(x + i)), vdupq_n_u32(0x7FFFFFFF)));
    uint32_t bits = vmaxvq_u32(most);
    float largest;
    memcpy(&largest, &bits, sizeof largest);
    int usable = bits < 0x7F800000u && largest >= L2C_QUANTIZE_LEAST;
    *scale = bits >= 0x7F800000u ? NAN : usable ? largest / 127.0f : 0.0f;
    *sum = 0;
    if (!usable) {
        memset(q, 0, group);
        return;
    }
    float inverse = 127.0f / largest;
    int32x4_t sums = vdupq_n_s32(0);
    for (size_t i = 0; i < group; i += 16) {
        int32x4_t v[4]; /* fcvtns rounds to even, as adding 1.5 * 2^23 does */
        UNROLL for (int k = 0; k < 4; k++) {
            v[k] = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(x + i + 4 * k), inverse));
            sums = vaddq_s32(sums, v[k]);
        }
        int16x8_t low = vcombine_s16(vmovn_s32(v[0]), vmovn_s32(v[1]));
        int16x8_t high = vcombine_s16(vmovn_s32(v[2]), vmovn_s32(v[3]));
        vst1q_s8(q + i, vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
    }
    *sum = vaddvq_s32(sums);
}

void l2c_neon_quantize(const l2c_quantized *to, size_t row, const float *x, size_t n) {
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
    UNROLL for (int k = 0; k < QUADS; k++) vst1q_f32(to + 4 * k, sums[k]);
    if (to == all) memcpy(out, all, valid * sizeof *out);
}

INLINE int8x16_t broadcast(const int8_t *four_bytes) {
    int32_t value;
    memcpy(&value, four_bytes, sizeof value);
    return vreinterpretq_s8_s32(vdupq_n_s32(value));
}

INLINE int16x8_t multiply_low(int8x16_t a, int8x16_t b) { return vmull_s8(vget_low_s8(a), vget_low_s8(b)); }

INLINE void tile_q8(sixteen *sums, const l2c_quantized *x, size_t r, const l2c_matrix *w,
                    const unsigned char *block, size_t apart, int tile, int blocks) {
    size_t group = w->group, groups = w->padded / group;
    const int8_t *data = (const int8_t *)block + l2c_block_scale_bytes(L2C_WEIGHTS_Q8, groups);
    const int8_t *q = x->q + r * x->width;
    UNROLL for (int i = 0; i < tile * blocks; i++)
        UNROLL for (int k = 0; k < QUADS; k++) sums[i][k] = vdupq_n_f32(0.0f);
    for (size_t g = 0; g < groups; g++, block += 64) {
        int32x4_t s[TILE][QUADS];
        UNROLL for (int i = 0; i < tile * blocks; i++)
            UNROLL for (int k = 0; k < QUADS; k++) s[i][k] = vdupq_n_s32(0);
        for (size_t j = 0; j < group; j += 4, data += 64, q += 4)
            UNROLL for (int b = 0; b < blocks; b++)
                UNROLL for (int k = 0; k < QUADS; k++) {
                    int8x16_t weights = vld1q_s8(data + (size_t)b * apart + 16 * k);
                    UNROLL for (int t = 0; t < tile; t++) {
                        int8x16_t xj = broadcast(q + (size_t)t * x->width);
                        int16x8_t two = vpaddq_s16(multiply_low(weights, xj), vmull_high_s8(weights, xj));
                        s[t * blocks + b][k] = vpadalq_s16(s[t * blocks + b][k], two);
                    }
                }
        UNROLL for (int t = 0; t < tile; t++) {
            float scale = x->scales[(r + (size_t)t) * groups + g];
            UNROLL for (int b = 0; b < blocks; b++)
                UNROLL for (int k = 0; k < QUADS; k++) {
                    float32x4_t weight = vld1q_f32((const float *)(block + (size_t)b * apart) + 4 * k);
                    float32x4_t *sum = &sums[t * blocks + b][k];
                    *sum = vfmaq_f32(*sum, vcvtq_f32_s32(s[t * blocks + b][k]), vmulq_n_f32(weight, scale));
                }
        }
    }
}

INLINE void tile_4_bits(sixteen *sums, const l2c_quantized *x, size_t r, const l2c_matrix *w,
                        const unsigned char *block, size_t apart, int tile, int blocks, int minima) {
    size_t groups = w->padded / L2C_Q4_GROUP;
    const unsigned char *data = block + l2c_block_scale_bytes(minima ? L2C_WEIGHTS_Q4_1 : L2C_WEIGHTS_Q4, groups);
    const int8_t *q = x->q + r * x->width;
    UNROLL for (int i = 0; i < tile * blocks; i++)
        UNROLL for (int k = 0; k < QUADS; k++) sums[i][k] = vdupq_n_f32(0.0f);
    for (size_t g = 0; g < groups; g++, block += minima ? 64 : 32, q += L2C_Q4_GROUP) {
        int16x8_t s[TILE][QUADS][2]; /* of rows 0 and 1, 2 and 3 of each 4 */
        UNROLL for (int i = 0; i < tile * blocks; i++)
            UNROLL for (int k = 0; k < QUADS; k++) s[i][k][0] = s[i][k][1] = vdupq_n_s16(0);
        for (size_t j = 0; j < 16; j += 4, data += 64)
            UNROLL for (int b = 0; b < blocks; b++)
                UNROLL for (int k = 0; k < QUADS; k++) {
                    uint8x16_t both = vld1q_u8(data + (size_t)b * apart + 16 * k);
                    int8x16_t low = vreinterpretq_s8_u8(vandq_u8(both, vdupq_n_u8(15)));
                    int8x16_t high = vreinterpretq_s8_u8(vshrq_n_u8(both, 4));
                    UNROLL for (int t = 0; t < tile; t++) {
                        const int8_t *p = q + (size_t)t * x->width + j;
                        int8x16_t x_low = broadcast(p), x_high = broadcast(p + 16);
                        int16x8_t *sum = s[t * blocks + b][k];
                        sum[0] = vmlal_s8(sum[0], vget_low_s8(low), vget_low_s8(x_low));
                        sum[1] = vmlal_high_s8(sum[1], low, x_low);
                        sum[0] = vmlal_s8(sum[0], vget_low_s8(high), vget_low_s8(x_high));
                        sum[1] = vmlal_high_s8(sum[1], high, x_high);
                    }
                }
        UNROLL for (int t = 0; t < tile; t++) {
            size_t at = (r + (size_t)t) * groups + g;
            float scale = x->scales[at];
            int32x4_t offset = vdupq_n_s32(minima ? 0 : -8 * x->sums[at]);
            float32x4_t x_sum = vdupq_n_f32(minima ? scale * (float)x->sums[at] : 0.0f);
            UNROLL for (int b = 0; b < blocks; b++)
                UNROLL for (int k = 0; k < QUADS; k++) {
                    const uint16_t *halves = (const uint16_t *)(block + (size_t)b * apart) + 4 * k;
                    float32x4_t weight = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(halves)));
                    const int16x8_t *both = s[t * blocks + b][k];
                    int32x4_t dot = vpadalq_s16(offset, vpaddq_s16(both[0], both[1]));
                    float32x4_t *sum = &sums[t * blocks + b][k];
                    *sum = vfmaq_f32(*sum, vcvtq_f32_s32(dot), vmulq_n_f32(weight, scale));
                    if (!minima) continue;
                    float32x4_t minimum = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(halves + L2C_BLOCK_ROWS)));
                    *sum = vfmaq_f32(*sum, minimum, x_sum);
                }
        }
    }
}

#include "quantized_tiles.h"

INTEGER_MATMULS(neon)

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC pop_options
#endif
#endif
