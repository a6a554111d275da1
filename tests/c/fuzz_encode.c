/*
 * fuzz_encode.c - libFuzzer target: a random vocabulary, as l2c_tokenizer_create takes it, and a text. What
 * the bytes make a vocabulary must encode the text within the room that is promised; every id must be one
 * that text can become, and but for <unk> the pieces must be the text again.
 *
 * Bytes: flags (1: a space first, 2: merges, 4: split at spaces, 8: byte pieces, 16: no <unk>), number of
 * pieces, number of merges, the pieces (type and length, score, bytes), the merges (two ids), the text.
 */
#include <stdlib.h>
#include <string.h>

#include "llama2c.h"

enum { PIECES = 64, LONGEST = 15, MERGES = 64 };

typedef struct {
    const uint8_t *data;
    size_t left;
} input;

static void require(int condition) {
    if (!condition) abort(); /* which libFuzzer reports */
}

static uint8_t next(input *in) {
    if (in->left == 0) return 0;
    in->left--;
    return *in->data++;
}

static size_t append(unsigned char *text, size_t size, const char *bytes, size_t length) {
    memcpy(text + size, bytes, length);
    return size + length;
}

static void round_trip(const l2c_tokenizer *t, const int32_t *types, int32_t unknown, const char *text, size_t length,
                       int space_first) {
    int32_t *tokens = malloc(3 * (length + 1) * sizeof *tokens); /* of exactly the promised size */
    unsigned char *said = malloc(3 * (length + 1) + 1), *meant = malloc(3 * (length + 1) + 1);
    require(tokens != NULL && said != NULL && meant != NULL);
    size_t n = 12345, n_said = 0, n_meant = 0;
    l2c_status status = l2c_tokenizer_encode(t, text, length, space_first, tokens, &n, NULL);
    require(status == L2C_OK || (status == L2C_FORMAT && unknown < 0));
    int whole = status == L2C_OK;
    for (size_t i = 0; i < n && status == L2C_OK; i++) {
        const char *bytes;
        size_t size;
        require(l2c_tokenizer_piece(t, tokens[i], &bytes, &size) == L2C_OK);
        require(tokens[i] == unknown || types[tokens[i]] == L2C_PIECE_NORMAL || types[tokens[i]] == L2C_PIECE_BYTE
                || types[tokens[i]] == L2C_PIECE_USER_DEFINED);
        whole &= tokens[i] != unknown;
        if (whole) n_said = append(said, n_said, bytes, size);
    }
    if (whole && length > 0) {
        if (space_first) n_meant = append(meant, n_meant, " ", 1);
        n_meant = append(meant, n_meant, text, length);
        /* U+2581 is a space; the bytes of one that has no piece are U+2581's. */
        unsigned char *both[] = {said, meant};
        size_t *sizes[] = {&n_said, &n_meant};
        for (int k = 0; k < 2; k++) {
            size_t to = 0;
            for (size_t i = 0; i < *sizes[k]; to++) {
                int meta = *sizes[k] - i >= 3 && memcmp(both[k] + i, "\xE2\x96\x81", 3) == 0;
                both[k][to] = meta ? ' ' : both[k][i];
                i += meta ? 3 : 1;
            }
            *sizes[k] = to;
        }
        require(n_said == n_meant && memcmp(said, meant, n_said) == 0);
    }
    free(meant);
    free(said);
    free(tokens);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    input in = {data, size};
    static const char digits[] = "0123456789ABCDEF";
    char text[256 * 6 + PIECES * LONGEST];
    int32_t lengths[256 + PIECES], types[256 + PIECES], merges[2 * MERGES], n = 0;
    float scores[256 + PIECES];
    l2c_vocabulary v = {.text = text, .lengths = lengths, .types = types, .scores = scores, .bos = -1, .eos = -1};
    uint8_t flags = next(&in);
    int32_t n_pieces = 1 + next(&in) % PIECES;
    v.n_merges = next(&in) % MERGES;
    for (; n < n_pieces; n++) {
        uint8_t first = next(&in);
        lengths[n] = first & LONGEST;
        types[n] = (first >> 4) % 8;
        scores[n] = (float)(int8_t)next(&in);
        for (int32_t i = 0; i < lengths[n]; i++) text[v.text_bytes++] = (char)next(&in);
    }
    for (int32_t i = 0; flags & 8 && i < 256; i++, n++) {
        char name[] = {'<', '0', 'x', digits[i / 16], digits[i % 16], '>'};
        v.text_bytes = append((unsigned char *)text, v.text_bytes, name, sizeof name);
        lengths[n] = sizeof name, types[n] = L2C_PIECE_BYTE, scores[n] = 0;
    }
    for (int32_t i = 0; i < 2 * v.n_merges; i++) merges[i] = next(&in) % (PIECES + 2) - 1;
    v.n_pieces = n;
    v.merges = flags & 2 ? merges : NULL;
    v.split_spaces = flags >> 2 & 1;
    v.unknown = flags & 16 ? -1 : 0;
    l2c_tokenizer *t;
    if (l2c_tokenizer_create(&v, &t, NULL) == L2C_OK) {
        char *rest = malloc(in.left + (in.left == 0)); /* of exactly the size, so that ASan sees a read past it */
        require(rest != NULL);
        if (in.left > 0) memcpy(rest, in.data, in.left);
        round_trip(t, types, v.unknown, rest, in.left, flags & 1);
        free(rest);
        l2c_tokenizer_free(t);
    }
    return 0;
}
