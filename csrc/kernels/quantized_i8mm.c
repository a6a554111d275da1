/*
 * quantized_i8mm.c - the integer products of several rows of x with NEON's matrix instructions (FEAT_I8MM); those of one
 * row, and the odd one of several, are quantized_dotprod.c's.
 *
 * smmla multiplies 2 rows x 8 columns of signed bytes by 2 rows of x: 4 int32, each plus 8 products. Two registers of
 * weights, of 4 columns of each of 4 rows, become 8 columns of rows 0 and 1 and of rows 2 and 3. A group of int8 adds
 * up to at most 512 * 128 * 127. int4 weights are 0 to 15 as they lie.
 */
#include "quantized.h"

#if defined(L2C_ARM_DOTPROD)
#include <arm_neon.h>
#include <string.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("i8mm"))), apply_to = function)
#elif defined(__GNUC__)
#pragma GCC push_options
#pragma GCC target("arch=armv8.2-a+i8mm")
#pragma GCC optimize("no-schedule-insns") /* as neon.c says */
#endif

#define INLINE static inline __attribute__((always_inline))

enum { TILE = 4, AT_ONCE = 2, COLUMNS = 8 }; /* quantized_tiles.h; 16 of 32 registers are sums of a group */

#include "quantized_neon.h"

typedef struct {
    int8x16_t rows_01, rows_23;
} weights_8;
typedef struct {
    halves rows_01, rows_23;
} weights_4;
typedef struct {
    int32x4_t rows_01, rows_23; /* row 0 with both rows of x, row 1 with both; the same of rows 2 and 3 */
} sums_8;
typedef sums_8 sums_4;

INLINE weights_8 load_8(const unsigned char *data) {
    int32x4_t a = vreinterpretq_s32_u8(vld1q_u8(data)), b = vreinterpretq_s32_u8(vld1q_u8(data + 64));
    return (weights_8){vreinterpretq_s8_s32(vzip1q_s32(a, b)), vreinterpretq_s8_s32(vzip2q_s32(a, b))};
}

INLINE sums_8 begin_8(int32_t x_sum) {
    (void)x_sum;
    return (sums_8){vdupq_n_s32(0), vdupq_n_s32(0)};
}

INLINE sums_8 dot_add(sums_8 s, int8x16_t rows_01, int8x16_t rows_23, const int8_t *q, size_t width) {
    int8x16_t xj = vcombine_s8(vld1_s8(q), vld1_s8(q + width));
    return (sums_8){vmmlaq_s32(s.rows_01, rows_01, xj), vmmlaq_s32(s.rows_23, rows_23, xj)};
}

INLINE sums_8 step_8(sums_8 s, weights_8 weights, const l2c_quantized *x, size_t at) {
    return dot_add(s, weights.rows_01, weights.rows_23, x->q + at, x->width);
}

INLINE int32x4_t of_row(sums_8 s, int t) {
    return t == 0 ? vuzp1q_s32(s.rows_01, s.rows_23) : vuzp2q_s32(s.rows_01, s.rows_23);
}

INLINE vec end_8(sums_8 s, int t) { return vcvtq_f32_s32(of_row(s, t)); }

INLINE weights_4 load_4(const unsigned char *data) {
    weights_8 both = load_8(data);
    return (weights_4){split(vreinterpretq_u8_s8(both.rows_01)), split(vreinterpretq_u8_s8(both.rows_23))};
}

INLINE sums_4 begin_4(int32_t offset) {
    (void)offset; /* of one row of x */
    return begin_8(0);
}

INLINE sums_4 step_4(sums_4 s, weights_4 weights, const l2c_quantized *x, size_t at) {
    s = dot_add(s, weights.rows_01.low, weights.rows_23.low, x->q + at, x->width);
    return dot_add(s, weights.rows_01.high, weights.rows_23.high, x->q + at + 16, x->width);
}

INLINE vec end_4(sums_4 s, int t, int32_t offset) {
    return vcvtq_f32_s32(vaddq_s32(of_row(s, t), vdupq_n_s32(offset)));
}

#include "quantized_tiles.h"

#define PAIRED_MATMUL(type)                                                                                       \
    void l2c_i8mm_matmul_##type(float *out, size_t out_stride, const l2c_quantized *x, size_t first,              \
                                size_t n_rows, const l2c_matrix *w, size_t begin, size_t end) {                   \
        if (n_rows == 1 || w->group % COLUMNS != 0) {                                                             \
            l2c_dotprod_matmul_##type(out, out_stride, x, first, n_rows, w, begin, end);                          \
            return;                                                                                               \
        }                                                                                                         \
        for (size_t i = begin; i < end; i += L2C_BLOCK_ROWS) {                                                    \
            size_t r = 0, block_end = end - i < L2C_BLOCK_ROWS ? end : i + L2C_BLOCK_ROWS;                        \
            for (; r + TILE <= n_rows; r += TILE) ONE_TILE(tile_##type, i, TILE, 1, 0);                           \
            for (; r + 2 <= n_rows; r += 2) ONE_TILE(tile_##type, i, 2, 1, 0);                                    \
            if (r == n_rows) continue;                                                                            \
            l2c_dotprod_matmul_##type(out + r * out_stride, out_stride, x, first + r, 1, w, i, block_end);        \
        }                                                                                                         \
    }

PAIRED_MATMUL(q8)
PAIRED_MATMUL(q4)
PAIRED_MATMUL(q4_1)

#if defined(__clang__)
#pragma clang attribute pop
#elif defined(__GNUC__)
#pragma GCC pop_options
#endif
#endif
