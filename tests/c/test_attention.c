/*
 * test_attention.c - the weights that l2c_session_attention tells are those that values were summed with.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cpu_session.h"
#include "harness.h"

/* Long enough for threads to share a tile's positions. */
static const shape long_context = {16, 8, 2, 2, 1, 259, 300, 0, 1, 0};

/* The last layer's attn_out of the only row, of `weights` (n_heads, n_keys) and the values in the cache. */
static void sum_values(const l2c_cpu_session *s, const float *weights, size_t n_keys, float *out) {
    const l2c_config *c = &s->model->config;
    size_t head_size = (size_t)c->head_size, n_heads = (size_t)c->n_heads, n_kv_heads = (size_t)c->n_kv_heads;
    float *values = malloc(s->n_ctx * head_size * sizeof *values);
    CHECK(values != NULL);
    for (size_t h = 0; h < n_heads; h++) {
        size_t index = (size_t)(c->n_layers - 1) * n_kv_heads + h / (n_heads / n_kv_heads); /* of sequence 0 */
        const unsigned char *cached = s->value_cache + index * s->n_ctx * head_size * s->kv_bytes;
        if (s->kv == L2C_KV_FLOAT16) s->kernels->f16_to_f32(values, (const uint16_t *)cached, n_keys * head_size);
        else memcpy(values, cached, n_keys * head_size * sizeof *values);
        for (size_t t = 0; t < n_keys; t += L2C_SUM_BLOCK) {
            size_t n = n_keys - t < L2C_SUM_BLOCK ? n_keys - t : L2C_SUM_BLOCK;
            s->kernels->weighted_sum(out + h * head_size, head_size, weights + h * n_keys + t, n_keys, 1, 0,
                                     values + t * head_size, (ptrdiff_t)n, head_size, t > 0);
        }
    }
    free(values);
}

static void check_position(const truth *t, l2c_session *session, int32_t position, float *weights) {
    const l2c_config *c = l2c_model_config(t->model);
    const l2c_cpu_session *s = session->state;
    size_t n_keys = (size_t)position + 1, rows = (size_t)c->n_layers * (size_t)c->n_heads;
    size_t q_dim = (size_t)c->n_heads * (size_t)c->head_size;
    float *own = malloc(rows * n_keys * sizeof *own), *out = malloc(q_dim * sizeof *out); /* exactly, for ASan */
    CHECK(own != NULL && out != NULL);
    memset(own, 0xFF, rows * n_keys * sizeof *own); /* NaN */
    l2c_row row = truth_row(t, 0, position);
    CHECK(l2c_session_attention(session, &row, own, NULL) == L2C_OK);
    CHECK(truth_equals(t, 0, position, l2c_session_logits(session, 0)));
    CHECK(l2c_session_length(session, 0) == position + 1);
    for (size_t r = 0; r < rows; r++) {
        double sum = 0;
        for (size_t k = 0; k < n_keys; k++) {
            CHECK(own[r * n_keys + k] >= 0.0f);
            sum += (double)own[r * n_keys + k];
        }
        CHECK(fabs(sum - 1) < 1e-5);
    }
    sum_values(s, own + (rows - (size_t)c->n_heads) * n_keys, n_keys, out);
    CHECK(memcmp(out, s->attn_out, q_dim * sizeof *out) == 0);
    /* the same bits as from the first thread count and instruction set that came here */
    if (isnan(weights[0])) memcpy(weights, own, rows * n_keys * sizeof *own);
    CHECK(memcmp(weights, own, rows * n_keys * sizeof *own) == 0);
    free(own);
    free(out);
}

static void check_shape(const shape *c, l2c_kv kv) {
    static const int32_t n_threads[] = {1, 2, 5};
    truth t = truth_make_with(c, kv);
    l2c_isa isas[MAX_ISAS];
    size_t n_isas = available_isas(isas), n = (size_t)c->n_layers * (size_t)c->n_heads * (size_t)c->seq_len;
    const int32_t positions[] = {0, 1, c->seq_len / 2, c->seq_len - 1};
    enum { N = sizeof positions / sizeof *positions };
    float *weights = malloc(N * n * sizeof *weights);
    CHECK(weights != NULL);
    for (size_t i = 0; i < N * n; i++) weights[i] = NAN;
    for (size_t i = 0; i < n_isas; i++)
        for (size_t k = 0; k < sizeof n_threads / sizeof *n_threads; k++) {
            l2c_pool *pool;
            l2c_session *session;
            CHECK(l2c_pool_create(n_threads[k], &pool, NULL) == L2C_OK);
            CHECK(l2c_session_create(t.model, pool, 1, 0, kv, isas[i], &session, NULL) == L2C_OK);
            for (int32_t position = 0; position < c->seq_len; position++) {
                l2c_row row = truth_row(&t, 0, position);
                CHECK(l2c_session_forward(session, &row, 1, NULL) == L2C_OK);
            }
            for (size_t p = N; p-- > 0;) check_position(&t, session, positions[p], weights + p * n);
            /* refused, and then off again */
            l2c_row row = truth_row(&t, 0, c->seq_len - 1);
            CHECK(l2c_session_attention(session, &row, weights, NULL) == L2C_RANGE);
            l2c_session_cancel(session);
            row = truth_row(&t, 0, 0);
            CHECK(l2c_session_attention(session, &row, weights, NULL) == L2C_CANCELLED);
            CHECK(session->attention == NULL);
            CHECK(l2c_session_forward(session, &row, 1, NULL) == L2C_OK && truth_equals(&t, 0, 0, l2c_session_logits(session, 0)));
            l2c_session_free(session);
            l2c_pool_free(pool);
        }
    free(weights);
    truth_free(&t);
}

void test_attention_told(void) {
    for (size_t c = 0; c < n_shapes; c++) check_shape(&shapes[c], c % 2 == 0 ? L2C_KV_FLOAT32 : L2C_KV_FLOAT16);
    check_shape(&long_context, L2C_KV_FLOAT32);
}
