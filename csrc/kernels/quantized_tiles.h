/*
 * quantized_tiles.h - integer products tile by tile, for instruction sets with few registers, written once.
 *
 * Each instruction set's file switches it on, defines what follows and includes this; then INTEGER_MATMULS(isa) are
 * its functions of quantized.h.
 *
 *     TILE                  rows of x that share the loads of weights; and blocks of weights that share those of one row
 *     sixteen               registers of 16 floats: a sum for each row of a block
 *     store(out, sums, valid)    the first `valid` of them
 *     UNROLL_STORES         UNROLL, or nothing: which of them makes the shorter code
 *     tile_q8, tile_4_bits  a tile is `tile` rows of x, from row r on, against `blocks` blocks of 16 rows that lie
 *                           `apart` bytes from each other; minima: of L2C_WEIGHTS_Q4_1. One of tile and blocks is 1,
 *                           the other 1 or TILE, and all are in the source, so that the compiler makes a function of each
 */

INLINE void tile_q4(sixteen *sums, const l2c_quantized *x, size_t r, const l2c_matrix *w, const unsigned char *block,
                    size_t apart, int tile, int blocks) {
    tile_4_bits(sums, x, r, w, block, apart, tile, blocks, 0);
}

INLINE void tile_q4_1(sixteen *sums, const l2c_quantized *x, size_t r, const l2c_matrix *w, const unsigned char *block,
                      size_t apart, int tile, int blocks) {
    tile_4_bits(sums, x, r, w, block, apart, tile, blocks, 1);
}

#define ONE_TILE(FUNCTION, i, tile, blocks, step)                                                                 \
    do {                                                                                                          \
        sixteen sums[TILE];                                                                                       \
        FUNCTION(sums, x, first + r, w, l2c_block(w, i), (step) / L2C_BLOCK_ROWS * w->block_bytes, tile, blocks); \
        UNROLL_STORES for (int t = 0; t < tile; t++)                                                              \
            UNROLL_STORES for (int b = 0; b < blocks; b++) {                                                      \
                size_t row = (i) + (size_t)b * (step);                                                            \
                store(out + (r + (size_t)t) * out_stride + row, sums[t * blocks + b], end - row);                 \
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
