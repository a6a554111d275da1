/*
 * forward.h - what forward.c, the transformer, and attention.c, its step that looks back, share.
 */
#ifndef L2C_FORWARD_H
#define L2C_FORWARD_H

#include "cpu_session.h"

/* One call of l2c_forward. */
typedef struct {
    l2c_cpu_session *s;
    const l2c_row *rows; /* (n) */
    size_t n;
    int cancelled;
} pass;

/* [begin, end) */
typedef struct {
    size_t begin, end;
} range;

/* A grain of columns: a packed block of weight rows, and a cache line of floats, so that no two threads write to one. */
enum { COLUMN_GRAIN = L2C_BLOCK_ROWS };

/* A thread's part of `count` pieces of work, in whole grains. */
static inline range share(size_t count, size_t grain, int thread, int n_threads) {
    size_t grains = (count + grain - 1) / grain;
    size_t begin = grains * (size_t)thread / (size_t)n_threads * grain;
    size_t end = grains * ((size_t)thread + 1) / (size_t)n_threads * grain;
    return (range){begin < count ? begin : count, end < count ? end : count};
}

/* Where a (sequence, layer, kv_head) has its (n_ctx, head_size) keys or values in a cache. */
static inline unsigned char *cached(const l2c_cpu_session *s, unsigned char *cache, int32_t sequence, size_t layer,
                                    size_t kv_head) {
    const l2c_config *c = &s->model->config;
    size_t index = ((size_t)sequence * (size_t)c->n_layers + layer) * (size_t)c->n_kv_heads + kv_head;
    return cache + index * s->n_ctx * (size_t)c->head_size * s->kv_bytes;
}

/* How attention's work is split over threads, the same in every layer. */
typedef struct {
    int own_heads;   /* each thread has whole heads, with their keys, among its columns: it waits for nobody */
    size_t n_shared; /* tiles that several threads work on together; 0: a tile is one thread's */
} attention_split;

/* attention.c: decided once a pass, from the model's shape and the rows; every thread decides the same. */
attention_split l2c_attention_split(const pass *p, int n_threads);

/* This thread's part of attn_out (n, q_dim), from q and the KV cache. */
void l2c_attention(const pass *p, size_t layer, attention_split split, int thread, int n_threads);

#endif
