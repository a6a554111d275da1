/*
 * batch.c - continuous batching: stories are added to a session, and prompts that begin alike are read once. sweep.c
 * makes the steps.
 */
#include <string.h>

#include "batch.h"

enum { WORTH_WAITING = 16 }; /* tokens of a shared prompt that make it worth waiting for their reader */

/* ---- Creating ------------------------------------------------------------------------------------- */

/* Gives b and its stories their parts of `memory`, or with NULL none; returns the bytes of it all. */
static uint64_t lay_out(l2c_batch *b, unsigned char *memory) {
    l2c_arena a = {memory, 0};
    uint64_t n = b->n_stories, words = b->mask_words;
    b->stories = l2c_arena_part(&a, n * sizeof *b->stories, 0);
    b->to_sample = l2c_arena_part(&a, n * sizeof *b->to_sample, 0);
    b->draws = l2c_arena_part(&a, n * sizeof *b->draws, 0);
    b->draw_options = l2c_arena_part(&a, n * sizeof *b->draw_options, 0);
    b->continuations = l2c_arena_part(&a, n * sizeof *b->continuations, 0);
    b->events = l2c_arena_part(&a, b->events_a_story * n * sizeof *b->events, 0);
    b->rows = l2c_arena_part(&a, (uint64_t)b->session->max_rows * sizeof *b->rows, 0);
    for (size_t i = 0; i < n; i++) {
        story unplaced, *s = memory != NULL ? &b->stories[i] : &unplaced;
        s->tokens = l2c_arena_part(&a, ((uint64_t)b->n_ctx + 1) * sizeof *s->tokens, 0);
        s->ends = l2c_arena_part(&a, words * sizeof *s->ends, 0);
        s->mask = l2c_arena_part(&a, words * sizeof *s->mask, 0);
        s->logits = l2c_arena_part(&a, (uint64_t)b->vocab_size * sizeof *s->logits, 0);
        s->top = l2c_arena_part(&a, L2C_MAX_TOP * sizeof *s->top, 0);
        s->biases = l2c_arena_part(&a, (uint64_t)b->vocab_size * sizeof *s->biases, 0);
    }
    return a.used;
}

l2c_status l2c_batch_create(const l2c_model *model, l2c_pool *pool, int32_t n_sequences, int32_t n_ctx, l2c_kv kv,
                            l2c_isa isa, l2c_batch **batch, l2c_error *err) {
    int32_t most = model->placed != NULL ? L2C_MAX_DEVICE_ROWS : L2C_MAX_ROWS;
    if (n_sequences < 1 || n_sequences > most)
        return l2c_fail(err, L2C_ARG, "%d sequences; a batch has 1 to %d", n_sequences, most);
    l2c_session *session;
    l2c_status status = l2c_session_create(model, pool, n_sequences, n_ctx, kv, isa, &session, err);
    if (status != L2C_OK) return status;
    if (n_sequences <= session->max_rows) return l2c_batch_create_on(session, batch, err);
    status = l2c_fail(err, L2C_NOMEM, "the card has room for %d rows at a time; a batch of %d needs as many",
                      session->max_rows, n_sequences);
    l2c_session_free(session);
    return status;
}

l2c_status l2c_batch_create_on(l2c_session *session, l2c_batch **batch, l2c_error *err) {
    l2c_batch *b = l2c_memory_zeroed(1, sizeof *b);
    if (b == NULL) {
        l2c_session_free(session);
        return l2c_fail(err, L2C_NOMEM, "out of memory for a batch");
    }
    b->n_stories = (size_t)session->n_sequences;
    b->session = session;
    b->n_ctx = (size_t)session->n_ctx;
    b->vocab_size = (size_t)session->model->config.vocab_size;
    b->mask_words = (b->vocab_size + 31) / 32;
    b->events_a_story = session->backend->decode != NULL ? 5 + L2C_MAX_STEPS : 5;
    uint64_t bytes = lay_out(b, NULL);
    b->memory = bytes > SIZE_MAX ? NULL : l2c_memory_zeroed((size_t)bytes, 1);
    if (b->memory == NULL) {
        size_t n = b->n_stories, n_ctx = b->n_ctx;
        l2c_batch_free(b);
        return l2c_fail(err, L2C_NOMEM, "out of memory for a batch of %zu x %zu positions", n, n_ctx);
    }
    lay_out(b, b->memory);
    *batch = b;
    return L2C_OK;
}

void l2c_batch_free(l2c_batch *b) {
    if (b == NULL) return;
    l2c_session_free(b->session);
    l2c_memory_free(b->memory);
    l2c_memory_free(b);
}

/* ---- Prompts that begin alike ---------------------------------------------------------------------- */

static size_t common_prefix(const int32_t *a, const int32_t *b, size_t n) {
    size_t i = 0;
    while (i < n && a[i] == b[i]) i++;
    return i;
}

static void copy_prefix(l2c_batch *b, story *s, const story *from, size_t n) {
    if (l2c_session_copy(b->session, sequence_of(b, from), sequence_of(b, s), (int32_t)n, NULL) != L2C_OK)
        return; /* the session is in use by somebody else: the tokens are fed instead */
    b->counts.prompt_tokens += n - s->fed;
    b->counts.cached_prompt_tokens += n - s->fed;
    s->n_cached += n - s->fed;
    s->fed = n;
}

/* Copies the longest beginning of s's prompt that another sequence has cached. If an older story is still reading a
 * longer one, makes s wait for it. The last prompt token is always fed: its logits are needed. */
static void reuse_prefix(l2c_batch *b, story *s) {
    story *cached_by = NULL, *waits_for = NULL;
    size_t n_cached = s->fed, waits_until = 0;
    for (size_t i = 0; i < b->n_stories; i++) {
        story *other = &b->stories[i];
        if (other == s) continue;
        int is_reading = other->stage == PREFILL && other->id < s->id; /* only for an older story: no cycles */
        size_t limit = min_size(s->n_prompt - 1, is_reading ? other->n : other->fed);
        size_t n = common_prefix(other->tokens, s->tokens, limit);
        if (min_size(n, other->fed) > n_cached) {
            n_cached = min_size(n, other->fed);
            cached_by = other;
        }
        if (!is_reading || n == 0) continue;
        if (n > waits_until || (n == waits_until && other->id < waits_for->id)) { /* of equals, the oldest */
            waits_until = n;
            waits_for = other;
        }
    }
    if (cached_by != NULL) copy_prefix(b, s, cached_by, n_cached);
    s->waits_for = NULL;
    if (waits_until <= s->fed) return;
    /* Wait for at least WORTH_WAITING tokens, or for half of what is left of the prompt. */
    size_t gain = waits_until - s->fed, left = s->n_prompt - s->fed;
    if (gain < WORTH_WAITING && 2 * gain < left) return;
    s->waits_for = waits_for;
    s->waits_for_id = waits_for->id;
    s->waits_until = waits_until;
}

void l2c_batch_accept(l2c_batch *b, story *s, const l2c_draw *draw, double logprob) {
    s->stage = DECODE;
    s->masked = 0;
    if (draw->status != L2C_OK) {
        end(b, s, L2C_END_NONFINITE);
        return;
    }
    if (bit(s->ends, draw->token)) {
        end(b, s, L2C_END_STOP);
        return;
    }
    s->tokens[s->n++] = draw->token;
    b->counts.tokens++;
    if (s->tell & L2C_TELL_TOKENS) {
        l2c_event *event = add_event(b, s, L2C_EVENT_TOKEN);
        event->chosen = (l2c_logprob){draw->token, logprob};
        event->top = s->top;
        event->n_top = s->n_top;
    }
    if (s->n == s->n_max) end(b, s, L2C_END_LENGTH);
}

void l2c_batch_end_waiting(l2c_batch *b) {
    for (size_t i = 0; i < b->n_stories; i++) {
        story *s = &b->stories[i];
        if (s->stage != PREFILL || s->waits_for == NULL) continue;
        if (s->waits_for->id != s->waits_for_id || !under_way(s->waits_for)) {
            reuse_prefix(b, s);
        } else if (s->waits_for->fed >= s->waits_until) {
            copy_prefix(b, s, s->waits_for, s->waits_until);
            s->waits_for = NULL;
        }
    }
}

/* ---- Adding ---------------------------------------------------------------------------------------- */

static l2c_status check_tokens(const l2c_batch *b, const char *name, const int32_t *tokens, size_t n, l2c_error *err) {
    for (size_t i = 0; i < n; i++)
        if (tokens[i] < 0 || (size_t)tokens[i] >= b->vocab_size)
            return l2c_fail(err, L2C_ARG, "%s[%zu] is %d; the vocabulary has %zu", name, i, tokens[i], b->vocab_size);
    return L2C_OK;
}

static l2c_status check_request(const l2c_batch *b, const l2c_request *r, l2c_error *err) {
    if (r->n_prompt < 1) return l2c_fail(err, L2C_ARG, "the prompt has no tokens");
    if (r->max_tokens < 1) return l2c_fail(err, L2C_ARG, "max_tokens is %d; it must be 1 or more", r->max_tokens);
    if (r->n_prompt > b->n_ctx || (size_t)r->max_tokens - 1 > b->n_ctx - r->n_prompt)
        return l2c_fail(err, L2C_RANGE, "a prompt of %zu tokens and %d more; the context is %zu", r->n_prompt,
                        r->max_tokens, b->n_ctx);
    if (r->tell & ~(L2C_TELL_TOKENS | L2C_TELL_LOGPROBS | L2C_TELL_CHOICES | L2C_TELL_READ))
        return l2c_fail(err, L2C_ARG, "tell is %d; it has unknown flags", r->tell);
    if (r->n_top < 0 || r->n_top > L2C_MAX_TOP)
        return l2c_fail(err, L2C_ARG, "n_top is %d; it must be 0 to %d", r->n_top, L2C_MAX_TOP);
    l2c_status status = check_tokens(b, "prompt", r->prompt, r->n_prompt, err);
    if (status == L2C_OK) status = check_tokens(b, "ends", r->ends, r->n_ends, err);
    return status == L2C_OK ? l2c_sampler_check(r->sampler, (int32_t)b->vocab_size, err) : status;
}

/* The free sequence with most of the prompt cached, unless more than half of its cache would be lost; else the least
 * recently used one. NULL: none is free. */
static story *choose_sequence(const l2c_batch *b, const l2c_request *r, size_t *n_cached) {
    story *oldest = NULL, *best = NULL;
    size_t n_best = 0, n_of_oldest = 0;
    for (size_t i = 0; i < b->n_stories; i++) {
        story *s = &b->stories[i];
        if (s->stage != FREE) continue;
        size_t n = common_prefix(s->tokens, r->prompt, min_size(s->fed, r->n_prompt - 1));
        if (n > n_best) {
            n_best = n;
            best = s;
        }
        if (oldest == NULL || s->last_used < oldest->last_used) {
            oldest = s;
            n_of_oldest = n;
        }
    }
    if (best != NULL && 2 * n_best < best->fed) best = NULL;
    *n_cached = best != NULL ? n_best : n_of_oldest;
    return best != NULL ? best : oldest;
}

static void begin(l2c_batch *b, story *s, const l2c_request *r, size_t n_cached) {
    /* id % n_stories is the sequence, which find and l2c_batch_drop rely on; ids are above 0 and never repeat */
    s->id = ++b->n_added * (int64_t)b->n_stories + sequence_of(b, s);
    s->stage = PREFILL;
    s->sampler = *r->sampler;
    s->sampler.n_prompt = r->n_prompt;
    s->sampler.biases = s->biases;
    if (r->sampler->n_biases > 0) memcpy(s->biases, r->sampler->biases, r->sampler->n_biases * sizeof *s->biases);
    s->tell = r->tell & L2C_TELL_LOGPROBS ? r->tell | L2C_TELL_TOKENS : r->tell;
    s->n_top = r->tell & L2C_TELL_LOGPROBS ? min_size((size_t)r->n_top, b->vocab_size) : 0;
    s->n = s->n_prompt = r->n_prompt;
    s->n_max = r->n_prompt + (size_t)r->max_tokens;
    memcpy(s->tokens, r->prompt, r->n_prompt * sizeof *r->prompt);
    s->fed = s->n_cached = n_cached;
    s->masked = 0;
    memset(s->ends, 0, b->mask_words * sizeof *s->ends);
    for (size_t i = 0; i < r->n_ends; i++) s->ends[r->ends[i] / 32] |= UINT32_C(1) << (r->ends[i] % 32);
    s->n_first_ends = min_size(r->n_ends, sizeof s->first_ends / sizeof *s->first_ends);
    for (size_t i = 0; i < s->n_first_ends; i++) s->first_ends[i] = r->ends[i];
    b->counts.prompt_tokens += n_cached;
    b->counts.cached_prompt_tokens += n_cached;
    reuse_prefix(b, s);
}

l2c_status l2c_batch_add(l2c_batch *b, const l2c_request *r, int64_t *id, l2c_error *err) {
    l2c_status status = check_request(b, r, err);
    if (status != L2C_OK) return status;
    if (!enter(b)) return fail_busy(err);
    /* Frees sequences whose stories were dropped since the last step. Not while events of a failed step are pending:
     * they point into stories' tokens, which a new story would overwrite. The bound leaves the step its three events
     * a story. */
    int unreferenced = 1;
    for (size_t i = 0; i < b->n_events; i++) unreferenced &= b->events[i].tokens == NULL;
    for (size_t i = 0; unreferenced && i < b->n_stories && b->n_events < b->n_stories; i++)
        if (is_dropped(&b->stories[i])) end_dropped(b, &b->stories[i], FREE);
    size_t n_cached;
    story *s = choose_sequence(b, r, &n_cached);
    if (s == NULL) {
        status = l2c_fail(err, L2C_FULL, "all %zu sequences are in use", b->n_stories);
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
        memcpy(s->mask, bits, b->mask_words * sizeof *bits);
        s->masked = 1;
    }
    leave(b);
    return status;
}

float *l2c_batch_row(l2c_batch *b, int64_t id) {
    story *s = find(b, id);
    return s != NULL && s->stage == AWAITS_CHOICE ? l2c_session_logits(b->session, s->row) : NULL;
}

void l2c_batch_drop(l2c_batch *b, int64_t id) {
    if (id <= 0) return;
    _Atomic int64_t *dropped = &b->stories[(size_t)id % b->n_stories].dropped;
    int64_t before = atomic_load(dropped);
    /* keeps the largest id: a late drop of an earlier story must not undo one of the present story */
    while (before < id && !atomic_compare_exchange_weak(dropped, &before, id)) continue;
    l2c_session_hurry(b->session);
}

void l2c_batch_cancel(l2c_batch *b) { l2c_session_cancel(b->session); }

/* ---- Figures --------------------------------------------------------------------------------------- */

int32_t l2c_batch_stories(const l2c_batch *b) {
    int32_t n = 0;
    for (size_t i = 0; i < b->n_stories; i++) n += under_way(&b->stories[i]);
    return n;
}

l2c_batch_counts l2c_batch_count(const l2c_batch *b) { return b->counts; }
