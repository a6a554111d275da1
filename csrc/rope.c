/*
 * rope.c - the angles of rotary position embedding (Su et al. 2021), tabulated once a model.
 *
 * The table grows by blocks of positions, as sessions come to them. A block is computed by whoever needs it
 * first, aside, and then shown to all at once: no lock, so that a fork in another thread's midst loses nothing.
 */
#include <math.h>

#include "internal.h"

static size_t block_count(const l2c_model *m) {
    return ((size_t)m->config.seq_len + L2C_ROPE_BLOCK - 1) / L2C_ROPE_BLOCK;
}

l2c_status l2c_rope_create(l2c_model *m, l2c_error *err) {
    m->rope = l2c_memory_zeroed(block_count(m), sizeof *m->rope);
    return m->rope != NULL ? L2C_OK : l2c_fail(err, L2C_NOMEM, "out of memory for a model");
}

void l2c_rope_free(l2c_model *m) {
    for (size_t b = 0; m->rope != NULL && b < block_count(m); b++) l2c_memory_free(atomic_load(&m->rope[b]));
    l2c_memory_free(m->rope);
}

/* position * theta^(-2j / head_size) / divisor: in double, rounded once */
static void fill(const l2c_model *m, size_t first, float *cosine, float *sine) {
    size_t pairs = (size_t)m->config.head_size / 2;
    for (size_t j = 0; j < pairs; j++) {
        double frequency = pow((double)m->config.rope_theta, -(double)(2 * j) / (double)m->config.head_size);
        if (m->rope_divisors != NULL) frequency /= m->rope_divisors[j];
        for (size_t i = 0; i < L2C_ROPE_BLOCK; i++) {
            double angle = (double)(first + i) * frequency;
            cosine[i * pairs + j] = (float)cos(angle);
            sine[i * pairs + j] = (float)sin(angle);
        }
    }
}

/* The same in runq.c's float32 steps (kernels/runq.c says why). */
static void fill_as_runq(const l2c_model *m, size_t first, float *cosine, float *sine) {
    size_t pairs = (size_t)m->config.head_size / 2;
    for (size_t j = 0; j < pairs; j++) {
        float frequency = 1.0f / powf(10000.0f, (float)(2 * j) / (float)m->config.head_size);
        for (size_t i = 0; i < L2C_ROPE_BLOCK; i++) {
            float angle = (float)(first + i) * frequency;
            cosine[i * pairs + j] = cosf(angle);
            sine[i * pairs + j] = sinf(angle);
        }
    }
}

l2c_status l2c_rope_extend(const l2c_model *m, int32_t position) {
    size_t pairs = (size_t)m->config.head_size / 2, b = (size_t)position / L2C_ROPE_BLOCK;
    if (atomic_load_explicit(&m->rope[b], memory_order_acquire) != NULL) return L2C_OK;
    float *block = l2c_memory_zeroed(2 * pairs * L2C_ROPE_BLOCK, sizeof *block), *nobody = NULL;
    if (block == NULL) return L2C_NOMEM;
    float *sine = block + pairs * L2C_ROPE_BLOCK;
    if (m->matrices.as_file) fill_as_runq(m, b * L2C_ROPE_BLOCK, block, sine);
    else fill(m, b * L2C_ROPE_BLOCK, block, sine);
    if (!atomic_compare_exchange_strong(&m->rope[b], &nobody, block)) l2c_memory_free(block);
    return L2C_OK;
}
