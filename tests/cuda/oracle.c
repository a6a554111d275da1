/*
 * oracle.c - random matrices and models, and the CPU's answers.
 */
#include "oracle.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

uint64_t random_next(uint64_t *state) {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state >> 16;
}

int32_t random_between(uint64_t *state, int32_t low, int32_t high) {
    return low + (int32_t)(random_next(state) % (uint64_t)(high - low + 1));
}

/* in [-1, 1) */
static float random_unit(uint64_t *state) { return (float)(random_next(state) & 0xFFFFFF) / 8388608.0f - 1.0f; }

float random_float(uint64_t *state) {
    switch (random_next(state) % 64) {
    case 0: return 0.0f;
    case 1: return -0.0f;
    case 2: return 1e-41f * random_unit(state);
    default: return ldexpf(random_unit(state), random_between(state, -9, 2));
    }
}

static void *allocated(size_t bytes) {
    void *memory = aligned_alloc(64, (bytes + 63) / 64 * 64 + 64);
    if (memory == NULL) abort();
    memset(memory, 0, (bytes + 63) / 64 * 64);
    return memory;
}

/* A scale such that sums of products stay near 1. */
static float random_scale(size_t cols, uint64_t *state) {
    return (1.5f + random_unit(state)) / 8.0f / sqrtf((float)cols);
}

l2c_matrix oracle_matrix(l2c_weights type, size_t rows, size_t cols, size_t group, int extreme, uint64_t *state) {
    if (type == L2C_WEIGHTS_F32) {
        float *values = allocated(rows * cols * sizeof *values), scale = 4.0f * random_scale(cols, state);
        for (size_t i = 0; i < rows * cols; i++) values[i] = scale * random_float(state);
        return (l2c_matrix){.type = type, .rows = rows, .cols = cols, .data = values};
    }
    l2c_matrix m = l2c_matrix_packed(type, rows, cols, group);
    size_t blocks = (rows + L2C_BLOCK_ROWS - 1) / L2C_BLOCK_ROWS, groups = m.padded / m.group;
    unsigned char *memory = allocated(l2c_matrix_bytes(&m));
    m.data = memory;
    for (size_t b = 0; b < blocks; b++, memory += m.block_bytes) {
        size_t scales = l2c_block_scale_bytes(type, groups);
        for (size_t i = scales; i < m.block_bytes; i++)
            memory[i] = extreme ? (type == L2C_WEIGHTS_Q8 ? 0x80 : 0xFF) : (unsigned char)random_next(state);
        for (size_t i = 0; i < groups * L2C_BLOCK_ROWS; i++) {
            float scale = random_scale(cols, state) / (type == L2C_WEIGHTS_Q8 ? 64.0f : 4.0f);
            if (type == L2C_WEIGHTS_Q8) ((float *)memory)[i] = scale;
            else if (type == L2C_WEIGHTS_Q4) ((uint16_t *)memory)[i] = l2c_float_to_half(scale);
            else { /* scales and minima of a group side by side */
                uint16_t *at = (uint16_t *)memory + i / L2C_BLOCK_ROWS * 2 * L2C_BLOCK_ROWS + i % L2C_BLOCK_ROWS;
                at[0] = l2c_float_to_half(scale);
                at[L2C_BLOCK_ROWS] = l2c_float_to_half(-7.5f * scale + 0.1f * random_unit(state) * scale);
            }
        }
    }
    return m;
}

l2c_matrix oracle_matrix_of_16_bits(int bfloat16, size_t rows, size_t cols, uint64_t *state) {
    l2c_matrix m = oracle_matrix(L2C_WEIGHTS_F32, rows, cols, 0, 0, state);
    float *values = (float *)(uintptr_t)m.data;
    for (size_t i = 0; i < rows * cols; i++) {
        uint32_t bits;
        memcpy(&bits, &values[i], sizeof bits);
        bits &= 0xFFFF0000u;
        if (bfloat16) memcpy(&values[i], &bits, sizeof bits);
        else values[i] = l2c_half_to_float(l2c_float_to_half(values[i]));
    }
    return m;
}

void oracle_matrix_row(float *x, const l2c_matrix *m, size_t row) { l2c_matrix_row(x, m, row); }

oracle_log_total oracle_logprob_total(const float *logits, size_t n) {
    l2c_log_total total = l2c_logprob_total(&l2c_kernels_scalar, logits, n);
    return (oracle_log_total){total.largest, total.log_sum};
}

l2c_status oracle_pick(l2c_sampler *sampler, float *logits, int32_t n, int32_t *token) {
    l2c_candidate *candidates = allocated(2 * (size_t)n * sizeof *candidates);
    l2c_status status =
        l2c_sampler_pick(sampler, &l2c_kernels_scalar, logits, n, NULL, 0, candidates, token, NULL);
    free(candidates);
    return status;
}

float oracle_coin(const l2c_sampler *sampler) {
    uint64_t state = sampler->rng_state;
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return (float)((uint32_t)((state * 0x2545F4914F6CDD1Dull) >> 32) >> 8) / 16777216.0f;
}

/* ---- Models ------------------------------------------------------------------------------------------- */

static l2c_matrix random_matrix(const oracle_shape *s, int32_t rows, int32_t cols, uint64_t *state) {
    int kind = random_between(state, 0, 7);
    l2c_weights type = L2C_WEIGHTS_Q8;
    if (s->group == L2C_Q4_GROUP && kind > 3) type = kind > 5 ? L2C_WEIGHTS_Q4 : L2C_WEIGHTS_Q4_1;
    if (s->group > 0 && kind > 0) return oracle_matrix(type, (size_t)rows, (size_t)cols, (size_t)s->group, 0, state);
    if (kind < 2) return oracle_matrix_of_16_bits(kind, (size_t)rows, (size_t)cols, state);
    return oracle_matrix(L2C_WEIGHTS_F32, (size_t)rows, (size_t)cols, 0, 0, state);
}

static float *random_norm(int32_t dim, uint64_t *state) {
    float *norm = allocated((size_t)dim * sizeof *norm);
    for (int32_t i = 0; i < dim; i++) norm[i] = 1.0f + 0.5f * random_unit(state);
    return norm;
}

l2c_model *oracle_model_make(const oracle_shape *s, uint64_t *state) {
    l2c_model *m = calloc(1, sizeof *m);
    l2c_layer *layers = calloc((size_t)s->n_layers, sizeof *layers);
    if (m == NULL || layers == NULL) abort();
    m->config = (l2c_config){.dim = s->dim, .hidden_dim = s->hidden_dim, .n_layers = s->n_layers, .n_heads = s->n_heads,
                             .n_kv_heads = s->n_kv_heads, .head_size = s->head_size, .vocab_size = s->vocab_size,
                             .seq_len = s->seq_len, .rope_theta = 10000.0f, .norm_eps = 1e-5f};
    m->layers = layers;
    int32_t q_dim = s->n_heads * s->head_size, kv_dim = s->n_kv_heads * s->head_size;
    for (l2c_layer *l = layers; l < layers + s->n_layers; l++) {
        l->attention_norm = random_norm(s->dim, state);
        l->ffn_norm = random_norm(s->dim, state);
        l->wq = random_matrix(s, q_dim, s->dim, state);
        l->wk = random_matrix(s, kv_dim, s->dim, state);
        l->wv = random_matrix(s, kv_dim, s->dim, state);
        l->wo = random_matrix(s, s->dim, q_dim, state);
        l->w1 = random_matrix(s, s->hidden_dim, s->dim, state);
        l->w2 = random_matrix(s, s->dim, s->hidden_dim, state);
        l->w3 = random_matrix(s, s->hidden_dim, s->dim, state);
    }
    m->final_norm = random_norm(s->dim, state);
    m->token_embedding = random_matrix(s, s->vocab_size, s->dim, state);
    m->classifier = random_matrix(s, s->vocab_size, s->dim, state);
    m->matrices.group = (size_t)s->group;
    if (l2c_rope_create(m, NULL) != L2C_OK) abort();
    return m;
}

static void free_data(const void *data) { free((void *)(uintptr_t)data); }

void oracle_model_free(l2c_model *m) {
#define FREE_MATRIX(matrix) free_data((matrix)->data)
    EACH_MATRIX(m, FREE_MATRIX);
    for (int32_t l = 0; l < m->config.n_layers; l++) {
        free_data(m->layers[l].attention_norm);
        free_data(m->layers[l].ffn_norm);
    }
    free_data(m->final_norm);
    free(m->layers);
    l2c_rope_free(m);
    free(m);
}

const l2c_matrix *oracle_model_matrix(const l2c_model *m, int which, int layer) {
    const l2c_layer *w = &m->layers[layer];
    const l2c_matrix *all[] = {&w->wq, &w->wk, &w->wv, &w->wo, &w->w1, &w->w2, &w->w3, &m->token_embedding, &m->classifier};
    return all[which];
}

const float *oracle_model_norm(const l2c_model *m, int which, int layer) {
    return which == 0 ? m->layers[layer].attention_norm : which == 1 ? m->layers[layer].ffn_norm : m->final_norm;
}

void oracle_model_rope(const l2c_model *m, int32_t n, float *cosine, float *sine) {
    size_t pairs = (size_t)m->config.head_size / 2;
    for (int32_t i = 0; i < n; i++) {
        if (l2c_rope_extend(m, i) != L2C_OK) abort();
        memcpy(cosine + (size_t)i * pairs, l2c_rope_at(m, i), pairs * sizeof *cosine);
        memcpy(sine + (size_t)i * pairs, l2c_rope_at(m, i) + L2C_ROPE_BLOCK * pairs, pairs * sizeof *sine);
    }
}
