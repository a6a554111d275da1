/*
 * batch.c - many stories in one session: continuous batching.
 *
 * A step makes the choices that waited for the caller, then one sweep: a row of every story that is being
 * told, and of prompts, in turn, as many rows as keep the others waiting for no more than that sweep. No
 * story's tokens depend on this order: a row's logits are the same bits whatever else is in the call, and
 * copied keys and values are those that would have been computed.
 */
#include <math.h>
#include <string.h>

#include "internal.h"

enum {
    PROMPT_ROWS = 128, /* rows of prompts in a sweep */
    TURN = 8,          /* of them, for one prompt before the next one has its turn */
    WORTH_WAITING = 16 /* tokens of the prompt that another story is about to read */
};

typedef enum {
    FREE,     /* the sequence still holds tokens[0 .. fed) of the story that was here */
    READING,  /* its prompt */
    TELLING,  /* all tokens but the last are fed */
    CHOOSING, /* the next step draws from logits row `row` */
    ENDED     /* in events that are still to be told */
} stage;

/* Story and sequence: they have the same number. */
typedef struct story {
    stage stage;
    int64_t id;
    _Atomic int64_t dropped; /* largest id that l2c_batch_drop was called with */
    int64_t last_used;       /* the larger, the later */
    l2c_sampler sampler;
    int32_t tell;
    size_t n_top;

    int32_t *tokens;            /* (n_ctx + 1) prompt and story */
    size_t n_prompt, n, n_most; /* of the prompt; so far; at most */
    size_t fed;                 /* of them, in the cache */
    size_t n_rows;              /* of them, in this sweep */

    struct story *ahead; /* while READING: one that will have fed the first n_ahead tokens; or NULL */
    int64_t ahead_id;
    size_t n_ahead;

    uint32_t *ends; /* (words) a bit for each token that ends the story */
    uint32_t *mask; /* (words) and for each that may be chosen next, where `masked` */
    int masked;

    size_t row;       /* of logits, from which the next token is drawn */
    float *logits;    /* (vocab) that row as the model computed it, where log-probabilities are told */
    l2c_logprob chosen;
    l2c_logprob *top; /* (L2C_MAX_TOP) */
} story;

enum { BLOCKS = 10 };

struct l2c_batch {
    l2c_session *session;
    l2c_pool *pool;
    const l2c_kernels *kernels;
    size_t vocab, words, n_ctx, n_stories;
    story *stories;    /* (n_stories) */
    story **drawn;     /* (n_stories) those whose next token is being picked */
    l2c_draw *draws;   /* (n_stories) the same */
    l2c_event *events; /* (4 * n_stories) to be told by the next step that succeeds */
    size_t n_drawn, n_events;
    size_t turn;       /* of this story's prompt */
    int64_t n_added, clock;
    l2c_batch_counts counts;
    l2c_row rows[L2C_MAX_ROWS];
    atomic_int busy;
    void *blocks[BLOCKS];
    int n_blocks;
};

static int enter(l2c_batch *b) { return !atomic_exchange_explicit(&b->busy, 1, memory_order_acquire); }
static void leave(l2c_batch *b) { atomic_store_explicit(&b->busy, 0, memory_order_release); }

static l2c_status fail_busy(l2c_error *err) {
    return l2c_fail(err, L2C_BUSY, "the batch is being used by another thread");
}

static size_t smaller(size_t a, size_t b) { return a < b ? a : b; }
static int bit(const uint32_t *bits, int32_t token) { return bits[token / 32] >> (token % 32) & 1; }
static int under_way(const story *s) { return s->stage == READING || s->stage == TELLING || s->stage == CHOOSING; }

/* ---- Creating ------------------------------------------------------------------------------------- */

static void *block(l2c_batch *b, size_t count, size_t size) {
    return b->blocks[b->n_blocks++] = l2c_memory_zeroed(count, size);
}

l2c_status l2c_batch_create(const l2c_model *model, l2c_pool *pool, int32_t n_sequences, int32_t n_ctx, l2c_kv kv,
                            l2c_isa isa, l2c_batch **batch, l2c_error *err) {
    if (n_sequences < 1 || n_sequences > L2C_MAX_ROWS)
        return l2c_fail(err, L2C_ARG, "%d sequences; a batch has 1 to %d", n_sequences, L2C_MAX_ROWS);
    l2c_session *session;
    l2c_status status = l2c_session_create(model, pool, n_sequences, n_ctx, kv, isa, &session, err);
    if (status != L2C_OK) return status;
    l2c_batch *b = l2c_memory_zeroed(1, sizeof *b);
    if (b == NULL) {
        l2c_session_free(session);
        return l2c_fail(err, L2C_NOMEM, "out of memory for a batch");
    }
    size_t n = b->n_stories = (size_t)n_sequences;
    b->session = session;
    b->pool = pool;
    b->kernels = session->kernels;
    b->n_ctx = (size_t)session->n_ctx;
    b->vocab = (size_t)model->config.vocab_size;
    b->words = (b->vocab + 31) / 32;
    b->stories = block(b, n, sizeof *b->stories);
    b->drawn = block(b, n, sizeof *b->drawn);
    b->draws = block(b, n, sizeof *b->draws);
    b->events = block(b, 4 * n, sizeof *b->events);
    int32_t *tokens = block(b, n * (b->n_ctx + 1), sizeof *tokens);
    uint32_t *bits = block(b, n * 2 * b->words, sizeof *bits);
    float *logits = block(b, n * b->vocab, sizeof *logits);
    l2c_logprob *top = block(b, n * L2C_MAX_TOP, sizeof *top);
    for (int i = 0; i < b->n_blocks; i++)
        if (b->blocks[i] == NULL) {
            l2c_batch_free(b);
            return l2c_fail(err, L2C_NOMEM, "out of memory for a batch of %d x %zu positions", n_sequences, b->n_ctx);
        }
    for (size_t i = 0; i < n; i++) {
        story *s = &b->stories[i];
        s->tokens = tokens + i * (b->n_ctx + 1);
        s->ends = bits + 2 * i * b->words;
        s->mask = s->ends + b->words;
        s->logits = logits + i * b->vocab;
        s->top = top + i * L2C_MAX_TOP;
    }
    *batch = b;
    return L2C_OK;
}

void l2c_batch_free(l2c_batch *b) {
    if (b == NULL) return;
    l2c_session_free(b->session);
    for (int i = 0; i < b->n_blocks; i++) l2c_memory_free(b->blocks[i]);
    l2c_memory_free(b);
}

/* ---- Events, and ends ------------------------------------------------------------------------------ */

static int32_t number(const l2c_batch *b, const story *s) { return (int32_t)(s - b->stories); }

static story *find(const l2c_batch *b, int64_t id) {
    story *s = id > 0 ? &b->stories[(size_t)id % b->n_stories] : NULL;
    return s != NULL && s->id == id && under_way(s) ? s : NULL;
}

/* A story has no more than three events between two steps that succeed. */
static l2c_event *tell(l2c_batch *b, const story *s, l2c_event_kind kind) {
    l2c_event *event = &b->events[b->n_events++];
    *event = (l2c_event){.story = s->id, .kind = (int32_t)kind, .tokens = s->tokens + s->n_prompt, .n_tokens = s->n - s->n_prompt};
    return event;
}

static void end(l2c_batch *b, story *s, l2c_end reason) {
    tell(b, s, L2C_EVENT_END)->reason = (int32_t)reason;
    s->stage = ENDED;
    s->last_used = ++b->clock;
}

static void end_dropped(l2c_batch *b, story *s, stage then) {
    end(b, s, L2C_END_DROPPED);
    b->events[b->n_events - 1].tokens = NULL;
    s->stage = then;
}

void l2c_batch_drop(l2c_batch *b, int64_t id) {
    if (id <= 0) return;
    _Atomic int64_t *dropped = &b->stories[(size_t)id % b->n_stories].dropped;
    int64_t before = atomic_load(dropped);
    while (before < id && !atomic_compare_exchange_weak(dropped, &before, id)) continue;
}

static int is_dropped(const story *s) { return under_way(s) && atomic_load(&s->dropped) == s->id; }

/* ---- Prompts that begin alike ---------------------------------------------------------------------- */

static size_t n_alike(const int32_t *a, const int32_t *b, size_t n) {
    size_t i = 0;
    while (i < n && a[i] == b[i]) i++;
    return i;
}

static void take_over(l2c_batch *b, story *s, const story *from, size_t n) {
    if (l2c_session_copy(b->session, number(b, from), number(b, s), (int32_t)n, NULL) != L2C_OK) return;
    b->counts.prompt_tokens += n - s->fed;
    b->counts.cached_prompt_tokens += n - s->fed;
    s->fed = n;
}

/* Finds who has most of a prompt in its sequence, or is going to have it. The last token is fed in any
 * case: what follows it is what the story begins with. */
static void find_prefix(l2c_batch *b, story *s) {
    story *from = NULL, *ahead = NULL;
    size_t has = s->fed, n_ahead = 0;
    for (size_t i = 0; i < b->n_stories; i++) {
        story *other = &b->stories[i];
        if (other == s) continue;
        int reads = other->stage == READING && other->id < s->id; /* nobody waits in a circle */
        size_t most = smaller(s->n_prompt - 1, reads ? other->n : other->fed);
        size_t n = n_alike(other->tokens, s->tokens, most);
        if (smaller(n, other->fed) > has) has = smaller(n, other->fed), from = other;
        if (reads && (n > n_ahead || (n == n_ahead && n > 0 && other->id < ahead->id))) n_ahead = n, ahead = other;
    }
    if (from != NULL) take_over(b, s, from, has);
    s->ahead = NULL;
    if (n_ahead <= s->fed) return;
    size_t gain = n_ahead - s->fed, left = s->n_prompt - s->fed;
    if (gain < WORTH_WAITING && 2 * gain < left) return;
    s->ahead = ahead;
    s->ahead_id = ahead->id;
    s->n_ahead = n_ahead;
}

/* Stories that waited for one that has read so far, or is no longer there. */
static void end_waiting(l2c_batch *b) {
    for (size_t i = 0; i < b->n_stories; i++) {
        story *s = &b->stories[i];
        if (s->stage != READING || s->ahead == NULL) continue;
        if (s->ahead->id != s->ahead_id || !under_way(s->ahead)) {
            find_prefix(b, s);
        } else if (s->ahead->fed >= s->n_ahead) {
            take_over(b, s, s->ahead, s->n_ahead);
            s->ahead = NULL;
        }
    }
}

/* ---- Adding ---------------------------------------------------------------------------------------- */

static l2c_status check_tokens(const l2c_batch *b, const char *name, const int32_t *tokens, size_t n, l2c_error *err) {
    for (size_t i = 0; i < n; i++)
        if (tokens[i] < 0 || (size_t)tokens[i] >= b->vocab)
            return l2c_fail(err, L2C_ARG, "%s[%zu] is %d; the vocabulary has %zu", name, i, tokens[i], b->vocab);
    return L2C_OK;
}

static l2c_status check_request(const l2c_batch *b, const l2c_request *r, l2c_error *err) {
    if (r->n_prompt < 1) return l2c_fail(err, L2C_ARG, "the prompt has no tokens");
    if (r->max_tokens < 1) return l2c_fail(err, L2C_ARG, "max_tokens is %d; it must be 1 or more", r->max_tokens);
    if (r->n_prompt > b->n_ctx || (size_t)r->max_tokens - 1 > b->n_ctx - r->n_prompt)
        return l2c_fail(err, L2C_RANGE, "a prompt of %zu tokens and %d more; the context is %zu", r->n_prompt, r->max_tokens, b->n_ctx);
    if (r->tell & ~(L2C_TELL_TOKENS | L2C_TELL_LOGPROBS | L2C_TELL_CHOICES))
        return l2c_fail(err, L2C_ARG, "tell is %d", r->tell);
    if (r->n_top < 0 || r->n_top > L2C_MAX_TOP)
        return l2c_fail(err, L2C_ARG, "n_top is %d; it must be 0 to %d", r->n_top, L2C_MAX_TOP);
    l2c_status status = check_tokens(b, "prompt", r->prompt, r->n_prompt, err);
    if (status == L2C_OK) status = check_tokens(b, "ends", r->ends, r->n_ends, err);
    return status == L2C_OK ? l2c_sampler_check(r->sampler, err) : status;
}

/* A sequence that is free: the one that has most of the prompt, unless that would throw away more than it
 * saves; then the one that was used longest ago. */
static story *choose_sequence(const l2c_batch *b, const l2c_request *r, size_t *n_cached) {
    story *oldest = NULL, *best = NULL;
    size_t most = 0, of_oldest = 0;
    for (size_t i = 0; i < b->n_stories; i++) {
        story *s = &b->stories[i];
        if (s->stage != FREE) continue;
        size_t n = n_alike(s->tokens, r->prompt, smaller(s->fed, r->n_prompt - 1));
        if (n > most) most = n, best = s;
        if (oldest == NULL || s->last_used < oldest->last_used) oldest = s, of_oldest = n;
    }
    if (best != NULL && 2 * most < best->fed) best = NULL;
    *n_cached = best != NULL ? most : of_oldest;
    return best != NULL ? best : oldest;
}

static void begin(l2c_batch *b, story *s, const l2c_request *r, size_t n_cached) {
    s->id = ++b->n_added * (int64_t)b->n_stories + number(b, s);
    s->stage = READING;
    s->sampler = *r->sampler;
    s->tell = r->tell & L2C_TELL_LOGPROBS ? r->tell | L2C_TELL_TOKENS : r->tell;
    s->n_top = smaller((size_t)r->n_top, b->vocab);
    s->n = s->n_prompt = r->n_prompt;
    s->n_most = r->n_prompt + (size_t)r->max_tokens;
    memcpy(s->tokens, r->prompt, r->n_prompt * sizeof *r->prompt);
    s->fed = n_cached;
    s->masked = 0;
    memset(s->ends, 0, b->words * sizeof *s->ends);
    for (size_t i = 0; i < r->n_ends; i++) s->ends[r->ends[i] / 32] |= UINT32_C(1) << (r->ends[i] % 32);
    b->counts.prompt_tokens += n_cached;
    b->counts.cached_prompt_tokens += n_cached;
    find_prefix(b, s);
}

l2c_status l2c_batch_add(l2c_batch *b, const l2c_request *r, int64_t *id, l2c_error *err) {
    l2c_status status = check_request(b, r, err);
    if (status != L2C_OK) return status;
    if (!enter(b)) return fail_busy(err);
    /* Room of stories that were dropped since the last step, unless it left events of theirs to be told. */
    int told = 1;
    for (size_t i = 0; i < b->n_events; i++) told &= b->events[i].tokens == NULL;
    for (size_t i = 0; told && i < b->n_stories && b->n_events < b->n_stories; i++)
        if (is_dropped(&b->stories[i])) end_dropped(b, &b->stories[i], FREE);
    size_t n_cached;
    story *s = choose_sequence(b, r, &n_cached);
    if (s == NULL) {
        status = l2c_fail(err, L2C_FULL, "all %zu sequences have stories", b->n_stories);
    } else {
        begin(b, s, r, n_cached);
        *id = s->id;
    }
    leave(b);
    return status;
}

l2c_status l2c_batch_mask(l2c_batch *b, int64_t id, const uint32_t *bits, l2c_error *err) {
    if (!enter(b)) return fail_busy(err);
    l2c_status status = L2C_OK;
    story *s = find(b, id);
    if (s == NULL) {
        status = l2c_fail(err, L2C_ARG, "story %lld is not under way", (long long)id);
    } else {
        memcpy(s->mask, bits, b->words * sizeof *bits);
        s->masked = 1;
    }
    leave(b);
    return status;
}

float *l2c_batch_row(l2c_batch *b, int64_t id) {
    story *s = find(b, id);
    return s != NULL && s->stage == CHOOSING ? l2c_session_logits(b->session, s->row) : NULL;
}

/* ---- Choosing -------------------------------------------------------------------------------------- */

static int wants_logprobs(const story *s) { return (s->tell & L2C_TELL_LOGPROBS) != 0; }

static void keep_logits(const l2c_batch *b, story *s) {
    memcpy(s->logits, l2c_session_logits(b->session, s->row), b->vocab * sizeof(float));
}

static void prepare_on_thread(void *arg, int thread, int n_threads) {
    const l2c_batch *b = arg;
    for (size_t i = (size_t)thread; i < b->n_drawn; i += (size_t)n_threads) {
        story *s = b->drawn[i];
        if (wants_logprobs(s) && s->stage != CHOOSING) keep_logits(b, s); /* else kept before it was changed */
        if (!s->masked) continue;
        float *logits = l2c_session_logits(b->session, s->row);
        for (size_t t = 0; t < b->vocab; t++)
            if (!bit(s->mask, (int32_t)t)) logits[t] = -INFINITY;
    }
}

static void measure_on_thread(void *arg, int thread, int n_threads) {
    const l2c_batch *b = arg;
    for (size_t i = (size_t)thread; i < b->n_drawn; i += (size_t)n_threads) {
        story *s = b->drawn[i];
        if (!wants_logprobs(s) || b->draws[i].status != L2C_OK) continue;
        l2c_log_total total = l2c_logprob_total(b->kernels, s->logits, b->vocab);
        s->chosen.logprob = l2c_logprob_of(total, s->logits[b->draws[i].token]);
        l2c_logprob_top(b->kernels, total, s->logits, b->vocab, s->top, s->n_top);
    }
}

static void take(l2c_batch *b, story *s, const l2c_draw *draw) {
    s->stage = TELLING;
    s->masked = 0;
    if (draw->status != L2C_OK) {
        end(b, s, L2C_END_NONFINITE);
        return;
    }
    if (bit(s->ends, draw->token)) {
        end(b, s, L2C_END_STOP);
        return;
    }
    s->tokens[s->n++] = s->chosen.token = draw->token;
    b->counts.tokens++;
    if (s->tell & L2C_TELL_TOKENS) {
        l2c_event *event = tell(b, s, L2C_EVENT_TOKEN);
        event->chosen = s->chosen;
        if (wants_logprobs(s)) event->top = s->top, event->n_top = s->n_top;
    }
    if (s->n == s->n_most) end(b, s, L2C_END_LENGTH);
}

/* The next token of each story in `drawn`. */
static l2c_status draw(l2c_batch *b, l2c_error *err) {
    int prepare = 0, measure = 0;
    for (size_t i = 0; i < b->n_drawn; i++) {
        story *s = b->drawn[i];
        prepare |= s->masked || (wants_logprobs(s) && s->stage != CHOOSING);
        measure |= wants_logprobs(s);
        b->draws[i] = (l2c_draw){.row = s->row, .sampler = &s->sampler, .history = s->tokens, .n_history = s->n};
    }
    if (b->n_drawn == 0) return L2C_OK;
    if (prepare) l2c_pool_run(b->pool, prepare_on_thread, b);
    l2c_status status = l2c_session_sample_many(b->session, b->draws, b->n_drawn, err);
    if (status != L2C_OK) return status;
    if (measure) l2c_pool_run(b->pool, measure_on_thread, b);
    for (size_t i = 0; i < b->n_drawn; i++) take(b, b->drawn[i], &b->draws[i]);
    return L2C_OK;
}

static l2c_status draw_waiting(l2c_batch *b, l2c_error *err) {
    b->n_drawn = 0;
    for (size_t i = 0; i < b->n_stories; i++)
        if (b->stories[i].stage == CHOOSING) b->drawn[b->n_drawn++] = &b->stories[i];
    return draw(b, err);
}

/* ---- The sweep ------------------------------------------------------------------------------------- */

static void share_rows(l2c_batch *b) {
    size_t left = L2C_MAX_ROWS;
    for (size_t i = 0; i < b->n_stories; i++) left -= b->stories[i].n_rows = b->stories[i].stage == TELLING;
    left = smaller(left, PROMPT_ROWS);
    for (size_t given = 1, first = b->turn; given > 0;) {
        given = 0;
        for (size_t i = 0; i < b->n_stories && left > 0; i++) {
            story *s = &b->stories[(first + i) % b->n_stories];
            if (s->stage != READING || s->ahead != NULL) continue;
            size_t n = smaller(smaller(s->n - s->fed - s->n_rows, TURN), left);
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
        s->stage = s->n == s->n_prompt ? READING : TELLING;
    }
}

static l2c_status sweep(l2c_batch *b, l2c_error *err) {
    share_rows(b);
    size_t n_rows = write_rows(b), n_logits = 0, n_read = 0, n_events = b->n_events;
    if (n_rows == 0) return L2C_OK;
    l2c_status status = l2c_session_forward(b->session, b->rows, n_rows, err);
    if (status != L2C_OK) return status;
    b->n_drawn = 0;
    for (size_t i = 0; i < b->n_stories; i++) {
        story *s = &b->stories[i];
        s->fed += s->n_rows;
        if (s->stage == READING) n_read += s->n_rows;
        if (s->n_rows == 0 || s->fed < s->n) continue;
        s->row = n_logits++;
        if (s->tell & L2C_TELL_CHOICES) {
            if (wants_logprobs(s)) keep_logits(b, s);
            s->stage = CHOOSING;
            tell(b, s, L2C_EVENT_CHOOSE);
        } else {
            b->drawn[b->n_drawn++] = s;
        }
    }
    end_waiting(b); /* before a sequence that others waited for is another story's */
    status = draw(b, err);
    if (status != L2C_OK) {
        take_back(b);
        b->n_events = n_events;
        return status;
    }
    b->counts.sweeps++;
    b->counts.rows += n_rows;
    b->counts.prompt_tokens += n_read;
    return L2C_OK;
}

l2c_status l2c_batch_step(l2c_batch *b, const l2c_event **events, size_t *n_events, l2c_error *err) {
    if (!enter(b)) return fail_busy(err);
    for (size_t i = 0; i < b->n_stories; i++)
        if (is_dropped(&b->stories[i])) end_dropped(b, &b->stories[i], ENDED);
    end_waiting(b);
    l2c_status status = draw_waiting(b, err);
    if (status == L2C_OK) status = sweep(b, err);
    if (status == L2C_OK) {
        for (size_t i = 0; i < b->n_stories; i++)
            if (b->stories[i].stage == ENDED) b->stories[i].stage = FREE;
        *events = b->events;
        *n_events = b->n_events;
        b->n_events = 0;
    }
    leave(b);
    return status;
}

void l2c_batch_cancel(l2c_batch *b) { l2c_session_cancel(b->session); }

/* ---- Figures --------------------------------------------------------------------------------------- */

int32_t l2c_batch_stories(const l2c_batch *b) {
    int32_t n = 0;
    for (size_t i = 0; i < b->n_stories; i++) n += under_way(&b->stories[i]);
    return n;
}

l2c_batch_counts l2c_batch_count(const l2c_batch *b) { return b->counts; }
