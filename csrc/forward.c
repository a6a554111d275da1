/*
 * forward.c - the transformer, top to bottom.
 *
 * Every thread of the pool runs forward_on_thread over the same rows and does its share of each
 * step; a barrier stands wherever a step reads what other threads wrote. Shapes are in comments as
 * (rows, columns); n is the number of rows of this call, each a token at a position of a sequence.
 * Begin with forward_on_thread at the end; what stands before it are its steps, in order of use.
 *
 * Names are those of llama2.c's run.c and, before it, of Meta's own code of LLaMA (Touvron et al. 2023), except:
 * att -> scores, xb as the heads' output -> attn_out, xb2 -> delta, hb2 -> up, pos -> position, rms_att_weight ->
 * attention_norm, rms_ffn_weight -> ffn_norm, rms_final_weight -> final_norm, wcls -> classifier,
 * token_embedding_table -> token_embedding.
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

enum { COLUMN_STEP = 16 }; /* a grain of columns: see forward_on_thread */

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

/* out (n, w->rows) = x (n, w->cols) w^T, for the output columns in `part`. A float32 matrix reads x; a quantized one
 * reads rows [first, first + n) of xq, which are the same rows in int8. */
static void linear(const l2c_cpu_session *s, float *out, const float *x, const l2c_quantized *xq, size_t first, size_t n,
                   const l2c_matrix *w, range part) {
    if (part.begin < part.end) l2c_linear(s->kernels, out, x, xq, first, n, w, part.begin, part.end);
}

/* RoPE (Su et al. 2021): turns each neighbouring pair of a head by position * frequency; pairs
 * [begin, end) of one head. */
static void rotate(const l2c_cpu_session *s, float *pairs, size_t begin, size_t end, int32_t position) {
    const float *cosine = l2c_rope_at(s->model, position);
    const float *sine = cosine + L2C_ROPE_BLOCK * ((size_t)s->model->config.head_size / 2);
    s->kernels->rotate(pairs, cosine + begin, sine + begin, end - begin);
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

/* Writes n floats at `at` + index, in the cache's type. */
static void store(const l2c_cpu_session *s, unsigned char *at, size_t index, const float *from, size_t n) {
    if (s->kv == L2C_KV_FLOAT16) s->kernels->f32_to_f16((uint16_t *)at + index, from, n);
    else memcpy((float *)at + index, from, n * sizeof *from);
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
} query_tile;

/* Keys or values of n positions from t on, in float32: as they lie in the KV cache, or converted into `scratch`. */
static const float *as_f32(const l2c_cpu_session *s, const void *cache, size_t t, size_t n, float *scratch) {
    size_t head_size = (size_t)s->model->config.head_size;
    if (s->kv == L2C_KV_FLOAT32) return (const float *)cache + t * head_size;
    s->kernels->f16_to_f32(scratch, (const uint16_t *)cache + t * head_size, n * head_size);
    return scratch;
}

/* The positions that the last of the queries attends to, which are the most. */
static size_t max_keys(const query_tile *tile) { return tile->n_keys + (tile->n - 1) * tile->step; }

/* scores (n, n_ctx) = query keys^T, of the positions in `part` */
static void attention_scores(const l2c_cpu_session *s, const query_tile *tile, float *scores, range part,
                             float *kv_f32) {
    size_t head_size = (size_t)s->model->config.head_size;
    size_t chunk = s->kv == L2C_KV_FLOAT32 ? part.end - part.begin : L2C_SUM_BLOCK;
    for (size_t t = part.begin, n; t < part.end; t += n) {
        n = part.end - t < chunk ? part.end - t : chunk;
        s->kernels->matmul(scores + t, s->n_ctx, tile->query, tile->stride, tile->n,
                           as_f32(s, tile->keys, t, n, kv_f32), head_size, 0, n);
    }
}

/* scores = softmax(scores / sqrt(head_size)), of query i */
static void attention_weights(const l2c_cpu_session *s, const query_tile *tile, float *scores, size_t i) {
    float *row = scores + i * s->n_ctx;
    s->kernels->divide(row, sqrtf((float)s->model->config.head_size), tile->n_keys + i * tile->step);
    s->kernels->softmax(row, tile->n_keys + i * tile->step);
}

/* out (n, head_size) = scores values, or with `accumulate` += that, of the up to L2C_SUM_BLOCK positions from t on */
static void add_values(const l2c_cpu_session *s, const query_tile *tile, float *out, size_t stride, const float *scores,
                       size_t t, int accumulate, float *kv_f32) {
    size_t left = max_keys(tile) - t, n = left < L2C_SUM_BLOCK ? left : L2C_SUM_BLOCK;
    s->kernels->weighted_sum(out, stride, scores + t, s->n_ctx, tile->n, tile->step,
                             as_f32(s, tile->values, t, n, kv_f32), (ptrdiff_t)tile->n_keys - (ptrdiff_t)t,
                             (size_t)s->model->config.head_size, accumulate);
}

/* out (n, head_size) = softmax(query keys^T / sqrt(head_size)) values; scores and kv_f32 are this thread's */
static void attend(const l2c_cpu_session *s, const query_tile *tile, float *scores, float *kv_f32) {
    attention_scores(s, tile, scores, (range){0, max_keys(tile)}, kv_f32);
    for (size_t i = 0; i < tile->n; i++) attention_weights(s, tile, scores, i);
    for (size_t t = 0; t < max_keys(tile); t += L2C_SUM_BLOCK)
        add_values(s, tile, tile->out, tile->stride, scores, t, t > 0, kv_f32);
}

/* Prefetches the first 8 KiB of keys and of values, which other sequences have evicted. The hardware prefetcher
 * follows from there. */
static void prefetch(const l2c_cpu_session *s, const query_tile *tile) {
    enum { LINE = 64, MAX_BYTES = 8192 };
    size_t bytes = tile->n_keys * (size_t)s->model->config.head_size * s->kv_bytes;
    for (size_t i = 0; i < bytes && i < MAX_BYTES; i += LINE) {
        L2C_PREFETCH((const char *)tile->keys + i);
        L2C_PREFETCH((const char *)tile->values + i);
    }
}

/* How many rows from r on are of one sequence, at most L2C_TILE; session.c has checked that their positions are
 * consecutive. */
static size_t rows_in_tile(const pass *p, size_t r) {
    size_t n = 1;
    while (n < L2C_TILE && r + n < p->n && p->rows[r + n].sequence == p->rows[r].sequence) n++;
    return n;
}

/* Writes the tile at row *r, head *h and moves them past it; returns 0 when there is none left. `heads` begins and ends
 * with the heads of a key head. */
static int next_tile(const pass *p, size_t layer, range heads, size_t *r, size_t *h, query_tile *tile) {
    const l2c_cpu_session *s = p->s;
    const l2c_config *c = &s->model->config;
    size_t n_heads = (size_t)c->n_heads, per_kv = n_heads / (size_t)c->n_kv_heads, head_size = (size_t)c->head_size;
    size_t q_dim = n_heads * head_size;
    if (*r == p->n) return 0;
    /* side by side: rows if there are several, else heads */
    size_t n_rows = rows_in_tile(p, *r), left = per_kv - *h % per_kv;
    size_t n_heads_of_it = n_rows > 1 ? 1 : left < L2C_TILE ? left : L2C_TILE;
    const l2c_row *row = &p->rows[*r];
    *tile = (query_tile){
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

/* attn_out (n, q_dim): each head's weighted sum of the values it attends to. Tiles go to threads in turn; (0, 1) takes
 * all of them. */
static void attention(const pass *p, size_t layer, range heads, int thread, int n_threads, float *scores,
                      float *kv_f32) {
    size_t r = 0, h = heads.begin, turn = 0;
    query_tile tile, ready = {0}; /* one is worked on while the next one's memory is on its way */
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
    enum { MIN_SHARED_KEYS = 4 * L2C_SUM_BLOCK }; /* positions; below, threads would wait longer than they work */
    range heads = {0, (size_t)p->s->model->config.n_heads};
    size_t r = 0, h = 0, n = 0, longest = 0;
    for (query_tile tile; next_tile(p, 0, heads, &r, &h, &tile); n++) {
        if (n + 1 == (size_t)n_threads) return 0;
        longest = max_keys(&tile) > longest ? max_keys(&tile) : longest;
    }
    return longest < MIN_SHARED_KEYS || p->s->kernels == &l2c_kernels_runq ? 0 : n; /* runq.c's sums have no blocks */
}

/* `attention` where tiles are fewer than threads: thread i works on tile i % n_tiles, together with the other threads
 * of that tile. They split its positions by whole blocks, and then its columns to add the blocks' sums. */
static void attention_by_blocks(const pass *p, size_t layer, size_t n_tiles, int thread, int n_threads, float *kv_f32) {
    const l2c_cpu_session *s = p->s;
    size_t head_size = (size_t)s->model->config.head_size, n_ctx = s->n_ctx;
    size_t tile_index = (size_t)thread % n_tiles, r = 0, h = 0;
    int member = thread / (int)n_tiles, members = (n_threads - (int)tile_index - 1) / (int)n_tiles + 1;
    range heads = {0, (size_t)s->model->config.n_heads};
    query_tile tile;
    for (size_t i = 0; i <= tile_index; i++) next_tile(p, layer, heads, &r, &h, &tile);
    float *scores = s->scores + tile_index * L2C_TILE * n_ctx;
    float *sums = s->value_sums + tile_index * (size_t)l2c_tile_sums(n_ctx, head_size); /* a block: (n, head_size) */
    size_t block_size = tile.n * head_size;
    range part = share(max_keys(&tile), L2C_SUM_BLOCK, member, members);
    range columns = share(head_size, COLUMN_STEP, member, members);

    attention_scores(s, &tile, scores, part, kv_f32);
    l2c_pool_barrier(s->pool, thread);
    for (size_t i = (size_t)member; i < tile.n; i += (size_t)members) attention_weights(s, &tile, scores, i);
    l2c_pool_barrier(s->pool, thread);
    for (size_t t = part.begin; t < part.end; t += L2C_SUM_BLOCK)
        add_values(s, &tile, sums + t / L2C_SUM_BLOCK * block_size, head_size, scores, t, 0, kv_f32);
    l2c_pool_barrier(s->pool, thread);
    for (size_t i = 0; i < tile.n; i++) {
        float *out = tile.out + i * tile.stride + columns.begin;
        const float *sum = sums + i * head_size + columns.begin;
        size_t n = columns.end - columns.begin, n_keys = tile.n_keys + i * tile.step;
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

    /* This thread's columns, in steps of 16: a cache line of floats, so that no two threads write to one, and a packed
     * block of weight rows (L2C_BLOCK_ROWS). */
    range dim_part = share(dim, COLUMN_STEP, thread, n_threads);
    range q_part = share(q_dim, COLUMN_STEP, thread, n_threads);
    range kv_part = share(n_kv_heads * head_size, COLUMN_STEP, thread, n_threads);
    range hidden_part = share(hidden, COLUMN_STEP, thread, n_threads);

    /* Where these parts are whole heads with their keys, a thread attends with its own heads and need not
     * wait for the others'. */
    int own_heads = n_kv_heads % (size_t)n_threads == 0 && head_size % COLUMN_STEP == 0;
    size_t n_shared = own_heads ? 0 : tiles_to_share(p, n_threads);
    float *scores = s->scores + (size_t)thread * L2C_TILE * s->n_ctx;
    float *kv_f32 = s->kv_f32 == NULL ? NULL : s->kv_f32 + (size_t)thread * L2C_SUM_BLOCK * head_size;

    /* Steps over whole rows (norms, quantizing) are split by rows. A single row is done by every thread, each into its
     * own row (`first`) of xb, xq, aq and hq: repeating that little work costs less than a barrier. */
    int alone = n == 1;
    size_t first = alone ? (size_t)thread : 0;
    float *xb = s->xb + first * dim;
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
            quantize(s, &s->xq, first + r, xb + r * dim);
        }
        if (!alone) l2c_pool_barrier(s->pool, thread);

        /* q (n, q_dim), k and v (n, n_kv_heads * head_size); keys and values of all
         * rows go into the cache before any row looks back at them */
        linear(s, s->q, xb, &s->xq, first, n, &w->wq, q_part);
        linear(s, s->k, xb, &s->xq, first, n, &w->wk, kv_part);
        linear(s, s->v, xb, &s->xq, first, n, &w->wv, kv_part);
        for (size_t r = 0; r < n; r++) {
            rotate_heads(s, s->q + r * q_dim, q_part, p->rows[r].position);
            store_kv(s, &p->rows[r], r, l, kv_part);
        }
        if (thread == 0) p->cancelled = l2c_session_stopping(s->session); /* all see it after the barrier below */

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
        for (size_t r = rows.begin; r < rows.end; r++) quantize(s, &s->aq, first + r, s->attn_out + r * q_dim);
        if (!alone && s->aq.q != NULL) l2c_pool_barrier(s->pool, thread);

        /* x += attention's output (n, dim) */
        linear(s, s->delta, s->attn_out, &s->aq, first, n, &w->wo, dim_part);
        add(s, s->x, s->delta, n, dim_part);
        l2c_pool_barrier(s->pool, thread);

        /* xb (n, dim): what the feed-forward network reads */
        for (size_t r = rows.begin; r < rows.end; r++) {
            rmsnorm(s, xb + r * dim, s->x + r * dim, w->ffn_norm);
            quantize(s, &s->xq, first + r, xb + r * dim);
        }
        if (!alone) l2c_pool_barrier(s->pool, thread);

        /* SwiGLU (Shazeer 2020): hb (n, hidden_dim) = silu(xb w1^T) * (xb w3^T) */
        linear(s, s->hb, xb, &s->xq, first, n, &w->w1, hidden_part);
        linear(s, s->up, xb, &s->xq, first, n, &w->w3, hidden_part);
        for (size_t r = 0; r < n; r++)
            s->kernels->swiglu(s->hb + r * hidden + hidden_part.begin, s->up + r * hidden + hidden_part.begin,
                               hidden_part.end - hidden_part.begin);
        l2c_pool_barrier(s->pool, thread);
        for (size_t r = rows.begin; r < rows.end; r++) quantize(s, &s->hq, first + r, s->hb + r * hidden);
        if (!alone && s->hq.q != NULL) l2c_pool_barrier(s->pool, thread);

        /* x += the network's output (n, dim) */
        linear(s, s->delta, s->hb, &s->hq, first, n, &w->w2, dim_part);
        add(s, s->x, s->delta, n, dim_part);
        l2c_pool_barrier(s->pool, thread);
    }

    /* xb (n_logits, dim): the final norm of the rows that want logits, packed to the front */
    size_t n_logits = 0;
    for (size_t r = 0; r < n; r++) {
        if (!p->rows[r].want_logits) continue;
        if (alone || n_logits % (size_t)n_threads == (size_t)thread) {
            rmsnorm(s, xb + n_logits * dim, s->x + r * dim, m->final_norm);
            quantize(s, &s->xq, first + n_logits, xb + n_logits * dim);
        }
        n_logits++;
    }
    if (!alone) l2c_pool_barrier(s->pool, thread);

    /* logits (n_logits, vocab_size) */
    if (n_logits > 0)
        linear(s, s->logits, xb, &s->xq, first, n_logits, &m->classifier,
               share((size_t)c->vocab_size, COLUMN_STEP, thread, n_threads));
}

l2c_status l2c_forward(l2c_cpu_session *s, const l2c_row *rows, size_t n_rows) {
    pass p = {.s = s, .rows = rows, .n = n_rows};
    l2c_pool_run(s->pool, forward_on_thread, &p);
    return p.cancelled ? L2C_CANCELLED : L2C_OK;
}
