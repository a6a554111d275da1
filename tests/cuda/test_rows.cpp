/*
 * test_rows.cpp - embedding, RMSNorm, SwiGLU, and caches as data.
 */
#include <math.h>
#include <stdlib.h>

#include <vector>

#include "check.h"

namespace {

std::vector<float> wild_rows(int n, int cols) {
    std::vector<float> x((size_t)n * cols);
    for (float &v : x) v = wild();
    return x;
}

void check_embedding() {
    const l2c_weights types[] = {L2C_WEIGHTS_F32, L2C_WEIGHTS_Q8, L2C_WEIGHTS_Q4, L2C_WEIGHTS_Q4_1};
    l2c_weights type = types[between(0, 3)];
    int vocab = between(1, 60), dim = between(1, 300), n = between(1, 9), storage = between(0, 2);
    int group = type == L2C_WEIGHTS_Q8 && between(0, 1) ? 4 * between(1, 40) : 32;
    bool halves = type == L2C_WEIGHTS_F32 && storage > 0;
    l2c_matrix m = halves ? oracle_matrix_of_16_bits(storage == 2, (size_t)vocab, (size_t)dim, &random_state)
                          : oracle_matrix(type, (size_t)vocab, (size_t)dim, (size_t)group, 0, &random_state);
    device_matrix card(m, halves, storage == 2);
    int pitch = l2c_gpu_pitch(dim);
    buffer<l2c_gpu_row> rows((size_t)n);
    buffer<float> x((size_t)n * pitch);
    std::vector<float> expected((size_t)n * pitch);
    for (int r = 0; r < n; r++) {
        rows[r] = l2c_gpu_row{0, r, between(0, vocab - 1), -1};
        oracle_matrix_row(&expected[(size_t)r * pitch], &m, (size_t)rows[r].token);
    }
    l2c_gpu_pass p = {};
    p.dim = dim, p.n = n, p.x = x.begin(), p.rows = rows.begin(), p.token_embedding = card.matrix;
    start(l2c_gpu_embed_launch(&p), p);
    finish();
    check_rows("embed", x.begin(), expected.data(), n, pitch);
    free((void *)m.data);
}

/* RMSNorm, of all rows or of those that want logits; in int8 the same as what quantize makes of it. */
void check_norm() {
    int dim = between(0, 4) ? between(1, 700) : between(4000, 9000), n = between(1, 10), pitch = l2c_gpu_pitch(dim);
    int group = between(0, 2) ? 4 * between(1, 100) : 0, gather = between(0, 1), n_out = n;
    std::vector<float> x = wild_rows(n, dim), weight = wild_rows(1, dim);
    buffer<float> card_x((size_t)n * pitch), card_weight(weight.data(), weight.size());
    copy_rows(card_x.begin(), x.data(), n, dim);
    buffer<l2c_gpu_row> rows((size_t)n);
    if (gather) {
        n_out = 0;
        for (int r = 0; r < n; r++) rows[r] = l2c_gpu_row{0, r, 0, between(0, 1) ? n_out++ : -1};
    }
    buffer<float> out((size_t)n * pitch);
    device_rows quantized(n, dim, group > 0 ? group : 32), again(n, dim, group > 0 ? group : 32);
    l2c_gpu_norm p = {card_x.begin(), card_weight.begin(), out.begin(), {}, gather ? rows.begin() : nullptr, n, dim, 1e-5f};
    if (group > 0) p.xq = quantized.rows;
    start(l2c_gpu_norm_launch(&p), p);
    finish();
    std::vector<float> expected((size_t)n * pitch);
    for (int r = 0; r < n; r++) {
        int to = gather ? rows[r].logits : r;
        const float *row = &x[(size_t)r * dim];
        float scale = 1.0f / sqrtf(l2c_kernels_scalar.dot(row, row, (size_t)dim) / (float)dim + 1e-5f);
        if (to >= 0) l2c_kernels_scalar.norm(&expected[(size_t)to * pitch], row, weight.data(), scale, (size_t)dim);
    }
    check_rows("norm", out.begin(), expected.data(), n, pitch);
    if (group == 0 || n_out == 0) return;
    l2c_gpu_quantize q = {out.begin(), again.rows, n_out};
    start(l2c_gpu_quantize_launch(&q), q);
    finish();
    check_bytes("norm's int8", quantized.rows.q, again.rows.q, l2c_gpu_q_bytes(&again.rows, n));
    check_bytes("norm's scales", quantized.rows.scales, again.rows.scales, l2c_gpu_q_scale_bytes(&again.rows, n));
    check_bytes("norm's sums", quantized.rows.sums, again.rows.sums, l2c_gpu_q_scale_bytes(&again.rows, n));
}

void check_swiglu() {
    int hidden = between(1, 1500), n = between(1, 10), pitch = l2c_gpu_pitch(hidden);
    int group = between(0, 2) ? 4 * between(1, 128) : 0;
    std::vector<float> gate = wild_rows(n, hidden), up = wild_rows(n, hidden);
    for (float &v : gate) v *= between(0, 9) ? 1.0f : 60.0f; /* where exp ends, too */
    buffer<float> card_gate((size_t)n * pitch), card_up((size_t)n * pitch);
    copy_rows(card_gate.begin(), gate.data(), n, hidden);
    copy_rows(card_up.begin(), up.data(), n, hidden);
    device_rows quantized(n, hidden, group > 0 ? group : 32), again(n, hidden, group > 0 ? group : 32);
    l2c_gpu_swiglu p = {card_gate.begin(), card_up.begin(), {}, n, hidden};
    if (group > 0) p.to = quantized.rows;
    start(l2c_gpu_swiglu_launch(&p), p);
    finish();
    std::vector<float> expected((size_t)n * pitch);
    l2c_kernels_scalar.swiglu(gate.data(), up.data(), gate.size());
    copy_rows(expected.data(), gate.data(), n, hidden);
    check_rows("swiglu", card_gate.begin(), expected.data(), n, pitch);
    if (group == 0) return;
    l2c_gpu_quantize q = {card_gate.begin(), again.rows, n};
    start(l2c_gpu_quantize_launch(&q), q);
    finish();
    check_bytes("swiglu's int8", quantized.rows.q, again.rows.q, l2c_gpu_q_bytes(&again.rows, n));
    check_bytes("swiglu's scales", quantized.rows.scales, again.rows.scales, l2c_gpu_q_scale_bytes(&again.rows, n));
    check_bytes("swiglu's sums", quantized.rows.sums, again.rows.sums, l2c_gpu_q_scale_bytes(&again.rows, n));
}

/* What is written into one sequence's heads and copied to another's comes out again, and nothing else has changed. */
void check_cache() {
    int kv = between(0, 1) ? L2C_GPU_KV_F16 : L2C_GPU_KV_F32, bytes = kv == L2C_GPU_KV_F16 ? 2 : 4;
    int heads = between(1, 5), n_ctx = between(1, 40), n = between(1, n_ctx), head = 2 * between(1, 40);
    size_t row = (size_t)l2c_gpu_pitch(head) * bytes, context = n_ctx * row, packed = (size_t)heads * n * head * bytes;
    buffer<unsigned char> cache(3 * heads * context), in(packed), out(packed);
    for (size_t i = 0; i < packed; i++) in[i] = (unsigned char)between(0, 255);
    int sequence = between(0, 2), other = (sequence + between(1, 2)) % 3;
    std::vector<unsigned char> expected(cache.count());
    for (int s : {sequence, other})
        for (int i = 0; i < heads; i++)
            for (int t = 0; t < n; t++)
                memcpy(&expected[(s * heads + i) * context + t * row], &in[((size_t)i * n + t) * head * bytes], head * bytes);
    l2c_gpu_cache p = {cache.begin(), in.begin(), (int64_t)sequence * heads, (int64_t)other * heads, heads, n, n_ctx, head, kv};
    start(l2c_gpu_cache_launch(L2C_GPU_KERNEL_cache_write, &p), p);
    start(l2c_gpu_cache_launch(L2C_GPU_KERNEL_cache_copy, &p), p);
    p.first = p.to;
    p.other = out.begin();
    start(l2c_gpu_cache_launch(L2C_GPU_KERNEL_cache_read, &p), p);
    finish();
    check_bytes("cache_write and cache_copy", cache.begin(), expected.data(), expected.size());
    check_bytes("cache_read", out.begin(), in.begin(), packed);
}

} // namespace

void test_rows() {
    for (int i = 0; i < 6; i++) check_embedding();
    for (int i = 0; i < 4; i++) check_norm();
    for (int i = 0; i < 3; i++) check_swiglu();
    for (int i = 0; i < 3; i++) check_cache();
}
