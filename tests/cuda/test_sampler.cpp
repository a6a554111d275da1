/*
 * test_sampler.cpp - draws, and the sums of log-probabilities.
 */
#include <math.h>

#include <memory>
#include <vector>

#include "check.h"

namespace {

/* Logits as models have them, flat ones, ones with many equals, forbidden tokens, and unusable ones. */
void fill(float *x, int n) {
    int kind = between(0, 9);
    float spread = kind < 5 ? 3.0f : kind < 7 ? 12.0f : 0.05f;
    for (int i = 0; i < n; i++) x[i] = kind == 7 ? (float)between(0, 3) : spread * wild() + wild();
    if (kind == 8) /* a grammar's mask */
        for (int i = 0; i < n; i++)
            if (between(0, 3)) x[i] = -INFINITY;
    if (kind == 9 && between(0, 2) == 0) x[between(0, n - 1)] = between(0, 1) ? NAN : INFINITY;
    if (kind == 9 && between(0, 5) == 0)
        for (int i = 0; i < n; i++) x[i] = -INFINITY;
    if (kind == 9 && between(0, 3) == 0) x[between(0, n - 1)] = 3e38f; /* too large for some temperatures */
}

l2c_sampler pick_sampler() {
    const float temperatures[] = {0.0f, 1.0f, 1.0f, 0.7f, 0.1f, 1e-3f, 1e-30f, 2.5f};
    const float top_ps[] = {0.0f, 1.0f, 0.9f, 0.9f, 0.5f, 0.01f, 0.99999994f, 1e-9f};
    const int top_ks[] = {0, 0, 0, 1, 5, 40, 900, 100000};
    const float min_ps[] = {0.0f, 0.0f, 0.0f, 0.05f, 0.5f, 1.0f, 1e-6f, 0.0f};
    l2c_sampler s;
    l2c_sampler_init(&s, random_next(&random_state));
    s.temperature = temperatures[between(0, 7)];
    s.top_p = top_ps[between(0, 7)];
    s.top_k = top_ks[between(0, 7)];
    s.min_p = min_ps[between(0, 7)];
    return s;
}

/* What a draw may have besides: a mask, and tokens that a penalty makes less likely. */
struct adjustments {
    buffer<uint32_t> allowed, seen;
    std::vector<int32_t> history;
    bool masked = between(0, 2) == 0, penalized = between(0, 2) == 0;

    explicit adjustments(int vocab) : allowed((size_t)(vocab + 31) / 32), seen((size_t)(vocab + 31) / 32) {
        int many = between(0, 1);
        for (int i = 0; i < vocab; i++) {
            bool may = many ? between(0, 9) > 0 : between(0, 9) == 0;
            allowed[i / 32] = (i % 32 ? allowed[i / 32] : 0) | (uint32_t)may << (i % 32);
            if (i % 32 == 0) seen[i / 32] = 0;
        }
        for (int i = between(1, 40); i > 0; i--) history.push_back(between(0, vocab - 1));
        for (int32_t token : history) seen[token / 32] |= UINT32_C(1) << (token % 32);
    }
    void put(l2c_gpu_draw &draw, l2c_sampler &s) {
        const float penalties[] = {1.1f, 2.0f, 0.5f, 1e-30f, 3e38f};
        if (masked) draw.allowed = allowed.begin();
        if (!penalized) return;
        draw.penalty = s.repetition_penalty = penalties[between(0, 4)];
        draw.seen = seen.begin();
    }
    l2c_status oracle(l2c_sampler *s, std::vector<float> logits, int32_t *token) {
        for (size_t i = 0; masked && i < logits.size(); i++)
            if (!(allowed[i / 32] >> (i % 32) & 1)) logits[i] = -INFINITY;
        return oracle_pick(s, logits.data(), (int32_t)logits.size(), history.data(), history.size(), token);
    }
};

void check_draws() {
    int vocab = between(0, 3) ? between(1, 1500) : between(5000, 9000), rows = between(1, 3), n = between(1, 4);
    buffer<float> logits((size_t)rows * vocab);
    for (int r = 0; r < rows; r++) fill(&logits[(size_t)r * vocab], vocab);
    std::vector<float> before(logits.begin(), logits.begin() + logits.count());
    std::vector<l2c_sampler> samplers;
    std::vector<std::unique_ptr<adjustments>> changes;
    buffer<l2c_gpu_draw> draws((size_t)n);
    for (int i = 0; i < n; i++) {
        l2c_sampler s = pick_sampler();
        samplers.push_back(s);
        draws[i] = l2c_gpu_draw{between(0, rows - 1), s.temperature, s.top_p, s.min_p, s.top_k, oracle_coin(&s), -7, 0};
        changes.push_back(std::make_unique<adjustments>(vocab));
        changes[i]->put(draws[i], samplers[i]);
    }
    l2c_gpu_sample p = {};
    p.logits = logits.begin(), p.draws = draws.begin(), p.vocab_size = vocab, p.n = n;
    start(l2c_gpu_sample_launch(&p), p);
    finish();
    check_bytes("logits after sampling", logits.begin(), before.data(), before.size() * 4);
    for (int i = 0; i < n; i++) {
        const float *row = &before[(size_t)draws[i].row * vocab];
        int32_t token = -1;
        l2c_status status = changes[i]->oracle(&samplers[i], std::vector<float>(row, row + vocab), &token);
        if (status == L2C_NONFINITE) token = L2C_GPU_UNUSABLE;
        /* what the card can always sort, it settles */
        if (draws[i].token == L2C_GPU_HOST && vocab > L2C_GPU_CANDIDATES) continue;
        check_bytes("token", &draws[i].token, &token, sizeof token);
    }
}

/* A sampler whose next coin is the largest there is: xorshift64*, undone. */
l2c_sampler sampler_with_the_last_coin() {
    uint64_t inverse = 1, factor = 0x2545F4914F6CDD1Dull, state;
    for (int i = 0; i < 6; i++) inverse *= 2 - factor * inverse; /* of an odd number, by Newton */
    state = (0xFFFFFFFF00000000ull | (random_next(&random_state) & 0xFFFFFFFF)) * inverse;
    state ^= state >> 27 ^ state >> 54;
    state ^= state << 25 ^ state << 50;
    state ^= state >> 12 ^ state >> 24 ^ state >> 36 ^ state >> 48 ^ state >> 60;
    l2c_sampler s;
    l2c_sampler_init(&s, 1);
    s.rng_state = state;
    s.top_p = 1.0f;
    return s;
}

/* Where the running sum falls short of the coin, the last token is taken that is possible at all: not one whose exp is
 * so small that it counts as 0. */
void check_the_last_coin() {
    int vocab = between(2, 600);
    l2c_sampler s = sampler_with_the_last_coin();
    buffer<float> logits((size_t)vocab);
    for (int i = 0; i < vocab; i++) logits[i] = wild();
    int most = between(0, vocab - 1);
    logits[most] = 9.0f;
    for (int i = vocab - between(0, 3) < 0 ? 0 : vocab - between(0, 3); i < vocab; i++)
        if (i != most) logits[i] = 9.0f - 88.0f - 0.1f * (float)between(0, 100);
    buffer<l2c_gpu_draw> draw(1);
    draw[0] = l2c_gpu_draw{0, 1.0f, 1.0f, 0.0f, 0, oracle_coin(&s), -7, 0};
    l2c_gpu_sample p = {};
    p.logits = logits.begin(), p.draws = draw.begin(), p.vocab_size = vocab, p.n = 1;
    start(l2c_gpu_sample_launch(&p), p);
    finish();
    std::vector<float> used(logits.begin(), logits.begin() + vocab);
    int32_t token = -1;
    if (draw[0].coin != 1.0f - 0x1p-24f || oracle_pick(&s, used.data(), vocab, nullptr, 0, &token) != L2C_OK) failures++;
    check_bytes("token of the last coin", &draw[0].token, &token, sizeof token);
}

void check_log_totals() {
    int vocab = between(1, 3000), n = between(1, 4);
    buffer<float> logits((size_t)n * vocab);
    buffer<l2c_gpu_log_total> totals((size_t)n);
    for (int r = 0; r < n; r++) fill(&logits[(size_t)r * vocab], vocab);
    l2c_gpu_logprob p = {logits.begin(), totals.begin(), vocab, n};
    start(l2c_gpu_logprob_launch(&p), p);
    finish();
    for (int r = 0; r < n; r++) {
        oracle_log_total expected = oracle_logprob_total(&logits[(size_t)r * vocab], (size_t)vocab);
        oracle_log_total is = {(double)totals[r].largest, log(totals[r].sum)};
        if (isnan(expected.log_sum)) { /* then the largest means nothing */
            int nan = isnan(is.log_sum), yes = 1;
            check_bytes("sum of unusable logits", &nan, &yes, sizeof nan);
        } else {
            check_bytes("sum of a log-probability", &is, &expected, sizeof is);
        }
    }
}

} // namespace

void test_sampler() {
    for (int i = 0; i < 20; i++) check_draws();
    for (int i = 0; i < 4; i++) check_the_last_coin();
    for (int i = 0; i < 4; i++) check_log_totals();
}
