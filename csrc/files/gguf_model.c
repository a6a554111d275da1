/*
 * gguf_model.c - a model of GGUF's architecture `llama`: its settings and tensors by their names.
 *
 * Queries and keys lie in these files with the numbers that RoPE pairs side by side, as in llama2.c's
 * (conversion from Hugging Face's order is done by who writes the file).
 *
 * What this engine does not compute must not be passed over: every llama.* setting and every tensor is
 * either used here, known to mean nothing here, or refused by its name.
 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "gguf.h"

/* A file being read; after a failure nothing more is done. */
typedef struct {
    const l2c_gguf *g;
    l2c_model *model;
    unsigned char *used; /* (n_tensors) */
    l2c_status status;
    l2c_error *err;
} source;

#define FAIL(s, ...) ((s)->status = l2c_fail((s)->err, __VA_ARGS__))

/* ---- Settings ----------------------------------------------------------------------------------------- */

enum { MAX_NAME = 96 };

static int64_t find_setting(const source *s, const char *name) {
    char key[MAX_NAME];
    snprintf(key, sizeof key, "llama.%s", name);
    return l2c_gguf_find_key(s->g, key);
}

/* Element `i` of a setting: an integer of 1 to `limit`. */
static int32_t element(source *s, const char *name, int64_t key, uint64_t i, int32_t limit) {
    int64_t value = 0;
    if (l2c_gguf_integer(s->g, (size_t)key, i, &value, NULL) != L2C_OK)
        FAIL(s, L2C_FORMAT, "GGUF: llama.%s is not an integer, or is too large", name);
    else if (value < 1 || value > limit)
        FAIL(s, L2C_FORMAT, "GGUF: llama.%s is %lld; it must be 1 to %d", name, (long long)value, limit);
    return s->status == L2C_OK ? (int32_t)value : 0;
}

/* An integer of 1 to `limit`; `otherwise` where the file has none, unless that is 0. */
static int32_t whole(source *s, const char *name, int32_t limit, int32_t otherwise) {
    int64_t key = s->status == L2C_OK ? find_setting(s, name) : -1;
    if (s->status != L2C_OK) return 0;
    if (key < 0 && otherwise == 0) FAIL(s, L2C_FORMAT, "GGUF: llama.%s is missing", name);
    else if (key >= 0 && l2c_gguf_key_at(s->g, (size_t)key)->is_array)
        FAIL(s, L2C_FORMAT, "GGUF: llama.%s is a list; it must be one integer", name);
    if (s->status != L2C_OK) return 0;
    return key < 0 ? otherwise : element(s, name, key, 0, limit);
}

/* The same of a setting that may be given layer by layer; all layers must have the same. */
static int32_t whole_of_layers(source *s, const char *name, int32_t limit, int32_t otherwise) {
    int64_t key = s->status == L2C_OK ? find_setting(s, name) : -1;
    if (key < 0 || !l2c_gguf_key_at(s->g, (size_t)key)->is_array) return whole(s, name, limit, otherwise);
    uint64_t count = l2c_gguf_key_at(s->g, (size_t)key)->count;
    int32_t n_layers = s->model->config.n_layers, first = 0;
    if (count != (uint64_t)n_layers)
        FAIL(s, L2C_FORMAT, "GGUF: llama.%s is a list of %llu; llama.block_count is %d", name,
             (unsigned long long)count, n_layers);
    for (uint64_t i = 0; i < count && s->status == L2C_OK; i++) {
        int32_t value = element(s, name, key, i, limit);
        if (i == 0) first = value;
        else if (s->status == L2C_OK && value != first)
            FAIL(s, L2C_UNSUPPORTED, "GGUF: llama.%s is %d in layer 0 and %d in layer %llu; layers must be alike", name,
                 first, value, (unsigned long long)i);
    }
    return s->status == L2C_OK ? first : 0;
}

/* A number above 0 and at most `limit`; `otherwise` where the file has none, unless that is 0. */
static float real(source *s, const char *name, double limit, double otherwise) {
    int64_t key = s->status == L2C_OK ? find_setting(s, name) : -1;
    double value = otherwise;
    if (s->status != L2C_OK) return 0.0f;
    if (key < 0 && otherwise == 0.0) FAIL(s, L2C_FORMAT, "GGUF: llama.%s is missing", name);
    else if (key >= 0 && (l2c_gguf_key_at(s->g, (size_t)key)->is_array
                          || l2c_gguf_number(s->g, (size_t)key, 0, &value, NULL) != L2C_OK))
        FAIL(s, L2C_FORMAT, "GGUF: llama.%s is not a number", name);
    else if (!((float)value > 0.0f && value <= limit))
        FAIL(s, L2C_FORMAT, "GGUF: llama.%s is %g; it must be above 0, and at most %g", name, value, limit);
    return (float)value;
}

/* Whether a key's value is this string. */
static int is_text(const source *s, int64_t key, const char *text) {
    const char *bytes;
    size_t length;
    if (l2c_gguf_key_at(s->g, (size_t)key)->is_array) return 0;
    if (l2c_gguf_string(s->g, (size_t)key, 0, &bytes, &length, NULL) != L2C_OK) return 0;
    return length == strlen(text) && memcmp(bytes, text, length) == 0;
}

static int is_number(const source *s, size_t key, double wanted) {
    double value;
    return !l2c_gguf_key_at(s->g, key)->is_array && l2c_gguf_number(s->g, key, 0, &value, NULL) == L2C_OK
        && value == wanted;
}

/* Refuses settings that would change the computation. */
static void check_features(source *s) {
    static const char *const read_here[] = {
        "embedding_length", "feed_forward_length", "block_count", "context_length", "attention.head_count",
        "attention.head_count_kv", "attention.key_length", "attention.value_length",
        "attention.layer_norm_rms_epsilon", "rope.dimension_count", "rope.freq_base", "rope.scaling.type",
        "rope.scaling.factor", "rope.scale_linear",
        /* and what says nothing about the computation: */
        "vocab_size", "tensor_data_layout", "rope.scaling.original_context_length", "rope.scaling.finetuned",
    };
    static const char *const must_be_1[] = {"attention.causal", "rope.scaling.attn_factor"};
    const l2c_gguf_key *key;
    for (size_t i = 0; s->status == L2C_OK && (key = l2c_gguf_key_at(s->g, i)) != NULL; i++) {
        char name[MAX_NAME];
        if (key->name_length < 6 || memcmp(key->name, "llama.", 6) != 0) continue;
        snprintf(name, sizeof name, "%.*s", (int)(key->name_length - 6 < MAX_NAME ? key->name_length - 6 : MAX_NAME),
                 key->name + 6);
        int fine = is_number(s, i, 0.0); /* what is off */
        for (size_t k = 0; k < sizeof read_here / sizeof *read_here; k++) fine |= strcmp(name, read_here[k]) == 0;
        for (size_t k = 0; k < sizeof must_be_1 / sizeof *must_be_1; k++)
            if (strcmp(name, must_be_1[k]) == 0) fine = is_number(s, i, 1.0);
        if (!fine) FAIL(s, L2C_UNSUPPORTED, "GGUF: the model has llama.%s, which this engine does not support", name);
    }
}

static void check_kind(source *s) {
    int64_t key = l2c_gguf_find_key(s->g, "general.architecture"), parts;
    const char *bytes;
    size_t length;
    if (key < 0 || l2c_gguf_string(s->g, (size_t)key, 0, &bytes, &length, NULL) != L2C_OK)
        FAIL(s, L2C_FORMAT, "GGUF: general.architecture is missing, or not a string");
    else if (!is_text(s, key, "llama"))
        FAIL(s, L2C_UNSUPPORTED, "GGUF: the architecture is %.*s; only llama is supported",
             length < 64 ? (int)length : 64, bytes);
    if (s->status != L2C_OK) return;
    key = l2c_gguf_find_key(s->g, "split.count");
    if (key >= 0 && l2c_gguf_integer(s->g, (size_t)key, 0, &parts, NULL) == L2C_OK && parts > 1)
        FAIL(s, L2C_UNSUPPORTED, "GGUF: the model is split into %lld files; merge them (llama-gguf-split --merge)",
             (long long)parts);
}

static void read_shape(source *s) {
    l2c_config *c = &s->model->config;
    c->file = L2C_FILE_GGUF;
    c->version = l2c_gguf_version(s->g);
    c->dim = whole(s, "embedding_length", 1 << 20, 0);
    c->n_layers = whole(s, "block_count", 1 << 12, 0);
    c->seq_len = whole(s, "context_length", 1 << 24, 0);
    c->hidden_dim = whole_of_layers(s, "feed_forward_length", 1 << 22, 0);
    c->n_heads = whole_of_layers(s, "attention.head_count", 1 << 16, 0);
    c->n_kv_heads = whole_of_layers(s, "attention.head_count_kv", 1 << 16, c->n_heads);
    if (s->status != L2C_OK) return;
    if (c->n_heads % c->n_kv_heads != 0) {
        FAIL(s, L2C_FORMAT, "GGUF: llama.attention.head_count_kv %d does not divide llama.attention.head_count %d",
             c->n_kv_heads, c->n_heads);
        return;
    }
    int32_t divided = c->dim % c->n_heads == 0 ? c->dim / c->n_heads : 0;
    c->head_size = whole(s, "attention.key_length", 1 << 14, divided);
    int32_t values = whole(s, "attention.value_length", 1 << 14, divided == 0 ? c->head_size : divided);
    int32_t rotary = whole(s, "rope.dimension_count", 1 << 14, c->head_size);
    if (s->status != L2C_OK) return;
    if (values != c->head_size)
        FAIL(s, L2C_UNSUPPORTED, "GGUF: llama.attention.value_length is %d and key_length %d; they must be the same",
             values, c->head_size);
    else if (rotary != c->head_size)
        FAIL(s, L2C_UNSUPPORTED, "GGUF: llama.rope.dimension_count is %d of a head of %d; partial RoPE is not supported",
             rotary, c->head_size);
    else if (c->head_size % 2 != 0)
        FAIL(s, L2C_FORMAT, "GGUF: the head size is %d; RoPE needs it to be even", c->head_size);
    c->norm_eps = real(s, "attention.layer_norm_rms_epsilon", 1.0, 0.0);
    c->rope_theta = real(s, "rope.freq_base", 1e30, 10000.0);
}

/* What divides all of RoPE's frequencies (Chen et al. 2023, position interpolation). */
static double linear_scaling(source *s) {
    int64_t type = find_setting(s, "rope.scaling.type");
    if (type >= 0 && is_text(s, type, "none")) return 1.0;
    if (type >= 0 && !is_text(s, type, "linear")) {
        const char *bytes = "?";
        size_t length = 1;
        l2c_gguf_string(s->g, (size_t)type, 0, &bytes, &length, NULL);
        FAIL(s, L2C_UNSUPPORTED, "GGUF: llama.rope.scaling.type is %.*s; linear and none are supported",
             length < 64 ? (int)length : 64, bytes);
        return 1.0;
    }
    const char *name = find_setting(s, "rope.scaling.factor") >= 0 ? "rope.scaling.factor" : "rope.scale_linear";
    int64_t key = find_setting(s, name);
    if (key >= 0 && is_number(s, (size_t)key, 0.0)) return 1.0; /* as llama.cpp */
    return (double)real(s, name, 1e6, 1.0);
}

/* ---- Tensors -------------------------------------------------------------------------------------------- */

/* "blk.<layer>.<name>.weight", or without the block for layer -1; n_dims dimensions, cols before rows.
 * NULL when it is not there, which is an error unless it is optional. */
static const l2c_gguf_tensor *tensor(source *s, int32_t layer, const char *name, int optional, int n_dims, size_t rows,
                                     size_t cols) {
    char full[MAX_NAME];
    if (s->status != L2C_OK) return NULL;
    if (layer < 0) snprintf(full, sizeof full, "%s.weight", name);
    else snprintf(full, sizeof full, "blk.%d.%s.weight", layer, name);
    int64_t i = l2c_gguf_find_tensor(s->g, full);
    if (i < 0 && !optional) FAIL(s, L2C_FORMAT, "GGUF: the tensor %s is missing", full);
    if (i < 0) return NULL;
    const l2c_gguf_tensor *t = l2c_gguf_tensor_at(s->g, (size_t)i);
    s->used[i] = 1;
    if (t->offset < s->model->tensors_start) s->model->tensors_start = (size_t)t->offset;
    if (t->n_dims != n_dims || t->dims[0] != cols || t->dims[1] != rows)
        FAIL(s, L2C_FORMAT, "GGUF: %s is (%llu, %llu%s); the settings make it (%zu, %zu)", full,
             (unsigned long long)t->dims[1], (unsigned long long)t->dims[0], t->n_dims > 2 ? ", ..." : "", rows, cols);
    else if (l2c_block_type_of((uint32_t)t->type_number)->read == NULL)
        FAIL(s, L2C_UNSUPPORTED, "GGUF: %s is %s, which this engine cannot read", full, t->type);
    else if (n_dims == 1 && t->type_number != 0)
        FAIL(s, L2C_UNSUPPORTED, "GGUF: %s is %s; it must be F32", full, t->type);
    return s->status == L2C_OK ? t : NULL;
}

static l2c_matrix matrix_of(const l2c_gguf_tensor *t) {
    l2c_matrix m = {.rows = 0};
    if (t == NULL) return m;
    m.type = t->type_number == 0 ? L2C_WEIGHTS_F32 : L2C_WEIGHTS_GGUF;
    m.rows = (size_t)t->dims[1];
    m.cols = m.padded = (size_t)t->dims[0];
    m.data = t->data;
    m.blocks = l2c_block_type_of((uint32_t)t->type_number);
    return m;
}

static l2c_matrix matrix(source *s, int32_t layer, const char *name, size_t rows, size_t cols) {
    return matrix_of(tensor(s, layer, name, 0, 2, rows, cols));
}

static const float *norm(source *s, int32_t layer, const char *name) {
    const l2c_gguf_tensor *t = tensor(s, layer, name, 0, 1, 1, (size_t)s->model->config.dim);
    return t == NULL ? NULL : t->data; /* aligned: general.alignment is 8 or more */
}

static void read_tables(source *s) {
    l2c_model *m = s->model;
    l2c_config *c = &m->config;
    int64_t i = s->status == L2C_OK ? l2c_gguf_find_tensor(s->g, "token_embd.weight") : -1;
    uint64_t vocab = i < 0 ? 1 : l2c_gguf_tensor_at(s->g, (size_t)i)->dims[1];
    if (s->status == L2C_OK && vocab > 1 << 24)
        FAIL(s, L2C_FORMAT, "GGUF: token_embd.weight has %llu rows; it must be 1 to %d", (unsigned long long)vocab,
             1 << 24);
    size_t rows = (size_t)vocab, dim = (size_t)c->dim;
    m->token_embedding = matrix(s, -1, "token_embd", rows, dim);
    const l2c_gguf_tensor *output = tensor(s, -1, "output", 1, 2, rows, dim);
    m->final_norm = norm(s, -1, "output_norm");
    c->vocab_size = (int32_t)rows;
    c->shared_classifier = output == NULL;
    m->classifier = output == NULL ? m->token_embedding : matrix_of(output);
}

static void read_layers(source *s) {
    l2c_model *m = s->model;
    const l2c_config *c = &m->config;
    size_t dim = (size_t)c->dim, hidden = (size_t)c->hidden_dim, head_size = (size_t)c->head_size;
    size_t q_dim = (size_t)c->n_heads * head_size, kv_dim = (size_t)c->n_kv_heads * head_size;
    if (s->status == L2C_OK && l2c_gguf_tensor_at(s->g, 9 * (size_t)c->n_layers + 1) == NULL)
        FAIL(s, L2C_FORMAT, "GGUF: llama.block_count is %d; the file has fewer tensors than that takes", c->n_layers);
    if (s->status != L2C_OK) return;
    m->layers = l2c_memory_zeroed((size_t)c->n_layers, sizeof *m->layers);
    if (m->layers == NULL) FAIL(s, L2C_NOMEM, "out of memory for %d layers", c->n_layers);
    for (int32_t l = 0; l < c->n_layers && s->status == L2C_OK; l++) {
        l2c_layer *w = &m->layers[l];
        w->attention_norm = norm(s, l, "attn_norm");
        w->wq = matrix(s, l, "attn_q", q_dim, dim);
        w->wk = matrix(s, l, "attn_k", kv_dim, dim);
        w->wv = matrix(s, l, "attn_v", kv_dim, dim);
        w->wo = matrix(s, l, "attn_output", dim, q_dim);
        w->ffn_norm = norm(s, l, "ffn_norm");
        w->w1 = matrix(s, l, "ffn_gate", hidden, dim);
        w->w3 = matrix(s, l, "ffn_up", hidden, dim);
        w->w2 = matrix(s, l, "ffn_down", dim, hidden);
    }
}

/* Llama 3's way to a longer context (Dubey et al. 2024): a divisor for each of RoPE's frequencies. */
static void read_rope(source *s) {
    l2c_config *c = &s->model->config;
    if (s->status != L2C_OK) return;
    size_t pairs = (size_t)c->head_size / 2;
    double factor = linear_scaling(s);
    const l2c_gguf_tensor *t = tensor(s, -1, "rope_freqs", 1, 1, 1, pairs);
    if (s->status != L2C_OK || (t == NULL && factor == 1.0)) return;
    double *divisors = l2c_memory_zeroed(pairs, sizeof *divisors);
    s->model->rope_divisors = divisors;
    c->rope_scaled = 1;
    if (divisors == NULL) FAIL(s, L2C_NOMEM, "out of memory for RoPE's frequencies");
    for (size_t j = 0; j < pairs && s->status == L2C_OK; j++) {
        float given = t == NULL ? 1.0f : ((const float *)t->data)[j];
        if (!(given > 0.0f && isfinite(given)))
            FAIL(s, L2C_FORMAT, "GGUF: value %zu of rope_freqs.weight is %g; it must be above 0", j, (double)given);
        divisors[j] = factor * (double)given;
    }
}

static void check_all_used(source *s) {
    const l2c_gguf_tensor *t;
    for (size_t i = 0; s->status == L2C_OK && (t = l2c_gguf_tensor_at(s->g, i)) != NULL; i++)
        if (!s->used[i])
            FAIL(s, L2C_UNSUPPORTED, "GGUF: the model has the tensor %.*s, which this engine does not support",
                 L2C_GGUF_NAME(t));
}

/* ---- Opening --------------------------------------------------------------------------------------------- */

l2c_status l2c_gguf_load_model(l2c_model *model, const unsigned char *data, size_t size, l2c_error *err) {
    l2c_gguf *g;
    l2c_status status = l2c_gguf_open_memory(data, size, &g, err);
    if (status != L2C_OK) return status;
    model->tensors_start = size;
    source s = {.g = g, .model = model, .used = l2c_memory_zeroed(g->n_tensors, 1), .err = err};
    if (s.used == NULL) FAIL(&s, L2C_NOMEM, "out of memory for %zu tensors", g->n_tensors);
    else check_kind(&s);
    check_features(&s);
    read_shape(&s);
    read_tables(&s);
    read_layers(&s);
    read_rope(&s);
    check_all_used(&s);
    l2c_memory_free(s.used);
    l2c_gguf_free(g);
    return s.status;
}
