/*
 * fuzz_gguf.c - libFuzzer target: any bytes as a GGUF file of any architecture. Where one opens, all that
 * it says can be asked for, and every name leads back to where it stands. (Llamas in GGUF are among the
 * seeds of fuzz_checkpoint.c, which computes with them.)
 */
#include <stdlib.h>
#include <string.h>

#include "llama2c.h"

enum { ELEMENTS = 40, LONGEST_ROW = 1 << 16 };

static volatile unsigned char sink;

static void require(int condition) {
    if (!condition) abort(); /* which libFuzzer reports */
}

static void touch(const void *data, size_t size) {
    for (size_t i = 0; i < size; i++) sink ^= ((const unsigned char *)data)[i];
}

/* A name as a C string of exactly its size. */
static char *terminated(const char *name, size_t length) {
    char *copy = malloc(length + 1);
    require(copy != NULL);
    memcpy(copy, name, length);
    copy[length] = '\0';
    return copy;
}

static void read_element(const l2c_gguf *gguf, size_t i, const l2c_gguf_key *key, uint64_t element) {
    int64_t integer;
    double number;
    const char *bytes;
    size_t length;
    int is_float = key->type == L2C_GGUF_FLOAT32 || key->type == L2C_GGUF_FLOAT64;
    l2c_status status = l2c_gguf_string(gguf, i, element, &bytes, &length, NULL);
    require(status == (key->type == L2C_GGUF_STRING ? L2C_OK : L2C_ARG));
    if (status == L2C_OK) touch(bytes, length);
    status = l2c_gguf_integer(gguf, i, element, &integer, NULL);
    require(status == (is_float || key->type == L2C_GGUF_STRING ? L2C_ARG : L2C_OK)
            || (status == L2C_FORMAT && key->type == L2C_GGUF_UINT64));
    l2c_status as_number = l2c_gguf_number(gguf, i, element, &number, NULL);
    require(as_number == (is_float ? L2C_OK : status));
}

static void read_keys(const l2c_gguf *gguf) {
    const l2c_gguf_key *key;
    for (size_t i = 0; (key = l2c_gguf_key_at(gguf, i)) != NULL; i++) {
        char *name = terminated(key->name, key->name_length);
        require(l2c_gguf_find_key(gguf, name) == (int64_t)i);
        free(name);
        for (uint64_t e = 0; e < key->count && e < ELEMENTS; e++) read_element(gguf, i, key, e);
        if (key->count > 0) read_element(gguf, i, key, key->count - 1);
        require(l2c_gguf_integer(gguf, i, key->count, NULL, NULL) == L2C_RANGE);
    }
}

static void read_tensors(const l2c_gguf *gguf) {
    const l2c_gguf_tensor *t;
    for (size_t i = 0; (t = l2c_gguf_tensor_at(gguf, i)) != NULL; i++) {
        char *name = terminated(t->name, t->name_length);
        require(l2c_gguf_find_tensor(gguf, name) == (int64_t)i);
        free(name);
        touch(t->data, t->bytes);
        if (t->dims[0] > LONGEST_ROW) continue;
        float *row = malloc((size_t)t->dims[0] * sizeof *row);
        require(row != NULL);
        uint64_t rows = t->dims[1] * t->dims[2] * t->dims[3];
        for (uint64_t r = 0; r < rows; r = r < rows - 1 && r >= 2 ? rows - 1 : r + 1) {
            l2c_status status = l2c_gguf_tensor_row(gguf, i, r, row, NULL);
            require(status == L2C_OK || status == L2C_UNSUPPORTED);
        }
        require(l2c_gguf_tensor_row(gguf, i, rows, row, NULL) == L2C_RANGE);
        free(row);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    unsigned char *copy = malloc(size + (size == 0)); /* aligned, and of exactly the size */
    require(copy != NULL);
    if (size > 0) memcpy(copy, data, size);
    l2c_gguf *gguf;
    if (l2c_gguf_open_memory(copy, size, &gguf, NULL) == L2C_OK) {
        read_keys(gguf);
        read_tensors(gguf);
        l2c_gguf_free(gguf);
    }
    free(copy);
    return 0;
}
