/*
 * images.c - tiny random checkpoints and a tokenizer, as the bytes of their files.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "harness.h"

const shape shapes[] = {
    /* dim hidden layers heads kv vocab seq  version tied group */
    {12, 20, 1, 6, 3, 259, 9, 0, 1, 0},   /* head size 2 */
    {12, 20, 2, 2, 1, 263, 20, 0, 0, 0},  /* head size 6; all heads share one kv head */
    {36, 50, 2, 6, 2, 300, 33, 1, 1, 0},  /* three heads to a kv head: not their number */
    {80, 172, 1, 2, 2, 274, 24, 1, 0, 0}, /* head size 40; several registers and a tail */
    {24, 40, 2, 4, 2, 265, 17, 2, 1, 8},
    {24, 44, 1, 4, 4, 259, 17, 2, 0, 8}, /* groups that do not divide hidden_dim */
    {6, 7, 2, 1, 1, 261, 5, 2, 0, 3},    /* odd sizes: the scales are not aligned */
};
const size_t n_shapes = sizeof shapes / sizeof *shapes;

const shape smallest[] = {
    {2, 3, 1, 1, 1, 5, 2, 0, 1, 0},
    {2, 3, 1, 1, 1, 5, 2, 0, 0, 0},
    {4, 3, 2, 2, 1, 5, 3, 1, 0, 0},
    {4, 3, 2, 2, 1, 5, 3, 2, 1, 2},
};
const size_t n_smallest = sizeof smallest / sizeof *smallest;

/* ---- Appending ------------------------------------------------------------------------------------ */

static void put(image *file, const void *bytes, size_t size) {
    if (file->size + size > file->room) {
        file->room = 2 * (file->size + size);
        file->data = realloc(file->data, file->room);
        CHECK(file->data != NULL);
    }
    memcpy(file->data + file->size, bytes, size);
    file->size += size;
}

static void put_int(image *file, int32_t value) { put(file, &value, sizeof value); }

static void put_floats(image *file, size_t count, float center, float spread, uint64_t *random) {
    for (size_t i = 0; i < count; i++) {
        float value = center + spread * random_float(random);
        put(file, &value, sizeof value);
    }
}

/* Gives back the room that is left. */
static image finish(image file) {
    image copy = image_copy(file.data, file.size);
    free(file.data);
    return copy;
}

image image_copy(const void *data, size_t size) {
    image copy = {malloc(size), size, size};
    CHECK(copy.data != NULL || size == 0);
    if (size > 0) memcpy(copy.data, data, size);
    return copy;
}

/* ---- Checkpoints ------------------------------------------------------------------------------------ */

/* A (rows, cols) matrix for each of n layers; the outputs are about as large as the inputs. */
static void put_matrices(image *file, const shape *c, int32_t n, int32_t rows, int32_t cols, uint64_t *random) {
    size_t count = (size_t)rows * (size_t)cols;
    float spread = 1.7f / sqrtf((float)cols);
    for (int32_t l = 0; l < n; l++) {
        if (c->version != 2) {
            put_floats(file, count, 0.0f, spread, random);
            continue;
        }
        for (size_t i = 0; i < count; i++) {
            int8_t q = (int8_t)(random_below(random, 255) - 127);
            put(file, &q, 1);
        }
        put_floats(file, count / (size_t)c->group_size, spread / 127, spread / 300, random);
    }
}

static void put_norms(image *file, const shape *c, int32_t n, uint64_t *random) {
    put_floats(file, (size_t)n * (size_t)c->dim, 1.0f, 0.5f, random);
}

image image_checkpoint(const shape *c, uint64_t seed) {
    image file = {NULL, 0, 0};
    uint64_t random = seed;
    int32_t kv_dim = c->dim / c->n_heads * c->n_kv_heads, layers = c->n_layers;
    if (c->version > 0) {
        put_int(&file, 0x616b3432);
        put_int(&file, c->version);
    }
    put_int(&file, c->dim);
    put_int(&file, c->hidden_dim);
    put_int(&file, c->n_layers);
    put_int(&file, c->n_heads);
    put_int(&file, c->n_kv_heads);
    put_int(&file, c->version == 0 && !c->tied ? -c->vocab_size : c->vocab_size);
    put_int(&file, c->seq_len);
    if (c->version > 0) {
        unsigned char tied = (unsigned char)c->tied, zeros[256] = {0};
        put(&file, &tied, 1);
        if (c->version == 2) put_int(&file, c->group_size);
        put(&file, zeros, 256 - file.size);
        put_norms(&file, c, layers, &random);
        put_norms(&file, c, layers, &random);
        put_norms(&file, c, 1, &random);
    }
    put_matrices(&file, c, 1, c->vocab_size, c->dim, &random);
    if (c->version == 0) put_norms(&file, c, layers, &random);
    put_matrices(&file, c, layers, c->dim, c->dim, &random);
    put_matrices(&file, c, layers, kv_dim, c->dim, &random);
    put_matrices(&file, c, layers, kv_dim, c->dim, &random);
    put_matrices(&file, c, layers, c->dim, c->dim, &random);
    if (c->version == 0) put_norms(&file, c, layers, &random);
    put_matrices(&file, c, layers, c->hidden_dim, c->dim, &random);
    put_matrices(&file, c, layers, c->dim, c->hidden_dim, &random);
    put_matrices(&file, c, layers, c->hidden_dim, c->dim, &random);
    if (c->version == 0) {
        put_norms(&file, c, 1, &random);
        put_floats(&file, (size_t)c->seq_len * (size_t)(c->dim / c->n_heads), 0.0f, 1.0f, &random);
    }
    if (!c->tied) put_matrices(&file, c, 1, c->vocab_size, c->dim, &random);
    return finish(file);
}

/* ---- A tokenizer -------------------------------------------------------------------------------------- */

static void put_piece(image *file, float score, const char *text) {
    put(file, &score, sizeof score);
    put_int(file, (int32_t)strlen(text));
    put(file, text, strlen(text));
}

image image_tokenizer(void) {
    /* Later ones are worse, as in a trained vocabulary. "aa" and "aaaa" make long runs of one
     * character merge at several lengths, which is where merges go stale. */
    static const char *const texts[TOKENIZER_VOCAB - 259] = {
        " ", "a", "b", "e", "h", "t", "aa", "th", " th", "the", " the", "aaaa", "\xC3\xA9", "\xF0\x9F\x99\x82", "<s>",
    };
    image file = {NULL, 0, 0};
    put_int(&file, 16); /* longest piece */
    put_piece(&file, 0.0f, "<unk>");
    put_piece(&file, 0.0f, "\n<s>\n");
    put_piece(&file, 0.0f, "\n</s>\n");
    for (int byte = 0; byte < 256; byte++) {
        char text[8];
        snprintf(text, sizeof text, "<0x%02X>", byte);
        put_piece(&file, 0.0f, text);
    }
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) put_piece(&file, -(float)i, texts[i]);
    return finish(file);
}
