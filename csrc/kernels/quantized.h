/*
 * quantized.h - the integer part of the kernel tables: int8 activations, int8 and int4 weights.
 *
 * int8 of a group of activations is defined so: the scale is the largest magnitude / 127, and q is
 * x * (127 / largest), rounded to even. A group whose magnitudes are all below 1e-30 counts as zeros;
 * one that holds NaN or infinity has q = 0 and a scale of NaN, which carries on. Magnitudes are
 * compared as integers (the bits without the sign), so that NaN is the largest of all.
 *
 * A product of a group is an integer and exact, however a kernel comes to it; the comments in each
 * file say why nothing overflows. The order of the float32 steps after it is kernels.h's.
 */
#ifndef L2C_QUANTIZED_H
#define L2C_QUANTIZED_H

#include "kernels.h"

#define L2C_QUANTIZE_LEAST 1e-30f
#define L2C_QUANTIZE_ROUND 12582912.0f /* 1.5 * 2^23: adding it rounds to an integer */

/* A packed matrix has groups of a multiple of 4 and at most this many columns: what 32-bit sums of
 * 256 * 4 * 128 * 127 (quantized_avx2.c) leave room for. */
enum { L2C_MAX_PACKED_GROUP = 512 };

/* The scales of a block, and its data behind them. */
static inline const unsigned char *l2c_block(const l2c_matrix *w, size_t row) {
    return (const unsigned char *)w->data + row / L2C_BLOCK_ROWS * w->block_bytes;
}

static inline size_t l2c_block_scale_bytes(l2c_weights type, size_t groups) {
    size_t bytes = groups * L2C_BLOCK_ROWS * (type == L2C_WEIGHTS_Q4 ? 2 : 4); /* Q4_1 has minima, too */
    return (bytes + 63) / 64 * 64;
}

/* float16 to float32 and back (to nearest even), exact as the instructions that do the same */
float l2c_half_to_float(uint16_t half);
uint16_t l2c_float_to_half(float value);

l2c_f32_to_f16 l2c_scalar_f32_to_f16;
l2c_f16_to_f32 l2c_scalar_f16_to_f32;
l2c_quantizer l2c_scalar_quantize;
l2c_integer_matmul l2c_scalar_matmul_q8, l2c_scalar_matmul_q4, l2c_scalar_matmul_q4_1;
l2c_quantizer l2c_runq_quantize;
l2c_integer_matmul l2c_runq_matmul;
#if defined(L2C_X86)
l2c_f32_to_f16 l2c_avx2_f32_to_f16;
l2c_f16_to_f32 l2c_avx2_f16_to_f32;
l2c_quantizer l2c_avx2_quantize;
l2c_integer_matmul l2c_avx2_matmul_q8, l2c_avx2_matmul_q4, l2c_avx2_matmul_q4_1;
l2c_integer_matmul l2c_avxvnni_matmul_q8, l2c_avxvnni_matmul_q4, l2c_avxvnni_matmul_q4_1;
l2c_integer_matmul l2c_avx512_matmul_q8, l2c_avx512_matmul_q4, l2c_avx512_matmul_q4_1;
#elif defined(L2C_ARM)
l2c_f32_to_f16 l2c_neon_f32_to_f16;
l2c_f16_to_f32 l2c_neon_f16_to_f32;
l2c_quantizer l2c_neon_quantize;
l2c_integer_matmul l2c_neon_matmul_q8, l2c_neon_matmul_q4, l2c_neon_matmul_q4_1;
l2c_integer_matmul l2c_dotprod_matmul_q8, l2c_dotprod_matmul_q4, l2c_dotprod_matmul_q4_1;
l2c_integer_matmul l2c_i8mm_matmul_q8, l2c_i8mm_matmul_q4, l2c_i8mm_matmul_q4_1;
#elif defined(L2C_SIMD128)
l2c_quantizer l2c_simd128_quantize;
l2c_integer_matmul l2c_simd128_matmul_q8, l2c_simd128_matmul_q4, l2c_simd128_matmul_q4_1;
#endif

#endif
