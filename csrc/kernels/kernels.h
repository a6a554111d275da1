/*
 * kernels.h - the table of inner loops, one table for each instruction set.
 *
 * The tables for float32 models give the same bits. What that takes is said once, here:
 *
 *  - A sum over n elements has 16 lanes. Element j is added to lane j % 16, in rising order of j,
 *    by one fused multiply-add (a dot product) or one addition (a plain sum). Past n, elements are
 *    zeros. Then lanes i and i+8 are added, then i and i+4, i and i+2, i and i+1.
 *  - softmax's sum goes by blocks of 64: elements 0 to 63, 64 to 127, ... have 16 lanes each; lane i of the
 *    total is lane i of the first block, then those of the others are added one by one; then the tree.
 *  - Attention's weighted sum of values goes by blocks of 64 positions as well. In a block, from +0, one fused
 *    multiply-add a position, in rising order; the last block is as long as it is. The total is the first
 *    block's sum (not 0 + it: signs of zero), then the others' are added one by one. Weights are final
 *    before any block begins. So several threads, or a graphics card, may take a block each.
 *  - exp is the polynomial at the end of this file, written with the same fused multiply-adds. Neither its
 *    results nor softmax's are ever denormal: those would be so small that they change no sum worth having,
 *    and processors take up to a hundred times longer over them.
 *  - RoPE's angles are tabulated from libm's double precision, which libms may round differently in
 *    one case of some hundred million; nothing else comes from a library.
 *  - int8 and int4: a group of a row shares a scale. Sums within a group are integers, hence exact;
 *    group results are added in order of the groups: sum = fma(dot, w_scale * x_scale, sum). Where
 *    weights are scale * q + minimum, the group's sum of x's integers, exact as well, follows at once:
 *    sum = fma(minimum, x_scale * x_sum, sum).
 *  - Everything else is one IEEE operation after another, in the order that the C says
 *    (-ffp-contract=off keeps it so).
 */
#ifndef L2C_KERNELS_H
#define L2C_KERNELS_H

#include <stddef.h>
#include <stdint.h>

/* Before a loop over a small array of sums: unrolled early, the array becomes registers. Left to
 * itself, gcc unrolls too late for that and stores every sum to the stack at every step. */
#if defined(UNROLL) /* given by a build that must be quick to compile, such as the fuzzers' */
#elif defined(__clang__)
#define UNROLL _Pragma("unroll")
#elif defined(__GNUC__)
#define UNROLL _Pragma("GCC unroll 16")
#else
#define UNROLL
#endif

/* A hint that this address is going to be read. */
#if defined(__GNUC__) || defined(__clang__)
#define L2C_PREFETCH(address) __builtin_prefetch(address)
#else
#define L2C_PREFETCH(address) ((void)(address))
#endif

/* What the elements of a weight matrix are. */
typedef enum {
    L2C_WEIGHTS_F32,  /* row-major float32 */
    L2C_WEIGHTS_FILE, /* int8, row-major, in a v2 file's own layout: only runq.c computes it */
    L2C_WEIGHTS_GGUF, /* row-major blocks of a GGUF file: for packing from, nothing computes it */
    L2C_WEIGHTS_Q8,   /* int8, packed (below) */
    L2C_WEIGHTS_Q4,   /* int4, packed */
    L2C_WEIGHTS_Q4_1  /* the same with a minimum for each group, as GGUF's type of this name has it */
} l2c_weights;

struct l2c_block_type; /* of L2C_WEIGHTS_GGUF (gguf.h) */

/*
 * A weight matrix (rows, cols): one output feature a row.
 *
 * Packed matrices are for registers that hold one column of 16 rows: no sum has to be taken across
 * a register. Rows come in blocks of 16, the last one filled up with zeros; columns in whole groups,
 * `padded` in all. A block is
 *     scales  (padded / group, 16) float32, or float16 for int4; up to a multiple of 64 bytes
 *             Q4_1: (padded / 32, 2, 16) float16, scales and minima: a cache line for each group
 *     data    int8: (padded / 4, 16, 4): four columns of a row side by side
 *             int4: (padded / 32, 4, 16, 4) bytes; byte [g][j][row][i] has column 32 g + 4 j + i in its
 *             low half and column 32 g + 16 + 4 j + i in its high half, each plus 8 but in Q4_1, which
 *             has 0 to 15
 */
typedef struct {
    l2c_weights type;
    size_t rows, cols, padded, group;
    const void *data;            /* 64-byte aligned when packed */
    const unsigned char *scales; /* of L2C_WEIGHTS_FILE: float32 at any alignment */
    size_t block_bytes;          /* of a packed matrix */
    const struct l2c_block_type *blocks; /* of L2C_WEIGHTS_GGUF */
} l2c_matrix;

/* Elements of softmax, or positions of attention, whose sum is taken by itself. */
enum { L2C_SUM_BLOCK = 64 };

enum { L2C_BLOCK_ROWS = 16, L2C_Q4_GROUP = 32, L2C_SKIP_BLOCK = 64 };

/* Rows of activations as int8 products take them: a group of x is scale * q, |q| <= 127. */
typedef struct {
    size_t cols;    /* values a row */
    size_t width;   /* the same in whole groups */
    size_t group;
    int8_t *q;      /* (rows, width) */
    int16_t *pairs; /* (rows, width): the same, each 4 in the order 0 2 1 3; AVX2 only */
    float *scales;  /* (rows, width / group) */
    int32_t *sums;  /* (rows, width / group): sum of the q of a group */
} l2c_quantized;

/* out[r * out_stride + i] = row `first + r` of x times row i of w, r < n_rows, begin <= i < end;
 * begin is a multiple of 16, and end is one or w->rows */
typedef void l2c_integer_matmul(float *out, size_t out_stride, const l2c_quantized *x, size_t first,
                                size_t n_rows, const l2c_matrix *w, size_t begin, size_t end);

/* row `row` of `to` = x (n), n <= to->width, zeros after it */
typedef void l2c_quantizer(const l2c_quantized *to, size_t row, const float *x, size_t n);

/* float32 to float16 (nearest even) and back, n values */
typedef void l2c_f32_to_f16(uint16_t *out, const float *x, size_t n);
typedef void l2c_f16_to_f32(float *out, const uint16_t *x, size_t n);

/* One block of attention's values. Row r of out (n_rows, width) becomes, or where `accumulate` is set has added to it,
 * the sum of weights[r * weights_stride + t] * values[t * width + i] over t < n + r * step, t < L2C_SUM_BLOCK.
 * A row without such a t stays as it is. */
typedef void l2c_weighted_sum(float *out, size_t out_stride, const float *weights, size_t weights_stride, size_t n_rows,
                              size_t step, const float *values, ptrdiff_t n, size_t width, int accumulate);

/* How many positions row r has in the block. */
static inline size_t l2c_in_block(ptrdiff_t n, size_t r, size_t step) {
    ptrdiff_t own = n + (ptrdiff_t)(r * step);
    return own < 0 ? 0 : own > L2C_SUM_BLOCK ? L2C_SUM_BLOCK : (size_t)own;
}

typedef struct {
    const char *name;

    /* sum of a[j] * b[j], j < n */
    float (*dot)(const float *a, const float *b, size_t n);

    /* out[r * out_stride + i] = dot(x + r * x_stride, w + i * n), r < n_rows, begin <= i < end */
    void (*matmul)(float *out, size_t out_stride, const float *x, size_t x_stride, size_t n_rows,
                   const float *w, size_t n, size_t begin, size_t end);

    /* out[j] = exp(x[j]) */
    void (*exp)(float *out, const float *x, size_t n);

    /* x[j] = exp(x[j] - max); returns the sum of those, which is NaN if any x is NaN or infinity */
    float (*exp_sum)(float *x, size_t n);

    /* the same, then x[j] /= sum; 0 where x[j] < sum * FLT_MIN: no result is denormal */
    void (*softmax)(float *x, size_t n);

    /* the largest x[j], n > 0; unspecified when one is NaN */
    float (*max)(const float *x, size_t n);

    /* gate[j] = gate[j] * (1 / (1 + exp(-gate[j]))) * up[j] */
    void (*swiglu)(float *gate, const float *up, size_t n);

    l2c_weighted_sum *weighted_sum;

    /* out[i] = weight[i] * (scale * x[i]) */
    void (*norm)(float *out, const float *x, const float *weight, float scale, size_t n);

    /* x[i] += delta[i]; x[i] /= divisor */
    void (*add)(float *x, const float *delta, size_t n);
    void (*divide)(float *x, float divisor, size_t n);

    /* RoPE: turns the n neighbouring pairs, pair j by the angle of this cosine[j] and sine[j] */
    void (*rotate)(float *pairs, const float *cosine, const float *sine, size_t n);

    /* how many elements from the first on, in whole blocks of L2C_SKIP_BLOCK, are all below floor */
    size_t (*skip_below)(const float *x, size_t n, float floor);

    l2c_f32_to_f16 *f32_to_f16;
    l2c_f16_to_f32 *f16_to_f32;

    l2c_quantizer *quantize;
    l2c_integer_matmul *matmul_q8, *matmul_q4, *matmul_q4_1;
} l2c_kernels;

extern const l2c_kernels l2c_kernels_scalar;
extern const l2c_kernels l2c_kernels_runq; /* see there for which models */
#if defined(__x86_64__) || defined(_M_X64)
#define L2C_X86 1
extern const l2c_kernels l2c_kernels_avx2;
extern const l2c_kernels l2c_kernels_avx512;
#if defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11
#define L2C_AVXVNNI 1 /* older compilers do not know the instructions */
extern const l2c_kernels l2c_kernels_avxvnni;
#endif
#elif defined(__aarch64__)
#define L2C_ARM 1
extern const l2c_kernels l2c_kernels_neon;
#if defined(__clang__) ? __clang_major__ >= 16 : __GNUC__ >= 10
#define L2C_ARM_DOTPROD 1 /* older compilers do not know the instructions, or not in single functions */
extern const l2c_kernels l2c_kernels_dotprod;
extern const l2c_kernels l2c_kernels_i8mm;
#endif
#elif defined(__wasm_simd128__)
#define L2C_SIMD128 1
extern const l2c_kernels l2c_kernels_simd128;
#endif

/*
 * exp(x) = 2^n * e^r with n = round(x / ln 2), |r| <= ln 2 / 2, and e^r by Cephes' degree-7
 * polynomial 1 + r + r^2 * P(r). Within 2 ulp of the true value from L2C_EXP_LOW on; 0 below that, where
 * results would be less than the smallest normal float, FLT_MIN; infinity above 88.73, NaN for NaN.
 */
#define L2C_EXP_LOW (-0x1.5d589ep+6f) /* the least float whose exp is at least FLT_MIN: -87.33654 */
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
