/*
 * checkpoint.c - llama2.c checkpoints: v0 (legacy), v1 (float32), v2 (int8 groups).
 *
 * A file is not trusted. Every header field is bounded first; then one walk over the tensors adds
 * up what the file must hold, with saturating arithmetic, and hands out a pointer only when the
 * bytes behind it are there. The walk runs once without storing anything, so that memory for the
 * layers is taken only after the file has proven to hold them.
 */
#include <limits.h>
#include <string.h>

#include "internal.h"

enum {
    MAGIC = 0x616b3432, /* "ak42" read as a little-endian integer */
    V0_HEADER = 28,
    HEADER = 256,
    MAX_GROUP_SIZE = 131072 /* 128 * 127 * this still fits 32 bits */
};

/* ---- The header ------------------------------------------------------------------------------ */

static int32_t int_at(const unsigned char *data, size_t offset) {
    int32_t value;
    memcpy(&value, data + offset, sizeof value);
    return value;
}

typedef struct {
    const char *name;
    int32_t value, limit;
} bounded;

/* Reads the seven integers of every version; offset is where they start. */
static void read_fields(l2c_config *c, const unsigned char *data, size_t offset) {
    c->dim = int_at(data, offset);
    c->hidden_dim = int_at(data, offset + 4);
    c->n_layers = int_at(data, offset + 8);
    c->n_heads = int_at(data, offset + 12);
    c->n_kv_heads = int_at(data, offset + 16);
    c->vocab_size = int_at(data, offset + 20);
    c->seq_len = int_at(data, offset + 24);
}

static l2c_status check_fields(l2c_config *c, l2c_error *err) {
    const bounded fields[] = {
        {"dim", c->dim, 1 << 20},           {"hidden_dim", c->hidden_dim, 1 << 22},
        {"n_layers", c->n_layers, 1 << 12}, {"n_heads", c->n_heads, 1 << 16},
        {"n_kv_heads", c->n_kv_heads, 1 << 16}, {"vocab_size", c->vocab_size, 1 << 24},
        {"seq_len", c->seq_len, 1 << 24},
    };
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        if (fields[i].value < 1 || fields[i].value > fields[i].limit)
            return l2c_fail(err, L2C_FORMAT, "%s is %d; it must be 1 to %d (is this a llama2.c checkpoint?)",
                            fields[i].name, fields[i].value, fields[i].limit);
    if (c->dim % c->n_heads != 0)
        return l2c_fail(err, L2C_FORMAT, "n_heads %d does not divide dim %d", c->n_heads, c->dim);
    if (c->n_heads % c->n_kv_heads != 0)
        return l2c_fail(err, L2C_FORMAT, "n_kv_heads %d does not divide n_heads %d", c->n_kv_heads, c->n_heads);
    c->head_size = c->dim / c->n_heads;
    if (c->head_size % 2 != 0)
        return l2c_fail(err, L2C_FORMAT, "head size dim / n_heads is %d; RoPE needs it to be even", c->head_size);
    return L2C_OK;
}

static l2c_status read_header(l2c_config *c, const unsigned char *data, size_t size, l2c_error *err) {
    memset(c, 0, sizeof *c);
    c->rope_theta = 10000.0f;
    c->norm_eps = 1e-5f;
    if (size < V0_HEADER)
        return l2c_fail(err, L2C_FORMAT, "file of %zu bytes is shorter than a header (%d bytes)", size, V0_HEADER);
    if (int_at(data, 0) != MAGIC) {
        read_fields(c, data, 0);
        /* A negative vocab_size is v0's sign for a classifier of its own. */
        c->shared_classifier = c->vocab_size > 0;
        if (c->vocab_size < 0 && c->vocab_size != INT_MIN) c->vocab_size = -c->vocab_size;
        return check_fields(c, err);
    }
    if (size < HEADER)
        return l2c_fail(err, L2C_FORMAT, "file of %zu bytes is shorter than a header (%d bytes)", size, HEADER);
    c->version = int_at(data, 4);
    if (c->version != 1 && c->version != 2)
        return l2c_fail(err, L2C_FORMAT, "version is %d; versions 0, 1 and 2 are known", c->version);
    read_fields(c, data, 8);
    c->shared_classifier = data[36];
    if (c->shared_classifier > 1)
        return l2c_fail(err, L2C_FORMAT, "shared_classifier is %d; it must be 0 or 1", c->shared_classifier);
    l2c_status status = check_fields(c, err);
    if (status != L2C_OK || c->version == 1) return status;
    c->group_size = int_at(data, 37);
    if (c->group_size < 1 || c->group_size > MAX_GROUP_SIZE)
        return l2c_fail(err, L2C_FORMAT, "group_size is %d; it must be 1 to %d", c->group_size, MAX_GROUP_SIZE);
    if (c->dim % c->group_size != 0)
        return l2c_fail(err, L2C_FORMAT, "group_size %d does not divide dim %d", c->group_size, c->dim);
    if (c->hidden_dim < c->group_size)
        return l2c_fail(err, L2C_FORMAT, "group_size %d is more than hidden_dim %d", c->group_size, c->hidden_dim);
    return L2C_OK;
}

/* ---- The walk over the tensors ------------------------------------------------------------------ */

typedef struct {
    const unsigned char *data;
    uint64_t size, offset; /* offset stays at UINT64_MAX once it would pass it */
} walk;

static const void *take(walk *w, uint64_t count, uint64_t size) {
    uint64_t start = w->offset;
    if (size != 0 && count > (UINT64_MAX - start) / size) w->offset = UINT64_MAX;
    else w->offset = start + count * size;
    return w->offset <= w->size ? w->data + start : NULL;
}

static const float *take_f32(walk *w, uint64_t count) { return take(w, count, sizeof(float)); }

static l2c_matrix take_matrix(walk *w, const l2c_config *c, size_t rows, size_t cols) {
    l2c_matrix m = {.type = L2C_WEIGHTS_F32, .rows = rows, .cols = cols, .padded = cols};
    uint64_t count = (uint64_t)rows * cols; /* below 2^46 by the header's bounds */
    if (c->group_size == 0) {
        m.data = take_f32(w, count);
    } else {
        m.type = L2C_WEIGHTS_FILE;
        m.group = (size_t)c->group_size;
        m.data = take(w, count, 1);
        m.scales = take(w, count / (uint64_t)c->group_size, sizeof(float));
    }
    return m;
}

/* Each tensor is stored for all layers before the next one begins. */
#define EACH_LAYER(statement)                             \
    for (int32_t l = 0; l < c->n_layers; l++) {           \
        l2c_layer *layer = layers != NULL ? &layers[l] : &unused; \
        statement;                                        \
    }

/* layers is NULL in the first walk, which only measures. */
static void walk_tensors(walk *w, l2c_model *m, l2c_layer *layers) {
    const l2c_config *c = &m->config;
    size_t dim = (size_t)c->dim, hidden = (size_t)c->hidden_dim;
    size_t kv_dim = (size_t)c->n_kv_heads * (size_t)c->head_size;
    l2c_layer unused;

    if (c->version == 0) {
        m->token_embedding = take_matrix(w, c, (size_t)c->vocab_size, dim);
        EACH_LAYER(layer->attention_norm = take_f32(w, dim))
    } else {
        EACH_LAYER(layer->attention_norm = take_f32(w, dim))
        EACH_LAYER(layer->ffn_norm = take_f32(w, dim))
        m->final_norm = take_f32(w, dim);
        m->token_embedding = take_matrix(w, c, (size_t)c->vocab_size, dim);
    }
    EACH_LAYER(layer->wq = take_matrix(w, c, dim, dim))
    EACH_LAYER(layer->wk = take_matrix(w, c, kv_dim, dim))
    EACH_LAYER(layer->wv = take_matrix(w, c, kv_dim, dim))
    EACH_LAYER(layer->wo = take_matrix(w, c, dim, dim))
    if (c->version == 0) EACH_LAYER(layer->ffn_norm = take_f32(w, dim))
    EACH_LAYER(layer->w1 = take_matrix(w, c, hidden, dim))
    EACH_LAYER(layer->w2 = take_matrix(w, c, dim, hidden))
    EACH_LAYER(layer->w3 = take_matrix(w, c, hidden, dim))
    if (c->version == 0) {
        m->final_norm = take_f32(w, dim);
        /* tables of cosines and sines that older programs used; rope.c computes its own */
        take_f32(w, (uint64_t)c->seq_len * (uint64_t)c->head_size);
    }
    m->classifier = c->shared_classifier ? m->token_embedding
                                         : take_matrix(w, c, (size_t)c->vocab_size, dim);
}

/* ---- Loading --------------------------------------------------------------------------------------- */

l2c_status l2c_checkpoint_load_model(l2c_model *m, const unsigned char *data, size_t size, l2c_error *err) {
    l2c_status status = read_header(&m->config, data, size, err);
    if (status != L2C_OK) return status;
    m->tensors_start = m->config.version == 0 ? V0_HEADER : HEADER;
    walk measure = {data, size, m->tensors_start};
    walk_tensors(&measure, m, NULL);
    if (measure.offset != size)
        return l2c_fail(err, L2C_FORMAT,
                        "file is %zu bytes, but its header (version %d, dim %d, hidden_dim %d, n_layers %d, "
                        "vocab_size %d) needs %llu: %s",
                        size, m->config.version, m->config.dim, m->config.hidden_dim, m->config.n_layers,
                        m->config.vocab_size, (unsigned long long)measure.offset,
                        measure.offset > size ? "it is cut short" : "it has trailing bytes");
    m->layers = l2c_memory_zeroed((size_t)m->config.n_layers, sizeof *m->layers);
    if (m->layers == NULL) return l2c_fail(err, L2C_NOMEM, "out of memory for %d layers", m->config.n_layers);
    walk again = {data, size, m->tensors_start};
    walk_tensors(&again, m, m->layers);
    return L2C_OK;
}
