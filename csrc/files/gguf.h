/*
 * gguf.h - GGUF, GGML's file format (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md): what
 * the engine knows of it beyond the public header.
 */
#ifndef L2C_GGUF_H
#define L2C_GGUF_H

#include "internal.h"

/* ---- dequantize.c: the types of tensors ------------------------------------------------------------ */

/* n <= 32 values of one block, from value `start` of it on, which is a multiple of 32; a type whose
 * blocks are single values reads n of those. */
typedef void l2c_block_reader(float *x, const unsigned char *block, size_t start, size_t n);

/* 32 weights as a packed matrix keeps them: scale * q, or of L2C_WEIGHTS_Q4_1 scale * q + minimum */
typedef struct {
    int8_t q[L2C_Q4_GROUP];
    uint16_t scale, minimum; /* float16 */
} l2c_group;

/* The group of one block from value `start` of it on, a multiple of 32. */
typedef void l2c_group_reader(l2c_group *to, const unsigned char *block, size_t start);

/* Rows are made of blocks: `values` of them share `bytes`. */
typedef struct l2c_block_type {
    const char *name;
    size_t values, bytes;
    l2c_block_reader *read; /* NULL: this engine does not know what the bytes mean */
    l2c_weights nearest;    /* what L2C_DTYPE_AUTO computes with */
    l2c_group_reader *group; /* of `nearest`, where that keeps the same integers; else NULL */
} l2c_block_type;

/* NULL for a number that GGUF has not given away. */
const l2c_block_type *l2c_block_type_of(uint32_t number);

/* ---- gguf.c, gguf_values.c: the file ---------------------------------------------------------------- */

enum { L2C_GGUF_MARK_EVERY = 16 }; /* strings of an array: a mark, from where one is looked for */

typedef struct {
    l2c_gguf_key key; /* first: entries are sorted by name, as tensors are */
    const unsigned char *value;
    size_t first_mark; /* of an array of strings */
} l2c_gguf_entry;

struct l2c_gguf {
    l2c_mapping mapping;
    uint32_t version;
    uint64_t alignment;
    size_t n_keys, n_tensors, n_marks;
    l2c_gguf_entry *keys;        /* (n_keys) */
    l2c_gguf_tensor *tensors;    /* (n_tensors) */
    const unsigned char **marks; /* (n_marks) where every 16th string of an array is, array after array */
    size_t marks_room;
};

/* Whether it begins as one. */
int l2c_gguf_is(const unsigned char *data, size_t size);

/* Bytes of a value; 0 for strings, arrays and numbers that are no type. */
uint64_t l2c_gguf_type_size(uint32_t type);

/* printf arguments for a name with "%.*s"; not too much of it, so that what comes after is seen. */
#define L2C_GGUF_NAME(named) ((named)->name_length < 64 ? (int)(named)->name_length : 64), (named)->name

/* ---- gguf_model.c: a Llama in it ----------------------------------------------------------------------- */

/* Fills in an empty model, whose matrices then lie in `data`. */
l2c_status l2c_gguf_load_model(l2c_model *model, const unsigned char *data, size_t size, l2c_error *err);

#endif
