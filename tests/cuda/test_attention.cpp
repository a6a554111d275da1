/*
 * test_attention.cpp - keys and values into the cache, and attention over it.
 */
#include <math.h>

#include <vector>

#include "check.h"

namespace {

struct shape {
    int heads, kv_heads, head, layers, layer, sequences, n_ctx, kv;
};

shape pick_shape(bool far) {
    shape s = {};
    s.kv_heads = between(1, 2);
    s.heads = s.kv_heads * between(1, 3);
    s.head = between(0, 1) ? 16 * between(1, 4) : 2 * between(1, 90);
    if (between(0, 7) == 0) s.head = 2 * between(128, 200); /* more columns than a block has threads */
    s.layers = between(1, 2);
    s.layer = between(0, s.layers - 1);
    s.sequences = between(1, 3);
    s.n_ctx = far ? between(1000, 2400) : between(1, 300);
    s.kv = between(0, 1) ? L2C_GPU_KV_F16 : L2C_GPU_KV_F32;
    return s;
}

/* What a cache holds at `at`, in float32. */
float cached(const shape &s, const void *cache, size_t at) {
    return s.kv == L2C_GPU_KV_F16 ? l2c_half_to_float(((const uint16_t *)cache)[at]) : ((const float *)cache)[at];
}
void put_cached(const shape &s, void *cache, size_t at, float x) {
    if (s.kv == L2C_GPU_KV_F16) ((uint16_t *)cache)[at] = l2c_float_to_half(x);
    else ((float *)cache)[at] = x;
}
size_t head_at(const shape &s, int sequence, int layer, int kv_head) {
    return (((size_t)sequence * s.layers + layer) * s.kv_heads + kv_head) * s.n_ctx * l2c_gpu_pitch(s.head);
}

/* The CPU's attention of one head: scores, softmax, sums by blocks. */
void attend(const shape &s, const float *query, const void *keys, const void *values, size_t at, int n_keys, float *out) {
    std::vector<float> key(s.head), scores(n_keys), block((size_t)L2C_SUM_BLOCK * s.head);
    for (int t = 0; t < n_keys; t++) {
        for (int i = 0; i < s.head; i++) key[i] = cached(s, keys, at + (size_t)t * l2c_gpu_pitch(s.head) + i);
        scores[t] = l2c_kernels_scalar.dot(query, key.data(), (size_t)s.head);
    }
    l2c_kernels_scalar.divide(scores.data(), sqrtf((float)s.head), (size_t)n_keys);
    l2c_kernels_scalar.softmax(scores.data(), (size_t)n_keys);
    for (int t0 = 0; t0 < n_keys; t0 += L2C_SUM_BLOCK) {
        for (int t = t0; t < n_keys && t < t0 + L2C_SUM_BLOCK; t++)
            for (int i = 0; i < s.head; i++)
                block[(size_t)(t - t0) * s.head + i] = cached(s, values, at + (size_t)t * l2c_gpu_pitch(s.head) + i);
        l2c_kernels_scalar.weighted_sum(out, (size_t)s.head, &scores[t0], (size_t)n_keys, 1, 0, block.data(),
                                        (ptrdiff_t)(n_keys - t0), (size_t)s.head, t0 > 0);
    }
}

void check_attention(bool far) {
    shape s = pick_shape(far);
    int n = far ? 1 : between(1, 5), q_dim = s.heads * s.head, kv_dim = s.kv_heads * s.head, pairs = s.head / 2;
    int q_pitch = l2c_gpu_pitch(q_dim), kv_pitch = l2c_gpu_pitch(kv_dim), head_pitch = l2c_gpu_pitch(s.head);
    size_t cells = (size_t)s.sequences * s.layers * s.kv_heads * s.n_ctx * head_pitch;
    size_t size = s.kv == L2C_GPU_KV_F16 ? 2 : 4;
    buffer<unsigned char> keys(cells * size), values(cells * size);
    buffer<float> q((size_t)n * q_pitch), k((size_t)n * kv_pitch), v((size_t)n * kv_pitch), out((size_t)n * q_pitch);
    buffer<float> cosine((size_t)s.n_ctx * pairs), sine((size_t)s.n_ctx * pairs);
    buffer<l2c_gpu_row> rows((size_t)n);
    /* scores of very different size: many weights are so small that softmax makes them 0 */
    float spread = between(0, 2) ? 0.3f : 4.0f;
    for (int sequence = 0; sequence < s.sequences; sequence++)
        for (int head = 0; head < s.kv_heads; head++)
            for (size_t t = 0; t < (size_t)s.n_ctx; t++)
                for (int i = 0; i < s.head; i++) {
                    size_t at = head_at(s, sequence, s.layer, head) + t * head_pitch + i;
                    put_cached(s, keys.begin(), at, spread * wild());
                    put_cached(s, values.begin(), at, wild());
                }
    for (size_t i = 0; i < cosine.count(); i++) cosine[i] = wild(), sine[i] = wild();
    /* Weights just above and below where softmax makes them 0, whose values alone are not 0: scores are their keys'
     * first column, 0 or near -87. And values whose products with any weight round to -0. */
    bool edge = between(0, 3) == 0;
    if (edge) {
        for (size_t i = 0; i < cosine.count(); i++) cosine[i] = 1.0f, sine[i] = 0.0f;
        for (int sequence = 0; sequence < s.sequences; sequence++)
            for (int head = 0; head < s.kv_heads; head++)
                for (size_t t = 0; t < (size_t)s.n_ctx; t++)
                    for (int i = 0; i < s.head; i++) {
                        size_t at = head_at(s, sequence, s.layer, head) + t * head_pitch + i;
                        bool low = t % 3 == 1;
                        float score = i > 0 ? 0.0f : low ? -85.0f - 0.01f * (float)between(0, 400) : 0.0f;
                        put_cached(s, keys.begin(), at, score);
                        put_cached(s, values.begin(), at, i % 4 == 3 ? -1e-45f : low ? 900.0f * wild() : 0.0f);
                    }
    }
    for (int r = 0; r < n; r++) { /* rows of one sequence are neighbours */
        int sequence = r * s.sequences / n, follows = r > 0 && rows[r - 1].sequence == sequence;
        int first = far ? s.n_ctx - 1 : between(0, s.n_ctx - 1);
        rows[r] = l2c_gpu_row{sequence, follows ? rows[r - 1].position + 1 : first, 0, -1};
        if (rows[r].position >= s.n_ctx) rows[r].position = between(0, s.n_ctx - 1), rows[r].sequence = s.sequences - 1;
        for (int i = 0; i < q_dim; i++)
            q[(size_t)r * q_pitch + i] = !edge ? spread * wild() : i % s.head == 0 ? sqrtf((float)s.head) : 0.0f;
        for (int i = 0; i < kv_dim; i++) {
            k[(size_t)r * kv_pitch + i] = edge ? 0.0f : wild();
            v[(size_t)r * kv_pitch + i] = !edge ? wild() : i % s.head % 4 == 3 ? -1e-45f : 0.0f;
        }
    }
    for (int r = 0; r < n; r++) /* two rows at one place would race */
        for (int other = 0; other < r; other++)
            if (rows[r].sequence == rows[other].sequence && rows[r].position == rows[other].position) return;

    l2c_gpu_pass p = {};
    p.n_layers = s.layers, p.n_heads = s.heads, p.n_kv_heads = s.kv_heads, p.head_size = s.head;
    p.rope_cos = cosine.begin(), p.rope_sin = sine.begin(), p.n_ctx = s.n_ctx, p.kv = s.kv;
    p.key_cache = keys.begin(), p.value_cache = values.begin();
    p.q = q.begin(), p.k = k.begin(), p.v = v.begin(), p.attn_out = out.begin();
    p.n = n, p.rows = rows.begin(), p.layer = s.layer, p.score_slots = between(1, 3);
    buffer<float> scores((size_t)p.score_slots * s.n_ctx);
    p.scores = scores.begin();
    std::vector<unsigned char> expected_keys(keys.begin(), keys.begin() + keys.count());
    std::vector<unsigned char> expected_values(values.begin(), values.begin() + values.count());
    int most = 0;
    for (int r = 0; r < n; r++) most = rows[r].position + 1 > most ? rows[r].position + 1 : most;
    start(l2c_gpu_store_kv_launch(&p), p);
    l2c_gpu_launch launch = l2c_gpu_attention_launch(&p, most, between(0, 1) ? 48 << 10 : 6 << 10);
    start(launch, p);
    finish();

    for (int r = 0; r < n; r++)
        for (int head = 0; head < s.kv_heads; head++) {
            size_t at = head_at(s, rows[r].sequence, s.layer, head) + (size_t)rows[r].position * head_pitch;
            const float *k_of = &k[(size_t)r * kv_pitch + head * s.head];
            std::vector<float> key(k_of, k_of + s.head);
            size_t angle = (size_t)rows[r].position * pairs;
            l2c_kernels_scalar.rotate(key.data(), &cosine[angle], &sine[angle], (size_t)pairs);
            for (int i = 0; i < s.head; i++) {
                put_cached(s, expected_keys.data(), at + i, key[i]);
                put_cached(s, expected_values.data(), at + i, v[(size_t)r * kv_pitch + head * s.head + i]);
            }
        }
    check_bytes("store_kv's keys", keys.begin(), expected_keys.data(), expected_keys.size());
    check_bytes("store_kv's values", values.begin(), expected_values.data(), expected_values.size());
    std::vector<float> expected((size_t)n * q_pitch);
    for (int r = 0; r < n; r++)
        for (int h = 0; h < s.heads; h++) {
            const float *q_of = &q[(size_t)r * q_pitch + h * s.head];
            std::vector<float> query(q_of, q_of + s.head);
            size_t angle = (size_t)rows[r].position * pairs, own = (size_t)r * q_pitch + h * s.head;
            l2c_kernels_scalar.rotate(query.data(), &cosine[angle], &sine[angle], (size_t)pairs);
            attend(s, query.data(), expected_keys.data(), expected_values.data(),
                   head_at(s, rows[r].sequence, s.layer, h / (s.heads / s.kv_heads)), rows[r].position + 1, &expected[own]);
            check_bytes("attention", &out[own], &expected[own], (size_t)s.head * 4);
        }
    check_bytes("attention, and what is around it", out.begin(), expected.data(), expected.size() * 4);
}

} // namespace

void test_attention() {
    for (int i = 0; i < 8; i++) check_attention(false);
    check_attention(true);
}
