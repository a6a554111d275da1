/*
 * test_backend.c - the seam between sessions and what computes them: a second backend, which counts its calls and
 * has them done by a session of the CPU's that nobody else knows of. So whatever reached past the seam, for the CPU's
 * memory, threads or kernels, would find none.
 */
#include <stdlib.h>
#include <string.h>

#include "backend.h"
#include "batch.h"
#include "harness.h"

typedef struct {
    size_t open, close, forward, logits, sample, draws, logprob, read, write, copy;
} calls;

static calls counted;

static l2c_session *inner(l2c_session *session) { return session->state; }

static uint64_t session_bytes(const l2c_model *model, const l2c_session_options *options, int32_t n_threads) {
    return l2c_backend_cpu.session_bytes(model, options, n_threads);
}

static l2c_status session_open(l2c_session *session, const l2c_session_options *options, l2c_error *err) {
    l2c_session *cpu;
    counted.open++;
    l2c_status status = l2c_session_create_on(&l2c_backend_cpu, session->model, options, &cpu, err);
    if (status != L2C_OK) return status;
    cpu->partner = session; /* who asks this one to stop means that one */
    session->state = cpu;
    session->max_rows = cpu->max_rows;
    return L2C_OK;
}

static void session_close(l2c_session *session) {
    counted.close++;
    l2c_session_free(session->state);
}

static l2c_status forward(l2c_session *session, const l2c_row *rows, size_t n_rows, l2c_error *err) {
    counted.forward++;
    return l2c_backend_cpu.forward(inner(session), rows, n_rows, err);
}

static float *logits(l2c_session *session, size_t i) {
    counted.logits++;
    return l2c_backend_cpu.logits(inner(session), i);
}

static l2c_status sample(l2c_session *session, l2c_draw *draws, l2c_draw_options *options, size_t n, l2c_error *err) {
    counted.sample++;
    counted.draws += n;
    return l2c_backend_cpu.sample(inner(session), draws, options, n, err);
}

static l2c_status logprob(l2c_session *session, size_t i, int32_t token, double *value, l2c_error *err) {
    counted.logprob++;
    return l2c_backend_cpu.logprob(inner(session), i, token, value, err);
}

static l2c_status cache_read(l2c_session *session, int32_t sequence, size_t n, void *state, l2c_error *err) {
    counted.read++;
    return l2c_backend_cpu.cache_read(inner(session), sequence, n, state, err);
}

static l2c_status cache_write(l2c_session *session, int32_t sequence, size_t n, const void *state, l2c_error *err) {
    counted.write++;
    return l2c_backend_cpu.cache_write(inner(session), sequence, n, state, err);
}

static l2c_status cache_copy(l2c_session *session, int32_t from, int32_t to, size_t n, l2c_error *err) {
    counted.copy++;
    return l2c_backend_cpu.cache_copy(inner(session), from, to, n, err);
}

static const l2c_backend counting = {
    .name = "counting",
    .session_bytes = session_bytes,
    .session_open = session_open,
    .session_close = session_close,
    .forward = forward,
    .logits = logits,
    .sample = sample,
    .logprob = logprob,
    .cache_read = cache_read,
    .cache_write = cache_write,
    .cache_copy = cache_copy,
};

static l2c_session *create(const truth *t, l2c_pool *pool, l2c_kv kv, l2c_isa isa, int32_t n_sequences) {
    const l2c_session_options options = {n_sequences, l2c_model_config(t->model)->seq_len, kv, isa, pool};
    l2c_session *session;
    CHECK(l2c_session_create_on(&counting, t->model, &options, &session, NULL) == L2C_OK);
    return session;
}

/* How often it was called since the last time. */
static calls taken(void) {
    calls c = counted;
    counted = (calls){0};
    return c;
}

/* Prefill, decoding, and all that is made of logits and caches. */
static void check_calls(const truth *t, l2c_pool *pool, l2c_kv kv) {
    enum { PROMPT = 3, DECODED = 2 }; /* the shortest model has 5 positions */
    const l2c_config *c = l2c_model_config(t->model);
    l2c_session *session = create(t, pool, kv, L2C_ISA_AUTO, 2);
    l2c_row rows[PROMPT];
    l2c_sampler sampler, other;
    int32_t token;
    double logprob_of_0;
    taken();
    for (int32_t i = 0; i < PROMPT; i++) rows[i] = truth_row(t, 0, i), rows[i].want_logits = i >= PROMPT - 2;
    CHECK(l2c_session_forward(session, rows, PROMPT, NULL) == L2C_OK);
    CHECK(truth_equals(t, 0, PROMPT - 2, l2c_session_logits(session, 0)));
    CHECK(truth_equals(t, 0, PROMPT - 1, l2c_session_logits(session, 1)));
    CHECK(l2c_session_logits(session, 2) == NULL);
    l2c_sampler_init(&sampler, 7);
    l2c_sampler_init(&other, 8);
    CHECK(l2c_session_logprob(session, 0, 0, &logprob_of_0, NULL) == L2C_OK);
    CHECK(l2c_session_logprob(session, 0, c->vocab_size, &logprob_of_0, NULL) == L2C_ARG);
    l2c_draw draws[] = {{.row = 0, .sampler = &sampler}, {.row = 1, .sampler = &other}};
    CHECK(l2c_session_sample_many(session, draws, 2, NULL) == L2C_OK);
    for (int32_t i = PROMPT; i < PROMPT + DECODED; i++) {
        l2c_row row = truth_row(t, 0, i);
        CHECK(l2c_session_forward(session, &row, 1, NULL) == L2C_OK);
        CHECK(truth_equals(t, 0, i, l2c_session_logits(session, 0)));
        CHECK(l2c_session_sample(session, 0, &sampler, NULL, 0, &token, NULL) == L2C_OK);
    }
    size_t bytes = 2 * (size_t)c->n_layers * (size_t)c->n_kv_heads * (size_t)c->head_size * PROMPT * (kv == L2C_KV_FLOAT16 ? 2 : 4);
    void *state = malloc(bytes);
    CHECK(state != NULL && l2c_session_save(session, PROMPT, state, NULL) == L2C_OK);
    CHECK(l2c_session_load(session, PROMPT, state, NULL) == L2C_OK);
    CHECK(l2c_session_copy(session, 0, 1, PROMPT, NULL) == L2C_OK);
    free(state);
    float weights; /* not touched */
    CHECK(l2c_session_attention(session, rows, &weights, NULL) == L2C_UNSUPPORTED);
    l2c_row next = truth_row(t, 0, PROMPT); /* after what was copied, in the other sequence */
    next.sequence = 1;
    CHECK(l2c_session_forward(session, &next, 1, NULL) == L2C_OK);
    CHECK(truth_equals(t, 0, PROMPT, l2c_session_logits(session, 0)));
    l2c_session_cancel(session);
    CHECK(l2c_session_forward(session, &next, 1, NULL) == L2C_CANCELLED);
    l2c_session_free(session);
    calls n = taken(), expected = {.close = 1, .forward = 1 + DECODED + 1, .logits = 2 + DECODED + 1, .sample = 1 + DECODED,
                                   .draws = 2 + DECODED, .logprob = 1, .read = 1, .write = 1, .copy = 1};
    CHECK(memcmp(&n, &expected, sizeof n) == 0);
}

enum { STORIES = 5, MOST = 4, TOP = 3 };

/* Tells stories in a batch, and writes down what was told. */
static size_t tell_stories(const truth *t, l2c_batch *batch, const uint32_t *mask, l2c_logprob *told, size_t *n_steps) {
    size_t n_told = 0;
    for (int i = 0; i < STORIES; i++) {
        l2c_sampler sampler;
        l2c_sampler_init(&sampler, (uint64_t)i + 1);
        const int32_t *prompt = t->tokens + (i % 2) * l2c_model_config(t->model)->seq_len; /* so they begin alike */
        l2c_request request = {.prompt = prompt, .n_prompt = 2, .sampler = &sampler, .max_tokens = MOST,
                               .tell = L2C_TELL_TOKENS | (i % 2 ? L2C_TELL_LOGPROBS : 0), .n_top = TOP};
        int64_t story;
        CHECK(l2c_batch_add(batch, &request, &story, NULL) == L2C_OK);
        if (i == 1) CHECK(l2c_batch_mask(batch, story, mask, NULL) == L2C_OK);
    }
    for (*n_steps = 0; l2c_batch_stories(batch) > 0;) {
        const l2c_event *events;
        size_t n_events;
        CHECK(l2c_batch_step(batch, &events, &n_events, NULL) == L2C_OK);
        *n_steps += n_events > 0;
        for (size_t i = 0; i < n_events; i++) {
            const l2c_event *e = &events[i];
            told[n_told++] = e->kind == L2C_EVENT_TOKEN ? e->chosen : (l2c_logprob){(int32_t)e->n_tokens, e->reason};
            for (size_t k = 0; k < e->n_top; k++) told[n_told++] = e->top[k];
        }
    }
    return n_told;
}

static void check_batch(const truth *t, l2c_pool *pool, l2c_kv kv) {
    const l2c_config *c = l2c_model_config(t->model);
    l2c_logprob told[2][STORIES * (MOST * (1 + TOP) + 1)];
    uint32_t mask[64];
    size_t n_told[2], n_steps[2];
    l2c_batch *batch;
    CHECK(c->vocab_size <= 32 * (int32_t)(sizeof mask / sizeof *mask));
    memset(mask, 0x5a, sizeof mask);
    CHECK(l2c_batch_create(t->model, pool, STORIES, 0, kv, L2C_ISA_AUTO, &batch, NULL) == L2C_OK);
    n_told[0] = tell_stories(t, batch, mask, told[0], &n_steps[0]);
    l2c_batch_free(batch);
    l2c_session *session = create(t, pool, kv, L2C_ISA_SCALAR, STORIES);
    taken();
    CHECK(l2c_batch_create_on(session, &batch, NULL) == L2C_OK);
    n_told[1] = tell_stories(t, batch, mask, told[1], &n_steps[1]);
    l2c_batch_counts done = l2c_batch_count(batch);
    l2c_batch_free(batch);
    calls n = taken();
    CHECK(n_told[0] == n_told[1] && n_steps[0] == n_steps[1]);
    for (size_t i = 0; i < n_told[0]; i++)
        CHECK(told[0][i].token == told[1][i].token && memcmp(&told[0][i].logprob, &told[1][i].logprob, sizeof(double)) == 0);
    /* A sweep is a call, and so are all its draws; no row comes to the host. */
    CHECK(n.forward == done.sweeps && n.sample == n_steps[1] && n.draws >= done.tokens);
    CHECK(n.copy > 0 && n.close == 1 && n.logits + n.logprob + n.read + n.write + n.open == 0);
}

void test_second_backend(void) {
    for (size_t i = 0; i < n_shapes; i++)
        for (l2c_kv kv = L2C_KV_FLOAT32; kv <= L2C_KV_FLOAT16; kv++) {
            truth t = truth_make_with(&shapes[i], kv);
            l2c_pool *pool;
            CHECK(l2c_pool_create(1 + (int32_t)i % 3, &pool, NULL) == L2C_OK);
            l2c_session *session = create(&t, pool, kv, L2C_ISA_AUTO, TRUTH_SEQUENCES);
            truth_check_session(&t, session, i + 1);
            l2c_session_free(session);
            check_calls(&t, pool, kv);
            check_batch(&t, pool, kv);
            l2c_pool_free(pool);
            truth_free(&t);
        }
}
