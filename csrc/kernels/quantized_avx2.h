/*
 * quantized_avx2.h - quantized_tiles.h's definitions that AVX2 and AVX-VNNI have in common.
 */

enum { PARTS = 2, TILE = 4, AT_ONCE = 1, COLUMNS = 4 };
#define UNROLL_STORES

typedef __m256 vec;

INLINE vec set(float x) { return _mm256_set1_ps(x); }
INLINE vec load(const float *p) { return _mm256_load_ps(p); }
INLINE vec load_halves(const uint16_t *p) { return _mm256_cvtph_ps(_mm_load_si128((const __m128i *)p)); }
INLINE void store(float *p, vec v) { _mm256_storeu_ps(p, v); }
INLINE vec multiply(vec a, vec b) { return _mm256_mul_ps(a, b); }
INLINE vec multiply_add(vec a, vec b, vec s) { return _mm256_fmadd_ps(a, b, s); }

INLINE __m256i load_bytes(const unsigned char *data) { return _mm256_load_si256((const __m256i *)data); }

INLINE __m256i broadcast(const void *four_bytes) {
    int32_t value;
    memcpy(&value, four_bytes, sizeof value);
    return _mm256_set1_epi32(value);
}

typedef struct {
    __m256i low, high;
} weights_4;

INLINE weights_4 load_4(const unsigned char *data) {
    const __m256i half = _mm256_set1_epi8(15);
    __m256i both = load_bytes(data);
    return (weights_4){_mm256_and_si256(both, half), _mm256_and_si256(_mm256_srli_epi16(both, 4), half)};
}
