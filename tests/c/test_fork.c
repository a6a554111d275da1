/*
 * test_fork.c - pools and sessions in forked children.
 */
#define _GNU_SOURCE /* unshare */
#include <stdio.h>

#include "harness.h"

#if defined(_WIN32)
void test_fork(void) { printf("(skipped: Windows has no fork) "); }
void test_fork_of_the_same_number(void) { test_fork(); }
#else
#include <sched.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

static const shape *const SHAPE = &shapes[2];

/* In a child: computes, maybe in a child of its own as well; frees everything. */
static void run_in_child(truth *t, l2c_session *session, l2c_pool *pool, int generations) {
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        alarm(60); /* a worker that was lost shows as a wait without end */
        truth_check_session(t, session, 70 + (uint64_t)generations);
        if (generations > 1) run_in_child(t, session, pool, generations - 1);
        truth_check_session(t, session, 80 + (uint64_t)generations);
        l2c_session_free(session);
        l2c_pool_free(pool);
        truth_free(t);
        _exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

void test_fork(void) {
    truth t = truth_make(SHAPE);
    for (int32_t n_threads = 1; n_threads <= 3; n_threads++) {
        l2c_pool *pool = truth_pool(n_threads);
        l2c_session *session = truth_session(&t, pool);
        run_in_child(&t, session, pool, 1); /* before the pool ever ran */
        truth_check_session(&t, session, 90);
        run_in_child(&t, session, pool, 2);
        truth_check_session(&t, session, 91); /* the parent's workers are still its own */

        /* A child that never computes frees what it inherited. */
        pid_t child = fork();
        if (child == 0) {
            l2c_session_free(session);
            l2c_pool_free(pool);
            _exit(0);
        }
        int status;
        CHECK(child > 0 && waitpid(child, &status, 0) == child && status == 0);
        l2c_session_free(session);
        l2c_pool_free(pool);
    }
    truth_free(&t);
}

/* A child in a process namespace of its own is number 1 there, as its parent may be in its own. */
void test_fork_of_the_same_number(void) {
    fflush(stdout);
    pid_t outer = fork();
    CHECK(outer >= 0);
    if (outer == 0) {
        alarm(60);
        if (unshare(CLONE_NEWPID) != 0) _exit(77);
        pid_t parent = fork();
        if (parent == 0) {
            alarm(60);
            truth t = truth_make(SHAPE);
            l2c_pool *pool = truth_pool(2);
            l2c_session *session = truth_session(&t, pool);
            truth_check_session(&t, session, 95);
            CHECK(getpid() == 1);
            if (unshare(CLONE_NEWPID) != 0) _exit(77);
            pid_t child = fork();
            if (child == 0) {
                alarm(60);
                CHECK(getpid() == 1);
                truth_check_session(&t, session, 96);
                _exit(0);
            }
            int status;
            CHECK(child > 0 && waitpid(child, &status, 0) == child);
            _exit(WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : 1);
        }
        int status;
        CHECK(parent > 0 && waitpid(parent, &status, 0) == parent);
        _exit(WIFEXITED(status) ? WEXITSTATUS(status) : 1);
    }
    int status;
    CHECK(waitpid(outer, &status, 0) == outer && WIFEXITED(status));
    if (WEXITSTATUS(status) == 77) printf("(skipped: no namespaces here) ");
    else CHECK(WEXITSTATUS(status) == 0);
}
#endif
