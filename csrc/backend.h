/*
 * backend.h - what computes a session's rows: one table of functions for each kind of device.
 *
 * session.c checks what it is given and keeps what no device changes: how long sequences are, which rows have
 * logits, who is in the session and who wants it to stop. Everything else is the backend's, behind `state`.
 * Rows and sequences that reach a backend are valid, and one thread at a time is in a session.
 */
#ifndef L2C_BACKEND_H
#define L2C_BACKEND_H

#include "internal.h"

/* What a session is to be. */
typedef struct {
    int32_t n_sequences, n_ctx;
    l2c_kv kv;
    l2c_isa isa;
    l2c_pool *pool; /* NULL where it is only measured */
} l2c_session_options;

/* A story that goes on by some tokens. */
typedef struct {
    const l2c_sampler *sampler; /* before the first of them; whoever takes them tosses its coins. It adjusts no logits */
    size_t n_steps;             /* tokens at most, 1 to L2C_MAX_STEPS */
    int32_t *tokens;            /* (n_steps) out: */
    size_t n_new;               /* so many */
    l2c_status status;          /* and what came of the draw after them, where that failed */
} l2c_continuation;

struct l2c_backend {
    const char *name;
    int tells_attention; /* forward fills session->attention where it is not NULL, and the call has one row then */

    /* Bytes of a session with n_threads threads; the model may be header-only. UINT64_MAX when they do not fit 64
     * bits. */
    uint64_t (*session_bytes)(const l2c_model *model, const l2c_session_options *options, int32_t n_threads);

    /* open makes session->state and says how many rows a call may have. close frees what there is of it, and must not
     * look at the model, which may already be freed. */
    l2c_status (*session_open)(l2c_session *session, const l2c_session_options *options, l2c_error *err);
    void (*session_close)(l2c_session *session);

    /* The transformer; leaves logits for the rows that want them. L2C_CANCELLED, soon, when
     * l2c_session_stopping(session). */
    l2c_status (*forward)(l2c_session *session, const l2c_row *rows, size_t n_rows, l2c_error *err);

    /* The i-th row of logits, on the host, where a change to it counts; all rows lie one behind the other. NULL where it
     * cannot be had. */
    float *(*logits)(l2c_session *session, size_t i);

    /* Fills token and status of draws from different rows. options: one for each draw, or NULL for none. err, which may
     * be NULL, is that of a draw alone. Fails as a whole only where a device does. */
    l2c_status (*sample)(l2c_session *session, l2c_draw *draws, l2c_draw_options *options, size_t n, l2c_error *err);

    /* NULL, or: feeds the rows of n stories, one each, and draws the tokens after them, feeds those, and so on: up to
     * n_steps tokens a story, or to one of ends, or fewer. What comes before a story's last new token is then in the
     * cache. err, where a draw failed, is that of a story alone. L2C_UNSUPPORTED: not this time, and nothing was done. */
    l2c_status (*decode)(l2c_session *session, const l2c_row *rows, l2c_continuation *stories, size_t n,
                         const int32_t *ends, size_t n_ends, l2c_error *err);

    /* NULL, or called, from any thread or signal handler, when the session has been asked to stop, or when decode is to
     * return soon with the tokens that there are. */
    void (*cancel)(l2c_session *session);

    /* log p of a token under row i; NaN where the row holds NaN or +infinity, or nothing but -infinity */
    l2c_status (*logprob)(l2c_session *session, size_t i, int32_t token, double *value, l2c_error *err);

    /* The cache of a sequence's first n positions: (n_layers, n_kv_heads, n, head_size) keys, then values, in the
     * session's l2c_kv. */
    l2c_status (*cache_read)(l2c_session *session, int32_t sequence, size_t n, void *data, l2c_error *err);
    l2c_status (*cache_write)(l2c_session *session, int32_t sequence, size_t n, const void *data, l2c_error *err);
    l2c_status (*cache_copy)(l2c_session *session, int32_t from, int32_t to, size_t n, l2c_error *err);
};

extern const l2c_backend l2c_backend_cpu;
extern const l2c_backend l2c_backend_cuda; /* of models whose weights are on a card */

/* decode.c: the backend's decode for a caller that does not hold the session; L2C_UNSUPPORTED where it has none. */
l2c_status l2c_session_continue(l2c_session *session, const l2c_row *rows, l2c_continuation *stories, size_t n,
                                const int32_t *ends, size_t n_ends, l2c_error *err);

/* session.c: l2c_session_create on a backend. */
l2c_status l2c_session_create_on(const l2c_backend *backend, const l2c_model *model, const l2c_session_options *options,
                                 l2c_session **session, l2c_error *err);

#endif
