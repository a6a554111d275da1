/*
 * plan.c - what opening a model would take of memory, from its header alone.
 *
 * The model is read as for opening, its matrices lying in the mapped file; then packing and sessions are
 * measured for each dtype.
 */
#include <string.h>

#include "internal.h"

/* The largest part of the file that packing has in memory at a time. */
static uint64_t largest_matrix(const l2c_model *m) {
    uint64_t largest = 0;
#define COMPARE(m1)                                       \
    do {                                                  \
        uint64_t bytes = l2c_matrix_bytes(m1);            \
        if (bytes > largest) largest = bytes;             \
    } while (0)
    EACH_MATRIX(m, COMPARE);
#undef COMPARE
    return largest;
}

static l2c_needs needs_of(const l2c_model *file, l2c_dtype dtype, uint64_t size, int moved, int32_t n_threads) {
    l2c_needs needs = {.possible = 0};
    int is_int8 = file->config.group_size > 0, as_it_lies = dtype == L2C_DTYPE_FILE;
    if (dtype == L2C_DTYPE_MIXED || (dtype == L2C_DTYPE_FLOAT32 && is_int8) || (as_it_lies && !is_int8)) return needs;
    uint64_t packed = 0;
    l2c_matrices matrices;
    l2c_status status = l2c_model_pack_measure(file, dtype, &packed, &matrices, NULL);
    as_it_lies |= status == L2C_UNSUPPORTED && dtype != L2C_DTYPE_INT4;
    if (status != L2C_OK && !as_it_lies) return needs;
    if (as_it_lies || packed == 0) {
        packed = 0;
        matrices = l2c_matrices_begin(file);
#define ADD(m) l2c_matrices_add(&matrices, file, m, m)
        EACH_MATRIX(file, ADD);
#undef ADD
    }
    needs.possible = 1;
    needs.dtype = (int32_t)matrices.dtype;
    needs.mapped = packed == 0 && !moved;
    needs.weights = packed == 0 ? size : packed;
    needs.sweep = matrices.sweep;
    if (packed > 0) needs.opening = largest_matrix(file);
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
    l2c_status status = l2c_model_load(m, data, size, err);
    if (status == L2C_OK) {
        int moved = from_file && l2c_file_is_moved(size) && l2c_model_float32_start(data, size) > 0;
        memset(plan, 0, sizeof *plan);
        for (int dtype = L2C_DTYPE_AUTO; dtype <= L2C_DTYPE_FILE; dtype++)
            plan->needs[dtype] = needs_of(m, (l2c_dtype)dtype, size, moved && dtype <= L2C_DTYPE_FLOAT32, n_threads);
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
