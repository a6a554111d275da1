/*
 * test_files.c - checkpoints and tokenizers as an attacker would write them.
 */
#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "harness.h"
#include "system.h"

enum { PATH_ROOM = 1000 };

static l2c_status open_checkpoint(image file) {
    l2c_model *model = NULL;
    l2c_error err = {0};
    l2c_status status = l2c_model_open_memory(file.data, file.size, L2C_DTYPE_AUTO, NULL, &model, &err);
    CHECK((status == L2C_OK) == (model != NULL));
    CHECK(status == L2C_OK || (err.status == status && err.message[0] != '\0'));
    if (model == NULL) return status;
    /* What opens must be fit for use, whatever a test did to it. */
    l2c_pool *pool;
    l2c_session *session;
    CHECK(l2c_pool_create(1, &pool, NULL) == L2C_OK);
    CHECK(l2c_session_create(model, pool, 1, 1, L2C_KV_FLOAT32, L2C_ISA_AUTO, &session, NULL) == L2C_OK);
    l2c_row row = {0, 0, l2c_model_config(model)->vocab_size - 1, 1};
    CHECK(l2c_session_forward(session, &row, 1, NULL) == L2C_OK);
    l2c_session_free(session);
    l2c_pool_free(pool);
    l2c_model_free(model);
    return L2C_OK;
}

static l2c_status open_tokenizer(image file, int32_t vocab_size) {
    l2c_tokenizer *tokenizer = NULL;
    l2c_status status = l2c_tokenizer_open_memory(file.data, file.size, vocab_size, &tokenizer, NULL);
    CHECK((status == L2C_OK) == (tokenizer != NULL));
    if (tokenizer != NULL) CHECK(l2c_tokenizer_vocab_size(tokenizer) >= 259);
    l2c_tokenizer_free(tokenizer);
    return status;
}

void test_truncated_files(void) {
    for (size_t i = 0; i < n_smallest; i++) {
        image file = image_checkpoint(&smallest[i], 5);
        CHECK(open_checkpoint(file) == L2C_OK);
        for (size_t size = 0; size < file.size; size++) {
            image cut = image_copy(file.data, size);
            CHECK(open_checkpoint(cut) == L2C_FORMAT);
            free(cut.data);
        }
        unsigned char *longer = calloc(1, file.size + 64);
        CHECK(longer != NULL);
        memcpy(longer, file.data, file.size);
        for (size_t extra = 1; extra <= 64; extra++)
            CHECK(open_checkpoint((image){longer, file.size + extra, 0}) == L2C_FORMAT);
        free(longer);
        free(file.data);
    }
    image file = image_tokenizer();
    CHECK(open_tokenizer(file, TOKENIZER_VOCAB) == L2C_OK && open_tokenizer(file, 0) == L2C_OK);
    for (size_t size = 0; size < file.size; size++) {
        image cut = image_copy(file.data, size);
        CHECK(open_tokenizer(cut, TOKENIZER_VOCAB) == L2C_FORMAT);
        open_tokenizer(cut, 0); /* may be whole, where the cut is between two pieces */
        free(cut.data);
    }
    free(file.data);
}

void test_header_fields(void) {
    static const int32_t values[] = {0, -1, 1, 2, INT_MIN, INT_MAX, 1 << 24, 0x616b3432};
    enum { VALUES = sizeof values / sizeof *values, END = 44 };
    for (size_t i = 0; i < n_smallest + n_shapes; i++) {
        const shape *c = i < n_smallest ? &smallest[i] : &shapes[i - n_smallest];
        image file = image_checkpoint(c, 5);
        /* At every byte, so that the fields that are not aligned have their turn. */
        for (size_t offset = 0; offset < END; offset++)
            for (size_t v = 0; v < VALUES; v++) {
                unsigned char before[4];
                memcpy(before, file.data + offset, 4);
                memcpy(file.data + offset, &values[v], 4);
                l2c_status status = open_checkpoint(file);
                CHECK(status == L2C_OK || status == L2C_FORMAT);
                memcpy(file.data + offset, before, 4);
            }
        CHECK(open_checkpoint(file) == L2C_OK);
        l2c_model *model;
        CHECK(l2c_model_open_memory(file.data + 1, file.size - 1, L2C_DTYPE_AUTO, NULL, &model, NULL) == L2C_ARG);
        free(file.data);
    }
}

/* All that is told of a model, and of its sessions. */
static void check_same_facts(const l2c_model *a, const l2c_model *b) {
    CHECK(memcmp(l2c_model_config(a), l2c_model_config(b), sizeof(l2c_config)) == 0);
    CHECK(l2c_model_parameters(a) == l2c_model_parameters(b) && l2c_model_bytes(a) == l2c_model_bytes(b));
    CHECK(l2c_model_sweep_bytes(a) == l2c_model_sweep_bytes(b) && l2c_model_file_bytes(a) == l2c_model_file_bytes(b));
    CHECK(l2c_model_opening_bytes(a) == l2c_model_opening_bytes(b) && l2c_model_is_mapped(a) == l2c_model_is_mapped(b));
    for (int32_t n = 1; n <= 3; n++)
        CHECK(l2c_session_bytes(a, n, n, L2C_KV_FLOAT16, n) == l2c_session_bytes(b, n, n, L2C_KV_FLOAT16, n));
}

void test_headers_alone(void) {
    l2c_pool *pool;
    CHECK(l2c_pool_create(1, &pool, NULL) == L2C_OK);
    char *folder = folder_make(), path[PATH_ROOM];
    snprintf(path, sizeof path, "%s/file", folder);
    for (size_t i = 0; i < n_shapes; i++) {
        image file = image_checkpoint(&shapes[i], 5);
        file_write(path, file.data, file.size);
        for (l2c_dtype dtype = L2C_DTYPE_AUTO; dtype <= L2C_DTYPE_FILE; dtype++)
            for (int by_path = 0; by_path < 2; by_path++) {
                l2c_model *model = NULL, *header = NULL, *copy;
                l2c_session *session;
                l2c_error err;
                l2c_status opened = by_path ? l2c_model_open(path, dtype, pool, &model, NULL)
                                            : l2c_model_open_memory(file.data, file.size, dtype, pool, &model, NULL);
                CHECK(opened == (by_path ? l2c_model_open_header(path, dtype, &header, NULL)
                                         : l2c_model_open_header_memory(file.data, file.size, dtype, &header, NULL)));
                if (opened != L2C_OK) continue;
                check_same_facts(model, header);
                CHECK(l2c_model_fingerprint(header) == 0 && l2c_model_fingerprint(model) != 0);
                CHECK(l2c_session_create(header, pool, 1, 0, L2C_KV_FLOAT32, L2C_ISA_AUTO, &session, &err) == L2C_ARG);
                CHECK(l2c_model_quantize(header, L2C_DTYPE_INT8, NULL, &copy, &err) == L2C_ARG);
                l2c_model_free(model);
                l2c_model_free(header);
            }
        free(file.data);
    }
    file_remove(path);
    folder_remove(folder);
    free(folder);
    l2c_pool_free(pool);
}

void test_paths(void) {
    char *folder = folder_make(), path[PATH_ROOM];
    snprintf(path, sizeof path, "%s/file", folder);
    l2c_error err;
    l2c_model *model;
    l2c_tokenizer *tokenizer;
    CHECK(l2c_model_open(path, L2C_DTYPE_AUTO, NULL, &model, &err) == L2C_IO && err.sys_errno != 0);
    CHECK(l2c_tokenizer_open(path, 0, &tokenizer, &err) == L2C_IO && err.sys_errno != 0);
    CHECK(l2c_model_open("", L2C_DTYPE_AUTO, NULL, &model, &err) == L2C_IO && err.sys_errno == ENOENT);
    CHECK(l2c_model_open("\xFF", L2C_DTYPE_AUTO, NULL, &model, &err) == L2C_IO && err.sys_errno != 0); /* not UTF-8 */
    CHECK(l2c_model_open(folder, L2C_DTYPE_AUTO, NULL, &model, &err) == L2C_FORMAT);
    CHECK(l2c_model_open(NOWHERE, L2C_DTYPE_AUTO, NULL, &model, NULL) == L2C_FORMAT);
    image images[] = {{NULL, 0, 0}, image_checkpoint(&smallest[0], 5), image_tokenizer()};
    for (size_t i = 0; i < 3; i++) {
        file_write(path, images[i].data, images[i].size);
        CHECK(l2c_model_open(path, L2C_DTYPE_AUTO, NULL, &model, NULL) == (i == 1 ? L2C_OK : L2C_FORMAT));
        if (i == 1) l2c_model_free(model);
        CHECK(l2c_tokenizer_open(path, 0, &tokenizer, NULL) == (i == 2 ? L2C_OK : L2C_FORMAT));
        if (i == 2) l2c_tokenizer_free(tokenizer);
        free(images[i].data);
    }
    file_remove(path);
    folder_remove(folder);
    free(folder);
    l2c_model_free(NULL);
    l2c_tokenizer_free(NULL);
    l2c_session_free(NULL);
    l2c_pool_free(NULL);
}

/* Opens a checkpoint by this path, and by it with a way round. */
static void check_opens(const char *folder, const char *name) {
    char path[PATH_ROOM];
    for (int round = 0; round < 2; round++) {
        l2c_model *model = NULL;
        if (round == 0) snprintf(path, sizeof path, "%s/%s", folder, name);
        else snprintf(path, sizeof path, "%s/./../%s/%s", folder, strrchr(folder, '/') + 1, name);
        CHECK(l2c_model_open(path, L2C_DTYPE_AUTO, NULL, &model, NULL) == L2C_OK);
        l2c_model_free(model);
    }
}

/* Names of other scripts, in ever deeper folders, past the 260 characters of Windows' short paths. */
void test_names_of_paths(void) {
    enum { DEPTH = 6 };
    char *folders[DEPTH + 1] = {folder_make()}, path[PATH_ROOM];
    const char *name = "\xE7\x89\xA9\xE8\xAA\x9E \xC3\xA9\xF0\x9F\x99\x82.bin";
    image file = image_checkpoint(&smallest[0], 5);
    for (int depth = 1; depth <= DEPTH; depth++) {
        folders[depth] = malloc(PATH_ROOM);
        CHECK(folders[depth] != NULL);
        snprintf(folders[depth], PATH_ROOM, "%s/\xC3\xB6%060d", folders[depth - 1], depth);
        folder_make_at(folders[depth]);
        snprintf(path, sizeof path, "%s/%s", folders[depth], name);
        file_write(path, file.data, file.size);
        check_opens(folders[depth], name);
    }
    l2c_error err;
    l2c_model *model;
    CHECK(strlen(path) > 400);
    CHECK(l2c_model_open(folders[DEPTH], L2C_DTYPE_AUTO, NULL, &model, &err) == L2C_FORMAT);
    CHECK(strstr(err.message, "is a directory") != NULL);
    for (int depth = DEPTH; depth > 0; depth--) {
        snprintf(path, sizeof path, "%s/%s", folders[depth], name);
        file_remove(path);
        CHECK(l2c_model_open(path, L2C_DTYPE_AUTO, NULL, &model, &err) == L2C_IO && err.sys_errno == ENOENT);
        folder_remove(folders[depth]);
        free(folders[depth]);
    }
    folder_remove(folders[0]);
    free(folders[0]);
    free(file.data);
}

/* ---- Tokenizers ------------------------------------------------------------------------------------ */

void test_hostile_tokenizers(void) {
    static const int32_t lengths[] = {0, -1, 17, 4096, 4097, 1 << 30, INT_MAX, INT_MIN};
    image file = image_tokenizer();
    size_t offset = 4; /* of a piece: score, length, bytes */
    for (int32_t id = 0; id < TOKENIZER_VOCAB; id++) {
        int32_t length;
        memcpy(&length, file.data + offset + 4, 4);
        for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
            memcpy(file.data + offset + 4, &lengths[i], 4);
            CHECK(open_tokenizer(file, TOKENIZER_VOCAB) == L2C_FORMAT);
            CHECK(open_tokenizer(file, 0) == L2C_FORMAT);
        }
        memcpy(file.data + offset + 4, &length, 4);
        float score, nan = NAN;
        memcpy(&score, file.data + offset, 4);
        memcpy(file.data + offset, &nan, 4);
        CHECK(open_tokenizer(file, TOKENIZER_VOCAB) == L2C_FORMAT);
        memcpy(file.data + offset, &score, 4);
        if (id >= 3 && id < 259) { /* a byte piece that is another byte, or none */
            unsigned char digit = file.data[offset + 8 + 4];
            file.data[offset + 8 + 4] = digit == '0' ? '1' : '0';
            CHECK(open_tokenizer(file, 0) == L2C_FORMAT);
            file.data[offset + 8 + 4] = '-';
            CHECK(open_tokenizer(file, 0) == L2C_FORMAT);
            file.data[offset + 8 + 4] = digit;
        }
        if (id == 260) { /* "a" becomes " ", a duplicate of piece 259 */
            file.data[offset + 8] = ' ';
            CHECK(open_tokenizer(file, 0) == L2C_FORMAT);
            file.data[offset + 8] = 'a';
        }
        offset += 8 + (size_t)length;
    }
    CHECK(offset == file.size);
    static const int32_t longest[] = {0, -1, 15 - 16, 5, 4097, INT_MAX, INT_MIN};
    for (size_t i = 0; i < sizeof longest / sizeof *longest; i++) {
        memcpy(file.data, &longest[i], 4);
        CHECK(open_tokenizer(file, 0) == L2C_FORMAT);
    }
    int32_t good = 16;
    memcpy(file.data, &good, 4);
    CHECK(open_tokenizer(file, 0) == L2C_OK);
    CHECK(open_tokenizer(file, -1) == L2C_ARG && open_tokenizer(file, INT_MIN) == L2C_ARG);
    CHECK(open_tokenizer(file, TOKENIZER_VOCAB + 1) == L2C_FORMAT && open_tokenizer(file, INT_MAX) == L2C_FORMAT);
    free(file.data);
}

/* The pieces of a text are a space and the text, U+2581 being a space. */
static void check_round_trip(const l2c_tokenizer *t, const char *text, size_t length) {
    image exact = image_copy(text, length);
    int32_t *tokens = malloc(3 * (length + 1) * sizeof *tokens);
    CHECK(tokens != NULL);
    size_t n = 12345, at = 0;
    CHECK(l2c_tokenizer_encode(t, (char *)exact.data, length, 1, tokens, &n, NULL) == L2C_OK);
    CHECK(n <= length + 1 && (n == 0) == (length == 0));
    int first = 1; /* the space in front is still to come */
    for (size_t i = 0; i < n; i++) {
        const char *bytes;
        size_t size;
        CHECK(l2c_tokenizer_piece(t, tokens[i], &bytes, &size) == L2C_OK && size > 0);
        for (size_t b = 0; b < size; b++) {
            int meta = !first && length - at >= 3 && memcmp(text + at, "\xE2\x96\x81", 3) == 0;
            CHECK(first || at < length);
            CHECK(bytes[b] == (first || meta ? ' ' : text[at]));
            if (!first) at += meta ? 3 : 1;
            first = 0;
        }
    }
    CHECK(at == length);
    free(tokens);
    free(exact.data);
}

void test_encoding(void) {
    image file = image_tokenizer();
    l2c_tokenizer *t;
    CHECK(l2c_tokenizer_open_memory(file.data, file.size, 0, &t, NULL) == L2C_OK);
    static const char *const texts[] = {
        "", "a", " ", "   ", "the the", "<s>", "</s>", "<0x41>", "\xC3\xA9t\xC3\xA9", "\xF0\x9F\x99\x82",
        "\xF0\x9F\x99", "\xF0\x9F", "\xF0", "\xE2\x96\x81", "\xE2\x96\x81\xE2\x96\x81 a", "\xE2\x96", "a\xE2",
        "\xC3", "\x80\x80", "\xED\xA0\x80", "\xC0\x80", "\xF5\x80\x80\x80", "\xFF\xFE",
    };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) check_round_trip(t, texts[i], strlen(texts[i]));
    check_round_trip(t, "\0\0a\0the\0", 8);
    for (int byte = 0; byte < 256; byte++) {
        char text[2] = {(char)byte, (char)byte};
        check_round_trip(t, text, 1);
        check_round_trip(t, text, 2);
    }
    enum { LONG = 100000 };
    char *text = malloc(LONG);
    CHECK(text != NULL);
    static const char fills[] = {'a', ' ', '\0', 'x', '\x81', '\xE2', '\xF0'};
    for (size_t i = 0; i < sizeof fills; i++) {
        memset(text, fills[i], LONG);
        check_round_trip(t, text, LONG);
    }
    static const char letters[] = "aaaabeht  \xC3\xA9\xE2\x96\x81";
    uint64_t random = 23;
    for (size_t round = 0; round < 300; round++) {
        size_t length = (size_t)random_below(&random, 200);
        for (size_t i = 0; i < length; i++) text[i] = letters[random_below(&random, sizeof letters)];
        check_round_trip(t, text, length);
    }
    free(text);
    const char *bytes;
    size_t length;
    static const int32_t outside[] = {-1, INT_MIN, TOKENIZER_VOCAB, INT_MAX};
    for (size_t i = 0; i < 4; i++) CHECK(l2c_tokenizer_piece(t, outside[i], &bytes, &length) == L2C_RANGE);
    CHECK(l2c_tokenizer_piece(t, l2c_tokenizer_bos(t), &bytes, &length) == L2C_OK && length == 0);
    l2c_tokenizer_free(t);
    free(file.data);
}

/* <unk> a b ab ~b~: what lists may say, and what no vocabulary is. */
void test_vocabularies(void) {
    const char text[] = "<unk>abab~b~";
    int32_t lengths[] = {5, 1, 1, 2, 3}, merges[] = {1, 2};
    int32_t types[] = {L2C_PIECE_UNKNOWN, L2C_PIECE_NORMAL, L2C_PIECE_NORMAL, L2C_PIECE_NORMAL, L2C_PIECE_USER_DEFINED};
    float scores[5] = {0};
    const l2c_vocabulary good = {.n_pieces = 5, .text = text, .text_bytes = 12, .lengths = lengths, .types = types,
                                 .scores = scores, .bos = -1, .eos = 0, .unknown = 0};
    l2c_vocabulary v = good;
    l2c_tokenizer *t;
    int32_t tokens[3 * 16];
    size_t n;
    CHECK(l2c_tokenizer_create(&v, &t, NULL) == L2C_OK && l2c_tokenizer_bos(t) == -1 && l2c_tokenizer_eos(t) == 0);
    CHECK(l2c_tokenizer_encode(t, "ab~b~xyb", 8, 0, tokens, &n, NULL) == L2C_OK && n == 4);
    CHECK(tokens[0] == 3 && tokens[1] == 4 && tokens[2] == 0 && tokens[3] == 2);
    l2c_tokenizer_free(t);
    v.merges = merges, v.n_merges = 1, v.unknown = -1;
    CHECK(l2c_tokenizer_create(&v, &t, NULL) == L2C_OK);
    CHECK(l2c_tokenizer_encode(t, "ab", 2, 0, tokens, &n, NULL) == L2C_OK && n == 1 && tokens[0] == 3);
    CHECK(l2c_tokenizer_encode(t, "xb", 2, 0, tokens, &n, NULL) == L2C_FORMAT && n == 0);
    l2c_tokenizer_free(t);
    const int32_t wrong[] = {-1, 5, INT_MIN, INT_MAX};
    for (size_t i = 0; i < 4; i++) {
        merges[0] = wrong[i];
        CHECK(l2c_tokenizer_create(&v, &t, NULL) == L2C_FORMAT);
        types[2] = wrong[i] < 0 ? wrong[i] : INT_MAX;
        CHECK(l2c_tokenizer_create(&good, &t, NULL) == L2C_FORMAT);
        types[2] = L2C_PIECE_NORMAL, lengths[2] = wrong[i] == 5 ? 99 : wrong[i];
        CHECK(l2c_tokenizer_create(&good, &t, NULL) == L2C_FORMAT);
        lengths[2] = 1;
        l2c_vocabulary other = good;
        other.eos = wrong[i] == -1 ? -2 : wrong[i];
        CHECK(l2c_tokenizer_create(&other, &t, NULL) == L2C_ARG);
        other = good, other.n_pieces = wrong[i] == 5 ? 0 : wrong[i];
        CHECK(l2c_tokenizer_create(&other, &t, NULL) == L2C_ARG);
    }
    CHECK(l2c_tokenizer_create(&good, &t, NULL) == L2C_OK);
    l2c_tokenizer_free(t);
}
