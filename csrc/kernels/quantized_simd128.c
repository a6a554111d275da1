/*
 * quantized_simd128.c - the integer kernels in WebAssembly's SIMD.
 *
 * i32x4.dot_i16x8_s multiplies 8 int16 and adds neighbours: 4 int32 sums of two products. Bytes are widened
 * before it, 16 of them (4 rows x 4 columns) to two registers, of rows 0 and 1 and of rows 2 and 3, so that a row
 * has two sums in a register. They are added once a group. An int32 takes at most 512 * 128 * 127 of the longest
 * group; int4's weights are 0 to 15 as they lie, plus 8, and 8 times the sum of x is taken off after, or the
 * minimum times that sum is added (Q4_1).
 */
#include "quantized.h"

#if defined(L2C_SIMD128)
#include <math.h>
#include <string.h>

#include "fused_simd128.h"

/* ---- Activations ---------------------------------------------------------------------------- */

/* A whole group of a multiple of 16 values. */
INLINE void quantize_group(int8_t *q, float *scale, int32_t *sum, const float *x, size_t group) {
    v128_t most = wasm_i32x4_splat(0);
    for (size_t i = 0; i < group; i += 4)
        most = wasm_u32x4_max(most, wasm_v128_and(wasm_v128_load(x + i), wasm_i32x4_splat(0x7FFFFFFF)));
    most = wasm_u32x4_max(most, wasm_i32x4_shuffle(most, most, 2, 3, 0, 1));
    most = wasm_u32x4_max(most, wasm_i32x4_shuffle(most, most, 1, 0, 3, 2));
    uint32_t bits = (uint32_t)wasm_i32x4_extract_lane(most, 0);
    float largest;
    memcpy(&largest, &bits, sizeof largest);
    int usable = bits < 0x7F800000u && largest >= L2C_QUANTIZE_LEAST;
    *scale = bits >= 0x7F800000u ? NAN : usable ? largest / 127.0f : 0.0f;
    *sum = 0;
    if (!usable) {
        memset(q, 0, group);
        return;
    }
    v128_t inverse = wasm_f32x4_splat(127.0f / largest), sums = wasm_i32x4_splat(0);
    for (size_t i = 0; i < group; i += 16) {
        v128_t v[4];
        UNROLL for (int k = 0; k < 4; k++) {
            v128_t shifted = wasm_f32x4_add(wasm_f32x4_mul(wasm_v128_load(x + i + 4 * k), inverse),
                                            wasm_f32x4_splat(L2C_QUANTIZE_ROUND));
            v[k] = wasm_i32x4_sub(shifted, wasm_f32x4_splat(L2C_QUANTIZE_ROUND));
            sums = wasm_i32x4_add(sums, v[k]);
        }
        v128_t low = wasm_i16x8_narrow_i32x4(v[0], v[1]), high = wasm_i16x8_narrow_i32x4(v[2], v[3]);
        wasm_v128_store(q + i, wasm_i8x16_narrow_i16x8(low, high));
    }
    sums = wasm_i32x4_add(sums, wasm_i32x4_shuffle(sums, sums, 2, 3, 0, 1));
    *sum = wasm_i32x4_extract_lane(sums, 0) + wasm_i32x4_extract_lane(sums, 1);
}

void l2c_simd128_quantize(const l2c_quantized *to, size_t row, const float *x, size_t n) {
    size_t group = to->group, groups = to->width / group;
    if (group % 16 != 0 || n != to->width) {
        l2c_scalar_quantize(to, row, x, n);
        return;
    }
    for (size_t g = 0; g < groups; g++)
        quantize_group(to->q + row * to->width + g * group, &to->scales[row * groups + g],
                       &to->sums[row * groups + g], x + g * group, group);
}

/* ---- Products -------------------------------------------------------------------------------- */

enum { PARTS = 4, TILE = 2, AT_ONCE = 1, COLUMNS = 4 }; /* quantized_tiles.h */
#define UNROLL_STORES UNROLL

typedef v128_t vec;

INLINE vec set(float x) { return wasm_f32x4_splat(x); }
INLINE vec load(const float *p) { return wasm_v128_load(p); }
INLINE void store(float *p, vec v) { wasm_v128_store(p, v); }
INLINE vec multiply(vec a, vec b) { return wasm_f32x4_mul(a, b); }
INLINE vec multiply_add(vec a, vec b, vec s) { return fused_add(a, b, s); }

INLINE vec load_halves(const uint16_t *p) {
    float four[4];
    l2c_scalar_f16_to_f32(four, p, 4);
    return wasm_v128_load(four);
}

typedef struct {
    v128_t low, high; /* weights of rows 0 and 1, 2 and 3 as int16; sums of two products, a row's two side by side */
} weights_8, sums_8, sums_4;
typedef struct {
    v128_t low, high; /* halves of the bytes */
} weights_4;

INLINE weights_8 widen(v128_t bytes) {
    return (weights_8){wasm_i16x8_extend_low_i8x16(bytes), wasm_i16x8_extend_high_i8x16(bytes)};
}

INLINE sums_8 dot_add(sums_8 s, weights_8 weights, const int8_t *q) {
    v128_t xj = wasm_i16x8_extend_low_i8x16(wasm_v128_load32_splat(q)); /* four bytes of x, twice */
    s.low = wasm_i32x4_add(s.low, wasm_i32x4_dot_i16x8(weights.low, xj));
    s.high = wasm_i32x4_add(s.high, wasm_i32x4_dot_i16x8(weights.high, xj));
    return s;
}

INLINE v128_t of_rows(sums_8 s) {
    return wasm_i32x4_add(wasm_i32x4_shuffle(s.low, s.high, 0, 2, 4, 6), wasm_i32x4_shuffle(s.low, s.high, 1, 3, 5, 7));
}

INLINE weights_8 load_8(const unsigned char *data) { return widen(wasm_v128_load(data)); }

INLINE sums_8 begin_8(int32_t x_sum) {
    (void)x_sum;
    return (sums_8){wasm_i32x4_splat(0), wasm_i32x4_splat(0)};
}

INLINE sums_8 step_8(sums_8 s, weights_8 weights, const l2c_quantized *x, size_t at) {
    return dot_add(s, weights, x->q + at);
}

INLINE vec end_8(sums_8 s, int t) {
    (void)t;
    return wasm_f32x4_convert_i32x4(of_rows(s));
}

INLINE weights_4 load_4(const unsigned char *data) {
    v128_t both = wasm_v128_load(data);
    return (weights_4){wasm_v128_and(both, wasm_i8x16_splat(15)), wasm_u8x16_shr(both, 4)};
}

INLINE sums_4 begin_4(int32_t offset) {
    (void)offset;
    return begin_8(0);
}

INLINE sums_4 step_4(sums_4 s, weights_4 weights, const l2c_quantized *x, size_t at) {
    s = dot_add(s, widen(weights.low), x->q + at);
    return dot_add(s, widen(weights.high), x->q + at + 16);
}

INLINE vec end_4(sums_4 s, int t, int32_t offset) {
    (void)t;
    return wasm_f32x4_convert_i32x4(wasm_i32x4_add(wasm_i32x4_splat(offset), of_rows(s)));
}

#include "quantized_tiles.h"

INTEGER_MATMULS(simd128)
#endif
