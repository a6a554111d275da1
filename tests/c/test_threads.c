/*
 * test_threads.c - pools, sessions used by several threads, cancelling.
 */
#define _GNU_SOURCE
#include "system/threads.h"

#include <limits.h>
#include <stdatomic.h>

#include "harness.h"

static const shape *const SHAPE = &shapes[2];

/* ---- Pools ------------------------------------------------------------------------------------- */

static void count_threads(void *arg, int thread, int n_threads) {
    (void)thread;
    CHECK(n_threads >= 1);
    atomic_fetch_add((atomic_int *)arg, 1);
}

void test_pool_life(void) {
    for (int32_t i = 0; i < 100; i++) {
        int32_t n_threads = 1 + i % 6;
        l2c_pool *pool = truth_pool(n_threads);
        CHECK(l2c_pool_size(pool) == n_threads);
        atomic_int count = 0;
        for (int32_t job = 0; job < i % 4; job++) l2c_pool_run(pool, count_threads, &count);
        CHECK(atomic_load(&count) == i % 4 * n_threads);
        l2c_pool_free(pool);
    }
    static const int32_t refused[] = {0, -1, 257, INT_MAX, INT_MIN};
    l2c_pool *pool = NULL;
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++)
        CHECK(l2c_pool_create(refused[i], &pool, NULL) == L2C_ARG && pool == NULL);
}

typedef struct {
    const truth *t;
    l2c_session *session;
    int32_t sequence;
    uint64_t seed;
    atomic_int *flag; /* each test says what it means */
    int ran, refused;
} job;

static void check_session(void *arg) {
    job *j = arg;
    for (uint64_t round = 0; round < 5; round++) truth_check_session(j->t, j->session, j->seed + round);
}

void test_pool_shared_by_sessions(void) {
    truth t = truth_make(SHAPE);
    for (int32_t n_threads = 1; n_threads <= 3; n_threads++) {
        l2c_pool *pool = truth_pool(n_threads);
        job jobs[2];
        l2c_thread threads[2];
        for (int i = 0; i < 2; i++) {
            jobs[i] = (job){.t = &t, .session = truth_session(&t, pool), .seed = 50 + 10 * (uint64_t)i};
            CHECK(l2c_thread_start(&threads[i], check_session, &jobs[i]));
        }
        for (int i = 0; i < 2; i++) {
            CHECK(l2c_thread_join(&threads[i]));
            l2c_session_free(jobs[i].session);
        }
        l2c_pool_free(pool);
    }
    truth_free(&t);
}

/* ---- One session, two threads --------------------------------------------------------------------- */

/* Feeds one sequence from its start, again and again, until *flag threads are done as well. */
static void feed_sequence(void *arg) {
    job *j = arg;
    int32_t seq_len = l2c_model_config(j->t->model)->seq_len;
    /* A thread that met nobody goes on until it did, but not for ever: one processor may run the
     * two threads one after the other. */
    for (int round = 0; round < 5 || (j->refused == 0 && atomic_load(j->flag) == 0 && round < 500); round++)
        for (int32_t position = 0; position < seq_len;) {
            l2c_row row = truth_row(j->t, j->sequence, position);
            l2c_status status = l2c_session_forward(j->session, &row, 1, NULL);
            CHECK(status == L2C_OK || status == L2C_BUSY);
            position += status == L2C_OK;
            j->ran += status == L2C_OK;
            j->refused += status == L2C_BUSY;
            if (status == L2C_BUSY) l2c_thread_yield();
        }
    atomic_fetch_add(j->flag, 1);
}

void test_session_used_by_two_threads(void) {
    truth t = truth_make(SHAPE);
    l2c_pool *pool = truth_pool(2);
    l2c_session *session = truth_session(&t, pool);
    atomic_int done = 0;
    job jobs[2];
    l2c_thread threads[2];
    for (int32_t i = 0; i < 2; i++) {
        jobs[i] = (job){.t = &t, .session = session, .sequence = i, .flag = &done};
        CHECK(l2c_thread_start(&threads[i], feed_sequence, &jobs[i]));
    }
    for (int i = 0; i < 2; i++) CHECK(l2c_thread_join(&threads[i]));
    CHECK(jobs[0].ran >= 5 * SHAPE->seq_len && jobs[1].ran >= 5 * SHAPE->seq_len);
    /* The last position looks back at all that the two wrote. */
    for (int32_t i = 0; i < 2; i++) {
        l2c_row row = truth_row(&t, i, SHAPE->seq_len - 1);
        CHECK(l2c_session_forward(session, &row, 1, NULL) == L2C_OK);
        CHECK(truth_equals(&t, i, row.position, l2c_session_logits(session, 0)));
    }
    l2c_session_free(session);
    l2c_pool_free(pool);
    truth_free(&t);
}

/* ---- Cancelling -------------------------------------------------------------------------------------- */

static void cancel_until(void *arg) {
    job *j = arg;
    while (atomic_load(j->flag) == 0) {
        l2c_session_cancel(j->session);
        l2c_thread_yield();
    }
}

void test_cancel(void) {
    truth t = truth_make(SHAPE);
    for (int32_t n_threads = 1; n_threads <= 3; n_threads++) {
        l2c_pool *pool = truth_pool(n_threads);
        l2c_session *session = truth_session(&t, pool);
        l2c_row rows[L2C_MAX_ROWS];
        size_t n = 0;
        for (int32_t i = 0; i < SHAPE->seq_len && n < L2C_MAX_ROWS; i++) rows[n++] = truth_row(&t, 1, i);
        /* With none running, the next call is meant, once; and none at all if something else has begun. */
        CHECK(l2c_session_forward(session, rows, n, NULL) == L2C_OK);
        l2c_session_cancel(session);
        CHECK(l2c_session_forward(session, rows, n, NULL) == L2C_CANCELLED);
        CHECK(l2c_session_forward(session, rows, n, NULL) == L2C_OK);
        l2c_session_cancel(session);
        l2c_session_resume(session);
        CHECK(l2c_session_forward(session, rows, n, NULL) == L2C_OK);

        atomic_int stop = 0;
        job j = {.t = &t, .session = session, .flag = &stop};
        l2c_thread thread;
        CHECK(l2c_thread_start(&thread, cancel_until, &j));
        l2c_status status = L2C_OK;
        for (int cancelled = 0, round = 0; cancelled < 20; round++) {
            CHECK(round < 100000);
            l2c_error err;
            status = l2c_session_forward(session, rows, n, &err);
            CHECK(status == L2C_OK || (status == L2C_CANCELLED && err.status == L2C_CANCELLED));
            cancelled += status == L2C_CANCELLED;
        }
        atomic_store(&stop, 1);
        CHECK(l2c_thread_join(&thread));
        /* What was half done is not in the cache; other sequences and later calls are whole. */
        CHECK(status == L2C_CANCELLED && l2c_session_logits(session, 0) == NULL);
        l2c_session_resume(session);
        CHECK(l2c_session_forward(session, &rows[1], 1, NULL) == L2C_RANGE);
        truth_check_session(&t, session, 61);
        l2c_session_free(session);
        l2c_pool_free(pool);
    }
    truth_free(&t);
}

/* Asks a session to stop, 20 times, and each time waits for the answer. */
static void cancel_and_wait(void *arg) {
    job *j = arg;
    for (int asked = 1; asked <= 20; asked++) {
        l2c_session_cancel(j->session);
        while (atomic_load(j->flag) < asked) l2c_thread_yield();
    }
}

/* Speculates from the first token on, until the context is full; counts calls that were cancelled. */
static l2c_status speculate_once(l2c_session *target, l2c_session *draft, int32_t *tokens, size_t *n) {
    l2c_sampler sampler;
    uint64_t states[9];
    size_t more = 0;
    l2c_sampler_init(&sampler, 3 + *n);
    l2c_status status = l2c_speculate(target, draft, &sampler, tokens, *n, 8, (int32_t[]){1, 2}, 2, states, NULL, &more, NULL);
    CHECK(status == L2C_OK ? more >= 1 && more <= 9 : more == 0);
    *n += more;
    return status;
}

void test_cancel_while_speculating(void) {
    truth t = truth_make(SHAPE);
    for (int32_t n_threads = 1; n_threads <= 2; n_threads++) {
        l2c_pool *pool = truth_pool(n_threads);
        l2c_session *target = truth_session(&t, pool), *draft = truth_session(&t, pool);
        int32_t tokens[64] = {1};
        size_t n = 1;
        /* Asked before: of either, and whatever the draft does first. */
        CHECK(speculate_once(target, draft, tokens, &n) == L2C_OK);
        l2c_session *asked[] = {target, draft};
        for (int i = 0; i < 2; i++) {
            n = 1;
            l2c_session_cancel(asked[i]);
            CHECK(speculate_once(target, draft, tokens, &n) == L2C_CANCELLED);
            CHECK(speculate_once(target, draft, tokens, &n) == L2C_OK); /* which answered it */
        }
        /* Asked at any moment: every request is answered, and none twice. */
        atomic_int answered = 0;
        job j = {.session = target, .flag = &answered};
        l2c_thread thread;
        CHECK(l2c_thread_start(&thread, cancel_and_wait, &j));
        n = 1;
        for (int round = 0; atomic_load(&answered) < 20; round++) {
            CHECK(round < 1000000); /* a request was lost */
            if (n + 8 > (size_t)SHAPE->seq_len) n = 1;
            if (speculate_once(target, draft, tokens, &n) == L2C_CANCELLED) atomic_fetch_add(&answered, 1);
        }
        CHECK(l2c_thread_join(&thread));
        n = 1;
        CHECK(speculate_once(target, draft, tokens, &n) == L2C_OK);
        truth_check_session(&t, target, 62);
        truth_check_session(&t, draft, 63);
        l2c_session_free(target);
        l2c_session_free(draft);
        l2c_pool_free(pool);
    }
    truth_free(&t);
}
