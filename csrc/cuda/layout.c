/*
 * layout.c - weight matrices in a card's layout.
 */
#include <string.h>

#include "kernels/quantized.h"
#include "layout.h"

/* ---- Which type float32 becomes ------------------------------------------------------------------- */

/* Those that hold every value exactly: bits of 1 << type. */
enum { FLOAT16 = 1 << L2C_GPU_F16, BFLOAT16 = 1 << L2C_GPU_BF16 };

static uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static int is_float16(float x) {
    uint32_t bits = bits_of(x), exponent = bits >> 23 & 255;
    if (exponent >= 113 && exponent <= 142) return (bits & 0x1FFF) == 0; /* float16's normal numbers */
    return bits_of(l2c_half_to_float(l2c_float_to_half(x))) == bits;
}

static int narrower_types(const float *x, size_t n) {
    enum { BLOCK = 1024 }; /* most float32 weights are told in the first few */
    int types = FLOAT16 | BFLOAT16;
    for (size_t i = 0; i < n && types != 0;) {
        int f16 = 1, bf16 = 1;
        for (size_t end = n - i < BLOCK ? n : i + BLOCK; i < end; i++) {
            bf16 &= (bits_of(x[i]) & 0xFFFF) == 0;
            f16 &= is_float16(x[i]);
        }
        types &= (f16 ? FLOAT16 : 0) | (bf16 ? BFLOAT16 : 0);
    }
    return types;
}

typedef struct {
    const l2c_matrix *matrix;
    atomic_int types;
} narrowing;

static void narrow_on_thread(void *arg, int thread, int n_threads) {
    narrowing *n = arg;
    size_t size = n->matrix->rows * n->matrix->cols;
    size_t begin = size / (size_t)n_threads * (size_t)thread;
    size_t end = thread + 1 == n_threads ? size : begin + size / (size_t)n_threads;
    atomic_fetch_and(&n->types, narrower_types((const float *)n->matrix->data + begin, end - begin));
}

static int32_t float_type(const l2c_matrix *matrix, l2c_pool *pool) {
    if (matrix->data == NULL) return L2C_GPU_F32;
    narrowing n = {matrix, FLOAT16 | BFLOAT16};
    if (pool != NULL) l2c_pool_run(pool, narrow_on_thread, &n);
    else narrow_on_thread(&n, 0, 1);
    int types = atomic_load(&n.types);
    return types & FLOAT16 ? L2C_GPU_F16 : types & BFLOAT16 ? L2C_GPU_BF16 : L2C_GPU_F32;
}

l2c_gpu_matrix l2c_layout_of(const l2c_matrix *matrix, l2c_pool *pool) {
    l2c_gpu_matrix m = {.rows = (int32_t)matrix->rows, .cols = (int32_t)matrix->cols};
    if (matrix->type == L2C_WEIGHTS_F32) {
        m.type = float_type(matrix, pool);
        m.pitch = l2c_gpu_pitch(m.cols);
        return m;
    }
    m.type = matrix->type == L2C_WEIGHTS_Q4 ? L2C_GPU_Q4 : matrix->type == L2C_WEIGHTS_Q4_1 ? L2C_GPU_Q4_1 : L2C_GPU_Q8;
    m.group = (int32_t)matrix->group;
    m.groups = (int32_t)(matrix->padded / matrix->group);
    m.chunks = l2c_gpu_pieces(m.group, L2C_GPU_CHUNK);
    return m;
}

uint64_t l2c_layout_bytes(const l2c_matrix *matrix, int is_16_bits) {
    l2c_matrix shape = *matrix;
    shape.data = NULL;
    l2c_gpu_matrix m = l2c_layout_of(&shape, NULL);
    if (m.type == L2C_GPU_F32 && is_16_bits) m.type = L2C_GPU_F16;
    return l2c_card_lines(l2c_gpu_data_bytes(&m)) + l2c_card_lines(l2c_gpu_scale_bytes(&m));
}

/* ---- Writing ----------------------------------------------------------------------------------------- */

size_t l2c_layout_strip_bytes(const l2c_gpu_matrix *m) {
    l2c_gpu_matrix strip = *m;
    strip.rows = L2C_GPU_STRIP;
    return (size_t)l2c_gpu_data_bytes(&strip);
}

static void write_float_row(unsigned char *to, const l2c_gpu_matrix *m, const float *from) {
    size_t cols = (size_t)m->cols, padding = (size_t)m->pitch - cols;
    if (m->type == L2C_GPU_F32) {
        memcpy(to, from, cols * sizeof *from);
        memset(to + cols * sizeof *from, 0, padding * sizeof *from);
        return;
    }
    uint16_t *half = (uint16_t *)(void *)to;
    if (m->type == L2C_GPU_F16) l2c_scalar_f32_to_f16(half, from, cols);
    else
        for (size_t j = 0; j < cols; j++) half[j] = (uint16_t)(bits_of(from[j]) >> 16);
    memset(half + cols, 0, padding * sizeof *half);
}

/* The fragments of a strip: quads of columns change places, their bytes stay. */
static void write_packed_strip(uint32_t *to, const l2c_gpu_matrix *m, const uint32_t *from) {
    size_t chunks = (size_t)m->chunks, steps = (size_t)m->groups * chunks, quads = (size_t)m->group / 4;
    size_t words = m->type == L2C_GPU_Q8 ? 4 : 2;
    for (size_t step = 0; step < steps; step++)
        for (size_t lane = 0; lane < 32; lane++)
            for (size_t j = 0; j < words; j++) {
                size_t row = lane / 4 + 8 * (j % 2);
                size_t quad = step % chunks * 8 + lane % 4 + 4 * (j / 2); /* of the group */
                size_t at = m->type == L2C_GPU_Q8 ? step / chunks * quads + quad : 4 * step + lane % 4;
                *to++ = m->type == L2C_GPU_Q8 && quad >= quads ? 0 : from[at * L2C_BLOCK_ROWS + row];
            }
}

void l2c_layout_write(unsigned char *to, const l2c_gpu_matrix *m, const l2c_matrix *from, size_t begin, size_t end) {
    size_t bytes = l2c_layout_strip_bytes(m), row_bytes = bytes / L2C_GPU_STRIP;
    for (size_t strip = begin; strip < end; strip++, to += bytes) {
        size_t row = strip * L2C_GPU_STRIP;
        if (m->type >= L2C_GPU_Q8) {
            size_t scales = l2c_block_scale_bytes(from->type, (size_t)m->groups);
            const void *data = l2c_block(from, row) + scales;
            write_packed_strip((uint32_t *)(void *)to, m, data);
            continue;
        }
        for (size_t i = 0; i < L2C_GPU_STRIP && row + i < from->rows; i++)
            write_float_row(to + i * row_bytes, m, (const float *)from->data + (row + i) * from->cols);
    }
}

const void *l2c_layout_scales(const l2c_matrix *matrix, size_t strip) { return l2c_block(matrix, strip * L2C_BLOCK_ROWS); }
