/*
 * logprob.c - log-probabilities of a row of logits.
 *
 * log p(i) = logit[i] - largest - log(sum of exp(logit - largest)). The exps are the kernels' float32
 * ones; they are summed in double, since a float32 sum over the vocabulary would cost half of the digits,
 * in 16 lanes that are added as a tree, as kernels.h says of all sums. One logarithm is libm's.
 */
#include <math.h>

#include "internal.h"

l2c_log_total l2c_logprob_total(const l2c_kernels *kernels, const float *logits, size_t n) {
    enum { LANES = 16, BLOCK = 256 };
    float largest = kernels->max(logits, n), e[BLOCK];
    double lane[LANES] = {0};
    for (size_t i = 0, count; i < n; i += count) {
        count = n - i < BLOCK ? n - i : BLOCK;
        for (size_t j = 0; j < count; j++) e[j] = logits[i + j] - largest;
        kernels->exp(e, e, count);
        size_t j = 0;
        for (; j + LANES <= count; j += LANES)
            for (size_t k = 0; k < LANES; k++) lane[k] += (double)e[j + k];
        for (; j < count; j++) lane[j % LANES] += (double)e[j];
    }
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int k = 0; k < half; k++) lane[k] += lane[k + half];
    return (l2c_log_total){(double)largest, log(lane[0])};
}

void l2c_logprob_top(const l2c_kernels *kernels, l2c_log_total total, const float *logits, size_t n, l2c_logprob *top,
                     size_t n_top) {
    float least = -INFINITY; /* the last one's logit, once there are n_top */
    size_t count = 0;
    for (size_t i = 0; n_top > 0 && i < n;) {
        /* Blocks without a larger logit are passed over: of equals, the first ones stay. */
        if (count == n_top) i += kernels->skip_below(logits + i, n - i, least);
        for (size_t end = n - i < L2C_SKIP_BLOCK ? n : i + L2C_SKIP_BLOCK; i < end; i++) {
            if (count == n_top && !(logits[i] > least)) continue;
            size_t at = count < n_top ? count++ : n_top - 1;
            for (; at > 0 && logits[i] > logits[top[at - 1].token]; at--) top[at] = top[at - 1];
            top[at].token = (int32_t)i;
            least = logits[top[count - 1].token];
        }
    }
    for (size_t i = 0; i < n_top; i++) top[i].logprob = l2c_logprob_of(total, logits[top[i].token]);
}
