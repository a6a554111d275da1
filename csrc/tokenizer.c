/*
 * tokenizer.c - a vocabulary: pieces by id, by their bytes, and by the two that make them.
 *
 * Its tables are hashed with a key of their own (SipHash, Aumasson and Bernstein 2012): what a file
 * holds cannot make its pieces collide. Nothing else depends on the key.
 */
#include <stdlib.h>
#include <string.h>

#include "tokenizer.h"

/* ---- Hashing ------------------------------------------------------------------------------------- */

static uint64_t rotate(uint64_t x, int bits) { return x << bits | x >> (64 - bits); }

static void sip_round(uint64_t v[4]) {
    v[0] += v[1], v[2] += v[3];
    v[1] = rotate(v[1], 13) ^ v[0], v[3] = rotate(v[3], 16) ^ v[2];
    v[0] = rotate(v[0], 32);
    v[2] += v[1], v[0] += v[3];
    v[1] = rotate(v[1], 17) ^ v[2], v[3] = rotate(v[3], 21) ^ v[0];
    v[2] = rotate(v[2], 32);
}

/* SipHash-1-3. */
static uint32_t hash(const uint64_t key[2], const void *data, size_t length) {
    const unsigned char *bytes = data;
    uint64_t v[4] = {key[0] ^ 0x736f6d6570736575u, key[1] ^ 0x646f72616e646f6du, key[0] ^ 0x6c7967656e657261u,
                     key[1] ^ 0x7465646279746573u};
    for (size_t at = 0; at <= length; at += 8) {
        uint64_t word = 0;
        size_t n = length - at < 8 ? length - at : 8;
        memcpy(&word, bytes + at, n);
        if (n < 8) word |= (uint64_t)length << 56;
        v[3] ^= word;
        sip_round(v);
        v[0] ^= word;
    }
    v[2] ^= 0xff;
    for (int i = 0; i < 3; i++) sip_round(v);
    uint64_t h = v[0] ^ v[1] ^ v[2] ^ v[3];
    return (uint32_t)(h ^ h >> 32);
}

/* Of what nobody who makes a file knows: where memory lies, and the time. */
static void draw_key(l2c_tokenizer *t) {
    uint64_t seed[3] = {(uint64_t)(uintptr_t)t, (uint64_t)(uintptr_t)&seed, l2c_time_noise()};
    for (int i = 0; i < 2; i++) {
        uint64_t fixed[2] = {(uint64_t)i, 0};
        t->key[i] = (uint64_t)hash(fixed, seed, sizeof seed) << 32;
        fixed[1] = 1;
        t->key[i] |= hash(fixed, seed, sizeof seed);
    }
}

/* The slot that holds the piece, or the free one where it belongs. */
static uint32_t find_slot(const l2c_tokenizer *t, const unsigned char *bytes, size_t length) {
    uint32_t slot = hash(t->key, bytes, length) & t->table_mask;
    for (;; slot = (slot + 1) & t->table_mask) {
        int32_t id = t->table[slot];
        if (id == L2C_NONE) return slot;
        if ((size_t)t->pieces[id].length == length && memcmp(t->pieces[id].bytes, bytes, length) == 0) return slot;
    }
}

int32_t l2c_piece_find(const l2c_tokenizer *t, const unsigned char *bytes, size_t length) {
    return length > (size_t)t->longest ? L2C_NONE : t->table[find_slot(t, bytes, length)];
}

static l2c_join *join_slot(const l2c_tokenizer *t, int32_t left, int32_t right) {
    int32_t pair[2] = {left, right};
    uint32_t slot = hash(t->key, pair, sizeof pair) & t->join_mask;
    for (;; slot = (slot + 1) & t->join_mask) {
        l2c_join *join = &t->joins[slot];
        if (join->left == L2C_NONE || (join->left == left && join->right == right)) return join;
    }
}

const l2c_join *l2c_join_find(const l2c_tokenizer *t, int32_t left, int32_t right) {
    if (left == L2C_NONE || right == L2C_NONE) return NULL;
    const l2c_join *join = join_slot(t, left, right);
    return join->left == L2C_NONE ? NULL : join;
}

/* A table of twice as many slots as entries or more, a power of two. */
static uint32_t mask_for(int32_t count) {
    uint32_t mask = 1;
    while (mask < 2 * (uint32_t)count) mask = 2 * mask + 1;
    return mask;
}

/* ---- User-defined pieces: sorted, so that all that share a beginning lie together ------------------- */

typedef struct {
    const unsigned char *bytes;
    int32_t length, id;
} named;

static int in_order(const void *a, const void *b) {
    const named *x = a, *y = b;
    int32_t shorter = x->length < y->length ? x->length : y->length;
    int order = memcmp(x->bytes, y->bytes, (size_t)shorter);
    return order != 0 ? order : (x->length > y->length) - (x->length < y->length);
}

static l2c_status sort_user_defined(l2c_tokenizer *t, l2c_error *err) {
    int32_t count = 0;
    for (int32_t id = 0; id < t->vocab_size; id++) count += t->pieces[id].type == L2C_PIECE_USER_DEFINED;
    if (count == 0) return L2C_OK;
    named *list = l2c_memory_zeroed((size_t)count, sizeof *list);
    t->user_defined = l2c_memory_zeroed((size_t)count, sizeof *t->user_defined);
    if (list != NULL && t->user_defined != NULL) {
        for (int32_t id = 0; id < t->vocab_size; id++)
            if (t->pieces[id].type == L2C_PIECE_USER_DEFINED)
                list[t->n_user_defined++] = (named){t->pieces[id].bytes, t->pieces[id].length, id};
        qsort(list, (size_t)count, sizeof *list, in_order);
        for (int32_t i = 0; i < count; i++) t->user_defined[i] = list[i].id;
    }
    l2c_memory_free(list);
    return t->n_user_defined == count ? L2C_OK : l2c_fail(err, L2C_NOMEM, "out of memory for %d pieces", count);
}

/* The first in [low, high) of those that share `at` bytes whose next byte is `byte` or above (it is longer). */
static int32_t first_from(const l2c_tokenizer *t, int32_t low, int32_t high, int32_t at, int byte) {
    while (low < high) {
        int32_t middle = low + (high - low) / 2;
        if (t->pieces[t->user_defined[middle]].bytes[at] < byte) low = middle + 1;
        else high = middle;
    }
    return low;
}

int32_t l2c_user_defined_find(const l2c_tokenizer *t, const unsigned char *bytes, size_t left) {
    int32_t found = L2C_NONE, low = 0, high = t->n_user_defined;
    for (int32_t at = 0; low < high && (size_t)at < left; at++) {
        int32_t from = first_from(t, low, high, at, bytes[at]);
        high = first_from(t, from, high, at, bytes[at] + 1);
        low = from;
        if (low < high && t->pieces[t->user_defined[low]].length == at + 1) found = t->user_defined[low++];
    }
    return found;
}

/* ---- Making one ----------------------------------------------------------------------------------- */

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

static int is_id(const l2c_tokenizer *t, int32_t id) { return id >= L2C_NONE && id < t->vocab_size; }

static int becomes_text(int32_t type) {
    return type == L2C_PIECE_NORMAL || type == L2C_PIECE_USER_DEFINED || type == L2C_PIECE_UNUSED;
}

/* Puts a piece into the table. One that is not used gives way to another that is the same. */
static l2c_status enter(l2c_tokenizer *t, int32_t id, l2c_error *err) {
    const l2c_piece *p = &t->pieces[id];
    int32_t *slot = &t->table[find_slot(t, p->bytes, (size_t)p->length)];
    if (*slot == L2C_NONE || t->pieces[*slot].type == L2C_PIECE_UNUSED) *slot = id;
    else if (p->type != L2C_PIECE_UNUSED)
        return l2c_fail(err, L2C_FORMAT, "pieces %d and %d are the same", *slot, id);
    if (p->length > t->longest) t->longest = p->length;
    return L2C_OK;
}

static l2c_status add_piece(l2c_tokenizer *t, const l2c_vocabulary *v, int32_t id, l2c_error *err) {
    l2c_piece *p = &t->pieces[id];
    if (p->type < L2C_PIECE_NORMAL || p->type > L2C_PIECE_BYTE)
        return l2c_fail(err, L2C_FORMAT, "piece %d: its type is %d, not 1 to 6", id, p->type);
    if (p->score != p->score) return l2c_fail(err, L2C_FORMAT, "piece %d: score is NaN", id);
    if (p->type == L2C_PIECE_BYTE) {
        int byte = byte_value(p->bytes, p->length);
        if (byte < 0) return l2c_fail(err, L2C_FORMAT, "piece %d: it is a byte, but not called <0xHH>", id);
        if (t->byte_ids[byte] != L2C_NONE)
            return l2c_fail(err, L2C_FORMAT, "pieces %d and %d are the same byte, 0x%02X", t->byte_ids[byte], id,
                            (unsigned)byte);
        t->byte_ids[byte] = id;
        p->bytes = t->text + v->text_bytes + byte;
        p->length = 1;
        return L2C_OK;
    }
    if (!becomes_text(p->type)) return L2C_OK;
    if (p->length < 1) return l2c_fail(err, L2C_FORMAT, "piece %d: length is 0", id);
    return p->type == L2C_PIECE_UNUSED && v->merges != NULL ? L2C_OK : enter(t, id, err);
}

static l2c_status add_merges(l2c_tokenizer *t, const l2c_vocabulary *v, l2c_error *err) {
    for (uint32_t i = 0; i <= t->join_mask; i++) t->joins[i].left = L2C_NONE;
    unsigned char both[2 * L2C_MAX_PIECE];
    for (int32_t rank = 0; rank < v->n_merges; rank++) {
        int32_t left = v->merges[2 * rank], right = v->merges[2 * rank + 1], joined = L2C_NONE;
        if (left >= 0 && left < t->vocab_size && right >= 0 && right < t->vocab_size) {
            const l2c_piece *l = &t->pieces[left], *r = &t->pieces[right];
            memcpy(both, l->bytes, (size_t)l->length);
            memcpy(both + l->length, r->bytes, (size_t)r->length);
            joined = l2c_piece_find(t, both, (size_t)l->length + (size_t)r->length);
        }
        if (joined == L2C_NONE) return l2c_fail(err, L2C_FORMAT, "merge %d is not of two pieces that make a third", rank);
        *join_slot(t, left, right) = (l2c_join){left, right, joined, rank};
    }
    return L2C_OK;
}

static l2c_status fill(l2c_tokenizer *t, const l2c_vocabulary *v, l2c_error *err) {
    memcpy(t->text, v->text, v->text_bytes);
    for (int i = 0; i < 256; i++) t->text[v->text_bytes + (size_t)i] = (unsigned char)i, t->byte_ids[i] = L2C_NONE;
    memset(t->table, 0xFF, ((size_t)t->table_mask + 1) * sizeof *t->table); /* L2C_NONE everywhere */
    size_t at = 0;
    for (int32_t id = 0; id < t->vocab_size; id++) {
        int32_t length = v->lengths[id];
        if (length < 0 || length > L2C_MAX_PIECE || (size_t)length > v->text_bytes - at)
            return l2c_fail(err, L2C_FORMAT, "piece %d: length is %d; it must be 0 to %d", id, length, L2C_MAX_PIECE);
        t->pieces[id] = (l2c_piece){t->text + at, length, v->types[id], v->scores[id]};
        at += (size_t)length;
        l2c_status status = add_piece(t, v, id, err);
        if (status != L2C_OK) return status;
    }
    l2c_status status = sort_user_defined(t, err);
    return status == L2C_OK && v->merges != NULL ? add_merges(t, v, err) : status;
}

l2c_status l2c_tokenizer_create(const l2c_vocabulary *v, l2c_tokenizer **tokenizer, l2c_error *err) {
    if (v->n_pieces < 1 || v->n_pieces > L2C_MAX_VOCAB)
        return l2c_fail(err, L2C_ARG, "%d pieces; there must be 1 to %d", v->n_pieces, L2C_MAX_VOCAB);
    if (v->merges != NULL && (v->n_merges < 0 || v->n_merges > L2C_MAX_VOCAB))
        return l2c_fail(err, L2C_ARG, "%d merges; there must be 0 to %d", v->n_merges, L2C_MAX_VOCAB);
    l2c_tokenizer *t = l2c_memory_zeroed(1, sizeof *t);
    if (t == NULL) return l2c_fail(err, L2C_NOMEM, "out of memory for a tokenizer");
    *t = (l2c_tokenizer){.vocab_size = v->n_pieces, .bos = v->bos, .eos = v->eos, .unknown = v->unknown,
                         .split_spaces = v->split_spaces, .table_mask = mask_for(v->n_pieces)};
    draw_key(t);
    t->pieces = l2c_memory_zeroed((size_t)v->n_pieces, sizeof *t->pieces);
    t->table = l2c_memory_zeroed((size_t)t->table_mask + 1, sizeof *t->table);
    t->text = v->text_bytes > SIZE_MAX - 256 ? NULL : l2c_memory_zeroed(v->text_bytes + 256, 1);
    if (v->merges != NULL) {
        t->join_mask = mask_for(v->n_merges);
        t->joins = l2c_memory_zeroed((size_t)t->join_mask + 1, sizeof *t->joins);
    }
    l2c_status status = L2C_OK;
    if (t->pieces == NULL || t->table == NULL || t->text == NULL || (v->merges != NULL && t->joins == NULL))
        status = l2c_fail(err, L2C_NOMEM, "out of memory for %d pieces", v->n_pieces);
    else if (!is_id(t, v->bos) || !is_id(t, v->eos) || !is_id(t, v->unknown))
        status = l2c_fail(err, L2C_ARG, "BOS is %d, EOS %d, <unk> %d; there are %d pieces", v->bos, v->eos, v->unknown,
                          v->n_pieces);
    else
        status = fill(t, v, err);
    if (status == L2C_OK) *tokenizer = t;
    else l2c_tokenizer_free(t);
    return status;
}

int32_t l2c_tokenizer_vocab_size(const l2c_tokenizer *tokenizer) { return tokenizer->vocab_size; }

int32_t l2c_tokenizer_bos(const l2c_tokenizer *tokenizer) { return tokenizer->bos; }

int32_t l2c_tokenizer_eos(const l2c_tokenizer *tokenizer) { return tokenizer->eos; }

l2c_status l2c_tokenizer_piece(const l2c_tokenizer *t, int32_t token, const char **bytes, size_t *length) {
    if (token < 0 || token >= t->vocab_size) return L2C_RANGE;
    const l2c_piece *p = &t->pieces[token];
    *bytes = (const char *)p->bytes;
    *length = p->type == L2C_PIECE_CONTROL ? 0 : (size_t)p->length; /* they stand for no text */
    return L2C_OK;
}

void l2c_tokenizer_free(l2c_tokenizer *t) {
    if (t == NULL) return;
    l2c_memory_free(t->pieces);
    l2c_memory_free(t->table);
    l2c_memory_free(t->joins);
    l2c_memory_free(t->user_defined);
    l2c_memory_free(t->text);
    l2c_memory_free(t);
}
