/*
 * quantized_avx512.c - the integer kernels with 512-bit registers (AVX-512 VNNI).
 *
 * vpdpbusd multiplies unsigned by signed bytes and adds four neighbours to an int32: one
 * instruction for a column group of 4 of a whole block of 16 rows. int8 weights become unsigned by
 * adding 128 (flipping the top bit); 128 times the sum of x, known for every group, is taken off at
 * the start. int4 weights are unsigned as they lie, plus 8 but in Q4_1. Sums wrap around 32 bits on the way, but
 * end in range.
 *
 * The instruction's result is ready 4 cycles later and two can start each cycle, so 8 sums are under
 * way at once: one row of x takes 4 blocks of weights, whose memory is its limit anyway; 4 rows take 2
 * or, at an odd end, 3. The 8 steps of 32 columns are unrolled: as a loop, gcc copies all sums from
 * register to register at every step.
 */
#include "quantized.h"

#if defined(L2C_X86)
#include <string.h>

#include "intrinsics.h"

#if defined(__clang__)
#pragma clang attribute push( \
    __attribute__((target("avx2,fma,f16c,avx512f,avx512dq,avx512bw,avx512vl,avx512vnni"))), apply_to = function)
#elif defined(__GNUC__)
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512dq,avx512bw,avx512vl,avx512vnni")
#endif

#define INLINE static inline __attribute__((always_inline))

enum { TILE = 4, BLOCKS = 4, UNROLLED = 32 };

/* 64 bytes of weights of block b of several. Several rows of x leave memory idle while weights are used
 * again, so the first to read some asks for those of the next blocks; and int4 comes too fast even for one
 * row. (One row of int8 reads steadily: there the hardware does better by itself.) */
INLINE __m512i load_weights(const unsigned char *data, size_t block_bytes, int b, int blocks, int first) {
    data += (size_t)b * block_bytes;
    if (first) L2C_PREFETCH(data + (size_t)blocks * block_bytes);
    return _mm512_load_si512(data);
}

INLINE __m512i broadcast(const int8_t *four_bytes) {
    int32_t value;
    memcpy(&value, four_bytes, sizeof value);
    return _mm512_set1_epi32(value);
}

INLINE void store(float *out, size_t out_stride, __m512 sums[][BLOCKS], int tile, int blocks, size_t valid) {
    UNROLL for (int t = 0; t < tile; t++)
        UNROLL for (int b = 0; b < blocks; b++) {
            size_t at = (size_t)b * L2C_BLOCK_ROWS, left = valid > at ? valid - at : 0;
            __mmask16 mask = left >= L2C_BLOCK_ROWS ? (__mmask16)0xFFFF : (__mmask16)((1u << left) - 1);
            _mm512_mask_storeu_ps(out + (size_t)t * out_stride + at, mask, sums[t][b]);
        }
}

/* s += 4 columns of `blocks` blocks times those of `tile` rows of x. */
INLINE void step_q8(__m512i s[][BLOCKS], const unsigned char *data, size_t block_bytes, const int8_t *q,
                    size_t width, int tile, int blocks, int first) {
    __m512i weights[BLOCKS];
    UNROLL for (int b = 0; b < blocks; b++)
        weights[b] = _mm512_xor_si512(load_weights(data, block_bytes, b, blocks, first && tile > 1), _mm512_set1_epi8((char)0x80));
    UNROLL for (int t = 0; t < tile; t++) {
        __m512i xj = broadcast(q + (size_t)t * width);
        UNROLL for (int b = 0; b < blocks; b++) s[t][b] = _mm512_dpbusd_epi32(s[t][b], weights[b], xj);
    }
}

/* `blocks` blocks of 16 rows against `tile` rows of x from row r on. */
INLINE void tile_q8(float *out, size_t out_stride, const l2c_quantized *x, size_t r, const l2c_matrix *w,
                    const unsigned char *block, int tile, int blocks, int first, size_t valid) {
    size_t group = w->group, groups = w->padded / group;
    const unsigned char *data = block + l2c_block_scale_bytes(L2C_WEIGHTS_Q8, groups);
    const int8_t *q = x->q + r * x->width;
    __m512 sums[TILE][BLOCKS];
    UNROLL for (int t = 0; t < tile; t++)
        UNROLL for (int b = 0; b < blocks; b++) sums[t][b] = _mm512_setzero_ps();
    for (size_t g = 0; g < groups; g++, block += 64) {
        __m512i s[TILE][BLOCKS];
        UNROLL for (int t = 0; t < tile; t++) {
            __m512i start = _mm512_set1_epi32(-128 * x->sums[(r + (size_t)t) * groups + g]);
            UNROLL for (int b = 0; b < blocks; b++) s[t][b] = start;
        }
        size_t j = 0;
        for (; j + UNROLLED <= group; j += UNROLLED)
            UNROLL for (int k = 0; k < UNROLLED; k += 4, data += 64, q += 4)
                step_q8(s, data, w->block_bytes, q, x->width, tile, blocks, first);
        for (; j < group; j += 4, data += 64, q += 4) step_q8(s, data, w->block_bytes, q, x->width, tile, blocks, first);
        UNROLL for (int t = 0; t < tile; t++) {
            __m512 scale = _mm512_set1_ps(x->scales[(r + (size_t)t) * groups + g]);
            UNROLL for (int b = 0; b < blocks; b++) {
                __m512 weight = _mm512_load_ps(block + (size_t)b * w->block_bytes);
                sums[t][b] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(s[t][b]), _mm512_mul_ps(weight, scale), sums[t][b]);
            }
        }
    }
    store(out, out_stride, sums, tile, blocks, valid);
}

/* minima: of L2C_WEIGHTS_Q4_1; 0 or 1 in the source, so that the compiler makes two functions of this */
INLINE void tile_4_bits(float *out, size_t out_stride, const l2c_quantized *x, size_t r, const l2c_matrix *w,
                        const unsigned char *block, int tile, int blocks, int first, size_t valid, int minima) {
    size_t groups = w->padded / L2C_Q4_GROUP;
    const unsigned char *data = block + l2c_block_scale_bytes(minima ? L2C_WEIGHTS_Q4_1 : L2C_WEIGHTS_Q4, groups);
    const int8_t *q = x->q + r * x->width;
    const __m512i half = _mm512_set1_epi8(15);
    __m512 sums[TILE][BLOCKS];
    UNROLL for (int t = 0; t < tile; t++)
        UNROLL for (int b = 0; b < blocks; b++) sums[t][b] = _mm512_setzero_ps();
    for (size_t g = 0; g < groups; g++, block += minima ? 64 : 32, q += L2C_Q4_GROUP) {
        __m512i s[TILE][BLOCKS];
        UNROLL for (int t = 0; t < tile; t++) {
            __m512i start = _mm512_set1_epi32(minima ? 0 : -8 * x->sums[(r + (size_t)t) * groups + g]);
            UNROLL for (int b = 0; b < blocks; b++) s[t][b] = start;
        }
        UNROLL for (size_t j = 0; j < 16; j += 4, data += 64) {
            __m512i low[BLOCKS], high[BLOCKS];
            UNROLL for (int b = 0; b < blocks; b++) {
                __m512i both = load_weights(data, w->block_bytes, b, blocks, first);
                low[b] = _mm512_and_si512(both, half);
                high[b] = _mm512_and_si512(_mm512_srli_epi16(both, 4), half);
            }
            UNROLL for (int t = 0; t < tile; t++) {
                const int8_t *p = q + (size_t)t * x->width + j;
                __m512i x_low = broadcast(p), x_high = broadcast(p + 16);
                UNROLL for (int b = 0; b < blocks; b++) s[t][b] = _mm512_dpbusd_epi32(s[t][b], low[b], x_low);
                UNROLL for (int b = 0; b < blocks; b++) s[t][b] = _mm512_dpbusd_epi32(s[t][b], high[b], x_high);
            }
        }
        UNROLL for (int t = 0; t < tile; t++) {
            size_t at = (r + (size_t)t) * groups + g;
            __m512 scale = _mm512_set1_ps(x->scales[at]);
            __m512 x_sum = _mm512_set1_ps(minima ? x->scales[at] * (float)x->sums[at] : 0.0f);
            UNROLL for (int b = 0; b < blocks; b++) {
                const __m256i *halves = (const __m256i *)(block + (size_t)b * w->block_bytes);
                __m512 weight = _mm512_cvtph_ps(_mm256_load_si256(halves));
                sums[t][b] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(s[t][b]), _mm512_mul_ps(weight, scale), sums[t][b]);
                if (!minima) continue;
                sums[t][b] = _mm512_fmadd_ps(_mm512_cvtph_ps(_mm256_load_si256(halves + 1)), x_sum, sums[t][b]);
            }
        }
    }
    store(out, out_stride, sums, tile, blocks, valid);
}

INLINE void tile_q4(float *out, size_t out_stride, const l2c_quantized *x, size_t r, const l2c_matrix *w,
                    const unsigned char *block, int tile, int blocks, int first, size_t valid) {
    tile_4_bits(out, out_stride, x, r, w, block, tile, blocks, first, valid, 0);
}

INLINE void tile_q4_1(float *out, size_t out_stride, const l2c_quantized *x, size_t r, const l2c_matrix *w,
                      const unsigned char *block, int tile, int blocks, int first, size_t valid) {
    tile_4_bits(out, out_stride, x, r, w, block, tile, blocks, first, valid, 1);
}

#define CALL(TILE_FUNCTION, tile, blocks, is_first)                                                       \
    TILE_FUNCTION(out + r * out_stride + i, out_stride, x, first + r, w, l2c_block(w, i), tile, blocks,   \
                  is_first, end - i)

/* All rows of x against `blocks` blocks from row i of w on. */
#define ROWS(TILE_FUNCTION, blocks)                              \
    do {                                                         \
        size_t r = 0;                                            \
        if (n_rows >= 4) {                                       \
            CALL(TILE_FUNCTION, 4, blocks, 1);                   \
            r = 4;                                               \
        }                                                        \
        for (; r + 4 <= n_rows; r += 4) CALL(TILE_FUNCTION, 4, blocks, 0); \
        if (n_rows - r == 3) CALL(TILE_FUNCTION, 3, blocks, 1);  \
        else if (n_rows - r == 2) CALL(TILE_FUNCTION, 2, blocks, 1); \
        else if (n_rows - r == 1) CALL(TILE_FUNCTION, 1, blocks, 1); \
    } while (0)

#define MATMUL(TILE_FUNCTION)                                                        \
    size_t i = begin, left = (end - begin + L2C_BLOCK_ROWS - 1) / L2C_BLOCK_ROWS;    \
    if (n_rows == 1) {                                                               \
        size_t r = 0;                                                                \
        for (; left >= 4; left -= 4, i += 4 * L2C_BLOCK_ROWS) CALL(TILE_FUNCTION, 1, 4, 1); \
        for (; left > 0; left--, i += L2C_BLOCK_ROWS) CALL(TILE_FUNCTION, 1, 1, 1);     \
        return;                                                                      \
    }                                                                                \
    for (; left >= 2 && left != 3; left -= 2, i += 2 * L2C_BLOCK_ROWS) ROWS(TILE_FUNCTION, 2); \
    if (left == 3) ROWS(TILE_FUNCTION, 3);                                           \
    if (left == 1) ROWS(TILE_FUNCTION, 1);

void l2c_avx512_matmul_q8(float *out, size_t out_stride, const l2c_quantized *x, size_t first, size_t n_rows,
                          const l2c_matrix *w, size_t begin, size_t end) {
    MATMUL(tile_q8)
}

void l2c_avx512_matmul_q4(float *out, size_t out_stride, const l2c_quantized *x, size_t first, size_t n_rows,
                          const l2c_matrix *w, size_t begin, size_t end) {
    MATMUL(tile_q4)
}

void l2c_avx512_matmul_q4_1(float *out, size_t out_stride, const l2c_quantized *x, size_t first, size_t n_rows,
                            const l2c_matrix *w, size_t begin, size_t end) {
    MATMUL(tile_q4_1)
}

#if defined(__clang__)
#pragma clang attribute pop
#elif defined(__GNUC__)
#pragma GCC pop_options
#endif
#endif
