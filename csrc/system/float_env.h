/*
 * float_env.h - the processor's floating-point settings, set aside while the library computes.
 *
 * A host program may round upwards, or flush denormals to zero (-ffast-math does so to a whole process);
 * threads inherit it from whoever starts them. Results are defined by the default: to nearest, denormals
 * kept, no traps. So every call that computes begins with l2c_float_enter and ends with l2c_float_leave,
 * and workers begin with the first for good.
 */
#ifndef L2C_FLOAT_ENV_H
#define L2C_FLOAT_ENV_H

#include <stdint.h>

#if defined(__x86_64__)
typedef uint32_t l2c_float_env; /* MXCSR */

static inline l2c_float_env l2c_float_enter(void) {
    l2c_float_env before, normal = 0x1F80;
    __asm__ volatile("stmxcsr %0" : "=m"(before));
    __asm__ volatile("ldmxcsr %0" : : "m"(normal) : "memory");
    return before;
}

static inline void l2c_float_leave(l2c_float_env before) {
    __asm__ volatile("ldmxcsr %0" : : "m"(before) : "memory");
}
#elif defined(__aarch64__)
typedef uint64_t l2c_float_env; /* FPCR */

static inline l2c_float_env l2c_float_enter(void) {
    l2c_float_env before, normal = 0;
    __asm__ volatile("mrs %0, fpcr" : "=r"(before));
    __asm__ volatile("msr fpcr, %0" : : "r"(normal) : "memory");
    return before;
}

static inline void l2c_float_leave(l2c_float_env before) {
    __asm__ volatile("msr fpcr, %0" : : "r"(before) : "memory");
}
#else
#include <fenv.h>
typedef fenv_t l2c_float_env;

static inline l2c_float_env l2c_float_enter(void) {
    l2c_float_env before;
    fegetenv(&before);
    fesetenv(FE_DFL_ENV);
    return before;
}

static inline void l2c_float_leave(l2c_float_env before) { fesetenv(&before); }
#endif

#endif
