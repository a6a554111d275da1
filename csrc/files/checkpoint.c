/*
 * checkpoint.c - opening models; llama2.c checkpoints: v0 (legacy), v1 (float32), v2 (int8 groups).
 *
 * A file is not trusted. Every header field is bounded first; then one walk over the tensors adds
 * up what the file must hold, with saturating arithmetic, and hands out a pointer only when the
 * bytes behind it are there. The walk runs once without storing anything, so that memory for the
 * layers is taken only after the file has proven to hold them.
 */
#include <limits.h>
#include <string.h>

#include "gguf.h"
#include "internal.h"
#include "system/float_env.h"

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

/* ---- Opening ------------------------------------------------------------------------------------- */

l2c_status l2c_model_load(l2c_model *m, const unsigned char *data, size_t size, l2c_error *err) {
    if (l2c_gguf_is(data, size)) return l2c_gguf_load_model(m, data, size, err);
    l2c_status status = read_header(&m->config, data, size, err);
    if (status != L2C_OK) return status;
    uint64_t start = m->config.version == 0 ? V0_HEADER : HEADER;
    walk measure = {data, size, start};
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
    walk again = {data, size, start};
    walk_tensors(&again, m, m->layers);
    return L2C_OK;
}

static l2c_dtype dtype_of(const l2c_matrix *m) {
    switch (m->type) {
    case L2C_WEIGHTS_F32: return L2C_DTYPE_FLOAT32;
    case L2C_WEIGHTS_Q4:
    case L2C_WEIGHTS_Q4_1: return L2C_DTYPE_INT4;
    default: return L2C_DTYPE_INT8;
    }
}

l2c_matrices l2c_matrices_begin(const l2c_model *m) {
    return (l2c_matrices){.dtype = L2C_DTYPE_AUTO,
                          .sweep = 4 * (2 * (uint64_t)m->config.n_layers + 1) * (uint64_t)m->config.dim};
}

void l2c_matrices_add(l2c_matrices *sum, const l2c_model *m, const l2c_matrix *matrix, const l2c_matrix *shape) {
    l2c_dtype dtype = dtype_of(shape);
    if (sum->dtype == L2C_DTYPE_AUTO) sum->dtype = dtype;
    else if (sum->dtype != dtype) sum->dtype = L2C_DTYPE_MIXED;
    if (shape->type != L2C_WEIGHTS_F32) sum->group = shape->group;
    sum->as_file |= shape->type == L2C_WEIGHTS_FILE;
    if (matrix != &m->token_embedding || m->config.shared_classifier) sum->sweep += l2c_matrix_bytes(shape); /* else a row */
}

static void sum_up(l2c_model *m) {
    m->matrices = l2c_matrices_begin(m);
#define ADD(matrix) l2c_matrices_add(&m->matrices, m, matrix, matrix)
    EACH_MATRIX(m, ADD);
#undef ADD
    m->config.dtype = (int32_t)m->matrices.dtype;
}

/* Packs what is not to be computed as it lies. */
static l2c_status convert(l2c_model *m, l2c_dtype dtype, l2c_pool *pool, l2c_error *err) {
    int file_is_int8 = m->config.group_size > 0;
    if (dtype == L2C_DTYPE_FLOAT32 && file_is_int8)
        return l2c_fail(err, L2C_UNSUPPORTED, "the file holds int8 weights; float32 are not to be had from it");
    if (dtype == L2C_DTYPE_FILE && !file_is_int8)
        return l2c_fail(err, L2C_UNSUPPORTED, "only an int8 file of llama2.c (version 2) is computed as runq.c does it; "
                                              "this is %s version %d", m->config.file == L2C_FILE_GGUF ? "GGUF" : "llama2.c",
                        m->config.version);
    l2c_status status = dtype == L2C_DTYPE_FILE ? L2C_OK : l2c_model_pack(m, dtype, pool, err);
    /* A v2 file that cannot be packed is computed as it lies. */
    if (status == L2C_UNSUPPORTED && dtype != L2C_DTYPE_INT4) status = L2C_OK;
    if (status == L2C_OK) sum_up(m);
    return status;
}

/* Owns the mapping from here on, whatever becomes of it. */
static l2c_status open_mapping(l2c_mapping mapping, l2c_dtype dtype, l2c_pool *pool, l2c_model **model,
                               l2c_error *err) {
    l2c_model *m = l2c_memory_zeroed(1, sizeof *m);
    if (m == NULL) {
        l2c_file_unmap(&mapping);
        return l2c_fail(err, L2C_NOMEM, "out of memory for a model");
    }
    m->mapping = mapping;
    l2c_float_env env = l2c_float_enter();
    l2c_status status = l2c_model_load(m, mapping.data, mapping.size, err);
    if (status == L2C_OK) status = l2c_rope_create(m, err);
    if (status == L2C_OK) status = convert(m, dtype, pool, err);
    l2c_float_leave(env);
    if (status != L2C_OK) {
        l2c_model_free(m);
        return status;
    }
    *model = m;
    return L2C_OK;
}

static l2c_status check_dtype(l2c_dtype dtype, l2c_error *err) {
    if (((int)dtype >= L2C_DTYPE_AUTO && dtype <= L2C_DTYPE_INT4) || dtype == L2C_DTYPE_FILE) return L2C_OK;
    return l2c_fail(err, L2C_ARG, "unknown dtype number %d", (int)dtype);
}

size_t l2c_model_float32_start(const unsigned char *data, size_t size) {
    l2c_config c;
    if (l2c_gguf_is(data, size)) return l2c_gguf_float32_start(data, size);
    if (read_header(&c, data, size, NULL) != L2C_OK || c.group_size > 0) return 0;
    return c.version == 0 ? V0_HEADER : HEADER;
}

/* float32 weights are read as fast as memory allows, so it matters what memory they are in. Only
 * files that have a valid header are copied, and whose weights are computed with as they lie. */
static void place_weights(l2c_mapping *mapping) {
    size_t start = l2c_model_float32_start(mapping->data, mapping->size);
    if (start > 0) l2c_file_to_memory(mapping, start);
}

l2c_status l2c_model_open(const char *path, l2c_dtype dtype, l2c_pool *pool, l2c_model **model, l2c_error *err) {
    l2c_status status = check_dtype(dtype, err);
    if (status != L2C_OK) return status;
    l2c_mapping mapping = {0};
    status = l2c_file_map(path, "checkpoint", &mapping, err);
    if (status != L2C_OK) return status;
    if (dtype <= L2C_DTYPE_FLOAT32) place_weights(&mapping);
    return open_mapping(mapping, dtype, pool, model, err);
}

l2c_status l2c_model_open_memory(const void *data, size_t size, l2c_dtype dtype, l2c_pool *pool, l2c_model **model,
                                 l2c_error *err) {
    l2c_status status = check_dtype(dtype, err);
    if (status != L2C_OK) return status;
    if ((uintptr_t)data % sizeof(float) != 0)
        return l2c_fail(err, L2C_ARG, "checkpoint memory must be aligned to 4 bytes");
    return open_mapping((l2c_mapping){.data = data, .size = size}, dtype, pool, model, err);
}

l2c_status l2c_model_quantize(const l2c_model *from, l2c_dtype dtype, l2c_pool *pool, l2c_model **model,
                              l2c_error *err) {
    if (from->config.dtype != L2C_DTYPE_FLOAT32 || (dtype != L2C_DTYPE_INT8 && dtype != L2C_DTYPE_INT4))
        return l2c_fail(err, L2C_ARG, "only float32 weights can be quantized, and to int8 or int4");
    l2c_model *m = l2c_memory_zeroed(1, sizeof *m);
    size_t n_layers = (size_t)from->config.n_layers, pairs = (size_t)from->config.head_size / 2;
    l2c_layer *layers = l2c_memory_zeroed(n_layers, sizeof *layers);
    double *divisors = l2c_memory_zeroed(pairs, sizeof *divisors);
    if (m == NULL || layers == NULL || divisors == NULL) {
        l2c_memory_free(m);
        l2c_memory_free(layers);
        l2c_memory_free(divisors);
        return l2c_fail(err, L2C_NOMEM, "out of memory for a model");
    }
    *m = *from;
    m->mapping = m->packed = (l2c_mapping){0}; /* stays with `from` */
    m->layers = memcpy(layers, from->layers, n_layers * sizeof *layers);
    for (size_t j = 0; j < pairs; j++) divisors[j] = from->rope_divisors == NULL ? 1.0 : from->rope_divisors[j];
    m->rope_divisors = divisors;
    m->rope = NULL;
    l2c_float_env env = l2c_float_enter();
    l2c_status status = l2c_rope_create(m, err);
    if (status == L2C_OK) status = convert(m, dtype, pool, err);
    l2c_float_leave(env);
    if (status != L2C_OK) l2c_model_free(m);
    else *model = m;
    return status;
}

const l2c_config *l2c_model_config(const l2c_model *model) { return &model->config; }

/* ---- What it holds --------------------------------------------------------------------------------- */

static uint64_t per_layer(const l2c_config *c) {
    uint64_t dim = (uint64_t)c->dim, heads = (uint64_t)c->n_heads + (uint64_t)c->n_kv_heads;
    return 2 * dim * heads * (uint64_t)c->head_size + 3 * dim * (uint64_t)c->hidden_dim;
}

uint64_t l2c_model_parameters(const l2c_model *model) {
    const l2c_config *c = &model->config;
    uint64_t table = (uint64_t)c->vocab_size * (uint64_t)c->dim;
    uint64_t norms = (2 * (uint64_t)c->n_layers + 1) * (uint64_t)c->dim;
    return table * (c->shared_classifier ? 1 : 2) + (uint64_t)c->n_layers * per_layer(c) + norms;
}

uint64_t l2c_model_bytes(const l2c_model *model) { return model->mapping.size + model->packed.size; }

uint64_t l2c_model_sweep_bytes(const l2c_model *model) { return model->matrices.sweep; }

void l2c_model_free(l2c_model *model) {
    if (model == NULL) return;
    l2c_rope_free(model);
    l2c_memory_free(model->layers);
    l2c_memory_free(model->rope_divisors);
    l2c_file_unmap(&model->mapping);
    l2c_file_unmap(&model->packed);
    l2c_memory_free(model);
}
