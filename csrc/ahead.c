/*
 * ahead.c - several sweeps in a step of a batch, where the backend makes them without this side.
 *
 * That is while all stories are being told, none of them wants anything of us between two tokens, and no prompt is left
 * to read. What a story has after its end is thrown away.
 */
#include "backend.h"
#include "batch.h"

static int needs_us(const story *s) {
    return s->masked || (s->tell & (L2C_TELL_CHOICES | L2C_TELL_LOGPROBS)) != 0 || l2c_sampler_adjusts(&s->sampler);
}

/* Lists the stories that go on; 0 for none, or where one cannot. */
static size_t list(l2c_batch *b) {
    size_t n = 0;
    for (size_t i = 0; i < b->n_stories; i++) {
        story *s = &b->stories[i];
        if (!under_way(s)) continue;
        if (s->stage != DECODE || needs_us(s)) return 0;
        size_t left = s->n_max - s->n;
        b->rows[n] = (l2c_row){(int32_t)i, (int32_t)s->fed, s->tokens[s->fed], 1};
        b->continuations[n] = (l2c_continuation){
            .sampler = &s->sampler, .n_steps = min_size(left, L2C_MAX_STEPS), .tokens = s->tokens + s->n};
        b->to_sample[n++] = s;
    }
    return n;
}

/* Tokens that end some story: the backend need not go on after them. It is a matter of time alone, so that a few do. */
static size_t list_ends(const l2c_batch *b, size_t n, int32_t *ends, size_t most) {
    size_t n_ends = 0;
    for (size_t i = 0; i < n; i++) {
        const story *s = b->to_sample[i];
        for (size_t e = 0; e < s->n_first_ends && n_ends < most; e++)
            if (!l2c_is_among(ends, n_ends, s->first_ends[e])) ends[n_ends++] = s->first_ends[e];
    }
    return n_ends;
}

/* Returns the tokens that were fed for it. */
static size_t take(l2c_batch *b, story *s, const l2c_continuation *c) {
    size_t n = 0;
    while (n < c->n_new && s->stage == DECODE) {
        l2c_sampler_toss(&s->sampler);
        s->fed++;
        l2c_batch_accept(b, s, &(l2c_draw){.token = c->tokens[n++]}, 0.0);
    }
    if (s->stage != DECODE || c->status == L2C_OK) return n;
    s->fed++;
    l2c_batch_accept(b, s, &(l2c_draw){.status = c->status}, 0.0);
    return n + 1;
}

l2c_status l2c_batch_run_ahead(l2c_batch *b, l2c_error *err) {
    int32_t ends[64];
    if (b->session->backend->decode == NULL) return L2C_UNSUPPORTED;
    size_t n = list(b), most = 0;
    if (n == 0) return L2C_UNSUPPORTED;
    size_t n_ends = list_ends(b, n, ends, sizeof ends / sizeof *ends);
    l2c_status status = l2c_session_continue(b->session, b->rows, b->continuations, n, ends, n_ends, err);
    if (status != L2C_OK) return status;
    for (size_t i = 0; i < n; i++) {
        size_t fed = take(b, b->to_sample[i], &b->continuations[i]);
        b->counts.rows += fed;
        most = fed > most ? fed : most;
    }
    b->counts.sweeps += most;
    return L2C_OK;
}
