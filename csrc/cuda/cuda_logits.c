/*
 * cuda_logits.c - what is made of logits on a card: tokens and log-probabilities there; on the host, from a copy, where
 * the caller wants to see or has changed a row, or the choice is not one that a kernel makes (params.h).
 */
#include <math.h>

#include "cuda_session.h"

/* Begins to fetch a row, unless it is there. */
static l2c_status fetch(l2c_cuda_session *s, size_t i, l2c_error *err) {
    size_t vocab = s->chooser.vocab_size;
    if (s->fetched[i]) return L2C_OK;
    cu_result result = s->device->cu.memcpy_to_host_async(s->chooser.logits + i * vocab,
                                                          l2c_card_address(s->pass.logits + i * vocab),
                                                          vocab * sizeof(float), s->stream);
    s->fetched[i] = result == CU_SUCCESS;
    return l2c_device_check(s->device, result, "fetching logits", err);
}

float *l2c_cuda_logits(l2c_session *session, size_t i) {
    l2c_cuda_session *s = session->state;
    if (!s->fetched[i]) {
        if (l2c_device_enter(s->device, NULL) != L2C_OK) return NULL;
        l2c_status status = fetch(s, i, NULL);
        if (status == L2C_OK) status = l2c_cuda_wait(s, "fetching logits", NULL);
        l2c_device_leave(s->device);
        if (status != L2C_OK) return NULL;
    }
    return s->chooser.logits + i * s->chooser.vocab_size;
}

/* ---- Tokens ------------------------------------------------------------------------------------------- */

static int is_hosts(const l2c_cuda_session *s, const l2c_draw *draw, const l2c_draw_options *options) {
    return l2c_sampler_adjusts(draw->sampler) || s->fetched[draw->row] || (options != NULL && (options->mask != NULL || options->logits != NULL));
}

/* The sampler as it is after its coin, and that coin. */
static l2c_sampler tossed(const l2c_sampler *sampler, float *coin) {
    l2c_sampler after = *sampler;
    *coin = after.temperature > 0.0f ? l2c_sampler_coin(&after) : 0.0f;
    return after;
}

/* Has the card make n draws, and waits for them. */
static l2c_status draw_there(l2c_cuda_session *s, size_t n, l2c_error *err) {
    const l2c_driver *cu = &s->device->cu;
    l2c_gpu_sample sample = {.logits = s->pass.logits, .draws = s->card_draws, .vocab_size = s->pass.vocab_size, .n = (int32_t)n};
    size_t bytes = n * sizeof *s->draws;
    cu_result result = cu->memcpy_to_device_async(l2c_card_address(s->card_draws), s->draws, bytes, s->stream);
    l2c_status status = l2c_device_check(s->device, result, "sending draws", err);
    if (status == L2C_OK)
        status = l2c_device_launch(s->device, s->stream, l2c_gpu_sample_launch(&sample), &sample, err);
    if (status != L2C_OK) return status;
    result = cu->memcpy_to_host_async(s->drawn, l2c_card_address(s->card_draws), bytes, s->stream);
    status = l2c_device_check(s->device, result, "fetching tokens", err);
    return status == L2C_OK ? l2c_cuda_wait(s, "choosing tokens", err) : status;
}

/* What a draw that the card made came to; 0 where the host must make it. */
static int settle(l2c_draw *draw, int32_t token, l2c_error *err) {
    float coin;
    if (token == L2C_GPU_HOST) return 0;
    draw->status = token == L2C_GPU_UNUSABLE ? l2c_sampler_fail_unusable(err) : L2C_OK;
    if (draw->status != L2C_OK) return 1;
    *draw->sampler = tossed(draw->sampler, &coin);
    draw->token = token;
    return 1;
}

/* Lists in s->left the draws that are the host's, and fetches their rows. */
static l2c_status draw_by_card(l2c_cuda_session *s, l2c_draw *draws, l2c_draw_options *options, size_t n, size_t *n_left,
                               l2c_error *err) {
    l2c_error *err_of_one = n == 1 ? err : NULL;
    l2c_status status = L2C_OK;
    size_t n_there = 0, at = 0;
    *n_left = 0;
    for (size_t i = 0; i < n; i++) {
        const l2c_sampler *sampler = draws[i].sampler;
        draws[i].status = l2c_sampler_check(sampler, s->pass.vocab_size, err_of_one);
        if (draws[i].status != L2C_OK || is_hosts(s, &draws[i], options != NULL ? &options[i] : NULL)) continue;
        l2c_gpu_draw *d = &s->draws[n_there++];
        *d = (l2c_gpu_draw){.row = (int32_t)draws[i].row, .temperature = sampler->temperature, .top_p = sampler->top_p,
                            .min_p = sampler->min_p, .top_k = sampler->top_k};
        tossed(sampler, &d->coin);
    }
    if (n_there > 0) status = draw_there(s, n_there, err);
    for (size_t i = 0; i < n && status == L2C_OK; i++) {
        if (draws[i].status != L2C_OK) continue;
        int hosts = is_hosts(s, &draws[i], options != NULL ? &options[i] : NULL);
        if (hosts || !settle(&draws[i], s->drawn[at++].token, err_of_one)) s->left[(*n_left)++] = i;
    }
    for (size_t i = 0; i < *n_left && status == L2C_OK; i++) status = fetch(s, draws[s->left[i]].row, err);
    if (status == L2C_OK && *n_left > 0) status = l2c_cuda_wait(s, "fetching logits", err);
    return status;
}

l2c_status l2c_cuda_sample(l2c_session *session, l2c_draw *draws, l2c_draw_options *options, size_t n, l2c_error *err) {
    l2c_cuda_session *s = session->state;
    size_t n_left;
    l2c_status status = l2c_device_enter(s->device, err);
    if (status != L2C_OK) return status;
    status = draw_by_card(s, draws, options, n, &n_left, err);
    l2c_device_leave(s->device);
    if (status == L2C_OK) l2c_choose(&s->chooser, draws, options, s->left, n_left, n == 1 ? err : NULL);
    return status;
}

/* ---- Log-probabilities --------------------------------------------------------------------------------- */

/* Of all rows at once: whoever asks for one asks for the others. */
static l2c_status compute_totals(l2c_cuda_session *s, l2c_error *err) {
    size_t n = s->session->n_logits;
    l2c_gpu_logprob parameter = {.logits = s->pass.logits, .totals = s->card_totals, .vocab_size = s->pass.vocab_size,
                                 .n = (int32_t)n};
    l2c_status status = l2c_device_launch(s->device, s->stream, l2c_gpu_logprob_launch(&parameter), &parameter, err);
    if (status != L2C_OK) return status;
    cu_result result = s->device->cu.memcpy_to_host_async(s->totals, l2c_card_address(s->card_totals),
                                                          n * sizeof *s->totals, s->stream);
    status = l2c_device_check(s->device, result, "fetching log-probabilities", err);
    if (status == L2C_OK) status = l2c_cuda_wait(s, "computing log-probabilities", err);
    s->totals_known = status == L2C_OK;
    return status;
}

static l2c_status fetch_logit(l2c_cuda_session *s, size_t i, int32_t token, l2c_error *err) {
    const float *from = s->pass.logits + i * s->chooser.vocab_size + token;
    cu_result result = s->device->cu.memcpy_to_host_async(s->logit, l2c_card_address(from), sizeof *from, s->stream);
    l2c_status status = l2c_device_check(s->device, result, "fetching a logit", err);
    return status == L2C_OK ? l2c_cuda_wait(s, "fetching a logit", err) : status;
}

l2c_status l2c_cuda_logprob(l2c_session *session, size_t i, int32_t token, double *value, l2c_error *err) {
    l2c_cuda_session *s = session->state;
    if (s->fetched[i]) { /* and perhaps changed */
        const float *x = s->chooser.logits + i * s->chooser.vocab_size;
        *value = l2c_logprob_of(l2c_logprob_total(s->chooser.kernels, x, s->chooser.vocab_size), x[token]);
        return L2C_OK;
    }
    l2c_status status = l2c_device_enter(s->device, err);
    if (status != L2C_OK) return status;
    if (!s->totals_known) status = compute_totals(s, err);
    if (status == L2C_OK) status = fetch_logit(s, i, token, err);
    l2c_device_leave(s->device);
    if (status != L2C_OK) return status;
    const l2c_log_total total = {(double)s->totals[i].largest, log(s->totals[i].sum)};
    *value = l2c_logprob_of(total, *s->logit);
    return L2C_OK;
}
