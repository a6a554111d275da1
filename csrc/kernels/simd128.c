/*
 * simd128.c - simd.h's primitives in WebAssembly's SIMD, and its tile of products.
 *
 * Instructions: the 128-bit ones of the first SIMD proposal, which every current browser has; never the relaxed
 * ones, whose results may differ from machine to machine. There is no fused multiply-add: fused_simd128.h makes it of
 * doubles, two at a time. The 16 lanes of a sum are four registers: the tree adds the first and the third, the
 * second and the fourth, then the two. Nothing can overflow but floats, and those as IEEE says.
 */
#include "quantized.h"

#if defined(L2C_SIMD128)
#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "fused_simd128.h"
#include "plain.h"

enum { LANES = 16, WIDTH = 4, REGISTERS = 4, TILE_ROWS = 3, SUM_ROWS = 1, MASKED = 0 };

typedef v128_t vec;
typedef v128_t integers;
typedef struct {
    vec v[REGISTERS];
} lanes;

INLINE vec set(float x) { return wasm_f32x4_splat(x); }
INLINE vec load(const float *p) { return wasm_v128_load(p); }
INLINE void store(float *p, vec v) { wasm_v128_store(p, v); }
INLINE vec add(vec a, vec b) { return wasm_f32x4_add(a, b); }
INLINE vec subtract(vec a, vec b) { return wasm_f32x4_sub(a, b); }
INLINE vec multiply(vec a, vec b) { return wasm_f32x4_mul(a, b); }
INLINE vec divide(vec a, vec b) { return wasm_f32x4_div(a, b); }
INLINE vec larger(vec a, vec b) { return wasm_f32x4_pmax(a, b); }
INLINE vec negate(vec a) { return wasm_f32x4_neg(a); }
INLINE vec multiply_add(vec a, vec b, vec s) { return fused_add(a, b, s); }

INLINE vec load_part_or(const float *p, size_t n, vec rest) {
    if (n >= WIDTH) return load(p);
    float all[WIDTH];
    store(all, rest);
    memcpy(all, p, n * sizeof *all);
    return load(all);
}

INLINE vec load_part(const float *p, size_t n) { return load_part_or(p, n, set(0.0f)); }

INLINE void store_part(float *p, vec v, size_t n) {
    if (n >= WIDTH) {
        store(p, v);
    } else {
        float all[WIDTH];
        store(all, v);
        memcpy(p, all, n * sizeof *all);
    }
}

INLINE lanes load_tail(const float *p, size_t n) {
    float tail[LANES] = {0};
    lanes s;
    memcpy(tail, p, n * sizeof *tail);
    UNROLL for (int k = 0; k < REGISTERS; k++) s.v[k] = load(tail + k * WIDTH);
    return s;
}

INLINE vec clamp(vec x, vec low, vec high) { /* comparisons are false for NaN, which stays */
    x = wasm_v128_bitselect(low, x, wasm_f32x4_gt(low, x));
    return wasm_v128_bitselect(high, x, wasm_f32x4_lt(high, x));
}

INLINE vec zero_below(vec v, vec x, vec least) { return wasm_v128_andnot(v, wasm_f32x4_lt(x, least)); }

INLINE integers bits(vec v) { return v; }
INLINE integers set_integer(int32_t n) { return wasm_i32x4_splat(n); }
INLINE integers subtract_integers(integers a, integers b) { return wasm_i32x4_sub(a, b); }
INLINE integers half_of(integers n) { return wasm_i32x4_shr(n, 1); }
INLINE vec power_of_two(integers n) { return wasm_i32x4_shl(wasm_i32x4_add(n, wasm_i32x4_splat(127)), 23); }

/* Lanes i and i+2, i and i+1 of one register. */
INLINE float largest(vec v) {
    v = larger(v, wasm_i32x4_shuffle(v, v, 2, 3, 0, 1));
    v = larger(v, wasm_i32x4_shuffle(v, v, 1, 0, 3, 2));
    return wasm_f32x4_extract_lane(v, 0);
}

INLINE float sum_lanes(lanes s) {
    vec v = add(add(s.v[0], s.v[2]), add(s.v[1], s.v[3]));
    v = add(v, wasm_i32x4_shuffle(v, v, 2, 3, 0, 1));
    return wasm_f32x4_extract_lane(v, 0) + wasm_f32x4_extract_lane(v, 1);
}

#include "simd.h"

/* One weight row against up to three rows of x, whose weights are widened to doubles once. */
INLINE void dot_rows(float *out, size_t out_stride, const float *x, size_t x_stride, const float *w, size_t n, int rows) {
    lanes s[TILE_ROWS];
    size_t j = 0;
    UNROLL for (int r = 0; r < rows; r++) s[r] = zero();
    for (; j + LANES <= n; j += LANES) {
        lanes weights = load_lanes(w + j);
        UNROLL for (int r = 0; r < rows; r++)
            s[r] = multiply_add_lanes(weights, load_lanes(x + (size_t)r * x_stride + j), s[r]);
    }
    if (j < n) {
        lanes weights = load_tail(w + j, n - j);
        UNROLL for (int r = 0; r < rows; r++)
            s[r] = multiply_add_lanes(weights, load_tail(x + (size_t)r * x_stride + j, n - j), s[r]);
    }
    UNROLL for (int r = 0; r < rows; r++) out[(size_t)r * out_stride] = sum_lanes(s[r]);
}

INLINE void dot_tile(float *out, size_t out_step, size_t out_stride, const float *x, size_t x_stride, const float *w,
                     size_t w_stride, size_t n, const float *next, size_t n_next, int rows) {
    (void)next, (void)n_next;
    for (size_t i = 0; i < 4; i++) dot_rows(out + i * out_step, out_stride, x, x_stride, w + i * w_stride, n, rows);
}

const l2c_kernels l2c_kernels_simd128 = {
    .name = "simd128",
    L2C_SIMD_KERNELS,
    L2C_PLAIN_KERNELS,
    .f32_to_f16 = l2c_scalar_f32_to_f16,
    .f16_to_f32 = l2c_scalar_f16_to_f32,
    .quantize = l2c_simd128_quantize,
    .matmul_q8 = l2c_simd128_matmul_q8,
    .matmul_q4 = l2c_simd128_matmul_q4,
    .matmul_q4_1 = l2c_simd128_matmul_q4_1,
};
#endif
