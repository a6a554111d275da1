/*
 * test_kernels.c - every kernel against the scalar one, on buffers that end where memory ends.
 *
 * Sanitizers do not look into vector intrinsics. A page without access right after the last float
 * does, and floats with a known value before the first one show what is written there.
 */
#define _GNU_SOURCE
#include <math.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "harness.h"

enum { LONGEST = 70, MOST_ROWS = 9, ROOM = 16384 /* floats; a multiple of every page's */ };

typedef struct {
    float *end; /* where access ends */
} guarded;

static guarded guarded_make(void) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE), size = ROOM * sizeof(float);
    char *memory = mmap(NULL, size + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED && mprotect(memory + size, page, PROT_NONE) == 0);
    return (guarded){(float *)(void *)(memory + size)};
}

static void guarded_free(guarded g) {
    CHECK(munmap(g.end - ROOM, ROOM * sizeof(float) + (size_t)sysconf(_SC_PAGESIZE)) == 0);
}

static const float CANARY = 1234.5f;

/* The last n floats, after a canary that covers what the widest register could reach. */
static float *out_of(guarded g, size_t n) {
    for (size_t i = 0; i < n + 16; i++) g.end[-(ptrdiff_t)(i + 1)] = CANARY;
    return g.end - n;
}

static float *random_of(guarded g, size_t n, float scale, uint64_t *random) {
    for (size_t i = 0; i < n; i++) g.end[-(ptrdiff_t)(i + 1)] = scale * random_float(random);
    return g.end - n;
}

static float *copy_of(guarded g, const float *from, size_t n) {
    return memcpy(out_of(g, n), from, n * sizeof *from);
}

/* Equal bits, and nothing written in front. */
static void check_same(const float *out, const float *expected, size_t n) {
    CHECK(memcmp(out, expected, n * sizeof *out) == 0);
    for (int i = 1; i <= 16; i++) CHECK(out[-i] == CANARY);
}

typedef struct {
    guarded a, b, out, expected;
    uint64_t random;
} buffers;

static void check_vectors(buffers *m, l2c_isa isa, size_t n) {
    const l2c_kernels *kernels = l2c_kernels_for(isa);
    const l2c_isa scalar = L2C_ISA_SCALAR;
    for (int scale = 1; scale <= 1000; scale *= 10) {
        const float *a = random_of(m->a, n, (float)scale, &m->random);
        const float *b = random_of(m->b, n, (float)scale, &m->random);
        float *out = out_of(m->out, n), *expected = out_of(m->expected, n);
        l2c_kernel_exp(isa, out, a, n);
        l2c_kernel_exp(scalar, expected, a, n);
        check_same(out, expected, n);

        out = copy_of(m->out, a, n), expected = copy_of(m->expected, a, n);
        l2c_kernel_softmax(isa, out, n);
        l2c_kernel_softmax(scalar, expected, n);
        check_same(out, expected, n);

        out = copy_of(m->out, a, n), expected = copy_of(m->expected, a, n);
        l2c_kernel_swiglu(isa, out, b, n);
        l2c_kernel_swiglu(scalar, expected, b, n);
        check_same(out, expected, n);

        CHECK(kernels->dot(a, b, n) == l2c_kernels_scalar.dot(a, b, n));
        CHECK(kernels->max(a, n) == l2c_kernels_scalar.max(a, n));
    }
}

static void check_products(buffers *m, l2c_isa isa, size_t n) {
    const l2c_isa scalar = L2C_ISA_SCALAR;
    for (size_t k = 1; k <= MOST_ROWS; k++) {
        /* mix: k rows of width n, and n rows of width k */
        for (int turned = 0; turned < 2; turned++) {
            size_t rows = turned ? n : k, width = turned ? k : n;
            const float *weights = random_of(m->a, rows, 1.0f, &m->random);
            const float *values = random_of(m->b, rows * width, 1.0f, &m->random);
            float *out = out_of(m->out, width), *expected = out_of(m->expected, width);
            l2c_kernel_mix(isa, out, weights, values, rows, width);
            l2c_kernel_mix(scalar, expected, weights, values, rows, width);
            check_same(out, expected, width);
        }
        for (size_t d = 1; d <= MOST_ROWS; d++) {
            const float *x = random_of(m->a, k * n, 1.0f, &m->random);
            const float *w = random_of(m->b, d * n, 1.0f, &m->random);
            float *out = out_of(m->out, k * d), *expected = out_of(m->expected, k * d);
            l2c_kernel_matmul(isa, out, x, k, w, n, d);
            l2c_kernel_matmul(scalar, expected, x, k, w, n, d);
            check_same(out, expected, k * d);
        }
    }
    /* Strides wider than a row, and a part of the columns: what lies between stays as it was. */
    enum { ROWS = 5, D = 24, WIDER = 3 };
    size_t x_stride = n + WIDER, size = (ROWS - 1) * (D + WIDER) + D;
    const float *x = random_of(m->a, (ROWS - 1) * x_stride + n, 1.0f, &m->random);
    const float *w = random_of(m->b, D * n, 1.0f, &m->random);
    for (size_t begin = 0; begin < D; begin += 5) {
        size_t end = begin + 1 + (size_t)random_below(&m->random, (int32_t)(D - begin));
        float *out = out_of(m->out, size), *expected = out_of(m->expected, size);
        l2c_kernels_for(isa)->matmul(out, D + WIDER, x, x_stride, ROWS, w, n, begin, end);
        l2c_kernels_scalar.matmul(expected, D + WIDER, x, x_stride, ROWS, w, n, begin, end);
        check_same(out, expected, size);
    }
}

void test_kernels_at_guard_page(void) {
    buffers m = {guarded_make(), guarded_make(), guarded_make(), guarded_make(), 41};
    l2c_isa isas[MAX_ISAS];
    size_t n_isas = available_isas(isas);
    for (size_t i = 0; i < n_isas; i++)
        for (size_t n = 1; n <= LONGEST; n++) {
            check_vectors(&m, isas[i], n);
            check_products(&m, isas[i], n);
        }
    guarded_free(m.a);
    guarded_free(m.b);
    guarded_free(m.out);
    guarded_free(m.expected);
}

/* ---- Special values -------------------------------------------------------------------------------- */

/* Equal bits, or both NaN: which NaN is for the processor to choose. */
static void check_same_or_nan(const float *a, const float *b, size_t n) {
    for (size_t i = 0; i < n; i++) CHECK((isnan(a[i]) && isnan(b[i])) || memcmp(&a[i], &b[i], sizeof *a) == 0);
}

void test_kernels_special_values(void) {
    static const float special[] = {
        NAN, INFINITY, -INFINITY, 0.0f, -0.0f, 1e-45f, -1e-45f, 1.17549435e-38f, 3.40282347e38f, -3.40282347e38f,
        88.72f, 88.73f, 89.0f, 90.0f, -87.3f, -87.4f, -103.9f, -104.0f, -105.0f,
    };
    enum { N = sizeof special / sizeof *special, MOST = 35 };
    l2c_isa isas[MAX_ISAS];
    size_t n_isas = available_isas(isas);
    uint64_t random = 43;
    for (size_t i = 0; i < n_isas; i++)
        for (int round = 0; round < 3000; round++) {
            size_t n = 1 + (size_t)random_below(&random, MOST);
            float x[MOST], up[MOST], out[MOST], expected[MOST];
            int ordinary = random_below(&random, 2); /* mostly plain numbers, or anything */
            for (size_t j = 0; j < n; j++) {
                x[j] = ordinary && random_below(&random, 8) ? 9 * random_float(&random) : special[random_below(&random, N)];
                up[j] = special[random_below(&random, N)];
            }
            l2c_kernel_exp(isas[i], out, x, n);
            l2c_kernel_exp(L2C_ISA_SCALAR, expected, x, n);
            check_same_or_nan(out, expected, n);
            memcpy(out, x, n * sizeof *x), memcpy(expected, x, n * sizeof *x);
            l2c_kernel_softmax(isas[i], out, n);
            l2c_kernel_softmax(L2C_ISA_SCALAR, expected, n);
            check_same_or_nan(out, expected, n);
            memcpy(out, x, n * sizeof *x), memcpy(expected, x, n * sizeof *x);
            l2c_kernel_swiglu(isas[i], out, up, n);
            l2c_kernel_swiglu(L2C_ISA_SCALAR, expected, up, n);
            check_same_or_nan(out, expected, n);
            l2c_kernel_matmul(isas[i], out, x, 1, up, n, 1);
            l2c_kernel_matmul(L2C_ISA_SCALAR, expected, x, 1, up, n, 1);
            check_same_or_nan(out, expected, 1);
            l2c_kernel_mix(isas[i], out, x, up, n, 1);
            l2c_kernel_mix(L2C_ISA_SCALAR, expected, x, up, n, 1);
            check_same_or_nan(out, expected, 1);
        }
}
