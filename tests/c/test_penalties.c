/*
 * test_penalties.c - biases and penalties against their rule, written plainly; the same story in every way of telling it,
 * and the log-probabilities that are told of it.
 */
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "harness.h"

/* The rule of llama2c.h, a token at a time. */
static void adjust_plainly(const l2c_sampler *s, float *x, int32_t n, const int32_t *history, size_t n_history) {
    for (int32_t token = 0; token < n; token++) {
        for (size_t i = 0; i < s->n_biases; i++)
            if (s->biases[i].token == token) x[token] += s->biases[i].value;
        int there = 0, count = 0;
        for (size_t i = 0; i < n_history; i++) {
            there |= history[i] == token;
            count += history[i] == token && i >= s->n_prompt;
        }
        if (there && x[token] > 0.0f) x[token] /= s->repetition_penalty;
        else if (there) x[token] *= s->repetition_penalty;
        volatile float product = s->frequency_penalty * (float)count; /* rounded */
        if (count > 0) x[token] -= product;
        if (count > 0) x[token] -= s->presence_penalty;
    }
}

static l2c_sampler random_sampler(uint64_t *random, int32_t n, l2c_logit_bias *biases, size_t most) {
    static const float repetitions[] = {1.0f, 1.0f, 1.3f, 0.7f}, others[] = {0.0f, 0.0f, 0.3f, 1.7f, -0.9f};
    l2c_sampler s;
    l2c_sampler_init(&s, random_next(random));
    s.temperature = (float)random_below(random, 3) / 2;
    s.top_k = random_below(random, 2) * 5;
    s.repetition_penalty = repetitions[random_below(random, 4)];
    s.presence_penalty = others[random_below(random, 5)];
    s.frequency_penalty = others[random_below(random, 5)];
    s.biases = biases;
    s.n_biases = (size_t)random_below(random, (int32_t)most + 1);
    for (size_t i = 0; i < s.n_biases; i++) /* a token may come twice; one is always left */
        biases[i] = (l2c_logit_bias){random_below(random, n), 5 * random_float(random)};
    if (s.n_biases > 1) biases[1].value = -INFINITY;
    return s;
}

/* Blocks of exactly their size, for ASan; and ids in the history that are none. */
void test_biases_and_penalties(void) {
    enum { MOST = 12 };
    uint64_t random = 8;
    for (int32_t n = 1; n <= 40; n++)
        for (int i = 0; i < 60; i++) {
            l2c_logit_bias biases[MOST];
            l2c_sampler s = random_sampler(&random, n, biases, n < 3 ? 1 : n < MOST ? (size_t)n : MOST);
            size_t n_history = (size_t)random_below(&random, 30);
            image history = {malloc(n_history * sizeof(int32_t) + 1), 0, 0}, logits, expected;
            int32_t *ids = (int32_t *)history.data;
            CHECK(ids != NULL);
            for (size_t j = 0; j < n_history; j++) ids[j] = random_below(&random, 8) < 7 ? random_below(&random, n) : n + (int32_t)j;
            if (n_history > 3) ids[0] = -1, ids[2] = INT_MAX;
            s.n_prompt = (size_t)random_below(&random, 35); /* the history may be shorter */
            float x[40];
            for (int32_t j = 0; j < n; j++) x[j] = 3 * random_float(&random);
            logits = image_copy(x, (size_t)n * sizeof *x);
            expected = image_copy(x, (size_t)n * sizeof *x);
            int32_t *counts = malloc((size_t)n * sizeof *counts);
            CHECK(counts != NULL);
            for (int32_t j = 0; j < n; j++) counts[j] = random_below(&random, INT_MAX); /* what scratch holds */
            l2c_sampler_adjust(&s, (float *)logits.data, n, ids, n_history, counts);
            adjust_plainly(&s, (float *)expected.data, n, ids, n_history);
            CHECK(memcmp(logits.data, expected.data, logits.size) == 0);
            free(counts);
            free(history.data);
            free(logits.data);
            free(expected.data);
        }

    l2c_error err;
    l2c_sampler s;
    l2c_logit_bias bias = {3, 1.0f};
    const l2c_logit_bias wrong[] = {{4, 0.0f}, {-1, 0.0f}, {INT_MIN, 0.0f}, {0, NAN}, {0, INFINITY}};
    l2c_sampler_init(&s, 1);
    s.biases = &bias;
    s.n_biases = 1;
    CHECK(l2c_sampler_check(&s, 4, &err) == L2C_OK && l2c_sampler_check(&s, 3, &err) == L2C_ARG);
    s.n_biases = 5;
    CHECK(l2c_sampler_check(&s, 4, &err) == L2C_ARG && strstr(err.message, "5 biases") != NULL);
    s.n_biases = 1;
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        bias = wrong[i];
        CHECK(l2c_sampler_check(&s, 4, &err) == L2C_ARG && strstr(err.message, "biases[0]") != NULL);
    }
}

/* ---- Stories ---------------------------------------------------------------------------------------- */

enum { VOCAB = 270, CONTEXT = 48, N_TOP = 4 };

typedef struct {
    int32_t tokens[CONTEXT];
    uint64_t states[CONTEXT];
    l2c_draw_options options[CONTEXT]; /* those of the token at this place; only their results */
    l2c_logprob top[CONTEXT][N_TOP];
} told;

typedef struct {
    image file;
    l2c_model *model, *copy; /* one in int8 */
    l2c_pool *pool;
    l2c_session *session, *draft;
} teller;

static teller make_teller(int32_t n_threads) {
    static const shape c = {32, 48, 2, 2, 1, VOCAB, CONTEXT, 0, 1, 0};
    teller t = {.file = image_checkpoint(&c, 3)};
    CHECK(l2c_pool_create(n_threads, &t.pool, NULL) == L2C_OK);
    CHECK(l2c_model_open_memory(t.file.data, t.file.size, L2C_DTYPE_AUTO, t.pool, &t.model, NULL) == L2C_OK);
    CHECK(l2c_model_quantize(t.model, L2C_DTYPE_INT8, t.pool, &t.copy, NULL) == L2C_OK);
    CHECK(l2c_session_create(t.model, t.pool, 1, 0, L2C_KV_FLOAT32, L2C_ISA_AUTO, &t.session, NULL) == L2C_OK);
    CHECK(l2c_session_create(t.copy, t.pool, 1, 0, L2C_KV_FLOAT32, L2C_ISA_AUTO, &t.draft, NULL) == L2C_OK);
    return t;
}

static void free_teller(teller *t) {
    l2c_session_free(t->draft);
    l2c_session_free(t->session);
    l2c_model_free(t->copy);
    l2c_model_free(t->model);
    l2c_pool_free(t->pool);
    free(t->file.data);
}

/* Token by token, the logits changed by hand, and each log-probability asked for. */
static void tell_plainly(teller *t, l2c_sampler s, size_t n, told *story) {
    l2c_sampler plain = s;
    plain.n_biases = 0;
    plain.repetition_penalty = 1.0f;
    plain.presence_penalty = plain.frequency_penalty = 0.0f;
    for (; n < CONTEXT; n++) {
        double logprobs[VOCAB];
        l2c_row row = {0, (int32_t)n - 1, story->tokens[n - 1], 1};
        CHECK(l2c_session_forward(t->session, &row, 1, NULL) == L2C_OK);
        for (int32_t i = 0; i < VOCAB; i++) CHECK(l2c_session_logprob(t->session, 0, i, &logprobs[i], NULL) == L2C_OK);
        for (int i = 0; i < N_TOP; i++) {
            l2c_logprob *best = &story->top[n][i];
            best->token = -1;
            for (int32_t j = 0; j < VOCAB; j++) {
                int taken = 0;
                for (int k = 0; k < i; k++) taken |= story->top[n][k].token == j;
                if (!taken && (best->token < 0 || logprobs[j] > best->logprob)) *best = (l2c_logprob){j, logprobs[j]};
            }
        }
        adjust_plainly(&s, l2c_session_logits(t->session, 0), VOCAB, story->tokens, n);
        CHECK(l2c_session_sample(t->session, 0, &plain, NULL, 0, &story->tokens[n], NULL) == L2C_OK);
        story->states[n] = plain.rng_state;
        story->options[n].logprob = logprobs[story->tokens[n]];
    }
}

static void check_same(const told *a, const told *b, size_t from, size_t to) {
    CHECK(memcmp(a->tokens, b->tokens, to * sizeof *a->tokens) == 0);
    for (size_t i = from; i < to; i++) {
        CHECK(a->states[i] == b->states[i] && a->options[i].logprob == b->options[i].logprob);
        for (int j = 0; j < N_TOP; j++)
            CHECK(a->top[i][j].token == b->top[i][j].token && a->top[i][j].logprob == b->top[i][j].logprob);
    }
}

/* The prompt's first tokens; feeds all but the last. */
static void begin(teller *t, told *story, size_t n_prompt) {
    memset(story, 0, sizeof *story);
    for (size_t i = 0; i < n_prompt; i++) story->tokens[i] = (int32_t)(7 * i % 5 + 4);
    CHECK(l2c_session_cut(t->draft, 0, 0, NULL) == L2C_OK);
    for (size_t i = 0; i + 1 < n_prompt; i++) {
        l2c_row row = {0, (int32_t)i, story->tokens[i], 0};
        CHECK(l2c_session_forward(t->session, &row, 1, NULL) == L2C_OK);
    }
}

void test_biases_and_penalties_in_every_way(void) {
    teller t = make_teller(2);
    uint64_t random = 77;
    size_t drafted = 0, accepted = 0;
    for (int i = 0; i < 40; i++) {
        l2c_logit_bias biases[9];
        l2c_sampler s = random_sampler(&random, VOCAB, biases, 9), own;
        size_t n_prompt = s.n_prompt = 1 + (size_t)random_below(&random, 6), more;
        told plain, story;
        begin(&t, &plain, n_prompt);
        tell_plainly(&t, s, n_prompt, &plain);

        /* Drafted: the same, and all of it told. One row of logits serves all draws. */
        float row[VOCAB];
        begin(&t, &story, n_prompt);
        own = s;
        for (size_t n = n_prompt; n + 1 < CONTEXT; n += more) {
            size_t n_draft = n + 4 < CONTEXT ? 4 : CONTEXT - n - 1;
            for (size_t j = 0; j <= n_draft; j++)
                story.options[n + j] = (l2c_draw_options){.logits = row, .top = story.top[n + j], .n_top = N_TOP};
            CHECK(l2c_speculate(t.session, t.draft, &own, story.tokens, n, n_draft, NULL, 0, &story.states[n],
                                &story.options[n], &more, NULL) == L2C_OK);
            check_same(&plain, &story, n, n + more);
            drafted += n_draft;
            accepted += more - 1;
        }

        /* Several a call. */
        begin(&t, &story, n_prompt);
        own = s;
        for (size_t n = n_prompt; n < CONTEXT; n += more) {
            size_t steps = CONTEXT - n < 6 ? CONTEXT - n : 6;
            CHECK(l2c_session_decode(t.session, &own, story.tokens, n, steps, NULL, 0, &story.states[n], &more, NULL) == L2C_OK);
        }
        CHECK(memcmp(plain.tokens, story.tokens, sizeof story.tokens) == 0);
        CHECK(memcmp(plain.states, story.states, sizeof story.states) == 0);
    }
    CHECK(accepted > 0 && accepted < drafted);
    free_teller(&t);
}

/* What draws tell is of the model's own row, whatever a mask, the caller and the sampler do to it. */
void test_logprobs_of_draws(void) {
    teller t = make_teller(3);
    uint64_t random = 5;
    enum { ROWS = 8, MOST = L2C_MAX_TOP };
    for (int round = 0; round < 10; round++) {
        l2c_row rows[ROWS];
        for (int32_t i = 0; i < ROWS; i++) rows[i] = (l2c_row){0, i, random_below(&random, VOCAB), 1};
        CHECK(l2c_session_forward(t.session, rows, ROWS, NULL) == L2C_OK);
        static float own[ROWS][VOCAB];
        static l2c_logprob top[ROWS][MOST];
        static double logprobs[ROWS][VOCAB];
        uint32_t mask[(VOCAB + 31) / 32];
        l2c_logit_bias biases[9];
        l2c_sampler samplers[ROWS];
        l2c_draw draws[ROWS];
        l2c_draw_options options[ROWS];
        for (size_t i = 0; i < sizeof mask / sizeof *mask; i++) mask[i] = (uint32_t)random_next(&random) | 1;
        for (size_t i = 0; i < ROWS; i++) {
            for (int32_t j = 0; j < VOCAB; j++) CHECK(l2c_session_logprob(t.session, i, j, &logprobs[i][j], NULL) == L2C_OK);
            int changed = i % 3 == 0;
            float *x = l2c_session_logits(t.session, i);
            if (changed) memcpy(own[i], x, sizeof own[i]);
            for (int32_t j = 0; changed && j < VOCAB; j++) x[j] += random_float(&random);
            samplers[i] = random_sampler(&random, VOCAB, biases, 0);
            draws[i] = (l2c_draw){.row = i, .sampler = &samplers[i], .history = &rows[0].token, .n_history = 1};
            options[i] = (l2c_draw_options){.mask = i % 2 ? mask : NULL, .logits = own[i], .logits_are_kept = changed,
                                            .top = top[i], .n_top = i == 1 ? 0 : MOST};
        }
        options[5].n_top = MOST + 1;
        CHECK(l2c_session_sample_with(t.session, draws, options, ROWS, NULL) == L2C_ARG); /* and uses up nothing */
        options[5] = (l2c_draw_options){.top = top[5], .n_top = 1};
        CHECK(l2c_session_sample_with(t.session, draws, options, ROWS, NULL) == L2C_ARG);
        options[5].n_top = 0;
        CHECK(l2c_session_sample_with(t.session, draws, options, ROWS, NULL) == L2C_OK);
        for (size_t i = 0; i < ROWS; i++) {
            CHECK(draws[i].status == L2C_OK);
            if (options[i].mask != NULL) CHECK(mask[draws[i].token / 32] >> (draws[i].token % 32) & 1);
            if (options[i].logits == NULL) continue;
            CHECK(options[i].logprob == logprobs[i][draws[i].token]);
            for (size_t j = 0; j < options[i].n_top; j++) {
                CHECK(top[i][j].logprob == logprobs[i][top[i][j].token]);
                if (j > 0) CHECK(top[i][j - 1].logprob >= top[i][j].logprob);
            }
        }
    }
    free_teller(&t);
}
