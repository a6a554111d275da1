/*
 * test_products.cpp - matrix products of every type, and int8 rows.
 */
#include <stdlib.h>

#include <vector>

#include "check.h"

namespace {

struct cpu_rows { /* int8 rows of the CPU's */
    std::vector<int8_t> q;
    std::vector<int16_t> pairs;
    std::vector<float> scales;
    std::vector<int32_t> sums;
    l2c_quantized rows;
    cpu_rows(const float *x, int n, int cols, int group) {
        size_t groups = (size_t)l2c_gpu_pieces(cols, group), width = groups * (size_t)group;
        q.resize(n * width), pairs.resize(n * width), scales.resize(n * groups), sums.resize(n * groups);
        rows = l2c_quantized{(size_t)cols, width, (size_t)group, q.data(), pairs.data(), scales.data(), sums.data()};
        for (int r = 0; r < n; r++) l2c_kernels_scalar.quantize(&rows, (size_t)r, x + (size_t)r * cols, (size_t)cols);
    }
};

/* The card's int8 rows hold what the CPU's hold, and zeros around it. */
void check_quantized(const device_rows &card, const cpu_rows &cpu, int n) {
    const l2c_gpu_quantized &g = card.rows;
    for (int r = 0; r < n; r++) {
        std::vector<float> scales, should_be_scales;
        bool same = true;
        for (int group = 0; group < g.groups; group++) {
            size_t at = ((size_t)(r / 8) * g.groups + group) * 8 + r % 8;
            scales.push_back(g.scales[at]);
            should_be_scales.push_back(cpu.scales[(size_t)r * g.groups + group]);
            same &= g.sums[at] == cpu.sums[(size_t)r * g.groups + group];
            for (int j = 0; j < g.chunks * 32; j++) {
                size_t step = (size_t)(r / 8) * g.groups * g.chunks + (size_t)group * g.chunks + j / 32;
                int k = j % 32, is = g.q[(step * 32 + r % 8 * 4 + k % 16 / 4) * 8 + k / 16 * 4 + k % 4];
                same &= is == (j < g.group ? cpu.q[(size_t)r * cpu.rows.width + group * g.group + j] : 0);
            }
        }
        check_bytes("scales of int8 rows", scales.data(), should_be_scales.data(), scales.size() * 4);
        int ok = same, yes = 1;
        check_bytes("int8 rows", &ok, &yes, sizeof ok);
    }
}

int pick_rows() {
    int kind = between(0, 9);
    return kind < 3 ? 1 : kind < 6 ? between(2, 8) : kind < 9 ? between(9, 40) : between(65, 140);
}

/* x, mostly wild; some rows as large as they can be with one sign, which makes int8 products the largest. */
std::vector<float> pick_x(int n, int cols, bool extreme) {
    std::vector<float> x((size_t)n * cols);
    for (float &v : x) v = wild();
    for (int r = 0; r < n && extreme; r++)
        if (between(0, 1))
            for (int j = 0; j < cols; j++) x[(size_t)r * cols + j] = r % 2 ? -3.0f : 3.0f;
    return x;
}

void check_product(const l2c_matrix &m, const device_matrix &card, int n, bool extreme) {
    int rows = (int)m.rows, cols = (int)m.cols, packed = m.type != L2C_WEIGHTS_F32, accumulate = between(0, 1);
    int out_pitch = between(0, 1) ? rows : l2c_gpu_pitch(rows);
    std::vector<float> x = pick_x(n, cols, extreme), product((size_t)n * rows);
    buffer<float> card_x((size_t)n * l2c_gpu_pitch(cols)), out((size_t)n * out_pitch);
    copy_rows(card_x.begin(), x.data(), n, cols);
    l2c_gpu_linear p = {};
    p.w = card.matrix;
    p.x = card_x.begin();
    p.out = out.begin();
    p.out_pitch = out_pitch;
    p.n = n;
    p.accumulate = accumulate;
    std::vector<float> expected((size_t)n * out_pitch);
    for (int r = 0; r < n; r++)
        for (int i = 0; i < rows && accumulate; i++) expected[(size_t)r * out_pitch + i] = wild();
    memcpy(out.begin(), expected.data(), expected.size() * 4);
    if (packed) {
        device_rows card_rows(n, cols, (int)m.group);
        cpu_rows cpu(x.data(), n, cols, (int)m.group);
        p.xq = card_rows.rows;
        l2c_gpu_quantize quantize = {card_x.begin(), card_rows.rows, n};
        start(l2c_gpu_quantize_launch(&quantize), quantize);
        start(l2c_gpu_linear_launch(&p), p);
        finish();
        check_quantized(card_rows, cpu, n);
        const l2c_kernels &k = l2c_kernels_scalar;
        l2c_integer_matmul *matmul = m.type == L2C_WEIGHTS_Q8   ? k.matmul_q8
                                     : m.type == L2C_WEIGHTS_Q4 ? k.matmul_q4
                                                                : k.matmul_q4_1;
        matmul(product.data(), (size_t)rows, &cpu.rows, 0, (size_t)n, &m, 0, (size_t)rows);
    } else {
        start(l2c_gpu_linear_launch(&p), p);
        finish();
        l2c_kernels_scalar.matmul(product.data(), (size_t)rows, x.data(), (size_t)cols, (size_t)n, (const float *)m.data,
                                  (size_t)cols, 0, (size_t)rows);
    }
    for (int r = 0; r < n; r++)
        for (int i = 0; i < rows; i++) {
            float &e = expected[(size_t)r * out_pitch + i], sum = product[(size_t)r * rows + i];
            e = accumulate ? e + sum : sum;
        }
    check_rows(kernel_table[l2c_gpu_linear_launch(&p).kernel].name, out.begin(), expected.data(), n, out_pitch);
}

} // namespace

void test_products() {
    for (int i = 0; i < 9; i++) {
        int rows = between(1, 150), cols = between(1, 300), kind = i % 3;
        l2c_matrix m = kind == 0 ? oracle_matrix(L2C_WEIGHTS_F32, (size_t)rows, (size_t)cols, 0, 0, &random_state)
                                 : oracle_matrix_of_16_bits(kind == 2, (size_t)rows, (size_t)cols, &random_state);
        check_product(m, device_matrix(m, kind > 0, kind == 2), pick_rows(), false);
        free((void *)m.data);
    }
    for (int i = 0; i < 12; i++) {
        l2c_weights type = i < 6 ? L2C_WEIGHTS_Q8 : i < 9 ? L2C_WEIGHTS_Q4 : L2C_WEIGHTS_Q4_1;
        int group = type != L2C_WEIGHTS_Q8 || i < 2 ? 32 : i < 4 ? 4 * between(1, 128) : 64 << between(0, 3);
        bool extreme = i % 3 == 0;
        int rows = between(1, 300), cols = between(1, between(0, 2) ? 700 : 2000);
        if (type == L2C_WEIGHTS_Q8 && between(0, 1)) cols = (cols + group - 1) / group * group;
        l2c_matrix m = oracle_matrix(type, (size_t)rows, (size_t)cols, (size_t)group, extreme, &random_state);
        check_product(m, device_matrix(m), pick_rows(), extreme);
        free((void *)m.data);
    }
}
