/*
 * attention.c - attention (Vaswani et al. 2017): out = softmax(query keys^T / sqrt(head_size)) values, for every head
 * of every row.
 *
 * The work is cut into tiles: queries that go through the same keys and values side by side, so that these are read
 * once for all of them. Values are summed in blocks of L2C_SUM_BLOCK positions (kernels.h), so a tile can go to one
 * thread, or its blocks to several, with the same bits.
 */
#include <math.h>
#include <string.h>

#include "forward.h"

/* ---- Tiles ------------------------------------------------------------------------------------------ */

/* Queries that attend to the same keys and values: those of neighbouring positions of a sequence, or
 * the heads of one position that share a key head (grouped-query attention). */
typedef struct {
    const float *query;          /* of the first, rotated */
    float *out;                  /* of the first */
    const void *keys, *values;   /* (n_keys + (n - 1) * step, head_size), as the cache has them */
    size_t n, stride;            /* how many, and how far apart in q and attn_out */
    size_t n_keys, step;         /* query i attends to the first n_keys + i * step */
    size_t layer;
} query_tile;

/* The positions that the last of the queries attends to, which are the most. */
static size_t max_keys(const query_tile *tile) { return tile->n_keys + (tile->n - 1) * tile->step; }

/* How many rows from r on are of one sequence, at most L2C_TILE; session.c has checked that their positions are
 * consecutive. */
static size_t rows_in_tile(const pass *p, size_t r) {
    size_t n = 1;
    while (n < L2C_TILE && r + n < p->n && p->rows[r + n].sequence == p->rows[r].sequence) n++;
    return n;
}

/* Writes the tile at row *r, head *h and moves them past it; returns 0 when there is none left. `heads` does not split
 * the heads that share a key head. */
static int next_tile(const pass *p, size_t layer, range heads, size_t *r, size_t *h, query_tile *tile) {
    const l2c_cpu_session *s = p->s;
    const l2c_config *c = &s->model->config;
    size_t n_heads = (size_t)c->n_heads, per_kv = n_heads / (size_t)c->n_kv_heads, head_size = (size_t)c->head_size;
    size_t q_dim = n_heads * head_size;
    if (*r == p->n) return 0;
    size_t n_rows = rows_in_tile(p, *r), left = per_kv - *h % per_kv;
    size_t by_rows = n_rows > 1; /* side by side: rows if there are several, else heads */
    size_t tile_heads = by_rows ? 1 : left < L2C_TILE ? left : L2C_TILE;
    const l2c_row *row = &p->rows[*r];
    *tile = (query_tile){
        .query = s->q + *r * q_dim + *h * head_size,
        .out = s->attn_out + *r * q_dim + *h * head_size,
        .keys = cached(s, s->key_cache, row->sequence, layer, *h / per_kv),
        .values = cached(s, s->value_cache, row->sequence, layer, *h / per_kv),
        .n = by_rows ? n_rows : tile_heads,
        .stride = by_rows ? q_dim : head_size,
        .n_keys = (size_t)row->position + 1,
        .step = by_rows,
        .layer = layer,
    };
    *h += tile_heads;
    if (*h >= heads.end) {
        *r += n_rows;
        *h = heads.begin;
    }
    return 1;
}

/* ---- One tile ---------------------------------------------------------------------------------------- */

/* Keys or values of n positions from t on, in float32: as they lie in the KV cache, or converted into `scratch`. */
static const float *as_f32(const l2c_cpu_session *s, const void *cache, size_t t, size_t n, float *scratch) {
    size_t head_size = (size_t)s->model->config.head_size;
    if (s->kv == L2C_KV_FLOAT32) return (const float *)cache + t * head_size;
    s->kernels->f16_to_f32(scratch, (const uint16_t *)cache + t * head_size, n * head_size);
    return scratch;
}

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

/* Copies the weights of query i, a head of the only row, to where l2c_session_attention wants them. */
static void tell_attention(const l2c_cpu_session *s, const query_tile *tile, const float *weights, size_t i) {
    const l2c_config *c = &s->model->config;
    size_t head = (size_t)(tile->query - s->q) / (size_t)c->head_size + i;
    memcpy(s->session->attention + (tile->layer * (size_t)c->n_heads + head) * tile->n_keys, weights,
           tile->n_keys * sizeof *weights);
}

/* scores = softmax(scores / sqrt(head_size)), of query i */
static void attention_weights(const l2c_cpu_session *s, const query_tile *tile, float *scores, size_t i) {
    float *row = scores + i * s->n_ctx;
    s->kernels->divide(row, sqrtf((float)s->model->config.head_size), tile->n_keys + i * tile->step);
    s->kernels->softmax(row, tile->n_keys + i * tile->step);
    if (s->session->attention != NULL) tell_attention(s, tile, row, i);
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

/* ---- Tiles and threads --------------------------------------------------------------------------------- */

/* Tiles go to threads in turn; thread 0 of 1 takes all of them. */
static void attend_by_tiles(const pass *p, size_t layer, range heads, int thread, int n_threads, float *scores,
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

/* Where tiles are fewer than threads: thread i works on tile i % n_tiles, together with the other threads of that
 * tile. They split its positions by whole blocks, and then its columns to add the blocks' sums. */
static void attend_by_blocks(const pass *p, size_t layer, size_t n_tiles, int thread, int n_threads, float *kv_f32) {
    const l2c_cpu_session *s = p->s;
    size_t head_size = (size_t)s->model->config.head_size, n_ctx = s->n_ctx;
    size_t tile_index = (size_t)thread % n_tiles, r = 0, h = 0;
    int member = thread / (int)n_tiles, members = (n_threads - (int)tile_index - 1) / (int)n_tiles + 1;
    range heads = {0, (size_t)s->model->config.n_heads};
    query_tile tile = {0};
    for (size_t i = 0; i <= tile_index; i++) next_tile(p, layer, heads, &r, &h, &tile);
    float *scores = s->scores + tile_index * L2C_TILE * n_ctx;
    float *sums = s->value_sums + tile_index * (size_t)l2c_tile_sums(n_ctx, head_size); /* a block: (n, head_size) */
    size_t block_size = tile.n * head_size;
    range part = share(max_keys(&tile), L2C_SUM_BLOCK, member, members);
    range columns = share(head_size, COLUMN_GRAIN, member, members);

    attention_scores(s, &tile, scores, part, kv_f32);
    l2c_pool_barrier(s->pool, thread);
    for (size_t i = (size_t)member; i < tile.n; i += (size_t)members) attention_weights(s, &tile, scores, i);
    l2c_pool_barrier(s->pool, thread);
    for (size_t t = part.begin; t < part.end; t += L2C_SUM_BLOCK)
        add_values(s, &tile, sums + t / L2C_SUM_BLOCK * block_size, head_size, scores, t, 0, kv_f32);
    l2c_pool_barrier(s->pool, thread);
    for (size_t i = 0; i < tile.n; i++) { /* out of query i = the sum of its blocks' sums */
        float *out = tile.out + i * tile.stride + columns.begin;
        const float *sum = sums + i * head_size + columns.begin;
        size_t n = columns.end - columns.begin, n_keys = tile.n_keys + i * tile.step;
        memcpy(out, sum, n * sizeof *out);
        for (size_t t = L2C_SUM_BLOCK; t < n_keys; t += L2C_SUM_BLOCK) s->kernels->add(out, sum += block_size, n);
    }
}

attention_split l2c_attention_split(const pass *p, int n_threads) {
    const l2c_config *c = &p->s->model->config;
    int own_heads = c->n_kv_heads % n_threads == 0 && c->head_size % COLUMN_GRAIN == 0;
    return (attention_split){own_heads, own_heads ? 0 : tiles_to_share(p, n_threads)};
}

void l2c_attention(const pass *p, size_t layer, attention_split split, int thread, int n_threads) {
    const l2c_cpu_session *s = p->s;
    size_t n_heads = (size_t)s->model->config.n_heads, head_size = (size_t)s->model->config.head_size;
    float *scores = s->scores + (size_t)thread * L2C_TILE * s->n_ctx;
    float *kv_f32 = s->kv_f32 == NULL ? NULL : s->kv_f32 + (size_t)thread * L2C_SUM_BLOCK * head_size;
    if (split.own_heads) attend_by_tiles(p, layer, share(n_heads, 1, thread, n_threads), 0, 1, scores, kv_f32);
    else if (split.n_shared > 0) attend_by_blocks(p, layer, split.n_shared, thread, n_threads, kv_f32);
    else attend_by_tiles(p, layer, (range){0, n_heads}, thread, n_threads, scores, kv_f32);
}
