/*
 * fuzz_checkpoint.c - libFuzzer: any bytes as a checkpoint; what opens is run.
 */
#include <stdlib.h>
#include <string.h>

#include "llama2c.h"

static void run(const l2c_model *model) {
    const l2c_config *c = l2c_model_config(model);
    int32_t n_ctx = c->seq_len < 8 ? c->seq_len : 8;
    if (l2c_session_bytes(model, 1, n_ctx) > (64u << 20)) return;
    l2c_pool *pool = NULL;
    l2c_session *session = NULL;
    if (l2c_pool_create(1, &pool, NULL) != L2C_OK) return;
    if (l2c_session_create(model, pool, 1, n_ctx, L2C_ISA_AUTO, &session, NULL) == L2C_OK) {
        l2c_sampler sampler;
        l2c_sampler_init(&sampler, 1);
        l2c_row row = {0, 0, 0, 1};
        for (; row.position < n_ctx; row.position++) {
            if (l2c_session_forward(session, &row, 1, NULL) != L2C_OK) abort();
            sampler.top_k = row.position % 2 * 3;
            sampler.temperature = row.position % 3 == 0 ? 0.0f : 1.0f;
            double logprob;
            l2c_session_logprob(session, 0, row.token, &logprob, NULL);
            l2c_status status = l2c_session_sample(session, 0, &sampler, &row.token, 1, &row.token, NULL);
            if (status == L2C_NONFINITE) break;
            if (status != L2C_OK || row.token < 0 || row.token >= c->vocab_size) abort();
        }
    }
    l2c_session_free(session);
    l2c_pool_free(pool);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    unsigned char *copy = malloc(size ? size : 1); /* aligned, and of exactly this size */
    if (size) memcpy(copy, data, size);
    l2c_model *model = NULL;
    if (l2c_model_open_memory(copy, size, &model, NULL) == L2C_OK) run(model);
    l2c_model_free(model);
    free(copy);
    return 0;
}
