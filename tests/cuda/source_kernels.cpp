/*
 * source_kernels.cpp - csrc/cuda's kernels, compiled by g++ for the emulator.
 */
#include "kernel_table.h"

#include "cuda/kernels.cu"

namespace {

template <class T, void (*KERNEL_FUNCTION)(T)> void call(const void *param) { KERNEL_FUNCTION(*(const T *)param); }

} // namespace

#define ENTRY(name, type) {"l2c_" #name, call<const type, l2c_##name>, sizeof(type)},
const kernel_entry kernel_table[L2C_GPU_N_KERNELS] = {L2C_GPU_KERNELS(ENTRY)};
