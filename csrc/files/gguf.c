/*
 * gguf.c - reading GGUF, versions 2 and 3: header, metadata, tensor infos (gguf.h says where the format
 * is described).
 *
 * A file is not trusted; readers of this format have been broken by each of these (CVE-2024-21802 and
 * -23605, CVE-2025-53630, CVE-2026-27940 and -33298): counts and lengths times a size that wrap around,
 * sums of padded sizes that do, dimensions whose product does. So bytes are only ever taken through a
 * cursor that knows how many are left, a count is multiplied after it was compared with the quotient,
 * and the walk over keys and tensors runs once without storing anything: memory is taken for as many as
 * it has met, not for as many as the header claims. Names are sorted, so that a search for duplicates
 * takes no quadratic time.
 */
#include <stdlib.h>
#include <string.h>

#include "gguf.h"

enum {
    MAX_KEY = 65535,
    MAX_TENSOR_NAME = 64,
    DEFAULT_ALIGNMENT = 32
};

/* ---- Taking bytes ------------------------------------------------------------------------------------ */

typedef struct {
    const unsigned char *at;
    uint64_t left;
} cursor;

/* NULL, and the cursor stays, where fewer are left. */
static const unsigned char *take(cursor *c, uint64_t bytes) {
    if (bytes > c->left) return NULL;
    const unsigned char *taken = c->at;
    c->at += bytes;
    c->left -= bytes;
    return taken;
}

static int take_u32(cursor *c, uint32_t *value) {
    const unsigned char *bytes = take(c, sizeof *value);
    if (bytes != NULL) memcpy(value, bytes, sizeof *value);
    return bytes != NULL;
}

static int take_u64(cursor *c, uint64_t *value) {
    const unsigned char *bytes = take(c, sizeof *value);
    if (bytes != NULL) memcpy(value, bytes, sizeof *value);
    return bytes != NULL;
}

static const unsigned char *take_string(cursor *c, uint64_t *length) {
    return take_u64(c, length) ? take(c, *length) : NULL;
}

/* "keys" or "tensors", and the number of the one that is cut short */
static l2c_status fail_short(l2c_error *err, const char *what, uint64_t i, uint64_t n) {
    return l2c_fail(err, L2C_FORMAT, "GGUF: the file ends within its %s, at number %llu of %llu", what,
                    (unsigned long long)i + 1, (unsigned long long)n);
}

/* 1 to `most` printable characters: they go into messages, and are looked for as C strings. */
static l2c_status take_name(cursor *c, const char *what, uint64_t i, uint64_t n, uint64_t most, const char **name,
                            size_t *length, l2c_error *err) {
    uint64_t long_length;
    if (!take_u64(c, &long_length)) return fail_short(err, what, i, n);
    if (long_length < 1 || long_length > most)
        return l2c_fail(err, L2C_FORMAT, "GGUF: number %llu of its %s has a name of %llu bytes; it must have 1 to %llu",
                        (unsigned long long)i + 1, what, (unsigned long long)long_length, (unsigned long long)most);
    const unsigned char *bytes = take(c, long_length);
    if (bytes == NULL) return fail_short(err, what, i, n);
    for (uint64_t j = 0; j < long_length; j++)
        if (bytes[j] < ' ' || bytes[j] > '~')
            return l2c_fail(err, L2C_FORMAT, "GGUF: number %llu of its %s has a name that is not printable ASCII",
                            (unsigned long long)i + 1, what);
    *name = (const char *)bytes;
    *length = (size_t)long_length;
    return L2C_OK;
}

/* ---- Keys -------------------------------------------------------------------------------------------- */

/* The strings of an array, or the one that is none; marks of them where there is room for those. */
static int take_strings(l2c_gguf *g, cursor *c, l2c_gguf_entry *e) {
    e->value = c->at;
    e->first_mark = g->n_marks;
    for (uint64_t i = 0, length; i < e->key.count; i++) {
        if (e->key.is_array && i % L2C_GGUF_MARK_EVERY == 0) {
            if (g->n_marks < g->marks_room) g->marks[g->n_marks] = c->at;
            g->n_marks++;
        }
        if (take_string(c, &length) == NULL) return 0;
    }
    return 1;
}

static int bools_are_bools(const unsigned char *value, uint64_t count) {
    uint64_t i = 0;
    while (i < count && value[i] <= 1) i++;
    return i == count;
}

static l2c_status take_entry(l2c_gguf *g, cursor *c, uint64_t i, uint64_t n, l2c_gguf_entry *e, l2c_error *err) {
    memset(e, 0, sizeof *e);
    l2c_gguf_key *key = &e->key;
    l2c_status status = take_name(c, "keys", i, n, MAX_KEY, &key->name, &key->name_length, err);
    if (status != L2C_OK) return status;
    uint32_t type;
    key->count = 1;
    if (!take_u32(c, &type)) return fail_short(err, "keys", i, n);
    if (type == L2C_GGUF_ARRAY) {
        key->is_array = 1;
        if (!take_u32(c, &type) || !take_u64(c, &key->count)) return fail_short(err, "keys", i, n);
        if (type == L2C_GGUF_ARRAY)
            return l2c_fail(err, L2C_UNSUPPORTED, "GGUF: %.*s is an array of arrays", L2C_GGUF_NAME(key));
    }
    uint64_t size = l2c_gguf_type_size(type);
    if (size == 0 && type != L2C_GGUF_STRING)
        return l2c_fail(err, L2C_FORMAT, "GGUF: %.*s is of type %u, which does not exist", L2C_GGUF_NAME(key), type);
    key->type = (int32_t)type;
    if (type == L2C_GGUF_STRING) return take_strings(g, c, e) ? L2C_OK : fail_short(err, "keys", i, n);
    if (key->count > c->left / size)
        return l2c_fail(err, L2C_FORMAT, "GGUF: %.*s has %llu elements, more than the rest of the file",
                        L2C_GGUF_NAME(key), (unsigned long long)key->count);
    e->value = take(c, key->count * size);
    if (type == L2C_GGUF_BOOL && !bools_are_bools(e->value, key->count))
        return l2c_fail(err, L2C_FORMAT, "GGUF: %.*s is neither true nor false", L2C_GGUF_NAME(key));
    return L2C_OK;
}

/* ---- Tensors ----------------------------------------------------------------------------------------- */

/* Everything but whether its data are there: its offset is that of the file, and its bytes are a number. */
static l2c_status take_tensor(cursor *c, uint64_t i, uint64_t n, l2c_gguf_tensor *t, l2c_error *err) {
    memset(t, 0, sizeof *t);
    l2c_status status = take_name(c, "tensors", i, n, MAX_TENSOR_NAME, &t->name, &t->name_length, err);
    if (status != L2C_OK) return status;
    uint32_t n_dims, type;
    if (!take_u32(c, &n_dims)) return fail_short(err, "tensors", i, n);
    if (n_dims < 1 || n_dims > 4)
        return l2c_fail(err, L2C_FORMAT, "GGUF: %.*s has %u dimensions; it must have 1 to 4", L2C_GGUF_NAME(t), n_dims);
    t->n_dims = (int32_t)n_dims;
    uint64_t values = 1;
    for (uint32_t d = 0; d < 4; d++) {
        t->dims[d] = 1;
        if (d < n_dims && !take_u64(c, &t->dims[d])) return fail_short(err, "tensors", i, n);
        if (t->dims[d] < 1 || t->dims[d] > INT64_MAX / values)
            return l2c_fail(err, L2C_FORMAT,
                            "GGUF: %.*s: dimension %u is %llu; it must be 1 or more, their product below 2^63",
                            L2C_GGUF_NAME(t), d + 1, (unsigned long long)t->dims[d]);
        values *= t->dims[d];
    }
    if (!take_u32(c, &type) || !take_u64(c, &t->offset)) return fail_short(err, "tensors", i, n);
    const l2c_block_type *blocks = l2c_block_type_of(type);
    if (blocks == NULL)
        return l2c_fail(err, L2C_UNSUPPORTED, "GGUF: %.*s is of unknown type number %u", L2C_GGUF_NAME(t),
                        type);
    t->type = blocks->name;
    t->type_number = (int32_t)type;
    if (t->dims[0] % blocks->values != 0)
        return l2c_fail(err, L2C_FORMAT, "GGUF: %.*s has rows of %llu values; in %s they must be multiples of %zu",
                        L2C_GGUF_NAME(t), (unsigned long long)t->dims[0], blocks->name, blocks->values);
    if (values / blocks->values > UINT64_MAX / blocks->bytes)
        return l2c_fail(err, L2C_FORMAT, "GGUF: %.*s has 2^64 bytes or more", L2C_GGUF_NAME(t));
    t->bytes = values / blocks->values * blocks->bytes;
    return L2C_OK;
}

/* The tensors' data: within the file, aligned, together not more than there is. */
static l2c_status place_tensors(l2c_gguf *g, uint64_t end_of_infos, l2c_error *err) {
    uint64_t start = (end_of_infos + g->alignment - 1) / g->alignment * g->alignment; /* both below 2^63 */
    uint64_t room = start < g->mapping.size ? g->mapping.size - start : 0, left = room;
    for (size_t i = 0; i < g->n_tensors; i++) {
        l2c_gguf_tensor *t = &g->tensors[i];
        if (t->offset % g->alignment != 0)
            return l2c_fail(err, L2C_FORMAT, "GGUF: %.*s begins at %llu; it must be a multiple of the alignment, %llu",
                            L2C_GGUF_NAME(t), (unsigned long long)t->offset, (unsigned long long)g->alignment);
        if (t->offset > room || t->bytes > room - t->offset)
            return l2c_fail(err, L2C_FORMAT,
                            "GGUF: %.*s has %llu bytes from %llu on; the file has %llu: it is cut short",
                            L2C_GGUF_NAME(t), (unsigned long long)t->bytes, (unsigned long long)t->offset,
                            (unsigned long long)room);
        if (t->bytes > left)
            return l2c_fail(err, L2C_FORMAT, "GGUF: its tensors have more bytes than the file; some overlap");
        left -= t->bytes;
        t->offset += start;
        t->data = g->mapping.data + t->offset;
    }
    return L2C_OK;
}

/* ---- Opening ------------------------------------------------------------------------------------------- */

static int compare(const char *a, size_t a_length, const char *b, size_t b_length) {
    int order = memcmp(a, b, a_length < b_length ? a_length : b_length);
    return order != 0 ? order : (a_length > b_length) - (a_length < b_length);
}

static int compare_keys(const void *a, const void *b) {
    const l2c_gguf_key *x = &((const l2c_gguf_entry *)a)->key, *y = &((const l2c_gguf_entry *)b)->key;
    return compare(x->name, x->name_length, y->name, y->name_length);
}

static int compare_tensors(const void *a, const void *b) {
    const l2c_gguf_tensor *x = a, *y = b;
    return compare(x->name, x->name_length, y->name, y->name_length);
}

static l2c_status sort_names(l2c_gguf *g, l2c_error *err) {
    qsort(g->keys, g->n_keys, sizeof *g->keys, compare_keys);
    qsort(g->tensors, g->n_tensors, sizeof *g->tensors, compare_tensors);
    for (size_t i = 1; i < g->n_keys; i++)
        if (compare_keys(&g->keys[i - 1], &g->keys[i]) == 0)
            return l2c_fail(err, L2C_FORMAT, "GGUF: %.*s appears twice", L2C_GGUF_NAME(&g->keys[i].key));
    for (size_t i = 1; i < g->n_tensors; i++)
        if (compare_tensors(&g->tensors[i - 1], &g->tensors[i]) == 0)
            return l2c_fail(err, L2C_FORMAT, "GGUF: the tensor %.*s appears twice", L2C_GGUF_NAME(&g->tensors[i]));
    return L2C_OK;
}

int64_t l2c_gguf_find_key(const l2c_gguf *gguf, const char *name) {
    l2c_gguf_entry wanted = {.key = {.name = name, .name_length = strlen(name)}};
    l2c_gguf_entry *found = bsearch(&wanted, gguf->keys, gguf->n_keys, sizeof wanted, compare_keys);
    return found == NULL ? -1 : found - gguf->keys;
}

int64_t l2c_gguf_find_tensor(const l2c_gguf *gguf, const char *name) {
    l2c_gguf_tensor wanted = {.name = name, .name_length = strlen(name)};
    l2c_gguf_tensor *found = bsearch(&wanted, gguf->tensors, gguf->n_tensors, sizeof wanted, compare_tensors);
    return found == NULL ? -1 : found - gguf->tensors;
}

static l2c_status find_alignment(l2c_gguf *g, l2c_error *err) {
    g->alignment = DEFAULT_ALIGNMENT;
    int64_t key = l2c_gguf_find_key(g, "general.alignment"), value;
    if (key < 0) return L2C_OK;
    if (g->keys[key].key.type != L2C_GGUF_UINT32 || g->keys[key].key.is_array)
        return l2c_fail(err, L2C_FORMAT, "GGUF: general.alignment must be a uint32");
    l2c_gguf_integer(g, (size_t)key, 0, &value, NULL);
    if (value < 8 || (value & (value - 1)) != 0)
        return l2c_fail(err, L2C_FORMAT, "GGUF: general.alignment is %lld; it must be a power of two, 8 or more",
                        (long long)value);
    g->alignment = (uint64_t)value;
    return L2C_OK;
}

/* All keys and tensors, into memory for them where there is some. */
static l2c_status walk(l2c_gguf *g, cursor *c, uint64_t n_keys, uint64_t n_tensors, l2c_error *err) {
    l2c_status status = L2C_OK;
    l2c_gguf_entry e;
    l2c_gguf_tensor t;
    g->n_marks = 0;
    for (uint64_t i = 0; i < n_keys && status == L2C_OK; i++)
        status = take_entry(g, c, i, n_keys, g->keys != NULL ? &g->keys[i] : &e, err);
    for (uint64_t i = 0; i < n_tensors && status == L2C_OK; i++)
        status = take_tensor(c, i, n_tensors, g->tensors != NULL ? &g->tensors[i] : &t, err);
    return status;
}

int l2c_gguf_is(const unsigned char *data, size_t size) { return size >= 4 && memcmp(data, "GGUF", 4) == 0; }

static l2c_status load(l2c_gguf *g, l2c_error *err) {
    cursor c = {g->mapping.data, g->mapping.size};
    uint64_t n_keys, n_tensors;
    if (!l2c_gguf_is(g->mapping.data, g->mapping.size)) return l2c_fail(err, L2C_FORMAT, "not a GGUF file");
    take(&c, 4);
    if (!take_u32(&c, &g->version) || !take_u64(&c, &n_tensors) || !take_u64(&c, &n_keys))
        return l2c_fail(err, L2C_FORMAT, "GGUF: file of %zu bytes is shorter than a header (24 bytes)",
                        g->mapping.size);
    if (g->version != 0 && g->version % 65536 == 0)
        return l2c_fail(err, L2C_UNSUPPORTED, "GGUF: the file is big-endian");
    if (g->version != 2 && g->version != 3)
        return l2c_fail(err, L2C_UNSUPPORTED, "GGUF: version is %u; versions 2 and 3 are known", g->version);
    cursor again = c;
    l2c_status status = walk(g, &c, n_keys, n_tensors, err);
    if (status != L2C_OK) return status;
    g->n_keys = (size_t)n_keys;
    g->n_tensors = (size_t)n_tensors;
    g->keys = l2c_memory_zeroed(g->n_keys, sizeof *g->keys);
    g->tensors = l2c_memory_zeroed(g->n_tensors, sizeof *g->tensors);
    g->marks = l2c_memory_zeroed(g->n_marks, sizeof *g->marks);
    g->marks_room = g->n_marks;
    if (g->keys == NULL || g->tensors == NULL || g->marks == NULL)
        return l2c_fail(err, L2C_NOMEM, "GGUF: out of memory for %zu keys and %zu tensors", g->n_keys, g->n_tensors);
    status = walk(g, &again, n_keys, n_tensors, err);
    if (status == L2C_OK) status = sort_names(g, err);
    if (status == L2C_OK) status = find_alignment(g, err);
    if (status == L2C_OK) status = place_tensors(g, g->mapping.size - again.left, err);
    return status;
}

/* Owns the mapping from here on, whatever becomes of it. */
static l2c_status open_mapping(l2c_mapping mapping, l2c_gguf **gguf, l2c_error *err) {
    l2c_gguf *g = l2c_memory_zeroed(1, sizeof *g);
    if (g == NULL) {
        l2c_file_unmap(&mapping);
        return l2c_fail(err, L2C_NOMEM, "out of memory for a GGUF file");
    }
    g->mapping = mapping;
    l2c_status status = load(g, err);
    if (status != L2C_OK) l2c_gguf_free(g);
    else *gguf = g;
    return status;
}

l2c_status l2c_gguf_open(const char *path, l2c_gguf **gguf, l2c_error *err) {
    l2c_mapping mapping = {0};
    l2c_status status = l2c_file_map(path, "GGUF file", &mapping, err);
    return status == L2C_OK ? open_mapping(mapping, gguf, err) : status;
}

l2c_status l2c_gguf_open_memory(const void *data, size_t size, l2c_gguf **gguf, l2c_error *err) {
    return open_mapping((l2c_mapping){.data = data, .size = size}, gguf, err);
}

void l2c_gguf_free(l2c_gguf *gguf) {
    if (gguf == NULL) return;
    l2c_memory_free(gguf->keys);
    l2c_memory_free(gguf->tensors);
    l2c_memory_free(gguf->marks);
    l2c_file_unmap(&gguf->mapping);
    l2c_memory_free(gguf);
}
