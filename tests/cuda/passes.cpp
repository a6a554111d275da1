/*
 * passes.cpp - the phases in order; the rows of calls.
 */
#include "passes.h"

#include <algorithm>

/* A matrix in 16 bits where all its values allow it, as the host stores it. */
static std::unique_ptr<device_matrix> on_card(const l2c_matrix &m) {
    bool half = m.type == L2C_WEIGHTS_F32, bfloat16 = half;
    for (size_t i = 0; (half || bfloat16) && i < m.rows * m.cols; i++) {
        float value = ((const float *)m.data)[i], back = l2c_half_to_float(l2c_float_to_half(value));
        uint32_t bits;
        memcpy(&bits, &value, sizeof bits);
        half &= memcmp(&value, &back, sizeof value) == 0;
        bfloat16 &= (bits & 0xFFFF) == 0;
    }
    return std::make_unique<device_matrix>(m, half || bfloat16, !half);
}

l2c_gpu_quantized device_session::make_quantized(int n, int cols, int group) {
    if (group == 0) return l2c_gpu_quantized{};
    l2c_gpu_quantized x = l2c_gpu_quantized_shape(cols, group);
    x.q = make<int8_t>(l2c_gpu_q_bytes(&x, n));
    x.scales = make<float>(l2c_gpu_q_scale_bytes(&x, n) / 4);
    x.sums = make<int32_t>(l2c_gpu_q_scale_bytes(&x, n) / 4);
    return x;
}

device_session::device_session(const l2c_model *model, const oracle_shape &s, int sequences, int n_ctx, l2c_kv kv,
                               int max_rows)
    : pass() {
    int q_dim = s.n_heads * s.head_size, kv_dim = s.n_kv_heads * s.head_size, pairs = s.head_size / 2;
    size_t cache = (size_t)sequences * s.n_layers * s.n_kv_heads * n_ctx * l2c_gpu_pitch(s.head_size);
    pass.n_layers = s.n_layers, pass.dim = s.dim, pass.hidden_dim = s.hidden_dim, pass.n_heads = s.n_heads;
    pass.n_kv_heads = s.n_kv_heads, pass.head_size = s.head_size, pass.vocab_size = s.vocab_size;
    pass.norm_eps = l2c_model_config(model)->norm_eps;
    l2c_gpu_layer *on_device = make<l2c_gpu_layer>((size_t)s.n_layers);
    pass.layers = on_device;
    for (int l = 0; l < s.n_layers; l++) {
        device_layer held;
        for (int i = 0; i < 7; i++) held.matrices[i] = on_card(*oracle_model_matrix(model, i, l));
        for (int i = 0; i < 2; i++)
            held.norms[i] = std::make_unique<buffer<float>>(oracle_model_norm(model, i, l), (size_t)s.dim);
        const auto &m = held.matrices;
        on_device[l] = l2c_gpu_layer{held.norms[0]->begin(), held.norms[1]->begin(), m[0]->matrix, m[1]->matrix,
                                     m[2]->matrix,           m[3]->matrix,           m[4]->matrix, m[6]->matrix,
                                     m[5]->matrix};
        layers.push_back(std::move(held));
    }
    embedding = on_card(*oracle_model_matrix(model, ORACLE_EMBEDDING, 0));
    classifier = on_card(*oracle_model_matrix(model, ORACLE_CLASSIFIER, 0));
    pass.token_embedding = embedding->matrix;
    pass.classifier = classifier->matrix;
    float *norm = make<float>((size_t)s.dim);
    float *cosine = make<float>((size_t)n_ctx * pairs), *sine = make<float>((size_t)n_ctx * pairs);
    memcpy(norm, oracle_model_norm(model, 2, 0), (size_t)s.dim * sizeof *norm);
    oracle_model_rope(model, n_ctx, cosine, sine);
    pass.final_norm = norm, pass.rope_cos = cosine, pass.rope_sin = sine;
    pass.n_ctx = n_ctx;
    pass.kv = kv == L2C_KV_FLOAT16 ? L2C_GPU_KV_F16 : L2C_GPU_KV_F32;
    pass.key_cache = make<char>(cache * (kv == L2C_KV_FLOAT16 ? 2 : 4));
    pass.value_cache = make<char>(cache * (kv == L2C_KV_FLOAT16 ? 2 : 4));
    pass.x = make_rows(max_rows, s.dim), pass.xb = make_rows(max_rows, s.dim);
    pass.q = make_rows(max_rows, q_dim), pass.k = make_rows(max_rows, kv_dim), pass.v = make_rows(max_rows, kv_dim);
    pass.attn_out = make_rows(max_rows, q_dim);
    pass.hb = make_rows(max_rows, s.hidden_dim), pass.up = make_rows(max_rows, s.hidden_dim);
    pass.logits = make<float>((size_t)max_rows * s.vocab_size);
    pass.xq = make_quantized(max_rows, s.dim, s.group);
    pass.aq = make_quantized(max_rows, q_dim, s.group);
    pass.hq = make_quantized(max_rows, s.hidden_dim, s.group);
    pass.score_slots = between(1, 4);
    pass.scores = make<float>((size_t)pass.score_slots * n_ctx);
}

void device_session::linear(const l2c_gpu_matrix &w, const float *x, const l2c_gpu_quantized &xq, float *out,
                            int out_pitch, int n, int accumulate) {
    l2c_gpu_linear p = {w, x, xq, out, out_pitch, n, accumulate};
    start(l2c_gpu_linear_launch(&p), p);
}

void device_session::layer(int l, int max_keys) {
    const l2c_gpu_layer &w = pass.layers[l];
    int q_dim = pass.n_heads * pass.head_size, kv_dim = pass.n_kv_heads * pass.head_size, n = pass.n;
    int dim = l2c_gpu_pitch(pass.dim), hidden = l2c_gpu_pitch(pass.hidden_dim);
    pass.layer = l;
    l2c_gpu_norm norm = {pass.x, w.attention_norm, pass.xb, pass.xq, nullptr, n, pass.dim, pass.norm_eps};
    start(l2c_gpu_norm_launch(&norm), norm);
    linear(w.wq, pass.xb, pass.xq, pass.q, l2c_gpu_pitch(q_dim), n, 0);
    linear(w.wk, pass.xb, pass.xq, pass.k, l2c_gpu_pitch(kv_dim), n, 0);
    linear(w.wv, pass.xb, pass.xq, pass.v, l2c_gpu_pitch(kv_dim), n, 0);
    start(l2c_gpu_store_kv_launch(&pass), pass);
    l2c_gpu_launch attention = l2c_gpu_attention_launch(&pass, max_keys, between(0, 3) ? 48 << 10 : 0);
    start(attention, pass);
    if (w.wo.type >= L2C_GPU_Q8) {
        l2c_gpu_quantize quantize = {pass.attn_out, pass.aq, n};
        start(l2c_gpu_quantize_launch(&quantize), quantize);
    }
    linear(w.wo, pass.attn_out, pass.aq, pass.x, dim, n, 1);
    norm.weight = w.ffn_norm;
    start(l2c_gpu_norm_launch(&norm), norm);
    linear(w.w1, pass.xb, pass.xq, pass.hb, hidden, n, 0);
    linear(w.w3, pass.xb, pass.xq, pass.up, hidden, n, 0);
    l2c_gpu_swiglu swiglu = {pass.hb, pass.up, pass.hq, n, pass.hidden_dim};
    start(l2c_gpu_swiglu_launch(&swiglu), swiglu);
    linear(w.w2, pass.hb, pass.hq, pass.x, dim, n, 1);
}

/* Puts a call's rows on the card; returns the keys of the longest. */
int device_session::take(const std::vector<l2c_row> &call) {
    int max_keys = 0;
    rows = std::make_unique<buffer<l2c_gpu_row>>(call.size());
    pass.n = (int32_t)call.size();
    pass.n_logits = 0;
    pass.rows = rows->begin();
    for (size_t r = 0; r < call.size(); r++) {
        const l2c_row &row = call[r];
        (*rows)[r] = l2c_gpu_row{row.sequence, row.position, row.token, row.want_logits ? pass.n_logits++ : -1};
        max_keys = std::max(max_keys, row.position + 1);
    }
    return max_keys;
}

void device_session::sweep(int max_keys) {
    start(l2c_gpu_embed_launch(&pass), pass);
    for (int l = 0; l < pass.n_layers; l++) layer(l, max_keys);
    if (pass.n_logits > 0) {
        l2c_gpu_norm norm = {pass.x, pass.final_norm, pass.xb, pass.xq, pass.rows, pass.n, pass.dim, pass.norm_eps};
        start(l2c_gpu_norm_launch(&norm), norm);
        linear(pass.classifier, pass.xb, pass.xq, pass.logits, pass.vocab_size, pass.n_logits, 0);
    }
}

void device_session::forward(const std::vector<l2c_row> &call) {
    sweep(take(call));
    finish();
}

void device_session::tell(const std::vector<l2c_row> &call, const std::vector<l2c_gpu_draw> &draws,
                          const std::vector<float> &coins, const std::vector<int> &ends, int steps,
                          std::vector<int> &tokens) {
    int max_keys = take(call);
    buffer<l2c_gpu_draw> card_draws(draws.data(), draws.size());
    buffer<float> card_coins(coins.data(), coins.size());
    buffer<int> card_ends(ends.data(), ends.size()), out(draws.size() * steps);
    l2c_gpu_sample p = {};
    p.logits = pass.logits, p.draws = card_draws.begin(), p.vocab_size = pass.vocab_size, p.n = pass.n;
    p.rows = rows->begin(), p.coins = card_coins.begin(), p.ends = card_ends.begin(), p.tokens = out.begin();
    p.n_ends = (int)ends.size();
    for (p.step = 0; p.step < steps; p.step++) {
        sweep(max_keys + p.step);
        start(l2c_gpu_sample_launch(&p), p);
    }
    finish();
    tokens.assign(out.begin(), out.begin() + out.count());
}

int device_session::decode(const std::vector<l2c_row> &call, const std::vector<l2c_gpu_draw> &draws,
                           const std::vector<float> &coins, const std::vector<int> &ends, int steps, int cancel,
                           std::vector<int> &tokens) {
    int max_keys = take(call) + steps - 1, blocks = between(1, 3);
    buffer<l2c_gpu_draw> card_draws(draws.data(), draws.size());
    buffer<float> card_coins(coins.data(), coins.size());
    buffer<int> card_ends(ends.data(), ends.size()), flags(2), out(draws.size() * steps);
    buffer<l2c_gpu_decode_state> state(1);
    flags[0] = cancel;
    l2c_gpu_decode p = {};
    p.pass = pass;
    p.rows = rows->begin();
    p.draws = card_draws.begin(), p.coins = card_coins.begin(), p.ends = card_ends.begin();
    p.cancel = &flags[0], p.done = &flags[1], p.tokens = out.begin(), p.state = state.begin();
    p.n_draws = (int)draws.size(), p.n_ends = (int)ends.size(), p.steps = steps;
    l2c_gpu_launch launch = l2c_gpu_decode_launch(&p, max_keys, blocks, between(0, 1) ? 100 << 10 : 18 << 10);
    buffer<unsigned char> inputs((size_t)(blocks * p.input_bytes));
    buffer<float> scores((size_t)blocks * pass.n_ctx);
    p.inputs = inputs.begin(), p.pass.scores = scores.begin();
    start(launch, p, true);
    finish();
    tokens.assign(out.begin(), out.begin() + out.count());
    return flags[1];
}

std::vector<unsigned char> device_session::saved(int sequence, int n) {
    int heads = pass.n_layers * pass.n_kv_heads, size = pass.kv == L2C_GPU_KV_F16 ? 2 : 4;
    size_t bytes = (size_t)heads * n * pass.head_size * size;
    buffer<unsigned char> out(2 * bytes);
    for (int i = 0; i < 2; i++) {
        void *cache = i ? pass.value_cache : pass.key_cache;
        l2c_gpu_cache p = {cache, out.begin() + i * bytes, (int64_t)sequence * heads, 0, heads, n,
                           pass.n_ctx, pass.head_size, pass.kv};
        start(l2c_gpu_cache_launch(L2C_GPU_KERNEL_cache_read, &p), p);
    }
    finish();
    return std::vector<unsigned char>(out.begin(), out.begin() + 2 * bytes);
}

std::vector<l2c_row> pick_rows(std::vector<int> &lengths, int n_ctx, int vocab, int n_rows) {
    std::vector<l2c_row> rows;
    int left = between(1, n_rows);
    for (size_t s = 0; s < lengths.size() && left > 0; s++) {
        if (lengths[s] > 0 && between(0, 3) == 0) lengths[s] = between(0, lengths[s] - 1);
        int n = std::min({between(0, left), n_ctx - lengths[s]});
        for (int i = 0; i < n; i++)
            rows.push_back(l2c_row{(int32_t)s, lengths[s] + i, between(0, vocab - 1), between(0, 2) > 0});
        lengths[s] += n;
        left -= n;
    }
    return rows;
}
