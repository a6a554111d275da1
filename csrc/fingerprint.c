/*
 * fingerprint.c - one number for all that a model computes with: its shape, norms and weights.
 *
 * Words of 8 bytes go to four lanes in turn, so that the multiplications of four words overlap: memory, not
 * the processor, limits it. A step is one-to-one in the word and in the state, and so is the way in which
 * lanes come together at the end: models that differ in one word alone never share a fingerprint, all others
 * with a chance of 2^-64.
 */
#include <string.h>

#include "internal.h"

enum { LANES = L2C_FINGERPRINT_LANES, WORD = 8 };

static uint64_t step(uint64_t state, uint64_t word) {
    state = (state ^ word) * 0x9e3779b97f4a7c15u; /* 2^64 divided by the golden ratio, odd */
    return state ^ state >> 32;
}

/* The last bytes count as if zeros followed them: what was hashed before says how many there are. */
static void add(uint64_t lanes[LANES], const void *data, size_t size) {
    const unsigned char *bytes = data;
    uint64_t words[LANES];
    for (; size >= sizeof words; bytes += sizeof words, size -= sizeof words) {
        memcpy(words, bytes, sizeof words);
        for (size_t i = 0; i < LANES; i++) lanes[i] = step(lanes[i], words[i]);
    }
    if (size == 0) return;
    memset(words, 0, sizeof words);
    memcpy(words, bytes, size);
    for (size_t i = 0; i < LANES; i++) lanes[i] = step(lanes[i], words[i]);
}

void l2c_fingerprint_add(l2c_fingerprint *f, const l2c_matrix *m) {
    const uint64_t shape[] = {(uint64_t)m->type, m->rows, m->cols, m->group};
    add(f->lanes, shape, sizeof shape);
    if (m->type != L2C_WEIGHTS_FILE) {
        add(f->lanes, m->data, l2c_matrix_bytes(m));
        return;
    }
    add(f->lanes, m->data, m->rows * m->cols);
    add(f->lanes, m->scales, m->rows * m->cols / m->group * sizeof(float));
}

l2c_fingerprint l2c_fingerprint_begin(const l2c_model *model) {
    const l2c_config *c = &model->config;
    size_t norm = (size_t)c->dim * sizeof(float);
    l2c_fingerprint f = {{1, 2, 3, 4}};
    /* Without what changes no number: the context's length, and which format the file has. */
    const int32_t shape[] = {c->dim, c->hidden_dim, c->n_layers, c->n_heads, c->n_kv_heads,
                             c->head_size, c->vocab_size, c->shared_classifier};
    add(f.lanes, shape, sizeof shape);
    add(f.lanes, &c->rope_theta, sizeof c->rope_theta);
    add(f.lanes, &c->norm_eps, sizeof c->norm_eps);
    for (size_t j = 0; j < (size_t)c->head_size / 2; j++) {
        double divisor = model->rope_divisors == NULL ? 1.0 : model->rope_divisors[j];
        add(f.lanes, &divisor, sizeof divisor);
    }
    for (int32_t l = 0; l < c->n_layers; l++) {
        add(f.lanes, model->layers[l].attention_norm, norm);
        add(f.lanes, model->layers[l].ffn_norm, norm);
    }
    add(f.lanes, model->final_norm, norm);
    return f;
}

uint64_t l2c_fingerprint_end(const l2c_fingerprint *f) {
    uint64_t whole = 0;
    for (size_t i = 0; i < LANES; i++) whole = step(whole, f->lanes[i]);
    return whole;
}

uint64_t l2c_model_fingerprint(const l2c_model *model) {
    if (model->layers == NULL) return 0; /* only the header was read */
    if (model->placed != NULL) return model->fingerprint;
    l2c_fingerprint f = l2c_fingerprint_begin(model);
#define ADD(m) l2c_fingerprint_add(&f, m)
    EACH_MATRIX(model, ADD);
#undef ADD
    return l2c_fingerprint_end(&f);
}
