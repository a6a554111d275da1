/*
 * dense.cuh - products with float32, float16 and bfloat16 matrices.
 *
 * The order of a sum leaves 16 chains (kernels.h): lane j % 16 takes element j. So threads take lanes, not stretches of
 * a row, and what hides the latency of the chains is many weight rows at a time.
 */
#ifndef L2C_CUDA_DENSE_CUH
#define L2C_CUDA_DENSE_CUH

#include "arithmetic.cuh"

/*
 * Few rows of x: a warp takes 8 weight rows, 4 threads a row, thread t lanes 4 t to 4 t + 3, which is a load of 16 (or
 * 8) bytes for every 16 columns. sum[r]: weight row first + lane / 4 times row r of x, in all 4 threads.
 *
 * w is (w.rows, w.pitch); x (n, x_pitch), 1 <= n <= N, in any memory. The weights of DEPTH steps are on their way at
 * any time. Rows that do not exist are replaced by the last one, whose sums are of no use.
 */
template <int TYPE, int N, int DEPTH>
DEVICE void dense_strip(float (&sum)[N], const l2c_gpu_matrix &w, int first, const float *x, int x_pitch, int n) {
    typedef typename stored4<TYPE>::raw raw;
    int lane = threadIdx.x % WARP, t = lane % 4, row = first + lane / 4, steps = w.pitch / LANES;
    const raw *weights = (const raw *)w.data + (size_t)(row < w.rows ? row : w.rows - 1) * (w.pitch / 4) + t;
    const float4 *from = (const float4 *)x + t;
    float4 acc[N];
    raw ahead[DEPTH];
    UNROLL_ALL for (int r = 0; r < N; r++) acc[r] = float4{0, 0, 0, 0};
    UNROLL_ALL for (int u = 0; u < DEPTH; u++)
        if (u < steps) ahead[u] = load_weights(weights + 4 * u);
    for (int k = 0; k < steps; k += DEPTH) {
        UNROLL_ALL for (int u = 0; u < DEPTH; u++) {
            if (k + u >= steps) break;
            float4 a = widen<TYPE>(ahead[u]);
            if (k + u + DEPTH < steps) ahead[u] = load_weights(weights + 4 * (k + u + DEPTH));
            UNROLL_ALL for (int r = 0; r < N; r++)
                fma4(acc[r], a, from[(r < n ? r : n - 1) * (x_pitch / 4) + 4 * (k + u)]);
        }
    }
    UNROLL_ALL for (int r = 0; r < N; r++) sum[r] = sum_lanes4(acc[r]);
}

DEVICE void put(float *out, float sum, int accumulate) { *out = accumulate ? *out + sum : sum; }

template <int TYPE, int N, int DEPTH> DEVICE void dense_few_rows(const l2c_gpu_linear &p, int strip) {
    int lane = threadIdx.x % WARP, row = strip * 8 + lane / 4;
    float sum[N];
    dense_strip<TYPE, N, DEPTH>(sum, p.w, strip * 8, p.x, l2c_gpu_pitch(p.w.cols), p.n);
    UNROLL_ALL for (int r = 0; r < N; r++)
        if (lane % 4 == r % 4 && r < p.n && row < p.w.rows)
            put(p.out + (size_t)r * p.out_pitch + row, sum[r], p.accumulate);
}

/* Up to 8 rows; a warp a strip. */
template <int TYPE> DEVICE void dense_few(const l2c_gpu_linear &p) {
    int strip = blockIdx.x * L2C_GPU_FEW_WARPS + threadIdx.x / WARP;
    if (strip * 8 >= p.w.rows) return;
    if (p.n == 1) dense_few_rows<TYPE, 1, 8>(p, strip);
    else if (p.n <= 4) dense_few_rows<TYPE, 4, 4>(p, strip);
    else dense_few_rows<TYPE, 8, 4>(p, strip);
}

/*
 * Many rows of x: a block has a tile of FLOAT_TILE_W weight rows and FLOAT_TILE_X rows of x, which pass through shared
 * memory FLOAT_TILE_K columns at a time. Half a warp holds the 16 lanes of X x W sums of it; both halves have the same
 * rows of x, and every other weight row.
 */
template <int TYPE> DEVICE void dense_many(const l2c_gpu_linear &p) {
    enum { X = 8, W = 16, WARPS_W = 2, K = L2C_GPU_FLOAT_TILE_K, PITCH = K + LANES, QUADS = K / 4 };
    enum { TILE_X = L2C_GPU_FLOAT_TILE_X, TILE_W = L2C_GPU_FLOAT_TILE_W };
    typedef typename stored4<TYPE>::raw raw;
    float *xs = (float *)shared_memory(), *ws = xs + TILE_X * PITCH;
    int lane = threadIdx.x % LANES, side = threadIdx.x / LANES % 2, warp = threadIdx.x / WARP;
    int x0 = warp / WARPS_W * X, w0 = warp % WARPS_W * 2 * W + side; /* within the tile */
    int first_x = blockIdx.y * TILE_X, first_w = blockIdx.x * TILE_W, pitch = l2c_gpu_pitch(p.w.cols);
    float acc[X][W];
    UNROLL_ALL for (int i = 0; i < X; i++)
        UNROLL_ALL for (int j = 0; j < W; j++) acc[i][j] = 0.0f;
    for (int k0 = 0; k0 < pitch; k0 += K) {
        int width = pitch - k0 < K ? pitch - k0 : K; /* a multiple of 16 */
        __syncthreads();
        for (int i = threadIdx.x; i < (TILE_X + TILE_W) * QUADS; i += blockDim.x) {
            int row = i / QUADS, c = i % QUADS * 4;
            float4 v = float4{0, 0, 0, 0};
            if (c < width) {
                if (row >= TILE_X) {
                    size_t at = (size_t)(first_w + row - TILE_X) * (pitch / 4) + (k0 + c) / 4;
                    if (first_w + row - TILE_X < p.w.rows) v = widen<TYPE>(load_weights((const raw *)p.w.data + at));
                } else if (first_x + row < p.n) {
                    v = *(const float4 *)(p.x + (size_t)(first_x + row) * pitch + k0 + c);
                }
            }
            *(float4 *)(xs + row * PITCH + c) = v; /* ws follows xs */
        }
        __syncthreads();
        UNROLL_ALL for (int k = 0; k < K; k += LANES) {
            if (k >= width) break;
            float b[W];
            UNROLL_ALL for (int j = 0; j < W; j++) b[j] = ws[(w0 + 2 * j) * PITCH + k + lane];
            UNROLL_ALL for (int i = 0; i < X; i++) {
                float a = xs[(x0 + i) * PITCH + k + lane];
                UNROLL_ALL for (int j = 0; j < W; j++) acc[i][j] = fmaf(b[j], a, acc[i][j]);
            }
        }
    }
    UNROLL_ALL for (int i = 0; i < X; i++)
        UNROLL_ALL for (int j = 0; j < W; j++) {
            float sum = sum_lanes(acc[i][j]);
            int r = first_x + x0 + i, row = first_w + w0 + 2 * j;
            if (lane == j && r < p.n && row < p.w.rows) put(p.out + (size_t)r * p.out_pitch + row, sum, p.accumulate);
        }
}

#endif
