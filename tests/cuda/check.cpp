/*
 * check.cpp - runs rounds of random cases: ./check [first seed] [number of seeds] [test].
 */
#include "check.h"

#include <stdlib.h>
#include <sys/mman.h>

uint64_t random_state;
long checks, failures;

device_memory::device_memory(size_t bytes) {
    enum : size_t { PAGE = 4096 };
    bytes = (bytes + 15) / 16 * 16;
    size = (bytes + PAGE - 1) / PAGE * PAGE + PAGE;
    map = (unsigned char *)mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED || mprotect(map + size - PAGE, PAGE, PROT_NONE) != 0) abort();
    start = map + size - PAGE - bytes;
}

device_memory::~device_memory() { munmap(map, size); }

/* ---- Matrices and rows, in the layouts of params.h ---------------------------------------------------- */

static l2c_gpu_matrix shape_on_card(const l2c_matrix &m, bool in_16_bits, bool bfloat16) {
    l2c_gpu_matrix d = {};
    d.rows = (int32_t)m.rows;
    d.cols = (int32_t)m.cols;
    if (m.type == L2C_WEIGHTS_F32) {
        d.type = !in_16_bits ? L2C_GPU_F32 : bfloat16 ? L2C_GPU_BF16 : L2C_GPU_F16;
        d.pitch = l2c_gpu_pitch(d.cols);
        return d;
    }
    d.type = m.type == L2C_WEIGHTS_Q8 ? L2C_GPU_Q8 : m.type == L2C_WEIGHTS_Q4 ? L2C_GPU_Q4 : L2C_GPU_Q4_1;
    d.group = (int32_t)m.group;
    d.groups = (int32_t)(m.padded / m.group);
    d.chunks = l2c_gpu_pieces(d.group, L2C_GPU_CHUNK);
    return d;
}

static void fill_dense(const l2c_gpu_matrix &d, const l2c_matrix &m) {
    for (int r = 0; r < d.rows; r++)
        for (int j = 0; j < d.cols; j++) {
            float value = ((const float *)m.data)[(size_t)r * m.cols + j];
            size_t at = (size_t)r * d.pitch + j;
            uint32_t bits;
            memcpy(&bits, &value, sizeof bits);
            if (d.type == L2C_GPU_F32) ((float *)d.data)[at] = value;
            else ((uint16_t *)d.data)[at] = d.type == L2C_GPU_BF16 ? (uint16_t)(bits >> 16) : l2c_float_to_half(value);
        }
}

/* From blocks of 16 rows, four columns of a row side by side, to fragments. */
static void fill_packed(const l2c_gpu_matrix &d, const l2c_matrix &m) {
    int strips = l2c_gpu_pieces(d.rows, L2C_GPU_STRIP), steps = d.groups * d.chunks;
    int words = d.type == L2C_GPU_Q8 ? 4 : 2;
    size_t scale_bytes = (size_t)d.groups * L2C_GPU_STRIP * (d.type == L2C_GPU_Q4 ? 2 : 4);
    for (int s = 0; s < strips; s++) {
        const unsigned char *block = (const unsigned char *)m.data + s * m.block_bytes;
        const uint32_t *from = (const uint32_t *)(block + l2c_block_scale_bytes(m.type, (size_t)d.groups));
        uint32_t *to = (uint32_t *)d.data + (size_t)s * steps * 32 * words;
        memcpy((unsigned char *)d.scales + s * scale_bytes, block, scale_bytes);
        for (int step = 0; step < steps; step++)
            for (int lane = 0; lane < 32; lane++)
                for (int j = 0; j < words; j++, to++) {
                    int row = lane / 4 + 8 * (j % 2);
                    if (words == 2) {
                        *to = from[(step * 4 + lane % 4) * 16 + row];
                        continue;
                    }
                    int within = step % d.chunks * 8 + lane % 4 + 4 * (j / 2); /* the group's, in fours */
                    if (within * 4 < d.group) *to = from[(step / d.chunks * (d.group / 4) + within) * 16 + row];
                }
    }
}

device_matrix::device_matrix(const l2c_matrix &m, bool in_16_bits, bool bfloat16)
    : matrix(shape_on_card(m, in_16_bits, bfloat16)), data(l2c_gpu_data_bytes(&matrix)),
      scales(l2c_gpu_scale_bytes(&matrix)) {
    matrix.data = data.begin();
    matrix.scales = scales.begin();
    if (m.type == L2C_WEIGHTS_F32) fill_dense(matrix, m);
    else fill_packed(matrix, m);
}

device_rows::device_rows(int n, int cols, int group)
    : rows(l2c_gpu_quantized_shape(cols, group)), q(l2c_gpu_q_bytes(&rows, n)), scales(l2c_gpu_q_scale_bytes(&rows, n)),
      sums(l2c_gpu_q_scale_bytes(&rows, n)) {
    rows.q = (int8_t *)q.begin();
    rows.scales = (float *)scales.begin();
    rows.sums = (int32_t *)sums.begin();
}

void copy_rows(float *to, const float *from, int n, int cols) {
    for (int r = 0; r < n; r++) memcpy(to + (size_t)r * l2c_gpu_pitch(cols), from + (size_t)r * cols, cols * sizeof *to);
}

/* ---- Running and comparing ------------------------------------------------------------------------------ */

void finish() {
    emulator::status s = emulator::synchronize(between(0, 3) == 0 ? 0 : random_next(&random_state) | 1);
    if (s == emulator::OK) return;
    printf("a kernel failed: %s\n", s == emulator::DEADLOCK ? "deadlock" : s == emulator::DIVERGED ? "diverged" : "refused");
    failures++;
}

void check_bytes(const char *what, const void *is, const void *should_be, size_t bytes) {
    checks++;
    if (memcmp(is, should_be, bytes) == 0) return;
    if (failures++ > 20) return;
    const float *a = (const float *)is, *b = (const float *)should_be;
    for (size_t i = 0; i < bytes / 4; i++)
        if (memcmp(a + i, b + i, 4) != 0) {
            printf("%s: element %zu of %zu is %.9g, should be %.9g\n", what, i, bytes / 4, (double)a[i], (double)b[i]);
            return;
        }
    printf("%s: bytes differ\n", what);
}

void check_rows(const char *what, const float *is, const float *should_be, int n, int pitch) {
    for (int r = 0; r < n; r++) check_bytes(what, is + (size_t)r * pitch, should_be + (size_t)r * pitch, pitch * sizeof *is);
}

int main(int argc, char **argv) {
    int first = argc > 1 ? atoi(argv[1]) : 1, n = argc > 2 ? atoi(argv[2]) : 1;
    const struct {
        const char *name;
        void (*run)();
    } tests[] = {{"products", test_products},
                 {"rows", test_rows},
                 {"attention", test_attention},
                 {"sampler", test_sampler},
                 {"passes", test_passes}};
    for (int seed = first; seed < first + n; seed++)
        for (const auto &test : tests) {
            if (argc > 3 && strcmp(argv[3], test.name) != 0) continue;
            random_state = (uint64_t)seed * 0x9E3779B97F4A7C15ull + 1;
            long before = failures;
            test.run();
            if (failures > before) printf("-- %s with seed %d: %ld failures\n", test.name, seed, failures - before);
        }
    printf("%ld checks, %ld failures\n", checks, failures);
    return failures > 0;
}
