/*
 * tokenizer.h - what tokenizer.c, tokenizer_file.c and encode.c share: pieces, and how they are looked up.
 */
#ifndef L2C_TOKENIZER_H
#define L2C_TOKENIZER_H

#include "internal.h"

enum {
    L2C_NONE = -1,
    L2C_MAX_PIECE = 4096, /* bytes */
    L2C_MAX_VOCAB = 1 << 24
};

typedef struct {
    const unsigned char *bytes; /* in the tokenizer's text; for a byte piece, the byte it means */
    int32_t length;
    int32_t type; /* l2c_piece_type */
    float score;
} l2c_piece;

typedef struct {
    int32_t left, right, joined; /* ids; left L2C_NONE: a free slot */
    int32_t rank;
} l2c_join;

struct l2c_tokenizer {
    int32_t vocab_size, bos, eos, unknown;
    int32_t longest;       /* bytes of the longest piece that text can become */
    int split_spaces;      /* nothing is joined across the front of a space */
    int space_is_byte;     /* a space without a piece is byte 0x20, as in run.c; else U+2581's three */
    l2c_piece *pieces;     /* (vocab_size) */
    unsigned char *text;   /* of all pieces, then 256 bytes that byte pieces point at */
    int32_t *table;        /* (table_mask + 1) open hash table of pieces that text can become: ids or L2C_NONE */
    uint32_t table_mask;
    l2c_join *joins;       /* (join_mask + 1) open hash table of merges; NULL: scores decide */
    uint32_t join_mask;
    int32_t *user_defined; /* (n_user_defined) ids in the order of their bytes */
    int32_t n_user_defined;
    int32_t byte_ids[256]; /* or L2C_NONE */
    uint64_t key[2];       /* of the hash: differs between tokenizers, so that no file can collide on purpose */
};

/* The id of the piece that these bytes are, or L2C_NONE. */
int32_t l2c_piece_find(const l2c_tokenizer *t, const unsigned char *bytes, size_t length);

/* The merge of two pieces, or NULL. */
const l2c_join *l2c_join_find(const l2c_tokenizer *t, int32_t left, int32_t right);

/* The id of the longest user-defined piece that the bytes begin with, or L2C_NONE. */
int32_t l2c_user_defined_find(const l2c_tokenizer *t, const unsigned char *bytes, size_t left);

#endif
