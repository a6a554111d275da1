/*
 * kernel_pairs.c - times the same kernel of two builds in turn, in one process (kernel_pairs.py).
 *
 * usage: kernel_pairs OLD.so NEW.so TABLE PAIRS; prints lines of "kernel,n,old ns,new ns,ratio", where ratio
 * is the median of old / new of the pairs: below 1 the new build is slower. Processor time.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kernels.h"

enum { MOST = 2048, ROWS = 8, PART_NS = 40000, WEIGHT_ROWS = 32, MOST_WIDE = 100 };

static float *a, *b, *out, *rows;
static volatile float sink;

typedef void call(const l2c_kernels *k, size_t n);

static void dot(const l2c_kernels *k, size_t n) { sink = k->dot(a, b, n); }
static void max(const l2c_kernels *k, size_t n) { sink = k->max(a, n); }
static void exp_of(const l2c_kernels *k, size_t n) { k->exp(out, a, n); }

static void exp_sum(const l2c_kernels *k, size_t n) { /* in place: the input anew */
    memcpy(out, a, n * sizeof *out);
    sink = k->exp_sum(out, n);
}

static void softmax(const l2c_kernels *k, size_t n) {
    memcpy(out, a, n * sizeof *out);
    k->softmax(out, n);
}

static void swiglu(const l2c_kernels *k, size_t n) {
    memcpy(out, a, n * sizeof *out);
    k->swiglu(out, b, n);
}

static void matmul(const l2c_kernels *k, size_t n, size_t n_rows) {
    k->matmul(out, WEIGHT_ROWS, a, n, n_rows, rows, n, 0, WEIGHT_ROWS);
}
static void matmul_1(const l2c_kernels *k, size_t n) { matmul(k, n, 1); }
static void matmul_3(const l2c_kernels *k, size_t n) { matmul(k, n, 3); }
static void matmul_8(const l2c_kernels *k, size_t n) { matmul(k, n, 8); }

/* n positions of values of a head, block by block; weights are the same for all queries. */
static void sum(const l2c_kernels *k, size_t n, size_t n_rows, size_t width) {
    for (size_t t = 0; t < n; t += L2C_SUM_BLOCK)
        k->weighted_sum(out, width, a + t, 0, n_rows, 0, rows + t * width, (ptrdiff_t)(n - t), width, t > 0);
}
static void sum_1(const l2c_kernels *k, size_t n) { sum(k, n, 1, 48); }
static void sum_4(const l2c_kernels *k, size_t n) { sum(k, n, 4, 48); }
static void sum_100(const l2c_kernels *k, size_t n) { sum(k, n, 4, 100); }

static const struct {
    const char *name;
    call *run;
} kernels[] = {
    {"dot", dot}, {"max", max}, {"exp", exp_of}, {"exp_sum", exp_sum}, {"softmax", softmax}, {"swiglu", swiglu},
    {"weighted_sum of 1", sum_1}, {"weighted_sum of 4", sum_4}, {"weighted_sum of 4, 100 wide", sum_100},
    {"matmul, 1 row", matmul_1}, {"matmul, 3 rows", matmul_3}, {"matmul, 8 rows", matmul_8},
};

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return 1e9 * (double)t.tv_sec + (double)t.tv_nsec;
}

static double time_of(call *run, const l2c_kernels *k, size_t n, size_t count) {
    double started = now();
    for (size_t i = 0; i < count; i++) run(k, n);
    return (now() - started) / (double)count;
}

static int rising(const void *x, const void *y) {
    double p = *(const double *)x, q = *(const double *)y;
    return (p > q) - (p < q);
}

static double median(double *x, size_t n) {
    qsort(x, n, sizeof *x, rising);
    return n % 2 ? x[n / 2] : (x[n / 2 - 1] + x[n / 2]) / 2;
}

static const l2c_kernels *table_of(const char *path, const char *table) {
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    const l2c_kernels *k = library == NULL ? NULL : dlsym(library, table);
    if (k == NULL) {
        fprintf(stderr, "%s\n", dlerror());
        exit(1);
    }
    return k;
}

static float *floats(size_t n, float low, float high) {
    float *x = aligned_alloc(64, n * sizeof *x);
    for (size_t i = 0; i < n; i++) x[i] = low + (high - low) * (float)rand() / (float)RAND_MAX;
    return x;
}

int main(int argc, char **argv) {
    static const size_t lengths[] = {17, 48, 288, 767, 2048};
    if (argc != 5) return 2;
    const l2c_kernels *builds[2] = {table_of(argv[1], argv[3]), table_of(argv[2], argv[3])};
    size_t pairs = (size_t)atoi(argv[4]);
    double *times[2] = {malloc(pairs * sizeof(double)), malloc(pairs * sizeof(double))};
    double *ratios = malloc(pairs * sizeof *ratios);
    a = floats(ROWS * MOST, -4.0f, 4.0f), b = floats(MOST, -1.0f, 1.0f), out = floats(ROWS * MOST, 0.0f, 0.0f);
    rows = floats(MOST * MOST_WIDE, -1.0f, 1.0f);
    for (size_t c = 0; c < sizeof kernels / sizeof *kernels; c++)
        for (size_t l = 0; l < sizeof lengths / sizeof *lengths; l++) {
            size_t n = lengths[l], count = 1;
            while (count * time_of(kernels[c].run, builds[0], n, count) < PART_NS) count *= 2;
            for (size_t i = 0; i < pairs; i++) {
                size_t first = i % 2; /* which goes first takes turns */
                times[first][i] = time_of(kernels[c].run, builds[first], n, count);
                times[!first][i] = time_of(kernels[c].run, builds[!first], n, count);
                ratios[i] = times[0][i] / times[1][i];
            }
            double ratio = median(ratios, pairs), before = median(times[0], pairs), after = median(times[1], pairs);
            printf("%s,%zu,%.1f,%.1f,%.3f\n", kernels[c].name, n, before, after, ratio);
            fflush(stdout);
        }
    return 0;
}
