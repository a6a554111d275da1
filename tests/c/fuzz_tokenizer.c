/*
 * fuzz_tokenizer.c - libFuzzer: two bytes of length, then a tokenizer.bin, then a text. What the
 * text encodes to has to decode to the text.
 */
#include <stdlib.h>
#include <string.h>

#include "llama2c.h"

static void round_trip(const l2c_tokenizer *t, const char *text, size_t size) {
    int32_t *ids = malloc((size + 1) * sizeof *ids);
    unsigned char *decoded = malloc(size + 1);
    size_t n = 0, at = 0, expected = 0;
    if (l2c_tokenizer_encode(t, text, size, ids, &n, NULL) != L2C_OK || n > size + 1) abort();
    for (size_t i = 0; i < n; i++) {
        const char *bytes;
        size_t length;
        if (l2c_tokenizer_piece(t, ids[i], &bytes, &length) != L2C_OK || at + length > size + 1) abort();
        memcpy(decoded + at, bytes, length);
        at += length;
    }
    if (size > 0 && decoded[expected++] != ' ') abort(); /* the space that is put in front */
    for (size_t i = 0; i < size; expected++) {
        int meta = size - i >= 3 && memcmp(text + i, "\xE2\x96\x81", 3) == 0; /* is a space as well */
        if (decoded[expected] != (meta ? ' ' : (unsigned char)text[i])) abort();
        i += meta ? 3 : 1;
    }
    if (expected != at) abort();
    free(decoded);
    free(ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 2) return 0;
    size_t split = data[0] | (size_t)data[1] << 8;
    data += 2;
    size -= 2;
    if (split > size) split = size;
    unsigned char *file = malloc(split ? split : 1);
    if (split) memcpy(file, data, split);
    l2c_tokenizer *t = NULL;
    if (l2c_tokenizer_open_memory(file, split, 0, &t, NULL) == L2C_OK)
        round_trip(t, (const char *)data + split, size - split);
    l2c_tokenizer_free(t);
    free(file);
    return 0;
}
