/*
 * resolve.c - lets every processor run the AVX-512 kernels, which simde/immintrin.h emulates. Linked
 * with --wrap=l2c_isa_resolve.
 */
#include "llama2c.h"

l2c_status __real_l2c_isa_resolve(l2c_isa wanted, l2c_isa *isa, l2c_error *err);
l2c_status __wrap_l2c_isa_resolve(l2c_isa wanted, l2c_isa *isa, l2c_error *err);

l2c_status __wrap_l2c_isa_resolve(l2c_isa wanted, l2c_isa *isa, l2c_error *err) {
    if (wanted != L2C_ISA_AVX512) return __real_l2c_isa_resolve(wanted, isa, err);
    *isa = wanted;
    return L2C_OK;
}
