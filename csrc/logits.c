/*
 * logits.c - what is made of a row's logits: tokens and log-probabilities.
 */
#include <math.h>

#include "float_env.h"
#include "internal.h"

float *l2c_session_logits(l2c_session *s, size_t i) {
    return i < s->n_logits && !s->used[i] ? s->logits + i * (size_t)s->model->config.vocab_size : NULL;
}

static l2c_status fail_no_row(const l2c_session *s, size_t i, l2c_error *err) {
    if (i < s->n_logits) return l2c_fail(err, L2C_ARG, "logits row %zu was sampled, which uses it up", i);
    return l2c_fail(err, L2C_ARG, "logits row %zu; the last forward call left %zu", i, s->n_logits);
}

/* On one thread of the pool, whose part of the scratch it takes. */
static l2c_status pick(l2c_session *s, int thread, size_t i, l2c_sampler *sampler, const int32_t *history,
                       size_t n_history, int32_t *token, l2c_error *err) {
    size_t vocab = (size_t)s->model->config.vocab_size;
    l2c_candidate *candidates = (l2c_candidate *)s->candidates + (size_t)thread * 2 * vocab;
    l2c_status status = l2c_sampler_pick(sampler, s->kernels, s->logits + i * vocab, (int32_t)vocab, history, n_history,
                                         candidates, s->seen + (size_t)thread * vocab, token, err);
    s->used[i] = status != L2C_ARG;
    return status;
}

l2c_status l2c_session_pick(l2c_session *s, size_t i, l2c_sampler *sampler, const int32_t *history, size_t n_history,
                            int32_t *token, l2c_error *err) {
    if (l2c_session_logits(s, i) == NULL) return fail_no_row(s, i, err);
    return pick(s, 0, i, sampler, history, n_history, token, err);
}

l2c_status l2c_session_sample(l2c_session *s, size_t i, l2c_sampler *sampler, const int32_t *history,
                              size_t n_history, int32_t *token, l2c_error *err) {
    if (!l2c_session_enter(s)) return l2c_session_fail_busy(err);
    l2c_float_env env = l2c_float_enter();
    l2c_status status = l2c_session_pick(s, i, sampler, history, n_history, token, err);
    l2c_float_leave(env);
    l2c_session_leave(s);
    return status;
}

typedef struct {
    l2c_session *s;
    l2c_draw *draws;
    size_t n;
} drawing;

static void draw_on_thread(void *arg, int thread, int n_threads) {
    const drawing *d = arg;
    for (size_t i = (size_t)thread; i < d->n; i += (size_t)n_threads) {
        l2c_draw *draw = &d->draws[i];
        draw->status = pick(d->s, thread, draw->row, draw->sampler, draw->history, draw->n_history, &draw->token, NULL);
    }
}

/* Every row is there, and once. */
static l2c_status check_draws(l2c_session *s, const l2c_draw *draws, size_t n, l2c_error *err) {
    size_t seen = 0;
    l2c_status status = L2C_OK;
    for (; seen < n && status == L2C_OK; seen++) {
        if (l2c_session_logits(s, draws[seen].row) == NULL) {
            status = fail_no_row(s, draws[seen].row, err);
            break;
        }
        s->used[draws[seen].row] = 1;
    }
    while (seen-- > 0) s->used[draws[seen].row] = 0;
    return status;
}

l2c_status l2c_session_sample_many(l2c_session *s, l2c_draw *draws, size_t n, l2c_error *err) {
    if (!l2c_session_enter(s)) return l2c_session_fail_busy(err);
    l2c_float_env env = l2c_float_enter();
    l2c_status status = check_draws(s, draws, n, err);
    if (status == L2C_OK) l2c_pool_run(s->pool, draw_on_thread, &(drawing){s, draws, n});
    l2c_float_leave(env);
    l2c_session_leave(s);
    return status;
}

static l2c_status logprob_of(l2c_session *s, size_t i, int32_t token, double *logprob, l2c_error *err) {
    int32_t n = s->model->config.vocab_size;
    const float *logits = l2c_session_logits(s, i);
    if (logits == NULL) return fail_no_row(s, i, err);
    if (token < 0 || token >= n) return l2c_fail(err, L2C_ARG, "token is %d; the vocabulary has %d", token, n);
    double value = l2c_logprob_of(l2c_logprob_total(s->kernels, logits, (size_t)n), logits[token]);
    if (isnan(value)) return l2c_fail(err, L2C_NONFINITE, "the logits hold NaN or infinity");
    *logprob = value;
    return L2C_OK;
}

l2c_status l2c_session_logprob(l2c_session *s, size_t i, int32_t token, double *logprob, l2c_error *err) {
    if (!l2c_session_enter(s)) return l2c_session_fail_busy(err);
    l2c_float_env env = l2c_float_enter();
    l2c_status status = logprob_of(s, i, token, logprob, err);
    l2c_float_leave(env);
    l2c_session_leave(s);
    return status;
}
