/*
 * cpu.c - which kernels this machine can run.
 *
 * CPUID says what the processor has; XGETBV says which registers the operating system saves when
 * it switches threads. Both are needed: wide registers that are not saved hold garbage. On ARM the
 * operating system tells.
 */
#include <string.h>

#include "float_env.h"
#include "internal.h"
#include "testing.h"

typedef struct {
    int avx2, fma, f16c, avx512f, avx512dq, avx512bw, avx512vl, avx512vnni, avxvnni, dotprod, i8mm;
} features;

#if defined(L2C_X86)
#include <cpuid.h>

static uint64_t saved_registers(void) {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

static features detect(void) {
    features f = {0};
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE)) return f;
    uint64_t saved = saved_registers();
    int ymm = (saved & 0x06) == 0x06; /* SSE and AVX state */
    int zmm = (saved & 0xE6) == 0xE6; /* and the AVX-512 masks and registers */
    f.fma = ymm && (c & bit_FMA);
    f.f16c = ymm && (c & bit_F16C);
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return f;
    f.avx2 = ymm && (b & bit_AVX2);
    f.avx512f = zmm && (b & bit_AVX512F);
    f.avx512dq = zmm && (b & bit_AVX512DQ);
    f.avx512bw = zmm && (b & bit_AVX512BW);
    f.avx512vl = zmm && (b & bit_AVX512VL);
    f.avx512vnni = zmm && (c & bit_AVX512VNNI);
    if (!__get_cpuid_count(7, 1, &a, &b, &c, &d)) return f;
    f.avxvnni = ymm && (a & 1 << 4);
    return f;
}
#elif defined(L2C_ARM) && defined(__linux__)
#include <sys/auxv.h>

static features detect(void) { /* HWCAP_ASIMDDP and HWCAP2_I8MM, which old headers lack */
    return (features){.dotprod = getauxval(AT_HWCAP) >> 20 & 1, .i8mm = getauxval(AT_HWCAP2) >> 13 & 1};
}
#elif defined(L2C_ARM) && defined(__APPLE__)
#include <sys/sysctl.h>

static int told(const char *name) {
    int value = 0;
    size_t size = sizeof value;
    return sysctlbyname(name, &value, &size, NULL, 0) == 0 && value != 0;
}

static features detect(void) {
    return (features){.dotprod = told("hw.optional.arm.FEAT_DotProd"), .i8mm = told("hw.optional.arm.FEAT_I8MM")};
}
#elif defined(L2C_ARM) && defined(_WIN32)
#include <windows.h>

static features detect(void) { /* PF_ARM_V82_DP_... and PF_ARM_V82_I8MM_INSTRUCTIONS_AVAILABLE, which old headers lack */
    return (features){.dotprod = IsProcessorFeaturePresent(43), .i8mm = IsProcessorFeaturePresent(66)};
}
#else
static features detect(void) { return (features){0}; }
#endif

static int available(l2c_isa isa) {
    features f = detect();
    switch (isa) {
    case L2C_ISA_AUTO:
    case L2C_ISA_SCALAR:
    case L2C_ISA_RUNQ: return 1;
    case L2C_ISA_AVX2: return f.avx2 && f.fma && f.f16c;
    case L2C_ISA_AVX512:
        return f.avx2 && f.fma && f.f16c && f.avx512f && f.avx512dq && f.avx512bw && f.avx512vl && f.avx512vnni;
    case L2C_ISA_AVXVNNI:
#if defined(L2C_AVXVNNI)
        return f.avx2 && f.fma && f.f16c && f.avxvnni;
#else
        return 0;
#endif
    case L2C_ISA_NEON:
#if defined(L2C_ARM)
        return 1;
#else
        return 0;
#endif
    case L2C_ISA_DOTPROD:
    case L2C_ISA_I8MM:
#if defined(L2C_ARM_DOTPROD)
        return f.dotprod && (f.i8mm || isa == L2C_ISA_DOTPROD);
#else
        return 0;
#endif
    case L2C_ISA_SIMD128:
#if defined(L2C_SIMD128)
        return 1;
#else
        return 0;
#endif
    }
    return 0;
}

l2c_status l2c_isa_resolve(l2c_isa wanted, l2c_isa *isa, l2c_error *err) {
    static const char *const names[] = {"auto", "scalar", "avx2", "avx512", "neon", "runq", "simd128",
                                        "avxvnni", "dotprod", "i8mm"};
    static const l2c_isa fastest_first[] = {L2C_ISA_AVX512, L2C_ISA_AVXVNNI, L2C_ISA_AVX2, L2C_ISA_I8MM,
                                            L2C_ISA_DOTPROD, L2C_ISA_NEON, L2C_ISA_SIMD128, L2C_ISA_SCALAR};
    if ((int)wanted < L2C_ISA_AUTO || wanted > L2C_ISA_I8MM)
        return l2c_fail(err, L2C_ARG, "unknown instruction set number %d", (int)wanted);
    for (const l2c_isa *next = fastest_first; wanted == L2C_ISA_AUTO; next++)
        if (available(*next)) wanted = *next;
    if (!available(wanted)) {
        char text[128];
        l2c_cpu_features(text, sizeof text);
        return l2c_fail(err, L2C_UNSUPPORTED, "this machine does not run the %s kernels; it has: %s",
                        names[wanted], text[0] ? text : "none of the features they need");
    }
    *isa = wanted;
    return L2C_OK;
}

static void append(char *text, size_t size, const char *word) {
    size_t used = strlen(text), need = strlen(word) + (used > 0);
    if (used + need + 1 > size) return;
    if (used > 0) strcat(text, " ");
    strcat(text, word);
}

void l2c_cpu_features(char *text, size_t size) {
    if (size == 0) return;
    text[0] = '\0';
    features f = detect();
    if (f.avx2) append(text, size, "avx2");
    if (f.fma) append(text, size, "fma");
    if (f.f16c) append(text, size, "f16c");
    if (f.avx512f) append(text, size, "avx512f");
    if (f.avx512dq) append(text, size, "avx512dq");
    if (f.avx512bw) append(text, size, "avx512bw");
    if (f.avx512vl) append(text, size, "avx512vl");
    if (f.avx512vnni) append(text, size, "avx512vnni");
    if (f.avxvnni) append(text, size, "avxvnni");
    if (f.dotprod) append(text, size, "dotprod");
    if (f.i8mm) append(text, size, "i8mm");
}

const l2c_kernels *l2c_kernels_for(l2c_isa isa) {
    switch (isa) {
#if defined(L2C_X86)
    case L2C_ISA_AVX512: return &l2c_kernels_avx512;
    case L2C_ISA_AVX2: return &l2c_kernels_avx2;
#if defined(L2C_AVXVNNI)
    case L2C_ISA_AVXVNNI: return &l2c_kernels_avxvnni;
#endif
#elif defined(L2C_ARM)
    case L2C_ISA_NEON: return &l2c_kernels_neon;
#if defined(L2C_ARM_DOTPROD)
    case L2C_ISA_DOTPROD: return &l2c_kernels_dotprod;
    case L2C_ISA_I8MM: return &l2c_kernels_i8mm;
#endif
#elif defined(L2C_SIMD128)
    case L2C_ISA_SIMD128: return &l2c_kernels_simd128;
#endif
    case L2C_ISA_RUNQ: return &l2c_kernels_runq;
    default: return &l2c_kernels_scalar;
    }
}

/* ---- Kernels by themselves ---------------------------------------------------------------------- */

#define AS_USUAL(call) do { l2c_float_env env = l2c_float_enter(); call; l2c_float_leave(env); } while (0)

void l2c_kernel_matmul(l2c_isa isa, float *out, const float *x, size_t n_rows, const float *w,
                       size_t n, size_t d) {
    AS_USUAL(l2c_kernels_for(isa)->matmul(out, d, x, n, n_rows, w, n, 0, d));
}

void l2c_kernel_exp(l2c_isa isa, float *out, const float *x, size_t n) { AS_USUAL(l2c_kernels_for(isa)->exp(out, x, n)); }

void l2c_kernel_softmax(l2c_isa isa, float *x, size_t n) { AS_USUAL(l2c_kernels_for(isa)->softmax(x, n)); }

void l2c_kernel_swiglu(l2c_isa isa, float *gate, const float *up, size_t n) {
    AS_USUAL(l2c_kernels_for(isa)->swiglu(gate, up, n));
}

void l2c_kernel_weighted_sum(l2c_isa isa, float *out, const float *weights, size_t n_rows, size_t step,
                             const float *values, size_t n, size_t width) {
    size_t most = n + (n_rows - 1) * step;
    for (size_t t = 0; t < most; t += L2C_SUM_BLOCK)
        AS_USUAL(l2c_kernels_for(isa)->weighted_sum(out, width, weights + t, most, n_rows, step, values + t * width,
                                                    (ptrdiff_t)n - (ptrdiff_t)t, width, t > 0));
}

void l2c_kernel_f32_to_f16(l2c_isa isa, uint16_t *out, const float *x, size_t n) {
    AS_USUAL(l2c_kernels_for(isa)->f32_to_f16(out, x, n));
}

void l2c_kernel_f16_to_f32(l2c_isa isa, float *out, const uint16_t *x, size_t n) {
    AS_USUAL(l2c_kernels_for(isa)->f16_to_f32(out, x, n));
}
