/*
 * test_kernels.c - every kernel against the scalar one, on buffers that end where memory ends.
 *
 * Sanitizers do not look into vector intrinsics. A page without access right after the last float
 * does, and floats with a known value before the first one show what is written there.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "files/gguf.h"
#include "harness.h"
#include "kernels/quantized.h"
#include "system.h"
#include "testing.h"

enum { GGUF_Q4_1 = 3, GGUF_Q4_K = 12 }; /* GGML's numbers */
enum { LONGEST = 70, MOST_ROWS = 9, ROOM = 16384 /* floats; a multiple of every page's */ };

typedef struct {
    float *end; /* where access ends */
} guarded;

static guarded guarded_make(void) {
    return (guarded){(float *)guarded_take(ROOM * sizeof(float)) + ROOM};
}

static void guarded_free(guarded g) { guarded_give(g.end - ROOM, ROOM * sizeof(float)); }

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
        /* weighted sums: k rows of width n, and n rows of width k */
        for (int turned = 0; turned < 2; turned++) {
            size_t rows = turned ? n : k, width = turned ? k : n;
            const float *weights = random_of(m->a, rows, 1.0f, &m->random);
            const float *values = random_of(m->b, rows * width, 1.0f, &m->random);
            float *out = out_of(m->out, width), *expected = out_of(m->expected, width);
            l2c_kernel_weighted_sum(isa, out, weights, 1, 0, values, rows, width);
            l2c_kernel_weighted_sum(scalar, expected, weights, 1, 0, values, rows, width);
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

/* Those that the machine runs, which the fastest is one of. */
static size_t kernels_to_test(l2c_isa *isas) {
    l2c_isa fastest;
    CHECK(l2c_isa_resolve(L2C_ISA_AUTO, &fastest, NULL) == L2C_OK);
    size_t n = available_isas(isas), found = 0;
    for (size_t i = 0; i < n; i++) found += isas[i] == fastest;
    CHECK(found == 1);
    return n;
}

static void check_floats(const l2c_isa *isas, size_t n_isas) {
    buffers m = {guarded_make(), guarded_make(), guarded_make(), guarded_make(), 41};
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

/* Equal bits, or both NaN: which NaN is for the processor to choose. */
static void check_same_or_nan(const float *a, const float *b, size_t n) {
    for (size_t i = 0; i < n; i++) CHECK((isnan(a[i]) && isnan(b[i])) || memcmp(&a[i], &b[i], sizeof *a) == 0);
}

/* ---- Integers ------------------------------------------------------------------------------------ */

static void *bytes_of(guarded g, size_t size) {
    CHECK(size <= ROOM * sizeof *g.end);
    return (char *)g.end - size;
}

/* Rows of quantized activations, each array at the end of a buffer of its own. */
typedef struct {
    guarded q, pairs, scales, sums;
} activations;

static activations activations_make(void) {
    return (activations){guarded_make(), guarded_make(), guarded_make(), guarded_make()};
}

static void activations_free(activations a) {
    guarded_free(a.q);
    guarded_free(a.pairs);
    guarded_free(a.scales);
    guarded_free(a.sums);
}

static l2c_quantized quantized_of(activations a, size_t rows, size_t cols, size_t group) {
    l2c_quantized x = {.cols = cols, .width = (cols + group - 1) / group * group, .group = group};
    x.q = bytes_of(a.q, rows * x.width);
    x.pairs = bytes_of(a.pairs, rows * x.width * sizeof *x.pairs);
    x.scales = bytes_of(a.scales, rows * (x.width / group) * sizeof *x.scales);
    x.sums = bytes_of(a.sums, rows * (x.width / group) * sizeof *x.sums);
    memset(x.q, 77, rows * x.width);
    memset(x.sums, 77, rows * (x.width / group) * sizeof *x.sums);
    for (size_t i = 0; i < rows * (x.width / group); i++) x.scales[i] = CANARY;
    return x;
}

/* A value of a group; one of each group is `chosen`. */
static float value_to_quantize(int kind, int chosen, uint64_t *random) {
    static const float not_finite[] = {NAN, INFINITY, -INFINITY};
    static const float tiny[] = {0.0f, -0.0f, 1e-45f, -1e-38f, 9.9999e-31f, -9.9999e-31f};
    switch (kind) {
    case 0: case 1: case 2: return chosen ? not_finite[kind] : random_float(random);
    case 3: return tiny[random_below(random, 6)];
    case 4: return chosen ? L2C_QUANTIZE_LEAST : tiny[random_below(random, 6)];
    case 5: return tiny[random_below(random, 2)];
    case 6: return chosen ? 127.0f : (float)(random_below(random, 508) - 254) * 0.5f; /* halves round to even */
    case 7: return 3.4e38f * random_float(random);
    default: return 10.0f * random_float(random);
    }
}

/* The second of two rows, whose groups are of all kinds, against the scalar quantizer. */
static void check_quantize(const l2c_kernels *kernels, guarded values, activations a, activations b, size_t group,
                           size_t n, uint64_t *random) {
    float *x = out_of(values, n);
    int kind = 0, chosen = 0;
    for (size_t i = 0; i < n; i++) {
        if (i % group == 0) {
            kind = random_below(random, 12);
            chosen = random_below(random, (int32_t)group);
        }
        x[i] = value_to_quantize(kind, i % group == (size_t)chosen, random);
    }
    l2c_quantized out = quantized_of(a, 2, n, group), expected = quantized_of(b, 2, n, group);
    kernels->quantize(&out, 1, x, n);
    l2c_kernels_scalar.quantize(&expected, 1, x, n);
    CHECK(memcmp(out.q, expected.q, 2 * out.width) == 0);
    CHECK(memcmp(out.sums, expected.sums, 2 * (out.width / group) * sizeof *out.sums) == 0);
    check_same_or_nan(out.scales, expected.scales, 2 * (out.width / group));
    for (size_t g = 0; g < out.width / group; g++) {
        int finite = 1;
        for (size_t i = g * group; i < n && i < (g + 1) * group; i++) finite &= isfinite(x[i]) != 0;
        CHECK(isnan(out.scales[out.width / group + g]) == !finite);
    }
}

/* A matrix packed from random blocks of GGUF's, all integers `fill` unless that is negative. Its rows are the
 * blocks', exactly or (Q4_K) but for scales and minima in float16. */
static l2c_matrix with_minima(guarded g, uint32_t type, size_t rows, size_t cols, int fill, uint64_t *random) {
    l2c_matrix w = l2c_matrix_packed(L2C_WEIGHTS_Q4_1, rows, cols, L2C_Q4_GROUP);
    l2c_matrix plain = {.type = L2C_WEIGHTS_GGUF, .rows = rows, .cols = cols, .blocks = l2c_block_type_of(type)};
    size_t bytes = l2c_matrix_bytes(&plain), integers = type == GGUF_Q4_1 ? 4 : 16;
    unsigned char *memory = bytes_of(g, l2c_matrix_bytes(&w)), *blocks = malloc(bytes);
    float *values = malloc(2 * cols * sizeof *values), *packed = values + cols;
    CHECK(blocks != NULL && values != NULL);
    for (size_t i = 0; i < bytes; i++) {
        size_t at = i % plain.blocks->bytes;
        blocks[i] = (unsigned char)(at >= integers && fill >= 0 ? fill : random_below(random, 256));
        if (at == 1 || at == 3) blocks[i] &= 0xB7; /* of float16: denormal to 0.5, and negative */
    }
    plain.data = blocks;
    memset(memory, 0, l2c_matrix_bytes(&w));
    CHECK(l2c_matrix_pack(&w, memory, &plain, 0, rows) == L2C_OK);
    w.data = memory;
    for (size_t i = 0; i < rows; i++) {
        l2c_matrix_row(values, &plain, i);
        l2c_matrix_row(packed, &w, i);
        if (type == GGUF_Q4_1) CHECK(memcmp(packed, values, cols * sizeof *values) == 0);
        for (size_t j = 0; j < cols; j++) {
            const uint16_t *halves = (const uint16_t *)l2c_block(&w, i) + j / 32 * 32 + i % 16;
            float scale = fabsf(l2c_half_to_float(halves[0])), minimum = fabsf(l2c_half_to_float(halves[16]));
            CHECK(fabsf(packed[j] - values[j]) <= (15.0f * scale + minimum) / 2047.0f);
        }
    }
    free(blocks);
    free(values);
    return w;
}

/* A packed matrix whose data, spare rows and columns included, are partly replaced by the extremes of
 * its type; or all bytes are `fill`, which then is not negative. */
static l2c_matrix weights_of(guarded g, l2c_weights type, size_t rows, size_t cols, size_t group, int fill,
                             uint64_t *random) {
    l2c_matrix w = l2c_matrix_packed(type, rows, cols, group);
    size_t bytes = l2c_matrix_bytes(&w), head = l2c_block_scale_bytes(type, w.padded / group);
    unsigned char *memory = bytes_of(g, bytes);
    float *values = malloc(rows * cols * sizeof *values);
    CHECK(values != NULL);
    for (size_t i = 0; i < rows * cols; i++) values[i] = random_float(random);
    l2c_matrix plain = {.type = L2C_WEIGHTS_F32, .rows = rows, .cols = cols, .data = values};
    memset(memory, 0, bytes);
    CHECK(l2c_matrix_pack(&w, memory, &plain, 0, rows) == L2C_OK);
    free(values);
    static const unsigned char extremes[2][2] = {{0x80, 0x7F}, {0x00, 0xFF}};
    for (size_t at = 0; at < bytes; at++) {
        if (at % w.block_bytes < head) continue;
        if (fill >= 0) memory[at] = (unsigned char)fill;
        else if (random_below(random, 4) == 0) memory[at] = extremes[type == L2C_WEIGHTS_Q4][random_below(random, 2)];
    }
    w.data = memory;
    return w;
}

/* Every product as the values say, in double. */
static void check_plainly(const float *out, size_t out_stride, const l2c_quantized *x, size_t first, size_t n_rows,
                          const l2c_matrix *w) {
    float *row = malloc(w->cols * sizeof *row);
    CHECK(row != NULL);
    for (size_t i = 0; i < w->rows; i++) {
        l2c_matrix_row(row, w, i);
        for (size_t r = 0; r < n_rows; r++) {
            double sum = 0.0, size = 0.0;
            for (size_t j = 0; j < w->cols; j++) {
                size_t at = (first + r) * x->width + j;
                double term = (double)row[j] * x->q[at] * x->scales[at / x->group];
                sum += term;
                size += fabs(term);
            }
            CHECK(fabs(out[r * out_stride + i] - sum) <= 1e-5 * size);
        }
    }
    free(row);
}

typedef struct {
    guarded weights, values, out, expected;
    activations x, y; /* y: the scalar quantizer's */
    uint64_t random;
} integers;

static l2c_integer_matmul *matmul_of(const l2c_kernels *kernels, l2c_weights type) {
    if (type == L2C_WEIGHTS_Q8) return kernels->matmul_q8;
    return type == L2C_WEIGHTS_Q4 ? kernels->matmul_q4 : kernels->matmul_q4_1;
}

/* n_rows rows of x, after `first` others, times all of w and times a part; or x is all ones. */
static void check_rows(integers *m, l2c_isa isa, const l2c_matrix *w, size_t first, size_t n_rows, int ones) {
    const l2c_kernels *kernels = l2c_kernels_for(isa);
    l2c_integer_matmul *matmul = matmul_of(kernels, w->type), *plain = matmul_of(&l2c_kernels_scalar, w->type);
    l2c_quantized x = quantized_of(m->x, first + n_rows, w->cols, w->group);
    l2c_quantized y = quantized_of(m->y, first + n_rows, w->cols, w->group);
    for (size_t r = 0; r < first + n_rows; r++) {
        float *values = random_of(m->values, w->cols, 3.0f, &m->random);
        for (size_t j = 0; ones && j < w->cols; j++) values[j] = 1.0f;
        kernels->quantize(&x, r, values, w->cols);
        l2c_scalar_quantize(&y, r, values, w->cols);
    }
    enum { WIDER = 3 };
    size_t stride = w->rows + WIDER, size = (n_rows - 1) * stride + w->rows, blocks = (w->rows + 15) / 16;
    for (int part = 0; part < 3; part++) {
        size_t begin = part ? 16 * (size_t)random_below(&m->random, (int32_t)blocks) : 0, end = w->rows;
        if (part == 2) end = begin + 16 * (1 + (size_t)random_below(&m->random, (int32_t)(blocks - begin / 16)));
        if (end > w->rows) end = w->rows;
        float *out = out_of(m->out, size), *expected = out_of(m->expected, size);
        matmul(out, stride, &x, first, n_rows, w, begin, end);
        plain(expected, stride, &y, first, n_rows, w, begin, end);
        check_same(out, expected, size);
        if (part == 0 && isa == L2C_ISA_SCALAR) check_plainly(out, stride, &x, first, n_rows, w);
    }
    /* A group that is not finite makes its row NaN, and no other. */
    x.scales[first * (x.width / x.group)] = y.scales[first * (y.width / y.group)] = NAN;
    float *out = out_of(m->out, size), *expected = out_of(m->expected, size);
    matmul(out, stride, &x, first, n_rows, w, 0, w->rows);
    plain(expected, stride, &y, first, n_rows, w, 0, w->rows);
    check_same_or_nan(out, expected, size);
    for (size_t i = 0; i < w->rows; i++) CHECK(isnan(out[i]));
}

static void check_integers(const l2c_isa *isas, size_t n_isas) {
    static const size_t rows[] = {1, 15, 16, 17, 40, 100}, cols[] = {4, 32, 36, 172, 288}, groups[] = {4, 32, 64};
    static const size_t all_groups[] = {4, 16, 32, 64, 128};
    integers m = {guarded_make(), guarded_make(), guarded_make(), guarded_make(),
                  activations_make(), activations_make(), 47};
    for (size_t i = 0; i < n_isas; i++) {
        for (size_t g = 0; g < sizeof all_groups / sizeof *all_groups; g++)
            for (size_t n = 1; n <= 3 * all_groups[g]; n++)
                for (int round = 0; round < (n % all_groups[g] ? 4 : 200); round++)
                    check_quantize(l2c_kernels_for(isas[i]), m.values, m.x, m.y, all_groups[g], n, &m.random);
        for (size_t d = 0; d < sizeof rows / sizeof *rows; d++)
            for (size_t c = 0; c < sizeof cols / sizeof *cols; c++)
                for (size_t g = 0; g <= sizeof groups / sizeof *groups; g++) { /* the last: int4 */
                    l2c_weights type = g < sizeof groups / sizeof *groups ? L2C_WEIGHTS_Q8 : L2C_WEIGHTS_Q4;
                    size_t group = type == L2C_WEIGHTS_Q8 ? groups[g] : L2C_Q4_GROUP;
                    l2c_matrix w = weights_of(m.weights, type, rows[d], cols[c], group, -1, &m.random);
                    for (size_t n = 1; n <= MOST_ROWS; n++) check_rows(&m, isas[i], &w, n % 3, n, 0);
                    check_rows(&m, isas[i], &w, 0, 33, 0);
                }
        static const struct { uint32_t type; size_t cols; } minima[] = {
            {GGUF_Q4_1, 32}, {GGUF_Q4_1, 96}, {GGUF_Q4_1, 288}, {GGUF_Q4_K, 256}};
        for (size_t d = 0; d < sizeof rows / sizeof *rows; d++)
            for (size_t c = 0; c < sizeof minima / sizeof *minima; c++) {
                l2c_matrix w = with_minima(m.weights, minima[c].type, rows[d], minima[c].cols, -1, &m.random);
                for (size_t n = 1; n <= MOST_ROWS; n++) check_rows(&m, isas[i], &w, n % 3, n, 0);
                check_rows(&m, isas[i], &w, 0, 33, 0);
            }
        /* As large as sums get. */
        static const int fills[] = {0x80, 0x7F, 0x00, 0xFF};
        for (size_t f = 0; f < sizeof fills / sizeof *fills; f++)
            for (size_t n = 1; n <= 5; n++) {
                l2c_matrix q8 = weights_of(m.weights, L2C_WEIGHTS_Q8, 35, 512, L2C_MAX_PACKED_GROUP, fills[f], &m.random);
                check_rows(&m, isas[i], &q8, 0, n, 1);
                l2c_matrix q4 = weights_of(m.weights, L2C_WEIGHTS_Q4, 35, 512, L2C_Q4_GROUP, fills[f], &m.random);
                check_rows(&m, isas[i], &q4, 0, n, 1);
                l2c_matrix q4_1 = with_minima(m.weights, GGUF_Q4_1, 35, 512, fills[f], &m.random);
                check_rows(&m, isas[i], &q4_1, 0, n, 1);
            }
    }
    guarded_free(m.weights);
    guarded_free(m.values);
    guarded_free(m.out);
    guarded_free(m.expected);
    activations_free(m.x);
    activations_free(m.y);
}

void test_kernels_at_guard_page(void) {
    l2c_isa isas[MAX_ISAS];
    size_t n_isas = kernels_to_test(isas);
    check_floats(isas, n_isas);
    check_integers(isas, n_isas);
}

/* ---- Special values -------------------------------------------------------------------------------- */

void test_kernels_special_values(void) {
    static const float special[] = {
        NAN, INFINITY, -INFINITY, 0.0f, -0.0f, 1e-45f, -1e-45f, 1.17549435e-38f, 3.40282347e38f, -3.40282347e38f,
        88.72f, 88.73f, 89.0f, 90.0f, -87.3365402f, -87.3365479f, -87.4f, -103.9f, -105.0f,
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
            l2c_kernel_weighted_sum(isas[i], out, x, 1, 0, up, n, 1);
            l2c_kernel_weighted_sum(L2C_ISA_SCALAR, expected, x, 1, 0, up, n, 1);
            check_same_or_nan(out, expected, 1);
        }
}
