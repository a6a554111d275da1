/*
 * immintrin.h - stands in for the compiler's where kernels/avx512.c and quantized_avx512.c are built
 * for processors without AVX-512: SIMDe computes their instructions with SSE2 or plain C.
 *
 * What Debian's SIMDe 0.7.4 lacks is below, a loop over lanes each, straight from Intel's description;
 * and so is fmadd, which SIMDe rounds twice where the compiler may not use FMA. Masked loads and
 * stores touch the chosen lanes only, so that a guard page behind the others stays untouched.
 */
#ifndef TESTS_SIMDE_IMMINTRIN_H
#define TESTS_SIMDE_IMMINTRIN_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>

/* The kernels ask gcc, by a pragma, for real AVX-512; this hides gcc from the `#if` around it. */
#undef __GNUC__

#define LANEWISE static inline __attribute__((always_inline, unused))
#define EACH_LANE for (int i = 0; i < 16; i++)

/* SIMDe has these without an alias, or gets them in a later version. */
#undef _mm512_shuffle_f32x4
#undef _mm512_fmadd_ps
#undef _mm512_cvtss_f32
#undef _mm512_reduce_max_ps
#undef _mm512_cvtepi32_ps
#undef _mm512_srai_epi32
#undef _mm512_permute_ps
#undef _mm512_mask_loadu_ps
#undef _mm512_maskz_loadu_ps
#undef _mm512_mask_storeu_ps
#undef _mm512_cvtph_ps
#define _mm512_shuffle_f32x4 simde_mm512_shuffle_f32x4
typedef simde__mmask16 __mmask16;

typedef union {
    __m512 v;
    __m512i integers;
    float f[16];
    int32_t i32[16];
} lanes_512;

LANEWISE __m512 _mm512_fmadd_ps(__m512 a, __m512 b, __m512 c) {
    lanes_512 x = {.v = a}, y = {.v = b}, z = {.v = c};
    EACH_LANE z.f[i] = fmaf(x.f[i], y.f[i], z.f[i]);
    return z.v;
}

LANEWISE float _mm512_cvtss_f32(__m512 a) { return ((lanes_512){.v = a}).f[0]; }

LANEWISE float _mm512_reduce_max_ps(__m512 a) {
    lanes_512 x = {.v = a};
    EACH_LANE x.f[0] = x.f[0] > x.f[i] ? x.f[0] : x.f[i];
    return x.f[0];
}

LANEWISE __m512 _mm512_cvtepi32_ps(__m512i a) {
    lanes_512 x = {.integers = a};
    EACH_LANE x.f[i] = (float)x.i32[i];
    return x.v;
}

LANEWISE __m512i _mm512_srai_epi32(__m512i a, unsigned n) {
    lanes_512 x = {.integers = a};
    EACH_LANE x.i32[i] >>= n > 31 ? 31 : n;
    return x.integers;
}

LANEWISE __m512 _mm512_permute_ps(__m512 a, int control) { /* within each 4 */
    lanes_512 x = {.v = a}, out;
    EACH_LANE out.f[i] = x.f[i / 4 * 4 + (control >> i % 4 * 2 & 3)];
    return out.v;
}

LANEWISE __m512 _mm512_mask_loadu_ps(__m512 otherwise, __mmask16 mask, const void *from) {
    lanes_512 x = {.v = otherwise};
    EACH_LANE if (mask >> i & 1) memcpy(&x.f[i], (const float *)from + i, sizeof(float));
    return x.v;
}

LANEWISE __m512 _mm512_maskz_loadu_ps(__mmask16 mask, const void *from) {
    return _mm512_mask_loadu_ps(_mm512_setzero_ps(), mask, from);
}

LANEWISE void _mm512_mask_storeu_ps(void *to, __mmask16 mask, __m512 a) {
    lanes_512 x = {.v = a};
    EACH_LANE if (mask >> i & 1) memcpy((float *)to + i, &x.f[i], sizeof(float));
}

/* Not with l2c_half_to_float, which is what the kernels are compared with. */
LANEWISE __m512 _mm512_cvtph_ps(__m256i a) {
    uint16_t half[16];
    lanes_512 x;
    memcpy(half, &a, sizeof half);
    EACH_LANE {
        int exponent = half[i] >> 10 & 31, fraction = half[i] & 1023;
        float magnitude = exponent == 31 ? (fraction ? NAN : INFINITY)
                        : exponent == 0  ? ldexpf((float)fraction, -24)
                                         : ldexpf((float)(1024 + fraction), exponent - 25);
        x.f[i] = half[i] >> 15 ? -magnitude : magnitude;
    }
    return x.v;
}

#endif
