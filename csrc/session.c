/*
 * session.c - the state of a computation: KV cache, scratch, logits; and the checks on what is fed.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

/* ---- Creating --------------------------------------------------------------------------------- */

/* One block of session memory: where its pointer goes, and its size as a product. */
typedef struct {
    void **pointer;
    uint64_t size, factor[5];
} block;

/* The blocks of a session; returns how many. Used to size and to allocate. */
static int list_blocks(l2c_session *s, const l2c_config *c, uint64_t n_sequences, uint64_t n_ctx,
                       uint64_t n_threads, block *blocks) {
    uint64_t rows = L2C_MAX_ROWS, dim = (uint64_t)c->dim, hidden = (uint64_t)c->hidden_dim;
    uint64_t head = (uint64_t)c->head_size, kv_heads = (uint64_t)c->n_kv_heads;
    uint64_t layers = (uint64_t)c->n_layers, vocab = (uint64_t)c->vocab_size, f = sizeof(float);
    int n = 0;
#define BLOCK(member, element, a, b, d, e, g) \
    blocks[n++] = (block){(void **)&s->member, element, {a, b, d, e, g}}
    BLOCK(key_cache, f, n_sequences, layers, kv_heads, n_ctx, head);
    BLOCK(value_cache, f, n_sequences, layers, kv_heads, n_ctx, head);
    BLOCK(lengths, sizeof(int32_t), n_sequences, 1, 1, 1, 1);
    BLOCK(rope_cos, f, n_ctx, head / 2, 1, 1, 1);
    BLOCK(rope_sin, f, n_ctx, head / 2, 1, 1, 1);
    BLOCK(x, f, rows, dim, 1, 1, 1);
    BLOCK(xb.f32, f, rows, dim, 1, 1, 1);
    BLOCK(hb.f32, f, rows, hidden, 1, 1, 1);
    BLOCK(q, f, rows, dim, 1, 1, 1);
    BLOCK(k, f, rows, kv_heads, head, 1, 1);
    BLOCK(v, f, rows, kv_heads, head, 1, 1);
    BLOCK(up, f, rows, hidden, 1, 1, 1);
    BLOCK(scores, f, n_threads, n_ctx, 1, 1, 1);
    BLOCK(logits, f, rows, vocab, 1, 1, 1);
    BLOCK(candidates, sizeof(l2c_candidate), vocab, 1, 1, 1, 1);
    BLOCK(seen, 1, vocab, 1, 1, 1, 1);
    if (c->group_size > 0) {
        uint64_t group = (uint64_t)c->group_size;
        BLOCK(xb.q8, 1, rows, dim, 1, 1, 1);
        BLOCK(hb.q8, 1, rows, hidden, 1, 1, 1);
        BLOCK(xb.scales, f, rows, dim / group, 1, 1, 1);
        BLOCK(hb.scales, f, rows, hidden / group, 1, 1, 1);
    }
#undef BLOCK
    return n;
}

/* UINT64_MAX when the product does not fit. */
static uint64_t block_bytes(const block *b) {
    uint64_t bytes = b->size;
    for (int i = 0; i < 5; i++) {
        if (b->factor[i] != 0 && bytes > UINT64_MAX / b->factor[i]) return UINT64_MAX;
        bytes *= b->factor[i];
    }
    return bytes;
}

uint64_t l2c_session_bytes(const l2c_model *model, int32_t n_sequences, int32_t n_ctx) {
    l2c_session unused;
    block blocks[L2C_SESSION_BLOCKS];
    if (n_ctx == 0) n_ctx = model->config.seq_len;
    if (n_sequences < 1 || n_ctx < 1) return UINT64_MAX;
    int n = list_blocks(&unused, &model->config, (uint64_t)n_sequences, (uint64_t)n_ctx, 1, blocks);
    uint64_t total = 0;
    for (int i = 0; i < n; i++) {
        uint64_t bytes = block_bytes(&blocks[i]);
        if (bytes > UINT64_MAX - total) return UINT64_MAX;
        total += bytes;
    }
    return total;
}

l2c_status l2c_session_create(const l2c_model *model, l2c_pool *pool, int32_t n_sequences,
                              int32_t n_ctx, l2c_isa isa, l2c_session **session, l2c_error *err) {
    const l2c_config *c = &model->config;
    if (n_ctx == 0) n_ctx = c->seq_len;
    if (n_ctx < 1 || n_ctx > c->seq_len)
        return l2c_fail(err, L2C_ARG, "context of %d positions; the model has %d", n_ctx, c->seq_len);
    if (n_sequences < 1)
        return l2c_fail(err, L2C_ARG, "n_sequences is %d; it must be 1 or more", n_sequences);
    l2c_status status = l2c_isa_resolve(isa, &isa, err);
    if (status != L2C_OK) return status;

    l2c_session *s = l2c_memory_zeroed(1, sizeof *s);
    if (s == NULL) return l2c_fail(err, L2C_NOMEM, "out of memory for a session");
    s->model = model;
    s->pool = pool;
    s->kernels = c->group_size > 0 ? &l2c_kernels_runq : l2c_kernels_for(isa);
    s->n_sequences = n_sequences;
    s->n_ctx = n_ctx;
    s->xb.width = (size_t)c->dim;
    s->hb.width = (size_t)c->hidden_dim;
    block blocks[L2C_SESSION_BLOCKS];
    int n = list_blocks(s, c, (uint64_t)n_sequences, (uint64_t)n_ctx, (uint64_t)l2c_pool_size(pool), blocks);
    for (int i = 0; i < n; i++) {
        uint64_t bytes = block_bytes(&blocks[i]);
        void *memory = bytes > SIZE_MAX ? NULL : l2c_memory_zeroed((size_t)bytes, 1);
        *blocks[i].pointer = s->blocks[s->n_blocks++] = memory;
        if (memory == NULL) {
            l2c_session_free(s);
            return l2c_fail(err, L2C_NOMEM, "out of memory for a session of %d x %d positions, which needs %llu bytes",
                            n_sequences, n_ctx, (unsigned long long)l2c_session_bytes(model, n_sequences, n_ctx));
        }
    }
    *session = s;
    return L2C_OK;
}

void l2c_session_free(l2c_session *session) {
    if (session == NULL) return;
    for (int i = 0; i < session->n_blocks; i++) l2c_memory_free(session->blocks[i]);
    l2c_memory_free(session);
}

/* ---- Feeding ------------------------------------------------------------------------------------- */

static l2c_status check_rows(l2c_session *s, const l2c_row *rows, size_t n_rows, l2c_error *err) {
    if (n_rows < 1 || n_rows > L2C_MAX_ROWS)
        return l2c_fail(err, L2C_ARG, "%zu rows; a forward call takes 1 to %d", n_rows, L2C_MAX_ROWS);
    for (size_t r = 0; r < n_rows; r++) {
        const l2c_row *row = &rows[r];
        if (row->sequence < 0 || row->sequence >= s->n_sequences)
            return l2c_fail(err, L2C_ARG, "row %zu: sequence is %d; there are %d", r, row->sequence, s->n_sequences);
        if (row->token < 0 || row->token >= s->model->config.vocab_size)
            return l2c_fail(err, L2C_ARG, "row %zu: token is %d; the vocabulary has %d", r, row->token,
                            s->model->config.vocab_size);
        if (row->position < 0 || row->position >= s->n_ctx)
            return l2c_fail(err, L2C_RANGE, "row %zu: position is %d; the context has %d", r, row->position, s->n_ctx);
        int32_t expected = -1; /* after an earlier row of the same sequence, the next position */
        for (size_t p = r; p-- > 0 && expected < 0;)
            if (rows[p].sequence == row->sequence) expected = rows[p].position + 1;
        if (expected >= 0 ? row->position != expected : row->position > s->lengths[row->sequence])
            return l2c_fail(err, L2C_RANGE, "row %zu: position is %d, but the next one of sequence %d is %d", r,
                            row->position, row->sequence, expected >= 0 ? expected : s->lengths[row->sequence]);
    }
    return L2C_OK;
}

/* cos and sin of position * 10000^(-2j / head_size): in double, rounded once; for int8 models in
 * runq.c's float32 steps (kernels_runq.c says why). */
static void rope_angle(const l2c_session *s, size_t position, size_t j, float *cosine, float *sine) {
    int32_t head_size = s->model->config.head_size;
    if (s->model->config.group_size > 0) {
        float frequency = 1.0f / powf(10000.0f, (float)(2 * j) / (float)head_size);
        float angle = (float)position * frequency;
        *cosine = cosf(angle);
        *sine = sinf(angle);
    } else {
        double angle = (double)position * pow(10000.0, -(double)(2 * j) / (double)head_size);
        *cosine = (float)cos(angle);
        *sine = (float)sin(angle);
    }
}

/* Tabulates RoPE's angles up to the last position fed. */
static void extend_rope(l2c_session *s, const l2c_row *rows, size_t n_rows) {
    int32_t needed = 0;
    for (size_t r = 0; r < n_rows; r++)
        if (rows[r].position >= needed) needed = rows[r].position + 1;
    if (needed <= s->rope_ready) return;
    needed = s->n_ctx - needed < 64 ? s->n_ctx : needed + 64; /* a few at a time */
    size_t pairs = (size_t)s->model->config.head_size / 2;
    for (size_t p = (size_t)s->rope_ready; p < (size_t)needed; p++)
        for (size_t j = 0; j < pairs; j++)
            rope_angle(s, p, j, &s->rope_cos[p * pairs + j], &s->rope_sin[p * pairs + j]);
    s->rope_ready = needed;
}

static int enter(l2c_session *s) { return !atomic_exchange_explicit(&s->busy, 1, memory_order_acquire); }
static void leave(l2c_session *s) { atomic_store_explicit(&s->busy, 0, memory_order_release); }

static l2c_status fail_busy(l2c_error *err) {
    return l2c_fail(err, L2C_BUSY, "the session is being used by another thread");
}

l2c_status l2c_session_forward(l2c_session *s, const l2c_row *rows, size_t n_rows, l2c_error *err) {
    if (!enter(s)) return fail_busy(err);
    l2c_status status = check_rows(s, rows, n_rows, err);
    if (status == L2C_OK) {
        extend_rope(s, rows, n_rows);
        s->n_logits = 0;
        /* What the call overwrites does not count as cached, should it be cancelled half-way. */
        for (size_t r = n_rows; r-- > 0;) s->lengths[rows[r].sequence] = rows[r].position;
        atomic_store(&s->cancel, 0);
        status = l2c_forward(s, rows, n_rows);
        if (status == L2C_OK) {
            for (size_t r = 0; r < n_rows; r++) {
                s->lengths[rows[r].sequence] = rows[r].position + 1;
                s->n_logits += rows[r].want_logits != 0;
            }
        } else {
            l2c_fail(err, status, "the forward pass was cancelled");
        }
    }
    leave(s);
    return status;
}

void l2c_session_cancel(l2c_session *session) { atomic_store(&session->cancel, 1); }

/* ---- Reading the result ----------------------------------------------------------------------------- */

float *l2c_session_logits(l2c_session *s, size_t i) {
    return i < s->n_logits ? s->logits + i * (size_t)s->model->config.vocab_size : NULL;
}

static l2c_status fail_no_row(const l2c_session *s, size_t i, l2c_error *err) {
    return l2c_fail(err, L2C_ARG, "logits row %zu; the last forward call left %zu", i, s->n_logits);
}

l2c_status l2c_session_sample(l2c_session *s, size_t i, l2c_sampler *sampler, const int32_t *history,
                              size_t n_history, int32_t *token, l2c_error *err) {
    if (!enter(s)) return fail_busy(err);
    float *logits = l2c_session_logits(s, i);
    l2c_status status = logits == NULL ? fail_no_row(s, i, err)
        : l2c_sampler_pick(sampler, s->kernels, logits, s->model->config.vocab_size, history, n_history,
                           s->candidates, s->seen, token, err);
    leave(s);
    return status;
}

l2c_status l2c_session_logprob(l2c_session *s, size_t i, int32_t token, double *logprob, l2c_error *err) {
    if (!enter(s)) return fail_busy(err);
    l2c_status status = L2C_OK;
    int32_t n = s->model->config.vocab_size;
    const float *logits = l2c_session_logits(s, i);
    if (logits == NULL) {
        status = fail_no_row(s, i, err);
    } else if (token < 0 || token >= n) {
        status = l2c_fail(err, L2C_ARG, "token is %d; the vocabulary has %d", token, n);
    } else {
        /* In double: a float32 sum over the vocabulary would cost half of the digits. */
        double largest = s->kernels->max(logits, (size_t)n), sum = 0.0;
        for (int32_t j = 0; j < n; j++) sum += exp((double)logits[j] - largest);
        double value = (double)logits[token] - largest - log(sum);
        if (isnan(value)) status = l2c_fail(err, L2C_NONFINITE, "the logits hold NaN or infinity");
        else *logprob = value;
    }
    leave(s);
    return status;
}
