/*
 * harness.c - the engine from C, to be run under AddressSanitizer, UndefinedBehaviorSanitizer and
 * (with the argument "threads") ThreadSanitizer. The Python tests say what is right; this looks for
 * what goes wrong unseen.
 */
#define _GNU_SOURCE
#include <limits.h>
#include <math.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "internal.h"
#include "tiny.h"

static int failures;
#define CHECK(condition) \
    do { if (!(condition)) { printf("FAILED %s:%d: %s\n", __FILE__, __LINE__, #condition); failures++; } } while (0)

static const l2c_config CONFIGS[] = {
    {.dim = 12, .hidden_dim = 20, .n_layers = 2, .n_heads = 2, .n_kv_heads = 1, .vocab_size = 270, .seq_len = 40,
     .version = 0, .shared_classifier = 1},
    {.dim = 36, .hidden_dim = 33, .n_layers = 1, .n_heads = 6, .n_kv_heads = 3, .vocab_size = 271, .seq_len = 24,
     .version = 0, .shared_classifier = 0},
    {.dim = 18, .hidden_dim = 7, .n_layers = 3, .n_heads = 9, .n_kv_heads = 9, .vocab_size = 1, .seq_len = 24,
     .version = 1, .shared_classifier = 1},
    {.dim = 32, .hidden_dim = 48, .n_layers = 2, .n_heads = 4, .n_kv_heads = 4, .vocab_size = 270, .seq_len = 24,
     .version = 2, .shared_classifier = 1, .group_size = 16},
    {.dim = 15, .hidden_dim = 8, .n_layers = 1, .n_heads = 3 / 3, .n_kv_heads = 1, .vocab_size = 9, .seq_len = 8,
     .version = 2, .shared_classifier = 0, .group_size = 5}, /* odd head: refused */
    {.dim = 16, .hidden_dim = 20, .n_layers = 1, .n_heads = 2, .n_kv_heads = 2, .vocab_size = 31, .seq_len = 24,
     .version = 2, .shared_classifier = 0, .group_size = 8}, /* groups do not divide hidden_dim */
};
enum { N_CONFIGS = sizeof CONFIGS / sizeof *CONFIGS, ODD_HEAD = 4 };

static int open_copy(const unsigned char *data, size_t size, l2c_model **model, unsigned char **copy) {
    *copy = exact_copy(data, size);
    l2c_error err;
    return l2c_model_open_memory(*copy, size, model, &err) == L2C_OK;
}

/* Logits of 20 tokens on a fresh session, fed `step` rows a call. */
static float *all_logits(const l2c_model *model, int threads, l2c_isa isa, int step) {
    const l2c_config *c = l2c_model_config(model);
    l2c_pool *pool = NULL;
    l2c_session *session = NULL;
    l2c_error err;
    CHECK(l2c_pool_create(threads, &pool, &err) == L2C_OK);
    CHECK(l2c_session_create(model, pool, 1, 0, isa, &session, &err) == L2C_OK);
    float *out = malloc(20 * (size_t)c->vocab_size * sizeof *out);
    for (int at = 0; at < 20; at += step) {
        l2c_row rows[20];
        int n = 20 - at < step ? 20 - at : step;
        for (int i = 0; i < n; i++) rows[i] = (l2c_row){0, at + i, (at + i) * 7 % c->vocab_size, 1};
        CHECK(l2c_session_forward(session, rows, (size_t)n, &err) == L2C_OK);
        memcpy(out + (size_t)at * (size_t)c->vocab_size, l2c_session_logits(session, 0),
               (size_t)n * (size_t)c->vocab_size * sizeof *out);
    }
    l2c_session_free(session);
    l2c_pool_free(pool);
    return out;
}

static void test_forward(void) {
    for (int i = 0; i < N_CONFIGS; i++) {
        image im = tiny_checkpoint(&CONFIGS[i]);
        unsigned char *copy;
        l2c_model *model = NULL;
        int opened = open_copy(im.data, im.size, &model, &copy);
        CHECK(opened == (i != ODD_HEAD));
        if (opened) {
            size_t bytes = 20 * (size_t)CONFIGS[i].vocab_size * sizeof(float);
            float *expected = all_logits(model, 1, L2C_ISA_SCALAR, 20);
            for (int isa = L2C_ISA_SCALAR; isa <= L2C_ISA_AVX512; isa++) {
                l2c_isa found;
                if (l2c_isa_resolve((l2c_isa)isa, &found, NULL) != L2C_OK) continue;
                for (int threads = 1; threads <= 5; threads += 2) {
                    float *got = all_logits(model, threads, (l2c_isa)isa, threads);
                    CHECK(memcmp(got, expected, bytes) == 0);
                    free(got);
                }
            }
            free(expected);
        }
        l2c_model_free(model);
        free(copy);
        free(im.data);
    }
}

static void test_hostile_checkpoints(void) {
    const int32_t values[] = {0, -1, 1, 2, 3, INT_MIN, INT_MAX, 1 << 24, 0x616b3432, 65536};
    for (int i = 0; i < N_CONFIGS; i++) {
        image im = tiny_checkpoint(&CONFIGS[i]);
        unsigned char *copy;
        l2c_model *model = NULL;
        for (size_t size = 0; size < im.size; size += size < 300 ? 1 : 97) {
            CHECK(!open_copy(im.data, size, &model, &copy));
            free(copy);
        }
        for (size_t offset = 0; offset < 41; offset++)
            for (size_t v = 0; v < sizeof values / sizeof *values; v++) {
                unsigned char *damaged = exact_copy(im.data, im.size);
                memcpy(damaged + offset, &values[v], sizeof *values);
                l2c_error err;
                if (l2c_model_open_memory(damaged, im.size, &model, &err) == L2C_OK) {
                    l2c_model_free(model);
                } else {
                    CHECK(err.message[0] != '\0' && strlen(err.message) < sizeof err.message - 1);
                }
                model = NULL;
                free(damaged);
            }
        free(im.data);
    }
}

static void test_tokenizer(void) {
    image im = tiny_tokenizer();
    l2c_tokenizer *t = NULL;
    l2c_error err;
    for (size_t size = 0; size < im.size; size++) {
        unsigned char *copy = exact_copy(im.data, size);
        CHECK(l2c_tokenizer_open_memory(copy, size, 270, &t, &err) != L2C_OK);
        free(copy);
    }
    CHECK(l2c_tokenizer_open_memory(im.data, im.size, 270, &t, &err) == L2C_OK);
    enum { LONG = 100000 };
    char *text = malloc(LONG);
    int32_t *ids = malloc((LONG + 1) * sizeof *ids);
    size_t n;
    for (int byte = 0; byte < 256; byte++) {
        text[0] = (char)byte;
        CHECK(l2c_tokenizer_encode(t, text, 1, ids, &n, &err) == L2C_OK && n >= 1 && n <= 2);
    }
    const char *cut[] = {"\xE6\x97", "\xF0\x9F\x99", "\xC3", "a\x80\x80", "\xF5\x80\x80\x80", "\xE2\x96\x81"};
    for (int i = 0; i < 6; i++) CHECK(l2c_tokenizer_encode(t, cut[i], strlen(cut[i]), ids, &n, &err) == L2C_OK);
    const char fill[] = {'a', '\0', '\x80', ' '};
    for (int i = 0; i < 4; i++) {
        memset(text, fill[i], LONG);
        CHECK(l2c_tokenizer_encode(t, text, LONG, ids, &n, &err) == L2C_OK && n <= LONG + 1);
    }
    const char *bytes;
    CHECK(l2c_tokenizer_piece(t, 270, &bytes, &n) == L2C_RANGE);
    CHECK(l2c_tokenizer_piece(t, -1, &bytes, &n) == L2C_RANGE);
    free(ids);
    free(text);
    l2c_tokenizer_free(t);
    l2c_tokenizer_free(NULL);
    free(im.data);
}

static void test_sampler(void) {
    enum { N = 37 };
    float logits[N];
    l2c_candidate candidates[N];
    unsigned char seen[N] = {0};
    int32_t token, history[] = {0, 5, 5, 36, 99, -4};
    for (int n = 1; n <= N; n += 9)
        for (int setting = 0; setting < 200; setting++) {
            l2c_sampler s;
            l2c_sampler_init(&s, (uint64_t)setting);
            const float temperatures[] = {0.0f, 1e-38f, 0.5f, 1.0f, 3e38f}, top_ps[] = {0.0f, 1e-30f, 0.5f, 1.0f};
            s.temperature = temperatures[setting % 5];
            s.top_p = top_ps[setting / 5 % 4];
            s.top_k = setting % 3 * 4;
            s.min_p = setting % 7 == 0 ? 1.0f : 0.0f;
            s.repetition_penalty = setting % 2 ? 1.0f : 1e30f;
            for (int i = 0; i < n; i++) logits[i] = setting % 4 ? (float)(tiny_random() % 100) / 10.0f - 5.0f : 0.0f;
            CHECK(l2c_sampler_pick(&s, &l2c_kernels_scalar, logits, n, history, 6, candidates, seen, &token, NULL) == L2C_OK);
            CHECK(token >= 0 && token < n);
            const float bad[] = {NAN, INFINITY};
            for (int k = 0; k < 2; k++) {
                for (int i = 0; i < n; i++) logits[i] = 0.0f;
                logits[n / 2] = bad[k];
                CHECK(l2c_sampler_pick(&s, &l2c_kernels_scalar, logits, n, NULL, 0, candidates, seen, &token, NULL) == L2C_NONFINITE);
            }
        }
    for (int i = 0; i < N; i++) CHECK(seen[i] == 0);
}

/* Kernels on buffers that end where memory does. */
static void test_guard_pages(void) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    char *memory = mmap(NULL, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(mprotect(memory + page, page, PROT_NONE) == 0);
    for (size_t n = 1; n <= 70; n++)
        for (int isa = L2C_ISA_SCALAR; isa <= L2C_ISA_AVX512; isa++) {
            l2c_isa found;
            if (l2c_isa_resolve((l2c_isa)isa, &found, NULL) != L2C_OK) continue;
            float *x = (float *)(memory + page) - n, w[5 * 70], out[5], expected[5], big[70], other[70];
            for (size_t i = 0; i < n; i++) x[i] = (float)i * 0.1f - 3.0f;
            for (size_t i = 0; i < 5 * n; i++) w[i] = (float)(i % 11) - 5.0f;
            l2c_kernel_matmul(found, out, x, 1, w, n, 5);
            l2c_kernel_matmul(L2C_ISA_SCALAR, expected, x, 1, w, n, 5);
            CHECK(memcmp(out, expected, sizeof out) == 0);
            l2c_kernel_exp(found, big, x, n);
            l2c_kernel_exp(L2C_ISA_SCALAR, other, x, n);
            CHECK(memcmp(big, other, n * sizeof *x) == 0);
            l2c_kernel_mix(found, big, w, x, 1, n);
            l2c_kernel_mix(L2C_ISA_SCALAR, other, w, x, 1, n);
            CHECK(memcmp(big, other, n * sizeof *x) == 0);
            memcpy(other, x, n * sizeof *x);
            l2c_kernel_swiglu(found, x, w, n);
            l2c_kernel_swiglu(L2C_ISA_SCALAR, other, w, n);
            CHECK(memcmp(x, other, n * sizeof *x) == 0);
            l2c_kernel_softmax(found, x, n);
            l2c_kernel_softmax(L2C_ISA_SCALAR, other, n);
            CHECK(memcmp(x, other, n * sizeof *x) == 0);
        }
    munmap(memory, 2 * page);
}

/* ---- Threads ------------------------------------------------------------------------------------ */

typedef struct {
    l2c_session *session;
    int n_ok, n_busy;
} user;

static void *use_session(void *arg) {
    user *u = arg;
    l2c_row rows[8];
    for (int i = 0; i < 8; i++) rows[i] = (l2c_row){0, i, i, 1};
    for (int i = 0; i < 200; i++) {
        l2c_status status = l2c_session_forward(u->session, rows, 8, NULL);
        u->n_ok += status == L2C_OK || status == L2C_CANCELLED;
        u->n_busy += status == L2C_BUSY;
    }
    return NULL;
}

static void test_threads(void) {
    image im = tiny_checkpoint(&CONFIGS[0]);
    l2c_model *model = NULL;
    l2c_pool *pool = NULL;
    l2c_session *session[2] = {NULL, NULL};
    CHECK(l2c_model_open_memory(im.data, im.size, &model, NULL) == L2C_OK);
    CHECK(l2c_pool_create(3, &pool, NULL) == L2C_OK);
    for (int i = 0; i < 2; i++)
        CHECK(l2c_session_create(model, pool, 1, 0, L2C_ISA_AUTO, &session[i], NULL) == L2C_OK);
    /* two threads on the first session, one on the second, cancelled now and then from here */
    user users[3] = {{.session = session[0]}, {.session = session[0]}, {.session = session[1]}};
    pthread_t threads[3];
    for (int i = 0; i < 3; i++) pthread_create(&threads[i], NULL, use_session, &users[i]);
    for (int i = 0; i < 1000; i++) l2c_session_cancel(session[i % 2]);
    for (int i = 0; i < 3; i++) pthread_join(threads[i], NULL);
    for (int i = 0; i < 3; i++) CHECK(users[i].n_ok + users[i].n_busy == 200);
    CHECK(users[2].n_busy == 0);
    l2c_pool *others[100];
    for (int i = 0; i < 100; i++) CHECK(l2c_pool_create(1 + i % 4, &others[i], NULL) == L2C_OK);
    for (int i = 0; i < 100; i++) l2c_pool_free(others[i]);
    l2c_model_free(model); /* sessions may be freed after what they were made from */
    l2c_pool_free(pool);
    l2c_session_free(session[0]);
    l2c_session_free(session[1]);
    free(im.data);
}

static void test_fork(void) {
    image im = tiny_checkpoint(&CONFIGS[0]);
    l2c_model *model = NULL;
    l2c_pool *pool = NULL;
    l2c_session *session = NULL;
    CHECK(l2c_model_open_memory(im.data, im.size, &model, NULL) == L2C_OK);
    CHECK(l2c_pool_create(3, &pool, NULL) == L2C_OK);
    CHECK(l2c_session_create(model, pool, 1, 0, L2C_ISA_AUTO, &session, NULL) == L2C_OK);
    l2c_row row = {0, 0, 3, 1};
    CHECK(l2c_session_forward(session, &row, 1, NULL) == L2C_OK);
    fflush(stdout); /* or the child would print it again */
    pid_t child = fork();
    CHECK(l2c_session_forward(session, &row, 1, NULL) == L2C_OK);
    l2c_session_free(session);
    l2c_pool_free(pool);
    if (child == 0) _exit(failures != 0);
    int status = -1;
    waitpid(child, &status, 0);
    CHECK(status == 0);
    l2c_model_free(model);
    free(im.data);
}

#define RUN(test) do { test(); printf("%s\n", #test); fflush(stdout); } while (0)

int main(int argc, char **argv) {
    RUN(test_threads);
    if (argc > 1 && strcmp(argv[1], "threads") == 0) return failures != 0;
    RUN(test_forward);
    RUN(test_hostile_checkpoints);
    RUN(test_tokenizer);
    RUN(test_sampler);
    RUN(test_guard_pages);
    RUN(test_fork);
    printf("%d failed\n", failures);
    return failures != 0;
}
