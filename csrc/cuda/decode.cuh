/*
 * decode.cuh - whole passes, and draws, in one grid that stays: the second driver of the same device functions.
 *
 * Blocks do what takes little for themselves, each the whole of it (norms, int8 rows), and share what takes long
 * (weight rows, heads). A barrier of the whole grid stands where a block reads what others wrote: five a layer.
 * Matrices differ in type, which is looked at here and not by the host; so that there is one copy of the products'
 * code, all of them pass through one loop (decode_pass).
 */
#ifndef L2C_CUDA_DECODE_CUH
#define L2C_CUDA_DECODE_CUH

#include "sample.cuh"

/* The products of a layer, in order, and that after the last one. */
enum product { QUERIES_KEYS_VALUES, ATTENTION_OUTPUT, GATE_AND_UP, DOWN, CLASSIFIER, PRODUCTS_OF_LAYER = CLASSIFIER };

struct grid {
    l2c_gpu_decode_state *state;
    unsigned target; /* arrivals when all blocks have come to the last barrier */
};

/* What blocks wrote before it, all of them see after it. */
DEVICE void grid_barrier(grid &g) {
    __syncthreads();
    g.target += gridDim.x;
    if (threadIdx.x == 0) {
        __threadfence();
        add_and_release(&g.state->arrived, 1);
        while ((int)(load_and_acquire(&g.state->arrived) - g.target) < 0) look_again();
        __threadfence();
    }
    __syncthreads();
}

/* ---- What a product reads ---------------------------------------------------------------------------------- */

/* The same for all threads of a block, and in its shared memory. */
struct operands {
    l2c_gpu_matrix w[3];
    int n_matrices;
    int n; /* rows */
    const float *x; /* (n, pitch of w's columns), for float types */
    l2c_gpu_quantized xq; /* for packed ones */
};

DEVICE bool is_packed(const l2c_gpu_matrix &w) { return w.type >= L2C_GPU_Q8; }

DEVICE void choose_operands(operands &o, const l2c_gpu_decode &p, int product, int layer) {
    const l2c_gpu_layer *w = p.pass.layers + layer;
    o.n = p.pass.n;
    o.n_matrices = 1;
    if (product == QUERIES_KEYS_VALUES) o.w[0] = w->wq, o.w[1] = w->wk, o.w[2] = w->wv, o.n_matrices = 3;
    else if (product == ATTENTION_OUTPUT) o.w[0] = w->wo, o.x = p.pass.attn_out, o.xq = p.pass.aq;
    else if (product == GATE_AND_UP) o.w[0] = w->w1, o.w[1] = w->w3, o.n_matrices = 2;
    else if (product == DOWN) o.w[0] = w->w2, o.x = p.pass.hb, o.xq = p.pass.hq;
    else o.w[0] = p.pass.classifier, o.n = p.pass.n_logits;
}

/* Which row of the pass the i-th of a product is: the classifier has only those that want logits. */
DEVICE int row_of(const l2c_gpu_pass &p, int product, int i) {
    int r = i;
    if (product == CLASSIFIER)
        while (p.rows[r].logits != i) r++;
    return r;
}

/* Prepares what a product reads, by each block for itself: chooses the matrices, norms the rows and makes int8 of them,
 * where that is called for. */
DEVICE operands &prepare(const l2c_gpu_decode &p, int product, int layer) {
    float *scales = (float *)shared_memory();
    operands &o = *(operands *)(scales + 64);
    float *staging = scales + 64 + L2C_GPU_OPERAND_BYTES / 4;
    static_assert(sizeof(operands) <= L2C_GPU_OPERAND_BYTES, "params.h leaves too little room for operands");
    unsigned char *area = p.inputs_in_global ? p.inputs + blockIdx.x * p.input_bytes
                                             : (unsigned char *)(staging + L2C_GPU_NORM_FLOATS);
    if (threadIdx.x == 0) choose_operands(o, p, product, layer);
    __syncthreads();
    const l2c_gpu_layer *w = p.pass.layers + layer;
    bool normed = product != ATTENTION_OUTPUT && product != DOWN, packed = false;
    int n = o.n, cols = o.w[0].cols, pitch = l2c_gpu_pitch(cols);
    for (int i = 0; i < o.n_matrices; i++) packed |= is_packed(o.w[i]);
    const float *x = o.x;
    l2c_gpu_quantized xq = normed ? p.pass.xq : o.xq;
    if (normed) {
        const float *weight = product == QUERIES_KEYS_VALUES ? w->attention_norm
                              : product == GATE_AND_UP       ? w->ffn_norm
                                                             : p.pass.final_norm;
        float *out = (float *)area;
        rms_scales(scales, n, cols, p.pass.norm_eps, staging,
                   [&](int i) { return p.pass.x + (size_t)row_of(p.pass, product, i) * pitch; });
        for (int i = 0; i < n; i++) {
            const float *from = p.pass.x + (size_t)row_of(p.pass, product, i) * pitch;
            for (int j = threadIdx.x; j < pitch; j += blockDim.x)
                out[(size_t)i * pitch + j] = j < cols ? weight[j] * (scales[i] * from[j]) : 0.0f;
        }
        area += (size_t)n * pitch * sizeof *out;
        x = out;
        __syncthreads();
    }
    if (packed) {
        xq.tile = n;
        xq.scales = (float *)area;
        xq.sums = (int32_t *)(xq.scales + (size_t)n * xq.groups);
        xq.q = (int8_t *)(xq.sums + (size_t)n * xq.groups);
        for (int i = 0; i < n; i++) quantize_groups(xq, i, 0, xq.groups, x + (size_t)i * pitch);
    }
    if (threadIdx.x == 0) o.x = x, o.xq = xq;
    __syncthreads();
    return o;
}

/* ---- Products ------------------------------------------------------------------------------------------------ */

/* A work item's results in a thread: N of float types (dense_strip), 4 of packed ones (packed_strip). */
template <int N> struct results {
    enum { MOST = N > 4 ? N : 4 };
    float sum[MOST];
};

/* Where result e belongs. */
struct place {
    int row, r; /* of the matrix, and of x */
    bool own;   /* other threads have it as well, and this one writes it */
};

DEVICE int strips_of(const l2c_gpu_matrix &w) { return l2c_gpu_pieces(w.rows, is_packed(w) ? (int)STRIP : 8); }

DEVICE place place_of(const l2c_gpu_matrix &w, int strip, int e) {
    int lane = threadIdx.x % WARP;
    if (is_packed(w)) return place{strip * STRIP + lane / 4 + 8 * (e / 2), lane % 4 * 2 + e % 2, e < 4};
    return place{strip * 8 + lane / 4, e, lane % 4 == e % 4};
}

template <int N, int TYPE>
DEVICE void dense_results(results<N> &to, const l2c_gpu_matrix &w, int strip, const operands &o) {
    float sum[N];
    dense_strip<TYPE, N, (N > 4 ? 4 : 8)>(sum, w, strip * 8, o.x, l2c_gpu_pitch(w.cols), o.n);
    UNROLL_ALL for (int e = 0; e < results<N>::MOST; e++) to.sum[e] = e < N ? sum[e < N ? e : 0] : 0.0f;
}

template <int N, int TYPE, bool LONG>
DEVICE void packed_results(results<N> &to, const l2c_gpu_matrix &w, int strip, const operands &o) {
    float sum[4];
    packed_strip<TYPE, LONG, 8>(sum, w, strip, tile_reader<false>(o.xq, o.n));
    UNROLL_ALL for (int e = 0; e < results<N>::MOST; e++) to.sum[e] = e < 4 ? sum[e % 4] : 0.0f;
}

template <int N> DEVICE void strip_results(results<N> &to, const l2c_gpu_matrix &w, int strip, const operands &o) {
    switch (w.type) {
    case L2C_GPU_F32: dense_results<N, L2C_GPU_F32>(to, w, strip, o); break;
    case L2C_GPU_F16: dense_results<N, L2C_GPU_F16>(to, w, strip, o); break;
    case L2C_GPU_BF16: dense_results<N, L2C_GPU_BF16>(to, w, strip, o); break;
    case L2C_GPU_Q4: packed_results<N, L2C_GPU_Q4, false>(to, w, strip, o); break;
    case L2C_GPU_Q4_1: packed_results<N, L2C_GPU_Q4_1, false>(to, w, strip, o); break;
    default:
        if (w.chunks > 1) packed_results<N, L2C_GPU_Q8, true>(to, w, strip, o);
        else packed_results<N, L2C_GPU_Q8, false>(to, w, strip, o);
    }
}

/* Column i of row r of keys (which = 1) or values (2) goes into the cache; keys are turned: other is the column that
 * makes a pair with this one. */
DEVICE void store_one(const l2c_gpu_pass &p, int layer, int which, int r, int i, float x, float other) {
    l2c_gpu_row row = p.rows[r];
    int head = i / p.head_size, within = i % p.head_size;
    size_t at = cached_head(p, row.sequence, layer, head) + (size_t)row.position * l2c_gpu_pitch(p.head_size) + within;
    if (which == 1) {
        size_t angle = (size_t)row.position * (p.head_size / 2) + within / 2;
        float2 turned = i % 2 ? rotated(other, x, p.rope_cos[angle], p.rope_sin[angle])
                              : rotated(x, other, p.rope_cos[angle], p.rope_sin[angle]);
        x = i % 2 ? turned.y : turned.x;
    }
    store(which == 1 ? p.key_cache : p.value_cache, p.kv, at, x);
}

/* What becomes of a strip's results. `which` of the product's matrices it is; gate: w1's results, for w3's. */
template <int N>
DEVICE void put_results(const l2c_gpu_decode &p, const operands &o, int product, int layer, int which, int strip,
                        const results<N> &x, const results<N> &gate) {
    const l2c_gpu_matrix &w = o.w[which];
    UNROLL_ALL for (int e = 0; e < results<N>::MOST; e++) {
        place at = place_of(w, strip, e);
        float sum = x.sum[e], other = 0.0f;
        if (product == QUERIES_KEYS_VALUES) other = __shfl_xor_sync(EVERY_LANE, sum, 4); /* the neighbouring row's */
        if (!at.own || at.r >= o.n || at.row >= w.rows) continue;
        size_t i = (size_t)at.r * l2c_gpu_pitch(w.rows) + at.row;
        if (product == QUERIES_KEYS_VALUES && which == 0) p.pass.q[i] = sum;
        else if (product == QUERIES_KEYS_VALUES) store_one(p.pass, layer, which, at.r, at.row, sum, other);
        else if (product == GATE_AND_UP) p.pass.hb[i] = swiglu_of(gate.sum[e], sum);
        else if (product == CLASSIFIER) p.pass.logits[(size_t)at.r * w.rows + at.row] = sum;
        else p.pass.x[i] += sum;
    }
}

/* Work items are strips, in turn to all warps of the grid: neighbours to different blocks. */
template <int N> DEVICE void multiply(const l2c_gpu_decode &p, const operands &o, int product, int layer) {
    int warps = blockDim.x / WARP, first = threadIdx.x / WARP * gridDim.x + blockIdx.x;
    int together = product == GATE_AND_UP ? 2 : 1; /* matrices of an item */
    int n[3] = {0, 0, 0};
    for (int i = 0; i < 3; i++) n[i] = i < o.n_matrices ? strips_of(o.w[i]) : 0;
    int items = together == 2 ? n[0] : n[0] + n[1] + n[2];
    results<N> sums, gate;
    for (int item = first; item < items; item += warps * gridDim.x) {
        int which = together == 2 || item < n[0] ? 0 : item < n[0] + n[1] ? 1 : 2;
        int strip = item - (which > 0 ? n[0] : 0) - (which > 1 ? n[1] : 0);
        UNROLL_BY(1) for (int i = 0; i < together; i++) {
            strip_results<N>(sums, o.w[which + i], strip, o);
            if (together == 2 && i == 0) gate = sums;
            else put_results<N>(p, o, product, layer, which + i, strip, sums, gate);
        }
    }
}

/* ---- Passes and draws ------------------------------------------------------------------------------------------ */

/* One pass; p.pass.layer is not looked at. */
template <int N> DEVICE void decode_pass(const l2c_gpu_decode &p, grid &g) {
    for (int r = blockIdx.x; r < p.pass.n; r += gridDim.x) embed_row(p.pass, r);
    grid_barrier(g);
    int last = PRODUCTS_OF_LAYER * p.pass.n_layers;
    for (int i = 0; i <= last; i++) {
        int product = i == last ? (int)CLASSIFIER : i % PRODUCTS_OF_LAYER;
        int layer = i == last ? 0 : i / PRODUCTS_OF_LAYER;
        if (i == last && p.pass.n_logits == 0) break;
        const operands &o = prepare(p, product, layer);
        multiply<N>(p, o, product, layer);
        grid_barrier(g);
        if (product != QUERIES_KEYS_VALUES) continue;
        for (int j = blockIdx.x; j < p.pass.n * p.pass.n_heads; j += gridDim.x)
            attend_head(p.pass, layer, j / p.pass.n_heads, j % p.pass.n_heads);
        grid_barrier(g);
    }
}

/* Draw i after sweep `step`, by a block: its token goes on as the next one of its row. */
DEVICE void decode_draw(const l2c_gpu_decode &p, int step, int i) {
    l2c_gpu_draw draw = p.draws[i];
    draw.coin = p.coins[(size_t)step * p.n_draws + i];
    draw.allowed = draw.seen = nullptr;
    int token = pick(p.pass.logits + (size_t)i * p.pass.vocab_size, p.pass.vocab_size, draw);
    if (threadIdx.x != 0) return;
    p.tokens[(size_t)step * p.n_draws + i] = token;
    int r = row_of(p.pass, CLASSIFIER, i), end = token < 0;
    for (int e = 0; e < p.n_ends; e++) end |= token == p.ends[e];
    if (end) p.state->stop = 1;
    p.rows[r].token = token;
    p.rows[r].position++;
}

template <int N> DEVICE void decode(const l2c_gpu_decode &p) {
    grid g = {p.state, 0};
    for (int step = 0; step < p.steps; step++) {
        decode_pass<N>(p, g);
        for (int i = blockIdx.x; i < p.n_draws; i += gridDim.x) {
            decode_draw(p, step, i);
            __syncthreads();
        }
        if (blockIdx.x == 0 && threadIdx.x == 0 && *p.cancel != 0) p.state->stop = 1;
        grid_barrier(g);
        if (blockIdx.x == 0 && threadIdx.x == 0) store_for_host(p.done, step + 1);
        if (p.state->stop != 0) break;
    }
}

#endif
