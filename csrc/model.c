/*
 * model.c - a model, whatever file it came from: opening, quantizing, sizes, freeing.
 *
 * files/checkpoint.c and files/gguf_model.c read a file's header and find its tensors; files/pack.c converts and packs
 * the matrices that are not computed with as they lie in the file. What is true of every model is here.
 */
#include <string.h>

#include "cuda/cuda_model.h"
#include "files/gguf.h"
#include "internal.h"
#include "system/float_env.h"

/* ---- Opening ------------------------------------------------------------------------------------- */

static l2c_model *new_model(l2c_error *err) {
    l2c_model *m = l2c_memory_zeroed(1, sizeof *m);
    if (m == NULL) l2c_fail(err, L2C_NOMEM, "out of memory for a model");
    return m;
}

/* Reads the header in m->mapping, GGUF or llama2.c, and points the tensors into it. */
static l2c_status load(l2c_model *m, l2c_error *err) {
    const unsigned char *data = m->mapping.data;
    size_t size = m->mapping.size;
    m->file_bytes = size;
    return l2c_gguf_is(data, size) ? l2c_gguf_load_model(m, data, size, err)
                                   : l2c_checkpoint_load_model(m, data, size, err);
}

/* Undoes load; the mapping stays. */
static void unload(l2c_model *m) {
    l2c_memory_free(m->layers);
    l2c_memory_free(m->rope_divisors);
    *m = (l2c_model){.mapping = m->mapping};
}

/* float32 weights are read as fast as memory allows, so it matters what memory they are in: those of a file that
 * are computed with as they lie go into huge pages. */
static int should_move(const l2c_model *m) {
    return m->mapping.is_file && m->matrices.packed == 0 && m->config.dtype == L2C_DTYPE_FLOAT32
        && l2c_file_is_moved(m->file_bytes);
}

static l2c_status move_weights(l2c_model *m, l2c_error *err) {
    if (l2c_file_to_memory(&m->mapping, m->tensors_start) != L2C_OK)
        return L2C_OK; /* not an error: they are used where they are */
    unload(m);
    m->moved = 1;
    return load(m, err);
}

/* Brings the weights to where they are computed with. */
static l2c_status place_weights(l2c_model *m, l2c_dtype dtype, l2c_pool *pool, l2c_error *err) {
    l2c_status status = should_move(m) ? move_weights(m, err) : L2C_OK;
    /* plans again: load has set the matrices anew */
    if (status == L2C_OK) status = l2c_model_pack(m, dtype, pool, err);
    return status == L2C_OK ? l2c_rope_create(m, err) : status;
}

/* Leaves what the header says, and gives the file back. */
static void drop_weights(l2c_model *m) {
    /* what opening it would have done, for l2c_model_is_mapped and l2c_model_opening_bytes */
    m->moved = should_move(m);
    l2c_memory_free(m->layers);
    m->layers = NULL;
    l2c_file_unmap(&m->mapping);
    m->mapping = (l2c_mapping){0};
}

/* How a model is opened. */
typedef struct {
    l2c_dtype dtype;
    l2c_pool *pool;
    l2c_device *device; /* NULL: the processor computes */
    int only_header;
} opening;

static l2c_status send_weights(l2c_model *m, const opening *o, l2c_error *err) {
    l2c_status status = l2c_placed_create(m, o->dtype, o->pool, o->device, err);
    return status == L2C_OK ? l2c_rope_create(m, err) : status;
}

/* Owns the mapping from here on, whatever becomes of it. */
static l2c_status open_mapping(l2c_mapping mapping, const opening *o, l2c_model **model, l2c_error *err) {
    l2c_model *m = new_model(err);
    if (m == NULL) {
        l2c_file_unmap(&mapping);
        return L2C_NOMEM;
    }
    m->mapping = mapping;
    l2c_float_env env = l2c_float_enter();
    l2c_status status = load(m, err);
    if (status == L2C_OK) status = l2c_model_plan(m, o->dtype, err);
    if (status == L2C_OK && o->only_header) drop_weights(m);
    else if (status == L2C_OK && o->device != NULL) status = send_weights(m, o, err);
    else if (status == L2C_OK) status = place_weights(m, o->dtype, o->pool, err);
    l2c_float_leave(env);
    if (status != L2C_OK) l2c_model_free(m);
    else *model = m;
    return status;
}

static l2c_status check_dtype(l2c_dtype dtype, l2c_error *err) {
    if (((int)dtype >= L2C_DTYPE_AUTO && dtype <= L2C_DTYPE_INT4) || dtype == L2C_DTYPE_FILE) return L2C_OK;
    return l2c_fail(err, L2C_ARG, "unknown dtype number %d", (int)dtype);
}

static l2c_status open_path(const char *path, opening o, l2c_model **model, l2c_error *err) {
    l2c_mapping mapping = {0};
    l2c_status status = check_dtype(o.dtype, err);
    if (status == L2C_OK) status = l2c_file_map(path, "checkpoint", &mapping, err);
    return status == L2C_OK ? open_mapping(mapping, &o, model, err) : status;
}

static l2c_status open_data(const void *data, size_t size, opening o, l2c_model **model, l2c_error *err) {
    l2c_status status = check_dtype(o.dtype, err);
    if (status != L2C_OK) return status;
    if ((uintptr_t)data % sizeof(float) != 0)
        return l2c_fail(err, L2C_ARG, "checkpoint memory must be aligned to 4 bytes");
    return open_mapping((l2c_mapping){.data = data, .size = size}, &o, model, err);
}

l2c_status l2c_model_open(const char *path, l2c_dtype dtype, l2c_pool *pool, l2c_model **model, l2c_error *err) {
    return open_path(path, (opening){.dtype = dtype, .pool = pool}, model, err);
}

l2c_status l2c_model_open_memory(const void *data, size_t size, l2c_dtype dtype, l2c_pool *pool, l2c_model **model,
                                 l2c_error *err) {
    return open_data(data, size, (opening){.dtype = dtype, .pool = pool}, model, err);
}

l2c_status l2c_model_open_header(const char *path, l2c_dtype dtype, l2c_model **model, l2c_error *err) {
    return open_path(path, (opening){.dtype = dtype, .only_header = 1}, model, err);
}

l2c_status l2c_model_open_header_memory(const void *data, size_t size, l2c_dtype dtype, l2c_model **model,
                                        l2c_error *err) {
    return open_data(data, size, (opening){.dtype = dtype, .only_header = 1}, model, err);
}

l2c_status l2c_model_open_on(l2c_device *device, const char *path, l2c_dtype dtype, l2c_pool *pool, l2c_model **model,
                             l2c_error *err) {
    return open_path(path, (opening){.dtype = dtype, .pool = pool, .device = device}, model, err);
}

l2c_status l2c_model_open_memory_on(l2c_device *device, const void *data, size_t size, l2c_dtype dtype, l2c_pool *pool,
                                    l2c_model **model, l2c_error *err) {
    return open_data(data, size, (opening){.dtype = dtype, .pool = pool, .device = device}, model, err);
}

l2c_status l2c_model_fail_no_weights(l2c_error *err) {
    return l2c_fail(err, L2C_ARG, "the model has no weights: only its header was read");
}

l2c_status l2c_model_quantize(const l2c_model *from, l2c_dtype dtype, l2c_pool *pool, l2c_model **model,
                              l2c_error *err) {
    if (from->layers == NULL) return l2c_model_fail_no_weights(err);
    if (from->placed != NULL) return l2c_fail(err, L2C_ARG, "the weights are on a card: quantize them as they are opened");
    if (from->config.dtype != L2C_DTYPE_FLOAT32 || (dtype != L2C_DTYPE_INT8 && dtype != L2C_DTYPE_INT4))
        return l2c_fail(err, L2C_ARG, "only float32 weights can be quantized, and to int8 or int4");
    l2c_model *m = new_model(err);
    if (m == NULL) return L2C_NOMEM;
    size_t n_layers = (size_t)from->config.n_layers, pairs = (size_t)from->config.head_size / 2;
    *m = *from;
    m->mapping = m->packed = (l2c_mapping){0}; /* stays with `from` */
    m->rope = NULL;
    m->layers = l2c_memory_zeroed(n_layers, sizeof *m->layers);
    m->rope_divisors = from->rope_divisors == NULL ? NULL : l2c_memory_zeroed(pairs, sizeof *m->rope_divisors);
    if (m->layers == NULL || (m->rope_divisors == NULL && from->rope_divisors != NULL)) {
        l2c_model_free(m);
        return l2c_fail(err, L2C_NOMEM, "out of memory for a model");
    }
    memcpy(m->layers, from->layers, n_layers * sizeof *m->layers);
    if (m->rope_divisors != NULL) memcpy(m->rope_divisors, from->rope_divisors, pairs * sizeof *m->rope_divisors);
    l2c_float_env env = l2c_float_enter();
    l2c_status status = place_weights(m, dtype, pool, err);
    l2c_float_leave(env);
    if (status != L2C_OK) l2c_model_free(m);
    else *model = m;
    return status;
}

void l2c_model_free(l2c_model *model) {
    if (model == NULL) return;
    l2c_placed_free(model->placed);
    l2c_rope_free(model);
    l2c_memory_free(model->layers);
    l2c_memory_free(model->rope_divisors);
    l2c_file_unmap(&model->mapping);
    l2c_file_unmap(&model->packed);
    l2c_memory_free(model);
}

/* ---- Sizes ----------------------------------------------------------------------------------------- */

const l2c_config *l2c_model_config(const l2c_model *model) { return &model->config; }

/* Of a layer: wq, wo and wk, wv; w1, w2, w3. */
static uint64_t matrix_parameters(const l2c_config *c) {
    uint64_t dim = (uint64_t)c->dim, heads = (uint64_t)c->n_heads + (uint64_t)c->n_kv_heads;
    return 2 * dim * heads * (uint64_t)c->head_size + 3 * dim * (uint64_t)c->hidden_dim;
}

uint64_t l2c_model_parameters(const l2c_model *model) {
    const l2c_config *c = &model->config;
    uint64_t table = (uint64_t)c->vocab_size * (uint64_t)c->dim;
    uint64_t norms = (2 * (uint64_t)c->n_layers + 1) * (uint64_t)c->dim;
    return table * (c->shared_classifier ? 1 : 2) + (uint64_t)c->n_layers * matrix_parameters(c) + norms;
}

uint64_t l2c_model_bytes(const l2c_model *model) {
    return model->matrices.packed > 0 ? model->matrices.packed : model->file_bytes;
}

uint64_t l2c_model_sweep_bytes(const l2c_model *model) { return model->matrices.sweep; }

uint64_t l2c_model_device_bytes(const l2c_model *model) {
    return model->placed != NULL ? model->placed->bytes : l2c_placed_bytes(model);
}

uint64_t l2c_model_file_bytes(const l2c_model *model) { return model->file_bytes; }

int l2c_model_is_mapped(const l2c_model *model) {
    return model->matrices.packed == 0 && !model->moved && model->placed == NULL;
}

uint64_t l2c_model_opening_bytes(const l2c_model *model) {
    if (model->matrices.packed > 0) return model->matrices.largest;
    uint64_t piece = model->file_bytes < L2C_MOVED_PIECE ? model->file_bytes : L2C_MOVED_PIECE;
    return model->moved ? piece : 0;
}
