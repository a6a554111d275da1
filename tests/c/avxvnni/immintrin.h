/*
 * immintrin.h - stands in for the compiler's where kernels/quantized_avxvnni.c is built for processors without AVX-VNNI:
 * its one instruction in plain C, straight from Intel's description.
 */
#ifndef TESTS_AVXVNNI_IMMINTRIN_H
#define TESTS_AVXVNNI_IMMINTRIN_H

#include_next <immintrin.h>
#include <stdint.h>
#include <string.h>

/* The kernels ask gcc, by a pragma, for real AVX-VNNI, which it may use of its own accord as well; this hides gcc from
 * the `#if` around it. */
#undef __GNUC__

static inline __m256i vpdpbusd(__m256i sum, __m256i a, __m256i b) {
    uint32_t s[8]; /* which wrap around */
    uint8_t x[32];
    int8_t y[32];
    memcpy(s, &sum, sizeof s);
    memcpy(x, &a, sizeof x);
    memcpy(y, &b, sizeof y);
    for (int i = 0; i < 32; i++) s[i / 4] += (uint32_t)(x[i] * y[i]);
    memcpy(&sum, s, sizeof sum);
    return sum;
}

#define _mm256_dpbusd_avx_epi32 vpdpbusd

#endif
