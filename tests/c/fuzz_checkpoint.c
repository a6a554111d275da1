/*
 * fuzz_checkpoint.c - libFuzzer target: any bytes as a checkpoint. What opens must compute the same
 * bits with every instruction set, and be sampled from, without a sanitizer's complaint.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "llama2c.h"

enum { ROWS = 5, MOST_BYTES = 64 << 20 };

static const l2c_logit_bias bias = {0, 1.0f};
static const l2c_sampler settings[] = {
    {.temperature = 0.0f, .repetition_penalty = 1.0f, .rng_state = 1},
    {.temperature = 1.0f, .top_p = 0.9f, .repetition_penalty = 1.0f, .rng_state = 2},
    {.temperature = 1.0f, .repetition_penalty = 1.1f, .presence_penalty = 0.5f, .frequency_penalty = -0.5f, .rng_state = 3},
    {.temperature = 0.5f, .top_k = 3, .min_p = 0.1f, .repetition_penalty = 1.0f, .biases = &bias, .n_biases = 1, .rng_state = 4},
    {.temperature = 1e-38f, .top_p = 1e-8f, .repetition_penalty = 1.0f, .rng_state = 5},
};

static void require(int condition) {
    if (!condition) abort(); /* which libFuzzer reports */
}

/* Fills logits (ROWS, vocab) and then uses the rows up. */
static void run(const l2c_model *model, int32_t n_ctx, l2c_isa isa, float *logits) {
    int32_t vocab = l2c_model_config(model)->vocab_size;
    l2c_pool *pool;
    l2c_session *session;
    require(l2c_pool_create(1, &pool, NULL) == L2C_OK);
    require(l2c_session_create(model, pool, 2, n_ctx, L2C_KV_FLOAT32, isa, &session, NULL) == L2C_OK);
    l2c_row rows[ROWS];
    for (int32_t i = 0; i < ROWS; i++) /* two sequences in turn; together, as a matrix product */
        rows[i] = (l2c_row){i % 2, i / 2 % n_ctx, (int32_t)((uint32_t)i * 7919u % (uint32_t)vocab), 1};
    if (n_ctx < (ROWS + 1) / 2) { /* too short for that: one by one */
        for (size_t i = 0; i < ROWS; i++) {
            require(l2c_session_forward(session, &rows[i], 1, NULL) == L2C_OK);
            memcpy(logits + i * (size_t)vocab, l2c_session_logits(session, 0), (size_t)vocab * sizeof *logits);
        }
    } else {
        require(l2c_session_forward(session, rows, ROWS, NULL) == L2C_OK);
        memcpy(logits, l2c_session_logits(session, 0), ROWS * (size_t)vocab * sizeof *logits);
        for (size_t i = 0; i < ROWS; i++) {
            l2c_sampler sampler = settings[i];
            int32_t token = -1, history[] = {0, vocab - 1};
            double logprob;
            l2c_status status = l2c_session_logprob(session, i, 0, &logprob, NULL);
            require(status == L2C_OK || status == L2C_NONFINITE);
            status = l2c_session_sample(session, i, &sampler, history, 2, &token, NULL);
            require(status == L2C_OK ? token >= 0 && token < vocab : status == L2C_NONFINITE);
        }
    }
    l2c_session_free(session);
    l2c_pool_free(pool);
}

/* The fastest kernels against the oracle. */
static void compare(const l2c_model *model) {
    const l2c_config *c = l2c_model_config(model);
    int32_t n_ctx = c->seq_len < 8 ? c->seq_len : 8; /* v1 and v2 files claim any length */
    if (l2c_session_bytes(model, 2, n_ctx, L2C_KV_FLOAT32, 1) > MOST_BYTES) return;
    size_t n = ROWS * (size_t)c->vocab_size;
    float *scalar = malloc(n * sizeof *scalar), *fastest = malloc(n * sizeof *fastest);
    require(scalar != NULL && fastest != NULL);
    run(model, n_ctx, L2C_ISA_SCALAR, scalar);
    run(model, n_ctx, L2C_ISA_AUTO, fastest);
    for (size_t i = 0; i < n; i++) /* which NaN is for the processor to choose */
        require((isnan(scalar[i]) && isnan(fastest[i])) || memcmp(&scalar[i], &fastest[i], sizeof(float)) == 0);
    free(scalar);
    free(fastest);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    unsigned char *copy = malloc(size + (size == 0)); /* aligned, and of exactly the size */
    require(copy != NULL);
    if (size > 0) memcpy(copy, data, size);
    for (l2c_dtype dtype = L2C_DTYPE_AUTO; dtype <= L2C_DTYPE_FILE; dtype++) {
        if (dtype == L2C_DTYPE_MIXED) continue;
        l2c_model *model = NULL, *header = NULL;
        l2c_status opened = l2c_model_open_memory(copy, size, dtype, NULL, &model, NULL);
        l2c_status read = l2c_model_open_header_memory(copy, size, dtype, &header, NULL);
        require(read == opened || (read == L2C_OK && opened == L2C_FORMAT)); /* of weights, which may be NaN */
        if (opened == L2C_OK) {
            require(memcmp(l2c_model_config(header), l2c_model_config(model), sizeof(l2c_config)) == 0);
            require(l2c_model_bytes(header) == l2c_model_bytes(model));
            require(l2c_model_sweep_bytes(header) == l2c_model_sweep_bytes(model));
            compare(model);
        }
        l2c_model_free(model);
        l2c_model_free(header);
    }
    free(copy);
    return 0;
}
