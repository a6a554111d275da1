/*
 * tiny.h - random tiny checkpoints and a tokenizer, made in memory, for the C tests.
 */
#ifndef TINY_H
#define TINY_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llama2c.h"

typedef struct {
    unsigned char *data;
    size_t size, capacity;
} image;

static void put(image *im, const void *bytes, size_t size) {
    if (im->size + size > im->capacity) {
        im->capacity = 2 * (im->size + size);
        im->data = realloc(im->data, im->capacity);
    }
    memcpy(im->data + im->size, bytes, size);
    im->size += size;
}

static void put_int(image *im, int32_t value) { put(im, &value, sizeof value); }

static uint32_t tiny_random(void) {
    static uint32_t state = 12345;
    state = state * 1664525u + 1013904223u;
    return state >> 8;
}

static void put_floats(image *im, size_t n) {
    for (size_t i = 0; i < n; i++) {
        float value = (float)(tiny_random() % 2001) / 1000.0f - 1.0f;
        put(im, &value, sizeof value);
    }
}

/* A matrix as the version stores it: float32, or int8 and its scales. */
static void put_weights(image *im, size_t n, int32_t group_size) {
    if (group_size == 0) {
        put_floats(im, n);
        return;
    }
    for (size_t i = 0; i < n; i++) {
        int8_t q = (int8_t)(tiny_random() % 255 - 127);
        put(im, &q, 1);
    }
    for (size_t i = 0; i < n / (size_t)group_size; i++) {
        float scale = 0.005f;
        put(im, &scale, sizeof scale);
    }
}

/* c->version, shared_classifier and group_size choose the format. */
static image tiny_checkpoint(const l2c_config *c) {
    image im = {0};
    size_t dim = (size_t)c->dim, hidden = (size_t)c->hidden_dim, layers = (size_t)c->n_layers;
    size_t kv = dim / (size_t)c->n_heads * (size_t)c->n_kv_heads, vocab = (size_t)c->vocab_size;
    int32_t g = c->group_size;
    if (c->version > 0) {
        put_int(&im, 0x616b3432);
        put_int(&im, c->version);
    }
    const int32_t fields[] = {c->dim, c->hidden_dim, c->n_layers, c->n_heads, c->n_kv_heads,
                              c->version == 0 && !c->shared_classifier ? -c->vocab_size : c->vocab_size, c->seq_len};
    put(&im, fields, sizeof fields);
    if (c->version > 0) {
        unsigned char rest[256 - 36] = {(unsigned char)c->shared_classifier};
        memcpy(rest + 1, &g, sizeof g);
        put(&im, rest, sizeof rest);
        put_floats(&im, 2 * layers * dim + dim);
    }
    put_weights(&im, vocab * dim, g);
    if (c->version == 0) put_floats(&im, layers * dim);
    const size_t sizes[] = {dim * dim, kv * dim, kv * dim, dim * dim, hidden * dim, hidden * dim, hidden * dim};
    for (int m = 0; m < 7; m++) {
        if (c->version == 0 && m == 4) put_floats(&im, layers * dim);
        for (size_t l = 0; l < layers; l++) put_weights(&im, sizes[m], g);
    }
    if (c->version == 0) put_floats(&im, dim + (size_t)c->seq_len * (dim / (size_t)c->n_heads));
    if (!c->shared_classifier) put_weights(&im, vocab * dim, g);
    return im;
}

static void put_piece(image *im, const char *piece, float score) {
    put(im, &score, sizeof score);
    put_int(im, (int32_t)strlen(piece));
    put(im, piece, strlen(piece));
}

/* 3 specials, 256 bytes and 11 pieces of text: 270 in all. */
static image tiny_tokenizer(void) {
    image im = {0};
    put_int(&im, 6);
    put_piece(&im, "<unk>", 0);
    put_piece(&im, "\n<s>\n", 0);
    put_piece(&im, "\n</s>\n", 0);
    for (int i = 0; i < 256; i++) {
        char piece[8];
        snprintf(piece, sizeof piece, "<0x%02X>", (unsigned)i);
        put_piece(&im, piece, 0);
    }
    const char *text[] = {" ", "a", "b", "c", "aa", "ab", " a", "abc", "aaaa", "\xC3\xA9", "  "};
    for (int i = 0; i < 11; i++) put_piece(&im, text[i], (float)-i);
    return im;
}

/* A block of exactly this size, so that reading past it is seen. */
static unsigned char *exact_copy(const unsigned char *data, size_t size) {
    unsigned char *copy = malloc(size ? size : 1);
    memcpy(copy, data, size);
    return copy;
}

#endif
