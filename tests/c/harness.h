/*
 * harness.h - what the parts of the sanitizer harness share: CHECK, random numbers, tiny random
 * files in memory, and the logits that every way of computing must reproduce.
 */
#ifndef L2C_HARNESS_H
#define L2C_HARNESS_H

#include "internal.h"

/* Unlike assert, stays in optimized builds; the first failure ends the run. */
#define CHECK(condition) \
    do { if (!(condition)) check_failed(__FILE__, __LINE__, #condition); } while (0)

_Noreturn void check_failed(const char *file, int line, const char *condition);

/* xorshift64, so that every run does the same; *state is never 0. */
uint64_t random_next(uint64_t *state);
int32_t random_below(uint64_t *state, int32_t limit);
float random_float(uint64_t *state); /* in [-1, 1) */

/* ---- images.c: files, in blocks of exactly their size so that ASan sees any byte read past them */

typedef struct {
    unsigned char *data;
    size_t size;
    size_t room; /* what data was allocated with */
} image;

typedef struct {
    int32_t dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len;
    int32_t version, tied, group_size;
} shape;

image image_checkpoint(const shape *c, uint64_t seed);
image image_tokenizer(void);
image image_copy(const void *data, size_t size);

enum { TOKENIZER_VOCAB = 274 }; /* pieces in image_tokenizer */

/* Shapes that a loop with a wrong tail, stride or head map does not survive. */
extern const shape shapes[];
extern const size_t n_shapes;

/* The smallest of each version, for tests that go through every byte of a file. */
extern const shape smallest[];
extern const size_t n_smallest;

/* ---- truth.c: logits computed the plainest way --------------------------------------------------- */

enum { TRUTH_SEQUENCES = 3 };

typedef struct {
    image file;
    l2c_model *model;
    int32_t *tokens; /* (TRUTH_SEQUENCES, seq_len) */
    float *logits;   /* (TRUTH_SEQUENCES, seq_len, vocab_size): scalar, one thread, one row a call */
} truth;

truth truth_make(const shape *c);
truth truth_make_with(const shape *c, l2c_kv kv); /* of what keys and values are kept in */
void truth_free(truth *t);
l2c_row truth_row(const truth *t, int32_t sequence, int32_t position);

/* Whether logits are, bit for bit, those of this position. */
int truth_equals(const truth *t, int32_t sequence, int32_t position, const float *logits);

/* What computes all sequences, in float32 and with the fastest kernels. */
l2c_pool *truth_pool(int32_t n_threads);
l2c_session *truth_session(const truth *t, l2c_pool *pool);

/* Feeds all sequences in calls of random rows and CHECKs every logit. */
void truth_check_session(const truth *t, l2c_session *session, uint64_t seed);

/* The instruction sets that this machine runs, but for runq; returns how many. */
enum { MAX_ISAS = 4 };
size_t available_isas(l2c_isa *isas);

/* ---- The tests, by file --------------------------------------------------------------------------- */

void test_truncated_files(void);
void test_header_fields(void);
void test_paths(void);
void test_names_of_paths(void);
void test_headers_alone(void);
void test_hostile_tokenizers(void);
void test_encoding(void);
void test_vocabularies(void);

void test_same_bits(void);
void test_attention_told(void);
void test_row_errors(void);
void test_used_rows(void);
void test_float_settings(void);
void test_float_settings_of_every_call(void);
void test_shared_by_sessions(void);
void test_wide_products_go_in_tiles(void);
void test_session_memory(void);
void test_nonfinite_draft(void);
void test_runq_kernels(void);
void test_nonfinite_weights(void);
void test_sampler_choices(void);
void test_sampler_on_large_vocabularies(void);
void test_sampler_errors(void);

void test_biases_and_penalties(void);
void test_biases_and_penalties_in_every_way(void);
void test_logprobs_of_draws(void);

void test_kernels_at_guard_page(void);
void test_kernels_special_values(void);
void test_fused(void);

void test_pool_life(void);
void test_pool_shared_by_sessions(void);
void test_session_used_by_two_threads(void);
void test_cancel(void);
void test_cancel_while_speculating(void);
void test_fork(void);
void test_fork_of_the_same_number(void);

void test_second_backend(void);

void test_batch_loads(void);
void test_batch_prompts(void);
void test_batch_fairness(void);
void test_batch_refusals(void);
void test_batch_dropped_from_a_thread(void);

#endif
