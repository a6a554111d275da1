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
    /* of the host's memory: with one address space, its pointers are the card's as well */
    p->cancel = (const volatile int32_t *)&s->shared->cancel;
    p->done = &s->shared->done;
    p->tokens = s->tokens;
    p->state = s->card_state;
    p->inputs = s->card_inputs;
    s->shared->done = 0;
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

l2c_status l2c_cuda_launch_sweeps(l2c_cuda_session *s, const l2c_gpu_pass *pass, int32_t max_keys, int32_t n_ends,
                                  size_t n_sweeps, l2c_error *err) {
    l2c_gpu_decode p = {.pass = *pass, .n_draws = pass->n, .n_ends = n_ends, .steps = (int32_t)n_sweeps};
    return launch(s, &p, max_keys + p.steps - 1, err);
}
