/*
 * pack.c - a whole model's matrices, packed into one piece of memory.
 */
#include <string.h>

#include "cuda/layout.h"
#include "gguf.h"
#include "internal.h"
#include "kernels/quantized.h"

enum { DEFAULT_GROUP = 32 };

/* Groups that the packed kernels take, and that lie within rows. */
static int packable(const l2c_matrix *m) {
    return m->type != L2C_WEIGHTS_FILE
        || (m->group % 4 == 0 && m->group <= L2C_MAX_PACKED_GROUP && m->cols % m->group == 0);
}

static l2c_weights packed_type(const l2c_matrix *m, l2c_dtype dtype) {
    switch (dtype) {
    case L2C_DTYPE_FILE: return m->type;
    case L2C_DTYPE_FLOAT32: return L2C_WEIGHTS_F32;
    case L2C_DTYPE_INT8: return L2C_WEIGHTS_Q8;
    case L2C_DTYPE_INT4: /* what has 4 bits keeps them */
        return m->type == L2C_WEIGHTS_GGUF && m->blocks->nearest == L2C_WEIGHTS_Q4_1 ? L2C_WEIGHTS_Q4_1
                                                                                     : L2C_WEIGHTS_Q4;
    default: return m->type == L2C_WEIGHTS_GGUF ? m->blocks->nearest
                  : m->type == L2C_WEIGHTS_F32  ? L2C_WEIGHTS_F32
                                                : L2C_WEIGHTS_Q8;
    }
}

/* What it becomes, without data; as it is where that is how it is computed with. */
static l2c_matrix packed_shape(const l2c_matrix *m, l2c_dtype dtype) {
    l2c_weights type = packed_type(m, dtype);
    if (type == m->type) return *m;
    if (type == L2C_WEIGHTS_F32)
        return (l2c_matrix){.type = type, .rows = m->rows, .cols = m->cols, .padded = m->cols};
    size_t group = type == L2C_WEIGHTS_Q8 && m->type == L2C_WEIGHTS_FILE ? m->group : DEFAULT_GROUP;
    return l2c_matrix_packed(type, m->rows, m->cols, group);
}

/* What a matrix or norm takes of the packed memory: whole cache lines. */
static size_t whole_lines(size_t bytes) { return (bytes + 63) / 64 * 64; }

/* ---- Planning ------------------------------------------------------------------------------------- */

static l2c_dtype dtype_of(l2c_weights type) {
    switch (type) {
    case L2C_WEIGHTS_F32: return L2C_DTYPE_FLOAT32;
    case L2C_WEIGHTS_Q4:
    case L2C_WEIGHTS_Q4_1: return L2C_DTYPE_INT4;
    default: return L2C_DTYPE_INT8;
    }
}

/* Float16 or bfloat16, which a card keeps as they are. */
static int is_16_bits(const l2c_matrix *m) {
    return m->type == L2C_WEIGHTS_GGUF && m->blocks->values == 1 && m->blocks->bytes == 2;
}

/* What the matrices come to in a dtype; 0 where some of them cannot be packed for it. */
static int measure(const l2c_model *model, l2c_dtype dtype, l2c_matrices *sum) {
    const l2c_config *c = &model->config;
    uint64_t n_norms = 2 * (uint64_t)c->n_layers + 1, norm = (uint64_t)c->dim * sizeof(float);
    int possible = 1, needed = 0;
    *sum = (l2c_matrices){.sweep = n_norms * norm, .packed = n_norms * whole_lines((size_t)norm)};
    /* Some tens of times the file at most, as its matrices do not overlap: no sum wraps around. */
#define MEASURE(m)                                                                                      \
    do {                                                                                                \
        l2c_matrix shape = packed_shape(m, dtype);                                                      \
        uint64_t bytes = l2c_matrix_bytes(&shape), in_file = l2c_matrix_bytes(m);                       \
        l2c_dtype own = dtype_of(shape.type);                                                           \
        sum->dtype = sum->dtype == L2C_DTYPE_AUTO || sum->dtype == own ? own : L2C_DTYPE_MIXED;         \
        if (shape.type != L2C_WEIGHTS_F32) sum->group = shape.group;                                    \
        sum->as_file |= shape.type == L2C_WEIGHTS_FILE;                                                 \
        if ((m) != &model->token_embedding || c->shared_classifier) sum->sweep += bytes; /* else a row */ \
        sum->packed += whole_lines((size_t)bytes);                                                      \
        sum->on_card += l2c_layout_bytes(&shape, is_16_bits(m));                                        \
        if (in_file > sum->largest) sum->largest = in_file;                                             \
        possible &= packable(m);                                                                        \
        needed |= shape.type != (m)->type;                                                              \
    } while (0)
    EACH_MATRIX(model, MEASURE);
#undef MEASURE
    if (!needed) sum->packed = 0;
    return possible || !needed;
}

l2c_status l2c_model_plan(l2c_model *m, l2c_dtype dtype, l2c_error *err) {
    int file_is_int8 = m->config.group_size > 0;
    if (dtype == L2C_DTYPE_FLOAT32 && file_is_int8)
        return l2c_fail(err, L2C_UNSUPPORTED, "the file holds int8 weights, which cannot be converted to float32");
    if (dtype == L2C_DTYPE_FILE && !file_is_int8)
        return l2c_fail(err, L2C_UNSUPPORTED, "only int8 files of llama2.c (version 2) can be computed as runq.c does; "
                                              "this is %s version %d", m->config.file == L2C_FILE_GGUF ? "GGUF" : "llama2.c",
                        m->config.version);
    int possible = measure(m, dtype, &m->matrices);
    if (!possible && dtype == L2C_DTYPE_INT4)
        return l2c_fail(err, L2C_UNSUPPORTED, "int8 groups of %d cannot be converted to int4", m->config.group_size);
    if (!possible) measure(m, L2C_DTYPE_FILE, &m->matrices);
    m->config.dtype = (int32_t)m->matrices.dtype;
    return L2C_OK;
}

/* ---- Packing --------------------------------------------------------------------------------------- */

typedef struct {
    l2c_matrix *to;
    unsigned char *memory;
    const l2c_matrix *from;
    atomic_int status;
} job;

static void pack_on_thread(void *arg, int thread, int n_threads) {
    job *j = arg;
    size_t blocks = (j->from->rows + L2C_BLOCK_ROWS - 1) / L2C_BLOCK_ROWS;
    size_t begin = blocks * (size_t)thread / (size_t)n_threads * L2C_BLOCK_ROWS;
    size_t end = blocks * ((size_t)thread + 1) / (size_t)n_threads * L2C_BLOCK_ROWS;
    l2c_status status = l2c_matrix_pack(j->to, j->memory, j->from, begin, end < j->from->rows ? end : j->from->rows);
    if (status != L2C_OK) atomic_store(&j->status, (int)status);
}

static l2c_status pack_matrix(l2c_pool *pool, l2c_matrix *to, unsigned char *memory, const l2c_matrix *from,
                              l2c_error *err) {
    to->data = memory;
    job j = {.to = to, .memory = memory, .from = from};
    if (pool != NULL) l2c_pool_run(pool, pack_on_thread, &j);
    else pack_on_thread(&j, 0, 1);
    if (atomic_load(&j.status) == L2C_OK) return L2C_OK;
    return l2c_fail(err, L2C_FORMAT, "a weight is NaN or infinite, or a group's scale beyond float16: int8 and int4 have "
                                     "no value for it");
}

/* Of the largest matrix that has to be packed. */
static size_t scratch_bytes(const l2c_model *model, l2c_dtype dtype) {
    size_t most = 0;
#define COUNT(m)                                                                    \
    do {                                                                            \
        l2c_matrix to = packed_shape(m, dtype);                                     \
        if (to.type != (m)->type && l2c_matrix_bytes(&to) > most) most = l2c_matrix_bytes(&to); \
    } while (0)
    EACH_MATRIX(model, COUNT);
#undef COUNT
    return most;
}

l2c_status l2c_model_hand_over(l2c_model *model, l2c_dtype dtype, l2c_pool *pool, l2c_matrix_taker *take, void *arg,
                               l2c_error *err) {
    l2c_status status = l2c_model_plan(model, dtype, err);
    if (status != L2C_OK) return status;
    size_t bytes = scratch_bytes(model, dtype);
    l2c_mapping scratch = {0};
    if (bytes > 0 && l2c_memory_map(bytes, &scratch) != L2C_OK)
        return l2c_fail(err, L2C_NOMEM, "out of memory for a packed matrix of %zu bytes", bytes);
    unsigned char *memory = (unsigned char *)(uintptr_t)scratch.data;
#define HAND_OVER(m)                                                                          \
    do {                                                                                      \
        l2c_matrix to = packed_shape(m, dtype);                                               \
        if (status == L2C_OK && to.type != (m)->type) {                                       \
            memset(memory, 0, l2c_matrix_bytes(&to)); /* what fills up the last block */      \
            status = pack_matrix(pool, &to, memory, m, err);                                  \
        }                                                                                     \
        if (status == L2C_OK) status = take(arg, &to, err);                                   \
        l2c_file_forget(&model->mapping, (m)->data, l2c_matrix_bytes(m));                     \
        to.data = to.scales = NULL;                                                           \
        *(m) = to;                                                                            \
    } while (0)
    EACH_MATRIX(model, HAND_OVER);
#undef HAND_OVER
    if (model->config.shared_classifier) model->classifier = model->token_embedding;
    l2c_file_unmap(&scratch);
    return status;
}

static const float *copy_norm(unsigned char **at, const float *norm, size_t dim) {
    float *copy = (float *)*at;
    memcpy(copy, norm, dim * sizeof *copy);
    *at += whole_lines(dim * sizeof *copy);
    return copy;
}

l2c_status l2c_model_pack(l2c_model *model, l2c_dtype dtype, l2c_pool *pool, l2c_error *err) {
    const l2c_config *c = &model->config;
    size_t dim = (size_t)c->dim;
    l2c_status status = l2c_model_plan(model, dtype, err);
    if (status != L2C_OK) return status;
    uint64_t bytes = model->matrices.packed;
    if (bytes == 0) return L2C_OK;
    l2c_mapping memory;
    if (bytes > SIZE_MAX || l2c_memory_map((size_t)bytes, &memory) != L2C_OK)
        return l2c_fail(err, L2C_NOMEM, "out of memory for packed weights of %llu bytes", (unsigned long long)bytes);
    unsigned char *at = (unsigned char *)(uintptr_t)memory.data;
#define PACK(m)                                                        \
    do {                                                               \
        l2c_matrix to = packed_shape(m, dtype);                        \
        if (status == L2C_OK) status = pack_matrix(pool, &to, at, m, err); \
        l2c_file_forget(&model->mapping, (m)->data, l2c_matrix_bytes(m)); \
        at += whole_lines(l2c_matrix_bytes(&to));                      \
        *(m) = to;                                                     \
    } while (0)
    EACH_MATRIX(model, PACK);
#undef PACK
    for (int32_t l = 0; l < c->n_layers; l++) {
        model->layers[l].attention_norm = copy_norm(&at, model->layers[l].attention_norm, dim);
        model->layers[l].ffn_norm = copy_norm(&at, model->layers[l].ffn_norm, dim);
    }
    model->final_norm = copy_norm(&at, model->final_norm, dim);
    if (c->shared_classifier) model->classifier = model->token_embedding;
    l2c_file_unmap(&model->mapping);
    model->mapping = (l2c_mapping){0};
    model->packed = memory;
    return status;
}
