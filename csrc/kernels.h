/*
 * kernels.h - the table of inner loops, one table for each instruction set.
 *
 * The tables for float32 models give the same bits. What that takes is said once, here:
 *
 *  - A sum over n elements has 16 lanes. Element j is added to lane j % 16, in rising order of j,
 *    by one fused multiply-add (a dot product) or one addition (a plain sum). Past n, elements are
 *    zeros. Then lanes i and i+8 are added, then i and i+4, i and i+2, i and i+1.
 *  - exp is the polynomial of l2c_exp below, written with the same fused multiply-adds.
 *  - RoPE's angles are tabulated from libm's double precision, which libms may round differently in
 *    one case of some hundred million; nothing else comes from a library.
 *  - Everything else is one IEEE operation after another, in the order that the C says
 *    (-ffp-contract=off keeps it so).
 */
#ifndef L2C_KERNELS_H
#define L2C_KERNELS_H

#include <stddef.h>

/* Before a loop over a small array of sums: unrolled early, the array becomes registers. Left to
 * itself, gcc unrolls too late for that and stores every sum to the stack at every step. */
#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#elif defined(__GNUC__)
#define UNROLL _Pragma("GCC unroll 16")
#else
#define UNROLL
#endif

typedef struct {
    const char *name;

    /* sum of a[j] * b[j], j < n */
    float (*dot)(const float *a, const float *b, size_t n);

    /* out[r * out_stride + i] = dot(x + r * x_stride, w + i * n), r < n_rows, begin <= i < end */
    void (*matmul)(float *out, size_t out_stride, const float *x, size_t x_stride, size_t n_rows,
                   const float *w, size_t n, size_t begin, size_t end);

    /* out[j] = exp(x[j]) */
    void (*exp)(float *out, const float *x, size_t n);

    /* x[j] = exp(x[j] - max) / sum of those; returns the sum, which is NaN if any x is NaN or inf */
    float (*softmax)(float *x, size_t n);

    /* the largest x[j], n > 0; unspecified when one is NaN */
    float (*max)(const float *x, size_t n);

    /* gate[j] = gate[j] * (1 / (1 + exp(-gate[j]))) * up[j] */
    void (*swiglu)(float *gate, const float *up, size_t n);

    /* out[i] = sum of weights[t] * rows[t * width + i] over t < n, fused, in rising order of t */
    void (*mix)(float *out, const float *weights, const float *rows, size_t n, size_t width);
} l2c_kernels;

extern const l2c_kernels l2c_kernels_scalar;
extern const l2c_kernels l2c_kernels_runq; /* for int8 models: see there why they have their own */
#if defined(__x86_64__) || defined(_M_X64)
#define L2C_X86 1
extern const l2c_kernels l2c_kernels_avx2;
extern const l2c_kernels l2c_kernels_avx512;
#endif

/*
 * exp(x) = 2^n * e^r with n = round(x / ln 2), |r| <= ln 2 / 2, and e^r by Cephes' degree-7
 * polynomial 1 + r + r^2 * P(r). Within 2 ulp of the true value over the whole range, denormal
 * results included; 0 below -104, infinity above 88.73, NaN for NaN.
 */
#define L2C_EXP_LOW (-104.0f)
#define L2C_EXP_HIGH 89.0f
#define L2C_EXP_LOG2E 1.44269504f
#define L2C_EXP_ROUND 12582912.0f /* 1.5 * 2^23: adding it leaves the rounded integer in the low bits */
#define L2C_EXP_ROUND_BITS 0x4B400000
#define L2C_EXP_LN2_HIGH 0.693359375f
#define L2C_EXP_LN2_LOW (-2.12194440e-4f)
#define L2C_EXP_P5 1.9875691500e-4f
#define L2C_EXP_P4 1.3981999507e-3f
#define L2C_EXP_P3 8.3334519073e-3f
#define L2C_EXP_P2 4.1665795894e-2f
#define L2C_EXP_P1 1.6666665459e-1f
#define L2C_EXP_P0 5.0000001201e-1f

#endif
