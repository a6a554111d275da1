// source.cpp - level 1: the kernels of csrc/cuda/kernels.cu as g++ compiles them, for fake_cuda.
#include "../../../csrc/cuda/kernels.cu"

#include "texts.h"

#define CALL(name, type) \
    static void call_##name(const void *params) { l2c_##name(*(const type *)params); }
L2C_GPU_KERNELS(CALL)

#define ROW(name, type) {"l2c_" #name, call_##name, sizeof(type)},
static const FakeKernel kernels[] = {L2C_GPU_KERNELS(ROW)};

const FakeText fake_texts[] = {{0, kernels, sizeof kernels / sizeof *kernels}};
const size_t fake_n_texts = 1;
