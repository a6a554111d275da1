/*
 * forward.c - the transformer, top to bottom.
 *
 * Every thread of the pool runs forward_on_thread over the same rows and does its share of each
 * step; a barrier stands wherever a step reads what other threads wrote. Shapes are in comments as
 * (rows, columns); n is the number of rows of this call, each a token at a position of a sequence.
 *
 * Names follow llama2.c and, before it, Meta's own code of LLaMA (Touvron et al. 2023).
 */
#include <math.h>
#include <string.h>

#include "internal.h"

typedef struct {
    l2c_session *s;
    const l2c_row *rows; /* (n) */
    size_t n;
    int cancelled;
} pass;

/* A thread's part of `count` pieces of work, in whole grains. */
typedef struct {
    size_t begin, end;
} range;

static range share(size_t count, size_t grain, int thread, int n_threads) {
    size_t grains = (count + grain - 1) / grain;
    size_t begin = grains * (size_t)thread / (size_t)n_threads * grain;
    size_t end = grains * ((size_t)thread + 1) / (size_t)n_threads * grain;
    return (range){begin < count ? begin : count, end < count ? end : count};
}

/* ---- The steps ------------------------------------------------------------------------------ */

/* RMSNorm (Zhang & Sennrich 2019): out = weight * x / sqrt(mean(x^2) + eps) */
static void rmsnorm(const l2c_session *s, float *out, const float *x, const float *weight) {
    size_t dim = (size_t)s->model->config.dim;
    float scale = 1.0f / sqrtf(s->kernels->dot(x, x, dim) / (float)dim + s->model->config.norm_eps);
    for (size_t i = 0; i < dim; i++) out[i] = weight[i] * (scale * x[i]);
}

/* Where the weights are int8 or int4, a matrix product wants its input rows in int8 as well. */
static void quantize(const l2c_session *s, const l2c_quantized *to, size_t row, const float *x) {
    if (to->q != NULL) s->kernels->quantize(to, row, x, to->cols);
}

/* out (n, w->rows) = x (n, w->cols) times w transposed, for the output columns in `part`; x in float32
 * and, from row `first` of xq on, in int8: the matrix takes which it needs */
static void linear(const l2c_session *s, float *out, const float *x, const l2c_quantized *xq, size_t first, size_t n,
                   const l2c_matrix *w, range part) {
    const l2c_kernels *k = s->kernels;
    if (part.begin == part.end) return;
    if (w->type == L2C_WEIGHTS_F32)
        k->matmul(out, w->rows, x, w->cols, n, w->data, w->cols, part.begin, part.end);
    else if (w->type == L2C_WEIGHTS_Q4)
        k->matmul_q4(out, w->rows, xq, first, n, w, part.begin, part.end);
    else
        k->matmul_q8(out, w->rows, xq, first, n, w, part.begin, part.end);
}

/* RoPE (Su et al. 2021): turns each neighbouring pair of a head by position * frequency; pairs
 * [begin, end) of one head. */
static void rotate(const l2c_session *s, float *pairs, size_t begin, size_t end, int32_t position) {
    size_t per_head = (size_t)s->model->config.head_size / 2;
    const float *cosine = s->rope_cos + (size_t)position * per_head;
    const float *sine = s->rope_sin + (size_t)position * per_head;
    for (size_t j = begin; j < end; j++, pairs += 2) {
        float a = pairs[0], b = pairs[1];
        pairs[0] = a * cosine[j] - b * sine[j];
        pairs[1] = a * sine[j] + b * cosine[j];
    }
}

/* Where a (sequence, layer, kv_head) has its (n_ctx, head_size) keys or values in a cache. */
static float *cached(const l2c_session *s, float *cache, int32_t sequence, size_t layer, size_t kv_head) {
    const l2c_config *c = &s->model->config;
    size_t index = ((size_t)sequence * (size_t)c->n_layers + layer) * (size_t)c->n_kv_heads + kv_head;
    return cache + index * (size_t)s->n_ctx * (size_t)c->head_size;
}

/* Puts the columns in `part` of a row's keys, rotated, and of its values into the KV cache. Parts
 * begin and end between pairs, though not always between heads. */
static void remember(const l2c_session *s, const l2c_row *row, size_t r, size_t layer, range part) {
    size_t head_size = (size_t)s->model->config.head_size;
    size_t kv_dim = (size_t)s->model->config.n_kv_heads * head_size;
    for (size_t i = part.begin, end; i < part.end; i = end) {
        size_t head = i / head_size, within = i % head_size;
        end = (head + 1) * head_size < part.end ? (head + 1) * head_size : part.end;
        size_t to = (size_t)row->position * head_size + within, bytes = (end - i) * sizeof(float);
        float *key = cached(s, s->key_cache, row->sequence, layer, head) + to;
        memcpy(key, s->k + r * kv_dim + i, bytes);
        rotate(s, key, within / 2, (within + end - i) / 2, row->position);
        memcpy(cached(s, s->value_cache, row->sequence, layer, head) + to, s->v + r * kv_dim + i, bytes);
    }
}

/* One query head attends to all positions of its sequence up to its own:
 * out (head_size) = softmax(query keys^T / sqrt(head_size)) values */
static void attend(const l2c_kernels *kernels, float *out, float *scores, const float *query,
                   const float *keys, const float *values, size_t n_keys, size_t head_size) {
    kernels->matmul(scores, 0, query, 0, 1, keys, head_size, 0, n_keys);
    float divisor = sqrtf((float)head_size);
    for (size_t t = 0; t < n_keys; t++) scores[t] /= divisor;
    kernels->softmax(scores, n_keys);
    kernels->mix(out, scores, values, n_keys, head_size);
}

/* x += delta, both (n, dim), for the columns in `part` */
static void add(float *x, const float *delta, size_t n, size_t dim, range part) {
    for (size_t r = 0; r < n; r++)
        for (size_t i = part.begin; i < part.end; i++) x[r * dim + i] += delta[r * dim + i];
}

/* ---- The pass --------------------------------------------------------------------------------- */

static void forward_on_thread(void *arg, int thread, int n_threads) {
    pass *p = arg;
    l2c_session *s = p->s;
    const l2c_model *m = s->model;
    const l2c_config *c = &m->config;
    size_t n = p->n, dim = (size_t)c->dim, hidden = (size_t)c->hidden_dim;
    size_t n_heads = (size_t)c->n_heads, n_kv_heads = (size_t)c->n_kv_heads, head_size = (size_t)c->head_size;
    size_t q_dim = n_heads * head_size; /* which is dim in most models */
    size_t queries_per_kv = n_heads / n_kv_heads; /* grouped-query attention shares keys and values */

    /* A thread's columns of a (., dim), (., q_dim), (., kv_dim), (., hidden_dim) product, in steps of a
     * cache line, so that no two threads write the same one, and of a packed block of rows. */
    range dim_part = share(dim, 16, thread, n_threads);
    range q_part = share(q_dim, 16, thread, n_threads);
    range kv_part = share(n_kv_heads * head_size, 16, thread, n_threads);
    range hidden_part = share(hidden, 16, thread, n_threads);
    float *scores = s->scores + (size_t)thread * (size_t)s->n_ctx;

    /* What works on whole rows is split by rows. A single row every thread works out for itself, in
     * row `own` of xb, xq and hq: the little that is done twice costs less than waiting for it. */
    int alone = n == 1;
    size_t own = alone ? (size_t)thread : 0;
    float *xb = s->xb + own * dim;
    range rows = alone ? (range){0, 1} : share(n, 1, thread, n_threads);

    /* x (n, dim): the residual stream begins as the token embeddings */
    for (size_t r = (size_t)thread; r < n; r += (size_t)n_threads)
        l2c_matrix_row(s->x + r * dim, &m->token_embedding, (size_t)p->rows[r].token);
    l2c_pool_barrier(s->pool, thread);

    for (size_t l = 0; l < (size_t)c->n_layers; l++) {
        const l2c_layer *w = &m->layers[l];

        /* xb (n, dim): what attention reads */
        for (size_t r = rows.begin; r < rows.end; r++) {
            rmsnorm(s, xb + r * dim, s->x + r * dim, w->attention_norm);
            quantize(s, &s->xq, own + r, xb + r * dim);
        }
        if (!alone) l2c_pool_barrier(s->pool, thread);

        /* q (n, q_dim), k and v (n, n_kv_heads * head_size); keys and values of all
         * rows go into the cache before any row looks back */
        linear(s, s->q, xb, &s->xq, own, n, &w->wq, q_part);
        linear(s, s->k, xb, &s->xq, own, n, &w->wk, kv_part);
        linear(s, s->v, xb, &s->xq, own, n, &w->wv, kv_part);
        for (size_t r = 0; r < n; r++) remember(s, &p->rows[r], r, l, kv_part);
        if (thread == 0) p->cancelled = atomic_load_explicit(&s->cancel, memory_order_relaxed);
        l2c_pool_barrier(s->pool, thread);
        if (p->cancelled) return;

        /* att (n, q_dim): each head's mixture of the values it attends to */
        for (size_t i = (size_t)thread; i < n * n_heads; i += (size_t)n_threads) {
            size_t r = i / n_heads, h = i % n_heads;
            const l2c_row *row = &p->rows[r];
            float *query = s->q + r * q_dim + h * head_size;
            const float *keys = cached(s, s->key_cache, row->sequence, l, h / queries_per_kv);
            const float *values = cached(s, s->value_cache, row->sequence, l, h / queries_per_kv);
            rotate(s, query, 0, head_size / 2, row->position);
            attend(s->kernels, s->att + r * q_dim + h * head_size, scores, query, keys, values,
                   (size_t)row->position + 1, head_size);
        }
        l2c_pool_barrier(s->pool, thread);
        for (size_t r = rows.begin; r < rows.end; r++) quantize(s, &s->aq, own + r, s->att + r * q_dim);
        if (!alone && s->aq.q != NULL) l2c_pool_barrier(s->pool, thread);

        /* x += attention's output (n, dim) */
        linear(s, s->delta, s->att, &s->aq, own, n, &w->wo, dim_part);
        add(s->x, s->delta, n, dim, dim_part);
        l2c_pool_barrier(s->pool, thread);

        /* xb (n, dim): what the feed-forward network reads */
        for (size_t r = rows.begin; r < rows.end; r++) {
            rmsnorm(s, xb + r * dim, s->x + r * dim, w->ffn_norm);
            quantize(s, &s->xq, own + r, xb + r * dim);
        }
        if (!alone) l2c_pool_barrier(s->pool, thread);

        /* SwiGLU (Shazeer 2020): hb (n, hidden_dim) = silu(xb w1^T) * (xb w3^T) */
        linear(s, s->hb, xb, &s->xq, own, n, &w->w1, hidden_part);
        linear(s, s->up, xb, &s->xq, own, n, &w->w3, hidden_part);
        for (size_t r = 0; r < n; r++)
            s->kernels->swiglu(s->hb + r * hidden + hidden_part.begin, s->up + r * hidden + hidden_part.begin,
                               hidden_part.end - hidden_part.begin);
        l2c_pool_barrier(s->pool, thread);
        for (size_t r = rows.begin; r < rows.end; r++) quantize(s, &s->hq, own + r, s->hb + r * hidden);
        if (!alone && s->hq.q != NULL) l2c_pool_barrier(s->pool, thread);

        /* x += the network's output (n, dim) */
        linear(s, s->delta, s->hb, &s->hq, own, n, &w->w2, dim_part);
        add(s->x, s->delta, n, dim, dim_part);
        l2c_pool_barrier(s->pool, thread);
    }

    /* xb (n_logits, dim): the last norm, of the rows whose logits are wanted, moved together */
    size_t n_logits = 0;
    for (size_t r = 0; r < n; r++) {
        if (!p->rows[r].want_logits) continue;
        if (alone || n_logits % (size_t)n_threads == (size_t)thread) {
            rmsnorm(s, xb + n_logits * dim, s->x + r * dim, m->final_norm);
            quantize(s, &s->xq, own + n_logits, xb + n_logits * dim);
        }
        n_logits++;
    }
    if (!alone) l2c_pool_barrier(s->pool, thread);

    /* logits (n_logits, vocab_size) */
    if (n_logits > 0)
        linear(s, s->logits, xb, &s->xq, own, n_logits, &m->classifier,
               share((size_t)c->vocab_size, 16, thread, n_threads));
}

l2c_status l2c_forward(l2c_session *session, const l2c_row *rows, size_t n_rows) {
    pass p = {.s = session, .rows = rows, .n = n_rows};
    l2c_pool_run(session->pool, forward_on_thread, &p);
    return p.cancelled ? L2C_CANCELLED : L2C_OK;
}
