/*
 * resolve_emulated.c - lets every processor run the kernels that simde/immintrin.h or avxvnni/immintrin.h emulates: those
 * of the instruction set EMULATED. Linked with --wrap=l2c_isa_resolve.
 */
#include "llama2c.h"

l2c_status __real_l2c_isa_resolve(l2c_isa wanted, l2c_isa *isa, l2c_error *err);
l2c_status __wrap_l2c_isa_resolve(l2c_isa wanted, l2c_isa *isa, l2c_error *err);

l2c_status __wrap_l2c_isa_resolve(l2c_isa wanted, l2c_isa *isa, l2c_error *err) {
    if (wanted != EMULATED) return __real_l2c_isa_resolve(wanted, isa, err);
    *isa = wanted;
    return L2C_OK;
}
