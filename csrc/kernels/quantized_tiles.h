/*
 * quantized_tiles.h - integer products tile by tile, for instruction sets with few registers, written once.
 *
 * Each instruction set's file switches it on, defines what follows and includes this; then INTEGER_MATMULS(isa) are
 * its functions of quantized.h.
 *
 *     INLINE                static, always inlined
 *     PARTS                 registers that hold a value of each of the 16 rows of a block: 2 or 4
 *     TILE                  rows of x that share the loads of weights; and blocks of weights that share those of one row
 *     AT_ONCE               rows of x that one instruction takes, whose sums share registers: 1 or 2
 *     COLUMNS               columns that one instruction takes: 4, or 8; then groups are of a multiple of 8
 *     UNROLL_STORES         UNROLL, or nothing: which of them makes the shorter code
 *
 *     vec                   a part's floats, one a row
 *     set(x), load(p), load_halves(p), store(p, v), multiply(a, b), multiply_add(a, b, s)    of vec; from float16
 *
 *     weights_8, load_8(data)      COLUMNS columns of a part
 *     sums_8                       a part's sums of a group under way, for AT_ONCE rows of x
 *     begin_8(x_sum)               no products; x_sum is the sum of the group of x (AT_ONCE = 1), for who needs it
 *     step_8(s, weights, x, at)    s += weights times x->q[at] and those after it; in AT_ONCE rows
 *     end_8(s, t)                  as vec, exactly; t < AT_ONCE is the row
 *
 *     weights_4, load_4, sums_4, begin_4(offset), step_4, end_4(s, t, offset)    the same of L2C_WEIGHTS_Q4 and
 *                           Q4_1, twice as many columns at once, those of x 16 apart; weights are 0 to 15 as they lie,
 *                           and the offset, which takes off what is too much, is added in begin_4 or in end_4
 */

typedef vec sixteen[PARTS]; /* a value of each row of a block */

enum { PART_ROWS = L2C_BLOCK_ROWS / PARTS, PART_BYTES = 64 / PARTS /* 4 columns of int8, 8 of int4 */ };

/* A tile is `tile` rows of x, from row r on, against `blocks` blocks of 16 rows that lie `apart` bytes from each other.
 * One of tile and blocks is 1, the other 1 or TILE (i8mm has tiles of 2 rows, and none of 1), and all are in the source,
 * so that the compiler makes a function of each. */
INLINE void tile_q8(sixteen *sums, const l2c_quantized *x, size_t r, const l2c_matrix *w, const unsigned char *block,
                    size_t apart, int tile, int blocks) {
    size_t group = w->group, groups = w->padded / group, at = r * x->width;
    const unsigned char *data = block + l2c_block_scale_bytes(L2C_WEIGHTS_Q8, groups);
    UNROLL for (int i = 0; i < tile * blocks; i++)
        UNROLL for (int k = 0; k < PARTS; k++) sums[i][k] = set(0.0f);
    for (size_t g = 0; g < groups; g++, block += 64) {
        sums_8 s[TILE][PARTS];
        UNROLL for (int t = 0; t < tile; t += AT_ONCE)
            UNROLL for (int b = 0; b < blocks; b++)
                UNROLL for (int k = 0; k < PARTS; k++) s[t * blocks + b][k] = begin_8(x->sums[(r + (size_t)t) * groups + g]);
        for (size_t j = 0; j < group; j += COLUMNS, data += 16 * COLUMNS, at += COLUMNS)
            UNROLL for (int b = 0; b < blocks; b++)
                UNROLL for (int k = 0; k < PARTS; k++) {
                    weights_8 weights = load_8(data + (size_t)b * apart + PART_BYTES * k);
                    UNROLL for (int t = 0; t < tile; t += AT_ONCE)
                        s[t * blocks + b][k] = step_8(s[t * blocks + b][k], weights, x, at + (size_t)t * x->width);
                }
        UNROLL for (int t = 0; t < tile; t++) {
            vec scale = set(x->scales[(r + (size_t)t) * groups + g]);
            UNROLL for (int b = 0; b < blocks; b++)
                UNROLL for (int k = 0; k < PARTS; k++) {
                    vec weight = load((const float *)(block + (size_t)b * apart) + PART_ROWS * k);
                    vec dot = end_8(s[t / AT_ONCE * AT_ONCE * blocks + b][k], t % AT_ONCE);
                    vec *sum = &sums[t * blocks + b][k];
                    *sum = multiply_add(dot, multiply(weight, scale), *sum);
                }
        }
    }
}

/* minima: of L2C_WEIGHTS_Q4_1 */
INLINE void tile_4_bits(sixteen *sums, const l2c_quantized *x, size_t r, const l2c_matrix *w, const unsigned char *block,
                        size_t apart, int tile, int blocks, int minima) {
    size_t groups = w->padded / L2C_Q4_GROUP, at = r * x->width;
    const unsigned char *data = block + l2c_block_scale_bytes(minima ? L2C_WEIGHTS_Q4_1 : L2C_WEIGHTS_Q4, groups);
    UNROLL for (int i = 0; i < tile * blocks; i++)
        UNROLL for (int k = 0; k < PARTS; k++) sums[i][k] = set(0.0f);
    for (size_t g = 0; g < groups; g++, block += minima ? 64 : 32, at += L2C_Q4_GROUP) {
        sums_4 s[TILE][PARTS];
        UNROLL for (int t = 0; t < tile; t += AT_ONCE) {
            int32_t offset = minima ? 0 : -8 * x->sums[(r + (size_t)t) * groups + g];
            UNROLL for (int b = 0; b < blocks; b++)
                UNROLL for (int k = 0; k < PARTS; k++) s[t * blocks + b][k] = begin_4(offset);
        }
        for (size_t j = 0; j < L2C_Q4_GROUP / 2; j += COLUMNS, data += 16 * COLUMNS)
            UNROLL for (int b = 0; b < blocks; b++)
                UNROLL for (int k = 0; k < PARTS; k++) {
                    weights_4 weights = load_4(data + (size_t)b * apart + PART_BYTES * k);
                    UNROLL for (int t = 0; t < tile; t += AT_ONCE)
                        s[t * blocks + b][k] = step_4(s[t * blocks + b][k], weights, x, at + (size_t)t * x->width + j);
                }
        UNROLL for (int t = 0; t < tile; t++) {
            size_t group = (r + (size_t)t) * groups + g;
            int32_t offset = minima ? 0 : -8 * x->sums[group];
            vec scale = set(x->scales[group]), x_sum = set(minima ? x->scales[group] * (float)x->sums[group] : 0.0f);
            UNROLL for (int b = 0; b < blocks; b++)
                UNROLL for (int k = 0; k < PARTS; k++) {
                    const uint16_t *halves = (const uint16_t *)(block + (size_t)b * apart) + PART_ROWS * k;
                    vec dot = end_4(s[t / AT_ONCE * AT_ONCE * blocks + b][k], t % AT_ONCE, offset);
                    vec *sum = &sums[t * blocks + b][k];
                    *sum = multiply_add(dot, multiply(load_halves(halves), scale), *sum);
                    if (minima) *sum = multiply_add(load_halves(halves + L2C_BLOCK_ROWS), x_sum, *sum);
                }
        }
    }
}

INLINE void tile_q4(sixteen *sums, const l2c_quantized *x, size_t r, const l2c_matrix *w, const unsigned char *block,
                    size_t apart, int tile, int blocks) {
    tile_4_bits(sums, x, r, w, block, apart, tile, blocks, 0);
}

INLINE void tile_q4_1(sixteen *sums, const l2c_quantized *x, size_t r, const l2c_matrix *w, const unsigned char *block,
                      size_t apart, int tile, int blocks) {
    tile_4_bits(sums, x, r, w, block, apart, tile, blocks, 1);
}

/* 16 results; the last block of a matrix has fewer. */
INLINE void store_results(float *out, const sixteen sums, size_t valid) {
    float all[L2C_BLOCK_ROWS];
    float *to = valid >= L2C_BLOCK_ROWS ? out : all;
    UNROLL for (int k = 0; k < PARTS; k++) store(to + PART_ROWS * k, sums[k]);
    if (to == all) memcpy(out, all, valid * sizeof *out);
}

#define ONE_TILE(FUNCTION, i, tile, blocks, step)                                                                 \
    do {                                                                                                          \
        sixteen sums[TILE];                                                                                       \
        FUNCTION(sums, x, first + r, w, l2c_block(w, i), (step) / L2C_BLOCK_ROWS * w->block_bytes, tile, blocks); \
        UNROLL_STORES for (int t = 0; t < tile; t++)                                                              \
            UNROLL_STORES for (int b = 0; b < blocks; b++) {                                                      \
                size_t row = (i) + (size_t)b * (step);                                                            \
                store_results(out + (r + (size_t)t) * out_stride + row, sums[t * blocks + b], end - row);         \
            }                                                                                                     \
    } while (0)

/* Several rows of x: a block stays in the first cache while they pass by it. One row is a matter of memory: TILE
 * blocks that part of the matrix apart, each a stream that the hardware prefetcher follows. */
#define INTEGER_MATMUL(NAME, FUNCTION)                                                                    \
    void NAME(float *out, size_t out_stride, const l2c_quantized *x, size_t first, size_t n_rows,         \
              const l2c_matrix *w, size_t begin, size_t end) {                                            \
        size_t i = begin;                                                                                 \
        if (n_rows == 1) {                                                                                \
            size_t r = 0, part = (end - begin) / (TILE * L2C_BLOCK_ROWS) * L2C_BLOCK_ROWS;                \
            for (; i < begin + part; i += L2C_BLOCK_ROWS) ONE_TILE(FUNCTION, i, 1, TILE, part);           \
            for (i = begin + TILE * part; i < end; i += L2C_BLOCK_ROWS) ONE_TILE(FUNCTION, i, 1, 1, 0);   \
            return;                                                                                       \
        }                                                                                                 \
        for (; i < end; i += L2C_BLOCK_ROWS) {                                                            \
            size_t r = 0;                                                                                 \
            for (; r + TILE <= n_rows; r += TILE) ONE_TILE(FUNCTION, i, TILE, 1, 0);                      \
            for (; r < n_rows; r++) ONE_TILE(FUNCTION, i, 1, 1, 0);                                       \
        }                                                                                                 \
    }

#define INTEGER_MATMULS(isa)                          \
    INTEGER_MATMUL(l2c_##isa##_matmul_q8, tile_q8)    \
    INTEGER_MATMUL(l2c_##isa##_matmul_q4, tile_q4)    \
    INTEGER_MATMUL(l2c_##isa##_matmul_q4_1, tile_q4_1)
