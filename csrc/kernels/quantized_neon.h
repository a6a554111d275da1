/*
 * quantized_neon.h - quantized_tiles.h's definitions that 64-bit ARM's instruction sets have in common.
 *
 * A register of weights holds 4 rows x 4 columns of bytes, one of x the same 4 columns four times.
 */

enum { PARTS = 4 };
#define UNROLL_STORES UNROLL

typedef float32x4_t vec;

INLINE vec set(float x) { return vdupq_n_f32(x); }
INLINE vec load(const float *p) { return vld1q_f32(p); }
INLINE vec load_halves(const uint16_t *p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
INLINE void store(float *p, vec v) { vst1q_f32(p, v); }
INLINE vec multiply(vec a, vec b) { return vmulq_f32(a, b); }
INLINE vec multiply_add(vec a, vec b, vec s) { return vfmaq_f32(s, a, b); }

INLINE int8x16_t broadcast(const int8_t *four_bytes) {
    int32_t value;
    memcpy(&value, four_bytes, sizeof value);
    return vreinterpretq_s8_s32(vdupq_n_s32(value));
}

/* Weights of 4 bits, one half of each byte in `low`. */
typedef struct {
    int8x16_t low, high;
} halves;

INLINE halves split(uint8x16_t both) {
    return (halves){vreinterpretq_s8_u8(vandq_u8(both, vdupq_n_u8(15))), vreinterpretq_s8_u8(vshrq_n_u8(both, 4))};
}
