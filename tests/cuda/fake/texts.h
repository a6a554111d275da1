// texts.h - what fake_cuda runs on the emulator: tables of kernels. source.cpp has those of kernels.cu as g++
// compiles it; translate_ptx.py writes the others.
#pragma once
#include <stddef.h>
#include <stdint.h>

struct FakeKernel {
    const char *name;
    void (*call)(const void *params); // in every thread of the emulator
    unsigned bytes;                   // of the parameter block
};
struct FakeText {
    uint64_t hash; // FNV-1a of the PTX that was translated; 0: kernels of the sources, under any PTX that names them
    const FakeKernel *kernels;
    size_t n;
};
extern const FakeText fake_texts[];
extern const size_t fake_n_texts;

