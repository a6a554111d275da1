/*
 * tokenizer.c - llama2.c's tokenizer.bin: byte-pair encoding as SentencePiece does it.
 *
 * File: int32 length of the longest piece; then for each piece float32 score, int32 length, bytes.
 * Ids 0 to 2 are <unk>, BOS and EOS, 3 to 258 the byte pieces <0x00> to <0xFF>; the rest is text,
 * with spaces as spaces. Merging takes the pair whose joined piece has the highest score, leftmost
 * first; a heap over a linked list of symbols keeps that near-linear in the length of the text.
 * A piece whose score is minus infinity has an id and a text, but no text becomes it.
 */
#include <math.h>
#include <string.h>

#include "internal.h"

enum {
    FIRST_BYTE = 3,
    FIRST_TEXT = FIRST_BYTE + 256,
    MAX_PIECE = 4096,
    MAX_VOCAB = 1 << 24,
    MAX_TEXT = 1 << 30,
    RECORD = 8, /* score and length */
    NONE = -1
};

typedef struct {
    const unsigned char *bytes; /* in the file's memory; for a byte piece, the byte it means */
    int32_t length;
    float score;
} piece;

struct l2c_tokenizer {
    int32_t vocab_size;
    int32_t longest; /* bytes of the longest text piece */
    piece *pieces;   /* (vocab_size) */
    int32_t *table;  /* (table_mask + 1) open hash table: ids of text pieces, or NONE */
    uint32_t table_mask;
    unsigned char byte[256]; /* byte[b] == b: what byte pieces point at */
    l2c_mapping mapping;
};

/* ---- Looking pieces up -------------------------------------------------------------------------- */

static uint32_t hash(const unsigned char *bytes, size_t length) { /* FNV-1a */
    uint32_t h = 2166136261u;
    for (size_t i = 0; i < length; i++) h = (h ^ bytes[i]) * 16777619u;
    return h ^ h >> 15;
}

/* The slot that holds the piece, or the free one where it belongs. */
static uint32_t find_slot(const l2c_tokenizer *t, const unsigned char *bytes, size_t length) {
    uint32_t slot = hash(bytes, length) & t->table_mask;
    for (;; slot = (slot + 1) & t->table_mask) {
        int32_t id = t->table[slot];
        if (id == NONE) return slot;
        if ((size_t)t->pieces[id].length == length && memcmp(t->pieces[id].bytes, bytes, length) == 0) return slot;
    }
}

static int32_t lookup(const l2c_tokenizer *t, const unsigned char *bytes, size_t length) {
    return length > (size_t)t->longest ? NONE : t->table[find_slot(t, bytes, length)];
}

/* ---- Reading the file ------------------------------------------------------------------------------ */

static int hex_digit(unsigned char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    return -1;
}

/* The value of a piece that is exactly <0xHH>, or -1. */
static int byte_value(const unsigned char *p, int32_t length) {
    if (length != 6 || memcmp(p, "<0x", 3) != 0 || p[5] != '>') return -1;
    int high = hex_digit(p[3]), low = hex_digit(p[4]);
    return high < 0 || low < 0 ? -1 : high * 16 + low;
}

/* One piece at *offset; moves *offset past it. */
static l2c_status read_piece(const unsigned char *data, size_t size, size_t *offset, int32_t id, int32_t longest,
                             piece *p, l2c_error *err) {
    if (size - *offset < RECORD)
        return l2c_fail(err, L2C_FORMAT, "file ends within piece %d", id);
    memcpy(&p->score, data + *offset, 4);
    memcpy(&p->length, data + *offset + 4, 4);
    *offset += RECORD;
    if (p->length < 1 || p->length > longest)
        return l2c_fail(err, L2C_FORMAT, "piece %d: length is %d; it must be 1 to the file's longest, %d", id,
                        p->length, longest);
    if ((size_t)p->length > size - *offset)
        return l2c_fail(err, L2C_FORMAT, "piece %d: length is %d, but the file has %zu bytes left", id, p->length,
                        size - *offset);
    if (p->score != p->score) return l2c_fail(err, L2C_FORMAT, "piece %d: score is NaN", id);
    p->bytes = data + *offset;
    *offset += (size_t)p->length;
    return L2C_OK;
}

/* Checks every piece and counts them: no memory is taken for what the file does not hold. */
static l2c_status count_pieces(const unsigned char *data, size_t size, int32_t vocab_size, int32_t *count,
                               int32_t *longest, l2c_error *err) {
    if (size < 4) return l2c_fail(err, L2C_FORMAT, "file of %zu bytes is shorter than a header (4 bytes)", size);
    memcpy(longest, data, 4);
    if (*longest < 1 || *longest > MAX_PIECE)
        return l2c_fail(err, L2C_FORMAT, "longest piece is %d bytes; it must be 1 to %d (is this a tokenizer.bin?)",
                        *longest, MAX_PIECE);
    size_t offset = 4;
    int32_t n = 0;
    for (; offset < size && n < MAX_VOCAB; n++) {
        piece p = {0};
        l2c_status status = read_piece(data, size, &offset, n, *longest, &p, err);
        if (status != L2C_OK) return status;
        if (n >= FIRST_BYTE && n < FIRST_TEXT && byte_value(p.bytes, p.length) != n - FIRST_BYTE)
            return l2c_fail(err, L2C_FORMAT, "piece %d must be the byte piece <0x%02X>", n, (unsigned)(n - FIRST_BYTE));
    }
    if (offset < size) return l2c_fail(err, L2C_FORMAT, "more than %d pieces", MAX_VOCAB);
    if (vocab_size != 0 && n != vocab_size)
        return l2c_fail(err, L2C_FORMAT, "file holds %d pieces, but the model's vocab_size is %d: is it this model's tokenizer?",
                        n, vocab_size);
    if (n < FIRST_TEXT)
        return l2c_fail(err, L2C_FORMAT, "file holds %d pieces; <unk>, BOS, EOS and 256 bytes make at least %d", n, FIRST_TEXT);
    *count = n;
    return L2C_OK;
}

static l2c_status load(l2c_tokenizer *t, const unsigned char *data, size_t size, l2c_error *err) {
    int32_t longest = 0; /* what the file says; what text pieces need is t->longest */
    size_t offset = 4;
    memcpy(&longest, data, 4);
    memset(t->table, 0xFF, ((size_t)t->table_mask + 1) * sizeof *t->table); /* NONE everywhere */
    for (int i = 0; i < 256; i++) t->byte[i] = (unsigned char)i;
    for (int32_t id = 0; id < t->vocab_size; id++) {
        piece *p = &t->pieces[id];
        l2c_status status = read_piece(data, size, &offset, id, longest, p, err);
        if (status != L2C_OK) return status;
        if (id >= FIRST_TEXT && p->score != -HUGE_VALF) {
            uint32_t slot = find_slot(t, p->bytes, (size_t)p->length);
            if (t->table[slot] != NONE)
                return l2c_fail(err, L2C_FORMAT, "pieces %d and %d are the same", t->table[slot], id);
            t->table[slot] = id;
            if (p->length > t->longest) t->longest = p->length;
        } else if (id >= FIRST_BYTE && id < FIRST_TEXT) {
            p->bytes = &t->byte[id - FIRST_BYTE];
            p->length = 1;
        } else if (id == L2C_BOS || id == L2C_EOS) {
            p->length = 0; /* they stand for no text */
        }
    }
    return L2C_OK;
}

l2c_status l2c_tokenizer_open_memory(const void *data, size_t size, int32_t vocab_size, l2c_tokenizer **tokenizer,
                                     l2c_error *err) {
    if (vocab_size < 0) return l2c_fail(err, L2C_ARG, "vocab_size is %d; it must be 0 or more", vocab_size);
    int32_t count = 0, longest = 0;
    l2c_status status = count_pieces(data, size, vocab_size, &count, &longest, err);
    if (status != L2C_OK) return status;
    l2c_tokenizer *t = l2c_memory_zeroed(1, sizeof *t);
    if (t == NULL) return l2c_fail(err, L2C_NOMEM, "out of memory for a tokenizer");
    t->vocab_size = count;
    t->table_mask = 1;
    while (t->table_mask < 2 * (uint32_t)count) t->table_mask = 2 * t->table_mask + 1; /* at most half full */
    t->pieces = l2c_memory_zeroed((size_t)count, sizeof *t->pieces);
    t->table = l2c_memory_zeroed((size_t)t->table_mask + 1, sizeof *t->table);
    status = t->pieces == NULL || t->table == NULL
        ? l2c_fail(err, L2C_NOMEM, "out of memory for %d pieces", count)
        : load(t, data, size, err);
    if (status == L2C_OK) *tokenizer = t;
    else l2c_tokenizer_free(t);
    return status;
}

l2c_status l2c_tokenizer_open(const char *path, int32_t vocab_size, l2c_tokenizer **tokenizer, l2c_error *err) {
    l2c_mapping mapping = {0};
    l2c_status status = l2c_file_map(path, "tokenizer", &mapping, err);
    if (status != L2C_OK) return status;
    status = l2c_tokenizer_open_memory(mapping.data, mapping.size, vocab_size, tokenizer, err);
    if (status == L2C_OK) (*tokenizer)->mapping = mapping;
    else l2c_file_unmap(&mapping);
    return status;
}

int32_t l2c_tokenizer_vocab_size(const l2c_tokenizer *tokenizer) { return tokenizer->vocab_size; }

l2c_status l2c_tokenizer_piece(const l2c_tokenizer *t, int32_t token, const char **bytes, size_t *length) {
    if (token < 0 || token >= t->vocab_size) return L2C_RANGE;
    *bytes = (const char *)t->pieces[token].bytes;
    *length = (size_t)t->pieces[token].length;
    return L2C_OK;
}

void l2c_tokenizer_free(l2c_tokenizer *t) {
    if (t == NULL) return;
    l2c_memory_free(t->pieces);
    l2c_memory_free(t->table);
    l2c_file_unmap(&t->mapping);
    l2c_memory_free(t);
}

/* ---- Encoding ----------------------------------------------------------------------------------- */

/* A stretch of the text that is one token so far; neighbours by index. */
typedef struct {
    int32_t start, length; /* length 0: merged into its left neighbour */
    int32_t previous, next;
} symbol;

typedef struct {
    float score;
    int32_t left, right; /* symbols */
    int32_t length;      /* of both together when found: if it has changed since, the merge is stale */
} merge;

typedef struct {
    const l2c_tokenizer *t;
    const unsigned char *text;
    symbol *symbols;
    merge *heap; /* room for what n symbols can ever push: n - 1, and 2 a merge */
    size_t n_heap;
} encoder;

static int sooner(const merge *a, const merge *b) {
    return a->score > b->score || (a->score == b->score && a->left < b->left);
}

static void push(encoder *e, int32_t left, int32_t right) {
    if (left == NONE || right == NONE) return;
    int32_t length = e->symbols[left].length + e->symbols[right].length;
    int32_t id = lookup(e->t, e->text + e->symbols[left].start, (size_t)length);
    if (id == NONE) return;
    merge m = {e->t->pieces[id].score, left, right, length};
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

l2c_status l2c_tokenizer_encode(const l2c_tokenizer *t, const char *text, size_t length, int space_first,
                                int32_t *tokens, size_t *n_tokens, l2c_error *err) {
    if (length == 0) {
        *n_tokens = 0;
        return L2C_OK;
    }
    if (length >= MAX_TEXT)
        return l2c_fail(err, L2C_ARG, "text of %zu bytes; at most %d can be encoded at once", length, MAX_TEXT - 1);
    size_t size = length + 1;
    unsigned char *spaced = l2c_memory_zeroed(size, 1);
    encoder e = {.t = t, .text = spaced};
    e.symbols = l2c_memory_zeroed(size, sizeof *e.symbols);
    e.heap = l2c_memory_zeroed(size, 3 * sizeof *e.heap);
    l2c_status status = L2C_OK;
    if (spaced == NULL || e.symbols == NULL || e.heap == NULL) {
        status = l2c_fail(err, L2C_NOMEM, "out of memory for a text of %zu bytes", length);
        goto done;
    }
    size = put_spaces(spaced, (const unsigned char *)text, length, space_first);

    int32_t n = 0;
    for (size_t at = 0; at < size; n++) {
        e.symbols[n] = (symbol){(int32_t)at, character_length(spaced + at, size - at), n - 1, n + 1};
        at += (size_t)e.symbols[n].length;
    }
    e.symbols[n - 1].next = NONE;
    for (int32_t i = 0; i + 1 < n; i++) push(&e, i, i + 1);
    while (e.n_heap > 0) {
        merge m = pop(&e);
        symbol *left = &e.symbols[m.left], *right = &e.symbols[m.right];
        if (left->length == 0 || right->length == 0 || left->length + right->length != m.length) continue;
        left->length = m.length;
        right->length = 0;
        left->next = right->next;
        if (right->next != NONE) e.symbols[right->next].previous = m.left;
        push(&e, left->previous, m.left);
        push(&e, m.left, left->next);
    }

    size_t count = 0;
    for (int32_t i = 0; i != NONE; i = e.symbols[i].next) {
        const unsigned char *bytes = spaced + e.symbols[i].start;
        int32_t id = lookup(t, bytes, (size_t)e.symbols[i].length);
        if (id != NONE) tokens[count++] = id;
        else
            for (int32_t b = 0; b < e.symbols[i].length; b++) tokens[count++] = FIRST_BYTE + bytes[b];
    }
    *n_tokens = count;
done:
    l2c_memory_free(e.heap);
    l2c_memory_free(e.symbols);
    l2c_memory_free(spaced);
    return status;
}
