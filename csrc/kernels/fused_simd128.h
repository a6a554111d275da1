/*
 * fused_simd128.h - fused.h's a * b + c for four floats at a time, in WebAssembly's SIMD.
 */
#ifndef L2C_FUSED_SIMD128_H
#define L2C_FUSED_SIMD128_H

#include <float.h>
#include <wasm_simd128.h>

#include "fused.h"

#define INLINE static inline __attribute__((always_inline))

/* The upper two of four floats as doubles. */
INLINE v128_t promote_high(v128_t x) { return wasm_f64x2_promote_low_f32x4(wasm_i64x2_shuffle(x, x, 1, 0)); }

/* Two sums p + c, rounded to odd. */
INLINE v128_t add_to_odd(v128_t p, v128_t c) {
    v128_t s = wasm_f64x2_add(p, c), of_c = wasm_f64x2_sub(s, p), zero = wasm_f64x2_splat(0.0);
    v128_t error = wasm_f64x2_add(wasm_f64x2_sub(p, wasm_f64x2_sub(s, of_c)), wasm_f64x2_sub(c, of_c));
    v128_t above = wasm_f64x2_gt(error, zero), inexact = wasm_v128_or(above, wasm_f64x2_lt(error, zero));
    v128_t even = wasm_i64x2_eq(wasm_v128_and(s, wasm_i64x2_splat(1)), wasm_i64x2_splat(0));
    /* 1 where the error has the sign of s, else -1 */
    v128_t differ = wasm_v128_xor(above, wasm_f64x2_gt(s, zero)), step = wasm_v128_or(differ, wasm_i64x2_splat(1));
    return wasm_i64x2_add(s, wasm_v128_and(step, wasm_v128_and(inexact, even)));
}

INLINE v128_t demote(v128_t low, v128_t high) {
    return wasm_i64x2_shuffle(wasm_f32x4_demote_f64x2_zero(low), wasm_f32x4_demote_f64x2_zero(high), 0, 2);
}

/* What fused_add does where its shortcut may not be taken: rarely. */
static __attribute__((noinline)) v128_t fused_exactly(v128_t p_low, v128_t p_high, v128_t c) {
    return demote(add_to_odd(p_low, wasm_f64x2_promote_low_f32x4(c)), add_to_odd(p_high, promote_high(c)));
}

INLINE v128_t fused_add(v128_t a, v128_t b, v128_t c) {
    v128_t p_low = wasm_f64x2_mul(wasm_f64x2_promote_low_f32x4(a), wasm_f64x2_promote_low_f32x4(b));
    v128_t p_high = wasm_f64x2_mul(promote_high(a), promote_high(b));
    v128_t low = wasm_f64x2_add(p_low, wasm_f64x2_promote_low_f32x4(c));
    v128_t high = wasm_f64x2_add(p_high, promote_high(c));
    v128_t rounded = demote(low, high), cut = wasm_i32x4_shuffle(low, high, 0, 2, 4, 6);
    v128_t half_way = wasm_i32x4_eq(wasm_v128_and(cut, wasm_i32x4_splat(L2C_BELOW_FLOAT)), wasm_i32x4_splat(L2C_HALF_WAY));
    v128_t small = wasm_f32x4_lt(wasm_f32x4_abs(rounded), wasm_f32x4_splat(FLT_MIN));
    if (__builtin_expect(wasm_v128_any_true(wasm_v128_or(half_way, small)), 0)) return fused_exactly(p_low, p_high, c);
    return rounded;
}

#endif
