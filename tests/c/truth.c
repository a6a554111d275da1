/*
 * truth.c - a model's logits computed the plainest way, and sessions held against them.
 */
#include <stdlib.h>
#include <string.h>

#include "harness.h"

size_t available_isas(l2c_isa *isas) {
    size_t n = 0;
    for (int wanted = L2C_ISA_SCALAR; wanted <= L2C_ISA_I8MM; wanted++) {
        if (wanted == L2C_ISA_RUNQ) continue; /* other arithmetic */
        l2c_status status = l2c_isa_resolve((l2c_isa)wanted, &isas[n], NULL);
        CHECK(status == L2C_OK || status == L2C_UNSUPPORTED);
        n += status == L2C_OK;
    }
    CHECK(n > 0 && isas[0] == L2C_ISA_SCALAR);
    return n;
}

/* Index of a position among all positions. */
static size_t index_of(const truth *t, int32_t sequence, int32_t position) {
    return (size_t)sequence * (size_t)l2c_model_config(t->model)->seq_len + (size_t)position;
}

l2c_row truth_row(const truth *t, int32_t sequence, int32_t position) {
    return (l2c_row){sequence, position, t->tokens[index_of(t, sequence, position)], 1};
}

truth truth_make(const shape *c) { return truth_make_with(c, L2C_KV_FLOAT32); }

truth truth_make_with(const shape *c, l2c_kv kv) {
    truth t = {.file = image_checkpoint(c, 7)};
    l2c_pool *pool;
    l2c_session *session;
    CHECK(l2c_model_open_memory(t.file.data, t.file.size, L2C_DTYPE_AUTO, NULL, &t.model, NULL) == L2C_OK);
    CHECK(l2c_pool_create(1, &pool, NULL) == L2C_OK);
    CHECK(l2c_session_create(t.model, pool, TRUTH_SEQUENCES, 0, kv, L2C_ISA_SCALAR, &session, NULL) == L2C_OK);
    size_t n = index_of(&t, TRUTH_SEQUENCES, 0), vocab = (size_t)c->vocab_size;
    t.tokens = malloc(n * sizeof *t.tokens);
    t.logits = malloc(n * vocab * sizeof *t.logits);
    CHECK(t.tokens != NULL && t.logits != NULL);
    uint64_t random = 11;
    for (size_t i = 0; i < n; i++) t.tokens[i] = random_below(&random, c->vocab_size);
    for (int32_t sequence = 0; sequence < TRUTH_SEQUENCES; sequence++)
        for (int32_t position = 0; position < c->seq_len; position++) {
            l2c_row row = truth_row(&t, sequence, position);
            CHECK(l2c_session_forward(session, &row, 1, NULL) == L2C_OK);
            memcpy(t.logits + index_of(&t, sequence, position) * vocab, l2c_session_logits(session, 0),
                   vocab * sizeof(float));
        }
    l2c_session_free(session);
    l2c_pool_free(pool);
    return t;
}

void truth_free(truth *t) {
    l2c_model_free(t->model);
    free(t->file.data);
    free(t->tokens);
    free(t->logits);
}

int truth_equals(const truth *t, int32_t sequence, int32_t position, const float *logits) {
    size_t vocab = (size_t)l2c_model_config(t->model)->vocab_size;
    return memcmp(logits, t->logits + index_of(t, sequence, position) * vocab, vocab * sizeof *logits) == 0;
}

l2c_pool *truth_pool(int32_t n_threads) {
    l2c_pool *pool;
    CHECK(l2c_pool_create(n_threads, &pool, NULL) == L2C_OK);
    return pool;
}

l2c_session *truth_session(const truth *t, l2c_pool *pool) {
    l2c_session *session;
    CHECK(l2c_session_create(t->model, pool, TRUTH_SEQUENCES, 0, L2C_KV_FLOAT32, L2C_ISA_AUTO, &session, NULL) == L2C_OK);
    return session;
}

void truth_check_session(const truth *t, l2c_session *session, uint64_t seed) {
    int32_t seq_len = l2c_model_config(t->model)->seq_len, next[TRUTH_SEQUENCES] = {0};
    int32_t left = TRUTH_SEQUENCES * seq_len;
    while (left > 0) {
        /* One row alone is the commonest call, and has code paths of its own. */
        int32_t n = random_below(&seed, 3) == 0 ? 1 : 1 + random_below(&seed, L2C_MAX_ROWS);
        if (n > left) n = left;
        left -= n;
        l2c_row *rows = malloc((size_t)n * sizeof *rows); /* exactly, for ASan */
        CHECK(rows != NULL);
        for (int32_t r = 0; r < n; r++) {
            int32_t sequence = random_below(&seed, TRUTH_SEQUENCES);
            while (next[sequence] == seq_len) sequence = (sequence + 1) % TRUTH_SEQUENCES;
            rows[r] = truth_row(t, sequence, next[sequence]++);
            rows[r].want_logits = random_below(&seed, 4) != 0;
        }
        CHECK(l2c_session_forward(session, rows, (size_t)n, NULL) == L2C_OK);
        size_t kept = 0;
        for (int32_t r = 0; r < n; r++)
            if (rows[r].want_logits)
                CHECK(truth_equals(t, rows[r].sequence, rows[r].position, l2c_session_logits(session, kept++)));
        CHECK(l2c_session_logits(session, kept) == NULL);
        free(rows);
    }
}
