/*
 * test_batch.c - batches: stories of random loads against the same stories alone, what prompts that begin
 * alike save, fairness, refusals, and dropping from another thread.
 */
#define _GNU_SOURCE
#include <limits.h>
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "harness.h"

enum { MOST_TOKENS = 40, MOST_WORDS = 10, N_STORIES = 24 };

/* A story to be told, and what it is alone. */
typedef struct {
    int32_t prompt[MOST_TOKENS];
    size_t n_prompt;
    int32_t ends[3];
    l2c_sampler sampler;
    l2c_logit_bias biases[3]; /* the sampler's, which has no pointer to them: a tale is copied */
    int32_t max_tokens, tell, n_top;
    uint64_t seed; /* of its masks and of what is done to its logits */
    int masks;
    int nan_at; /* the choice at which its logits are spoiled; -1: never. Of those that tell choices. */
    int drop_at; /* the token after which it is dropped; -1: never. Of those that tell tokens. */

    int32_t tokens[MOST_TOKENS];
    l2c_logprob chosen[MOST_TOKENS], top[MOST_TOKENS][L2C_MAX_TOP];
    size_t n;
    l2c_end reason;

    int64_t id; /* in the batch, with what was heard of it */
    size_t n_heard;
    int read, ended;
} tale;

static void mask_of(const tale *t, size_t choice, int32_t vocab, uint32_t *bits) {
    uint64_t random = t->seed + choice;
    for (int32_t i = 0; i < (vocab + 31) / 32; i++) bits[i] = (uint32_t)(random_next(&random) >> 20);
    bits[0] |= 8; /* something is allowed */
}

static int is_masked(const tale *t, size_t choice) { return t->masks && (t->seed + choice) % 3 != 0; }

static void change(const tale *t, size_t choice, int32_t vocab, float *logits) {
    uint64_t random = t->seed + 100 + choice;
    for (int i = 0; i < 20; i++) logits[random_below(&random, vocab)] += 2 * random_float(&random);
    if ((int)choice == t->nan_at) logits[random_below(&random, vocab)] = NAN;
}

/* Likeliest first. */
static int compare(const void *a, const void *b) {
    const l2c_logprob *x = a, *y = b;
    return x->logprob != y->logprob ? (x->logprob < y->logprob) - (x->logprob > y->logprob) : (x->token > y->token) - (x->token < y->token);
}

/* Alone: one sequence, one row a call, one thread, the scalar kernels; everything the plainest way. */
static void tell_alone(const truth *t, l2c_kv kv, tale *s) {
    int32_t vocab = l2c_model_config(t->model)->vocab_size, history[2 * MOST_TOKENS];
    l2c_logprob *all = malloc((size_t)vocab * sizeof *all);
    l2c_pool *pool;
    l2c_session *session;
    CHECK(all != NULL && l2c_pool_create(1, &pool, NULL) == L2C_OK);
    CHECK(l2c_session_create(t->model, pool, 1, 0, kv, L2C_ISA_SCALAR, &session, NULL) == L2C_OK);
    l2c_sampler sampler = s->sampler;
    sampler.biases = s->biases;
    size_t n = sampler.n_prompt = s->n_prompt;
    memcpy(history, s->prompt, n * sizeof *history);
    for (size_t i = 0; i + 1 < n; i++)
        CHECK(l2c_session_forward(session, &(l2c_row){0, (int32_t)i, history[i], 0}, 1, NULL) == L2C_OK);
    for (s->reason = L2C_END_LENGTH; s->n < (size_t)s->max_tokens; s->n++) {
        CHECK(l2c_session_forward(session, &(l2c_row){0, (int32_t)n - 1, history[n - 1], 1}, 1, NULL) == L2C_OK);
        for (int32_t i = 0; i < vocab && s->tell & L2C_TELL_LOGPROBS; i++) {
            all[i].token = i;
            CHECK(l2c_session_logprob(session, 0, i, &all[i].logprob, NULL) == L2C_OK);
        }
        float *logits = l2c_session_logits(session, 0);
        if (s->tell & L2C_TELL_CHOICES) change(s, s->n, vocab, logits);
        if (is_masked(s, s->n)) {
            uint32_t bits[MOST_WORDS];
            mask_of(s, s->n, vocab, bits);
            for (int32_t i = 0; i < vocab; i++)
                if (!(bits[i / 32] >> (i % 32) & 1)) logits[i] = -INFINITY;
        }
        int32_t token;
        l2c_status status = l2c_session_sample(session, 0, &sampler, history, n, &token, NULL);
        if (status != L2C_OK) {
            CHECK(status == L2C_NONFINITE);
            s->reason = L2C_END_NONFINITE;
            break;
        }
        if (token == s->ends[0] || token == s->ends[1] || token == s->ends[2]) {
            s->reason = L2C_END_STOP;
            break;
        }
        if (s->tell & L2C_TELL_LOGPROBS) {
            s->chosen[s->n] = all[token];
            qsort(all, (size_t)vocab, sizeof *all, compare);
            memcpy(s->top[s->n], all, (size_t)s->n_top * sizeof *all);
        }
        s->tokens[s->n] = history[n++] = token;
    }
    if (s->drop_at >= 0 && s->n > (size_t)s->drop_at) s->n = (size_t)s->drop_at + 1, s->reason = L2C_END_DROPPED;
    l2c_session_free(session);
    l2c_pool_free(pool);
    free(all);
}

/* Prompts begin as one of three texts do, for a while. */
static tale make_tale(const truth *t, uint64_t *random) {
    const l2c_config *c = l2c_model_config(t->model);
    tale s = {.seed = random_next(random), .n_top = random_below(random, 6), .tell = random_below(random, 16)};
    int32_t text = random_below(random, 3), alike = random_below(random, c->seq_len + 1);
    s.n_prompt = 1 + (size_t)random_below(random, c->seq_len);
    for (int32_t i = 0; i < (int32_t)s.n_prompt; i++)
        s.prompt[i] = i < alike ? (7 * i + text) % c->vocab_size : random_below(random, c->vocab_size);
    s.max_tokens = 1 + random_below(random, c->seq_len - (int32_t)s.n_prompt + 1);
    for (int i = 0; i < 3; i++) s.ends[i] = random_below(random, c->vocab_size);
    l2c_sampler_init(&s.sampler, random_next(random));
    s.sampler.temperature = (float)random_below(random, 3) / 2;
    s.sampler.repetition_penalty = random_below(random, 2) ? 1.0f : 1.3f;
    s.sampler.top_k = random_below(random, 3) * 5;
    if (random_below(random, 2)) s.sampler.presence_penalty = random_float(random);
    if (random_below(random, 2)) s.sampler.frequency_penalty = random_float(random);
    s.sampler.n_biases = (size_t)random_below(random, 4);
    for (size_t i = 0; i < s.sampler.n_biases; i++) {
        float value = random_below(random, 3) == 0 ? -INFINITY : 4 * random_float(random);
        s.biases[i] = (l2c_logit_bias){4 + random_below(random, c->vocab_size - 4), value}; /* 3 is what masks allow */
    }
    s.masks = random_below(random, 4) == 0;
    s.nan_at = random_below(random, 4) == 0 && s.tell & L2C_TELL_CHOICES ? random_below(random, s.max_tokens) : -1;
    s.drop_at = random_below(random, 4) == 0 && s.tell & (L2C_TELL_TOKENS | L2C_TELL_LOGPROBS) ? random_below(random, s.max_tokens) : -1;
    return s;
}

static l2c_status add(l2c_batch *batch, tale *s) {
    l2c_sampler sampler = s->sampler; /* which, with its biases, is gone when the story is told */
    l2c_logit_bias biases[3];
    memcpy(biases, s->biases, sizeof biases);
    sampler.biases = biases;
    l2c_request request = {s->prompt, s->n_prompt, s->ends, 3, &sampler, s->max_tokens, s->tell, s->n_top};
    l2c_status status = l2c_batch_add(batch, &request, &s->id, NULL);
    for (int i = 0; i < 3; i++) biases[i] = (l2c_logit_bias){-1, NAN};
    return status;
}

static void mask_next(l2c_batch *batch, const tale *s, int32_t vocab) {
    if (!is_masked(s, s->n_heard)) return;
    uint32_t bits[MOST_WORDS];
    mask_of(s, s->n_heard, vocab, bits);
    CHECK(l2c_batch_mask(batch, s->id, bits, NULL) == L2C_OK);
}

static tale *heard_of(tale *tales, int64_t id) {
    for (int i = 0; i < N_STORIES; i++)
        if (tales[i].id == id) return &tales[i];
    CHECK(!"a story that was never added");
    return NULL;
}

static void hear(l2c_batch *batch, tale *s, const l2c_event *event, int32_t vocab) {
    CHECK(!s->ended);
    if (event->kind == L2C_EVENT_READ) {
        CHECK(s->tell & L2C_TELL_READ && !s->read);
        CHECK(event->n_cached >= 0 && (size_t)event->n_cached < s->n_prompt && event->n_tokens == 0);
        s->read = 1;
        return;
    }
    CHECK(s->read == ((s->tell & L2C_TELL_READ) != 0)); /* that comes first */
    if (event->kind == L2C_EVENT_TOKEN) {
        CHECK(s->tell & (L2C_TELL_TOKENS | L2C_TELL_LOGPROBS) && s->n_heard < s->n);
        CHECK(event->chosen.token == s->tokens[s->n_heard] && event->n_tokens == s->n_heard + 1);
        if (s->tell & L2C_TELL_LOGPROBS) {
            CHECK(event->chosen.logprob == s->chosen[s->n_heard].logprob && event->n_top == (size_t)s->n_top);
            for (size_t i = 0; i < event->n_top; i++)
                CHECK(event->top[i].token == s->top[s->n_heard][i].token && event->top[i].logprob == s->top[s->n_heard][i].logprob);
        } else {
            CHECK(event->n_top == 0);
        }
        s->n_heard++;
        if ((int)s->n_heard == s->drop_at + 1 && s->drop_at >= 0) l2c_batch_drop(batch, s->id);
    } else if (event->kind == L2C_EVENT_CHOOSE) {
        CHECK(s->tell & L2C_TELL_CHOICES && event->n_tokens <= s->n);
        CHECK(memcmp(event->tokens, s->tokens, event->n_tokens * sizeof *event->tokens) == 0);
        change(s, event->n_tokens, vocab, l2c_batch_row(batch, s->id));
    } else {
        /* one that is dropped at its last token has ended before */
        int late = s->reason == L2C_END_DROPPED && (int)s->n_heard == s->max_tokens;
        CHECK(event->reason == (int32_t)(late ? L2C_END_LENGTH : s->reason) && event->n_tokens == s->n);
        if (event->reason == L2C_END_DROPPED) CHECK(event->tokens == NULL);
        else CHECK(memcmp(event->tokens, s->tokens, s->n * sizeof *s->tokens) == 0);
        CHECK(l2c_batch_row(batch, s->id) == NULL);
        s->ended = 1;
    }
}

static void check_load(const truth *t, l2c_kv kv, l2c_isa isa, uint64_t seed) {
    int32_t vocab = l2c_model_config(t->model)->vocab_size;
    tale *tales = malloc(N_STORIES * sizeof *tales);
    CHECK(tales != NULL);
    uint64_t random = seed, expected = 0, prompts = 0;
    for (int i = 0; i < N_STORIES; i++) {
        tales[i] = make_tale(t, &random);
        /* A mask is set when a token is told, so a story with masks tells them. */
        if (tales[i].masks) tales[i].tell |= L2C_TELL_TOKENS;
        tell_alone(t, kv, &tales[i]);
        prompts += tales[i].n_prompt;
        expected += tales[i].n;
    }
    l2c_pool *pool;
    l2c_batch *batch;
    int32_t n_sequences = 1 + random_below(&random, 9);
    CHECK(l2c_pool_create(1 + random_below(&random, 3), &pool, NULL) == L2C_OK);
    CHECK(l2c_batch_create(t->model, pool, n_sequences, 0, kv, isa, &batch, NULL) == L2C_OK);
    for (int next = 0, left = N_STORIES; left > 0;) {
        while (next < N_STORIES && random_below(&random, 4) > 0) {
            l2c_status status = add(batch, &tales[next]);
            CHECK(status == L2C_OK || (status == L2C_FULL && l2c_batch_stories(batch) == n_sequences));
            if (status != L2C_OK) break;
            mask_next(batch, &tales[next++], vocab);
        }
        const l2c_event *events;
        size_t n;
        CHECK(l2c_batch_step(batch, &events, &n, NULL) == L2C_OK);
        for (size_t i = 0; i < n; i++) {
            tale *s = heard_of(tales, events[i].story);
            hear(batch, s, &events[i], vocab);
            left -= s->ended;
        }
        for (size_t i = 0; i < n; i++) /* for the next choice, once all is heard */
            if (events[i].kind == L2C_EVENT_TOKEN) {
                tale *s = heard_of(tales, events[i].story);
                if (!s->ended) mask_next(batch, s, vocab);
            }
    }
    l2c_batch_counts counts = l2c_batch_count(batch);
    CHECK(l2c_batch_stories(batch) == 0 && counts.sweeps > 0);
    CHECK(counts.prompt_tokens <= prompts && counts.cached_prompt_tokens <= counts.prompt_tokens);
    /* Every token but the last of a story is fed; one that is dropped may be a token ahead. */
    CHECK(counts.tokens >= expected && counts.rows <= prompts - counts.cached_prompt_tokens + counts.tokens);
    l2c_batch_free(batch);
    l2c_pool_free(pool);
    free(tales);
}

void test_batch_loads(void) {
    static const int which[] = {2, 4, 1};
    l2c_isa isas[MAX_ISAS];
    size_t n_isas = available_isas(isas);
    for (int c = 0; c < 6; c++) {
        l2c_kv kv = c % 2 == 0 ? L2C_KV_FLOAT32 : L2C_KV_FLOAT16;
        truth t = truth_make_with(&shapes[which[c / 2]], kv);
        for (uint64_t i = 0; i < 3; i++) check_load(&t, kv, isas[i % n_isas], 1000 * (uint64_t)c + i + 1);
        truth_free(&t);
    }
}

/* ---- Prompts ---------------------------------------------------------------------------------------- */

typedef struct {
    image file;
    l2c_model *model;
    l2c_pool *pool;
    l2c_batch *batch;
    l2c_sampler sampler;
    uint64_t n_cached; /* of prompts, as told story by story */
} reader;

enum { LONG_PROMPT = 600 };

static reader make_reader(int32_t n_sequences, int32_t n_threads) {
    static const shape c = {16, 24, 1, 2, 1, 270, LONG_PROMPT, 0, 1, 0};
    reader r = {.file = image_checkpoint(&c, 5)};
    CHECK(l2c_model_open_memory(r.file.data, r.file.size, L2C_DTYPE_AUTO, NULL, &r.model, NULL) == L2C_OK);
    CHECK(l2c_pool_create(n_threads, &r.pool, NULL) == L2C_OK);
    CHECK(l2c_batch_create(r.model, r.pool, n_sequences, 0, L2C_KV_FLOAT32, L2C_ISA_AUTO, &r.batch, NULL) == L2C_OK);
    l2c_sampler_init(&r.sampler, 3);
    return r;
}

static void free_reader(reader *r) {
    l2c_batch_free(r->batch);
    l2c_pool_free(r->pool);
    l2c_model_free(r->model);
    free(r->file.data);
}

/* The first n tokens of one of several texts. */
static int64_t add_prompt(reader *r, int32_t text, size_t n, int32_t max_tokens) {
    int32_t prompt[LONG_PROMPT];
    for (size_t i = 0; i < n; i++) prompt[i] = ((int32_t)i * (2 * text + 1) + text) % 270;
    int64_t id;
    l2c_request request = {.prompt = prompt, .n_prompt = n, .sampler = &r->sampler, .max_tokens = max_tokens,
                           .tell = L2C_TELL_TOKENS | L2C_TELL_READ};
    CHECK(l2c_batch_add(r->batch, &request, &id, NULL) == L2C_OK);
    return id;
}

/* One step; how many events it has of a story, but for READ. */
static size_t step(reader *r, int64_t id) {
    const l2c_event *events;
    size_t n, of_story = 0;
    CHECK(l2c_batch_step(r->batch, &events, &n, NULL) == L2C_OK);
    for (size_t i = 0; i < n; i++) {
        if (events[i].kind == L2C_EVENT_READ) r->n_cached += (uint64_t)events[i].n_cached;
        else of_story += events[i].story == id;
    }
    return of_story;
}

static void finish(reader *r) {
    while (l2c_batch_stories(r->batch) > 0) step(r, 0);
}

/* What of the prompts since then was computed. */
static uint64_t n_computed(const reader *r, l2c_batch_counts since) {
    l2c_batch_counts now = l2c_batch_count(r->batch);
    return now.prompt_tokens - since.prompt_tokens - (now.cached_prompt_tokens - since.cached_prompt_tokens);
}

void test_batch_prompts(void) {
    reader r = make_reader(8, 1);

    /* Many stories of one prompt read it once, but for its last token; when it is known, not at all. */
    for (int round = 0; round < 2; round++) {
        l2c_batch_counts before = l2c_batch_count(r.batch);
        for (int i = 0; i < 8; i++) add_prompt(&r, 1, 300, 20);
        finish(&r);
        CHECK(l2c_batch_count(r.batch).prompt_tokens - before.prompt_tokens == 8 * 300);
        CHECK(n_computed(&r, before) == (round == 0 ? 300 + 7 : 8));
        CHECK(l2c_batch_count(r.batch).tokens - before.tokens == 8 * 20);
    }

    /* The one that the others wait for is dropped half-way: they have what it read, and read on. */
    l2c_batch_counts before = l2c_batch_count(r.batch);
    int64_t first = add_prompt(&r, 2, 500, 1);
    for (int i = 0; i < 3; i++) add_prompt(&r, 2, 500, 1);
    step(&r, 0);
    l2c_batch_drop(r.batch, first);
    finish(&r);
    CHECK(n_computed(&r, before) == 500 + 2);

    /* A prompt that goes on where a story ended needs no more than its own tokens. */
    before = l2c_batch_count(r.batch);
    add_prompt(&r, 2, 520, 1);
    add_prompt(&r, 1, 310, 1);
    finish(&r);
    CHECK(n_computed(&r, before) == 20 + 10);

    /* One that shares little does not take a long prompt's sequence, while another is free. */
    add_prompt(&r, 5, 300, 1);
    finish(&r);
    add_prompt(&r, 5, 3, 1);
    finish(&r);
    before = l2c_batch_count(r.batch);
    add_prompt(&r, 5, 300, 1);
    finish(&r);
    CHECK(n_computed(&r, before) == 1);

    /* Half of what another one is reading in common is worth waiting for; a word of many is not. */
    before = l2c_batch_count(r.batch);
    add_prompt(&r, 3, 10, 1);
    add_prompt(&r, 3, 6, 1);
    add_prompt(&r, 4, 3, 1);
    add_prompt(&r, 4, 10, 1);
    finish(&r);
    CHECK(n_computed(&r, before) == 10 + 1 + 3 + 10);
    CHECK(l2c_batch_count(r.batch).cached_prompt_tokens == r.n_cached);
    free_reader(&r);
}

void test_batch_fairness(void) {
    reader r = make_reader(64, 2);
    int64_t told = add_prompt(&r, 100, 2, 100);
    CHECK(step(&r, told) == 1);
    for (int32_t i = 0; i < 62; i++) add_prompt(&r, i, 590, 1);
    for (int i = 0; i < 20; i++) CHECK(step(&r, told) == 1); /* long prompts delay no story */
    for (int32_t round = 0; round < 5; round++) {            /* nor a new one for long */
        int64_t late = add_prompt(&r, 120 + round, 5, 1);
        int sweeps = 1;
        while (step(&r, late) == 0) sweeps++;
        CHECK(sweeps <= 5);
    }
    finish(&r);
    free_reader(&r);
}

/* ---- Refusals --------------------------------------------------------------------------------------- */

void test_batch_refusals(void) {
    reader r = make_reader(2, 1);
    l2c_batch *none = NULL;
    static const int32_t sizes[] = {0, -1, L2C_MAX_ROWS + 1, INT_MAX, INT_MIN};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        CHECK(l2c_batch_create(r.model, r.pool, sizes[i], 0, L2C_KV_FLOAT32, L2C_ISA_AUTO, &none, NULL) == L2C_ARG);
    CHECK(l2c_batch_create(r.model, r.pool, 1, LONG_PROMPT + 1, L2C_KV_FLOAT32, L2C_ISA_AUTO, &none, NULL) == L2C_ARG && none == NULL);

    int32_t prompt[LONG_PROMPT] = {1}, ends[] = {0};
    l2c_sampler bad = r.sampler;
    bad.top_p = NAN;
    const l2c_request good = {prompt, LONG_PROMPT, ends, 1, &r.sampler, 1, L2C_TELL_TOKENS, L2C_MAX_TOP};
    l2c_request wrong[12];
    for (size_t i = 0; i < 12; i++) wrong[i] = good;
    static int32_t tokens[][2] = {{1, 270}, {-1, 1}, {1, INT_MAX}, {INT_MIN, 1}};
    wrong[0].n_prompt = 0;
    wrong[1].max_tokens = 0;
    wrong[2].max_tokens = INT_MIN;
    for (size_t i = 0; i < 2; i++) wrong[3 + i].prompt = tokens[i], wrong[3 + i].n_prompt = 2;
    for (size_t i = 0; i < 2; i++) wrong[5 + i].ends = tokens[2 + i], wrong[5 + i].n_ends = 2;
    wrong[7].sampler = &bad;
    wrong[8].tell = 16;
    wrong[9].tell = -1;
    wrong[10].n_top = L2C_MAX_TOP + 1;
    wrong[11].n_top = -1;
    int64_t id = 77;
    l2c_error err;
    for (size_t i = 0; i < 12; i++)
        CHECK(l2c_batch_add(r.batch, &wrong[i], &id, &err) == L2C_ARG && err.message[0] != '\0' && id == 77);
    static const int32_t too_many[] = {2, LONG_PROMPT, INT_MAX};
    for (size_t i = 0; i < 3; i++) {
        l2c_request longer = good;
        longer.max_tokens = too_many[i];
        CHECK(l2c_batch_add(r.batch, &longer, &id, &err) == L2C_RANGE);
    }
    l2c_request longer = good;
    longer.n_prompt = SIZE_MAX;
    CHECK(l2c_batch_add(r.batch, &longer, &id, &err) == L2C_RANGE && id == 77 && l2c_batch_stories(r.batch) == 0);

    /* Ids that are nobody's, or were somebody's. */
    const l2c_event *events;
    size_t n = 77;
    CHECK(l2c_batch_step(r.batch, &events, &n, NULL) == L2C_OK && n == 0);
    int64_t first = add_prompt(&r, 1, 5, 3), second = add_prompt(&r, 2, 5, 3);
    CHECK(first > 0 && second > 0 && first != second);
    const int64_t strangers[] = {0, -1, 1, second + 2, first + 1000, INT64_MAX, INT64_MIN};
    uint32_t bits[MOST_WORDS];
    memset(bits, 0, sizeof bits);
    for (size_t i = 0; i < sizeof strangers / sizeof *strangers; i++) {
        if (strangers[i] < INT64_MAX && strangers[i] != first + 1000) l2c_batch_drop(r.batch, strangers[i] < second ? strangers[i] : 0);
        CHECK(l2c_batch_row(r.batch, strangers[i]) == NULL);
        CHECK(l2c_batch_mask(r.batch, strangers[i], bits, NULL) == L2C_ARG);
    }
    CHECK(l2c_batch_stories(r.batch) == 2 && l2c_batch_row(r.batch, first) == NULL);

    /* Full; a drop makes room at once, and is told with the next step. */
    CHECK(l2c_batch_add(r.batch, &good, &id, &err) == L2C_FULL && id == 77);
    l2c_batch_drop(r.batch, second);
    l2c_batch_drop(r.batch, 1); /* an old one does not undo it */
    int64_t third = add_prompt(&r, 2, 5, 3);
    CHECK(l2c_batch_stories(r.batch) == 2);
    CHECK(l2c_batch_mask(r.batch, first, bits, NULL) == L2C_OK); /* which forbids all */
    CHECK(l2c_batch_step(r.batch, &events, &n, NULL) == L2C_OK && n == 5);
    for (size_t i = 0; i < n; i++) {
        if (events[i].kind == L2C_EVENT_READ) continue;
        if (events[i].story == second) CHECK(events[i].kind == L2C_EVENT_END && events[i].reason == L2C_END_DROPPED);
        if (events[i].story == first) CHECK(events[i].kind == L2C_EVENT_END && events[i].reason == L2C_END_NONFINITE);
        if (events[i].story == third) CHECK(events[i].kind == L2C_EVENT_TOKEN);
    }
    finish(&r);

    /* Copies between sequences. */
    l2c_session *session;
    CHECK(l2c_session_create(r.model, r.pool, 2, 10, L2C_KV_FLOAT32, L2C_ISA_AUTO, &session, NULL) == L2C_OK);
    CHECK(l2c_session_forward(session, &(l2c_row){0, 0, 5, 1}, 1, NULL) == L2C_OK);
    static const int32_t copies[][3] = {{0, 0, 1}, {0, 2, 1}, {2, 0, 1}, {-1, 0, 1}, {0, INT_MIN, 1}};
    for (size_t i = 0; i < 5; i++)
        CHECK(l2c_session_copy(session, copies[i][0], copies[i][1], copies[i][2], &err) == L2C_ARG);
    CHECK(l2c_session_copy(session, 0, 1, 2, &err) == L2C_RANGE && l2c_session_copy(session, 0, 1, -1, &err) == L2C_RANGE);
    CHECK(l2c_session_length(session, 1) == 0);
    CHECK(l2c_session_copy(session, 0, 1, 1, &err) == L2C_OK && l2c_session_length(session, 1) == 1);
    CHECK(l2c_session_logits(session, 0) != NULL);
    l2c_session_free(session);
    free_reader(&r);
}

/* ---- Threads ---------------------------------------------------------------------------------------- */

#if !defined(__wasm__) /* which has none */
#include "system/threads.h"

typedef struct {
    l2c_batch *batch;
    _Atomic int64_t last; /* added so far */
    atomic_int stop, busy;
} dropper;

/* Drops every other story of those there may be, again and again, and cancels sweeps. */
static void drop_stories(void *arg) {
    dropper *d = arg;
    for (uint64_t random = 5; atomic_load(&d->stop) == 0; l2c_thread_yield()) {
        int64_t last = atomic_load(&d->last);
        for (int64_t id = last; id > last - 20; id--)
            if (id % 2 == 0) l2c_batch_drop(d->batch, id);
        if (random_below(&random, 4) == 0) l2c_batch_cancel(d->batch);
        /* All else is for one thread: another is refused, or has its turn. */
        l2c_error err;
        uint32_t bits[MOST_WORDS] = {0};
        l2c_status status = l2c_batch_mask(d->batch, -1, bits, &err);
        CHECK(status == L2C_BUSY || status == L2C_ARG);
        atomic_fetch_add(&d->busy, status == L2C_BUSY);
    }
}

static l2c_status add_word(reader *r, int32_t word, int32_t max_tokens, int64_t *id) {
    const int32_t prompt[] = {1, word, 7, 8};
    l2c_request request = {
        .prompt = prompt, .n_prompt = 4, .sampler = &r->sampler, .max_tokens = max_tokens, .tell = L2C_TELL_TOKENS};
    return l2c_batch_add(r->batch, &request, id, NULL);
}

/* A step, which a request to stop may end that no step before has answered; its last event, if any. */
static const l2c_event *step_or_cancelled(reader *r) {
    const l2c_event *events;
    size_t n = 0;
    l2c_status status = l2c_batch_step(r->batch, &events, &n, NULL);
    CHECK(status == L2C_OK || status == L2C_CANCELLED);
    return n > 0 ? &events[n - 1] : NULL;
}

void test_batch_dropped_from_a_thread(void) {
    enum { ROUNDS = 40, SEQUENCES = 7, LENGTH = 30 }; /* odd, so that ids in a sequence are even and odd in turn */
    for (int32_t n_threads = 1; n_threads <= 2; n_threads++) {
        reader r = make_reader(SEQUENCES, n_threads);
        dropper d = {.batch = r.batch};
        l2c_thread thread;
        CHECK(l2c_thread_start(&thread, drop_stories, &d));
        int ended = 0, added = 0, dropped = 0, n_whole = 0;
        int32_t words[SEQUENCES], whole[ROUNDS + 1][1 + LENGTH]; /* the second of the prompt, the story */
        /* Until both have been seen: beside other work the other thread may not get a turn for a while. */
        for (int64_t ids[SEQUENCES] = {0}; ended < ROUNDS || dropped == 0 || n_whole == 0;) {
            for (int i = 0; i < SEQUENCES; i++) {
                if (ids[i] != 0) continue;
                words[i] = added % 250;
                l2c_status status = add_word(&r, words[i], LENGTH, &ids[i]);
                CHECK(status == L2C_OK || status == L2C_BUSY || status == L2C_FULL);
                if (status != L2C_OK) continue;
                added++;
                atomic_store(&d.last, ids[i]);
            }
            const l2c_event *events;
            size_t n;
            l2c_status status = l2c_batch_step(r.batch, &events, &n, NULL);
            CHECK(status == L2C_OK || status == L2C_BUSY || status == L2C_CANCELLED);
            for (size_t e = 0; status == L2C_OK && e < n; e++) {
                if (events[e].kind != L2C_EVENT_END) continue;
                int i = 0; /* each ends once */
                while (i < SEQUENCES && ids[i] != events[e].story) i++;
                CHECK(i < SEQUENCES);
                ids[i] = 0;
                ended++;
                if (events[e].reason == L2C_END_DROPPED) {
                    CHECK(events[e].story % 2 == 0);
                    dropped++;
                    continue;
                }
                CHECK(events[e].reason == L2C_END_LENGTH && events[e].n_tokens == LENGTH);
                whole[n_whole][0] = words[i];
                memcpy(&whole[n_whole][1], events[e].tokens, LENGTH * sizeof(int32_t));
                if (n_whole < ROUNDS) n_whole++;
            }
        }
        atomic_store(&d.stop, 1);
        CHECK(l2c_thread_join(&thread));
        while (l2c_batch_stories(r.batch) > 0) step_or_cancelled(&r);
        for (int i = 0; i < n_whole; i++) { /* without company, drops and sweeps that are begun twice */
            int64_t id;
            CHECK(add_word(&r, whole[i][0], LENGTH, &id) == L2C_OK);
            const l2c_event *last;
            do last = step_or_cancelled(&r);
            while (last == NULL || last->kind != L2C_EVENT_END);
            CHECK(last->story == id && memcmp(last->tokens, &whole[i][1], LENGTH * sizeof(int32_t)) == 0);
        }
        free_reader(&r);
    }
}
#endif
