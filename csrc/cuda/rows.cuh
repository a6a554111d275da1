/*
 * rows.cuh - what is done to rows of activations between products: embedding, RMSNorm, SwiGLU, keys and values.
 */
#ifndef L2C_CUDA_ROWS_CUH
#define L2C_CUDA_ROWS_CUH

#include "packed.cuh"

/* ---- Embedding ------------------------------------------------------------------------------------------- */

/* Element (row, j) of a matrix of any type, in float32. */
DEVICE float matrix_at(const l2c_gpu_matrix &w, int row, int j) {
    size_t at = (size_t)row * w.pitch + j;
    if (w.type == L2C_GPU_F32) return ((const float *)w.data)[at];
    if (w.type == L2C_GPU_F16) return half_to_float(((const uint16_t *)w.data)[at]);
    if (w.type == L2C_GPU_BF16) return __uint_as_float((unsigned)((const uint16_t *)w.data)[at] << 16);
    int group = j / w.group, within = j % w.group, k = within % CHUNK;
    size_t block = (size_t)(row / STRIP) * w.groups + group, lane = row % 8 * 4 + k % 16 / 4;
    size_t word = (block * w.chunks + within / CHUNK) * WARP + lane; /* in units of a lane's words */
    int half = row % STRIP / 8, of_strip = row % STRIP;
    if (w.type == L2C_GPU_Q8)
        return (float)((const int8_t *)w.data)[word * 16 + (k / 16 * 2 + half) * 4 + k % 4] *
               ((const float *)w.scales)[block * STRIP + of_strip];
    int both = ((const uint8_t *)w.data)[word * 8 + half * 4 + k % 4], q = k < 16 ? both & 15 : both >> 4;
    const uint16_t *scales = (const uint16_t *)w.scales;
    if (w.type == L2C_GPU_Q4) return (float)(q - 8) * half_to_float(scales[block * STRIP + of_strip]);
    scales += block * 2 * STRIP + of_strip;
    return half_to_float(scales[0]) * (float)q + half_to_float(scales[STRIP]);
}

/* Row r of x, by a block. */
DEVICE void embed_row(const l2c_gpu_pass &p, int r) {
    float *x = p.x + (size_t)r * l2c_gpu_pitch(p.dim);
    for (int j = threadIdx.x; j < p.dim; j += blockDim.x) x[j] = matrix_at(p.token_embedding, p.rows[r].token, j);
}

/* ---- RMSNorm --------------------------------------------------------------------------------------------- */

/* scales[i] = 1 / sqrt(mean(x^2) + eps) of n rows, by a block; row(i): where row i is. Half a warp has the lanes of a
 * row's sum; all threads bring the rows near, into staging (NORM_FLOATS). */
template <class Row>
DEVICE void rms_scales(float *scales, int n, int cols, float eps, float *staging, Row row) {
    int pitch = l2c_gpu_pitch(cols), at_once = L2C_GPU_NORM_FLOATS / n / LANES * LANES;
    int own = threadIdx.x / LANES, i0 = threadIdx.x % LANES;
    float lane = 0.0f;
    for (int k0 = 0; k0 < pitch; k0 += at_once) {
        int now = pitch - k0 < at_once ? pitch - k0 : at_once;
        for (int r = 0; r < n; r++)
            for (int j = threadIdx.x; j < now; j += blockDim.x) staging[r * at_once + j] = row(r)[k0 + j];
        __syncthreads();
        const float *x = staging + own * at_once;
        if (own < n) UNROLL_BY(8) for (int j = i0; j < now; j += LANES) lane = fmaf(x[j], x[j], lane);
        __syncthreads();
    }
    lane = sum_lanes(lane);
    if (own < n && i0 == 0) scales[own] = 1.0f / sqrtf(lane / (float)cols + eps);
    __syncthreads();
}

/* Row r of x, by a block. shared: NORM_FLOATS, and one. */
DEVICE void norm_row(const l2c_gpu_norm &p, int r, float *shared) {
    int to = p.rows == 0 ? r : p.rows[r].logits, pitch = l2c_gpu_pitch(p.cols);
    if (to < 0) return;
    const float *x = p.x + (size_t)r * pitch;
    rms_scales(shared + L2C_GPU_NORM_FLOATS, 1, p.cols, p.eps, shared, [=](int) { return x; });
    float *out = p.out + (size_t)to * pitch, scale = shared[L2C_GPU_NORM_FLOATS];
    for (int j = threadIdx.x; j < p.cols; j += blockDim.x) out[j] = p.weight[j] * (scale * x[j]);
    if (p.xq.q == 0) return;
    __syncthreads();
    quantize_groups(p.xq, to, 0, p.xq.groups, out);
}

/* ---- Columns of a row -------------------------------------------------------------------------------------- */

DEVICE void quantize_columns(const l2c_gpu_quantize &p, int r, int part) {
    int groups = l2c_gpu_columns(p.to.group) / p.to.group, end = (part + 1) * groups;
    const float *x = p.x + (size_t)r * l2c_gpu_pitch(p.to.cols);
    quantize_groups(p.to, r, part * groups, end < p.to.groups ? end : p.to.groups, x);
}

DEVICE void swiglu_columns(const l2c_gpu_swiglu &p, int r, int part) {
    int columns = l2c_gpu_columns(p.to.group), begin = part * columns;
    int end = begin + columns < p.cols ? begin + columns : p.cols;
    float *gate = p.gate + (size_t)r * l2c_gpu_pitch(p.cols);
    const float *up = p.up + (size_t)r * l2c_gpu_pitch(p.cols);
    for (int j = begin + threadIdx.x; j < end; j += blockDim.x) gate[j] = swiglu_of(gate[j], up[j]);
    if (p.to.q == 0) return;
    __syncthreads();
    int first = begin / p.to.group, last = first + columns / p.to.group;
    quantize_groups(p.to, r, first, last < p.to.groups ? last : p.to.groups, gate);
}

/* ---- Keys and values --------------------------------------------------------------------------------------- */

/* RoPE: turns the pair (a, b) by an angle. */
DEVICE float2 rotated(float a, float b, float cosine, float sine) {
    return float2{a * cosine - b * sine, a * sine + b * cosine};
}

/* Where a (sequence, layer, kv_head) has its (n_ctx, head) in a cache, in elements. */
DEVICE size_t cached_head(const l2c_gpu_pass &p, int sequence, int layer, int kv_head) {
    return (((size_t)sequence * p.n_layers + layer) * p.n_kv_heads + kv_head) * p.n_ctx * l2c_gpu_pitch(p.head_size);
}

DEVICE void store(void *cache, int kv, size_t at, float x) {
    if (kv == L2C_GPU_KV_F16) ((uint16_t *)cache)[at] = float_to_half(x);
    else ((float *)cache)[at] = x;
}

/* A pair of columns of row r, i and i + 1 of keys or of values. */
DEVICE void store_pair(const l2c_gpu_pass &p, void *cache, l2c_gpu_row row, int i, float a, float b) {
    int head = i / p.head_size, within = i % p.head_size;
    size_t at = cached_head(p, row.sequence, p.layer, head) + (size_t)row.position * l2c_gpu_pitch(p.head_size);
    at += within;
    store(cache, p.kv, at, a);
    store(cache, p.kv, at + 1, b);
}

/* Row r's keys, turned, and its values go into the cache, by a block. */
DEVICE void store_kv_row(const l2c_gpu_pass &p, int r) {
    l2c_gpu_row row = p.rows[r];
    int kv_dim = p.n_kv_heads * p.head_size;
    const float *k = p.k + (size_t)r * l2c_gpu_pitch(kv_dim), *v = p.v + (size_t)r * l2c_gpu_pitch(kv_dim);
    for (int i = 2 * threadIdx.x; i < kv_dim; i += 2 * blockDim.x) {
        size_t angle = (size_t)row.position * (p.head_size / 2) + i % p.head_size / 2;
        float2 key = rotated(k[i], k[i + 1], p.rope_cos[angle], p.rope_sin[angle]);
        store_pair(p, p.key_cache, row, i, key.x, key.y);
        store_pair(p, p.value_cache, row, i, v[i], v[i + 1]);
    }
}

/* ---- The cache as data --------------------------------------------------------------------------------------- */

enum { CACHE_READ, CACHE_WRITE, CACHE_COPY };

template <int WHAT, class T> DEVICE void move_head(const l2c_gpu_cache &p, int i) {
    size_t pitch = l2c_gpu_pitch(p.head_size), context = p.n_ctx * pitch, n = (size_t)p.n * p.head_size;
    T *cached = (T *)p.cache + (p.first + i) * context, *to = (T *)p.cache + (p.to + i) * context;
    T *other = (T *)p.other + i * n;
    for (size_t j = threadIdx.x; j < n; j += blockDim.x) {
        size_t at = j / p.head_size * pitch + j % p.head_size;
        if (WHAT == CACHE_READ) other[j] = cached[at];
        else if (WHAT == CACHE_WRITE) cached[at] = other[j];
        else to[at] = cached[at];
    }
}

template <int WHAT> DEVICE void move_cache(const l2c_gpu_cache &p) {
    if (p.kv == L2C_GPU_KV_F16) move_head<WHAT, uint16_t>(p, blockIdx.x);
    else move_head<WHAT, uint32_t>(p, blockIdx.x);
}

#endif
