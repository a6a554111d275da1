/*
 * batch.h - a batch, shared by batch.c, which admits and ends stories, and sweep.c and ahead.c, which advance them.
 */
#ifndef L2C_BATCH_H
#define L2C_BATCH_H

#include "backend.h"

typedef enum {
    FREE,          /* the sequence still holds tokens[0 .. fed) of the story that was here */
    PREFILL,       /* its prompt is being fed */
    DECODE,        /* all tokens but the last are fed */
    AWAITS_CHOICE, /* the next step samples from logits row `row` */
    ENDED          /* its END event has not been returned yet */
} stage;

/* A story and the sequence it is told in: both have the same index. */
typedef struct story {
    stage stage;
    int64_t id;              /* id % n_stories is this story's index */
    _Atomic int64_t dropped; /* largest id that l2c_batch_drop was called with */
    int64_t last_used;       /* the larger, the later */
    l2c_sampler sampler;
    l2c_logit_bias *biases;  /* (vocab_size) the sampler's */
    int32_t tell;            /* l2c_tell flags: the events that are wanted */
    size_t n_top;            /* likeliest tokens to report */

    int32_t *tokens;            /* (n_ctx + 1) prompt and story */
    size_t n_prompt, n, n_max;  /* of the prompt; so far; at most, prompt included */
    size_t fed;                 /* of them, in the cache */
    size_t n_cached;            /* of the prompt, found there */
    size_t n_rows;              /* of them, in this sweep */

    struct story *waits_for; /* in PREFILL: an older story that will have fed the first waits_until tokens; or NULL */
    int64_t waits_for_id;
    size_t waits_until;

    int32_t first_ends[8]; /* the first of the tokens that end the story (ahead.c) */
    size_t n_first_ends;
    uint32_t *ends; /* (mask_words) a bit for each token that ends the story */
    uint32_t *mask; /* (mask_words) and for each that may be chosen next, where `masked` */
    int masked;

    size_t row;       /* of logits, from which the next token is sampled */
    float *logits;    /* (vocab_size) that row as the model computed it, where log-probabilities are told */
    l2c_logprob *top; /* (L2C_MAX_TOP) */
} story;

struct l2c_batch {
    l2c_session *session;
    size_t vocab_size, mask_words, n_ctx, n_stories;
    story *stories;                 /* (n_stories) */
    story **to_sample;              /* (n_stories) those whose next token is being sampled */
    l2c_draw *draws;                /* (n_stories) the same */
    l2c_draw_options *draw_options; /* (n_stories) and what is wanted besides */
    l2c_continuation *continuations; /* (n_stories) where several sweeps are made at once */
    l2c_event *events;              /* (events_a_story * n_stories) to be told by the next step that succeeds */
    size_t n_to_sample, n_events, events_a_story;
    size_t turn;                    /* index of the story whose prompt gets rows first in the next sweep */
    int64_t n_added, clock;
    l2c_batch_counts counts;
    l2c_row *rows;                  /* (session->max_rows) */
    atomic_int busy;
    void *memory; /* one block, of which the arrays of batch and stories are parts (batch.c) */
};

static inline int enter(l2c_batch *b) { return !atomic_exchange_explicit(&b->busy, 1, memory_order_acquire); }
static inline void leave(l2c_batch *b) { atomic_store_explicit(&b->busy, 0, memory_order_release); }

static inline l2c_status fail_busy(l2c_error *err) {
    return l2c_fail(err, L2C_BUSY, "the batch is being used by another thread");
}

static inline size_t min_size(size_t a, size_t b) { return a < b ? a : b; }
static inline int bit(const uint32_t *bits, int32_t token) { return bits[token / 32] >> (token % 32) & 1; }
static inline int under_way(const story *s) {
    return s->stage == PREFILL || s->stage == DECODE || s->stage == AWAITS_CHOICE;
}

static inline int32_t sequence_of(const l2c_batch *b, const story *s) { return (int32_t)(s - b->stories); }

static inline story *find(const l2c_batch *b, int64_t id) {
    story *s = id > 0 ? &b->stories[(size_t)id % b->n_stories] : NULL;
    return s != NULL && s->id == id && under_way(s) ? s : NULL;
}

/* At most four events a story between two successful steps, and one drop a story in l2c_batch_add: hence 5 a story. Where
 * a step makes several sweeps, there can be as many more. */
static inline l2c_event *add_event(l2c_batch *b, const story *s, l2c_event_kind kind) {
    l2c_event *event = &b->events[b->n_events++];
    *event = (l2c_event){.story = s->id, .kind = (int32_t)kind, .tokens = s->tokens + s->n_prompt,
                         .n_tokens = s->n - s->n_prompt};
    return event;
}

static inline void end(l2c_batch *b, story *s, l2c_end reason) {
    add_event(b, s, L2C_EVENT_END)->reason = (int32_t)reason;
    s->stage = ENDED;
    s->last_used = ++b->clock;
}

static inline void end_dropped(l2c_batch *b, story *s, stage then) {
    end(b, s, L2C_END_DROPPED);
    b->events[b->n_events - 1].tokens = NULL;
    s->stage = then;
}

static inline int is_dropped(const story *s) { return under_way(s) && atomic_load(&s->dropped) == s->id; }

/* l2c_batch_create with a session of at most max_rows sequences, which it owns from here on, also when it fails. */
l2c_status l2c_batch_create_on(l2c_session *session, l2c_batch **batch, l2c_error *err);

/* batch.c: what follows from a story's draw. */
void l2c_batch_accept(l2c_batch *b, story *s, const l2c_draw *draw, double logprob);

/* ahead.c: makes several sweeps at once; L2C_UNSUPPORTED, with nothing done, where that cannot be. */
l2c_status l2c_batch_run_ahead(l2c_batch *b, l2c_error *err);

/* Resumes stories whose wait is over: the other one has fed enough of its prompt, or is gone. */
void l2c_batch_end_waiting(l2c_batch *b);

#endif
