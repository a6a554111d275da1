/*
 * arithmetic.cuh - csrc/kernels/kernels.h's definitions of single numbers and of sums, in the same steps.
 */
#ifndef L2C_CUDA_ARITHMETIC_CUH
#define L2C_CUDA_ARITHMETIC_CUH

extern "C" {
#include "../kernels/kernels.h"
#include "../kernels/quantized.h"
}
#include "device.cuh"

#define MINUS_INFINITY __uint_as_float(0xFF800000u)
#define LEAST_NORMAL __uint_as_float(0x00800000u) /* FLT_MIN */

DEVICE int bits_not_finite(unsigned bits) { return (bits & 0x7F800000u) == 0x7F800000u; }

DEVICE float power_of_two(int n) { return __uint_as_float(((unsigned)n + 127u) << 23); }

DEVICE float exp_of(float x) {
    if (x < L2C_EXP_LOW) return 0.0f;
    x = L2C_EXP_HIGH < x ? L2C_EXP_HIGH : x;
    float shifted = fmaf(x, L2C_EXP_LOG2E, L2C_EXP_ROUND);
    int n = (int)(__float_as_uint(shifted) - L2C_EXP_ROUND_BITS);
    float whole = shifted - L2C_EXP_ROUND;
    float r = fmaf(whole, -L2C_EXP_LN2_HIGH, x);
    r = fmaf(whole, -L2C_EXP_LN2_LOW, r);
    float p = fmaf(L2C_EXP_P5, r, L2C_EXP_P4);
    p = fmaf(p, r, L2C_EXP_P3);
    p = fmaf(p, r, L2C_EXP_P2);
    p = fmaf(p, r, L2C_EXP_P1);
    p = fmaf(p, r, L2C_EXP_P0);
    p = fmaf(p, r * r, r) + 1.0f;
    int half = n >> 1;
    return p * power_of_two(half) * power_of_two(n - half);
}

DEVICE float swiglu_of(float gate, float up) {
    float sigmoid = 1.0f / (1.0f + exp_of(-gate));
    return gate * sigmoid * up;
}

/* Where 16 neighbouring threads hold the lanes of a sum: their total, in all of them. */
template <class T> DEVICE T sum_lanes(T lane) {
    lane += __shfl_xor_sync(EVERY_LANE, lane, 8);
    lane += __shfl_xor_sync(EVERY_LANE, lane, 4);
    lane += __shfl_xor_sync(EVERY_LANE, lane, 2);
    lane += __shfl_xor_sync(EVERY_LANE, lane, 1);
    return lane;
}

/* The largest of a warp's. Which of two zeros it is matters to nobody: what is computed of it has no sign of zero. */
DEVICE float warp_max(float x) {
    UNROLL_ALL for (int half = WARP / 2; half > 0; half /= 2) {
        float other = __shfl_xor_sync(EVERY_LANE, x, half);
        x = other > x ? other : x;
    }
    return x;
}

/* The largest of a block's, in all threads; scratch: a float a warp, which nobody reads or writes at the same time. */
DEVICE float block_max(float x, float *scratch) {
    x = warp_max(x);
    if (threadIdx.x % WARP == 0) scratch[threadIdx.x / WARP] = x;
    __syncthreads();
    for (unsigned i = 0; i < blockDim.x / WARP; i++) x = scratch[i] > x ? scratch[i] : x;
    return x;
}

/* ---- Four neighbouring numbers of a matrix or cache, as they lie in memory and as floats ------------------ */

template <int TYPE> struct stored4 { /* F16, BF16 */
    typedef uint2 raw;
    enum { BYTES = 2 };
};
template <> struct stored4<L2C_GPU_F32> {
    typedef uint4 raw;
    enum { BYTES = 4 };
};

template <int TYPE> DEVICE float4 widen(uint2 v) {
    if (TYPE == L2C_GPU_F16)
        return float4{half_to_float((uint16_t)v.x), half_to_float((uint16_t)(v.x >> 16)), half_to_float((uint16_t)v.y),
                      half_to_float((uint16_t)(v.y >> 16))};
    return float4{__uint_as_float(v.x << 16), __uint_as_float(v.x & 0xFFFF0000u), __uint_as_float(v.y << 16),
                  __uint_as_float(v.y & 0xFFFF0000u)};
}
template <int TYPE> DEVICE float4 widen(uint4 v) {
    return float4{__uint_as_float(v.x), __uint_as_float(v.y), __uint_as_float(v.z), __uint_as_float(v.w)};
}

DEVICE void fma4(float4 &sum, float4 a, float4 b) {
    sum.x = fmaf(a.x, b.x, sum.x);
    sum.y = fmaf(a.y, b.y, sum.y);
    sum.z = fmaf(a.z, b.z, sum.z);
    sum.w = fmaf(a.w, b.w, sum.w);
}

/* Where 4 neighbouring threads hold 4 lanes of a sum each, thread t lanes 4 t to 4 t + 3: the total, in all of them. */
DEVICE float sum_lanes4(float4 lane) {
    UNROLL_ALL for (int half = 2; half > 0; half /= 2) { /* lanes i and i + 8, then i and i + 4 */
        lane.x += __shfl_xor_sync(EVERY_LANE, lane.x, half);
        lane.y += __shfl_xor_sync(EVERY_LANE, lane.y, half);
        lane.z += __shfl_xor_sync(EVERY_LANE, lane.z, half);
        lane.w += __shfl_xor_sync(EVERY_LANE, lane.w, half);
    }
    return (lane.x + lane.z) + (lane.y + lane.w);
}

#endif
