/*
 * forward.c - the transformer, top to bottom.
 *
 * Every thread of the pool runs forward_on_thread over the same rows and does its share of each
 * step; a barrier stands wherever a step reads what other threads wrote. Shapes are in comments as
 * (rows, columns); n is the number of rows of this call, each a token at a position of a sequence.
 * Begin with forward_on_thread at the end; what stands before it are its steps, in order of use. The step
 * that looks back has a file of its own, attention.c.
 *
 * Names are those of llama2.c's run.c and, before it, of Meta's own code of LLaMA (Touvron et al. 2023), except:
 * att -> scores, xb as the heads' output -> attn_out, xb2 -> delta, hb2 -> up, pos -> position, rms_att_weight ->
 * attention_norm, rms_ffn_weight -> ffn_norm, rms_final_weight -> final_norm, wcls -> classifier,
 * token_embedding_table -> token_embedding.
 */
#include <math.h>
#include <string.h>

#include "forward.h"

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

/* l2c_linear: out (n, w->rows) = x (n, w->cols) w^T, for the output columns in `part`, which may be none. */
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

    /* This thread's columns */
    range dim_part = share(dim, COLUMN_GRAIN, thread, n_threads);
    range q_part = share(q_dim, COLUMN_GRAIN, thread, n_threads);
    range kv_part = share(n_kv_heads * head_size, COLUMN_GRAIN, thread, n_threads);
    range hidden_part = share(hidden, COLUMN_GRAIN, thread, n_threads);

    attention_split split = l2c_attention_split(p, n_threads);

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

        /* attn_out (n, q_dim): each head's weighted sum of the values it attends to */
        if (!split.own_heads) l2c_pool_barrier(s->pool, thread);
        l2c_attention(p, l, split, thread, n_threads);
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
               share((size_t)c->vocab_size, COLUMN_GRAIN, thread, n_threads));
}

l2c_status l2c_forward(l2c_cpu_session *s, const l2c_row *rows, size_t n_rows) {
    pass p = {.s = s, .rows = rows, .n = n_rows};
    l2c_pool_run(s->pool, forward_on_thread, &p);
    return p.cancelled ? L2C_CANCELLED : L2C_OK;
}
