/*
 * sweep.c - continuous batching: a step.
 *
 * A step makes the choices that waited for the caller, then one sweep: a row of every story that is being
 * told, and of prompts, in turn, as many rows as keep the others waiting for no more than that sweep; or on
 * a card, where nobody is needed in between, several sweeps (ahead.c). No
 * story's tokens depend on this order: a row's logits are the same bits whatever else is in the call, and
 * copied keys and values are those that would have been computed.
 */
#include <string.h>

#include "batch.h"
#include "system/float_env.h"

enum { TURN = 8 }; /* rows of a sweep for one prompt before the next one has its turn */

/* ---- Choosing -------------------------------------------------------------------------------------- */

static int wants_logprobs(const story *s) { return (s->tell & L2C_TELL_LOGPROBS) != 0; }

static void keep_logits(const l2c_batch *b, story *s) {
    const float *x = l2c_session_logits(b->session, s->row);
    if (x != NULL) memcpy(s->logits, x, b->vocab_size * sizeof *x); /* else the card is lost, and the draw says so */
}

/* The next token of each story in `to_sample`. */
static l2c_status draw(l2c_batch *b, l2c_error *err) {
    for (size_t i = 0; i < b->n_to_sample; i++) {
        story *s = b->to_sample[i];
        b->draws[i] = (l2c_draw){.row = s->row, .sampler = &s->sampler, .history = s->tokens, .n_history = s->n};
        b->draw_options[i] = (l2c_draw_options){
            .mask = s->masked ? s->mask : NULL,
            .logits = wants_logprobs(s) ? s->logits : NULL,
            .logits_are_kept = s->stage == AWAITS_CHOICE,
            .top = s->top,
            .n_top = s->n_top,
        };
    }
    if (b->n_to_sample == 0) return L2C_OK;
    l2c_status status = l2c_session_sample_with(b->session, b->draws, b->draw_options, b->n_to_sample, err);
    if (status != L2C_OK) return status;
    for (size_t i = 0; i < b->n_to_sample; i++)
        l2c_batch_accept(b, b->to_sample[i], &b->draws[i], b->draw_options[i].logprob);
    return L2C_OK;
}

static l2c_status draw_waiting(l2c_batch *b, l2c_error *err) {
    b->n_to_sample = 0;
    for (size_t i = 0; i < b->n_stories; i++)
        if (b->stories[i].stage == AWAITS_CHOICE) b->to_sample[b->n_to_sample++] = &b->stories[i];
    return draw(b, err);
}

/* ---- The sweep ------------------------------------------------------------------------------------- */

static void share_rows(l2c_batch *b) {
    size_t left = (size_t)b->session->max_rows, of_prompts = left / 2;
    for (size_t i = 0; i < b->n_stories; i++) {
        b->stories[i].n_rows = b->stories[i].stage == DECODE; /* one row each; there are never more than max_rows */
        left -= b->stories[i].n_rows;
    }
    left = min_size(left, of_prompts);
    for (size_t given = 1, first = b->turn; given > 0;) {
        given = 0;
        for (size_t i = 0; i < b->n_stories && left > 0; i++) {
            story *s = &b->stories[(first + i) % b->n_stories];
            if (s->stage != PREFILL || s->waits_for != NULL) continue;
            size_t n = min_size(min_size(s->n - s->fed - s->n_rows, TURN), left);
            if (n > 0) b->turn = (first + i + 1) % b->n_stories;
            s->n_rows += n;
            left -= n;
            given += n;
        }
    }
}

static size_t write_rows(l2c_batch *b) {
    size_t n = 0;
    for (size_t i = 0; i < b->n_stories; i++) {
        const story *s = &b->stories[i];
        for (size_t p = s->fed; p < s->fed + s->n_rows; p++)
            b->rows[n++] = (l2c_row){(int32_t)i, (int32_t)p, s->tokens[p], p == s->n - 1};
    }
    return n;
}

/* After a sweep of which no token could be picked: the next one computes the logits again. */
static void take_back(l2c_batch *b) {
    for (size_t i = 0; i < b->n_stories; i++) {
        story *s = &b->stories[i];
        if (s->n_rows == 0 || s->fed < s->n) continue;
        s->fed--;
        s->stage = s->n == s->n_prompt ? PREFILL : DECODE;
        if (s->stage == PREFILL) b->counts.prompt_tokens--; /* it will be read again */
    }
}

static l2c_status sweep(l2c_batch *b, l2c_error *err) {
    share_rows(b);
    size_t n_rows = write_rows(b), n_logits = 0, n_read = 0, n_events = b->n_events;
    if (n_rows == 0) return L2C_OK;
    l2c_status status = l2c_session_forward(b->session, b->rows, n_rows, err);
    if (status != L2C_OK) return status;
    b->n_to_sample = 0;
    for (size_t i = 0; i < b->n_stories; i++) {
        story *s = &b->stories[i];
        s->fed += s->n_rows;
        if (s->stage == PREFILL) n_read += s->n_rows;
        if (s->n_rows == 0 || s->fed < s->n) continue;
        if (s->tell & L2C_TELL_READ && s->stage == PREFILL)
            add_event(b, s, L2C_EVENT_READ)->n_cached = (int32_t)s->n_cached;
        s->row = n_logits++;
        if (s->tell & L2C_TELL_CHOICES) {
            if (wants_logprobs(s)) keep_logits(b, s);
            s->stage = AWAITS_CHOICE;
            add_event(b, s, L2C_EVENT_CHOOSE);
        } else {
            b->to_sample[b->n_to_sample++] = s;
        }
    }
    b->counts.prompt_tokens += n_read;
    l2c_batch_end_waiting(b); /* before a sequence that others waited for is another story's */
    status = draw(b, err);
    if (status != L2C_OK) {
        take_back(b);
        b->n_events = n_events;
        return status;
    }
    b->counts.sweeps++;
    b->counts.rows += n_rows;
    return L2C_OK;
}

l2c_status l2c_batch_step(l2c_batch *b, const l2c_event **events, size_t *n_events, l2c_error *err) {
    if (!enter(b)) return fail_busy(err);
    l2c_float_env env = l2c_float_enter();
    for (size_t i = 0; i < b->n_stories; i++)
        if (is_dropped(&b->stories[i])) end_dropped(b, &b->stories[i], ENDED);
    l2c_batch_end_waiting(b);
    l2c_status status = draw_waiting(b, err);
    if (status == L2C_OK) {
        status = l2c_batch_run_ahead(b, err);
        if (status == L2C_UNSUPPORTED) status = sweep(b, err);
    }
    if (status == L2C_OK) {
        for (size_t i = 0; i < b->n_stories; i++)
            if (b->stories[i].stage == ENDED) b->stories[i].stage = FREE;
        *events = b->events;
        *n_events = b->n_events;
        b->n_events = 0;
    }
    l2c_float_leave(env);
    leave(b);
    return status;
}
