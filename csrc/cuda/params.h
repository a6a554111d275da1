/*
 * params.h - what the host hands to the kernels of a graphics card: one struct a kernel, by value.
 *
 * Read by C11 (the host), by nvcc and by g++ (the tests) alike, so the structs hold fixed-width numbers and pointers
 * only, and every pointer is to the card's memory. How many blocks and threads a kernel is started with, and how much
 * shared memory, is computed here as well, by the functions l2c_gpu_*_launch: in one place for host and tests.
 *
 * Rows of activations are (n, pitch) float32, pitch being l2c_gpu_pitch of the columns. Elements past the columns are
 * zeros: the host zeroes every buffer once, when it makes it, and no kernel writes there.
 *
 * A pass over the model, a kernel a phase, on one stream. Each line is a launch:
 *
 *     embed       x                  from the rows' tokens
 *     for each layer:
 *       norm      xb, xq             from x, attention_norm
 *       linear    q, k, v            from xb or xq, wq, wk, wv: three launches
 *       store_kv  the cache          from k, turned by RoPE, and v
 *       attention attn_out           from q, which it turns by RoPE, and the cache
 *       quantize  aq                 from attn_out; only where wo is packed
 *       linear    x +=               from attn_out or aq, wo
 *       norm      xb, xq             from x, ffn_norm
 *       linear    hb, up             from xb or xq, w1, w3: two launches
 *       swiglu    hb, hq             from hb, up
 *       linear    x +=               from hb or hq, w2
 *     norm        xb, xq             from x, final_norm, of the rows that want logits
 *     linear      logits             from xb or xq, the classifier
 *     sample      tokens             from logits; it may put them into the rows, and the next pass can follow
 */
#ifndef L2C_CUDA_PARAMS_H
#define L2C_CUDA_PARAMS_H

#include <stdint.h>

#if defined(__CUDACC__) /* the kernels call some of these functions */
#define L2C_GPU_INLINE static __host__ __device__ __forceinline__
#else
#define L2C_GPU_INLINE static inline
#endif

/* Every kernel: X(name, struct of its one parameter). The kernel's symbol is l2c_<name>. */
#define L2C_GPU_KERNELS(X)            \
    X(embed, l2c_gpu_pass)            \
    X(norm, l2c_gpu_norm)             \
    X(quantize, l2c_gpu_quantize)     \
    X(linear_f32_8, l2c_gpu_linear)   \
    X(linear_f16_8, l2c_gpu_linear)   \
    X(linear_bf16_8, l2c_gpu_linear)  \
    X(linear_q8_8, l2c_gpu_linear)    \
    X(linear_q4_8, l2c_gpu_linear)    \
    X(linear_q4_1_8, l2c_gpu_linear)  \
    X(linear_f32, l2c_gpu_linear)     \
    X(linear_f16, l2c_gpu_linear)     \
    X(linear_bf16, l2c_gpu_linear)    \
    X(linear_q8_64, l2c_gpu_linear)   \
    X(linear_q4_64, l2c_gpu_linear)   \
    X(linear_q4_1_64, l2c_gpu_linear) \
    X(linear_q8_128, l2c_gpu_linear)  \
    X(store_kv, l2c_gpu_pass)         \
    X(attention, l2c_gpu_pass)        \
    X(swiglu, l2c_gpu_swiglu)         \
    X(sample, l2c_gpu_sample)         \
    X(logprob, l2c_gpu_logprob)       \
    X(cache_read, l2c_gpu_cache)      \
    X(cache_write, l2c_gpu_cache)     \
    X(cache_copy, l2c_gpu_cache)      \
    X(decode_1, l2c_gpu_decode)       \
    X(decode_8, l2c_gpu_decode)

enum {
    L2C_GPU_LANES = 16,      /* of a float32 sum (kernels.h); rows are padded to multiples of it */
    L2C_GPU_STRIP = 16,      /* weight rows of a tensor-core product */
    L2C_GPU_CHUNK = 32,      /* columns of one */
    L2C_GPU_TOKENS = 8,      /* rows of activations of one */
    L2C_GPU_BLOCK = 256,     /* threads of most kernels */
    L2C_GPU_NORM_FLOATS = 4096, /* of a row, that norm has in shared memory at a time */
    L2C_GPU_OPERAND_BYTES = 256, /* of what a product of the decode kernels reads (decode.cuh) */
    L2C_GPU_MAX_ROWS = 1024  /* rows of a pass */
};

/* What the elements of a matrix are on the card. float16 and bfloat16 are storage: they are widened as they are read,
 * which is exact. */
enum { L2C_GPU_F32, L2C_GPU_F16, L2C_GPU_BF16, L2C_GPU_Q8, L2C_GPU_Q4, L2C_GPU_Q4_1 };

/* Columns of a row as they lie in memory. */
L2C_GPU_INLINE int32_t l2c_gpu_pitch(int32_t cols) {
    return (cols + L2C_GPU_LANES - 1) / L2C_GPU_LANES * L2C_GPU_LANES;
}

L2C_GPU_INLINE int32_t l2c_gpu_pieces(int32_t n, int32_t size) { return (n + size - 1) / size; }

/*
 * A weight matrix (rows, cols), one output feature a row.
 *
 * F32, F16, BF16: data is row-major (rows, pitch), zeros past cols; 16-byte aligned.
 *
 * Packed ones lie as the tensor cores' instruction mma.m16n8k32 takes them. A strip is 16 rows (the last one filled up
 * with zeros), a step is 32 columns; a group of `group` columns has `chunks` steps, the last one filled up with zeros.
 *     data    Q8: (strips, groups * chunks, 32, 4, 4) int8. Byte i of word j of lane l has row l / 4 + 8 (j % 2) of
 *                 the strip and column 4 (l % 4) + i + 16 (j / 2) of the step.
 *             Q4, Q4_1: (strips, groups, 32, 2, 4) bytes. Byte i of word j of lane l has row l / 4 + 8 j; in its low
 *                 half column 4 (l % 4) + i, in its high half that + 16. Halves are as in kernels.h: Q4's plus 8.
 *     scales  Q8: (strips, groups, 16) float32. Q4: the same in float16. Q4_1: (strips, groups, 2, 16) float16, scales
 *             and minima.
 * data is 16-byte aligned.
 */
typedef struct {
    int32_t type, rows, cols;
    int32_t pitch;                 /* of float types */
    int32_t group, groups, chunks; /* of packed types; group is 32 but for Q8, where it is 4 to 512 */
    int32_t unused;
    const void *data;
    const void *scales;
} l2c_gpu_matrix;

/* Bytes of a matrix's data and of its scales. */
L2C_GPU_INLINE uint64_t l2c_gpu_data_bytes(const l2c_gpu_matrix *m) {
    uint64_t strips = (uint64_t)l2c_gpu_pieces(m->rows, L2C_GPU_STRIP);
    if (m->type == L2C_GPU_F32) return (uint64_t)m->rows * (uint64_t)m->pitch * 4;
    if (m->type < L2C_GPU_Q8) return (uint64_t)m->rows * (uint64_t)m->pitch * 2;
    return strips * (uint64_t)m->groups * (uint64_t)m->chunks * (m->type == L2C_GPU_Q8 ? 512 : 256);
}
L2C_GPU_INLINE uint64_t l2c_gpu_scale_bytes(const l2c_gpu_matrix *m) {
    uint64_t strips = (uint64_t)l2c_gpu_pieces(m->rows, L2C_GPU_STRIP);
    if (m->type < L2C_GPU_Q8) return 0;
    return strips * (uint64_t)m->groups * L2C_GPU_STRIP * (m->type == L2C_GPU_Q4 ? 2 : 4);
}

typedef struct {
    const float *attention_norm; /* (dim) */
    const float *ffn_norm;       /* (dim) */
    l2c_gpu_matrix wq;           /* (n_heads * head_size, dim) */
    l2c_gpu_matrix wk, wv;       /* (n_kv_heads * head_size, dim) */
    l2c_gpu_matrix wo;           /* (dim, n_heads * head_size) */
    l2c_gpu_matrix w1, w3;       /* (hidden_dim, dim) */
    l2c_gpu_matrix w2;           /* (dim, hidden_dim) */
} l2c_gpu_layer;

/*
 * Rows of activations in int8, as tensor cores take them: tiles of 8 rows, steps of 32 columns as the matrix has them.
 *     q       (tiles, groups * chunks, 8, 4, 2, 4): byte i of word j of part t of a row has column 4 t + i + 16 j
 *             of the step; zeros where a group's last step is not full
 *     scales  (tiles, groups, 8)
 *     sums    (tiles, groups, 8): of a group's integers
 * The rows that fill up the last tile may hold anything. Within the decode kernels a tile has only the rows there are.
 */
typedef struct {
    int8_t *q; /* NULL: nothing here is packed, and nothing is quantized */
    float *scales;
    int32_t *sums;
    int32_t cols, group, groups, chunks;
    int32_t tile; /* rows of a tile */
    int32_t unused;
} l2c_gpu_quantized;

/* The shape of cols columns in groups, without memory; and the bytes of n rows of q, and of scales or sums. */
L2C_GPU_INLINE l2c_gpu_quantized l2c_gpu_quantized_shape(int32_t cols, int32_t group) {
    l2c_gpu_quantized x = {0, 0, 0, cols, group, 0, 0, L2C_GPU_TOKENS, 0};
    x.groups = l2c_gpu_pieces(cols, group);
    x.chunks = l2c_gpu_pieces(group, L2C_GPU_CHUNK);
    return x;
}
L2C_GPU_INLINE uint64_t l2c_gpu_q_bytes(const l2c_gpu_quantized *x, int32_t n) {
    return (uint64_t)l2c_gpu_pieces(n, L2C_GPU_TOKENS) * (uint64_t)x->groups * (uint64_t)x->chunks * 256;
}
L2C_GPU_INLINE uint64_t l2c_gpu_q_scale_bytes(const l2c_gpu_quantized *x, int32_t n) {
    return (uint64_t)l2c_gpu_pieces(n, L2C_GPU_TOKENS) * (uint64_t)x->groups * 8 * 4;
}

/* A token at a position of a sequence. */
typedef struct {
    int32_t sequence, position, token;
    int32_t logits; /* its row of logits, or -1 for none; the rows that have one are numbered in order */
} l2c_gpu_row;

enum { L2C_GPU_KV_F32, L2C_GPU_KV_F16 };

/*
 * A pass over the model for n rows; the kernels embed, store_kv and attention take it as it is. head is head_size
 * padded: l2c_gpu_pitch(head_size); q_dim is n_heads * head_size, kv_dim n_kv_heads * head_size, both unpadded. So a
 * row of q has its heads one behind the other and its padding at the end.
 */
typedef struct {
    /* the model */
    int32_t n_layers, dim, hidden_dim, n_heads, n_kv_heads, head_size, vocab_size;
    float norm_eps;
    const l2c_gpu_layer *layers;       /* (n_layers) */
    l2c_gpu_matrix token_embedding;    /* (vocab_size, dim) */
    l2c_gpu_matrix classifier;         /* (vocab_size, dim) */
    const float *final_norm;           /* (dim) */
    const float *rope_cos, *rope_sin;  /* (n_ctx at least, head_size / 2) */

    /* the session */
    int32_t n_ctx;
    int32_t kv;                /* L2C_GPU_KV_F32 or _F16 */
    void *key_cache;           /* (n_sequences, n_layers, n_kv_heads, n_ctx, head), zeros past head_size */
    void *value_cache;         /* the same */
    float *x;                  /* (n, dim) the residual stream: embed writes it, wo and w2 add to it */
    float *xb;                 /* (n, dim) norm's output */
    float *q;                  /* (n, q_dim) queries before RoPE */
    float *k, *v;              /* (n, kv_dim) keys before RoPE, and values */
    float *attn_out;           /* (n, q_dim) attention's output */
    float *hb, *up;            /* (n, hidden_dim) w1's output, then SwiGLU's; w3's output */
    float *logits;             /* (n_logits, vocab_size), not padded */
    l2c_gpu_quantized xq;      /* (n, dim) xb in int8 */
    l2c_gpu_quantized aq;      /* (n, q_dim) attn_out in int8 */
    l2c_gpu_quantized hq;      /* (n, hidden_dim) hb in int8; all three may lie in the same memory */
    float *scores;             /* (score_slots, n_ctx) for attention, where a block's shared memory is too small */
    int32_t score_slots;       /* 1 or more where `scores` is needed */

    /* this call */
    int32_t n, n_logits;
    const l2c_gpu_row *rows;   /* (n) */

    /* this launch */
    int32_t layer;             /* store_kv and attention: of which layer */
    int32_t scores_in_global;  /* attention: see l2c_gpu_attention_launch, which sets it */
} l2c_gpu_pass;

/* RMSNorm of n rows of x, into out and, where xq.q is not NULL, in int8 into xq. */
typedef struct {
    const float *x;          /* (n, cols) */
    const float *weight;     /* (cols) */
    float *out;              /* (n, cols), or (n_logits, cols) with rows */
    l2c_gpu_quantized xq;    /* the same rows */
    const l2c_gpu_row *rows; /* NULL, or: row r of x becomes row rows[r].logits of out, or is left out where that is -1 */
    int32_t n, cols;
    float eps;
} l2c_gpu_norm;

/* Rows of x in int8. */
typedef struct {
    const float *x; /* (n, to.cols) */
    l2c_gpu_quantized to;
    int32_t n;
} l2c_gpu_quantize;

/* out (n, w.rows) = x w^T, or += that. */
typedef struct {
    l2c_gpu_matrix w;
    const float *x;       /* (n, w.cols), where w is a float type */
    l2c_gpu_quantized xq; /* (n, w.cols), where w is packed: of w's group */
    float *out;           /* (n, out_pitch) */
    int32_t out_pitch, n;
    int32_t accumulate;   /* 1: add to out */
} l2c_gpu_linear;

/* gate = silu(gate) * up, and, where to.q is not NULL, in int8 into `to`. */
typedef struct {
    float *gate;     /* (n, cols) */
    const float *up; /* (n, cols) */
    l2c_gpu_quantized to;
    int32_t n, cols;
} l2c_gpu_swiglu;

enum { L2C_GPU_HOST = -1, L2C_GPU_UNUSABLE = -2 }; /* instead of a token */

/* A token to draw from a row of logits by sampler.c's rule. */
typedef struct {
    int32_t row;
    float temperature, top_p, min_p; /* temperature 0: the likeliest */
    int32_t top_k;
    float coin;    /* in [0, 1); the host tosses one wherever sampler.c does */
    int32_t token; /* out; or L2C_GPU_HOST: the host must draw, from the same logits and with the same coin; or
                    * L2C_GPU_UNUSABLE: the logits hold NaN or infinity, or forbid every token */
    int32_t left;  /* tokens that the story may still get (l2c_gpu_sample.rows) */
    const uint32_t *allowed; /* NULL, or a bit for each token that may be picked: bit t % 32 of allowed[t / 32] */
    const uint32_t *seen;    /* NULL, or a bit for each token that is to be less likely: */
    float penalty;           /* the repetition penalty */
    int32_t unused;
} l2c_gpu_draw;

/*
 * Draws n tokens, from logits that it leaves as they are.
 *
 * With rows, each token goes on as the next one of its story, one position on, so that passes and this kernel, in turn,
 * tell stories without the host: row i of the pass, row i of logits and draw i are one story's. A story that does not go
 * on (it has had all its tokens, or the last one is of `ends`, the host's to draw, or unusable) has 0 left and keeps its
 * row: passes that follow compute the same keys, values and logits again, and nothing more is drawn.
 */
typedef struct {
    const float *logits; /* (.., vocab_size) */
    l2c_gpu_draw *draws; /* (n) */
    int32_t vocab_size, n;
    l2c_gpu_row *rows;   /* (n), or NULL; the following only with rows */
    const float *coins;  /* (.., n) by step; draws[i].coin is not looked at */
    const int32_t *ends; /* (n_ends) */
    int32_t *tokens;     /* (.., n) of the host's memory, by step: as l2c_gpu_draw.token */
    int32_t n_ends, step;
} l2c_gpu_sample;

/* What the blocks of a decode kernel tell each other. The host zeroes it before each launch. */
typedef struct {
    uint32_t arrived; /* blocks at grid barriers, so far */
    uint32_t stop;    /* not 0: no further sweep */
} l2c_gpu_decode_state;

/*
 * Passes and draws in one launch, by a grid whose blocks are all there at once (a cooperative launch): for up to 8
 * rows, where launches and gaps between them would cost more than the work.
 *
 * With draws, draw i is from row i of logits, and the token goes on as the next one of the row whose logits those were,
 * one position on: `steps` times, or until a draw is left to the host, or is one of `ends`, or *cancel is not 0. More
 * than one step wants a draw for every row, and positions below n_ctx. Without draws, steps is 1.
 */
typedef struct {
    l2c_gpu_pass pass;
    l2c_gpu_row *rows;           /* pass.rows, which it moves on */
    const l2c_gpu_draw *draws;   /* (n_draws), of which only temperature, top_p, min_p and top_k are looked at */
    const float *coins;          /* (steps, n_draws) */
    const int32_t *ends;         /* (n_ends) */
    const volatile int32_t *cancel; /* of the host's memory, looked at after each sweep */
    int32_t *tokens;             /* (steps, n_draws) of the host's memory: as l2c_gpu_draw.token */
    volatile int32_t *done;      /* of the host's memory: sweeps whose tokens are there */
    l2c_gpu_decode_state *state;
    unsigned char *inputs;       /* (blocks, input_bytes) where a block's shared memory is too small for it */
    int64_t input_bytes;         /* a multiple of 16 */
    int32_t inputs_in_global;    /* these two: see l2c_gpu_decode_launch */
    int32_t n_draws, n_ends, steps;
} l2c_gpu_decode;

/* What turns logits into log-probabilities: logit - largest - log(sum), the logarithm being the host's. */
typedef struct {
    double sum;    /* of exp(logit - largest) */
    float largest;
    float unused;
} l2c_gpu_log_total;

typedef struct {
    const float *logits;       /* (n, vocab_size) */
    l2c_gpu_log_total *totals; /* (n) */
    int32_t vocab_size, n;
} l2c_gpu_logprob;

/*
 * Parts of a cache, keys or values: positions [0, n) of heads [first, first + heads), counted over (sequence, layer,
 * kv_head). cache_read writes them to `other` as (heads, n, head_size), without padding; cache_write reads them from
 * there; cache_copy copies them to the heads from `to` on.
 */
typedef struct {
    void *cache; /* (.., n_ctx, head) */
    void *other; /* of cache_read and cache_write */
    int64_t first, to;
    int32_t heads, n, n_ctx, head_size;
    int32_t kv; /* L2C_GPU_KV_F32 or _F16 */
} l2c_gpu_cache;

/* ---- Launches ------------------------------------------------------------------------------------------- */

typedef enum {
#define L2C_GPU_ENUM(name, type) L2C_GPU_KERNEL_##name,
    L2C_GPU_KERNELS(L2C_GPU_ENUM)
#undef L2C_GPU_ENUM
    L2C_GPU_N_KERNELS
} l2c_gpu_kernel;

/* How a kernel is started. Grids have one or two dimensions, blocks one. */
typedef struct {
    l2c_gpu_kernel kernel;
    uint32_t grid_x, grid_y;
    uint32_t block;  /* threads, whole warps */
    uint32_t shared; /* bytes of dynamic shared memory; above 48 KiB the host must ask for it */
} l2c_gpu_launch;

L2C_GPU_INLINE l2c_gpu_launch l2c_gpu_launch_of(l2c_gpu_kernel kernel, int32_t x, int32_t y, int32_t block,
                                                int32_t shared) {
    l2c_gpu_launch launch = {kernel, (uint32_t)x, (uint32_t)y, (uint32_t)block, (uint32_t)shared};
    return launch;
}

/* Columns of a row that a block quantizes: whole groups, 512 columns or a little more. */
L2C_GPU_INLINE int32_t l2c_gpu_columns(int32_t group) {
    return group > 0 ? l2c_gpu_pieces(512, group) * group : 512;
}

/* A block a row, or those columns of one. */
L2C_GPU_INLINE l2c_gpu_launch l2c_gpu_embed_launch(const l2c_gpu_pass *p) {
    return l2c_gpu_launch_of(L2C_GPU_KERNEL_embed, p->n, 1, L2C_GPU_BLOCK, 0);
}
L2C_GPU_INLINE l2c_gpu_launch l2c_gpu_norm_launch(const l2c_gpu_norm *p) {
    return l2c_gpu_launch_of(L2C_GPU_KERNEL_norm, p->n, 1, L2C_GPU_BLOCK, (L2C_GPU_NORM_FLOATS + 1) * 4);
}
L2C_GPU_INLINE l2c_gpu_launch l2c_gpu_quantize_launch(const l2c_gpu_quantize *p) {
    return l2c_gpu_launch_of(L2C_GPU_KERNEL_quantize, l2c_gpu_pieces(p->to.cols, l2c_gpu_columns(p->to.group)), p->n,
                             L2C_GPU_BLOCK, 0);
}
L2C_GPU_INLINE l2c_gpu_launch l2c_gpu_swiglu_launch(const l2c_gpu_swiglu *p) {
    return l2c_gpu_launch_of(L2C_GPU_KERNEL_swiglu, l2c_gpu_pieces(p->cols, l2c_gpu_columns(p->to.group)), p->n,
                             L2C_GPU_BLOCK, 0);
}
L2C_GPU_INLINE l2c_gpu_launch l2c_gpu_store_kv_launch(const l2c_gpu_pass *p) {
    return l2c_gpu_launch_of(L2C_GPU_KERNEL_store_kv, p->n, 1, L2C_GPU_BLOCK, 0);
}

/* Up to 8 rows: a warp has 8 weight rows of a float type, or a strip of 16, and there are few warps a block, so that
 * small matrices reach many multiprocessors. More rows: tiles of (weight rows, rows). */
enum {
    L2C_GPU_FEW_WARPS = 2,
    L2C_GPU_FLOAT_TILE_W = 64,  /* weight rows of a block */
    L2C_GPU_FLOAT_TILE_X = 32,  /* rows of x of a block */
    L2C_GPU_FLOAT_TILE_K = 64,  /* columns that are in shared memory at a time, each row with 16 floats behind it */
    L2C_GPU_PACKED_TILE_W = 128,
    L2C_GPU_PACKED_TILE_BYTES = 128 * (256 + 2 * 32) /* 128 (step, tile of 8 rows) at a time: q, scales, sums */
};

L2C_GPU_INLINE l2c_gpu_launch l2c_gpu_linear_launch(const l2c_gpu_linear *p) {
    int32_t packed = p->w.type >= L2C_GPU_Q8, rows = p->w.rows, kernel = L2C_GPU_KERNEL_linear_f32_8 + p->w.type;
    if (p->n <= L2C_GPU_TOKENS) {
        int32_t strips = l2c_gpu_pieces(rows, packed ? L2C_GPU_STRIP : 8);
        return l2c_gpu_launch_of((l2c_gpu_kernel)kernel, l2c_gpu_pieces(strips, L2C_GPU_FEW_WARPS), 1,
                                 L2C_GPU_FEW_WARPS * 32, 0);
    }
    if (!packed) {
        int32_t bytes = (L2C_GPU_FLOAT_TILE_W + L2C_GPU_FLOAT_TILE_X) * (L2C_GPU_FLOAT_TILE_K + L2C_GPU_LANES) * 4;
        return l2c_gpu_launch_of((l2c_gpu_kernel)(L2C_GPU_KERNEL_linear_f32 + p->w.type),
                                 l2c_gpu_pieces(rows, L2C_GPU_FLOAT_TILE_W), l2c_gpu_pieces(p->n, L2C_GPU_FLOAT_TILE_X),
                                 L2C_GPU_BLOCK, bytes);
    }
    int32_t tokens = p->w.type == L2C_GPU_Q8 && p->w.chunks == 1 && p->n > 64 ? 128 : 64;
    kernel = tokens == 128 ? (int32_t)L2C_GPU_KERNEL_linear_q8_128
                           : L2C_GPU_KERNEL_linear_q8_64 + p->w.type - L2C_GPU_Q8;
    return l2c_gpu_launch_of((l2c_gpu_kernel)kernel, l2c_gpu_pieces(rows, L2C_GPU_PACKED_TILE_W),
                             l2c_gpu_pieces(p->n, tokens), L2C_GPU_BLOCK, L2C_GPU_PACKED_TILE_BYTES);
}

/* Blocks take (row, head) pairs in turn. Scores of the longest row, max_keys positions, lie in shared memory where
 * they fit shared_limit, the most that a block may have on this card; else in p->scores, and there are as many blocks
 * as that has slots. Sets p->scores_in_global. */
L2C_GPU_INLINE int64_t l2c_gpu_attention_shared(int32_t head_size, int64_t scores) {
    /* scratch, partial sums, the query, scores */
    return (64 + 2 * L2C_GPU_BLOCK + l2c_gpu_pitch(head_size) + scores) * 4;
}
L2C_GPU_INLINE l2c_gpu_launch l2c_gpu_attention_launch(l2c_gpu_pass *p, int32_t max_keys, int32_t shared_limit) {
    int64_t pairs = (int64_t)p->n * p->n_heads, bytes = l2c_gpu_attention_shared(p->head_size, max_keys);
    p->scores_in_global = bytes > shared_limit;
    if (p->scores_in_global) {
        bytes = l2c_gpu_attention_shared(p->head_size, 0);
        if (pairs > p->score_slots) pairs = p->score_slots;
    }
    return l2c_gpu_launch_of(L2C_GPU_KERNEL_attention, (int32_t)pairs, 1, L2C_GPU_BLOCK, (int32_t)bytes);
}

/* A block a draw, or a row. */
enum { L2C_GPU_SAMPLE_BLOCK = 512, L2C_GPU_CANDIDATES = 1024 };

L2C_GPU_INLINE l2c_gpu_launch l2c_gpu_sample_launch(const l2c_gpu_sample *p) {
    return l2c_gpu_launch_of(L2C_GPU_KERNEL_sample, p->n, 1, L2C_GPU_SAMPLE_BLOCK,
                             256 + L2C_GPU_CANDIDATES * 8 + 2 * L2C_GPU_SAMPLE_BLOCK * 4);
}
L2C_GPU_INLINE l2c_gpu_launch l2c_gpu_logprob_launch(const l2c_gpu_logprob *p) {
    return l2c_gpu_launch_of(L2C_GPU_KERNEL_logprob, p->n, 1, L2C_GPU_BLOCK, 256 + 2 * L2C_GPU_BLOCK * 4);
}

/* Whether decode kernels take these layers: in one work item w1 and w3 must give the same threads the same columns. */
L2C_GPU_INLINE int32_t l2c_gpu_decode_takes(const l2c_gpu_layer *layers, int32_t n_layers) {
    for (int32_t l = 0; l < n_layers; l++)
        if ((layers[l].w1.type >= L2C_GPU_Q8) != (layers[l].w3.type >= L2C_GPU_Q8)) return 0;
    return 1;
}

/* Bytes of what a block of a decode kernel prepares of n rows of input: normed rows in float32, and int8 ones. */
L2C_GPU_INLINE int64_t l2c_gpu_decode_input_bytes(const l2c_gpu_pass *p) {
    const l2c_gpu_quantized *of[3] = {&p->xq, &p->aq, &p->hq};
    int64_t floats = (int64_t)p->n * l2c_gpu_pitch(p->dim) * 4, most = 0;
    for (int32_t i = 0; i < 3 && p->xq.q != 0; i++) {
        int64_t bytes = (int64_t)p->n * of[i]->groups * (of[i]->chunks * L2C_GPU_CHUNK + 8);
        most = bytes > most ? bytes : most;
    }
    return (floats + most + 15) / 16 * 16;
}

/* A block a multiprocessor. Sets what p says of inputs and scores; p->inputs and p->pass.scores must have room for as
 * many blocks where those do not fit shared memory, for which see its bytes. max_keys: after the last step. */
L2C_GPU_INLINE l2c_gpu_launch l2c_gpu_decode_launch(l2c_gpu_decode *p, int32_t max_keys, int32_t multiprocessors,
                                                    int32_t shared_limit) {
    int64_t fixed = 256 + L2C_GPU_OPERAND_BYTES + L2C_GPU_NORM_FLOATS * 4;
    int64_t sample = 256 + L2C_GPU_CANDIDATES * 8 + 2 * L2C_GPU_BLOCK * 4;
    int64_t attention = l2c_gpu_attention_shared(p->pass.head_size, max_keys);
    p->input_bytes = l2c_gpu_decode_input_bytes(&p->pass);
    p->inputs_in_global = fixed + p->input_bytes > shared_limit;
    p->pass.scores_in_global = attention > shared_limit;
    if (p->pass.scores_in_global) attention = l2c_gpu_attention_shared(p->pass.head_size, 0);
    int64_t bytes = fixed + (p->inputs_in_global ? 0 : p->input_bytes);
    if (attention > bytes) bytes = attention;
    if (sample > bytes) bytes = sample;
    return l2c_gpu_launch_of(p->pass.n == 1 ? L2C_GPU_KERNEL_decode_1 : L2C_GPU_KERNEL_decode_8, multiprocessors, 1,
                             L2C_GPU_BLOCK, (int32_t)bytes);
}

/* kernel: cache_read, cache_write or cache_copy. A block a head. */
L2C_GPU_INLINE l2c_gpu_launch l2c_gpu_cache_launch(l2c_gpu_kernel kernel, const l2c_gpu_cache *p) {
    return l2c_gpu_launch_of(kernel, p->heads, 1, L2C_GPU_BLOCK, 0);
}

#endif
