/*
 * gguf_values.c - what an open GGUF file says: keys, their values, tensors.
 */
#include <string.h>

#include "gguf.h"
#include "system/float_env.h"

int32_t l2c_gguf_version(const l2c_gguf *gguf) { return (int32_t)gguf->version; }

const l2c_gguf_key *l2c_gguf_key_at(const l2c_gguf *gguf, size_t i) {
    return i < gguf->n_keys ? &gguf->keys[i].key : NULL;
}

const l2c_gguf_tensor *l2c_gguf_tensor_at(const l2c_gguf *gguf, size_t i) {
    return i < gguf->n_tensors ? &gguf->tensors[i] : NULL;
}

uint64_t l2c_gguf_type_size(uint32_t type) {
    static const uint8_t sizes[] = {
        [L2C_GGUF_UINT8] = 1,   [L2C_GGUF_INT8] = 1, [L2C_GGUF_UINT16] = 2, [L2C_GGUF_INT16] = 2,
        [L2C_GGUF_UINT32] = 4,  [L2C_GGUF_INT32] = 4, [L2C_GGUF_FLOAT32] = 4, [L2C_GGUF_BOOL] = 1,
        [L2C_GGUF_UINT64] = 8,  [L2C_GGUF_INT64] = 8, [L2C_GGUF_FLOAT64] = 8,
    };
    return type < sizeof sizes ? sizes[type] : 0;
}

static l2c_status check_element(const l2c_gguf *g, size_t key, uint64_t i, l2c_error *err) {
    if (key >= g->n_keys) return l2c_fail(err, L2C_RANGE, "key number %zu; there are %zu", key, g->n_keys);
    const l2c_gguf_key *k = &g->keys[key].key;
    if (i < k->count) return L2C_OK;
    return l2c_fail(err, L2C_RANGE, "element %llu of %.*s, which has %llu", (unsigned long long)i, L2C_GGUF_NAME(k),
                    (unsigned long long)k->count);
}

static l2c_status fail_type(const l2c_gguf_key *key, const char *wanted, l2c_error *err) {
    return l2c_fail(err, L2C_ARG, "%.*s is not %s", L2C_GGUF_NAME(key), wanted);
}

l2c_status l2c_gguf_integer(const l2c_gguf *gguf, size_t key, uint64_t i, int64_t *value, l2c_error *err) {
    l2c_status status = check_element(gguf, key, i, err);
    if (status != L2C_OK) return status;
    const l2c_gguf_entry *e = &gguf->keys[key];
    uint64_t bits = 0, size = l2c_gguf_type_size((uint32_t)e->key.type);
    if (size > 0) memcpy(&bits, e->value + i * size, size); /* little-endian */
    switch (e->key.type) {
    case L2C_GGUF_INT8: *value = (int8_t)bits; return L2C_OK;
    case L2C_GGUF_INT16: *value = (int16_t)bits; return L2C_OK;
    case L2C_GGUF_INT32: *value = (int32_t)bits; return L2C_OK;
    case L2C_GGUF_FLOAT32: case L2C_GGUF_FLOAT64: case L2C_GGUF_STRING: return fail_type(&e->key, "an integer", err);
    case L2C_GGUF_UINT64:
        if (bits > INT64_MAX)
            return l2c_fail(err, L2C_FORMAT, "%.*s is %llu, which is too large", L2C_GGUF_NAME(&e->key),
                            (unsigned long long)bits);
    }
    *value = (int64_t)bits;
    return L2C_OK;
}

l2c_status l2c_gguf_number(const l2c_gguf *gguf, size_t key, uint64_t i, double *value, l2c_error *err) {
    l2c_status status = check_element(gguf, key, i, err);
    if (status != L2C_OK) return status;
    const l2c_gguf_entry *e = &gguf->keys[key];
    if (e->key.type == L2C_GGUF_FLOAT32) {
        float single;
        memcpy(&single, e->value + i * sizeof single, sizeof single);
        *value = single;
    } else if (e->key.type == L2C_GGUF_FLOAT64) {
        memcpy(value, e->value + i * sizeof *value, sizeof *value);
    } else {
        int64_t integer;
        status = l2c_gguf_integer(gguf, key, i, &integer, err);
        if (status == L2C_OK) *value = (double)integer;
        else if (status == L2C_ARG) return fail_type(&e->key, "a number", err);
    }
    return status;
}

l2c_status l2c_gguf_string(const l2c_gguf *gguf, size_t key, uint64_t i, const char **bytes, size_t *length,
                           l2c_error *err) {
    l2c_status status = check_element(gguf, key, i, err);
    if (status != L2C_OK) return status;
    const l2c_gguf_entry *e = &gguf->keys[key];
    if (e->key.type != L2C_GGUF_STRING) return fail_type(&e->key, "a string", err);
    const unsigned char *at = e->key.is_array ? gguf->marks[e->first_mark + i / L2C_GGUF_MARK_EVERY] : e->value;
    const unsigned char *end = gguf->mapping.data + gguf->mapping.size;
    uint64_t n;
    for (uint64_t skip = i % L2C_GGUF_MARK_EVERY;; skip--) {
        if ((size_t)(end - at) < sizeof n) break;
        memcpy(&n, at, sizeof n);
        at += sizeof n;
        if (n > (size_t)(end - at)) break;
        if (skip == 0) {
            *bytes = (const char *)at;
            *length = (size_t)n;
            return L2C_OK;
        }
        at += n;
    }
    /* It was right when the file was opened. */
    return l2c_fail(err, L2C_FORMAT, "%.*s changed while it was open", L2C_GGUF_NAME(&e->key));
}

l2c_status l2c_gguf_tensor_row(const l2c_gguf *gguf, size_t i, uint64_t row, float *x, l2c_error *err) {
    const l2c_gguf_tensor *t = l2c_gguf_tensor_at(gguf, i);
    if (t == NULL || row >= t->dims[1] * t->dims[2] * t->dims[3])
        return l2c_fail(err, L2C_RANGE, "row %llu of tensor number %zu; there is none", (unsigned long long)row, i);
    const l2c_block_type *blocks = l2c_block_type_of((uint32_t)t->type_number);
    if (blocks->read == NULL)
        return l2c_fail(err, L2C_UNSUPPORTED, "%.*s is %s, which cannot be read", L2C_GGUF_NAME(t), blocks->name);
    size_t n = (size_t)t->dims[0];
    l2c_matrix m = {.type = L2C_WEIGHTS_GGUF, .rows = 1, .cols = n, .blocks = blocks};
    m.data = (const unsigned char *)t->data + row * (n / blocks->values * blocks->bytes);
    l2c_float_env env = l2c_float_enter();
    l2c_matrix_row(x, &m, 0);
    l2c_float_leave(env);
    return L2C_OK;
}
