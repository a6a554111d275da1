// ptx_runtime.h - what translated PTX (translate_ptx.py) is written with: registers as bits, memory, and PTX's
// meaning of operations where C++ has another one or none. On the emulator.
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <type_traits>

#include "emulator.h"

extern "C" {
float l2c_half_to_float(uint16_t half);
uint16_t l2c_float_to_half(float value);
}

namespace ptx {

// What a card would trap on: the launch fails.
[[noreturn]] inline void fault(const char *what) {
    fprintf(stderr, "PTX: %s\n", what);
    emulator::diverged();
}

// ---- Registers hold bits; what they mean is each instruction's business ------------------------------------

template <class T, class R> inline T as(R bits) {
    if constexpr (std::is_floating_point_v<T> == std::is_floating_point_v<R>) return (T)bits;
    else {
        static_assert(sizeof(T) == sizeof(R));
        T value;
        memcpy(&value, &bits, sizeof value);
        return value;
    }
}
template <class R, class T> inline void put(R &to, T value) { to = as<R>(value); } // narrow ones extend by their sign

// ---- Memory ---------------------------------------------------------------------------------------------------

inline unsigned char *aligned(uint64_t address, unsigned bytes) {
    if (address % bytes != 0) fault("a misaligned address");
    return (unsigned char *)address;
}
inline uint64_t shared() { return (uint64_t)emulator::current->of->shared; } // where a block's shared memory begins
template <class T> inline T load(const unsigned char *at) {
    T value;
    memcpy(&value, at, sizeof value);
    return value;
}
template <class T> inline void store(unsigned char *at, T value) { memcpy(at, &value, sizeof value); }

// ---- Integers -------------------------------------------------------------------------------------------------

template <class T> inline T shift_left(T a, uint32_t n) { return n >= 8 * sizeof(T) ? 0 : (T)(a << n); }
template <class T> inline T shift_right(T a, uint32_t n) {
    return n >= 8 * sizeof(T) ? (T)(a < 0 ? -1 : 0) : (T)(a >> n);
}
template <class T> inline T divide(T a, T b) {
    if (b == 0) return (T)-1;
    return std::is_signed_v<T> && b == (T)-1 ? (T)(0 - (uint64_t)a) : (T)(a / b);
}
template <class T> inline T remainder(T a, T b) { return b == 0 ? a : (T)(a - (uint64_t)divide(a, b) * (uint64_t)b); }
template <class T> inline T multiply_high(T a, T b) {
    using wide = std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>;
    return (T)(((wide)a * (wide)b) >> 8 * sizeof(T));
}
template <class T> inline T insert_bits(T a, T b, uint32_t at, uint32_t n) { // the low n bits of a into b
    if (at >= 8 * sizeof(T)) return b;
    T ones = n >= 8 * sizeof(T) ? (T)~(T)0 : (T)(((T)1 << n) - 1);
    T mask = (T)(ones << at);
    return (T)((b & ~mask) | ((a << at) & mask));
}
template <class T> inline T extract_bits(T a, uint32_t at, uint32_t n) { // extended by the last bit where T has a sign
    T moved = at >= 8 * sizeof(T) ? shift_right(a, 63) : (T)(a >> at);
    if (n == 0) return 0;
    if (n >= 8 * sizeof(T)) return moved;
    unsigned up = 8 * sizeof(T) - n;
    return (T)((T)((std::make_unsigned_t<T>)moved << up) >> up);
}
inline uint32_t permute(uint32_t a, uint32_t b, uint32_t selector) {
    uint64_t bytes = (uint64_t)b << 32 | a;
    uint32_t result = 0;
    for (int i = 0; i < 4; i++) {
        uint32_t s = selector >> 4 * i & 15, byte = (uint32_t)(bytes >> 8 * (s & 7)) & 0xFF;
        result |= (s & 8 ? (byte & 0x80 ? 0xFFu : 0u) : byte) << 8 * i;
    }
    return result;
}
inline uint32_t funnel_left(uint32_t low, uint32_t high, uint32_t n) {
    return (uint32_t)(((uint64_t)high << 32 | low) << (n & 31) >> 32);
}
inline uint32_t funnel_right(uint32_t low, uint32_t high, uint32_t n) {
    return (uint32_t)(((uint64_t)high << 32 | low) >> (n & 31));
}

// To an integer, already rounded: out of range becomes the nearest there is, NaN 0.
template <class To, class From> inline To clamp_to(From x) {
    constexpr From limit = (From)((uint64_t)1 << (8 * sizeof(To) - std::is_signed_v<To>));
    if (x != x) return 0;
    if (x >= limit) return (To)(std::is_signed_v<To> ? ((uint64_t)1 << (8 * sizeof(To) - 1)) - 1 : ~(uint64_t)0);
    if (x < (std::is_signed_v<To> ? -limit : (From)0)) return (To)(std::is_signed_v<To> ? (uint64_t)1 << (8 * sizeof(To) - 1) : 0);
    return (To)x;
}

// ---- A warp together ------------------------------------------------------------------------------------------

inline uint32_t shuffle(uint32_t value, uint32_t from, uint32_t clamp, uint32_t members) {
    if (clamp != 31 || members != 0xFFFFFFFFu || from > 31) fault("a shuffle that is not of the whole warp");
    return emulator::shuffle(value, from);
}
inline uint32_t shuffle_xor(uint32_t value, uint32_t mask, uint32_t clamp, uint32_t members) {
    return shuffle(value, emulator::current->lane ^ mask, clamp, members);
}
inline void sync_warp(uint32_t members) {
    if (members != 0xFFFFFFFFu) fault("a barrier that is not of the whole warp");
    emulator::sync_warp();
}
inline uint32_t ballot(bool predicate, uint32_t members) {
    if (members != 0xFFFFFFFFu) fault("a vote that is not of the whole warp");
    return emulator::ballot(predicate);
}

} // namespace ptx
