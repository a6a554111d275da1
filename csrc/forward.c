/*
 * forward.c - the transformer, top to bottom.
 *
 * Every thread of the pool runs forward_on_thread over the same rows and does its share of each
 * step; a barrier stands wherever a step reads what other threads wrote. Shapes are in comments as
 * (rows, columns); n is the number of rows of this call, each a token at a position of a sequence.
 *
 * Names follow llama2.c and, before it, Meta's own code of LLaMA (Touvron et al. 2023). What run.c calls att is
 * `scores` here, its xb2 `delta`, its hb2 `up`; the heads' outputs, which it puts into xb, have `attn_out`.
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

/* out (n, w->rows) = x (n, w->cols) times w transposed, for the output columns in `part`; x in float32 and, from
 * row `first` of xq on, in int8, as w needs it */
static void linear(const l2c_cpu_session *s, float *out, const float *x, const l2c_quantized *xq, size_t first, size_t n,
                   const l2c_matrix *w, range part) {
    if (part.begin < part.end) l2c_linear(s->kernels, out, x, xq, first, n, w, part.begin, part.end);
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

/* The same of the columns in `part` of a row's heads. Parts begin and end between pairs, though not always
 * between heads. */
static void rotate_heads(const l2c_cpu_session *s, float *row, range part, int32_t position) {
    size_t head_size = (size_t)s->model->config.head_size;
    for (size_t i = part.begin, end; i < part.end; i = end) {
        size_t within = i % head_size;
        end = i - within + head_size < part.end ? i - within + head_size : part.end;
        rotate(s, row + i, within / 2, (within + end - i) / 2, position);
    }
}

/* Where a (sequence, layer, kv_head) has its (n_ctx, head_size) keys or values in a cache. */
static unsigned char *cached(const l2c_cpu_session *s, unsigned char *cache, int32_t sequence, size_t layer, size_t kv_head) {
    const l2c_config *c = &s->model->config;
    size_t index = ((size_t)sequence * (size_t)c->n_layers + layer) * (size_t)c->n_kv_heads + kv_head;
    return cache + index * s->n_ctx * (size_t)c->head_size * s->kv_bytes;
}

/* n numbers into a cache, where number 0 is at `at`. */
static void store(const l2c_cpu_session *s, unsigned char *at, size_t number, const float *from, size_t n) {
    if (s->kv == L2C_KV_FLOAT16) s->kernels->f32_to_f16((uint16_t *)at + number, from, n);
    else memcpy((float *)at + number, from, n * sizeof *from);
}

/* Puts the columns in `part` of a row's keys, rotated, and of its values into the KV cache. */
static void store_kv(const l2c_cpu_session *s, const l2c_row *row, size_t r, size_t layer, range part) {
    size_t head_size = (size_t)s->model->config.head_size;
    size_t kv_dim = (size_t)s->model->config.n_kv_heads * head_size;
    rotate_heads(s, s->k + r * kv_dim, part, row->position);
    for (size_t i = part.begin, end; i < part.end; i = end) {
        size_t head = i / head_size, within = i % head_size;
        end = (head + 1) * head_size < part.end ? (head + 1) * head_size : part.end;
        size_t to = (size_t)row->position * head_size + within;
        store(s, cached(s, s->key_cache, row->sequence, layer, head), to, s->k + r * kv_dim + i, end - i);
        store(s, cached(s, s->value_cache, row->sequence, layer, head), to, s->v + r * kv_dim + i, end - i);
    }
}

/* Queries that attend to the same keys and values: those of neighbouring positions of a sequence, or
 * the heads of one position that share a key head (grouped-query attention). */
typedef struct {
    const float *query;          /* of the first, rotated */
    float *out;                  /* of the first */
    const void *keys, *values;   /* (n_keys + (n - 1) * step, head_size), as the cache has them */
    size_t n, stride;            /* how many, and how far apart in q and attn_out */
    size_t n_keys, step;         /* query i attends to the first n_keys + i * step */
} queries;

/* Keys or values of n positions from t on, in float32: as they lie in the KV cache, or converted into `room`. */
static const float *as_f32(const l2c_cpu_session *s, const void *cache, size_t t, size_t n, float *room) {
    size_t head_size = (size_t)s->model->config.head_size;
    if (s->kv == L2C_KV_FLOAT32) return (const float *)cache + t * head_size;
    s->kernels->f16_to_f32(room, (const uint16_t *)cache + t * head_size, n * head_size);
    return room;
}

/* The positions that the last of the queries attends to, which are the most. */
static size_t most_keys(const queries *a) { return a->n_keys + (a->n - 1) * a->step; }

/* scores (n, n_ctx) = query keys^T, of the positions in `part` */
static void attention_scores(const l2c_cpu_session *s, const queries *a, float *scores, range part, float *kv_f32) {
    size_t head_size = (size_t)s->model->config.head_size;
    size_t some = s->kv == L2C_KV_FLOAT32 ? part.end - part.begin : L2C_SUM_BLOCK;
    for (size_t t = part.begin, n; t < part.end; t += n) {
        n = part.end - t < some ? part.end - t : some;
        s->kernels->matmul(scores + t, s->n_ctx, a->query, a->stride, a->n, as_f32(s, a->keys, t, n, kv_f32),
                           head_size, 0, n);
    }
}

/* scores = softmax(scores / sqrt(head_size)), of query i */
static void attention_weights(const l2c_cpu_session *s, const queries *a, float *scores, size_t i) {
    float *own = scores + i * s->n_ctx;
    s->kernels->divide(own, sqrtf((float)s->model->config.head_size), a->n_keys + i * a->step);
    s->kernels->softmax(own, a->n_keys + i * a->step);
}

/* out (n, head_size) = scores values, or with `more` += that, of the up to L2C_SUM_BLOCK positions from t on */
static void add_values(const l2c_cpu_session *s, const queries *a, float *out, size_t stride, const float *scores,
                       size_t t, int more, float *kv_f32) {
    size_t left = most_keys(a) - t, n = left < L2C_SUM_BLOCK ? left : L2C_SUM_BLOCK;
    s->kernels->weighted_sum(out, stride, scores + t, s->n_ctx, a->n, a->step,
                             as_f32(s, a->values, t, n, kv_f32), (ptrdiff_t)a->n_keys - (ptrdiff_t)t,
                             (size_t)s->model->config.head_size, more);
}

/* out (n, head_size) = softmax(query keys^T / sqrt(head_size)) values; scores and kv_f32 are this thread's */
static void attend(const l2c_cpu_session *s, const queries *a, float *scores, float *kv_f32) {
    attention_scores(s, a, scores, (range){0, most_keys(a)}, kv_f32);
    for (size_t i = 0; i < a->n; i++) attention_weights(s, a, scores, i);
    for (size_t t = 0; t < most_keys(a); t += L2C_SUM_BLOCK)
        add_values(s, a, a->out, a->stride, scores, t, t > 0, kv_f32);
}

/* Asks for the first keys and values, which those of other stories have driven from the processor's cache. It
 * finds by itself what follows them. */
static void prefetch(const l2c_cpu_session *s, const queries *a) {
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

/* The next tile of these heads of all rows, from row *r and head *h on; 0 after the last. */
static int next_tile(const pass *p, size_t layer, range heads, size_t *r, size_t *h, queries *tile) {
    const l2c_cpu_session *s = p->s;
    const l2c_config *c = &s->model->config;
    size_t n_heads = (size_t)c->n_heads, per_kv = n_heads / (size_t)c->n_kv_heads, head_size = (size_t)c->head_size;
    size_t q_dim = n_heads * head_size;
    if (*r == p->n) return 0;
    /* side by side: rows if there are several, else heads */
    size_t n_rows = run_of_rows(p, *r), left = per_kv - *h % per_kv;
    size_t n_heads_of_it = n_rows > 1 ? 1 : left < L2C_TILE ? left : L2C_TILE;
    const l2c_row *row = &p->rows[*r];
    *tile = (queries){
        .query = s->q + *r * q_dim + *h * head_size,
        .out = s->attn_out + *r * q_dim + *h * head_size,
        .keys = cached(s, s->key_cache, row->sequence, layer, *h / per_kv),
        .values = cached(s, s->value_cache, row->sequence, layer, *h / per_kv),
        .n = n_rows > 1 ? n_rows : n_heads_of_it,
        .stride = n_rows > 1 ? q_dim : head_size,
        .n_keys = (size_t)row->position + 1,
        .step = n_rows > 1,
    };
    *h += n_heads_of_it;
    if (*h >= heads.end) {
        *r += n_rows;
        *h = heads.begin;
    }
    return 1;
}

/* attn_out (n, q_dim): each head's weighted sum of the values it attends to. Of the tiles of these heads, each of
 * n_threads threads takes its turns. */
static void attention(const pass *p, size_t layer, range heads, int thread, int n_threads, float *scores,
                      float *kv_f32) {
    size_t r = 0, h = heads.begin, turn = 0;
    queries tile, ready = {0}; /* one is worked on while the next one's memory is on its way */
    while (next_tile(p, layer, heads, &r, &h, &tile)) {
        if (turn++ % (size_t)n_threads != (size_t)thread) continue;
        prefetch(p->s, &tile);
        if (ready.n > 0) attend(p->s, &ready, scores, kv_f32);
        ready = tile;
    }
    if (ready.n > 0) attend(p->s, &ready, scores, kv_f32);
}

/* The tiles of all heads, where they are fewer than threads and long enough to be shared; else 0. */
static size_t tiles_to_share(const pass *p, int n_threads) {
    enum { WORTH = 4 * L2C_SUM_BLOCK }; /* positions; below, threads would wait longer than they work */
    range heads = {0, (size_t)p->s->model->config.n_heads};
    size_t r = 0, h = 0, n = 0, longest = 0;
    for (queries tile; next_tile(p, 0, heads, &r, &h, &tile); n++) {
        if (n + 1 == (size_t)n_threads) return 0;
        longest = most_keys(&tile) > longest ? most_keys(&tile) : longest;
    }
    return longest < WORTH || p->s->kernels == &l2c_kernels_runq ? 0 : n; /* runq.c's sums have no blocks */
}

/* The same where there are n_tiles, fewer than threads: those whose number is a tile's, modulo n_tiles, share
 * its positions in whole blocks, then add the blocks' sums, each for some of the columns. */
static void attention_by_blocks(const pass *p, size_t layer, size_t n_tiles, int thread, int n_threads, float *kv_f32) {
    const l2c_cpu_session *s = p->s;
    size_t head_size = (size_t)s->model->config.head_size, n_ctx = s->n_ctx;
    size_t number = (size_t)thread % n_tiles, r = 0, h = 0;
    int member = thread / (int)n_tiles, members = (n_threads - (int)number - 1) / (int)n_tiles + 1;
    range heads = {0, (size_t)s->model->config.n_heads};
    queries a;
    for (size_t i = 0; i <= number; i++) next_tile(p, layer, heads, &r, &h, &a);
    float *scores = s->scores + number * L2C_TILE * n_ctx;
    float *sums = s->value_sums + number * (n_ctx + L2C_SUM_BLOCK) * ((head_size + 15) / 16); /* a block: (n, head_size) */
    size_t block_size = a.n * head_size;
    range part = share(most_keys(&a), L2C_SUM_BLOCK, member, members), columns = share(head_size, 16, member, members);

    attention_scores(s, &a, scores, part, kv_f32);
    l2c_pool_barrier(s->pool, thread);
    for (size_t i = (size_t)member; i < a.n; i += (size_t)members) attention_weights(s, &a, scores, i);
    l2c_pool_barrier(s->pool, thread);
    for (size_t t = part.begin; t < part.end; t += L2C_SUM_BLOCK)
        add_values(s, &a, sums + t / L2C_SUM_BLOCK * block_size, head_size, scores, t, 0, kv_f32);
    l2c_pool_barrier(s->pool, thread);
    for (size_t i = 0; i < a.n; i++) {
        float *out = a.out + i * a.stride + columns.begin;
        const float *sum = sums + i * head_size + columns.begin;
        size_t n = columns.end - columns.begin, n_keys = a.n_keys + i * a.step;
        memcpy(out, sum, n * sizeof *out);
        for (size_t t = L2C_SUM_BLOCK; t < n_keys; t += L2C_SUM_BLOCK) s->kernels->add(out, sum += block_size, n);
    }
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
    size_t n_shared = own_heads ? 0 : tiles_to_share(p, n_threads);
    float *scores = s->scores + (size_t)thread * L2C_TILE * s->n_ctx;
    float *kv_f32 = s->kv_f32 == NULL ? NULL : s->kv_f32 + (size_t)thread * L2C_SUM_BLOCK * head_size;

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
        for (size_t r = 0; r < n; r++) {
            rotate_heads(s, s->q + r * q_dim, q_part, p->rows[r].position);
            store_kv(s, &p->rows[r], r, l, kv_part);
        }
        if (thread == 0) p->cancelled = l2c_session_stopping(s->session);

        if (own_heads) {
            size_t heads = (size_t)c->n_heads / (size_t)n_threads;
            attention(p, l, (range){heads * (size_t)thread, heads * ((size_t)thread + 1)}, 0, 1, scores, kv_f32);
        } else {
            l2c_pool_barrier(s->pool, thread);
            if (n_shared > 0) attention_by_blocks(p, l, n_shared, thread, n_threads, kv_f32);
            else attention(p, l, (range){0, (size_t)c->n_heads}, thread, n_threads, scores, kv_f32);
        }
        l2c_pool_barrier(s->pool, thread);
        if (p->cancelled) return;
        for (size_t r = rows.begin; r < rows.end; r++) quantize(s, &s->aq, own + r, s->attn_out + r * q_dim);
        if (!alone && s->aq.q != NULL) l2c_pool_barrier(s->pool, thread);

        /* x += attention's output (n, dim) */
        linear(s, s->delta, s->attn_out, &s->aq, own, n, &w->wo, dim_part);
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
