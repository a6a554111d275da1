/*
 * draws.c - choosing tokens from rows of logits in this process's memory, on all threads of the pool.
 */
#include <math.h>
#include <string.h>

#include "internal.h"

typedef struct {
    const l2c_chooser *chooser;
    l2c_draw *draws;
    l2c_draw_options *options;
    const size_t *which;
    size_t n;
    l2c_error *err; /* of a single draw */
} drawing;

static void forbid(float *x, const uint32_t *mask, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (!(mask[i / 32] >> (i % 32) & 1)) x[i] = -INFINITY;
}

static void tell_logprobs(const l2c_kernels *kernels, l2c_draw_options *options, int32_t token, size_t n) {
    l2c_log_total total = l2c_logprob_total(kernels, options->logits, n);
    options->logprob = l2c_logprob_of(total, options->logits[token]);
    l2c_logprob_top(kernels, total, options->logits, n, options->top, options->n_top);
}

static void draw_on_thread(void *arg, int thread, int n_threads) {
    const drawing *d = arg;
    const l2c_chooser *c = d->chooser;
    size_t vocab = c->vocab_size;
    l2c_candidate *candidates = c->candidates + (size_t)thread * 2 * vocab;
    for (size_t i = (size_t)thread; i < d->n; i += (size_t)n_threads) {
        size_t at = d->which != NULL ? d->which[i] : i;
        l2c_draw *draw = &d->draws[at];
        l2c_draw_options none = {.mask = NULL}, *options = d->options != NULL ? &d->options[at] : &none;
        float *x = c->logits + draw->row * vocab;
        if (options->logits != NULL && !options->logits_are_kept) memcpy(options->logits, x, vocab * sizeof *x);
        if (options->mask != NULL) forbid(x, options->mask, vocab);
        draw->status = l2c_sampler_pick(draw->sampler, c->kernels, x, (int32_t)vocab, draw->history, draw->n_history,
                                        candidates, &draw->token, d->err);
        if (options->logits != NULL && draw->status == L2C_OK) tell_logprobs(c->kernels, options, draw->token, vocab);
    }
}

void l2c_choose(const l2c_chooser *chooser, l2c_draw *draws, l2c_draw_options *options, const size_t *which, size_t n,
                l2c_error *err) {
    drawing d = {chooser, draws, options, which, n, n == 1 ? err : NULL};
    if (n == 1) draw_on_thread(&d, 0, 1);
    else if (n > 1) l2c_pool_run(chooser->pool, draw_on_thread, &d);
}
