/*
 * fuzz_tokenizer.c - libFuzzer target: a 16-bit length of the text, a tokenizer, a text. What opens
 * must encode the text, and its pieces must be the text again.
 */
#include <stdlib.h>
#include <string.h>

#include "llama2c.h"

static void require(int condition) {
    if (!condition) abort(); /* which libFuzzer reports */
}

static void *copy_of(const void *data, size_t size) {
    void *copy = malloc(size + (size == 0)); /* of exactly the size, so that ASan sees a read past it */
    require(copy != NULL);
    if (size > 0) memcpy(copy, data, size);
    return copy;
}

static void round_trip(const l2c_tokenizer *t, const char *text, size_t length, int space_first) {
    int32_t *tokens = malloc(3 * (length + 1) * sizeof *tokens);
    require(tokens != NULL);
    size_t n, at = 0;
    require(l2c_tokenizer_encode(t, text, length, space_first, tokens, &n, NULL) == L2C_OK);
    require(n <= length + 1 && (n == 0) == (length == 0));
    int first = space_first; /* the space in front is still to come */
    for (size_t i = 0; i < n; i++) {
        const char *bytes;
        size_t size;
        require(l2c_tokenizer_piece(t, tokens[i], &bytes, &size) == L2C_OK);
        for (size_t b = 0; b < size; b++, first = 0) {
            int meta = !first && length - at >= 3 && memcmp(text + at, "\xE2\x96\x81", 3) == 0; /* U+2581 */
            require(first || at < length);
            require(bytes[b] == (first || meta ? ' ' : text[at]));
            if (!first) at += meta ? 3 : 1;
        }
    }
    require(at == length);
    free(tokens);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 2) return 0;
    size_t length = data[0] | (size_t)data[1] << 8, left = size - 2;
    if (length > left) length = left;
    void *file = copy_of(data + 2, left - length);
    char *text = copy_of(data + size - length, length);
    l2c_tokenizer *t;
    if (l2c_tokenizer_open_memory(file, left - length, 0, &t, NULL) == L2C_OK) {
        round_trip(t, text, length, data[0] & 1);
        l2c_tokenizer_free(t);
    }
    free(text);
    free(file);
    return 0;
}
