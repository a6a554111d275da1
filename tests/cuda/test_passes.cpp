/*
 * test_passes.cpp - whole passes over random models, as the host queues them, against sessions on the CPU.
 */
#include <stdlib.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "check.h"
#include "passes.h"

namespace {

oracle_shape pick_shape() {
    const int groups[] = {0, 32, 32, 32, 4, 64, 12, 512};
    oracle_shape s = {};
    s.n_kv_heads = between(1, 2);
    s.n_heads = s.n_kv_heads * between(1, 3);
    s.head_size = between(0, 1) ? 16 : 2 * between(1, 20);
    s.dim = between(0, 1) ? s.n_heads * s.head_size : between(2, 120);
    s.hidden_dim = between(1, 200);
    s.n_layers = between(1, 2);
    s.vocab_size = between(2, 150);
    s.seq_len = between(2, 40);
    s.group = groups[between(0, 7)];
    return s;
}

/* A model, and a session of it on either side. */
struct pair_of_sessions {
    oracle_shape shape = pick_shape();
    l2c_model *model = oracle_model_make(&shape, &random_state);
    int n_ctx = between(1, shape.seq_len), sequences, n_rows;
    l2c_kv kv = between(0, 1) ? L2C_KV_FLOAT16 : L2C_KV_FLOAT32;
    l2c_error err;
    l2c_pool *pool;
    l2c_session *cpu;
    std::unique_ptr<device_session> card;

    pair_of_sessions(int sequences, int n_rows) : sequences(sequences), n_rows(n_rows) {
        if (l2c_pool_create(1, &pool, &err) != L2C_OK ||
            l2c_session_create(model, pool, sequences, n_ctx, kv, L2C_ISA_SCALAR, &cpu, &err) != L2C_OK) {
            printf("no session: %s\n", err.message);
            exit(1);
        }
        card = std::make_unique<device_session>(model, shape, sequences, n_ctx, kv, n_rows);
    }
    ~pair_of_sessions() {
        l2c_session_free(cpu);
        l2c_pool_free(pool);
        oracle_model_free(model);
    }
    void forward_cpu(const std::vector<l2c_row> &rows) {
        if (l2c_session_forward(cpu, rows.data(), rows.size(), &err) == L2C_OK) return;
        printf("%s\n", err.message);
        failures++;
    }
    void check_logits(const std::vector<l2c_row> &rows) {
        int i = 0;
        for (const l2c_row &row : rows)
            if (row.want_logits) {
                check_bytes("logits of a pass", card->logits(i), l2c_session_logits(cpu, (size_t)i), (size_t)shape.vocab_size * 4);
                i++;
            }
    }
    void check_saved() { /* the same bytes on either */
        int n = l2c_session_length(cpu, 0);
        if (n == 0) return;
        std::vector<unsigned char> saved = card->saved(0, n), expected(saved.size());
        if (l2c_session_save(cpu, n, expected.data(), &err) != L2C_OK) failures++;
        check_bytes("saved cache", saved.data(), expected.data(), saved.size());
    }
};

/* Calls of any rows, by a kernel a phase or, where they are few, by a decode kernel. */
void check_passes() {
    pair_of_sessions s(between(1, 3), between(1, 20));
    std::vector<int> lengths((size_t)s.sequences, 0), none;
    for (int call = 0; call < 4; call++) {
        std::vector<l2c_row> rows = pick_rows(lengths, s.n_ctx, s.shape.vocab_size, s.n_rows);
        if (rows.empty()) break;
        s.forward_cpu(rows);
        if (rows.size() <= 8 && between(0, 1) && l2c_gpu_decode_takes(s.card->pass.layers, s.shape.n_layers))
            s.card->decode(rows, {}, {}, {}, 1, 0, none);
        else s.card->forward(rows);
        s.check_logits(rows);
    }
    s.check_saved();
}

/* Stories of one token each, how they go on, and the coins for that. */
struct stories {
    int n, steps;
    std::vector<l2c_sampler> samplers;
    std::vector<l2c_gpu_draw> draws;
    std::vector<l2c_row> rows;
    std::vector<float> coins; /* (steps, n) */
    std::vector<int> ends;

    stories(int n, const pair_of_sessions &s) : n(n), steps(between(1, s.n_ctx > 6 ? 6 : s.n_ctx)), samplers((size_t)n) {
        coins.resize((size_t)(n * steps));
        int most = between(0, 2) ? 2 : s.shape.vocab_size / 3;
        for (int e = between(0, most); e > 0; e--) ends.push_back(between(0, s.shape.vocab_size - 1));
        for (int i = 0; i < n; i++) {
            l2c_sampler_init(&samplers[i], random_next(&random_state));
            samplers[i].temperature = between(0, 3) ? 1.0f : 0.0f;
            samplers[i].top_p = between(0, 1) ? 0.9f : 1.0f;
            draws.push_back(l2c_gpu_draw{i, samplers[i].temperature, samplers[i].top_p, 0.0f, 0, 0.0f, 0, between(1, steps)});
            rows.push_back(l2c_row{i, 0, between(0, s.shape.vocab_size - 1), 1});
            l2c_sampler tossing = samplers[i];
            for (int step = 0; step < steps; step++) {
                coins[step * n + i] = oracle_coin(&tossing);
                int32_t token; /* moves the state on; a greedy sampler tosses no coin, and its coin is not looked at */
                std::vector<float> flat(2, 0.0f);
                oracle_pick(&tossing, flat.data(), 2, nullptr, 0, &token);
            }
        }
    }
    bool is_end(int token) const { return std::find(ends.begin(), ends.end(), token) != ends.end(); }
};

/* Some tokens of several stories in one launch: those that the CPU draws one by one, up to where the launch ends. */
void check_decoding() {
    int n = between(0, 2) ? between(1, 3) : between(4, 8), cancel = between(0, 9) == 0;
    pair_of_sessions s(n, n);
    if (!l2c_gpu_decode_takes(s.card->pass.layers, s.shape.n_layers)) return;
    stories told(n, s);
    std::vector<int> tokens;
    int done = s.card->decode(told.rows, told.draws, told.coins, told.ends, told.steps, cancel, tokens), step = 0;
    for (bool end = false; step < told.steps && !end; step++) {
        s.forward_cpu(told.rows);
        for (int i = 0; i < n; i++) {
            int32_t token = -1;
            if (l2c_session_sample(s.cpu, (size_t)i, &told.samplers[i], nullptr, 0, &token, &s.err) != L2C_OK) failures++;
            check_bytes("token of a decode kernel", &tokens[step * n + i], &token, sizeof token);
            end |= told.is_end(token);
            told.rows[i].token = token;
            told.rows[i].position++;
        }
        end |= cancel;
    }
    check_bytes("sweeps", &done, &step, sizeof done);
    s.check_saved();
}

/* The same by sweeps on the stream, of more stories, each of which goes on to an end of its own, and then stays there: its
 * logits are still those that its last token was drawn from. */
void check_telling() {
    int n = between(0, 2) ? between(1, 4) : between(5, 20);
    pair_of_sessions s(n, n);
    stories told(n, s);
    std::vector<int> tokens;
    std::vector<std::vector<float>> last((size_t)n);
    s.card->tell(told.rows, told.draws, told.coins, told.ends, told.steps, tokens);
    for (int step = 0; step < told.steps; step++) {
        std::vector<l2c_row> rows;
        std::vector<int> which;
        for (int i = 0; i < n; i++)
            if (step < told.draws[i].left) rows.push_back(told.rows[i]), which.push_back(i);
        if (rows.empty()) break;
        s.forward_cpu(rows);
        for (size_t r = 0; r < rows.size(); r++) {
            int i = which[r];
            int32_t token = -1;
            const float *logits = l2c_session_logits(s.cpu, r);
            last[i].assign(logits, logits + s.shape.vocab_size);
            if (l2c_session_sample(s.cpu, r, &told.samplers[i], nullptr, 0, &token, &s.err) != L2C_OK) failures++;
            check_bytes("token of a sweep", &tokens[step * n + i], &token, sizeof token);
            if (told.is_end(token)) told.draws[i].left = 0;
            told.rows[i].token = token;
            told.rows[i].position++;
        }
    }
    for (int i = 0; i < n; i++)
        check_bytes("logits after the last token", s.card->logits(i), last[i].data(), last[i].size() * sizeof(float));
    s.check_saved();
}

} // namespace

void test_passes() {
    for (int i = 0; i < 6; i++) check_passes();
    for (int i = 0; i < 4; i++) check_decoding();
    for (int i = 0; i < 3; i++) check_telling();
}
