/*
 * decode.c - several tokens of one story in a call: at once where the backend can, else one by one.
 */
#include "backend.h"
#include "system/float_env.h"

/* By the backend, at once; L2C_UNSUPPORTED where it does not. */
static l2c_status decode_at_once(l2c_session *s, l2c_sampler *sampler, int32_t *tokens, size_t n, size_t n_steps,
                                 const int32_t *ends, size_t n_ends, uint64_t *rng_states, size_t *n_new, l2c_error *err) {
    const l2c_row row = {0, (int32_t)n - 1, tokens[n - 1], 1};
    size_t n_fed;
    if (s->backend->decode == NULL || l2c_sampler_adjusts(sampler)) return L2C_UNSUPPORTED;
    l2c_status status = l2c_sampler_check(sampler, s->model->config.vocab_size, err);
    if (status == L2C_OK) status = l2c_session_begin(s, &row, 1, err);
    if (status != L2C_OK) return status;
    status = s->backend->decode(s, &row, sampler, n_steps, ends, n_ends, tokens + n, rng_states, n_new, &n_fed, err);
    if (status == L2C_OK) s->lengths[0] = row.position + (int32_t)n_fed;
    return status;
}

static l2c_status decode(l2c_session *s, l2c_sampler *sampler, int32_t *tokens, size_t n, size_t n_steps,
                         const int32_t *ends, size_t n_ends, uint64_t *rng_states, size_t *n_new, l2c_error *err) {
    l2c_status status = decode_at_once(s, sampler, tokens, n, n_steps, ends, n_ends, rng_states, n_new, err);
    if (status != L2C_UNSUPPORTED) return status;
    for (*n_new = 0; *n_new < n_steps;) {
        int32_t *next = &tokens[n + *n_new];
        const l2c_row row = {0, (int32_t)(n + *n_new) - 1, next[-1], 1};
        status = l2c_session_forward_held(s, &row, 1, err);
        if (status == L2C_OK) status = l2c_session_sample_held(s, 0, sampler, tokens, n + *n_new, NULL, next, err);
        if (status != L2C_OK) break;
        rng_states[(*n_new)++] = sampler->rng_state;
        if (l2c_is_among(ends, n_ends, *next)) break;
    }
    return *n_new > 0 ? L2C_OK : status; /* what failed after a token fails again in the next call */
}

l2c_status l2c_session_decode(l2c_session *s, l2c_sampler *sampler, int32_t *tokens, size_t n, size_t n_steps,
                              const int32_t *ends, size_t n_ends, uint64_t *rng_states, size_t *n_new, l2c_error *err) {
    if (n < 1 || n_steps < 1 || n_steps > L2C_MAX_STEPS || n + n_steps - 1 > (size_t)s->n_ctx)
        return l2c_fail(err, L2C_ARG, "%zu steps after %zu tokens; the context is %d, steps are at most %d", n_steps, n,
                        s->n_ctx, L2C_MAX_STEPS);
    if (!l2c_session_enter(s)) return l2c_session_fail_busy(err);
    l2c_float_env env = l2c_float_enter();
    l2c_status status = decode(s, sampler, tokens, n, n_steps, ends, n_ends, rng_states, n_new, err);
    if (status == L2C_CANCELLED) l2c_session_resume(s);
    l2c_float_leave(env);
    l2c_session_leave(s);
    return status;
}
