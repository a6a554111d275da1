/*
 * oracle.h - what the CPU's engine computes, for the tests in C++: internal.h is C alone.
 */
#pragma once
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
#include "kernels/kernels.h"
#include "kernels/quantized.h"
#include "llama2c.h"

/* xorshift64, as tests/c has it; *state is never 0. */
uint64_t random_next(uint64_t *state);
int32_t random_between(uint64_t *state, int32_t low, int32_t high); /* both included */
/* Of many magnitudes, so that rounding matters; now and then a zero, -0 or denormal. */
float random_float(uint64_t *state);

/* A matrix of any type with random values; its data is to be freed. extreme: packed ones are all -128 (Q8) or 15. */
l2c_matrix oracle_matrix(l2c_weights type, size_t rows, size_t cols, size_t group, int extreme, uint64_t *state);

/* A float32 matrix all of whose values are exactly float16, or bfloat16. */
l2c_matrix oracle_matrix_of_16_bits(int bfloat16, size_t rows, size_t cols, uint64_t *state);

void oracle_matrix_row(float *x, const l2c_matrix *m, size_t row);

typedef struct {
    double largest, log_sum;
} oracle_log_total;
oracle_log_total oracle_logprob_total(const float *logits, size_t n);

/* Draws with the coin that the sampler's state gives, on the scalar kernels; the logits are used up. */
l2c_status oracle_pick(l2c_sampler *sampler, float *logits, int32_t n, const int32_t *history, size_t n_history,
                       int32_t *token);
/* The coin that the next draw will toss. */
float oracle_coin(const l2c_sampler *sampler);

/* ---- Models ------------------------------------------------------------------------------------------- */

typedef struct {
    int32_t dim, hidden_dim, n_layers, n_heads, n_kv_heads, head_size, vocab_size, seq_len;
    int32_t group; /* of packed matrices; 0: all are float32 */
} oracle_shape;

/* Random matrices: float32 (some of them exact in 16 bits) and, with a group, packed ones of any type that has it. */
l2c_model *oracle_model_make(const oracle_shape *shape, uint64_t *state);
void oracle_model_free(l2c_model *model);

/* Matrices by number, and the norms: attention, ffn of a layer, and the final one. */
enum { ORACLE_WQ, ORACLE_WK, ORACLE_WV, ORACLE_WO, ORACLE_W1, ORACLE_W2, ORACLE_W3, ORACLE_EMBEDDING, ORACLE_CLASSIFIER };
const l2c_matrix *oracle_model_matrix(const l2c_model *model, int which, int layer);
const float *oracle_model_norm(const l2c_model *model, int which, int layer);

/* cosines and sines (n, head_size / 2) of the first n positions */
void oracle_model_rope(const l2c_model *model, int32_t n, float *cosine, float *sine);

#ifdef __cplusplus
}
#endif
