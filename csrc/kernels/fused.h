/*
 * fused.h - a * b + c in float32, rounded once, on processors without an instruction for it.
 *
 * The product of two floats is exact in double. Its sum with c is not always; rounding that to float would
 * round twice, and wrongly where the double lies half-way between two floats (or, below FLT_MIN, between two
 * denormals). So the double is rounded to odd first: where the sum is inexact and its last bit is even, it
 * becomes the neighbour on the other side of the exact value, which is never half-way. 53 bits are enough
 * for that: Boldo and Melquiond, "Emulation of FMA and correctly rounded sums: proved algorithms using
 * rounding to odd", IEEE Transactions on Computers 57 (2008). The error of the sum is Knuth's TwoSum.
 *
 * libm's fmaf is not to be trusted with it: several are wrong where the result is denormal, others slow.
 */
#ifndef L2C_FUSED_H
#define L2C_FUSED_H

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

/* How a double lies just before it is rounded to float. */
enum { L2C_BELOW_FLOAT = 0x1FFFFFFF, L2C_HALF_WAY = 0x10000000 };

static inline float l2c_fused(float a, float b, float c) {
    double p = (double)a * b, s = p + c;
    uint64_t bits;
    memcpy(&bits, &s, sizeof bits);
    if ((bits & L2C_BELOW_FLOAT) != L2C_HALF_WAY && fabs(s) >= FLT_MIN) return (float)s;
    double of_c = s - p, error = (p - (s - of_c)) + (c - of_c);
    if ((error < 0 || error > 0) && (bits & 1) == 0) { /* NaN, from infinity, stays out */
        bits += (error > 0) == (s > 0) ? 1 : (uint64_t)-1;
        memcpy(&s, &bits, sizeof s);
    }
    return (float)s;
}

/* FP_FAST_FMAF: the compiler makes fmaf one instruction. */
#if defined(__FP_FAST_FMAF) || defined(FP_FAST_FMAF)
#define L2C_FMAF fmaf
#else
#define L2C_FMAF l2c_fused
#endif

#endif
