/*
 * device_on_cpu.h - the names that csrc/cuda/device.cuh takes from nvcc, on the emulator.
 */
#pragma once
#include <math.h>

#include "emulator.h"

#define __global__
#define l2c_attention l2c_attention_kernel /* csrc/attention.c has a function of this name */
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define UNROLL_ALL
#define UNROLL_BY(n)

struct float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};

#define threadIdx (emulator::dim3{emulator::current->thread, 0, 0})
#define blockIdx (emulator::current->of->index)
#define blockDim (emulator::dim3{emulator::block_size, 1, 1})
#define gridDim emulator::grid_size

inline unsigned char *shared_memory() { return emulator::current->of->shared; }
inline uint4 load_weights(const uint4 *p) { return *p; }
inline uint2 load_weights(const uint2 *p) { return *p; }
inline float half_to_float(uint16_t half) { return l2c_half_to_float(half); }
inline uint16_t float_to_half(float x) { return l2c_float_to_half(x); }

inline void multiply_int8(int d[4], uint4 a, uint2 b, const int c[4]) {
    const uint32_t a_words[4] = {a.x, a.y, a.z, a.w}, b_words[2] = {b.x, b.y};
    uint32_t c_words[4], result[4];
    memcpy(c_words, c, sizeof c_words);
    emulator::mma_m16n8k32(result, a_words, b_words, c_words);
    memcpy(d, result, sizeof result);
}

inline unsigned add_and_release(unsigned *counter, unsigned n) {
    unsigned old = *counter;
    *counter = old + n;
    return old;
}
inline unsigned load_and_acquire(const unsigned *counter) { return *(const volatile unsigned *)counter; }
inline void store_for_host(volatile int *at, int x) { *at = x; }
inline void look_again() { emulator::look_again(); }

inline void __syncthreads() { emulator::barrier(0); }
inline int __syncthreads_or(int predicate) { return emulator::barrier(predicate != 0); }
inline void __syncwarp() { emulator::sync_warp(); }
inline void __threadfence() {}

template <class To, class From> inline To same_bits(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
inline unsigned __float_as_uint(float x) { return same_bits<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return same_bits<float>(x); }
inline int __float_as_int(float x) { return same_bits<int>(x); }
inline float __int_as_float(int x) { return same_bits<float>(x); }

template <class T> inline T __shfl_sync(unsigned, T x, int lane) {
    if constexpr (sizeof(T) == 4) {
        return same_bits<T>(emulator::shuffle(same_bits<uint32_t>(x), (unsigned)lane));
    } else {
        uint64_t bits = same_bits<uint64_t>(x);
        uint64_t low = emulator::shuffle((uint32_t)bits, (unsigned)lane);
        uint64_t high = emulator::shuffle((uint32_t)(bits >> 32), (unsigned)lane);
        return same_bits<T>(high << 32 | low);
    }
}
template <class T> inline T __shfl_xor_sync(unsigned, T x, int mask) {
    return __shfl_sync(0, x, (int)emulator::current->lane ^ mask);
}
inline unsigned __ballot_sync(unsigned, int predicate) { return emulator::ballot(predicate != 0); }

template <class T> inline T atomicAdd(T *at, T x) {
    T old = *at;
    *at = old + x;
    return old;
}
