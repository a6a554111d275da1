/*
 * attention.cuh - one head of one row: a block's work.
 *
 * Scores, softmax's sum and the weighted sum of values go by blocks of 64 positions (kernels.h), so that many threads
 * have a part in each.
 */
#ifndef L2C_CUDA_ATTENTION_CUH
#define L2C_CUDA_ATTENTION_CUH

#include "rows.cuh"

/* softmax's sum of exp_at(j), j < n, none of which is negative or -0, by a block of 16 times so many threads as there
 * are blocks of 64 at a time; partial: (2, blockDim.x), which nobody else uses meanwhile. In all threads. */
template <class Exp> DEVICE float sum_of_exps(int n, float *partial, Exp exp_at) {
    int span = blockDim.x * (L2C_SUM_BLOCK / LANES), blocks = blockDim.x / LANES, side = 0;
    int first = threadIdx.x / LANES * L2C_SUM_BLOCK + threadIdx.x % LANES;
    float lane = 0.0f; /* in the first warp: a lane of the total */
    for (int j0 = 0; j0 < n; j0 += span, side ^= 1) {
        float sum = 0.0f;
        UNROLL_ALL for (int j = 0; j < L2C_SUM_BLOCK; j += LANES)
            if (j0 + first + j < n) sum += exp_at(j0 + first + j);
        float *sums = partial + side * blockDim.x;
        sums[threadIdx.x] = sum;
        __syncthreads();
        if (threadIdx.x < WARP)
            for (int b = 0; b < blocks && j0 + b * L2C_SUM_BLOCK < n; b++)
                lane += sums[b * LANES + threadIdx.x % LANES];
    }
    if (threadIdx.x < WARP) {
        lane = sum_lanes(lane);
        if (threadIdx.x == 0) partial[0] = lane;
    }
    __syncthreads();
    float total = partial[0];
    __syncthreads();
    return total;
}

template <int KV> DEVICE float cached_at(const void *cache, size_t i) {
    return KV == L2C_GPU_KV_F16 ? half_to_float(((const uint16_t *)cache)[i]) : ((const float *)cache)[i];
}

/* scores[t] = query . keys[t] / sqrt(head_size); returns the largest, in all threads. query (pitch), keys (n_keys,
 * pitch) from element `keys` of the cache on. 4 threads a key. */
template <int KV>
DEVICE float attention_scores(const l2c_gpu_pass &p, const float *query, size_t keys, int n_keys, float *scores,
                              float *scratch) {
    enum { TYPE = KV == L2C_GPU_KV_F16 ? L2C_GPU_F16 : L2C_GPU_F32 };
    typedef typename stored4<TYPE>::raw raw;
    int lane = threadIdx.x % WARP, pitch = l2c_gpu_pitch(p.head_size), warps = blockDim.x / WARP;
    float root = sqrtf((float)p.head_size), largest = MINUS_INFINITY;
    for (int t0 = threadIdx.x / WARP * 8; t0 < n_keys; t0 += warps * 8) {
        int t = t0 + lane / 4, own = t < n_keys ? t : n_keys - 1;
        const raw *key = (const raw *)p.key_cache + (keys + (size_t)own * pitch) / 4 + lane % 4;
        const float4 *q = (const float4 *)query + lane % 4;
        float4 sum = float4{0, 0, 0, 0};
        UNROLL_BY(8) for (int k = 0; k < pitch / LANES; k++) fma4(sum, widen<TYPE>(key[4 * k]), q[4 * k]);
        float score = sum_lanes4(sum) / root;
        if (t >= n_keys) continue;
        if (lane % 4 == 0) scores[t] = score;
        largest = score > largest ? score : largest;
    }
    largest = block_max(largest, scratch);
    __syncthreads();
    return largest;
}

/* out (head_size) = the sum of scores[t] * values[t]. Threads are columns, as many times over as fit the block; each
 * time has a block of 64 positions. sums: (blockDim.x). */
template <int KV>
DEVICE void weighted_sum(const l2c_gpu_pass &p, const float *scores, size_t values, int n_keys, float *out, float *sums) {
    int pitch = l2c_gpu_pitch(p.head_size), threads = blockDim.x, width = pitch < threads ? pitch : threads;
    int parts = threads / width, part = threadIdx.x / width, column = threadIdx.x % width;
    int blocks = l2c_gpu_pieces(n_keys, L2C_SUM_BLOCK);
    for (int first = 0; first < pitch; first += width) {
        int i = first + column, inside = part < parts && i < pitch;
        float total = 0.0f;
        for (int b0 = 0; b0 < blocks; b0 += parts) {
            int begin = (b0 + part) * L2C_SUM_BLOCK;
            int end = begin + L2C_SUM_BLOCK < n_keys ? begin + L2C_SUM_BLOCK : n_keys;
            float sum = 0.0f;
            if (inside)
                UNROLL_BY(8) for (int t = begin; t < end; t++)
                    sum = fmaf(scores[t], cached_at<KV>(p.value_cache, values + (size_t)t * pitch + i), sum);
            sums[threadIdx.x] = sum;
            __syncthreads();
            if (part == 0)
                for (int b = 0; b < parts && b0 + b < blocks; b++)
                    total = b0 + b == 0 ? sums[column] : total + sums[b * width + column];
            __syncthreads();
        }
        if (part == 0 && i < p.head_size) out[i] = total;
    }
}

/* Head h of row r, by a block. shared: as l2c_gpu_attention_shared says; scores: there, or elsewhere. */
template <int KV> DEVICE void attend(const l2c_gpu_pass &p, int layer, int r, int h, float *shared, float *scores) {
    l2c_gpu_row row = p.rows[r];
    int pitch = l2c_gpu_pitch(p.head_size), q_dim = p.n_heads * p.head_size, n_keys = row.position + 1;
    size_t at = (size_t)r * l2c_gpu_pitch(q_dim) + h * p.head_size;
    size_t cached = cached_head(p, row.sequence, layer, h / (p.n_heads / p.n_kv_heads));
    float *scratch = shared, *partial = scratch + 64, *query = partial + 2 * L2C_GPU_BLOCK;
    for (int j = 2 * threadIdx.x; j < pitch; j += 2 * blockDim.x) {
        float2 turned = float2{0, 0};
        if (j < p.head_size) {
            size_t angle = (size_t)row.position * (p.head_size / 2) + j / 2;
            turned = rotated(p.q[at + j], p.q[at + j + 1], p.rope_cos[angle], p.rope_sin[angle]);
        }
        query[j] = turned.x, query[j + 1] = turned.y;
    }
    __syncthreads();
    float largest = attention_scores<KV>(p, query, cached, n_keys, scores, scratch);
    float sum = sum_of_exps(n_keys, partial, [&](int t) { return scores[t] = exp_of(scores[t] - largest); });
    float least = sum * LEAST_NORMAL;
    for (int t = threadIdx.x; t < n_keys; t += blockDim.x) scores[t] = scores[t] < least ? 0.0f : scores[t] / sum;
    __syncthreads();
    weighted_sum<KV>(p, scores, cached, n_keys, p.attn_out + at, partial);
}

DEVICE void attend_head(const l2c_gpu_pass &p, int layer, int r, int h) {
    float *shared = (float *)shared_memory();
    float *scores = p.scores_in_global ? p.scores + (size_t)blockIdx.x * p.n_ctx
                                       : shared + l2c_gpu_attention_shared(p.head_size, 0) / 4;
    if (p.kv == L2C_GPU_KV_F16) attend<L2C_GPU_KV_F16>(p, layer, r, h, shared, scores);
    else attend<L2C_GPU_KV_F32>(p, layer, r, h, shared, scores);
}

#endif
