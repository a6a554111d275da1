/*
 * logits.c - what is made of a row's logits: a token, which uses the row up, or log-probabilities, which do not.
 */
#include <math.h>

#include "backend.h"
#include "system/float_env.h"

float *l2c_session_logits(l2c_session *s, size_t i) {
    return i < s->n_logits && !s->used[i] ? s->backend->logits(s, i) : NULL;
}

static l2c_status check_row(const l2c_session *s, size_t i, l2c_error *err) {
    if (i >= s->n_logits)
        return l2c_fail(err, L2C_ARG, "logits row %zu; the last forward call left %zu", i, s->n_logits);
    if (s->used[i]) return l2c_fail(err, L2C_ARG, "logits row %zu was sampled, which uses it up", i);
    return L2C_OK;
}

static l2c_status check_options(const l2c_session *s, const l2c_draw_options *options, l2c_error *err) {
    size_t vocab = (size_t)s->model->config.vocab_size, most = vocab < L2C_MAX_TOP ? vocab : L2C_MAX_TOP;
    if (options->logits == NULL) most = 0;
    if (options->n_top <= most) return L2C_OK;
    return l2c_fail(err, L2C_ARG, "n_top is %zu; it must be 0 to %zu", options->n_top, most);
}

l2c_status l2c_session_sample_held(l2c_session *s, size_t i, l2c_sampler *sampler, const int32_t *history,
                                   size_t n_history, l2c_draw_options *options, int32_t *token, l2c_error *err) {
    l2c_status status = check_row(s, i, err);
    if (status == L2C_OK && options != NULL) status = check_options(s, options, err);
    if (status != L2C_OK) return status;
    l2c_draw draw = {.row = i, .sampler = sampler, .history = history, .n_history = n_history};
    status = s->backend->sample(s, &draw, options, 1, err);
    if (status != L2C_OK) return status;
    s->used[i] = draw.status != L2C_ARG;
    if (draw.status == L2C_OK) *token = draw.token;
    return draw.status;
}

l2c_status l2c_session_sample(l2c_session *s, size_t i, l2c_sampler *sampler, const int32_t *history,
                              size_t n_history, int32_t *token, l2c_error *err) {
    if (!l2c_session_enter(s)) return l2c_session_fail_busy(err);
    l2c_float_env env = l2c_float_enter();
    l2c_status status = l2c_session_sample_held(s, i, sampler, history, n_history, NULL, token, err);
    l2c_float_leave(env);
    l2c_session_leave(s);
    return status;
}

/* Marks the draws' rows as used; none of them if one is missing, used up or given twice. */
static l2c_status take_rows(l2c_session *s, const l2c_draw *draws, size_t n, l2c_error *err) {
    for (size_t i = 0; i < n; i++) {
        l2c_status status = check_row(s, draws[i].row, err);
        if (status != L2C_OK) {
            while (i-- > 0) s->used[draws[i].row] = 0;
            return status;
        }
        s->used[draws[i].row] = 1;
    }
    return L2C_OK;
}

l2c_status l2c_session_sample_with(l2c_session *s, l2c_draw *draws, l2c_draw_options *options, size_t n,
                                   l2c_error *err) {
    if (!l2c_session_enter(s)) return l2c_session_fail_busy(err);
    l2c_float_env env = l2c_float_enter();
    l2c_status status = L2C_OK;
    for (size_t i = 0; i < n && options != NULL && status == L2C_OK; i++) status = check_options(s, &options[i], err);
    if (status == L2C_OK) status = take_rows(s, draws, n, err);
    if (status == L2C_OK && n > 0) {
        status = s->backend->sample(s, draws, options, n, err);
        for (size_t i = 0; i < n; i++) s->used[draws[i].row] = status == L2C_OK && draws[i].status != L2C_ARG;
    }
    l2c_float_leave(env);
    l2c_session_leave(s);
    return status;
}

l2c_status l2c_session_sample_many(l2c_session *s, l2c_draw *draws, size_t n, l2c_error *err) {
    return l2c_session_sample_with(s, draws, NULL, n, err);
}

static l2c_status logprob_of(l2c_session *s, size_t i, int32_t token, double *logprob, l2c_error *err) {
    l2c_status status = check_row(s, i, err);
    if (status != L2C_OK) return status;
    int32_t n = s->model->config.vocab_size;
    if (token < 0 || token >= n) return l2c_fail(err, L2C_ARG, "token is %d; the vocabulary has %d", token, n);
    double value;
    status = s->backend->logprob(s, i, token, &value, err);
    if (status != L2C_OK) return status;
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
