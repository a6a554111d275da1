/*
 * linear_launches.c - a matrix times some rows, again and again: bytes of weights and operations a second.
 *
 *     linear_launches KERNELS TYPE ROWS COLS N LAUNCHES
 *
 * KERNELS: compiled for the card, or PTX. TYPE: 0 float32, 1 float16, 3 int8, 4 int4 (L2C_GPU_*). N rows of activations.
 * There are as many copies of the matrix, read in turn, as no cache holds. Prints JSON: the microseconds of a launch, and
 * what that makes of gigabytes of weights and of 10^12 operations (two for each weight and row) a second. The library is
 * $PYLLAMA2C_LIBCUDA, else the system's.
 */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "cuda/device.h"
#include "cuda/layout.h"

static l2c_error error;
static l2c_device *device;
static cu_stream stream;

static void check(l2c_status status) {
    if (status == L2C_OK) return;
    fprintf(stderr, "%s\n", error.message);
    exit(1);
}

static void check_driver(cu_result result, const char *doing) { check(l2c_device_check(device, result, doing, &error)); }

/* Bytes of 0x11: small integers, and tiny floats. */
static void *on_card(uint64_t bytes) {
    cu_pointer memory;
    check(l2c_device_alloc(device, bytes, "the trial", &memory, &error));
    check_driver(device->cu.memset_d8_async(memory, 0x11, (size_t)bytes, stream), "filling memory");
    return l2c_card_pointer(memory);
}

static void *read_kernels(const char *path) {
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

static double seconds(void) {
    struct timespec now;
    timespec_get(&now, TIME_UTC);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static void launch(l2c_gpu_linear *p, const l2c_gpu_matrix *copies, int n_copies, int number) {
    p->w = copies[number % n_copies];
    check(l2c_device_launch(device, stream, l2c_gpu_linear_launch(p), p, &error));
}

int main(int argc, char **argv) {
    enum { GROUP = 32, UNCACHED = 256 << 20, MOST_COPIES = 64 };
    if (argc != 7) {
        fprintf(stderr, "usage: linear_launches KERNELS TYPE ROWS COLS N LAUNCHES\n");
        return 2;
    }
    int type = atoi(argv[2]), rows = atoi(argv[3]), cols = atoi(argv[4]), n = atoi(argv[5]), launches = atoi(argv[6]);
    if (type < L2C_GPU_F32 || type > L2C_GPU_Q4 || rows < 1 || cols < GROUP || cols % GROUP != 0 || n < 1 || launches < 1) {
        fprintf(stderr, "types 0 to 4, whole groups of 32 columns, 1 row and 1 launch or more\n");
        return 2;
    }
    check(l2c_device_open(getenv("PYLLAMA2C_LIBCUDA"), 0, &device, &error));
    check(l2c_device_load(device, read_kernels(argv[1]), &error));
    check(l2c_device_enter(device, &error));
    check_driver(device->cu.stream_create(&stream, CU_STREAM_NON_BLOCKING), "opening a stream");
    l2c_gpu_linear p = {.n = n, .out_pitch = l2c_gpu_pitch(rows)};
    l2c_gpu_matrix w = {.type = type, .rows = rows, .cols = cols}, copies[MOST_COPIES];
    if (type < L2C_GPU_Q8) {
        w.pitch = l2c_gpu_pitch(cols);
        p.x = on_card((uint64_t)n * (uint64_t)w.pitch * sizeof(float));
    } else {
        p.xq = l2c_gpu_quantized_shape(cols, GROUP);
        w.group = GROUP, w.groups = p.xq.groups, w.chunks = p.xq.chunks;
        p.xq.q = on_card(l2c_gpu_q_bytes(&p.xq, n));
        p.xq.scales = on_card(l2c_gpu_q_scale_bytes(&p.xq, n));
        p.xq.sums = on_card(l2c_gpu_q_scale_bytes(&p.xq, n));
    }
    p.out = on_card((uint64_t)n * (uint64_t)p.out_pitch * sizeof(float));
    uint64_t data = l2c_card_lines(l2c_gpu_data_bytes(&w)), bytes = data + l2c_gpu_scale_bytes(&w);
    int n_copies = (int)(UNCACHED / bytes + 2);
    n_copies = n_copies < MOST_COPIES ? n_copies : MOST_COPIES;
    n_copies = n_copies < launches ? n_copies : launches;
    for (int i = 0; i < n_copies; i++) {
        copies[i] = w;
        copies[i].data = on_card(bytes);
        copies[i].scales = (const char *)copies[i].data + data;
    }
    for (int i = 0; i < n_copies; i++) launch(&p, copies, n_copies, i); /* and everything is warm */
    check_driver(device->cu.stream_synchronize(stream), "computing");
    double started = seconds();
    for (int i = 0; i < launches; i++) launch(&p, copies, n_copies, i);
    check_driver(device->cu.stream_synchronize(stream), "computing");
    double us = 1e6 * (seconds() - started) / launches;
    printf("{\"us\": %.2f, \"gb_per_second\": %.1f, \"tera_operations\": %.2f}\n", us, (double)bytes / us / 1e3,
           2.0 * rows * cols * n / us / 1e6);
    l2c_device_leave(device);
    return 0;
}
