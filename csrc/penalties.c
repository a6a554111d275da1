/*
 * penalties.c - what a sampler does to logits before it looks at them: biases, and penalties of tokens that there
 * were. The history is all the state there is, so that a draft, a batch and one story alone come to the same.
 */
#include "internal.h"

static int is_token(int32_t token, int32_t n) { return token >= 0 && token < n; }

static void penalize(const l2c_sampler *s, float *x, size_t count) {
    if (s->repetition_penalty != 1.0f) *x = *x > 0.0f ? *x / s->repetition_penalty : *x * s->repetition_penalty;
    if (count == 0) return;
    if (s->frequency_penalty != 0.0f) *x -= s->frequency_penalty * (float)count;
    if (s->presence_penalty != 0.0f) *x -= s->presence_penalty;
}

void l2c_sampler_adjust(const l2c_sampler *s, float *logits, int32_t n, const int32_t *history, size_t n_history,
                        int32_t *counts) {
    for (size_t i = 0; i < s->n_biases; i++) logits[s->biases[i].token] += s->biases[i].value;
    if (history == NULL) return;
    /* 1 for a token that is still to be penalized, and 1 more for each time that the story has it */
    for (size_t i = 0; i < n_history; i++)
        if (is_token(history[i], n)) counts[history[i]] = 1;
    for (size_t i = s->n_prompt; i < n_history; i++)
        if (is_token(history[i], n)) counts[history[i]]++;
    for (size_t i = 0; i < n_history; i++) {
        if (!is_token(history[i], n) || counts[history[i]] == 0) continue;
        penalize(s, &logits[history[i]], (size_t)counts[history[i]] - 1);
        counts[history[i]] = 0;
    }
}
