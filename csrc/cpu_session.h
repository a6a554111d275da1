/*
 * cpu_session.h - what a session is on the CPU: the KV cache and the scratch of the forward pass.
 */
#ifndef L2C_CPU_SESSION_H
#define L2C_CPU_SESSION_H

#include "backend.h"

enum { L2C_TILE = 4 }; /* queries that go through the same keys and values side by side */

typedef struct {
    const l2c_session *session;
    const l2c_model *model;
    l2c_pool *pool;
    const l2c_kernels *kernels;
    l2c_kv kv;
    size_t kv_bytes; /* of a number in the cache */
    size_t n_ctx;
    void *memory;    /* one block, of which the rest are parts (cpu_session.c) */

    unsigned char *key_cache;   /* (n_sequences, n_layers, n_kv_heads, n_ctx, head_size) of kv_bytes */
    unsigned char *value_cache; /* the same shape */

    float *x;            /* (L2C_MAX_ROWS, dim) the residual stream */
    float *xb;           /* the same shape: normed rows */
    float *hb;           /* (L2C_MAX_ROWS, hidden_dim) the feed-forward network's inner rows */
    float *attn_out;     /* (L2C_MAX_ROWS, n_heads * head_size) the heads' outputs */
    l2c_quantized xq;    /* xb in int8; q is NULL where all weights are float32 */
    l2c_quantized aq;    /* attn_out in int8 */
    l2c_quantized hq;    /* hb in int8 */
    float *q;            /* (L2C_MAX_ROWS, n_heads * head_size) queries */
    float *delta;        /* (L2C_MAX_ROWS, dim) what a block adds to x */
    float *k, *v;        /* (L2C_MAX_ROWS, n_kv_heads * head_size) */
    float *up;           /* (L2C_MAX_ROWS, hidden_dim) w3's output */
    float *scores;       /* (threads, L2C_TILE, n_ctx) attention weights of a few queries */
    float *value_sums;   /* (threads - 1, l2c_tile_sums) blocks' sums; NULL with one thread */
    float *kv_f32;       /* (threads, L2C_SUM_BLOCK, head_size) of a float16 cache, else NULL */
    float *logits;       /* (L2C_MAX_ROWS, vocab_size) */
    l2c_candidate *candidates; /* (threads, 2, vocab_size) for the sampler */
} l2c_cpu_session;

/* Floats of value_sums that one tile takes: (blocks of n_ctx, L2C_TILE, head_size). Rounded up to what is the same for
 * any 64 positions, on cache lines as well: pyllama2c/engine/plan.py relies on that. */
static inline uint64_t l2c_tile_sums(uint64_t n_ctx, uint64_t head_size) {
    enum { PER_POSITION = L2C_SUM_BLOCK / L2C_TILE }; /* n_ctx * head_size / PER_POSITION, before rounding */
    return (n_ctx + L2C_SUM_BLOCK) * ((head_size + PER_POSITION - 1) / PER_POSITION);
}

/* forward.c: runs rows through the model; returns L2C_OK or L2C_CANCELLED. */
l2c_status l2c_forward(l2c_cpu_session *s, const l2c_row *rows, size_t n_rows);

/* linear.c: columns [begin, end) of out (n, w->rows) = x (n, w->cols) w^T. A float32 matrix
 * reads x; a quantized one reads rows [first, first + n) of xq, which are the same rows in int8. */
void l2c_linear(const l2c_kernels *kernels, float *out, const float *x, const l2c_quantized *xq, size_t first, size_t n,
                const l2c_matrix *w, size_t begin, size_t end);

#endif
