/*
 * tokenizer_file.c - llama2.c's tokenizer.bin.
 *
 * int32 length of the longest piece; then for each piece float32 score, int32 length, bytes. Ids 0 to 2
 * are <unk>, BOS and EOS, 3 to 258 the byte pieces <0x00> to <0xFF>, which run.c reckons with; the rest
 * is text, with spaces as spaces. A piece whose score is minus infinity has an id and a text, but no
 * text becomes it.
 */
#include <math.h>
#include <string.h>

#include "tokenizer.h"

enum {
    UNK = 0,
    BOS = 1,
    EOS = 2,
    FIRST_BYTE = 3,
    FIRST_TEXT = FIRST_BYTE + 256,
    RECORD = 8, /* score and length */
    MAX_FILE = 1 << 30
};

typedef struct {
    float score;
    int32_t length;
    const unsigned char *bytes;
} record;

/* One piece at *offset; moves *offset past it. */
static l2c_status read_piece(const unsigned char *data, size_t size, size_t *offset, int32_t id, int32_t longest,
                             record *p, l2c_error *err) {
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
    p->bytes = data + *offset;
    *offset += (size_t)p->length;
    return L2C_OK;
}

static int is_byte_piece(const record *p, int32_t byte) {
    static const char digits[] = "0123456789ABCDEF0123456789abcdef";
    if (p->length != 6 || memcmp(p->bytes, "<0x", 3) != 0 || p->bytes[5] != '>') return 0;
    return (p->bytes[3] == digits[byte / 16] || p->bytes[3] == digits[16 + byte / 16])
        && (p->bytes[4] == digits[byte % 16] || p->bytes[4] == digits[16 + byte % 16]);
}

/* Checks every piece and counts them: no memory is taken for what the file does not hold. */
static l2c_status count_pieces(const unsigned char *data, size_t size, int32_t vocab_size, int32_t *count,
                               int32_t *longest, l2c_error *err) {
    if (size < 4) return l2c_fail(err, L2C_FORMAT, "file of %zu bytes is shorter than a header (4 bytes)", size);
    memcpy(longest, data, 4);
    if (*longest < 1 || *longest > L2C_MAX_PIECE)
        return l2c_fail(err, L2C_FORMAT, "longest piece is %d bytes; it must be 1 to %d (is this a tokenizer.bin?)",
                        *longest, L2C_MAX_PIECE);
    size_t offset = 4;
    int32_t n = 0;
    for (; offset < size && n < L2C_MAX_VOCAB; n++) {
        record p = {0};
        l2c_status status = read_piece(data, size, &offset, n, *longest, &p, err);
        if (status != L2C_OK) return status;
        if (n >= FIRST_BYTE && n < FIRST_TEXT && !is_byte_piece(&p, n - FIRST_BYTE))
            return l2c_fail(err, L2C_FORMAT, "piece %d must be the byte piece <0x%02X>", n, (unsigned)(n - FIRST_BYTE));
    }
    if (offset < size) return l2c_fail(err, L2C_FORMAT, "more than %d pieces", L2C_MAX_VOCAB);
    if (vocab_size != 0 && n != vocab_size)
        return l2c_fail(err, L2C_FORMAT, "file holds %d pieces, but the model's vocab_size is %d: is it this model's tokenizer?",
                        n, vocab_size);
    if (n < FIRST_TEXT)
        return l2c_fail(err, L2C_FORMAT, "file holds %d pieces; <unk>, BOS, EOS and 256 bytes make at least %d", n, FIRST_TEXT);
    *count = n;
    return L2C_OK;
}

/* What the file says of its pieces, as lists; text has room for the whole file. */
static void list_pieces(const unsigned char *data, size_t size, int32_t count, int32_t longest, char *text,
                        int32_t *lengths, int32_t *types, float *scores, size_t *text_bytes) {
    size_t offset = 4;
    *text_bytes = 0;
    for (int32_t id = 0; id < count; id++) {
        record p = {0};
        read_piece(data, size, &offset, id, longest, &p, NULL); /* which was checked */
        memcpy(text + *text_bytes, p.bytes, (size_t)p.length);
        *text_bytes += (size_t)p.length;
        lengths[id] = p.length;
        scores[id] = p.score;
        types[id] = id == BOS || id == EOS ? L2C_PIECE_CONTROL
                  : id >= FIRST_BYTE && id < FIRST_TEXT ? L2C_PIECE_BYTE
                  : id == UNK || p.score == -HUGE_VALF ? L2C_PIECE_UNKNOWN : L2C_PIECE_NORMAL;
    }
}

l2c_status l2c_tokenizer_open_memory(const void *data, size_t size, int32_t vocab_size, l2c_tokenizer **tokenizer,
                                     l2c_error *err) {
    if (vocab_size < 0) return l2c_fail(err, L2C_ARG, "vocab_size is %d; it must be 0 or more", vocab_size);
    int32_t n = 0, longest = 0;
    l2c_status status = count_pieces(data, size, vocab_size, &n, &longest, err);
    if (status != L2C_OK) return status;
    char *text = l2c_memory_zeroed(size, 1);
    int32_t *lengths = l2c_memory_zeroed((size_t)n, sizeof *lengths);
    int32_t *types = l2c_memory_zeroed((size_t)n, sizeof *types);
    float *scores = l2c_memory_zeroed((size_t)n, sizeof *scores);
    if (text == NULL || lengths == NULL || types == NULL || scores == NULL) {
        status = l2c_fail(err, L2C_NOMEM, "out of memory for %d pieces", n);
    } else {
        l2c_vocabulary v = {.n_pieces = n, .text = text, .lengths = lengths, .types = types, .scores = scores,
                            .bos = BOS, .eos = EOS, .unknown = UNK};
        list_pieces(data, size, n, longest, text, lengths, types, scores, &v.text_bytes);
        status = l2c_tokenizer_create(&v, tokenizer, err);
        if (status == L2C_OK) (*tokenizer)->space_is_byte = 1;
    }
    l2c_memory_free(scores);
    l2c_memory_free(types);
    l2c_memory_free(lengths);
    l2c_memory_free(text);
    return status;
}

l2c_status l2c_tokenizer_open(const char *path, int32_t vocab_size, l2c_tokenizer **tokenizer, l2c_error *err) {
    unsigned char *data;
    size_t size;
    l2c_status status = l2c_file_read(path, "tokenizer", MAX_FILE, &data, &size, err);
    if (status != L2C_OK) return status;
    status = l2c_tokenizer_open_memory(data, size, vocab_size, tokenizer, err);
    l2c_memory_free(data);
    return status;
}
