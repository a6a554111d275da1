/*
 * harness.c - runs the whole engine under sanitizers; run.sh builds and starts it.
 *
 *     harness            every test
 *     harness threads    those about threads, for ThreadSanitizer
 *     harness WORDS      those whose names have these words in them
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "harness.h"

#if defined(__SANITIZE_ADDRESS__)
/* Memory that cannot be had is a status of the library, not the end of the process. */
const char *__asan_default_options(void);
const char *__asan_default_options(void) { return "allocator_may_return_null=1:detect_stack_use_after_return=1"; }
#endif

void check_failed(const char *file, int line, const char *condition) {
    fprintf(stderr, "%s:%d: CHECK(%s) failed\n", file, line, condition);
    _Exit(1); /* not exit: other threads may be at work on what exit would tear down */
}

uint64_t random_next(uint64_t *state) {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

int32_t random_below(uint64_t *state, int32_t limit) {
    return (int32_t)((random_next(state) >> 33) % (uint64_t)limit);
}

float random_float(uint64_t *state) { return (float)random_below(state, 1 << 24) / (1 << 23) - 1.0f; }

/* ---- All tests ----------------------------------------------------------------------------------- */

typedef struct {
    const char *name;
    void (*run)(void);
    int threads; /* worth running under ThreadSanitizer */
} test;

static const test tests[] = {
    {"truncated and extended files", test_truncated_files, 0},
    {"hostile header fields", test_header_fields, 0},
#if !defined(__wasm__) /* which has no files */
    {"files by path", test_paths, 0},
    {"names and lengths of paths", test_names_of_paths, 0},
#endif
    {"headers alone", test_headers_alone, 0},
    {"hostile tokenizers", test_hostile_tokenizers, 0},
    {"encoding", test_encoding, 0},
    {"vocabularies as lists", test_vocabularies, 0},
    {"same bits: rows, threads, instruction sets", test_same_bits, 1},
    {"attention weights, told", test_attention_told, 1},
    {"refused rows and sessions", test_row_errors, 0},
    {"rows are used up by sampling", test_used_rows, 1},
    {"the caller's floating-point settings", test_float_settings, 1},
    {"the same around every call", test_float_settings_of_every_call, 1},
    {"angles and log-probabilities of several sessions", test_shared_by_sessions, 1},
    {"wide float32 products go in tiles", test_wide_products_go_in_tiles, 0},
    {"a session's memory", test_session_memory, 0},
    {"NaN in a draft's weights", test_nonfinite_draft, 0},
    {"runq.c's kernels, asked for", test_runq_kernels, 0},
    {"NaN and infinity in weights", test_nonfinite_weights, 0},
    {"sampler: choices", test_sampler_choices, 0},
    {"sampler: large vocabularies", test_sampler_on_large_vocabularies, 0},
    {"sampler: refusals", test_sampler_errors, 0},
    {"sampler: biases and penalties", test_biases_and_penalties, 0},
    {"the same with a draft, with several tokens a call", test_biases_and_penalties_in_every_way, 0},
    {"log-probabilities of what is drawn", test_logprobs_of_draws, 1},
    {"kernels at a guard page", test_kernels_at_guard_page, 0},
    {"kernels on special values", test_kernels_special_values, 0},
    {"fused multiply-add", test_fused, 0},
#if !defined(__wasm__) /* nor threads */
    {"pool: made and freed 100 times", test_pool_life, 1},
    {"pool: shared by two sessions", test_pool_shared_by_sessions, 1},
    {"session: used by two threads", test_session_used_by_two_threads, 1},
    {"session: cancelled from another thread", test_cancel, 1},
    {"session: cancelled while it speculates", test_cancel_while_speculating, 1},
#endif
    {"a second backend", test_second_backend, 1},
    {"batch: random loads, as each story alone", test_batch_loads, 0},
    {"batch: prompts that begin alike", test_batch_prompts, 0},
    {"batch: long prompts delay nobody", test_batch_fairness, 0},
    {"batch: refusals", test_batch_refusals, 0},
#if !defined(__wasm__)
    {"batch: stories dropped from another thread", test_batch_dropped_from_a_thread, 1},
#endif
#if !defined(__wasm__) && !defined(__SANITIZE_THREAD__) /* which does not follow threads into a forked child */
    {"pool: after fork", test_fork, 1},
    {"pool: after fork into the same process number", test_fork_of_the_same_number, 1},
#endif
};

/* For run.sh, which knows the processors that it emulates. */
static void tell_instruction_sets(void) {
    l2c_isa isas[MAX_ISAS], fastest;
    size_t n = available_isas(isas);
    CHECK(l2c_isa_resolve(L2C_ISA_AUTO, &fastest, NULL) == L2C_OK);
    printf("kernels:");
    for (size_t i = 0; i < n; i++) printf(" %s", l2c_kernels_for(isas[i])->name);
    printf("; automatic: %s\n", l2c_kernels_for(fastest)->name);
}

int main(int argc, char **argv) {
    int only_threads = argc > 1 && strcmp(argv[1], "threads") == 0, run = 0;
    tell_instruction_sets();
    for (size_t i = 0; i < sizeof tests / sizeof *tests; i++) {
        if (only_threads ? !tests[i].threads : argc > 1 && strstr(tests[i].name, argv[1]) == NULL) continue;
        printf("%s ... ", tests[i].name);
        fflush(stdout); /* before a test forks, and before one crashes */
        tests[i].run();
        printf("ok\n");
        run++;
    }
    return run == 0; /* no such test */
}
