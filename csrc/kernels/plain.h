/*
 * plain.h - the inner loops that compilers turn into vector instructions by themselves.
 *
 * Every <isa>.c includes this file once its instruction set is switched on, so that its table
 * gets these loops in those instructions. Elements do not depend on each other, so the bits are the same.
 */

static void plain_norm(float *out, const float *x, const float *weight, float scale, size_t n) {
    for (size_t i = 0; i < n; i++) out[i] = weight[i] * (scale * x[i]);
}

static void plain_add(float *x, const float *delta, size_t n) {
    for (size_t i = 0; i < n; i++) x[i] += delta[i];
}

static void plain_divide(float *x, float divisor, size_t n) {
    for (size_t i = 0; i < n; i++) x[i] /= divisor;
}

static void plain_rotate(float *pairs, const float *cosine, const float *sine, size_t n) {
    for (size_t j = 0; j < n; j++) {
        float a = pairs[2 * j], b = pairs[2 * j + 1];
        pairs[2 * j] = a * cosine[j] - b * sine[j];
        pairs[2 * j + 1] = a * sine[j] + b * cosine[j];
    }
}

static size_t plain_skip_below(const float *x, size_t n, float floor) {
    size_t i = 0;
    for (; i + L2C_SKIP_BLOCK <= n; i += L2C_SKIP_BLOCK) {
        int any = 0; /* without branches, so that it becomes a few instructions */
        for (int j = 0; j < L2C_SKIP_BLOCK; j++) any |= x[i + (size_t)j] >= floor;
        if (any) break;
    }
    return i;
}

#define L2C_PLAIN_KERNELS                                                                        \
    .norm = plain_norm, .add = plain_add, .divide = plain_divide, .rotate = plain_rotate, \
    .skip_below = plain_skip_below
