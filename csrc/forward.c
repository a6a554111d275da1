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

#include "cpu_session.h"

typedef struct {
    l2c_cpu_session *s;
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
static void rmsnorm(const l2c_cpu_session *s, float *out, const float *x, const float *weight) {
    size_t dim = (size_t)s->model->config.dim;
    float scale = 1.0f / sqrtf(s->kernels->dot(x, x, dim) / (float)dim + s->model->config.norm_eps);
    s->kernels->norm(out, x, weight, scale, dim);
}

/* Where the weights are int8 or int4, a matrix product wants its input rows in int8 as well. */
static void quantize(const l2c_cpu_session *s, const l2c_quantized *to, size_t row, const float *x) {
    if (to->q != NULL) s->kernels->quantize(to, row, x, to->cols);
}

/* out (n, w->rows) = x (n, w->cols) times w transposed, for the output columns in `part`. Of many rows, 64 at
 * a time go through as many weights as stay in a core's cache beside them: all rows at once would come from
 * farther away, once for every few weights. */
static void linear_f32(const l2c_cpu_session *s, float *out, const float *x, size_t n, const l2c_matrix *w, range part) {
    enum { TILE_ROWS = 64, TILE_WEIGHTS = 32768 };
    size_t columns = n <= TILE_ROWS ? part.end - part.begin : TILE_WEIGHTS / w->cols / 16 * 16;
    if (columns < 16) columns = 16;
    for (size_t i = part.begin, end; i < part.end; i = end) {
        end = part.end - i < columns ? part.end : i + columns;
        for (size_t r = 0, some; r < n; r += some) {
            some = n - r < TILE_ROWS ? n - r : TILE_ROWS;
            s->kernels->matmul(out + r * w->rows, w->rows, x + r * w->cols, w->cols, some, w->data, w->cols, i, end);
        }
    }
}

/* The same for any type of weights: x in float32 and, from row `first` of xq on, in int8, as w needs it */
static void linear(const l2c_cpu_session *s, float *out, const float *x, const l2c_quantized *xq, size_t first, size_t n,
                   const l2c_matrix *w, range part) {
    const l2c_kernels *k = s->kernels;
    if (part.begin == part.end) return;
    if (w->type == L2C_WEIGHTS_F32)
        linear_f32(s, out, x, n, w, part);
    else if (w->type == L2C_WEIGHTS_Q4)
        k->matmul_q4(out, w->rows, xq, first, n, w, part.begin, part.end);
    else if (w->type == L2C_WEIGHTS_Q4_1)
        k->matmul_q4_1(out, w->rows, xq, first, n, w, part.begin, part.end);
    else
        k->matmul_q8(out, w->rows, xq, first, n, w, part.begin, part.end);
}

/* RoPE (Su et al. 2021): turns each neighbouring pair of a head by position * frequency; pairs
 * [begin, end) of one head. */
static void rotate(const l2c_cpu_session *s, float *pairs, size_t begin, size_t end, int32_t position) {
    size_t per_head = (size_t)s->model->config.head_size / 2, row = (size_t)position % L2C_ROPE_BLOCK;
    const float *cosine = atomic_load_explicit(&s->model->rope[position / L2C_ROPE_BLOCK], memory_order_relaxed);
    const float *sine = cosine + L2C_ROPE_BLOCK * per_head;
    size_t at = row * per_head + begin;
    s->kernels->rotate(pairs, cosine + at, sine + at, end - begin);
}

/* Where a (sequence, layer, kv_head) has its (n_ctx, head_size) keys or values in a cache. */
static unsigned char *cached(const l2c_cpu_session *s, unsigned char *cache, int32_t sequence, size_t layer, size_t kv_head) {
    const l2c_config *c = &s->model->config;
    size_t index = ((size_t)sequence * (size_t)c->n_layers + layer) * (size_t)c->n_kv_heads + kv_head;
    return cache + index * s->n_ctx * (size_t)c->head_size * s->kv_bytes;
}

/* n numbers into a cache, where number 0 is at `at`. */
static void store(const l2c_cpu_session *s, unsigned char *at, size_t number, const float *from, size_t n) {
    if (s->kv == L2C_KV_FLOAT16) s->kernels->narrow((uint16_t *)at + number, from, n);
    else memcpy((float *)at + number, from, n * sizeof *from);
}

/* Puts the columns in `part` of a row's keys, rotated, and of its values into the KV cache. Parts
 * begin and end between pairs, though not always between heads. */
static void remember(const l2c_cpu_session *s, const l2c_row *row, size_t r, size_t layer, range part) {
    size_t head_size = (size_t)s->model->config.head_size;
    size_t kv_dim = (size_t)s->model->config.n_kv_heads * head_size;
    for (size_t i = part.begin, end; i < part.end; i = end) {
        size_t head = i / head_size, within = i % head_size;
        end = (head + 1) * head_size < part.end ? (head + 1) * head_size : part.end;
        size_t to = (size_t)row->position * head_size + within;
        float *key = s->k + r * kv_dim + i;
        rotate(s, key, within / 2, (within + end - i) / 2, row->position);
        store(s, cached(s, s->key_cache, row->sequence, layer, head), to, key, end - i);
        store(s, cached(s, s->value_cache, row->sequence, layer, head), to, s->v + r * kv_dim + i, end - i);
    }
}

/* Queries that attend to the same keys and values: those of neighbouring positions of a sequence, or
 * the heads of one position that share a key head (grouped-query attention). */
typedef struct {
    float *query, *out;          /* of the first */
    const void *keys, *values;   /* (n_keys + (n - 1) * step, head_size), as the cache has them */
    size_t n, stride;            /* how many, and how far apart in q and att */
    size_t n_keys, step;         /* query i attends to the first n_keys + i * step */
    int32_t position;            /* and is at this one + i * step */
} queries;

/* scores (n, n_ctx) = query keys^T, of a float16 cache: L2C_WIDE positions at a time become float32. */
static void score_half(const l2c_cpu_session *s, const queries *a, float *scores, float *wide) {
    size_t head_size = (size_t)s->model->config.head_size, most = a->n_keys + (a->n - 1) * a->step;
    for (size_t t = 0, n; t < most; t += n) {
        n = most - t < L2C_WIDE ? most - t : L2C_WIDE;
        s->kernels->widen(wide, (const uint16_t *)a->keys + t * head_size, n * head_size);
        s->kernels->matmul(scores + t, s->n_ctx, a->query, a->stride, a->n, wide, head_size, 0, n);
    }
}

/* out (n, head_size) = scores values, likewise: the sums of L2C_WIDE positions each are added in their order. */
static void mix_half(const l2c_cpu_session *s, const queries *a, const float *scores, float *wide) {
    size_t head_size = (size_t)s->model->config.head_size, most = a->n_keys + (a->n - 1) * a->step;
    float *sum = wide + L2C_WIDE * head_size;
    for (size_t t = 0; t < most; t += L2C_WIDE) {
        size_t n = most - t < L2C_WIDE ? most - t : L2C_WIDE;
        s->kernels->widen(wide, (const uint16_t *)a->values + t * head_size, n * head_size);
        for (size_t i = 0; i < a->n; i++) {
            size_t keys = a->n_keys + i * a->step; /* of this query, of which these are the ones from t on */
            if (keys <= t) continue;
            float *out = t == 0 ? a->out + i * a->stride : sum;
            s->kernels->mix(out, head_size, scores + i * s->n_ctx + t, 0, 1, 0, wide, keys - t < n ? keys - t : n,
                            head_size);
            if (t > 0) s->kernels->add(a->out + i * a->stride, sum, head_size);
        }
    }
}

/* out (n, head_size) = softmax(query keys^T / sqrt(head_size)) values; scores and wide are this thread's */
static void attend(const l2c_cpu_session *s, const queries *a, float *scores, float *wide) {
    const l2c_kernels *kernels = s->kernels;
    size_t head_size = (size_t)s->model->config.head_size, n_ctx = s->n_ctx;
    int half = s->kv == L2C_KV_FLOAT16;
    for (size_t i = 0; i < a->n; i++)
        rotate(s, a->query + i * a->stride, 0, head_size / 2, a->position + (int32_t)(i * a->step));
    if (half) score_half(s, a, scores, wide);
    else kernels->matmul(scores, n_ctx, a->query, a->stride, a->n, a->keys, head_size, 0, a->n_keys + (a->n - 1) * a->step);
    for (size_t i = 0; i < a->n; i++) {
        kernels->divide(scores + i * n_ctx, sqrtf((float)head_size), a->n_keys + i * a->step);
        kernels->softmax(scores + i * n_ctx, a->n_keys + i * a->step);
    }
    if (half) mix_half(s, a, scores, wide);
    else kernels->mix(a->out, a->stride, scores, n_ctx, a->n, a->step, a->values, a->n_keys, head_size);
}

/* Asks for the first keys and values, which another story's since then have driven from the cache. What
 * follows them the processor finds by itself. */
static void fetch(const l2c_cpu_session *s, const queries *a) {
    enum { LINE = 64, MOST = 8192 };
    size_t bytes = a->n_keys * (size_t)s->model->config.head_size * s->kv_bytes;
    for (size_t i = 0; i < bytes && i < MOST; i += LINE) {
        L2C_PREFETCH((const char *)a->keys + i);
        L2C_PREFETCH((const char *)a->values + i);
    }
}

/* How many rows from row r on are neighbouring positions of one sequence, up to a tile. */
static size_t run_of_rows(const pass *p, size_t r) {
    size_t n = 1;
    while (n < L2C_TILE && r + n < p->n && p->rows[r + n].sequence == p->rows[r].sequence) n++;
    return n;
}

/* att (n, q_dim): each head's mixture of the values it attends to. Of these heads
 * of all rows, each of n_threads threads takes its turns. */
static void attention(const pass *p, size_t layer, range heads, int thread, int n_threads, float *scores,
                      float *wide) {
    const l2c_cpu_session *s = p->s;
    const l2c_config *c = &s->model->config;
    size_t n_heads = (size_t)c->n_heads, per_kv = n_heads / (size_t)c->n_kv_heads, head_size = (size_t)c->head_size;
    size_t turn = 0, q_dim = n_heads * head_size;
    queries ready = {0}; /* one is worked on while the next one's memory is on its way */
    for (size_t r = 0, n_rows; r < p->n; r += n_rows) {
        n_rows = run_of_rows(p, r);
        for (size_t h = heads.begin, n_queries; h < heads.end; h += n_queries) {
            /* side by side: rows if there are several, else heads */
            size_t left = per_kv - h % per_kv;
            n_queries = n_rows > 1 ? 1 : left < L2C_TILE ? left : L2C_TILE;
            if (turn++ % (size_t)n_threads != (size_t)thread) continue;
            const l2c_row *row = &p->rows[r];
            queries tile = {
                .query = s->q + r * q_dim + h * head_size,
                .out = s->att + r * q_dim + h * head_size,
                .keys = cached(s, s->key_cache, row->sequence, layer, h / per_kv),
                .values = cached(s, s->value_cache, row->sequence, layer, h / per_kv),
                .n = n_rows > 1 ? n_rows : n_queries,
                .stride = n_rows > 1 ? q_dim : head_size,
                .n_keys = (size_t)row->position + 1,
                .step = n_rows > 1,
                .position = row->position,
            };
            fetch(s, &tile);
            if (ready.n > 0) attend(s, &ready, scores, wide);
            ready = tile;
        }
    }
    if (ready.n > 0) attend(s, &ready, scores, wide);
}

/* x += delta, both (n, dim), for the columns in `part` */
static void add(const l2c_cpu_session *s, float *x, const float *delta, size_t n, range part) {
    size_t dim = (size_t)s->model->config.dim;
    for (size_t i = part.begin; i < part.begin + n * dim; i += dim)
        s->kernels->add(x + i, delta + i, part.end - part.begin);
}

/* ---- The pass --------------------------------------------------------------------------------- */

static void forward_on_thread(void *arg, int thread, int n_threads) {
    pass *p = arg;
    l2c_cpu_session *s = p->s;
    const l2c_model *m = s->model;
    const l2c_config *c = &m->config;
    size_t n = p->n, dim = (size_t)c->dim, hidden = (size_t)c->hidden_dim;
    size_t n_kv_heads = (size_t)c->n_kv_heads, head_size = (size_t)c->head_size;
    size_t q_dim = (size_t)c->n_heads * head_size; /* which is dim in most models */

    /* A thread's columns of a (., dim), (., q_dim), (., kv_dim), (., hidden_dim) product, in steps of a
     * cache line, so that no two threads write the same one, and of a packed block of rows. */
    range dim_part = share(dim, 16, thread, n_threads);
    range q_part = share(q_dim, 16, thread, n_threads);
    range kv_part = share(n_kv_heads * head_size, 16, thread, n_threads);
    range hidden_part = share(hidden, 16, thread, n_threads);

    /* Where these parts are whole heads with their keys, a thread attends with its own heads and need not
     * wait for the others'. */
    int own_heads = n_kv_heads % (size_t)n_threads == 0 && head_size % 16 == 0;
    float *scores = s->scores + (size_t)thread * L2C_TILE * s->n_ctx;
    float *wide = s->wide == NULL ? NULL : s->wide + (size_t)thread * (L2C_WIDE + 1) * head_size;

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
         * rows go into the cache before any row looks back at them */
        linear(s, s->q, xb, &s->xq, own, n, &w->wq, q_part);
        linear(s, s->k, xb, &s->xq, own, n, &w->wk, kv_part);
        linear(s, s->v, xb, &s->xq, own, n, &w->wv, kv_part);
        for (size_t r = 0; r < n; r++) remember(s, &p->rows[r], r, l, kv_part);
        if (thread == 0) p->cancelled = l2c_session_stopping(s->session);

        if (own_heads) {
            size_t heads = (size_t)c->n_heads / (size_t)n_threads;
            attention(p, l, (range){heads * (size_t)thread, heads * ((size_t)thread + 1)}, 0, 1, scores, wide);
        } else {
            l2c_pool_barrier(s->pool, thread);
            attention(p, l, (range){0, (size_t)c->n_heads}, thread, n_threads, scores, wide);
        }
        l2c_pool_barrier(s->pool, thread);
        if (p->cancelled) return;
        for (size_t r = rows.begin; r < rows.end; r++) quantize(s, &s->aq, own + r, s->att + r * q_dim);
        if (!alone && s->aq.q != NULL) l2c_pool_barrier(s->pool, thread);

        /* x += attention's output (n, dim) */
        linear(s, s->delta, s->att, &s->aq, own, n, &w->wo, dim_part);
        add(s, s->x, s->delta, n, dim_part);
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
        add(s, s->x, s->delta, n, dim_part);
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

l2c_status l2c_forward(l2c_cpu_session *s, const l2c_row *rows, size_t n_rows) {
    pass p = {.s = s, .rows = rows, .n = n_rows};
    l2c_pool_run(s->pool, forward_on_thread, &p);
    return p.cancelled ? L2C_CANCELLED : L2C_OK;
}
