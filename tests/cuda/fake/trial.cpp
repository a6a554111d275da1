// trial.cpp - small kernels to try fake_cuda itself with (test_fake_cuda.py).
#include "../../../csrc/cuda/arithmetic.cuh"
#include "texts.h"

struct Trial { // of every kernel here
    unsigned *out; // (n)
    int n;
};

// out[i] += i + 1
static void add(const void *params) {
    const Trial &p = *(const Trial *)params;
    int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < p.n) p.out[i] += (unsigned)i + 1;
}
static void reach_past(const void *params) {
    const Trial &p = *(const Trial *)params;
    if (threadIdx.x == 0) p.out[(p.n + 63) / 64 * 64] = 1; // memory is given out in multiples of 256 bytes
}
static void wait_for_nobody(const void *params) {
    const Trial &p = *(const Trial *)params;
    if (threadIdx.x == 0)
        while (load_and_acquire(p.out) != 7) look_again();
}
static void fill_shared(const void *params) {
    const Trial &p = *(const Trial *)params;
    unsigned *shared = (unsigned *)shared_memory();
    for (int i = (int)threadIdx.x; i < p.n; i += (int)blockDim.x) shared[i] = (unsigned)i;
    __syncthreads();
    for (int i = (int)threadIdx.x; i < p.n; i += (int)blockDim.x) p.out[i] = shared[p.n - 1 - i];
}

#define ROW(name) {#name, name, sizeof(Trial)}
static const FakeKernel kernels[] = {ROW(add), ROW(reach_past), ROW(wait_for_nobody), ROW(fill_shared)};

const FakeText fake_texts[] = {{0, kernels, sizeof kernels / sizeof *kernels}};
const size_t fake_n_texts = 1;
