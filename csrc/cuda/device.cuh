/*
 * device.cuh - what nvcc has and g++ has not: here the one's, in tests/cuda/device_on_cpu.h the other's.
 *
 * Kernels and device functions keep to what gives the same bits on every card and in the emulator: fmaf, + - * /,
 * sqrtf, integers, exact conversions, shuffles and the tensor cores' integer products. nvcc is told --fmad=false, g++
 * -ffp-contract=off, so that nothing is fused but what says fmaf. Device functions are inlined, kernels have C names
 * and nothing is static in memory: other names carry a hash of the source's path into the PTX.
 */
#ifndef L2C_CUDA_DEVICE_CUH
#define L2C_CUDA_DEVICE_CUH

#include "params.h"

#define DEVICE static __device__ __forceinline__
#define DEVICE_METHOD __device__ __forceinline__

/* An entry point; its parameter is p. */
#define KERNEL(name, type, most_threads) \
    extern "C" __global__ void __launch_bounds__(most_threads, 1) l2c_##name(const __grid_constant__ type p)

enum { WARP = 32, LANES = L2C_GPU_LANES, STRIP = L2C_GPU_STRIP, CHUNK = L2C_GPU_CHUNK, TOKENS = L2C_GPU_TOKENS };
#define EVERY_LANE 0xFFFFFFFFu

#if defined(__CUDACC__)

#include <cuda_fp16.h>

#define UNROLL_ALL _Pragma("unroll")
#define UNROLL_BY_PRAGMA(text) _Pragma(#text)
#define UNROLL_BY(n) UNROLL_BY_PRAGMA(unroll n)

extern __shared__ __align__(16) unsigned char l2c_dynamic_shared[];
DEVICE unsigned char *shared_memory() { return l2c_dynamic_shared; }

/* Weights: read once a pass, by one warp, and never written while a kernel runs; so they need no place in L1. */
DEVICE uint4 load_weights(const uint4 *p) {
    uint4 v;
    asm("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
        : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
        : "l"(p));
    return v;
}
DEVICE uint2 load_weights(const uint2 *p) {
    uint2 v;
    asm("ld.global.nc.L1::no_allocate.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p));
    return v;
}

DEVICE float half_to_float(uint16_t half) { return __half2float(__ushort_as_half(half)); }
DEVICE uint16_t float_to_half(float x) { return __half_as_ushort(__float2half_rn(x)); }

/* d (16, 8) = a (16, 32) b (32, 8) + c, exact in 32 bits: one product of the tensor cores. params.h has the fragments.
 * All lanes take part: volatile keeps it where it stands, out of branches. */
DEVICE void multiply_int8(int d[4], uint4 a, uint2 b, const int c[4]) {
#if __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b.x), "r"(b.y), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]));
#else /* Turing has a quarter of it: 8 rows and 16 columns of a */
#define MULTIPLY_QUARTER(d0, d1, a_, b_, c0, c1)                                           \
    asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0,%1}, {%2}, {%3}, {%4,%5};" \
                 : "=r"(d0), "=r"(d1)                                                          \
                 : "r"(a_), "r"(b_), "r"(c0), "r"(c1))
    int t[4];
    MULTIPLY_QUARTER(t[0], t[1], a.x, b.x, c[0], c[1]);
    MULTIPLY_QUARTER(t[2], t[3], a.y, b.x, c[2], c[3]);
    MULTIPLY_QUARTER(d[0], d[1], a.z, b.y, t[0], t[1]);
    MULTIPLY_QUARTER(d[2], d[3], a.w, b.y, t[2], t[3]);
#undef MULTIPLY_QUARTER
#endif
}

/* Between the blocks of a persistent grid: writes before the one are seen after the other. */
DEVICE unsigned add_and_release(unsigned *counter, unsigned n) {
    unsigned old;
    asm volatile("atom.add.release.gpu.u32 %0, [%1], %2;" : "=r"(old) : "l"(counter), "r"(n) : "memory");
    return old;
}
DEVICE unsigned load_and_acquire(const unsigned *counter) {
    unsigned now;
    asm volatile("ld.acquire.gpu.u32 %0, [%1];" : "=r"(now) : "l"(counter) : "memory");
    return now;
}
/* For the host, in its memory: what was written before is seen by whoever sees this. */
DEVICE void store_for_host(volatile int *at, int x) {
    asm volatile("st.release.sys.u32 [%0], %1;" ::"l"(at), "r"(x) : "memory");
}
/* In a loop that waits for memory to change. */
DEVICE void look_again() {}

#else
#include "device_on_cpu.h"
#endif
#endif
