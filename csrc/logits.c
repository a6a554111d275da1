/*
 * logits.c - what is made of a row's logits: tokens and log-probabilities.
 */
#include <math.h>

#include "internal.h"
#include "system/float_env.h"

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

/* sum of exp(x[j] - largest): exponentials in float32; their sum in double, as 16 lanes and a tree, since a
 * float32 sum over the vocabulary would cost half of the digits */
static double exp_sum(const l2c_kernels *kernels, const float *x, size_t n, float largest) {
    enum { LANES = 16, PIECE = 64 * LANES };
    float e[PIECE];
    double lane[LANES] = {0};
    for (size_t from = 0, some; from < n; from += some) {
        some = n - from < PIECE ? n - from : PIECE;
        for (size_t j = 0; j < some; j++) e[j] = x[from + j] - largest;
        kernels->exp(e, e, some);
        for (size_t j = some; j % LANES != 0; j++) e[j] = 0.0f;
        for (size_t j = 0; j < some; j += LANES)
            UNROLL for (int i = 0; i < LANES; i++) lane[i] += (double)e[j + (size_t)i];
    }
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++) lane[i] += lane[i + half];
    return lane[0];
}

static l2c_status logprob_of(l2c_session *s, size_t i, int32_t token, double *logprob, l2c_error *err) {
    int32_t n = s->model->config.vocab_size;
    const float *logits = l2c_session_logits(s, i);
    if (logits == NULL) return fail_no_row(s, i, err);
    if (token < 0 || token >= n) return l2c_fail(err, L2C_ARG, "token is %d; the vocabulary has %d", token, n);
    float largest = s->kernels->max(logits, (size_t)n);
    double value = (double)logits[token] - (double)largest - log(exp_sum(s->kernels, logits, (size_t)n, largest));
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
