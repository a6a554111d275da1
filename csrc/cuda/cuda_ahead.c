/*
 * cuda_ahead.c - stories that go on by several tokens without the host: of few stories in one launch (cuda_decode.c), of
 * more by sweeps on the stream, whose last kernel puts each token into its row.
 */
#include "cuda_session.h"

/* ---- What goes to the card --------------------------------------------------------------------------------- */

static l2c_status send(l2c_cuda_session *s, const void *to, const void *from, size_t bytes, l2c_error *err) {
    cu_result result = bytes > 0 ? s->device->cu.memcpy_to_device_async(l2c_card_address(to), from, bytes, s->stream) : CU_SUCCESS;
    return l2c_device_check(s->device, result, "sending draws", err);
}

/* Rows, draws, the coins of n_sweeps and the first of the ends. Says how many of those, and how many keys the longest row
 * of the first sweep has. */
static l2c_status send_stories(l2c_cuda_session *s, l2c_gpu_pass *pass, const l2c_row *rows,
                               const l2c_continuation *stories, size_t n, size_t n_sweeps, const int32_t *ends,
                               size_t *n_ends, int32_t *max_keys, l2c_error *err) {
    l2c_status status = L2C_OK;
    for (size_t i = 0; i < n && status == L2C_OK; i++) {
        l2c_sampler tossing = *stories[i].sampler;
        size_t fed = stories[i].n_steps < n_sweeps ? stories[i].n_steps : n_sweeps;
        s->draws[i] = l2c_cuda_draw(i, stories[i].sampler);
        s->draws[i].left = (int32_t)stories[i].n_steps;
        for (size_t k = 0; k < n_sweeps; k++) s->coins[k * n + i] = l2c_sampler_toss(&tossing);
        status = l2c_cuda_send_angles(s, rows[i].position + (int32_t)fed - 1, err);
    }
    if (*n_ends > L2C_CUDA_MAX_ENDS) *n_ends = L2C_CUDA_MAX_ENDS;
    for (size_t i = 0; i < *n_ends; i++) s->shared->ends[i] = ends[i];
    if (status == L2C_OK) status = l2c_cuda_send_rows(s, pass, rows, n, max_keys, err);
    if (status == L2C_OK) status = send(s, s->card_draws, s->draws, n * sizeof *s->draws, err);
    if (status == L2C_OK) status = send(s, s->card_coins, s->coins, n_sweeps * n * sizeof *s->coins, err);
    return status == L2C_OK ? send(s, s->card_ends, s->shared->ends, *n_ends * sizeof *ends, err) : status;
}

/* ---- Sweeps on the stream ------------------------------------------------------------------------------------ */

/* Queues up to *n_sweeps, two ahead of the card: before each further one it looks whether that is still wanted. Says how
 * many it queued. */
static l2c_status queue_sweeps(l2c_cuda_session *s, const l2c_gpu_pass *pass, int32_t max_keys, size_t n_ends,
                               size_t *n_sweeps, l2c_error *err) {
    const l2c_driver *cu = &s->device->cu;
    double ms = l2c_pace_ms(&s->queue_pace, (size_t)pass->n);
    int in_parts = pass->n > L2C_CUDA_MANY_ROWS && !(ms > 0 && ms < L2C_CUDA_SHORT_SWEEP);
    l2c_gpu_sample sample = {.logits = pass->logits, .draws = s->card_draws, .vocab_size = pass->vocab_size, .n = pass->n,
                             .rows = s->card_rows, .coins = s->card_coins, .ends = s->card_ends, .tokens = s->tokens,
                             .n_ends = (int32_t)n_ends};
    for (size_t k = 0; k < *n_sweeps; k++, sample.step++) {
        cu_event event = s->events[L2C_CUDA_SWEPT + k % 2];
        int32_t keys = max_keys + sample.step; /* but for stories that have ended */
        if (keys > pass->n_ctx) keys = pass->n_ctx;
        l2c_status status = k >= 2 ? l2c_device_check(s->device, cu->event_synchronize(event), "computing", err) : L2C_OK;
        if (status == L2C_OK && k > 0 && atomic_load(&s->shared->cancel)) status = L2C_CANCELLED;
        if (status == L2C_OK) status = l2c_cuda_pass(s, pass, keys, in_parts, err);
        if (status == L2C_CANCELLED && k > 0) {
            *n_sweeps = k;
            return L2C_OK;
        }
        if (status == L2C_OK) status = l2c_device_launch(s->device, s->stream, l2c_gpu_sample_launch(&sample), &sample, err);
        if (status == L2C_OK) status = l2c_device_check(s->device, cu->event_record(event, s->stream), "computing", err);
        if (status != L2C_OK) return status;
    }
    return L2C_OK;
}

/* ---- A call --------------------------------------------------------------------------------------------------- */

/* Makes up to *n_sweeps, and says how many it made. */
static l2c_status make_sweeps(l2c_cuda_session *s, const l2c_row *rows, const l2c_continuation *stories, size_t n,
                              int in_one_launch, size_t *n_sweeps, const int32_t *ends, size_t n_ends, l2c_error *err) {
    const l2c_driver *cu = &s->device->cu;
    l2c_gpu_pass pass = s->pass;
    int32_t max_keys;
    float ms;
    l2c_status status = send_stories(s, &pass, rows, stories, n, *n_sweeps, ends, &n_ends, &max_keys, err);
    if (status == L2C_OK) status = l2c_device_check(s->device, cu->event_record(s->events[L2C_CUDA_BEGAN], s->stream), "computing", err);
    if (status == L2C_OK && in_one_launch) status = l2c_cuda_launch_sweeps(s, &pass, max_keys, (int32_t)n_ends, *n_sweeps, err);
    else if (status == L2C_OK) status = queue_sweeps(s, &pass, max_keys, n_ends, n_sweeps, err);
    if (status == L2C_OK) status = l2c_device_check(s->device, cu->event_record(s->events[L2C_CUDA_ENDED], s->stream), "computing", err);
    l2c_status waited = l2c_cuda_wait(s, "computing", status == L2C_OK ? err : NULL);
    if (status == L2C_OK) status = waited;
    if (status == L2C_OK)
        status = l2c_device_check(s->device, cu->event_elapsed_time(&ms, s->events[L2C_CUDA_BEGAN], s->events[L2C_CUDA_ENDED]), "timing a launch", err);
    if (status != L2C_OK) return status;
    if (in_one_launch) *n_sweeps = (size_t)s->shared->done;
    l2c_pace_note(in_one_launch ? &s->launch_pace : &s->queue_pace, n, *n_sweeps, (double)ms);
    return L2C_OK;
}

/* Gives stories their tokens of n_sweeps, up to an end; lists in s->left those whose next one the card left to the host. */
static size_t take_tokens(l2c_cuda_session *s, l2c_continuation *stories, size_t n, size_t n_sweeps, const int32_t *ends,
                          size_t n_ends, l2c_error *err) {
    size_t n_left = 0;
    for (size_t i = 0; i < n; i++) {
        l2c_continuation *c = &stories[i];
        c->status = L2C_OK;
        for (c->n_new = 0; c->n_new < n_sweeps && c->n_new < c->n_steps;) {
            int32_t token = s->tokens[c->n_new * n + i];
            if (token == L2C_GPU_HOST) s->left[n_left++] = i;
            else if (token < 0) c->status = l2c_sampler_fail_unusable(n == 1 ? err : NULL);
            if (token < 0) break;
            c->tokens[c->n_new++] = token;
            if (l2c_is_among(ends, n_ends, token)) break;
        }
    }
    return n_left;
}

/* Draws these, from logits that the sweeps after them, if any, computed again. */
static l2c_status draw_left(l2c_cuda_session *s, l2c_continuation *stories, size_t n_left, int alone, l2c_error *err) {
    l2c_status status = l2c_cuda_fetch_rows(s, s->left, n_left, err);
    if (status != L2C_OK) return status;
    for (size_t k = 0; k < n_left; k++) {
        const l2c_continuation *c = &stories[s->left[k]];
        s->samplers[k] = *c->sampler;
        for (size_t j = 0; j < c->n_new; j++) l2c_sampler_toss(&s->samplers[k]);
        s->host_draws[k] = (l2c_draw){.row = s->left[k], .sampler = &s->samplers[k]};
    }
    l2c_choose(&s->chooser, s->host_draws, NULL, NULL, n_left, alone ? err : NULL);
    for (size_t k = 0; k < n_left; k++) {
        l2c_continuation *c = &stories[s->left[k]];
        c->status = s->host_draws[k].status;
        if (c->status == L2C_OK) c->tokens[c->n_new++] = s->host_draws[k].token;
    }
    return L2C_OK;
}

/* In one launch all stories make the same steps, so that the first end of one ends it. Else the others go on, but not for
 * long: a place in the batch is empty meanwhile. */
static size_t wanted_sweeps(const l2c_continuation *stories, size_t n, int in_one_launch) {
    size_t least = L2C_MAX_STEPS, most = 1;
    for (size_t i = 0; i < n; i++) {
        size_t steps = stories[i].n_steps;
        least = steps < least ? steps : least;
        most = steps > most ? steps : most;
    }
    return in_one_launch ? least : most < L2C_CUDA_AHEAD ? most : L2C_CUDA_AHEAD;
}

l2c_status l2c_cuda_decode(l2c_session *session, const l2c_row *rows, l2c_continuation *stories, size_t n,
                           const int32_t *ends, size_t n_ends, l2c_error *err) {
    l2c_cuda_session *s = session->state;
    int in_one_launch = s->decodes && n <= L2C_GPU_TOKENS;
    size_t n_sweeps = l2c_pace_sweeps(in_one_launch ? &s->launch_pace : &s->queue_pace, n, wanted_sweeps(stories, n, in_one_launch));
    l2c_status status = l2c_device_enter(s->device, err);
    if (status != L2C_OK) return status;
    l2c_cuda_forget_logits(s);
    status = make_sweeps(s, rows, stories, n, in_one_launch, &n_sweeps, ends, n_ends, err);
    /* Whoever wanted this call to return has it so. Set again from here on, it shortens the next one. */
    atomic_store(&s->shared->cancel, 0);
    l2c_device_leave(s->device);
    if (status != L2C_OK) return status;
    size_t n_left = take_tokens(s, stories, n, n_sweeps, ends, n_ends, err);
    return n_left > 0 ? draw_left(s, stories, n_left, n == 1, err) : L2C_OK;
}
