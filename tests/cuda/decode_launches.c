/*
 * decode_launches.c - the persistent kernel, launched again and again: does it ever hang, or answer differently?
 *
 *     decode_launches MODEL KERNELS ROWS STEPS LAUNCHES [BLOCKS]
 *
 * KERNELS: compiled for the card, or PTX. BLOCKS: of a grid, else one for each multiprocessor. Tells ROWS stories of STEPS likeliest tokens by a kernel a phase, then LAUNCHES
 * times by decode kernels, which must give the same tokens. Prints JSON: launches, how many differed, and the
 * microseconds of a launch, waiting included. A deadlock shows as a program that does not end. The library is
 * $PYLLAMA2C_LIBCUDA, else the system's.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cuda/cuda_session.h"

enum { MOST_ROWS = 8, MAPPED = 2 }; /* of the decode kernels; CU_MEMHOSTALLOC_DEVICEMAP */

static l2c_error error;

static void check(l2c_status status) {
    if (status == L2C_OK) return;
    fprintf(stderr, "%s\n", error.message);
    exit(1);
}

static void check_driver(const l2c_driver *cu, cu_result result, const char *doing) {
    if (result != 0) check(l2c_driver_fail(cu, result, doing, &error));
}

static char *read_text(const char *path) {
    FILE *file = fopen(path, "rb");
    long size = file != NULL && fseek(file, 0, SEEK_END) == 0 ? ftell(file) : -1;
    char *text = size >= 0 ? calloc((size_t)size + 1, 1) : NULL;
    if (text == NULL || fseek(file, 0, SEEK_SET) != 0 || fread(text, 1, (size_t)size, file) != (size_t)size) {
        fprintf(stderr, "%s: cannot be read\n", path);
        exit(1);
    }
    fclose(file);
    return text;
}

static int32_t likeliest(const float *logits, int32_t n) {
    int32_t best = 0;
    for (int32_t i = 1; i < n; i++)
        if (logits[i] > logits[best]) best = i;
    return best;
}

/* (steps, n_rows) tokens; the stories begin with tokens 3, 4, .. */
static void tell_by_phases(l2c_session *session, int32_t vocab, int n_rows, int steps, int32_t *tokens) {
    l2c_row rows[MOST_ROWS];
    for (int i = 0; i < n_rows; i++) rows[i] = (l2c_row){.sequence = i, .token = 3 + i, .want_logits = 1};
    for (int step = 0; step < steps; step++)
        for (int i = 0; i < n_rows; i++) {
            if (i == 0) check(l2c_session_forward(session, rows, (size_t)n_rows, &error));
            tokens[step * n_rows + i] = likeliest(l2c_session_logits(session, (size_t)i), vocab);
            if (i < n_rows - 1) continue;
            for (int r = 0; r < n_rows; r++) rows[r].position++, rows[r].token = tokens[step * n_rows + r];
        }
}

typedef struct {
    l2c_cuda_session *s;
    l2c_gpu_decode decode;
    l2c_gpu_row *rows; /* pinned */
    int32_t *told;     /* pinned and mapped: cancel, done, then tokens */
    size_t n_told;
    l2c_gpu_launch how;
} trial;

static void *on_card(trial *t, size_t bytes) {
    cu_pointer memory;
    check(l2c_device_alloc(t->s->device, bytes, "the trial", &memory, &error));
    check_driver(&t->s->device->cu, t->s->device->cu.memset_d8_async(memory, 0, bytes, t->s->stream), "clearing memory");
    return l2c_card_pointer(memory);
}

static void *pinned(trial *t, size_t bytes) {
    void *memory;
    check_driver(&t->s->device->cu, t->s->device->cu.mem_host_alloc(&memory, bytes, MAPPED), "taking page-locked memory");
    return memory;
}

static void prepare(trial *t, int n_rows, int steps, int blocks) {
    l2c_device *d = t->s->device;
    l2c_gpu_decode *p = &t->decode;
    p->pass = t->s->pass;
    p->pass.n = p->pass.n_logits = n_rows;
    p->n_draws = n_rows, p->steps = steps;
    t->how = l2c_gpu_decode_launch(p, steps, blocks, d->shared_limit);
    p->pass.scores = on_card(t, (size_t)blocks * (size_t)p->pass.n_ctx * sizeof(float));
    p->inputs = on_card(t, (size_t)blocks * (size_t)p->input_bytes);
    p->rows = on_card(t, MOST_ROWS * sizeof(l2c_gpu_row));
    p->pass.rows = p->rows;
    p->draws = on_card(t, MOST_ROWS * sizeof(l2c_gpu_draw)); /* zeros: temperature 0 */
    p->coins = on_card(t, (size_t)(steps * n_rows) * sizeof(float));
    p->ends = on_card(t, sizeof(int32_t));
    p->state = on_card(t, sizeof(l2c_gpu_decode_state));
    t->rows = pinned(t, MOST_ROWS * sizeof(l2c_gpu_row));
    for (int i = 0; i < n_rows; i++) t->rows[i] = (l2c_gpu_row){.sequence = i, .token = 3 + i, .logits = i};
    t->n_told = (size_t)(2 + steps * n_rows);
    t->told = pinned(t, t->n_told * sizeof(int32_t));
    p->cancel = &t->told[0], p->done = &t->told[1], p->tokens = &t->told[2];
}

static int is_different(trial *t, const int32_t *expected) {
    const l2c_driver *cu = &t->s->device->cu;
    l2c_gpu_decode *p = &t->decode;
    size_t n = (size_t)p->n_draws;
    for (size_t i = 0; i < t->n_told; i++) t->told[i] = i < 2 ? 0 : -9;
    cu_result result = cu->memset_d8_async(l2c_card_address(p->state), 0, sizeof *p->state, t->s->stream);
    if (result == 0) result = cu->memcpy_to_device_async(l2c_card_address(p->rows), t->rows, n * sizeof *t->rows, t->s->stream);
    check_driver(cu, result, "sending the rows");
    check(l2c_device_launch(t->s->device, t->s->stream, t->how, p, &error));
    check_driver(cu, cu->stream_synchronize(t->s->stream), "the decode kernel");
    return t->told[1] != p->steps || memcmp(&t->told[2], expected, (size_t)p->steps * n * sizeof *expected) != 0;
}

static double seconds(void) {
    struct timespec now;
    timespec_get(&now, TIME_UTC);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

int main(int argc, char **argv) {
    if (argc != 6 && argc != 7) {
        fprintf(stderr, "usage: decode_launches MODEL KERNELS ROWS STEPS LAUNCHES [BLOCKS]\n");
        return 2;
    }
    const char *library = getenv("PYLLAMA2C_LIBCUDA");
    int n_rows = atoi(argv[3]), steps = atoi(argv[4]), launches = atoi(argv[5]), different = 0;
    l2c_device *device;
    l2c_pool *pool;
    l2c_model *model;
    l2c_session *session;
    if (n_rows < 1 || n_rows > MOST_ROWS || steps < 1 || launches < 1) {
        fprintf(stderr, "1 to %d rows, 1 step or more, 1 launch or more\n", MOST_ROWS);
        return 2;
    }
    check(l2c_device_open(library, 0, &device, &error));
    check(l2c_device_load(device, read_text(argv[2]), &error));
    check(l2c_pool_create(1, &pool, &error));
    check(l2c_model_open_on(device, argv[1], L2C_DTYPE_AUTO, pool, &model, &error));
    check(l2c_session_create(model, pool, n_rows, 0, L2C_KV_FLOAT32, L2C_ISA_AUTO, &session, &error));
    trial t = {.s = session->state};
    t.s->decodes = 0; /* at first */
    int32_t *expected = calloc((size_t)(steps * n_rows), sizeof *expected);
    tell_by_phases(session, l2c_model_config(model)->vocab_size, n_rows, steps, expected);
    check(l2c_device_enter(device, &error));
    prepare(&t, n_rows, steps, argc == 7 ? atoi(argv[6]) : device->info.processors);
    different += is_different(&t, expected); /* and everything is warm */
    double started = seconds();
    for (int i = 1; i < launches; i++) different += is_different(&t, expected);
    double us = launches > 1 ? 1e6 * (seconds() - started) / (launches - 1) : 0;
    printf("{\"launches\": %d, \"different\": %d, \"rows\": %d, \"steps\": %d, \"blocks\": %u, \"us_per_launch\": %.2f, "
           "\"us_per_step\": %.2f}\n", launches, different, n_rows, steps, t.how.grid_x, us, us / steps);
    return different != 0;
}
