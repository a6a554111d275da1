/*
 * test_fused.c - the fused multiply-add without an instruction gives what processors with one give.
 *
 * Their results are here as hashes, so that it is tested where no library can be trusted with fmaf, and no
 * instruction is.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "harness.h"
#include "kernels/fused.h"

#if defined(__wasm_simd128__)
#include "kernels/fused_simd128.h"
#endif

enum { ANY, NORMAL, DENORMAL, TIE, REST, SPECIAL, KINDS, CASES = KINDS * 80000, WIDTH = 4 };

typedef struct {
    float a, b, c;
} operands;

static operands cases[CASES];
static float results[CASES];

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
    float value = (float)random_below(random, most);
    return ldexpf(value, -(int)random_below(random, 90));
}

static float either(uint64_t *random, float x) { return random_below(random, 2) ? x : -x; }

/* A sum that lies, after c, half-way between two floats but for a rest that double has no bits for: rounded twice it
   goes the wrong way, every other time. The distance of floats at c is 2^(exponent + 1). */
static operands nearly_half_way(uint64_t *random, float c, int exponent) {
    float m = ldexpf((float)(1 + random_below(random, 60)), -23); /* (1 + m) (1 - m) is a bit less than 1 */
    int low = exponent / 2;
    float a = ldexpf(1.0f + m, low), b = ldexpf(1.0f - m, exponent - low);
    return (operands){either(random, a), b, c};
}

static operands make_case(uint64_t *random, int kind) {
    static const float special[] = {
        NAN, INFINITY, -INFINITY, 0.0f, -0.0f, 1.0f, -1.0f, 1e-45f, -1e-45f, FLT_MIN, FLT_MAX, -FLT_MAX,
    };
    enum { SPECIALS = sizeof special / sizeof *special };
    operands o = {0.0f, 0.0f, 0.0f}; /* drawn in statements of their own: the order of arguments is the compiler's */
    int exponent;
    switch (kind) {
    case ANY:
        o.a = float_of((uint32_t)random_next(random));
        o.b = float_of((uint32_t)random_next(random));
        o.c = float_of((uint32_t)random_next(random));
        break;
    case NORMAL: /* c of the product's size */
        o.a = with_exponent(random, 64, 126, 0x7FFFFF);
        o.b = with_exponent(random, 64, 126, 0x7FFFFF);
        o.c = (float)ldexp((double)o.a * o.b, random_below(random, 60) - 30);
        break;
    case DENORMAL: /* as a result */
        o.c = float_of((uint32_t)random_next(random) & 0x80FFFFFFu);
        if (random_below(random, 2)) return nearly_half_way(random, o.c, -150);
        o.a = with_exponent(random, 60, 8, 0x7FFFFF);
        o.b = with_exponent(random, 60, 8, 0x7FF000);
        break;
    case TIE:
        exponent = random_below(random, 120) - 60;
        if (random_below(random, 2)) {
            float c = (float)((1 << 23) + random_below(random, 1 << 23));
            return nearly_half_way(random, either(random, ldexpf(c, exponent + 1)), exponent);
        }
        o.a = (float)(2049 + 2 * random_below(random, 1023)); /* odd, 12 bits and 13: a product of 24 or 25 */
        o.b = either(random, ldexpf((float)(4097 + 2 * random_below(random, 2047)), exponent));
        o.c = either(random, ldexpf(1.0f, exponent - 10 - random_below(random, 60)));
        break;
    case REST: /* what is left of a product */
        o.a = whole(random, 4097);
        o.b = whole(random, 4097);
        o.c = -o.a * o.b;
        break;
    default:
        o.a = special[random_below(random, SPECIALS)];
        o.b = special[random_below(random, SPECIALS)];
        o.c = special[random_below(random, SPECIALS)];
    }
    return o;
}

/* ---- Ways to compute WIDTH results from i on ------------------------------------------------------- */

static void fused(int i) {
    for (int k = i; k < i + WIDTH; k++) results[k] = l2c_fused(cases[k].a, cases[k].b, cases[k].c);
}

static void rounded_twice(int i) {
    for (int k = i; k < i + WIDTH; k++) results[k] = (float)((double)cases[k].a * cases[k].b + cases[k].c);
}

#if defined(__x86_64__)
static int has_instruction(void) {
    l2c_isa isa;
    return l2c_isa_resolve(L2C_ISA_AVX2, &isa, NULL) == L2C_OK; /* which has it */
}

__attribute__((target("fma"))) static void instruction(int i) {
    for (int k = i; k < i + WIDTH; k++) results[k] = __builtin_fmaf(cases[k].a, cases[k].b, cases[k].c);
}
#elif defined(__aarch64__)
static int has_instruction(void) { return 1; }
static void instruction(int i) {
    for (int k = i; k < i + WIDTH; k++) results[k] = __builtin_fmaf(cases[k].a, cases[k].b, cases[k].c);
}
#endif

#if defined(__wasm_simd128__)
static void fused_in_simd128(int i) {
    const operands *o = cases + i;
    v128_t a = wasm_f32x4_make(o[0].a, o[1].a, o[2].a, o[3].a), b = wasm_f32x4_make(o[0].b, o[1].b, o[2].b, o[3].b);
    v128_t c = wasm_f32x4_make(o[0].c, o[1].c, o[2].c, o[3].c);
    wasm_v128_store(results + i, fused_add(a, b, c));
}
#endif

/* FNV-1a of all results of a kind. Which NaN it is, is the processor's. */
static uint64_t hash_of(int kind, void (*compute)(int i)) {
    uint64_t hash = 0xCBF29CE484222325u;
    for (int i = 0; i < CASES; i += WIDTH) compute(i);
    for (int i = kind; i < CASES; i += KINDS) {
        uint32_t bits = isnan(results[i]) ? 0x7FC00000u : bits_of(results[i]);
        for (int k = 0; k < 32; k += 8) hash = (hash ^ (bits >> k & 255)) * 0x100000001B3u;
    }
    return hash;
}

void test_fused(void) {
    /* vfmadd of x86-64 */
    static const uint64_t expected[KINDS] = {
        [ANY] = 0xF5ECBE9C658ACD82, [NORMAL] = 0xC1EB103A866C354F, [DENORMAL] = 0x2B601FEB08AA0588,
        [TIE] = 0xD2104E4487C4F4A9, [REST] = 0xFF08C0E7D6B376A5, [SPECIAL] = 0xB948CCA2EF18F258,
    };
    uint64_t random = 71;
    for (int i = 0; i < CASES; i++) cases[i] = make_case(&random, i % KINDS);
    for (int kind = 0; kind < KINDS; kind++) {
#if defined(__x86_64__) || defined(__aarch64__)
        if (has_instruction()) CHECK(hash_of(kind, instruction) == expected[kind]);
#endif
        CHECK(hash_of(kind, fused) == expected[kind]);
#if defined(__wasm_simd128__)
        CHECK(hash_of(kind, fused_in_simd128) == expected[kind]);
#endif
        /* The cases can tell. */
        if (kind == DENORMAL || kind == TIE) CHECK(hash_of(kind, rounded_twice) != expected[kind]);
    }
}
