/*
 * encode.c - byte-pair encoding, as SentencePiece does it or by a list of merges.
 *
 * A text begins as characters and user-defined pieces, which stay as they are. Then two neighbours that
 * make a piece are joined, the best first: the one with the highest score, or of the earliest merge;
 * leftmost first among equals. A heap over a linked list of symbols keeps that near-linear in the length
 * of the text.
 *
 * SentencePiece joins across pieces that are not to be used as well, and takes them apart again at the
 * end, the way they were put together last.
 */
#include <string.h>

#include "tokenizer.h"

enum { MAX_TEXT = 1 << 30 };

/* A stretch of the text that is one token so far; neighbours by index. */
typedef struct {
    int32_t start, length; /* length 0: merged into its left neighbour */
    int32_t previous, next;
    int32_t id; /* or L2C_NONE */
} symbol;

typedef struct {
    float score;
    int32_t left, right; /* symbols */
    int32_t length;      /* of both together when found: if it has changed since, the merge is stale */
    int32_t id;
} merge;

typedef struct {
    const l2c_tokenizer *t;
    const unsigned char *text;
    symbol *symbols;
    merge *heap; /* room for what n symbols can ever push: n - 1, and 2 a merge */
    size_t n_heap;
    int32_t *taken_apart; /* (vocab_size) bytes of the left part of unused pieces; NULL until there is one */
    int out_of_memory;
    int32_t *tokens;
    size_t n_tokens;
    int32_t unknown_end; /* where the last unknown character ends */
} encoder;

static int sooner(const merge *a, const merge *b) {
    return a->score > b->score || (a->score == b->score && a->left < b->left);
}

static int is_of_type(const encoder *e, int32_t id, int32_t type) {
    return id != L2C_NONE && e->t->pieces[id].type == type;
}

/* What two neighbours make, and how good that is; L2C_NONE for nothing. */
static int32_t joined(encoder *e, const symbol *left, const symbol *right, float *score) {
    const l2c_tokenizer *t = e->t;
    if (t->split_spaces && e->text[right->start] == ' ') return L2C_NONE;
    if (t->joins != NULL) {
        const l2c_join *join = l2c_join_find(t, left->id, right->id);
        if (join == NULL) return L2C_NONE;
        *score = -(float)join->rank;
        return join->joined;
    }
    if (is_of_type(e, left->id, L2C_PIECE_USER_DEFINED) || is_of_type(e, right->id, L2C_PIECE_USER_DEFINED))
        return L2C_NONE;
    int32_t id = l2c_piece_find(t, e->text + left->start, (size_t)left->length + (size_t)right->length);
    if (id == L2C_NONE) return id;
    *score = t->pieces[id].score;
    if (t->pieces[id].type == L2C_PIECE_UNUSED) {
        if (e->taken_apart == NULL)
            e->taken_apart = l2c_memory_zeroed((size_t)t->vocab_size, sizeof *e->taken_apart);
        if (e->taken_apart == NULL) e->out_of_memory = 1;
        else e->taken_apart[id] = left->length;
    }
    return id;
}

static void push(encoder *e, int32_t left, int32_t right) {
    if (left == L2C_NONE || right == L2C_NONE) return;
    merge m = {0, left, right, e->symbols[left].length + e->symbols[right].length, 0};
    m.id = joined(e, &e->symbols[left], &e->symbols[right], &m.score);
    if (m.id == L2C_NONE) return;
    size_t i = e->n_heap++;
    for (size_t parent; i > 0 && sooner(&m, &e->heap[parent = (i - 1) / 2]); i = parent) e->heap[i] = e->heap[parent];
    e->heap[i] = m;
}

static merge pop(encoder *e) {
    merge top = e->heap[0], last = e->heap[--e->n_heap];
    size_t i = 0;
    for (size_t child; (child = 2 * i + 1) < e->n_heap; i = child) {
        if (child + 1 < e->n_heap && sooner(&e->heap[child + 1], &e->heap[child])) child++;
        if (!sooner(&e->heap[child], &last)) break;
        e->heap[i] = e->heap[child];
    }
    e->heap[i] = last;
    return top;
}

/* Bytes of the UTF-8 character at text; 1 for a byte that starts none. */
static int32_t character_length(const unsigned char *text, size_t left) {
    size_t length = text[0] < 0x80 ? 1 : text[0] < 0xC2 ? 0 : text[0] < 0xE0 ? 2 : text[0] < 0xF0 ? 3
                  : text[0] < 0xF5 ? 4 : 0;
    if (length == 0 || length > left) return 1;
    for (size_t i = 1; i < length; i++)
        if ((text[i] & 0xC0) != 0x80) return 1;
    return (int32_t)length;
}

/* The text, maybe after a space; U+2581, which SentencePiece writes for a space, is one as well. */
static size_t put_spaces(unsigned char *spaced, const unsigned char *text, size_t length, int space_first) {
    size_t size = 0;
    if (space_first) spaced[size++] = ' ';
    for (size_t i = 0; i < length; i++) {
        int meta = length - i >= 3 && memcmp(text + i, "\xE2\x96\x81", 3) == 0;
        spaced[size++] = meta ? ' ' : text[i];
        if (meta) i += 2;
    }
    return size;
}

/* Characters and user-defined pieces; returns how many. */
static int32_t split(encoder *e, size_t size) {
    int32_t n = 0;
    for (size_t at = 0; at < size; n++) {
        const unsigned char *bytes = e->text + at;
        int32_t id = l2c_user_defined_find(e->t, bytes, size - at);
        int32_t length = id == L2C_NONE ? character_length(bytes, size - at) : e->t->pieces[id].length;
        if (id == L2C_NONE) id = l2c_piece_find(e->t, bytes, (size_t)length);
        e->symbols[n] = (symbol){(int32_t)at, length, n - 1, n + 1, id};
        at += (size_t)length;
    }
    e->symbols[n - 1].next = L2C_NONE;
    return n;
}

static void join_all(encoder *e, int32_t n) {
    for (int32_t i = 0; i + 1 < n; i++) push(e, i, i + 1);
    while (e->n_heap > 0) {
        merge m = pop(e);
        symbol *left = &e->symbols[m.left], *right = &e->symbols[m.right];
        if (left->length == 0 || right->length == 0 || left->length + right->length != m.length) continue;
        left->length = m.length;
        left->id = m.id;
        right->length = 0;
        left->next = right->next;
        if (right->next != L2C_NONE) e->symbols[right->next].previous = m.left;
        push(e, left->previous, m.left);
        push(e, m.left, left->next);
    }
}

/* A character without a piece: its bytes if all have one, else <unk>, once for neighbours. */
static l2c_status put_unknown(encoder *e, int32_t start, int32_t length, l2c_error *err) {
    const unsigned char *bytes = e->text + start;
    int32_t n = length;
    if (bytes[0] == ' ' && !e->t->space_is_byte) bytes = (const unsigned char *)"\xE2\x96\x81", n = 3;
    int has_bytes = 1;
    for (int32_t i = 0; i < n; i++) has_bytes &= e->t->byte_ids[bytes[i]] != L2C_NONE;
    if (has_bytes) {
        for (int32_t i = 0; i < n; i++) e->tokens[e->n_tokens++] = e->t->byte_ids[bytes[i]];
        return L2C_OK;
    }
    if (e->t->unknown == L2C_NONE)
        return l2c_fail(err, L2C_FORMAT, "the vocabulary has neither a piece nor bytes for '%.*s', nor <unk>",
                        (int)n, (const char *)bytes);
    int apart = e->t->split_spaces && e->text[start] == ' ';
    if (e->unknown_end != start || apart) e->tokens[e->n_tokens++] = e->t->unknown;
    e->unknown_end = start + length;
    return L2C_OK;
}

static l2c_status put(encoder *e, int32_t start, int32_t length, int32_t id, l2c_error *err) {
    if (id != L2C_NONE && e->t->pieces[id].type != L2C_PIECE_UNUSED) {
        e->tokens[e->n_tokens++] = id;
        return L2C_OK;
    }
    int32_t left = id != L2C_NONE && e->taken_apart != NULL ? e->taken_apart[id] : 0;
    if (left == 0) return put_unknown(e, start, length, err);
    const unsigned char *bytes = e->text + start; /* each part is shorter: this ends */
    l2c_status status = put(e, start, left, l2c_piece_find(e->t, bytes, (size_t)left), err);
    if (status != L2C_OK) return status;
    return put(e, start + left, length - left, l2c_piece_find(e->t, bytes + left, (size_t)(length - left)), err);
}

l2c_status l2c_tokenizer_encode(const l2c_tokenizer *t, const char *text, size_t length, int space_first,
                                int32_t *tokens, size_t *n_tokens, l2c_error *err) {
    *n_tokens = 0;
    if (length == 0) return L2C_OK;
    if (length >= MAX_TEXT)
        return l2c_fail(err, L2C_ARG, "text of %zu bytes; at most %d can be encoded at once", length, MAX_TEXT - 1);
    size_t room = length + 1;
    unsigned char *spaced = l2c_memory_zeroed(room, 1);
    encoder e = {.t = t, .text = spaced, .tokens = tokens, .unknown_end = L2C_NONE};
    e.symbols = l2c_memory_zeroed(room, sizeof *e.symbols);
    e.heap = l2c_memory_zeroed(room, 3 * sizeof *e.heap);
    l2c_status status = L2C_OK;
    if (spaced != NULL && e.symbols != NULL && e.heap != NULL)
        join_all(&e, split(&e, put_spaces(spaced, (const unsigned char *)text, length, space_first)));
    else
        e.out_of_memory = 1;
    if (e.out_of_memory) status = l2c_fail(err, L2C_NOMEM, "out of memory for a text of %zu bytes", length);
    for (int32_t i = 0; status == L2C_OK && i != L2C_NONE; i = e.symbols[i].next)
        status = put(&e, e.symbols[i].start, e.symbols[i].length, e.symbols[i].id, err);
    if (status == L2C_OK) *n_tokens = e.n_tokens;
    l2c_memory_free(e.taken_apart);
    l2c_memory_free(e.heap);
    l2c_memory_free(e.symbols);
    l2c_memory_free(spaced);
    return status;
}
