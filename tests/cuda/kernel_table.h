/*
 * kernel_table.h - the kernels by number, as the emulator calls them: those compiled from csrc/cuda by g++
 * (source_kernels.cpp), or those translated from the PTX.
 */
#pragma once
#include <stddef.h>

#include "cuda/params.h"

struct kernel_entry {
    const char *name;
    void (*run)(const void *param);
    size_t param_bytes;
};

extern const kernel_entry kernel_table[L2C_GPU_N_KERNELS];
