/*
 * packed.cuh - products with int8 and int4 matrices through the tensor cores, and the int8 rows that they take.
 *
 * mma.m16n8k32 gives 16 weight rows times 8 rows of x over 32 columns. Sums within a group are integers, hence exact;
 * then, in the order of groups, sum = fma(dot, w_scale * x_scale, sum) in the thread that has the product anyway: of
 * thread 4 g + t, element e is weight row g + 8 (e / 2) and row 2 t + e % 2 of x.
 *
 * Where a group is one step, its accumulator starts as the bits of 12582912 = 1.5 * 2^23: an integer below 2^22 (here
 * at most 32 * 128 * 127) added to those bits is added to the float's value, so that a subtraction replaces the
 * conversion. Longer groups, of which up to 512 * 128 * 127 < 2^24 may come, are summed as integers and converted,
 * which is exact.
 *
 * int4's halves hold 8 + q. As the high half of a byte, q ^ 8 is 16 q; the products are then 16 times too large, which
 * one fma undoes exactly.
 */
#ifndef L2C_CUDA_PACKED_CUH
#define L2C_CUDA_PACKED_CUH

#include "dense.cuh"

#define DOT_ZERO_BITS 0x4B400000
#define DOT_ZERO 12582912.0f

/* ---- Rows of x in int8 --------------------------------------------------------------------------------- */

/* Where row r of x has step `step`, and within it column j. */
DEVICE int8_t *quantized_at(const l2c_gpu_quantized &x, int r, int step, int j) {
    size_t at = (((size_t)(r / x.tile) * x.groups * x.chunks + step) * x.tile + r % x.tile) * 4 + j % 16 / 4;
    return x.q + at * 8 + j / 16 * 4 + j % 4;
}

/* One group of row r, by a warp: quantized.h's definition. at(j) is the row's column j. */
template <class At> DEVICE void quantize_group(const l2c_gpu_quantized &to, int r, int group, At at) {
    int lane = threadIdx.x % WARP, first = group * to.group;
    int size = to.cols - first < to.group ? to.cols - first : to.group; /* the rest of it are zeros */
    unsigned most = 0;
    for (int j = lane; j < size; j += WARP) {
        unsigned magnitude = __float_as_uint(at(first + j)) & 0x7FFFFFFFu;
        most = magnitude > most ? magnitude : most;
    }
    UNROLL_ALL for (int half = WARP / 2; half > 0; half /= 2) {
        unsigned other = __shfl_xor_sync(EVERY_LANE, most, half);
        most = other > most ? other : most;
    }
    float largest = __uint_as_float(most), inverse = 0.0f, scale = 0.0f;
    if (most >= 0x7F800000u) scale = __uint_as_float(0x7FC00000u);
    else if (!(largest < L2C_QUANTIZE_LEAST)) {
        scale = largest / 127.0f;
        inverse = 127.0f / largest;
    }
    int sum = 0;
    for (int j = lane; j < to.chunks * CHUNK; j += WARP) {
        int q = 0;
        if (j < size && inverse > 0.0f)
            q = (int)(__float_as_uint(at(first + j) * inverse + L2C_QUANTIZE_ROUND) -
                      __float_as_uint(L2C_QUANTIZE_ROUND));
        *quantized_at(to, r, group * to.chunks + j / CHUNK, j % CHUNK) = (int8_t)q;
        sum += q;
    }
    UNROLL_ALL for (int half = WARP / 2; half > 0; half /= 2) sum += __shfl_xor_sync(EVERY_LANE, sum, half);
    if (lane == 0) {
        size_t i = ((size_t)(r / to.tile) * to.groups + group) * to.tile + r % to.tile;
        to.scales[i] = scale;
        to.sums[i] = sum;
    }
}

/* Groups [begin, end) of row r, by a block. */
DEVICE void quantize_groups(const l2c_gpu_quantized &to, int r, int begin, int end, const float *x) {
    for (int group = begin + threadIdx.x / WARP; group < end; group += blockDim.x / WARP)
        quantize_group(to, r, group, [=](int j) { return x[j]; });
}

/* ---- Fragments and scales of weights ------------------------------------------------------------------- */

template <int TYPE> struct fragment { /* as it lies in memory: Q4, Q4_1 */
    typedef uint2 raw;
};
template <> struct fragment<L2C_GPU_Q8> {
    typedef uint4 raw;
};

/* As multiply_int8 takes it. */
template <int TYPE> DEVICE uint4 unpack(uint4 v) { return v; }
template <int TYPE> DEVICE uint4 unpack(uint2 v) {
    if (TYPE == L2C_GPU_Q4)
        return uint4{(v.x << 4 ^ 0x80808080u) & 0xF0F0F0F0u, (v.y << 4 ^ 0x80808080u) & 0xF0F0F0F0u,
                     (v.x ^ 0x80808080u) & 0xF0F0F0F0u, (v.y ^ 0x80808080u) & 0xF0F0F0F0u};
    return uint4{v.x & 0x0F0F0F0Fu, v.y & 0x0F0F0F0Fu, v.x >> 4 & 0x0F0F0F0Fu, v.y >> 4 & 0x0F0F0F0Fu};
}

/* Of the two weight rows that a thread has. */
struct row_scales {
    float scale[2], minimum[2];
};

template <int TYPE> DEVICE row_scales scales_of(const l2c_gpu_matrix &w, int strip, int group) {
    int g = threadIdx.x % WARP / 4;
    size_t at = (size_t)strip * w.groups + group;
    row_scales s = {{0, 0}, {0, 0}};
    if (TYPE == L2C_GPU_Q8) {
        const float *scales = (const float *)w.scales + at * STRIP + g;
        s.scale[0] = scales[0], s.scale[1] = scales[8];
        return s;
    }
    const uint16_t *scales = (const uint16_t *)w.scales + at * STRIP * (TYPE == L2C_GPU_Q4_1 ? 2 : 1) + g;
    s.scale[0] = half_to_float(scales[0]), s.scale[1] = half_to_float(scales[8]);
    if (TYPE != L2C_GPU_Q4_1) return s;
    s.minimum[0] = half_to_float(scales[STRIP]), s.minimum[1] = half_to_float(scales[STRIP + 8]);
    return s;
}

/* The product of a group that is one step, from its accumulator. */
template <int TYPE> DEVICE float dot_of(int d) {
    return TYPE == L2C_GPU_Q4 ? fmaf(__int_as_float(d), 0.0625f, -DOT_ZERO / 16) : __int_as_float(d) - DOT_ZERO;
}

/* Adds a group's products to the sums of 16 x 8 results. x: scales of rows 2 t and 2 t + 1; n: their integers' sums. */
template <int TYPE>
DEVICE void add_group(float (&sum)[4], const float (&dot)[4], const row_scales &w, float2 x, float2 n) {
    UNROLL_ALL for (int e = 0; e < 4; e++) {
        float scale = e % 2 ? x.y : x.x;
        sum[e] = fmaf(dot[e], w.scale[e / 2] * scale, sum[e]);
        if (TYPE == L2C_GPU_Q4_1) sum[e] = fmaf(w.minimum[e / 2], scale * (e % 2 ? n.y : n.x), sum[e]);
    }
}

DEVICE float2 pair_of(const float *at) { return *(const float2 *)at; }
DEVICE float2 pair_of(const int *at) { return float2{(float)at[0], (float)at[1]}; }

/* ---- Few rows: a warp a strip ---------------------------------------------------------------------------- */

/* What packed_strip reads of x: a tile of up to 8 rows, the first n of which exist. WHOLE: there are 8 in memory. In
 * place of a row that does not exist another one is read, and its results are of no use. */
template <bool WHOLE> struct tile_reader {
    const uint2 *rows;
    const float *scales;
    const int *sums;
    int tile;

    DEVICE_METHOD tile_reader(const l2c_gpu_quantized &x, int n) : tile(WHOLE ? TOKENS : x.tile) {
        int r = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
        rows = (const uint2 *)x.q + (r < n ? r : n - 1) * 4 + t;
        scales = x.scales, sums = x.sums;
    }
    DEVICE_METHOD uint2 fragment(int step) const { return rows[(size_t)step * tile * 4]; }
    /* Of rows 2 t and 2 t + 1. */
    template <class T> DEVICE_METHOD float2 pair(const T *of, int group) const {
        int r = threadIdx.x % 4 * 2;
        of += (size_t)group * tile;
        return WHOLE ? pair_of(of + r) : float2{(float)of[r < tile ? r : 0], (float)of[r + 1 < tile ? r + 1 : 0]};
    }
};

/* sum: of a strip times a tile of x. DEPTH steps' weights are on their way at any time. LONG: groups have several
 * steps, which only Q8's may. */
template <int TYPE, bool LONG, int DEPTH, bool WHOLE>
DEVICE void packed_strip(float (&sum)[4], const l2c_gpu_matrix &w, int strip, const tile_reader<WHOLE> &x) {
    typedef typename fragment<TYPE>::raw raw;
    int lane = threadIdx.x % WARP, chunks = LONG ? w.chunks : 1, steps = w.groups * chunks;
    const raw *weights = (const raw *)w.data + (size_t)strip * steps * WARP + lane;
    int group = 0, chunk = 0, d[4] = {0, 0, 0, 0};
    raw ahead[DEPTH];
    row_scales scales[DEPTH];
    UNROLL_ALL for (int e = 0; e < 4; e++) sum[e] = 0.0f;
    UNROLL_ALL for (int u = 0; u < DEPTH; u++)
        if (u < steps) {
            ahead[u] = load_weights(weights + u * WARP);
            if (!LONG) scales[u] = scales_of<TYPE>(w, strip, u);
        }
    for (int k = 0; k < steps; k += DEPTH) {
        UNROLL_ALL for (int u = 0; u < DEPTH; u++) {
            int step = k + u, next = step + DEPTH;
            if (step >= steps) break;
            uint4 a = unpack<TYPE>(ahead[u]);
            uint2 b = x.fragment(step);
            if (next < steps) ahead[u] = load_weights(weights + (size_t)next * WARP);
            if (!LONG) {
                const int zero[4] = {DOT_ZERO_BITS, DOT_ZERO_BITS, DOT_ZERO_BITS, DOT_ZERO_BITS};
                multiply_int8(d, a, b, zero);
                const float dot[4] = {dot_of<TYPE>(d[0]), dot_of<TYPE>(d[1]), dot_of<TYPE>(d[2]), dot_of<TYPE>(d[3])};
                float2 sums = TYPE == L2C_GPU_Q4_1 ? x.pair(x.sums, step) : float2{0, 0};
                add_group<TYPE>(sum, dot, scales[u], x.pair(x.scales, step), sums);
                if (next < steps) scales[u] = scales_of<TYPE>(w, strip, next);
            } else {
                multiply_int8(d, a, b, d);
                if (++chunk < chunks) continue;
                const float dot[4] = {(float)d[0], (float)d[1], (float)d[2], (float)d[3]};
                add_group<TYPE>(sum, dot, scales_of<TYPE>(w, strip, group), x.pair(x.scales, group), float2{0, 0});
                UNROLL_ALL for (int e = 0; e < 4; e++) d[e] = 0;
                group++;
                chunk = 0;
            }
        }
    }
}

/* Writes the sums of a strip and a tile. */
DEVICE void put_strip(const l2c_gpu_linear &p, const float (&sum)[4], int strip, int tile) {
    int lane = threadIdx.x % WARP;
    UNROLL_ALL for (int e = 0; e < 4; e++) {
        int r = tile * TOKENS + lane % 4 * 2 + e % 2, row = strip * STRIP + lane / 4 + 8 * (e / 2);
        if (r < p.n && row < p.w.rows) put(p.out + (size_t)r * p.out_pitch + row, sum[e], p.accumulate);
    }
}

/* Up to 8 rows; a warp a strip. */
template <int TYPE> DEVICE void packed_few(const l2c_gpu_linear &p) {
    int strip = blockIdx.x * L2C_GPU_FEW_WARPS + threadIdx.x / WARP;
    if (strip * STRIP >= p.w.rows) return;
    float sum[4];
    tile_reader<true> x(p.xq, p.n);
    if (TYPE == L2C_GPU_Q8 && p.w.chunks > 1) packed_strip<TYPE, true, 8>(sum, p.w, strip, x);
    else packed_strip<TYPE, false, 8>(sum, p.w, strip, x);
    put_strip(p, sum, strip, 0);
}

/* ---- Many rows: a block of 8 warps has 8 strips and TILES tiles of x -------------------------------------- */

/* x passes through shared memory, AT_ONCE steps of all tiles at a time, with its scales where a group is one step. */
template <int TYPE, int TILES, bool LONG> DEVICE void packed_block(const l2c_gpu_linear &p) {
    typedef typename fragment<TYPE>::raw raw;
    enum { AT_ONCE = 128 / TILES, HELD = LONG ? TILES : 1 }; /* HELD: accumulators that outlive a step */
    const l2c_gpu_matrix &w = p.w;
    uint2 *rows = (uint2 *)shared_memory();                    /* (TILES, AT_ONCE, WARP) */
    float *x_scales = (float *)(rows + TILES * AT_ONCE * WARP); /* (TILES, AT_ONCE, TOKENS) */
    int *x_sums = (int *)(x_scales + TILES * AT_ONCE * TOKENS); /* the same */
    int lane = threadIdx.x % WARP, t = lane % 4, strips = l2c_gpu_pieces(w.rows, STRIP);
    int strip = blockIdx.x * (L2C_GPU_PACKED_TILE_W / STRIP) + threadIdx.x / WARP;
    int own = strip < strips ? strip : strips - 1; /* a warp without a strip takes part in what all do, in vain */
    int first = blockIdx.y * TILES, last = l2c_gpu_pieces(p.n, TOKENS) - 1;
    int chunks = LONG ? w.chunks : 1, steps = w.groups * chunks, group = 0, chunk = 0;
    const raw *weights = (const raw *)w.data + (size_t)own * steps * WARP + lane;
    float sum[TILES][4];
    int d[HELD][4];
    UNROLL_ALL for (int i = 0; i < TILES; i++)
        UNROLL_ALL for (int e = 0; e < 4; e++) {
            sum[i][e] = 0.0f;
            d[i % HELD][e] = 0;
        }
    for (int k0 = 0; k0 < steps; k0 += AT_ONCE) {
        int now = steps - k0 < AT_ONCE ? steps - k0 : AT_ONCE;
        __syncthreads();
        for (int i = threadIdx.x; i < TILES * AT_ONCE * 16; i += blockDim.x) { /* 16 bytes each */
            int tile = i / (AT_ONCE * 16), at = i % (AT_ONCE * 16);
            if (at >= now * 16) continue;
            tile = first + tile < last ? first + tile : last;
            ((uint4 *)rows)[i] = ((const uint4 *)p.xq.q)[((size_t)tile * steps + k0) * 16 + at];
        }
        if (!LONG)
            for (int i = threadIdx.x; i < TILES * AT_ONCE * TOKENS; i += blockDim.x) {
                int tile = i / (AT_ONCE * TOKENS), at = i % (AT_ONCE * TOKENS);
                if (at >= now * TOKENS) continue;
                tile = first + tile < last ? first + tile : last;
                size_t from = ((size_t)tile * steps + k0) * TOKENS + at;
                x_scales[i] = p.xq.scales[from];
                if (TYPE == L2C_GPU_Q4_1) x_sums[i] = p.xq.sums[from];
            }
        __syncthreads();
        UNROLL_BY(4) for (int k = 0; k < now; k++) {
            uint4 a = unpack<TYPE>(weights[(size_t)(k0 + k) * WARP]);
            if (!LONG) {
                row_scales scales = scales_of<TYPE>(w, own, k0 + k);
                UNROLL_ALL for (int i = 0; i < TILES; i++) {
                    const int zero[4] = {DOT_ZERO_BITS, DOT_ZERO_BITS, DOT_ZERO_BITS, DOT_ZERO_BITS};
                    multiply_int8(d[0], a, rows[(i * AT_ONCE + k) * WARP + lane], zero);
                    const float dot[4] = {dot_of<TYPE>(d[0][0]), dot_of<TYPE>(d[0][1]), dot_of<TYPE>(d[0][2]),
                                          dot_of<TYPE>(d[0][3])};
                    int at = (i * AT_ONCE + k) * TOKENS + 2 * t;
                    add_group<TYPE>(sum[i], dot, scales, pair_of(x_scales + at),
                                    TYPE == L2C_GPU_Q4_1 ? pair_of(x_sums + at) : float2{0, 0});
                }
            } else {
                UNROLL_ALL for (int i = 0; i < TILES; i++)
                    multiply_int8(d[i % HELD], a, rows[(i * AT_ONCE + k) * WARP + lane], d[i % HELD]);
                if (++chunk < chunks) continue;
                row_scales scales = scales_of<TYPE>(w, own, group);
                UNROLL_ALL for (int i = 0; i < TILES; i++) {
                    int (&sums)[4] = d[i % HELD], tile = first + i < last ? first + i : last;
                    const float dot[4] = {(float)sums[0], (float)sums[1], (float)sums[2], (float)sums[3]};
                    const float *scales_of_x = p.xq.scales + ((size_t)tile * w.groups + group) * TOKENS + 2 * t;
                    add_group<TYPE>(sum[i], dot, scales, pair_of(scales_of_x), float2{0, 0});
                    UNROLL_ALL for (int e = 0; e < 4; e++) sums[e] = 0;
                }
                group++;
                chunk = 0;
            }
        }
    }
    if (strip < strips)
        UNROLL_ALL for (int i = 0; i < TILES; i++) put_strip(p, sum[i], strip, first + i);
}

#endif
