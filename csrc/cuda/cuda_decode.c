/*
 * cuda_decode.c - few rows, and several tokens, in one launch: a grid that stays (decode.cuh).
 */
#include "cuda_session.h"

/* p->pass, and draws where there are some. L2C_UNSUPPORTED, once, where the card has no room for it. */
static l2c_status launch(l2c_cuda_session *s, l2c_gpu_decode *p, int32_t max_keys, l2c_error *err) {
    l2c_device *d = s->device;
    p->rows = s->card_rows;
    p->draws = s->card_draws;
    p->coins = s->card_coins;
    p->ends = s->card_ends;
    p->cancel = &s->shared->cancel; /* of the host's memory: with one address space, its pointers are the card's as well */
    p->done = &s->shared->done;
    p->tokens = s->shared->tokens;
    p->state = s->card_state;
    p->inputs = s->card_inputs;
    s->shared->done = 0;
    s->shared->cancel = l2c_session_stopping(s->session);
    cu_result result = d->cu.memset_d8_async(l2c_card_address(s->card_state), 0, sizeof *s->card_state, s->stream);
    l2c_status status = l2c_device_check(d, result, "preparing the decode kernel", err);
    if (status != L2C_OK) return status;
    l2c_gpu_launch how = l2c_gpu_decode_launch(p, max_keys, d->info.processors, d->shared_limit);
    status = l2c_device_launch(d, s->stream, how, p, err);
    if (status == L2C_UNSUPPORTED) s->decodes = 0; /* a kernel a phase from here on */
    return status;
}

l2c_status l2c_cuda_forward_at_once(l2c_cuda_session *s, const l2c_row *rows, size_t n_rows, l2c_error *err) {
    l2c_gpu_decode p = {.steps = 1};
    int32_t max_keys;
    if (!s->decodes || n_rows > L2C_GPU_TOKENS) return L2C_UNSUPPORTED;
    p.pass = s->pass;
    l2c_status status = l2c_cuda_send_rows(s, &p.pass, rows, n_rows, &max_keys, err);
    return status == L2C_OK ? launch(s, &p, max_keys, err) : status;
}

/* ---- Several tokens ---------------------------------------------------------------------------------- */

/* No launch is to last longer than some 50 ms, at a fifth of what today's cards read a second. */
static size_t steps_a_launch(const l2c_cuda_session *s, size_t wanted) {
    const uint64_t bytes_a_launch = UINT64_C(8) << 30;
    uint64_t most = bytes_a_launch / (s->model->placed->bytes + 1);
    most = most < 1 ? 1 : most > L2C_MAX_STEPS ? L2C_MAX_STEPS : most;
    return wanted < most ? wanted : (size_t)most;
}

static l2c_status send(l2c_cuda_session *s, const void *to, const void *from, size_t bytes, l2c_error *err) {
    cu_result result = bytes > 0 ? s->device->cu.memcpy_to_device_async(l2c_card_address(to), from, bytes, s->stream) : CU_SUCCESS;
    return l2c_device_check(s->device, result, "sending draws", err);
}

/* Runs up to n steps; coins are in s->shared. */
static l2c_status run(l2c_cuda_session *s, const l2c_row *row, const l2c_sampler *sampler, size_t n, const int32_t *ends,
                      size_t n_ends, l2c_error *err) {
    l2c_gpu_decode p = {.n_draws = 1, .n_ends = (int32_t)n_ends, .steps = (int32_t)n};
    int32_t max_keys;
    s->draws[0] = (l2c_gpu_draw){.temperature = sampler->temperature, .top_p = sampler->top_p, .min_p = sampler->min_p,
                                 .top_k = sampler->top_k};
    for (size_t i = 0; i < n_ends; i++) s->shared->ends[i] = ends[i];
    p.pass = s->pass;
    l2c_status status = l2c_cuda_send_angles(s, row->position + (int32_t)n - 1, err);
    if (status == L2C_OK) status = l2c_cuda_send_rows(s, &p.pass, row, 1, &max_keys, err);
    if (status == L2C_OK) status = send(s, s->card_draws, s->draws, sizeof *s->draws, err);
    if (status == L2C_OK) status = send(s, s->card_coins, s->shared->coins, n * sizeof *s->shared->coins, err);
    if (status == L2C_OK) status = send(s, s->card_ends, s->shared->ends, n_ends * sizeof *ends, err);
    if (status == L2C_OK) status = launch(s, &p, max_keys + (int32_t)n - 1, err);
    l2c_status waited = l2c_cuda_wait(s, "computing", status == L2C_OK ? err : NULL);
    return status == L2C_OK ? waited : status;
}

/* The token that the card left to the host: from the logits of the last sweep. */
static l2c_status choose_here(l2c_cuda_session *s, l2c_sampler sampler, int32_t *token, l2c_error *err) {
    l2c_draw draw = {.row = 0, .sampler = &sampler};
    if (l2c_cuda_logits(s->session, 0) == NULL)
        return l2c_fail(err, L2C_DEVICE, "%s is lost to this process", s->device->info.name);
    l2c_choose(&s->chooser, &draw, NULL, NULL, 1, err);
    *token = draw.token;
    return draw.status;
}

l2c_status l2c_cuda_decode(l2c_session *session, const l2c_row *row, l2c_sampler *sampler, size_t n_steps,
                           const int32_t *ends, size_t n_ends, int32_t *tokens, uint64_t *rng_states, size_t *n_new,
                           size_t *n_fed, l2c_error *err) {
    l2c_cuda_session *s = session->state;
    size_t n = steps_a_launch(s, n_steps);
    if (!s->decodes || n_ends > L2C_CUDA_MAX_ENDS) return L2C_UNSUPPORTED;
    l2c_sampler after = *sampler;
    for (size_t i = 0; i < n; i++) { /* one coin a token */
        s->shared->coins[i] = after.temperature > 0.0f ? l2c_sampler_coin(&after) : 0.0f;
        rng_states[i] = after.rng_state;
    }
    s->fetched[0] = 0;
    s->totals_known = 0;
    l2c_status status = l2c_device_enter(s->device, err);
    if (status != L2C_OK) return status;
    status = run(s, row, sampler, n, ends, n_ends, err);
    l2c_device_leave(s->device);
    if (status != L2C_OK) return status;
    *n_fed = (size_t)s->shared->done;
    for (*n_new = 0; *n_new < *n_fed && status == L2C_OK; ++*n_new) {
        int32_t token = s->shared->tokens[*n_new];
        if (token == L2C_GPU_HOST) status = choose_here(s, *sampler, &token, err);
        else if (token < 0) status = l2c_sampler_fail_unusable(err);
        if (status != L2C_OK) break;
        tokens[*n_new] = token;
        sampler->rng_state = rng_states[*n_new];
    }
    return *n_new > 0 ? L2C_OK : status; /* what failed after a token fails again in the next call, by itself */
}
