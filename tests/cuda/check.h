/*
 * check.h - what the tests of kernels share: the card's memory, launches, and comparison by bits.
 */
#pragma once
#include <stdio.h>
#include <string.h>

#include "emulator.h"
#include "kernel_table.h"
#include "oracle.h"

extern uint64_t random_state;
extern long checks, failures;

inline int between(int low, int high) { return random_between(&random_state, low, high); }
inline float wild() { return random_float(&random_state); }

/* Memory of the card's: zeros, that end (up to 15 bytes) where access ends. */
class device_memory {
  public:
    explicit device_memory(size_t bytes);
    ~device_memory();
    device_memory(const device_memory &) = delete;
    void *begin() const { return start; }

  private:
    unsigned char *map;
    size_t size;
    void *start;
};

template <class T> class buffer {
  public:
    explicit buffer(size_t n) : n(n), memory(n * sizeof(T)) {}
    buffer(const T *from, size_t n) : buffer(n) { memcpy((void *)begin(), (const void *)from, n * sizeof(T)); }
    T *begin() const { return (T *)memory.begin(); }
    T &operator[](size_t i) { return begin()[i]; }
    size_t count() const { return n; }

  private:
    size_t n;
    device_memory memory;
};

/* A matrix as it lies on the card. */
struct device_matrix {
    explicit device_matrix(const l2c_matrix &m, bool in_16_bits = false, bool bfloat16 = false);
    l2c_gpu_matrix matrix;
    device_memory data, scales;
};

/* int8 rows, and what the CPU has of the same. */
struct device_rows {
    device_rows(int n, int cols, int group);
    l2c_gpu_quantized rows;
    device_memory q, scales, sums;
};

/* Rows (n, cols) with the card's pitch. */
void copy_rows(float *to, const float *from, int n, int cols);

/* Queues a kernel, with p its one parameter. */
template <class P> void start(const l2c_gpu_launch &l, const P &p, bool cooperative = false) {
    const kernel_entry &k = kernel_table[l.kernel];
    if (k.param_bytes != sizeof p) {
        printf("%s takes %zu bytes, not %zu\n", k.name, k.param_bytes, sizeof p);
        failures++;
        return;
    }
    emulator::launch launch;
    launch.kernel = k.run;
    launch.param.assign((const unsigned char *)&p, (const unsigned char *)(&p + 1));
    launch.grid = emulator::dim3{l.grid_x, l.grid_y, 1};
    launch.threads = l.block;
    launch.shared = l.shared;
    launch.cooperative = cooperative;
    emulator::enqueue(launch);
}

/* Runs what is queued, in an order of its own each time. */
void finish();

/* Counts a check, and a failure where the bits differ. */
void check_bytes(const char *what, const void *is, const void *should_be, size_t bytes);
/* n rows of floats, a check each. */
void check_rows(const char *what, const float *is, const float *should_be, int n, int pitch);

/* The tests, by file; each does a round of random cases. */
void test_emulator();
void test_products();
void test_rows();
void test_attention();
void test_sampler();
void test_passes();
