/*
 * linear.c - products with a weight matrix of any type.
 */
#include "cpu_session.h"

/* Of many rows, 64 at a time go through as many weights as stay in a core's cache beside them: all rows at once
 * would come from farther away, once for every few weights. */
static void linear_f32(const l2c_kernels *k, float *out, const float *x, size_t n, const l2c_matrix *w, size_t begin,
                       size_t end) {
    enum { TILE_ROWS = 64, TILE_WEIGHTS = 32768 };
    size_t columns = n <= TILE_ROWS ? end - begin : TILE_WEIGHTS / w->cols / 16 * 16;
    if (columns < 16) columns = 16;
    for (size_t i = begin, to; i < end; i = to) {
        to = end - i < columns ? end : i + columns;
        for (size_t r = 0, some; r < n; r += some) {
            some = n - r < TILE_ROWS ? n - r : TILE_ROWS;
            k->matmul(out + r * w->rows, w->rows, x + r * w->cols, w->cols, some, w->data, w->cols, i, to);
        }
    }
}

void l2c_linear(const l2c_kernels *k, float *out, const float *x, const l2c_quantized *xq, size_t first, size_t n,
                const l2c_matrix *w, size_t begin, size_t end) {
    switch (w->type) {
    case L2C_WEIGHTS_F32: linear_f32(k, out, x, n, w, begin, end); break;
    case L2C_WEIGHTS_Q4: k->matmul_q4(out, w->rows, xq, first, n, w, begin, end); break;
    case L2C_WEIGHTS_Q4_1: k->matmul_q4_1(out, w->rows, xq, first, n, w, begin, end); break;
    default: k->matmul_q8(out, w->rows, xq, first, n, w, begin, end);
    }
}
