/*
 * test_compute.c - the forward pass and the sampler.
 */
#include <fenv.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cpu_session.h"
#include "harness.h"
#include "system/float_env.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

/* ---- Forward ---------------------------------------------------------------------------------- */

void test_same_bits(void) {
    static const int32_t n_threads[] = {1, 2, 3, 5};
    l2c_isa isas[MAX_ISAS];
    size_t n_isas = available_isas(isas);
    for (size_t c = 0; c < 2 * n_shapes; c++) {
        l2c_kv kv = c % 2 == 0 ? L2C_KV_FLOAT32 : L2C_KV_FLOAT16;
        truth t = truth_make_with(&shapes[c / 2], kv);
        for (size_t i = 0; i < n_isas; i++)
            for (size_t k = 0; k < sizeof n_threads / sizeof *n_threads; k++) {
                l2c_pool *pool;
                l2c_session *session;
                CHECK(l2c_pool_create(n_threads[k], &pool, NULL) == L2C_OK);
                CHECK(l2c_session_create(t.model, pool, TRUTH_SEQUENCES, 0, kv, isas[i], &session, NULL) == L2C_OK);
                truth_check_session(&t, session, 100 + k);
                truth_check_session(&t, session, 200 + k); /* position 0 again cuts the sequences */
                l2c_session_free(session);
                l2c_pool_free(pool);
            }
        truth_free(&t);
    }
}

void test_row_errors(void) {
    const shape *c = &shapes[2];
    truth t = truth_make(c);
    l2c_pool *pool;
    l2c_session *session;
    l2c_error err;
    enum { CONTEXT = 10 }; /* less than the model's */
    CHECK(l2c_pool_create(2, &pool, NULL) == L2C_OK);
    CHECK(l2c_session_create(t.model, pool, TRUTH_SEQUENCES, CONTEXT, L2C_KV_FLOAT32, L2C_ISA_AUTO, &session, &err) == L2C_OK);
    CHECK(l2c_session_logits(session, 0) == NULL);
    l2c_row rows[L2C_MAX_ROWS + 1];
    for (int32_t i = 0; i < 3; i++) rows[i] = truth_row(&t, 0, i);
    CHECK(l2c_session_forward(session, rows, 3, &err) == L2C_OK); /* sequence 0 has 3 positions */

    static const struct {
        l2c_row row;
        l2c_status status;
    } bad[] = {
        {{0, 4, 5, 1}, L2C_RANGE},  {{0, -1, 5, 1}, L2C_RANGE},      {{0, CONTEXT, 5, 1}, L2C_RANGE},
        {{1, 1, 5, 1}, L2C_RANGE},  {{0, INT_MAX, 5, 1}, L2C_RANGE}, {{0, INT_MIN, 5, 1}, L2C_RANGE},
        {{0, 3, -1, 1}, L2C_ARG},   {{0, 3, 300, 1}, L2C_ARG},       {{0, 3, INT_MAX, 1}, L2C_ARG},
        {{-1, 0, 5, 1}, L2C_ARG},   {{TRUTH_SEQUENCES, 0, 5, 1}, L2C_ARG},
        {{INT_MIN, 0, 5, 1}, L2C_ARG},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        CHECK(l2c_session_forward(session, &bad[i].row, 1, &err) == bad[i].status);
        CHECK(err.status == bad[i].status && err.message[0] != '\0');
        rows[0] = truth_row(&t, 2, 0); /* a good row before it does not help */
        rows[1] = bad[i].row;
        CHECK(l2c_session_forward(session, rows, 2, NULL) == bad[i].status);
    }
    static const int32_t pairs[][2] = {{3, 5}, {3, 3}, {3, 2}}; /* a gap, a repetition, a step back */
    for (size_t i = 0; i < 3; i++) {
        rows[0] = truth_row(&t, 0, pairs[i][0]);
        rows[1] = truth_row(&t, 1, 0);
        rows[2] = truth_row(&t, 0, pairs[i][1]);
        CHECK(l2c_session_forward(session, rows, 3, &err) == L2C_RANGE);
    }
    CHECK(l2c_session_forward(session, rows, 0, &err) == L2C_ARG);
    for (int32_t i = 0; i <= L2C_MAX_ROWS; i++) rows[i] = truth_row(&t, 0, 0);
    CHECK(l2c_session_forward(session, rows, L2C_MAX_ROWS + 1, &err) == L2C_ARG);
    CHECK(l2c_session_forward(session, rows, SIZE_MAX, &err) == L2C_ARG);

    /* Nothing of that moved the session: position 3 is still the next one. */
    CHECK(truth_equals(&t, 0, 2, l2c_session_logits(session, 2)));
    rows[0] = truth_row(&t, 0, 3);
    CHECK(l2c_session_forward(session, rows, 1, &err) == L2C_OK);
    CHECK(truth_equals(&t, 0, 3, l2c_session_logits(session, 0)));

    /* A full sequence: the next position is the next one, but past the context. */
    for (int32_t i = 4; i < CONTEXT; i++) {
        rows[0] = truth_row(&t, 0, i);
        CHECK(l2c_session_forward(session, rows, 1, &err) == L2C_OK);
    }
    rows[1] = truth_row(&t, 0, CONTEXT);
    CHECK(l2c_session_forward(session, &rows[1], 1, &err) == L2C_RANGE);
    CHECK(l2c_session_forward(session, rows, 2, &err) == L2C_RANGE);

    int32_t token = 77;
    double logprob = 77;
    l2c_sampler sampler;
    l2c_sampler_init(&sampler, 0);
    CHECK(l2c_session_logits(session, 1) == NULL && l2c_session_logits(session, SIZE_MAX) == NULL);
    CHECK(l2c_session_logprob(session, 0, 300, &logprob, &err) == L2C_ARG);
    CHECK(l2c_session_logprob(session, 0, -1, &logprob, &err) == L2C_ARG && logprob == 77);
    CHECK(l2c_session_logprob(session, 0, 299, &logprob, &err) == L2C_OK && logprob < 0);
    CHECK(l2c_session_sample(session, 1, &sampler, NULL, 0, &token, &err) == L2C_ARG && token == 77);
    CHECK(l2c_session_sample(session, 0, &sampler, NULL, 0, &token, &err) == L2C_OK && token >= 0 && token < 300);
    l2c_session_free(session);

    static const int32_t contexts[] = {-1, 34, INT_MAX, INT_MIN};
    for (size_t i = 0; i < 4; i++)
        CHECK(l2c_session_create(t.model, pool, 1, contexts[i], L2C_KV_FLOAT32, L2C_ISA_AUTO, &session, &err) == L2C_ARG);
    CHECK(l2c_session_create(t.model, pool, 1, 0, (l2c_kv)7, L2C_ISA_AUTO, &session, &err) == L2C_ARG);
    CHECK(l2c_session_create(t.model, pool, 0, 0, L2C_KV_FLOAT32, L2C_ISA_AUTO, &session, &err) == L2C_ARG);
    CHECK(l2c_session_create(t.model, pool, INT_MIN, 0, L2C_KV_FLOAT32, L2C_ISA_AUTO, &session, &err) == L2C_ARG);
    CHECK(l2c_session_create(t.model, pool, 1, 0, L2C_KV_FLOAT32, (l2c_isa)99, &session, &err) == L2C_ARG);
    /* 6.8 TB of cache: more than a process gets. What was taken before it is given back. */
    CHECK(l2c_session_create(t.model, pool, INT_MAX, 0, L2C_KV_FLOAT32, L2C_ISA_AUTO, &session, &err) == L2C_NOMEM);
    CHECK(l2c_session_bytes(t.model, INT_MAX, 0, L2C_KV_FLOAT32, 1) > (uint64_t)6 << 40);
    const int32_t wrong[][3] = {{0, 0, 1}, {1, -1, 1}, {1, 0, 0}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        CHECK(l2c_session_bytes(t.model, wrong[i][0], wrong[i][1], L2C_KV_FLOAT32, wrong[i][2]) == UINT64_MAX);
    l2c_pool_free(pool);
    truth_free(&t);
}

/* Rows are used up by sampling: after that they are no logits any more. */
void test_used_rows(void) {
    truth t = truth_make(&shapes[2]);
    l2c_pool *pool;
    l2c_session *session;
    CHECK(l2c_pool_create(2, &pool, NULL) == L2C_OK);
    CHECK(l2c_session_create(t.model, pool, TRUTH_SEQUENCES, 0, L2C_KV_FLOAT32, L2C_ISA_AUTO, &session, NULL) == L2C_OK);
    l2c_row rows[4];
    for (int32_t i = 0; i < 4; i++) rows[i] = truth_row(&t, 0, i);
    CHECK(l2c_session_forward(session, rows, 4, NULL) == L2C_OK);
    l2c_sampler sampler, wrong;
    l2c_sampler_init(&sampler, 1);
    l2c_sampler_init(&wrong, 1);
    wrong.top_p = 2.0f;
    int32_t token = 77;
    double logprob = 77;
    l2c_error err;
    CHECK(l2c_session_sample(session, 1, &wrong, NULL, 0, &token, &err) == L2C_ARG); /* touched nothing */
    CHECK(truth_equals(&t, 0, 1, l2c_session_logits(session, 1)));
    CHECK(l2c_session_sample(session, 1, &sampler, NULL, 0, &token, &err) == L2C_OK);
    token = 77;
    CHECK(l2c_session_sample(session, 1, &sampler, NULL, 0, &token, &err) == L2C_ARG && token == 77);
    CHECK(strstr(err.message, "used up") != NULL || strstr(err.message, "uses it up") != NULL);
    CHECK(l2c_session_logprob(session, 1, 5, &logprob, &err) == L2C_ARG && logprob == 77);
    CHECK(l2c_session_logits(session, 1) == NULL);

    /* A row twice among draws, or one that is used up: none is drawn. */
    sampler.temperature = 0.0f; /* draws no coin, so several threads may share it */
    l2c_draw draws[3] = {{.row = 0, .sampler = &sampler}, {.row = 2, .sampler = &sampler}, {.row = 0, .sampler = &sampler}};
    CHECK(l2c_session_sample_many(session, draws, 3, &err) == L2C_ARG);
    draws[2].row = 1;
    CHECK(l2c_session_sample_many(session, draws, 3, &err) == L2C_ARG);
    draws[2].row = 4;
    CHECK(l2c_session_sample_many(session, draws, 3, &err) == L2C_ARG);
    CHECK(truth_equals(&t, 0, 0, l2c_session_logits(session, 0)) && truth_equals(&t, 0, 2, l2c_session_logits(session, 2)));
    draws[2].row = 3;
    CHECK(l2c_session_sample_many(session, draws, 3, &err) == L2C_OK);
    for (size_t i = 0; i < 4; i++) CHECK(l2c_session_logits(session, i) == NULL);
    CHECK(l2c_session_forward(session, &rows[3], 1, NULL) == L2C_OK); /* and others come */
    CHECK(truth_equals(&t, 0, 3, l2c_session_logits(session, 0)));
    l2c_session_free(session);
    l2c_pool_free(pool);
    truth_free(&t);
}

/* The program's own rounding mode and flushing of denormals: no result knows of them, and none is lost. */
void test_float_settings(void) {
    static const shape *const which[] = {&shapes[2], &shapes[4]}; /* float32, int8 */
    for (size_t c = 0; c < 2; c++) {
        truth t = truth_make(which[c]);
        static const int modes[] = {FE_TONEAREST, FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO};
        for (size_t m = 0; m < 4; m++)
            for (int32_t n_threads = 1; n_threads <= 3; n_threads++) {
                l2c_float_env normal = l2c_float_enter();
                CHECK(fesetround(modes[m]) == 0);
#if defined(__x86_64__)
                __builtin_ia32_ldmxcsr(__builtin_ia32_stmxcsr() | 0x8040); /* flush to zero, denormals are zeros */
#endif
                l2c_float_env theirs = l2c_float_enter();
                l2c_float_leave(theirs);
                l2c_model *model;
                l2c_pool *pool;
                l2c_session *session;
                CHECK(l2c_pool_create(n_threads, &pool, NULL) == L2C_OK);
                CHECK(l2c_model_open_memory(t.file.data, t.file.size, L2C_DTYPE_AUTO, pool, &model, NULL) == L2C_OK);
                CHECK(l2c_session_create(model, pool, TRUTH_SEQUENCES, 0, L2C_KV_FLOAT32, L2C_ISA_AUTO, &session, NULL) == L2C_OK);
                truth_check_session(&t, session, 300 + m);
                l2c_float_env after = l2c_float_enter();
                l2c_float_leave(normal);
                CHECK(memcmp(&after, &theirs, sizeof after) == 0);
                l2c_session_free(session);
                l2c_pool_free(pool);
                l2c_model_free(model);
            }
        truth_free(&t);
    }
}

/* All that a model gives, from its file to stories: bits that say how they were computed. */
typedef struct {
    float logits[3][300], last[300];
    double logprob, logprobs[6];
    int32_t greedy[2], tokens[24], story[6];
} results;

static void compute(const image *file, l2c_dtype dtype, int32_t n_threads, results *out) {
    l2c_model *model;
    l2c_pool *pool;
    l2c_session *session, *draft;
    l2c_batch *batch;
    memset(out, 0, sizeof *out);
    CHECK(l2c_pool_create(n_threads, &pool, NULL) == L2C_OK);
    CHECK(l2c_model_open_memory(file->data, file->size, dtype, pool, &model, NULL) == L2C_OK);
    CHECK(l2c_session_create(model, pool, 1, 0, L2C_KV_FLOAT32, L2C_ISA_AUTO, &session, NULL) == L2C_OK);
    CHECK(l2c_session_create(model, pool, 1, 0, L2C_KV_FLOAT32, L2C_ISA_AUTO, &draft, NULL) == L2C_OK);
    size_t vocab_size = (size_t)l2c_model_config(model)->vocab_size, bytes = vocab_size * sizeof(float);
    CHECK(bytes <= sizeof out->last);

    const l2c_row rows[] = {{0, 0, 1, 1}, {0, 1, 5, 1}, {0, 2, 9, 1}};
    CHECK(l2c_session_forward(session, rows, 3, NULL) == L2C_OK);
    for (size_t i = 0; i < 3; i++) memcpy(out->logits[i], l2c_session_logits(session, i), bytes);
    CHECK(l2c_session_logprob(session, 0, 7, &out->logprob, NULL) == L2C_OK);
    l2c_sampler sampler;
    l2c_sampler_init(&sampler, 5);
    sampler.temperature = 0.0f;
    for (size_t i = 1; i < 3; i++) { /* the largest is denormal */
        memset(l2c_session_logits(session, i), 0, bytes);
        l2c_session_logits(session, i)[7] = 1e-40f;
    }
    l2c_draw draw = {.row = 2, .sampler = &sampler};
    CHECK(l2c_session_sample(session, 1, &sampler, NULL, 0, &out->greedy[0], NULL) == L2C_OK);
    CHECK(l2c_session_sample_many(session, &draw, 1, NULL) == L2C_OK);
    out->greedy[1] = draw.token;

    /* What speculating leaves in the cache shows in the next logits. */
    uint64_t states[5];
    size_t n = 1, more;
    out->tokens[0] = 1;
    sampler.temperature = 1.0f;
    for (; n < 12; n += more)
        CHECK(l2c_speculate(session, draft, &sampler, out->tokens, n, 4, NULL, 0, states, NULL, &more, NULL) == L2C_OK);
    CHECK(l2c_session_forward(session, &(l2c_row){0, (int32_t)n - 1, 5, 1}, 1, NULL) == L2C_OK);
    memcpy(out->last, l2c_session_logits(session, 0), bytes);

    const int32_t prompt[] = {1, 5, 9};
    const l2c_request request = {
        .prompt = prompt, .n_prompt = 3, .sampler = &sampler, .max_tokens = 6, .tell = L2C_TELL_LOGPROBS};
    int64_t story;
    CHECK(l2c_batch_create(model, pool, 1, 0, L2C_KV_FLOAT32, L2C_ISA_AUTO, &batch, NULL) == L2C_OK);
    CHECK(l2c_batch_add(batch, &request, &story, NULL) == L2C_OK);
    for (size_t told = 0; l2c_batch_stories(batch) > 0;) {
        const l2c_event *events;
        CHECK(l2c_batch_step(batch, &events, &more, NULL) == L2C_OK);
        for (size_t i = 0; i < more; i++)
            if (events[i].kind == L2C_EVENT_TOKEN) {
                out->story[told] = events[i].chosen.token;
                out->logprobs[told++] = events[i].chosen.logprob;
            }
    }
    l2c_batch_free(batch);
    l2c_session_free(session);
    l2c_session_free(draft);
    l2c_pool_free(pool);
    l2c_model_free(model);
}

/* The program's own rounding mode and flushing of denormals: no call lets them in, on no thread. */
void test_float_settings_of_every_call(void) {
    static const int modes[] = {FE_TONEAREST, FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO};
    static results expected, got;
    image file = image_checkpoint(&shapes[2], 7);
    for (int dtype = L2C_DTYPE_FLOAT32; dtype <= L2C_DTYPE_INT4; dtype++) {
        compute(&file, (l2c_dtype)dtype, 1, &expected);
        CHECK(expected.greedy[0] == 7 && expected.greedy[1] == 7 && expected.logprobs[0] < 0);
        for (size_t m = 0; m < 4; m++)
            for (int32_t n_threads = 1; n_threads <= 2; n_threads++) {
                l2c_float_env normal = l2c_float_enter();
                CHECK(fesetround(modes[m]) == 0);
#if defined(__x86_64__)
                __builtin_ia32_ldmxcsr(__builtin_ia32_stmxcsr() | 0x8040);
#endif
                compute(&file, (l2c_dtype)dtype, n_threads, &got);
                l2c_float_leave(normal);
                CHECK(memcmp(&got, &expected, sizeof got) == 0);
            }
    }
    free(file.data);
}

/* A model's angles are tabulated once, whoever asks; log-probabilities are the same bits everywhere. */
void test_shared_by_sessions(void) {
    truth t = truth_make(&shapes[2]);
    l2c_isa isas[MAX_ISAS];
    size_t n_isas = available_isas(isas);
    l2c_pool *pool;
    CHECK(l2c_pool_create(2, &pool, NULL) == L2C_OK);
    const float *angles = atomic_load(&t.model->rope[0]); /* made by what computed the truth */
    double first[3] = {0};
    CHECK(angles != NULL);
    for (size_t i = 0; i < n_isas; i++) {
        l2c_session *session;
        CHECK(l2c_session_create(t.model, pool, 1, 0, L2C_KV_FLOAT32, isas[i], &session, NULL) == L2C_OK);
        l2c_row row = truth_row(&t, 0, 0);
        CHECK(l2c_session_forward(session, &row, 1, NULL) == L2C_OK);
        CHECK(atomic_load(&t.model->rope[0]) == angles);
        for (int32_t k = 0; k < 3; k++) {
            double logprob;
            CHECK(l2c_session_logprob(session, 0, 7 * k, &logprob, NULL) == L2C_OK && logprob < 0);
            CHECK(i == 0 || memcmp(&logprob, &first[k], sizeof logprob) == 0);
            first[k] = logprob;
        }
        l2c_session_free(session);
    }
    l2c_pool_free(pool);
    truth_free(&t);
}

/* Stands for a matmul: notes the largest pieces that it is asked for, and counts what it would compute. */
static size_t most_rows, most_weights;
static uint8_t computed[256][100];

static void note_matmul(float *out, size_t out_stride, const float *x, size_t x_stride, size_t n_rows, const float *w,
                        size_t n, size_t begin, size_t end) {
    (void)w;
    size_t first = (size_t)out[0]; /* each row begins with its number */
    CHECK(out_stride == 100 && x_stride == n && (size_t)x[0] == first);
    if (n_rows > most_rows) most_rows = n_rows;
    if ((end - begin) * n > most_weights) most_weights = (end - begin) * n;
    for (size_t r = first; r < first + n_rows; r++)
        for (size_t i = begin; i < end; i++) computed[r][i]++;
}

/* Many rows of float32 go in tiles, each of as many weights as a core's cache keeps beside them; few go at once. */
void test_wide_products_go_in_tiles(void) {
    enum { COLS = 600, ROWS = 100 };
    static float x[256 * COLS], out[256 * ROWS];
    for (size_t r = 0; r < 256; r++) x[r * COLS] = out[r * ROWS] = (float)r;
    l2c_kernels kernels = {.matmul = note_matmul};
    l2c_matrix w = {.type = L2C_WEIGHTS_F32, .rows = ROWS, .cols = COLS, .data = x};
    static const size_t widths[] = {1, 63, 64, 65, 200, 256};
    for (size_t i = 0; i < sizeof widths / sizeof *widths; i++) {
        size_t n = widths[i];
        most_rows = most_weights = 0;
        memset(computed, 0, sizeof computed);
        l2c_linear(&kernels, out, x, NULL, 0, n, &w, 16, ROWS);
        for (size_t r = 0; r < 256; r++)
            for (size_t j = 0; j < ROWS; j++) CHECK(computed[r][j] == (r < n && j >= 16));
        if (n <= 64) CHECK(most_rows == n && most_weights == (ROWS - 16) * COLS);
        else CHECK(most_rows == 64 && most_weights <= 32768);
    }
}

/* A session is one block: its parts lie in it on cache lines, apart, and nobody may touch what is between. */
void test_session_memory(void) {
    for (size_t i = 0; i < n_shapes; i++) {
        truth t = truth_make(&shapes[i]);
        const l2c_config *c = l2c_model_config(t.model);
        l2c_pool *pool;
        l2c_session *session;
        CHECK(l2c_pool_create(3, &pool, NULL) == L2C_OK);
        CHECK(l2c_session_create(t.model, pool, 2, 7 % c->seq_len + 1, L2C_KV_FLOAT16, L2C_ISA_AUTO, &session, NULL) == L2C_OK);
        const l2c_cpu_session *s = session->state;
        const struct {
            const void *at;
            size_t bytes;
        } parts[] = {
            {s->x, (size_t)(L2C_MAX_ROWS * c->dim) * 4},
            {s->hb, (size_t)(L2C_MAX_ROWS * c->hidden_dim) * 4},
            {s->logits, (size_t)(L2C_MAX_ROWS * c->vocab_size) * 4},
            {s->scores, (size_t)3 * L2C_TILE * (size_t)session->n_ctx * 4},
            {s->hq.q, L2C_MAX_ROWS * s->hq.width},
        };
        for (size_t k = 0; k < sizeof parts / sizeof *parts - (s->hq.q == NULL); k++) {
            CHECK((uintptr_t)parts[k].at % 64 == 0);
#if defined(__SANITIZE_ADDRESS__)
            const char *end = (const char *)parts[k].at + parts[k].bytes;
            CHECK(!__asan_address_is_poisoned(end - 1));
            for (int j = 0; j < 64; j++) CHECK(__asan_address_is_poisoned(end + j));
#endif
        }
        l2c_session_free(session);
        l2c_pool_free(pool);
        truth_free(&t);
    }
}

/* A draft with a NaN among its weights proposes nothing; the story is the one without it. */
void test_nonfinite_draft(void) {
    const shape *c = &shapes[2];
    truth t = truth_make(c);
    image file = image_checkpoint(c, 7);
    float nan = NAN;
    memcpy(file.data + 256, &nan, sizeof nan); /* of v1: a norm of the first layer */
    l2c_model *model;
    l2c_pool *pool;
    l2c_session *alone, *target, *draft;
    CHECK(l2c_model_open_memory(file.data, file.size, L2C_DTYPE_AUTO, NULL, &model, NULL) == L2C_OK);
    CHECK(l2c_pool_create(1, &pool, NULL) == L2C_OK);
    CHECK(l2c_session_create(t.model, pool, 1, 0, L2C_KV_FLOAT32, L2C_ISA_AUTO, &alone, NULL) == L2C_OK);
    CHECK(l2c_session_create(t.model, pool, 1, 0, L2C_KV_FLOAT32, L2C_ISA_AUTO, &target, NULL) == L2C_OK);
    CHECK(l2c_session_create(model, pool, 1, 0, L2C_KV_FLOAT32, L2C_ISA_AUTO, &draft, NULL) == L2C_OK);
    l2c_sampler one, two;
    l2c_sampler_init(&one, 9);
    l2c_sampler_init(&two, 9);
    int32_t tokens[40] = {5}, expected = 5;
    for (size_t n = 1, more; n + 4 <= (size_t)c->seq_len; n += more) {
        uint64_t states[5];
        CHECK(l2c_speculate(target, draft, &two, tokens, n, 4, (int32_t[]){1, 2}, 2, states, NULL, &more, NULL) == L2C_OK && more == 1);
        l2c_row row = {0, (int32_t)n - 1, expected, 1};
        CHECK(l2c_session_forward(alone, &row, 1, NULL) == L2C_OK);
        CHECK(l2c_session_sample(alone, 0, &one, NULL, 0, &expected, NULL) == L2C_OK);
        CHECK(tokens[n] == expected && states[0] == one.rng_state);
    }
    l2c_session_free(alone);
    l2c_session_free(target);
    l2c_session_free(draft);
    l2c_pool_free(pool);
    l2c_model_free(model);
    free(file.data);
    truth_free(&t);
}

/* runq.c's kernels, asked for: only for what they compute, and then the same as where they are chosen. */
void test_runq_kernels(void) {
    l2c_pool *pool;
    l2c_session *session;
    l2c_model *model;
    l2c_error err;
    CHECK(l2c_pool_create(2, &pool, NULL) == L2C_OK);
    for (size_t i = 0; i < n_shapes; i++) {
        image file = image_checkpoint(&shapes[i], 7);
        l2c_status opened = l2c_model_open_memory(file.data, file.size, L2C_DTYPE_FILE, NULL, &model, &err);
        CHECK(opened == (shapes[i].version == 2 ? L2C_OK : L2C_UNSUPPORTED));
        if (opened == L2C_OK) {
            CHECK(l2c_model_config(model)->dtype == L2C_DTYPE_INT8);
            CHECK(l2c_session_create(model, pool, 1, 0, L2C_KV_FLOAT16, L2C_ISA_RUNQ, &session, &err) == L2C_UNSUPPORTED);
            l2c_session *sessions[2]; /* whatever else is asked for, an unpacked model is computed so */
            CHECK(l2c_session_create(model, pool, 1, 0, L2C_KV_FLOAT32, L2C_ISA_RUNQ, &sessions[0], &err) == L2C_OK);
            CHECK(l2c_session_create(model, pool, 1, 0, L2C_KV_FLOAT32, L2C_ISA_AUTO, &sessions[1], &err) == L2C_OK);
            size_t bytes = (size_t)shapes[i].vocab_size * sizeof(float);
            for (int32_t position = 0; position < shapes[i].seq_len; position++) {
                l2c_row row = {0, position, 3, 1};
                for (int k = 0; k < 2; k++) CHECK(l2c_session_forward(sessions[k], &row, 1, NULL) == L2C_OK);
                CHECK(memcmp(l2c_session_logits(sessions[0], 0), l2c_session_logits(sessions[1], 0), bytes) == 0);
            }
            for (int k = 0; k < 2; k++) l2c_session_free(sessions[k]);
            l2c_model_free(model);
        }
        CHECK(l2c_model_open_memory(file.data, file.size, L2C_DTYPE_AUTO, NULL, &model, &err) == L2C_OK);
        int packed = shapes[i].version != 2 || shapes[i].hidden_dim % shapes[i].group_size == 0;
        l2c_status made = l2c_session_create(model, pool, 1, 0, L2C_KV_FLOAT32, L2C_ISA_RUNQ, &session, &err);
        CHECK(packed ? made == L2C_UNSUPPORTED : made == L2C_OK || made == L2C_UNSUPPORTED);
        if (made == L2C_OK) l2c_session_free(session);
        l2c_model_free(model);
        free(file.data);
    }
    l2c_pool_free(pool);
}

void test_nonfinite_weights(void) {
    static const float values[] = {NAN, INFINITY, -INFINITY, 3e38f};
    for (size_t i = 0; i < n_smallest; i++)
        for (size_t v = 0; v < sizeof values / sizeof *values; v++) {
            /* v0 begins with the embedding of token 0, the others with a norm of the first layer. */
            image file = image_checkpoint(&smallest[i], 5);
            size_t at = smallest[i].version == 0 ? 28 : 256;
            memcpy(file.data + at, &values[v], 4);
            l2c_model *model;
            l2c_pool *pool;
            l2c_session *session;
            CHECK(l2c_model_open_memory(file.data, file.size, L2C_DTYPE_AUTO, NULL, &model, NULL) == L2C_OK);
            CHECK(l2c_pool_create(2, &pool, NULL) == L2C_OK);
            CHECK(l2c_session_create(model, pool, 1, 0, L2C_KV_FLOAT32, L2C_ISA_AUTO, &session, NULL) == L2C_OK);
            l2c_row row = {0, 0, 0, 1};
            CHECK(l2c_session_forward(session, &row, 1, NULL) == L2C_OK);
            l2c_sampler sampler;
            l2c_sampler_init(&sampler, 1);
            int32_t token = 77;
            double logprob;
            l2c_status whole = l2c_session_logprob(session, 0, 1, &logprob, NULL);
            l2c_status status = l2c_session_sample(session, 0, &sampler, NULL, 0, &token, NULL);
            if (isnan(values[v])) CHECK(whole == L2C_NONFINITE && status == L2C_NONFINITE);
            CHECK(status == L2C_OK ? token >= 0 && token < 5 : status == L2C_NONFINITE && token == 77);
            l2c_session_free(session);
            l2c_pool_free(pool);
            l2c_model_free(model);
            free(file.data);
        }
}

/* ---- Sampler ------------------------------------------------------------------------------------ */

static size_t sampler_kernels(const l2c_kernels **kernels) {
    l2c_isa isas[MAX_ISAS];
    size_t n = available_isas(isas);
    for (size_t i = 0; i < n; i++) kernels[i] = l2c_kernels_for(isas[i]);
    kernels[n] = &l2c_kernels_runq;
    return n + 1;
}

/* Calls l2c_sampler_pick with blocks of exactly n, on a copy of the logits. */
static l2c_status pick(l2c_sampler *sampler, const l2c_kernels *kernels, const float *logits, int32_t n,
                       const int32_t *history, size_t n_history, int32_t *token) {
    image copy = image_copy(logits, (size_t)n * sizeof *logits);
    l2c_candidate *candidates = malloc(2 * (size_t)n * sizeof *candidates);
    CHECK(candidates != NULL);
    *token = -77;
    l2c_status status = l2c_sampler_pick(sampler, kernels, (float *)copy.data, n, history, n_history, candidates,
                                         token, NULL);
    CHECK(status == L2C_OK ? *token >= 0 && *token < n : *token == -77);
    free(candidates);
    free(copy.data);
    return status;
}

#define SETTING(t, p, k, m, r, state) \
    {.temperature = t, .top_p = p, .top_k = k, .min_p = m, .repetition_penalty = r, .rng_state = state}
static const l2c_sampler settings[] = {
    SETTING(0.0f, 0.9f, 0, 0.0f, 1.0f, 1), SETTING(1.0f, 0.0f, 0, 0.0f, 1.0f, 1),
    SETTING(1.0f, 1.0f, 0, 0.0f, 1.0f, 1), SETTING(1.0f, 0.9f, 0, 0.0f, 1.0f, 1),
    SETTING(0.7f, 0.5f, 3, 0.1f, 1.3f, 1), SETTING(1.0f, 1e-8f, 0, 0.0f, 1.0f, 1),
    SETTING(1.0f, 1e-45f, 0, 0.0f, 1.0f, 1), SETTING(1.0f, 0.0f, 1, 0.0f, 1.0f, 1),
    SETTING(1.0f, 0.0f, INT_MAX, 0.0f, 1.0f, 1), SETTING(1.0f, 0.0f, 0, 1.0f, 1.0f, 1),
    SETTING(1.0f, 0.99999994f, 0, 0.0f, 1.0f, 1), SETTING(1e-38f, 0.9f, 0, 0.0f, 1.0f, 1),
    SETTING(1e-45f, 0.0f, 0, 0.0f, 1.0f, 1), SETTING(3e38f, 0.9f, 0, 0.0f, 1.0f, 1),
    SETTING(1.0f, 0.9f, 0, 0.0f, 3e38f, 1), SETTING(1.0f, 0.9f, 2, 1e-45f, 1e-38f, 1),
    SETTING(1.0f, 0.5f, 40, 0.05f, 0.5f, UINT64_MAX),
};

void test_sampler_choices(void) {
    static const int32_t history[] = {0, 0, -1, 5, INT_MAX, INT_MIN, 3, 3};
    const l2c_kernels *kernels[MAX_ISAS + 1];
    size_t n_kernels = sampler_kernels(kernels);
    uint64_t random = 31;
    for (size_t i = 0; i < sizeof settings / sizeof *settings; i++)
        for (int32_t n = 1; n <= 70; n++)
            for (int kind = 0; kind < 4; kind++) { /* flat, mild, steep, with forbidden tokens */
                float logits[70];
                int32_t largest = 0;
                for (int32_t j = 0; j < n; j++) {
                    logits[j] = kind == 0 ? 0.0f : random_float(&random) * (kind == 2 ? 1e4f : 3.0f);
                    if (kind == 3 && j != n / 2 && j % 3 == 0) logits[j] = -INFINITY;
                    if (logits[j] > logits[largest]) largest = j;
                }
                int32_t first = -1;
                for (size_t k = 0; k < n_kernels; k++) {
                    l2c_sampler s = settings[i];
                    int32_t token;
                    l2c_status status = pick(&s, kernels[k], logits, n, history, sizeof history / sizeof *history, &token);
                    /* Penalties of 1e-38 and 3e38 make infinities of logits, maybe of all. */
                    int extreme = s.repetition_penalty < 1e-30f || s.repetition_penalty > 1e30f;
                    CHECK(status == L2C_OK || (status == L2C_NONFINITE && extreme));
                    if (status != L2C_OK) continue;
                    CHECK(logits[token] > -INFINITY);
                    if (k == 0) first = token;
                    else if (kernels[k] != &l2c_kernels_runq) CHECK(token == first);
                    /* Of equals, a temperature picks any, however small it is. */
                    int certain = s.temperature == 0.0f || s.top_k == 1 || (s.temperature <= 1e-38f && kind != 0);
                    if (certain && s.repetition_penalty == 1.0f) CHECK(token == largest);
                }
            }
    /* Repeated draws stay among the kept tokens: probabilities are about 0.64, 0.24, 0.09, 0.03. */
    const float steps[] = {1.0f, 3.0f, 0.0f, 2.0f};
    for (size_t k = 0; k < n_kernels; k++) {
        l2c_sampler s;
        l2c_sampler_init(&s, 9);
        int32_t counts[4] = {0}, token;
        for (int draw = 0; draw < 2000; draw++) {
            CHECK(pick(&s, kernels[k], steps, 4, NULL, 0, &token) == L2C_OK);
            counts[token]++;
        }
        /* top_p 0.9 crosses at the third. */
        CHECK(counts[1] > counts[3] && counts[3] > counts[0] && counts[0] > 0 && counts[2] == 0);
    }
}

static const float *order_of; /* what `falling` compares by */

static int falling(const void *a, const void *b) {
    int32_t i = *(const int32_t *)a, j = *(const int32_t *)b;
    if (order_of[i] != order_of[j]) return order_of[i] > order_of[j] ? -1 : 1;
    return i - j;
}

/* llama2.c's rule with everything sorted: what top_k, then top_p keep of probabilities p, in falling order. */
static int32_t pick_sorted(const l2c_sampler *s, const float *p, int32_t n, float coin, int32_t *order) {
    float cutoff = s->top_k == 0 ? (1.0f - s->top_p) / (float)(n - 1) : 0.0f, mass = 1.0f, sum = 0.0f, running = 0.0f;
    int32_t kept = 0, length = 0;
    for (int32_t i = 0; i < n; i++)
        if (p[i] >= cutoff && p[i] > 0.0f) order[kept++] = i;
    order_of = p;
    qsort(order, (size_t)kept, sizeof *order, falling);
    if (s->top_k > 0) {
        kept = s->top_k < kept ? s->top_k : kept;
        mass = 0.0f;
        for (int32_t i = 0; i < kept; i++) mass += p[order[i]];
    }
    while (length < kept && !(s->top_p < 1.0f && sum > s->top_p * mass)) sum += p[order[length++]];
    for (int32_t i = 0; i < length; i++) {
        running += p[order[i]];
        if (coin * sum < running) return order[i];
    }
    return order[length - 1];
}

/* Vocabularies whose nucleus is most of 128,000 tokens, and such as end early: the same as all sorted. */
void test_sampler_on_large_vocabularies(void) {
    enum { N = 128000 };
    static const float spreads[] = {0.0f, 1e-4f, 1.0f, 8.0f, 60.0f}, top_ps[] = {0.1f, 0.9f, 0.999f, 1.0f};
    static const int32_t top_ks[] = {0, 40, 9000, 100000};
    const l2c_kernels *kernels[MAX_ISAS + 1];
    const l2c_kernels *k = kernels[sampler_kernels(kernels) - 2]; /* the fastest */
    float *logits = malloc(N * sizeof *logits), *p = malloc(N * sizeof *p);
    int32_t *order = malloc(N * sizeof *order);
    CHECK(logits != NULL && p != NULL && order != NULL);
    uint64_t random = 77;
    for (size_t spread = 0; spread < 5; spread++) {
        for (int32_t i = 0; i < N; i++) logits[i] = random_float(&random) * spreads[spread];
        for (size_t i = 0; i < 4; i++)
            for (size_t j = 0; j < 4; j++) {
                l2c_sampler s, before;
                int32_t token;
                l2c_sampler_init(&s, random_next(&random));
                s.top_p = top_ps[i];
                s.top_k = top_ks[j];
                if (s.top_p == 1.0f && s.top_k == 0) continue;
                before = s;
                CHECK(pick(&s, k, logits, N, NULL, 0, &token) == L2C_OK);
                memcpy(p, logits, N * sizeof *p);
                k->softmax(p, N);
                uint64_t x = before.rng_state; /* xorshift64* */
                x ^= x >> 12; x ^= x << 25; x ^= x >> 27;
                float coin = (float)((uint32_t)((x * 0x2545F4914F6CDD1Dull) >> 32) >> 8) / 16777216.0f;
                CHECK(token == pick_sorted(&before, p, N, coin, order));
            }
    }
    free(logits);
    free(p);
    free(order);
}

void test_sampler_errors(void) {
    const l2c_kernels *kernels[MAX_ISAS + 1];
    size_t n_kernels = sampler_kernels(kernels);
    static const float values[] = {NAN, -NAN, INFINITY};
    for (size_t k = 0; k < n_kernels; k++)
        for (size_t i = 0; i < sizeof settings / sizeof *settings; i++)
            for (int32_t n = 1; n <= 35; n++) {
                float logits[35];
                int32_t token;
                for (size_t v = 0; v < 3; v++)
                    for (int32_t where = 0; where < n; where++) {
                        for (int32_t j = 0; j < n; j++) logits[j] = j == where ? values[v] : (float)(j % 7) - 3.0f;
                        l2c_sampler s = settings[i];
                        CHECK(pick(&s, kernels[k], logits, n, NULL, 0, &token) == L2C_NONFINITE);
                    }
                for (int32_t j = 0; j < n; j++) logits[j] = -INFINITY;
                l2c_sampler s = settings[i];
                CHECK(pick(&s, kernels[k], logits, n, NULL, 0, &token) == L2C_NONFINITE);
            }
    const float bad[] = {NAN, INFINITY, -INFINITY, -1.0f, 3.5f};
    const float logits[2] = {0.0f, 1.0f};
    for (size_t v = 0; v < sizeof bad / sizeof *bad; v++)
        for (int field = 0; field < 6; field++) {
            l2c_sampler s;
            l2c_sampler_init(&s, 0);
            float *fields[] = {&s.temperature, &s.repetition_penalty, &s.presence_penalty, &s.frequency_penalty,
                               &s.top_p, &s.min_p};
            *fields[field] = bad[v];
            int32_t token;
            int fine = field < 2 ? bad[v] == 3.5f : field < 4 && isfinite(bad[v]); /* no bound, save infinity */
            CHECK(pick(&s, kernels[0], logits, 2, NULL, 0, &token) == (fine ? L2C_OK : L2C_ARG));
        }
    l2c_sampler s;
    int32_t token;
    l2c_sampler_init(&s, 0);
    CHECK(s.rng_state != 0);
    s.top_k = -1;
    CHECK(pick(&s, kernels[0], logits, 2, NULL, 0, &token) == L2C_ARG);
    l2c_sampler_init(&s, 1);
    s.rng_state = 0;
    CHECK(pick(&s, kernels[0], logits, 2, NULL, 0, &token) == L2C_ARG);
}
