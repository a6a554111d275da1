/*
 * test_passes.cpp - whole passes over random models, as the host queues them, against sessions on the CPU.
 */
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

void check_passes() {
    oracle_shape shape = pick_shape();
    l2c_model *model = oracle_model_make(&shape, &random_state);
    int n_ctx = between(1, shape.seq_len), sequences = between(1, 3), n_rows = between(1, 20);
    l2c_kv kv = between(0, 1) ? L2C_KV_FLOAT16 : L2C_KV_FLOAT32;
    l2c_error err;
    l2c_pool *pool;
    l2c_session *session;
    if (l2c_pool_create(1, &pool, &err) != L2C_OK ||
        l2c_session_create(model, pool, sequences, n_ctx, kv, L2C_ISA_SCALAR, &session, &err) != L2C_OK) {
        printf("no session: %s\n", err.message);
        failures++;
        return;
    }
    device_session card(model, shape, sequences, n_ctx, kv, n_rows);
    std::vector<int> lengths((size_t)sequences, 0);
    for (int call = 0; call < 4; call++) {
        std::vector<l2c_row> rows = pick_rows(lengths, n_ctx, shape.vocab_size, n_rows);
        if (rows.empty()) break;
        if (l2c_session_forward(session, rows.data(), rows.size(), &err) != L2C_OK) {
            printf("%s\n", err.message);
            failures++;
            break;
        }
        card.forward(rows);
        int n_logits = 0;
        for (const l2c_row &row : rows) {
            if (!row.want_logits) continue;
            check_bytes("logits of a pass", card.logits(n_logits), l2c_session_logits(session, (size_t)n_logits),
                        (size_t)shape.vocab_size * 4);
            n_logits++;
        }
    }
    if (int n = l2c_session_length(session, 0)) { /* what save gives: the same bytes on either */
        std::vector<unsigned char> saved = card.saved(0, n), expected(saved.size());
        if (l2c_session_save(session, n, expected.data(), &err) != L2C_OK) failures++;
        check_bytes("saved cache", saved.data(), expected.data(), saved.size());
    }
    l2c_session_free(session);
    l2c_pool_free(pool);
    oracle_model_free(model);
}

} // namespace

void test_passes() {
    for (int i = 0; i < 6; i++) check_passes();
}
