/*
 * session.c - sequences of tokens on some device: checks what is fed to them, knows how long they are, lets one thread
 * in at a time. What computes is behind backend.h.
 */
#include <stdlib.h>
#include <string.h>

#include "backend.h"
#include "system/float_env.h"

/* ---- Creating --------------------------------------------------------------------------------- */

static int32_t context_or_default(const l2c_model *model, int32_t n_ctx) {
    return n_ctx == 0 ? model->config.seq_len : n_ctx;
}

static const l2c_backend *backend_of(const l2c_model *model) {
    return model->placed != NULL ? &l2c_backend_cuda : &l2c_backend_cpu;
}

uint64_t l2c_session_bytes(const l2c_model *model, int32_t n_sequences, int32_t n_ctx, l2c_kv kv, int32_t n_threads) {
    n_ctx = context_or_default(model, n_ctx);
    if (n_sequences < 1 || n_ctx < 1 || n_threads < 1) return UINT64_MAX;
    const l2c_session_options options = {.n_sequences = n_sequences, .n_ctx = n_ctx, .kv = kv};
    uint64_t bytes = backend_of(model)->session_bytes(model, &options, n_threads);
    uint64_t own = 2 * sizeof(int32_t) * (uint64_t)n_sequences; /* what is kept here */
    return bytes > UINT64_MAX - own ? UINT64_MAX : bytes + own;
}

l2c_status l2c_session_create(const l2c_model *model, l2c_pool *pool, int32_t n_sequences, int32_t n_ctx, l2c_kv kv,
                              l2c_isa isa, l2c_session **session, l2c_error *err) {
    const l2c_session_options options = {
        .n_sequences = n_sequences, .n_ctx = context_or_default(model, n_ctx), .kv = kv, .isa = isa, .pool = pool};
    return l2c_session_create_on(backend_of(model), model, &options, session, err);
}

l2c_status l2c_session_create_on(const l2c_backend *backend, const l2c_model *model, const l2c_session_options *o,
                                 l2c_session **session, l2c_error *err) {
    const l2c_config *c = &model->config;
    if (model->layers == NULL) return l2c_model_fail_no_weights(err);
    if (o->n_ctx < 1 || o->n_ctx > c->seq_len)
        return l2c_fail(err, L2C_ARG, "context of %d positions; the model has %d", o->n_ctx, c->seq_len);
    if (o->n_sequences < 1)
        return l2c_fail(err, L2C_ARG, "n_sequences is %d; it must be 1 or more", o->n_sequences);
    if (o->kv != L2C_KV_FLOAT32 && o->kv != L2C_KV_FLOAT16)
        return l2c_fail(err, L2C_ARG, "unknown cache type %d", (int)o->kv);

    l2c_session *s = l2c_memory_zeroed(1, sizeof *s);
    if (s == NULL) return l2c_fail(err, L2C_NOMEM, "out of memory for a session");
    s->model = model;
    s->backend = backend;
    s->n_sequences = o->n_sequences;
    s->n_ctx = o->n_ctx;
    l2c_status status = backend->session_open(s, o, err);
    if (status == L2C_OK) {
        s->lengths = l2c_memory_zeroed((size_t)o->n_sequences, sizeof *s->lengths);
        s->next = l2c_memory_zeroed((size_t)o->n_sequences, sizeof *s->next);
        s->used = l2c_memory_zeroed((size_t)s->max_rows, sizeof *s->used);
        if (s->lengths == NULL || s->next == NULL || s->used == NULL)
            status = l2c_fail(err, L2C_NOMEM, "out of memory for %d sequences", o->n_sequences);
    }
    if (status != L2C_OK) l2c_session_free(s);
    else *session = s;
    return status;
}

void l2c_session_free(l2c_session *session) {
    if (session == NULL) return;
    session->backend->session_close(session);
    l2c_memory_free(session->lengths);
    l2c_memory_free(session->next);
    l2c_memory_free(session->used);
    l2c_memory_free(session);
}

int32_t l2c_session_max_rows(const l2c_session *session) { return session->max_rows; }

/* ---- One thread at a time ------------------------------------------------------------------------- */

int l2c_session_enter(l2c_session *s) { return !atomic_exchange_explicit(&s->busy, 1, memory_order_acquire); }
void l2c_session_leave(l2c_session *s) { atomic_store_explicit(&s->busy, 0, memory_order_release); }

l2c_status l2c_session_fail_busy(l2c_error *err) {
    return l2c_fail(err, L2C_BUSY, "the session is being used by another thread");
}

void l2c_session_hurry(l2c_session *session) {
    if (session->backend->cancel != NULL) session->backend->cancel(session);
}

void l2c_session_cancel(l2c_session *session) {
    atomic_store(&session->cancel, 1);
    l2c_session_hurry(session);
}

void l2c_session_resume(l2c_session *session) { atomic_store(&session->cancel, 0); }

/* ---- Feeding ------------------------------------------------------------------------------------- */

static l2c_status check_each(l2c_session *s, const l2c_row *rows, size_t n_rows, l2c_error *err) {
    for (size_t r = 0; r < n_rows; r++) {
        const l2c_row *row = &rows[r];
        if (row->sequence < 0 || row->sequence >= s->n_sequences)
            return l2c_fail(err, L2C_ARG, "row %zu: sequence is %d; there are %d", r, row->sequence, s->n_sequences);
        if (row->token < 0 || row->token >= s->model->config.vocab_size)
            return l2c_fail(err, L2C_ARG, "row %zu: token is %d; the vocabulary has %d", r, row->token,
                            s->model->config.vocab_size);
        if (row->position < 0 || row->position >= s->n_ctx)
            return l2c_fail(err, L2C_RANGE, "row %zu: position is %d; the context has %d", r, row->position, s->n_ctx);
        /* after an earlier row of the same sequence, the next position; next is 0 without one */
        int32_t *next = &s->next[row->sequence];
        if (*next > 0 ? row->position != *next : row->position > s->lengths[row->sequence])
            return l2c_fail(err, L2C_RANGE, "row %zu: position is %d, but the next one of sequence %d is %d", r,
                            row->position, row->sequence, *next > 0 ? *next : s->lengths[row->sequence]);
        *next = row->position + 1;
    }
    return L2C_OK;
}

static l2c_status check_rows(l2c_session *s, const l2c_row *rows, size_t n_rows, l2c_error *err) {
    if (n_rows < 1 || n_rows > (size_t)s->max_rows)
        return l2c_fail(err, L2C_ARG, "%zu rows; a forward call takes 1 to %d", n_rows, s->max_rows);
    memset(s->next, 0, (size_t)s->n_sequences * sizeof *s->next);
    return check_each(s, rows, n_rows, err);
}

l2c_status l2c_session_begin(l2c_session *s, const l2c_row *rows, size_t n_rows, l2c_error *err) {
    l2c_status status = check_rows(s, rows, n_rows, err);
    if (status != L2C_OK) return status;
    s->n_logits = 0;
    /* Until the call succeeds, what it overwrites is not cached. Last row first, so that a sequence's first row
     * decides. */
    for (size_t r = n_rows; r-- > 0;) s->lengths[rows[r].sequence] = rows[r].position;
    return l2c_session_stopping(s) ? l2c_session_fail_cancelled(err) : L2C_OK;
}

l2c_status l2c_session_forward_held(l2c_session *s, const l2c_row *rows, size_t n_rows, l2c_error *err) {
    l2c_status status = l2c_session_begin(s, rows, n_rows, err);
    if (status != L2C_OK) return status;
    status = s->backend->forward(s, rows, n_rows, err);
    if (status != L2C_OK) return status;
    for (size_t r = 0; r < n_rows; r++) {
        s->lengths[rows[r].sequence] = rows[r].position + 1;
        s->n_logits += rows[r].want_logits != 0;
    }
    memset(s->used, 0, s->n_logits);
    return L2C_OK;
}

static l2c_status forward(l2c_session *s, const l2c_row *rows, size_t n_rows, float *attention, l2c_error *err) {
    if (!l2c_session_enter(s)) return l2c_session_fail_busy(err);
    l2c_float_env env = l2c_float_enter();
    s->attention = attention;
    l2c_status status = l2c_session_forward_held(s, rows, n_rows, err);
    /* this answers the request; speculate.c, which calls the held form itself, answers its own */
    if (status == L2C_CANCELLED) l2c_session_resume(s);
    s->attention = NULL;
    l2c_float_leave(env);
    l2c_session_leave(s);
    return status;
}

l2c_status l2c_session_forward(l2c_session *s, const l2c_row *rows, size_t n_rows, l2c_error *err) {
    return forward(s, rows, n_rows, NULL, err);
}

l2c_status l2c_session_attention(l2c_session *s, const l2c_row *row, float *weights, l2c_error *err) {
    if (!s->backend->tells_attention)
        return l2c_fail(err, L2C_UNSUPPORTED, "attention weights can be had on the CPU only; this session is on %s",
                        s->backend->name);
    return forward(s, row, 1, weights, err);
}

/* ---- Lengths and the cache -------------------------------------------------------------------------- */

int32_t l2c_session_length(const l2c_session *s, int32_t sequence) {
    return sequence >= 0 && sequence < s->n_sequences ? s->lengths[sequence] : -1;
}

l2c_status l2c_session_cut(l2c_session *s, int32_t sequence, int32_t n, l2c_error *err) {
    if (sequence < 0 || sequence >= s->n_sequences || n < 0)
        return l2c_fail(err, L2C_ARG, "cannot cut sequence %d of %d to %d positions", sequence, s->n_sequences, n);
    if (!l2c_session_enter(s)) return l2c_session_fail_busy(err);
    if (s->lengths[sequence] > n) s->lengths[sequence] = n;
    l2c_session_leave(s);
    return L2C_OK;
}

l2c_status l2c_session_copy(l2c_session *s, int32_t from, int32_t to, int32_t n, l2c_error *err) {
    if (from < 0 || from >= s->n_sequences || to < 0 || to >= s->n_sequences || from == to)
        return l2c_fail(err, L2C_ARG, "cannot copy sequence %d to %d; there are %d, and they must differ", from, to,
                        s->n_sequences);
    if (!l2c_session_enter(s)) return l2c_session_fail_busy(err);
    l2c_status status = L2C_OK;
    if (n < 0 || n > s->lengths[from]) {
        status = l2c_fail(err, L2C_RANGE, "cannot copy %d positions; sequence %d has %d", n, from, s->lengths[from]);
    } else {
        s->lengths[to] = 0; /* should it fail */
        status = s->backend->cache_copy(s, from, to, (size_t)n, err);
        if (status == L2C_OK) s->lengths[to] = n;
    }
    l2c_session_leave(s);
    return status;
}

l2c_status l2c_session_save(l2c_session *s, int32_t n, void *data, l2c_error *err) {
    if (!l2c_session_enter(s)) return l2c_session_fail_busy(err);
    l2c_status status = L2C_OK;
    if (n < 0 || n > s->lengths[0])
        status = l2c_fail(err, L2C_RANGE, "cannot save %d positions; the cache has %d", n, s->lengths[0]);
    else status = s->backend->cache_read(s, 0, (size_t)n, data, err);
    l2c_session_leave(s);
    return status;
}

l2c_status l2c_session_load(l2c_session *s, int32_t n, const void *data, l2c_error *err) {
    if (!l2c_session_enter(s)) return l2c_session_fail_busy(err);
    l2c_status status = L2C_OK;
    if (n < 0 || n > s->n_ctx) {
        status = l2c_fail(err, L2C_RANGE, "cannot load %d positions; the context has %d", n, s->n_ctx);
    } else {
        s->n_logits = 0;
        s->lengths[0] = 0;
        status = s->backend->cache_write(s, 0, (size_t)n, data, err);
        if (status == L2C_OK) s->lengths[0] = n;
    }
    l2c_session_leave(s);
    return status;
}
