/*
 * testing.h - single kernels by instruction set: for tests and benchmarks, no part of the public API.
 */
#ifndef L2C_TESTING_H
#define L2C_TESTING_H

#include "llama2c.h"

/* cdef-begin: as llama2c.h's, for the tests in Python. */

/* isa is one that l2c_isa_resolve returned. out (n_rows, d) = x (n_rows, n) times w (d, n)
 * transposed; exp of n values; softmax in place; gate = silu(gate) * up; row r of out (n_rows, width) =
 * the first n + r * step of row r of weights (n_rows, m) times values (m, width), m = n + (n_rows - 1) * step. */
void l2c_kernel_matmul(l2c_isa isa, float *out, const float *x, size_t n_rows, const float *w,
                       size_t n, size_t d);
void l2c_kernel_exp(l2c_isa isa, float *out, const float *x, size_t n);
void l2c_kernel_softmax(l2c_isa isa, float *x, size_t n);
void l2c_kernel_swiglu(l2c_isa isa, float *gate, const float *up, size_t n);
/* float32 to float16 and back, n values */
void l2c_kernel_f32_to_f16(l2c_isa isa, uint16_t *out, const float *x, size_t n);
void l2c_kernel_f16_to_f32(l2c_isa isa, float *out, const uint16_t *x, size_t n);
void l2c_kernel_weighted_sum(l2c_isa isa, float *out, const float *weights, size_t n_rows, size_t step,
                             const float *values, size_t n, size_t width);

/* cdef-end */

#endif
