/*
 * plan.c - what opening a model would take of memory, from its header alone.
 *
 * The model is read as for opening, its matrices lying in the mapped file; then packing and sessions are
 * measured for each dtype.
 */
#include <string.h>

#include "files/gguf.h"
#include "internal.h"

static l2c_needs needs_of(const l2c_model *file, l2c_dtype dtype, uint64_t size, int moved, int32_t n_threads) {
    l2c_needs needs = {.possible = 0};
    l2c_matrices matrices;
    if (dtype == L2C_DTYPE_MIXED || l2c_model_measure(file, dtype, &matrices, NULL) != L2C_OK) return needs;
    uint64_t packed = matrices.packed;
    moved &= packed == 0 && matrices.dtype == L2C_DTYPE_FLOAT32;
    needs.possible = 1;
    needs.dtype = (int32_t)matrices.dtype;
    needs.mapped = packed == 0 && !moved;
    needs.weights = packed == 0 ? size : packed;
    needs.sweep = matrices.sweep;
    if (packed > 0) needs.opening = matrices.largest;
    else if (moved) needs.opening = size < L2C_MOVED_PIECE ? size : L2C_MOVED_PIECE;
    l2c_session_size whole = l2c_session_measure(&file->config, &matrices, L2C_KV_FLOAT32, n_threads);
    l2c_session_size half = l2c_session_measure(&file->config, &matrices, L2C_KV_FLOAT16, n_threads);
    needs.session_fixed = whole.fixed;
    needs.session_per_position = whole.per_position;
    needs.cache_per_position = whole.cache;
    needs.half_session_fixed = half.fixed;
    needs.half_session_per_position = half.per_position;
    return needs;
}

/* from_file: what l2c_model_open would move into memory of its own, it moves. */
static l2c_status plan_data(const unsigned char *data, size_t size, int from_file, int32_t n_threads, l2c_plan *plan,
                            l2c_error *err) {
    if (n_threads < 1) return l2c_fail(err, L2C_ARG, "n_threads is %d; it must be 1 or more", n_threads);
    l2c_model *m = l2c_memory_zeroed(1, sizeof *m);
    if (m == NULL) return l2c_fail(err, L2C_NOMEM, "out of memory for a model");
    l2c_status status = l2c_gguf_is(data, size) ? l2c_gguf_load_model(m, data, size, err)
                                                : l2c_checkpoint_load_model(m, data, size, err);
    if (status == L2C_OK) {
        int moved = from_file && l2c_file_is_moved(size);
        memset(plan, 0, sizeof *plan);
        for (int dtype = L2C_DTYPE_AUTO; dtype <= L2C_DTYPE_FILE; dtype++)
            plan->needs[dtype] = needs_of(m, (l2c_dtype)dtype, size, moved, n_threads);
        plan->config = m->config;
        plan->config.dtype = plan->needs[L2C_DTYPE_AUTO].dtype;
        plan->parameters = l2c_model_parameters(m);
        plan->file_bytes = size;
    }
    l2c_memory_free(m->layers);
    l2c_memory_free(m->rope_divisors);
    l2c_memory_free(m);
    return status;
}

l2c_status l2c_model_plan(const char *path, int32_t n_threads, l2c_plan *plan, l2c_error *err) {
    l2c_mapping mapping = {0};
    l2c_status status = l2c_file_map(path, "checkpoint", &mapping, err);
    if (status != L2C_OK) return status;
    status = plan_data(mapping.data, mapping.size, 1, n_threads, plan, err);
    l2c_file_unmap(&mapping);
    return status;
}

l2c_status l2c_model_plan_memory(const void *data, size_t size, int32_t n_threads, l2c_plan *plan, l2c_error *err) {
    if ((uintptr_t)data % sizeof(float) != 0)
        return l2c_fail(err, L2C_ARG, "checkpoint memory must be aligned to 4 bytes");
    return plan_data(data, size, 0, n_threads, plan, err);
}
