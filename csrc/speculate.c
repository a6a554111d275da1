/*
 * speculate.c - exact speculative decoding.
 *
 * Decoding one story is a matter of memory: every token reads every weight. So a draft model, the
 * same one in int8, proposes a few tokens, and the target checks all of them in one sweep over its
 * own weights. Draft and target draw the same coin for the same position. What the target picks is
 * what it would have picked alone, because a row's logits do not depend on the other rows of the
 * call; where the draft picked the same, the next check was already paid for. (Leviathan et al. 2023
 * keep the distribution; with shared coins it is the very same tokens.)
 */
#include <string.h>

#include "internal.h"
#include "system/float_env.h"

enum { MAX_DRAFT = 32, PREFILL_ROWS = 64 };

typedef struct {
    const int32_t *ids;
    size_t n;
} end_tokens;

static int ends_story(end_tokens ends, int32_t token) { return l2c_is_among(ends.ids, ends.n, token); }

/* Feeds the draft what it has not seen, up to tokens[n - 1], and leaves the last row's logits. */
static l2c_status catch_up(l2c_session *draft, const int32_t *tokens, size_t n, l2c_error *err) {
    l2c_row rows[PREFILL_ROWS];
    size_t position = (size_t)draft->lengths[0] < n - 1 ? (size_t)draft->lengths[0] : n - 1;
    while (position < n) {
        size_t count = n - position < PREFILL_ROWS ? n - position : PREFILL_ROWS;
        for (size_t i = 0; i < count; i++, position++)
            rows[i] = (l2c_row){0, (int32_t)position, tokens[position], position == n - 1};
        l2c_status status = l2c_session_forward_held(draft, rows, count, err);
        if (status != L2C_OK) return status;
    }
    return L2C_OK;
}

/* Writes at most `count` tokens that the draft would pick behind the n there are. */
static l2c_status propose(l2c_session *draft, l2c_sampler coins, int32_t *tokens, size_t n, size_t count,
                          end_tokens ends, size_t *proposed, l2c_error *err) {
    for (*proposed = 0; *proposed < count;) {
        size_t length = n + *proposed;
        l2c_status status = catch_up(draft, tokens, length, err);
        if (status == L2C_OK)
            status = l2c_session_sample_held(draft, 0, &coins, tokens, length, NULL, &tokens[length], err);
        if (status == L2C_NONFINITE) break; /* an int8 weight out of range is no reason to stop the story */
        if (status != L2C_OK) return status;
        ++*proposed;
        if (ends_story(ends, tokens[length])) break;
    }
    return L2C_OK;
}

/* By a caller that has entered both sessions. */
static l2c_status speculate(l2c_session *target, l2c_session *draft, l2c_sampler *sampler, int32_t *tokens,
                            size_t n, size_t n_draft, end_tokens stop, uint64_t *rng_states,
                            l2c_draw_options *options, size_t *n_new, l2c_error *err) {
    size_t proposed, accepted = 0;
    l2c_status status = propose(draft, *sampler, tokens, n, n_draft, stop, &proposed, err);
    if (status == L2C_OK) {
        l2c_row rows[MAX_DRAFT + 1];
        for (size_t i = 0; i <= proposed; i++) rows[i] = (l2c_row){0, (int32_t)(n - 1 + i), tokens[n - 1 + i], 1};
        status = l2c_session_forward_held(target, rows, proposed + 1, err);
    }
    for (int agree = 1; status == L2C_OK && agree;) {
        int32_t token;
        l2c_draw_options *wanted = options != NULL ? &options[accepted] : NULL;
        status = l2c_session_sample_held(target, accepted, sampler, tokens, n + accepted, wanted, &token, err);
        if (status != L2C_OK) break;
        agree = accepted < proposed && token == tokens[n + accepted] && !ends_story(stop, token);
        tokens[n + accepted] = token;
        rng_states[accepted++] = sampler->rng_state;
    }
    /* What was fed after the first difference does not count. The newest token is fed to nobody yet. */
    int32_t valid = (int32_t)(n - 1 + (status == L2C_OK ? accepted : 0));
    if (target->lengths[0] > valid) target->lengths[0] = valid;
    if (draft->lengths[0] > valid) draft->lengths[0] = valid;
    if (status == L2C_OK) *n_new = accepted;
    return status;
}

l2c_status l2c_speculate(l2c_session *target, l2c_session *draft, l2c_sampler *sampler, int32_t *tokens,
                         size_t n, size_t n_draft, const int32_t *ends, size_t n_ends, uint64_t *rng_states,
                         l2c_draw_options *options, size_t *n_new, l2c_error *err) {
    const end_tokens stop = {ends, n_ends};
    if (n < 1 || n_draft > MAX_DRAFT || n + n_draft > (size_t)target->n_ctx || n + n_draft > (size_t)draft->n_ctx)
        return l2c_fail(err, L2C_ARG, "%zu tokens and %zu drafts; the context is %d, drafts are at most %d", n,
                        n_draft, target->n_ctx, MAX_DRAFT);
    if (target->model->config.vocab_size != draft->model->config.vocab_size)
        return l2c_fail(err, L2C_ARG, "the draft has another vocabulary: %d tokens, not %d",
                        draft->model->config.vocab_size, target->model->config.vocab_size);
    if (!l2c_session_enter(target)) return l2c_session_fail_busy(err);
    if (!l2c_session_enter(draft)) {
        l2c_session_leave(target);
        return l2c_session_fail_busy(err);
    }
    l2c_float_env env = l2c_float_enter();
    draft->partner = target; /* the two are one piece of work: */
    target->partner = draft; /* a request to stop either stops it */
    l2c_status status = speculate(target, draft, sampler, tokens, n, n_draft, stop, rng_states, options, n_new, err);
    draft->partner = target->partner = NULL;
    if (status == L2C_CANCELLED) {
        l2c_session_resume(target);
        l2c_session_resume(draft);
    }
    l2c_float_leave(env);
    l2c_session_leave(draft);
    l2c_session_leave(target);
    return status;
}
