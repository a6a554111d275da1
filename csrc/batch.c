/*
 * batch.c - continuous batching: stories are added to a session, and prompts that begin alike are read once. sweep.c
 * makes the steps.
 */
#include <string.h>

#include "batch.h"

enum { WORTH_WAITING = 16 }; /* tokens of a prompt that another story is about to read */

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
    return status == L2C_OK ? l2c_batch_create_on(session, batch, err) : status;
}

l2c_status l2c_batch_create_on(l2c_session *session, l2c_batch **batch, l2c_error *err) {
    l2c_batch *b = l2c_memory_zeroed(1, sizeof *b);
    if (b == NULL) {
        l2c_session_free(session);
        return l2c_fail(err, L2C_NOMEM, "out of memory for a batch");
    }
    size_t n = b->n_stories = (size_t)session->n_sequences;
    b->session = session;
    b->n_ctx = (size_t)session->n_ctx;
    b->vocab = (size_t)session->model->config.vocab_size;
    b->words = (b->vocab + 31) / 32;
    b->stories = block(b, n, sizeof *b->stories);
    b->drawn = block(b, n, sizeof *b->drawn);
    b->draws = block(b, n, sizeof *b->draws);
    b->wishes = block(b, n, sizeof *b->wishes);
    b->events = block(b, 4 * n, sizeof *b->events);
    int32_t *tokens = block(b, n * (b->n_ctx + 1), sizeof *tokens);
    uint32_t *bits = block(b, n * 2 * b->words, sizeof *bits);
    float *logits = block(b, n * b->vocab, sizeof *logits);
    l2c_logprob *top = block(b, n * L2C_MAX_TOP, sizeof *top);
    for (int i = 0; i < b->n_blocks; i++)
        if (b->blocks[i] == NULL) {
            size_t n_ctx = b->n_ctx;
            l2c_batch_free(b);
            return l2c_fail(err, L2C_NOMEM, "out of memory for a batch of %zu x %zu positions", n, n_ctx);
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

/* ---- Prompts that begin alike ---------------------------------------------------------------------- */

static size_t common_prefix(const int32_t *a, const int32_t *b, size_t n) {
    size_t i = 0;
    while (i < n && a[i] == b[i]) i++;
    return i;
}

static void copy_prefix(l2c_batch *b, story *s, const story *from, size_t n) {
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
        size_t most = min_size(s->n_prompt - 1, reads ? other->n : other->fed);
        size_t n = common_prefix(other->tokens, s->tokens, most);
        if (min_size(n, other->fed) > has) has = min_size(n, other->fed), from = other;
        if (reads && (n > n_ahead || (n == n_ahead && n > 0 && other->id < ahead->id))) n_ahead = n, ahead = other;
    }
    if (from != NULL) copy_prefix(b, s, from, has);
    s->ahead = NULL;
    if (n_ahead <= s->fed) return;
    size_t gain = n_ahead - s->fed, left = s->n_prompt - s->fed;
    if (gain < WORTH_WAITING && 2 * gain < left) return;
    s->ahead = ahead;
    s->ahead_id = ahead->id;
    s->n_ahead = n_ahead;
}

void l2c_batch_end_waiting(l2c_batch *b) {
    for (size_t i = 0; i < b->n_stories; i++) {
        story *s = &b->stories[i];
        if (s->stage != READING || s->ahead == NULL) continue;
        if (s->ahead->id != s->ahead_id || !under_way(s->ahead)) {
            find_prefix(b, s);
        } else if (s->ahead->fed >= s->n_ahead) {
            copy_prefix(b, s, s->ahead, s->n_ahead);
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
        return l2c_fail(err, L2C_RANGE, "a prompt of %zu tokens and %d more; the context is %zu", r->n_prompt,
                        r->max_tokens, b->n_ctx);
    if (r->tell & ~(L2C_TELL_TOKENS | L2C_TELL_LOGPROBS | L2C_TELL_CHOICES))
        return l2c_fail(err, L2C_ARG, "tell is %d; it has unknown flags", r->tell);
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
        size_t n = common_prefix(s->tokens, r->prompt, min_size(s->fed, r->n_prompt - 1));
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
    s->n_top = min_size((size_t)r->n_top, b->vocab);
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

void l2c_batch_drop(l2c_batch *b, int64_t id) {
    if (id <= 0) return;
    _Atomic int64_t *dropped = &b->stories[(size_t)id % b->n_stories].dropped;
    int64_t before = atomic_load(dropped);
    while (before < id && !atomic_compare_exchange_weak(dropped, &before, id)) continue;
}

void l2c_batch_cancel(l2c_batch *b) { l2c_session_cancel(b->session); }

/* ---- Figures --------------------------------------------------------------------------------------- */

int32_t l2c_batch_stories(const l2c_batch *b) {
    int32_t n = 0;
    for (size_t i = 0; i < b->n_stories; i++) n += under_way(&b->stories[i]);
    return n;
}

l2c_batch_counts l2c_batch_count(const l2c_batch *b) { return b->counts; }
