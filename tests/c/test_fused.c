/*
 * test_fused.c - the fused multiply-add without an instruction, against the C library's.
 */
#include <math.h>
#include <string.h>

#include "harness.h"
#include "kernels/fused.h"

static float float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* Any exponent from `low` on, of `n`. */
static float with_exponent(uint64_t *random, uint32_t low, uint32_t n, uint32_t mantissa) {
    uint32_t exponent = low + (uint32_t)random_below(random, (int32_t)n);
    return float_of(((uint32_t)random_next(random) & (0x80000000u | mantissa)) | exponent << 23);
}

static float whole(uint64_t *random, int most) {
    return ldexpf((float)random_below(random, most), -(int)random_below(random, 90));
}

void test_fused(void) {
    enum { ROUNDS = 400000, SPECIAL = 12 };
    static const float special[SPECIAL] = {
        NAN, INFINITY, -INFINITY, 0.0f, -0.0f, 1.0f, -1.0f, 1e-45f, -1e-45f, FLT_MIN, FLT_MAX, -FLT_MAX,
    };
    uint64_t random = 71;
    for (int i = 0; i < ROUNDS; i++) {
        float a, b, c;
        switch (i % 6) {
        case 0: /* any bits */
            a = float_of((uint32_t)random_next(&random)), b = float_of((uint32_t)random_next(&random));
            c = float_of((uint32_t)random_next(&random));
            break;
        case 1: /* a sum of the product's size */
            a = with_exponent(&random, 64, 126, 0x7FFFFF), b = with_exponent(&random, 64, 126, 0x7FFFFF);
            c = (float)ldexp((double)a * b, (int)random_below(&random, 60) - 30);
            break;
        case 2: /* a denormal result */
            a = with_exponent(&random, 60, 8, 0x7FFFFF), b = with_exponent(&random, 60, 8, 0x7FF000);
            c = float_of((uint32_t)random_next(&random) & 0x80FFFFFFu);
            break;
        case 3: /* half-way between two floats, or nearly */
            a = with_exponent(&random, 127, 1, 0xFFFF), b = with_exponent(&random, 127, 1, 0xFFF);
            c = ldexpf((float)random_below(&random, 64), (int)random_below(&random, 50) - 25);
            break;
        case 4: /* what is left of a product */
            a = whole(&random, 4097), b = whole(&random, 4097), c = -a * b;
            break;
        default:
            a = special[random_below(&random, SPECIAL)], b = special[random_below(&random, SPECIAL)];
            c = special[random_below(&random, SPECIAL)];
        }
        float fused = l2c_fused(a, b, c), expected = fmaf(a, b, c);
        CHECK(bits_of(fused) == bits_of(expected) || (isnan(fused) && isnan(expected)));
    }
}
