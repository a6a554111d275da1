/*
 * internal.h - what the .c files share and the public header does not show.
 */
#ifndef L2C_INTERNAL_H
#define L2C_INTERNAL_H

#include <stdatomic.h>

#include "kernels/kernels.h"
#include "llama2c.h"

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "llama2.c checkpoints are little-endian; this build target is not"
#endif

/* ---- status.c ------------------------------------------------------------------------------ */

/* Fills *err (which may be NULL) and returns status. */
#if defined(__GNUC__)
__attribute__((format(printf, 3, 4)))
#endif
l2c_status l2c_fail(l2c_error *err, l2c_status status, const char *format, ...);

/* ---- system/posix.c or windows.c, arena.c; wasm.c in a browser ----------------------------------- */

typedef struct {
    const unsigned char *data;
    size_t size;
    void *block; /* what to unmap; NULL when the memory is the caller's */
    size_t block_size;
    int is_file; /* pages of a file, read-only: the system can drop and read them again */
} l2c_mapping;

/* what: "checkpoint" or "tokenizer", for the message. An empty or irregular file is L2C_FORMAT. */
l2c_status l2c_file_map(const char *path, const char *what, l2c_mapping *mapping, l2c_error *err);
void l2c_file_unmap(l2c_mapping *mapping);

/* A whole file of at most `limit` bytes in memory of its own (l2c_memory_free): what becomes of the file
 * afterwards is nobody's concern. */
l2c_status l2c_file_read(const char *path, const char *what, size_t limit, unsigned char **data, size_t *size,
                         l2c_error *err);

/* These bytes will not be needed soon: where they are a file's, they leave this process's memory, and are
 * read again when asked for. */
void l2c_file_forget(const l2c_mapping *mapping, const void *data, size_t size);

/* Anonymous zeroed memory, on a cache line boundary and in huge pages where those can be had: reading
 * weights is then a quarter faster, since the processor's prefetcher does not stop at the end of
 * every 4 KiB, nor does its address translation miss there. Freed with l2c_file_unmap. */
l2c_status l2c_memory_map(size_t size, l2c_mapping *mapping);

/* Whether l2c_file_to_memory moves a file of this size; and in what pieces. */
int l2c_file_is_moved(size_t size);
enum { L2C_MOVED_PIECE = 64 << 20 };

/* Moves a mapped file of up to 1 GiB into such memory; what follows its header comes to lie on a cache
 * line. Leaves the mapping as it was when it does not return L2C_OK. */
l2c_status l2c_file_to_memory(l2c_mapping *mapping, size_t header);

/* Zeroed memory of count * size bytes on a cache line boundary, committed on first touch;
 * NULL when it cannot be had or the product overflows. Freed with l2c_memory_free. */
void *l2c_memory_zeroed(size_t count, size_t size);
void l2c_memory_free(void *memory);

/* Huge pages for this part of it, where they can be had; before it is touched. */
void l2c_memory_wish_huge(void *memory, size_t size);

/* Such memory as one block of many parts. One function lays it out: first without memory, to measure it. */
typedef struct {
    unsigned char *memory; /* NULL: only measures */
    uint64_t used;         /* UINT64_MAX once it would pass that */
} l2c_arena;

/* a * b, or UINT64_MAX for more than that. */
static inline uint64_t l2c_times(uint64_t a, uint64_t b) { return b != 0 && a > UINT64_MAX / b ? UINT64_MAX : a * b; }

/* The next part, `bytes` long and on a cache line; NULL while only measuring. Where much of it will be touched, huge
 * pages save most of the page faults and of the misses in address translation. */
void *l2c_arena_part(l2c_arena *arena, uint64_t bytes, int huge);

/* The time, as a number that nobody can foretell; 0 where there is no clock. */
uint64_t l2c_time_noise(void);

/* Another number in every process that fork() makes. */
unsigned l2c_fork_generation(void);

/* ---- system/library.c ------------------------------------------------------------------------------- */

/* A shared library by its name or path, which stays until the process ends; NULL, with the loader's words in
 * why (size), where it cannot be loaded. A symbol of it, or NULL. */
void *l2c_library_open(const char *name, char *why, size_t size);
void *l2c_library_symbol(void *library, const char *name);

/* ---- system/threads.c ------------------------------------------------------------------------------- */

/* Runs task(arg, thread, n_threads) once on each thread of the pool; the caller is thread 0. */
typedef void (*l2c_task)(void *arg, int thread, int n_threads);
void l2c_pool_run(l2c_pool *pool, l2c_task task, void *arg);

/* Within a task, by its thread number: waits until every thread of the pool is here. */
void l2c_pool_barrier(l2c_pool *pool, int thread);

/* Threads the pool was made for. */
int l2c_pool_size(const l2c_pool *pool);

/* ---- system/cpu.c ------------------------------------------------------------------------------------- */

/* The kernels of an instruction set that l2c_isa_resolve returned. */
const l2c_kernels *l2c_kernels_for(l2c_isa isa);

/* ---- model.c ------------------------------------------------------------------------------------------- */

typedef struct {
    const float *attention_norm; /* (dim) */
    const float *ffn_norm;       /* (dim) */
    l2c_matrix wq;               /* (n_heads * head_size, dim) */
    l2c_matrix wk, wv;           /* (n_kv_heads * head_size, dim) */
    l2c_matrix wo;               /* (dim, n_heads * head_size) */
    l2c_matrix w1, w3;           /* (hidden_dim, dim) */
    l2c_matrix w2;               /* (dim, hidden_dim) */
} l2c_layer;

/* Totals over a model's matrices. */
typedef struct {
    l2c_dtype dtype;  /* of all of them, or mixed */
    int as_file;      /* they lie as in a v2 file, which kernels/runq.c alone computes */
    size_t group;     /* size of the int8 activations' groups that they are multiplied with; 0: all are float32 */
    uint64_t sweep;   /* bytes that decoding a token reads, norms included */
    uint64_t packed;  /* bytes of the memory that they are packed into; 0: they stay as they lie in the file */
    uint64_t largest; /* bytes of the largest one in the file */
    uint64_t on_card; /* bytes of card memory that they would take, at most */
} l2c_matrices;

typedef struct l2c_placed l2c_placed; /* weights on a card (cuda/cuda_model.h) */

struct l2c_model {
    l2c_config config;
    l2c_matrix token_embedding; /* (vocab_size, dim) */
    l2c_layer *layers;          /* (n_layers); NULL: it has no weights, only its header was read */
    const float *final_norm;    /* (dim) */
    l2c_matrix classifier;      /* (vocab_size, dim); the embedding itself when shared */
    double *rope_divisors;      /* (head_size / 2) of RoPE's frequencies; NULL: all 1 */
    _Atomic(float *) *rope;     /* (seq_len / L2C_ROPE_BLOCK, rounded up) cosines and sines (rope.c) */
    l2c_matrices matrices;
    uint64_t file_bytes;
    int moved;                  /* the file went into memory of its own as it is */
    size_t tensors_start;       /* where they begin in the file */
    l2c_mapping mapping;        /* the file; nothing once the weights are packed */
    l2c_mapping packed;         /* packed weights and the norms, or nothing */
    l2c_placed *placed;         /* they are on a card, and matrices and norms here have no data; or NULL */
    uint64_t fingerprint;       /* of a placed model */
};

/* L2C_ARG, for what needs the weights of a model that was opened for its header. */
l2c_status l2c_model_fail_no_weights(l2c_error *err);

/* files/checkpoint.c: reads a llama2.c file's header and finds its tensors, for an empty model, whose matrices then
 * lie in `data`. */
l2c_status l2c_checkpoint_load_model(l2c_model *model, const unsigned char *data, size_t size, l2c_error *err);

/* ---- rope.c -------------------------------------------------------------------------------------------- */

/* A block is cosines (L2C_ROPE_BLOCK, head_size / 2), then sines, of so many positions; NULL until needed. */
enum { L2C_ROPE_BLOCK = 256 };

l2c_status l2c_rope_create(l2c_model *model, l2c_error *err);
void l2c_rope_free(l2c_model *model);

/* Sees to it that a position's block is there; L2C_OK or L2C_NOMEM. From any thread. */
l2c_status l2c_rope_extend(const l2c_model *model, int32_t position);

/* The cosines of a position (head_size / 2); its sines are L2C_ROPE_BLOCK * head_size / 2 floats on. */
static inline const float *l2c_rope_at(const l2c_model *m, int32_t position) {
    size_t row = (size_t)position % L2C_ROPE_BLOCK;
    const float *block = atomic_load_explicit(&m->rope[position / L2C_ROPE_BLOCK], memory_order_relaxed);
    return block + row * ((size_t)m->config.head_size / 2);
}

/* ---- files/pack.c -------------------------------------------------------------------------------------------- */

/* Decides what each matrix becomes for a dtype (auto: the nearest to what it is) and sets `matrices` and config.dtype.
 * A v2 file whose groups the packed kernels do not take stays as it lies. L2C_UNSUPPORTED for a dtype that the file
 * cannot give. */
l2c_status l2c_model_plan(l2c_model *model, l2c_dtype dtype, l2c_error *err);

/* Carries the plan out: packs the matrices into memory of their own and unmaps the file. Does nothing if all stay as
 * they are. Uses the pool's threads, or this one if pool is NULL. Plans anew, and fails as l2c_model_plan does. */
l2c_status l2c_model_pack(l2c_model *model, l2c_dtype dtype, l2c_pool *pool, l2c_error *err);

/* The same without keeping anything: hands each matrix, as it is to be computed with, to `take`, in the order of
 * EACH_MATRIX; it is there for that call only. Leaves the model's matrices without data, the norms where they were. */
typedef l2c_status l2c_matrix_taker(void *arg, const l2c_matrix *matrix, l2c_error *err);
l2c_status l2c_model_hand_over(l2c_model *model, l2c_dtype dtype, l2c_pool *pool, l2c_matrix_taker *take, void *arg,
                               l2c_error *err);

/* Calls visit for every matrix of the model; a shared classifier is the embedding. */
#define EACH_MATRIX(m, visit)                                              \
    do {                                                                   \
        visit(&(m)->token_embedding);                                      \
        for (int32_t l = 0; l < (m)->config.n_layers; l++) {               \
            l2c_layer *w = &(m)->layers[l];                                \
            visit(&w->wq); visit(&w->wk); visit(&w->wv); visit(&w->wo);    \
            visit(&w->w1); visit(&w->w2); visit(&w->w3);                   \
        }                                                                  \
        if (!(m)->config.shared_classifier) visit(&(m)->classifier);       \
    } while (0)

/* ---- fingerprint.c ----------------------------------------------------------------------------------------- */

/* l2c_model_fingerprint in steps: the shape and norms, the matrices in the order of EACH_MATRIX, the end. */
enum { L2C_FINGERPRINT_LANES = 4 };
typedef struct {
    uint64_t lanes[L2C_FINGERPRINT_LANES];
} l2c_fingerprint;

l2c_fingerprint l2c_fingerprint_begin(const l2c_model *model);
void l2c_fingerprint_add(l2c_fingerprint *fingerprint, const l2c_matrix *matrix);
uint64_t l2c_fingerprint_end(const l2c_fingerprint *fingerprint);

/* ---- files/quantize.c -------------------------------------------------------------------------------------- */

/* A packed matrix of this shape, without its data; and the bytes of any matrix. */
l2c_matrix l2c_matrix_packed(l2c_weights type, size_t rows, size_t cols, size_t group);
size_t l2c_matrix_bytes(const l2c_matrix *matrix);

/* Fills rows [begin, end) of a packed or float32 matrix, whose data lie at `memory`, from another;
 * L2C_NONFINITE where that holds NaN or infinity and this one has no value for it. */
l2c_status l2c_matrix_pack(const l2c_matrix *to, unsigned char *memory, const l2c_matrix *from, size_t begin,
                           size_t end);

/* x (cols) = row `row` of a matrix of any type, in float32. */
void l2c_matrix_row(float *x, const l2c_matrix *matrix, size_t row);

/* ---- session.c --------------------------------------------------------------------------------------- */

typedef struct l2c_backend l2c_backend;

struct l2c_session {
    const l2c_model *model;
    const l2c_backend *backend;
    void *state; /* the backend's own: threads, caches, scratch, logits */
    int32_t n_sequences, n_ctx;
    int32_t max_rows; /* of a call; the backend's */

    int32_t *lengths; /* (n_sequences) positions that are in the cache */
    int32_t *next;    /* (n_sequences) scratch of the checks on rows */

    size_t n_logits;     /* rows of the last call that have logits */
    unsigned char *used; /* (max_rows) of those, the ones that were sampled, and are logits no more */

    float *attention; /* NULL but within l2c_session_attention: (n_layers, n_heads, position + 1) of the one row */

    atomic_int busy;
    atomic_int cancel;    /* asked to stop, and no call has yet */
    l2c_session *partner; /* whose request to stop counts here as well: draft and target while they speculate */
};

/* Whether whoever computes should stop: somebody asked for it, and no call has answered yet. */
static inline int l2c_session_stopping(const l2c_session *s) {
    return atomic_load_explicit(&s->cancel, memory_order_relaxed) ||
           (s->partner != NULL && atomic_load_explicit(&s->partner->cancel, memory_order_relaxed));
}

/* What a forward pass that stopped returns. Here, since session.c calls backends and they do not call back. */
static inline l2c_status l2c_session_fail_cancelled(l2c_error *err) {
    return l2c_fail(err, L2C_CANCELLED, "the forward pass was cancelled");
}

/* Whether a token is one of n ids, such as those that end a story. */
static inline int l2c_is_among(const int32_t *ids, size_t n, int32_t token) {
    for (size_t i = 0; i < n; i++)
        if (ids[i] == token) return 1;
    return 0;
}

int l2c_session_enter(l2c_session *session); /* 0: another thread is in it */
void l2c_session_leave(l2c_session *session);

/* A call that makes several sweeps returns after the one under way. From any thread. */
void l2c_session_hurry(l2c_session *session);

/* What comes before rows are computed, for callers that hold the session: checks them, and forgets what they will
 * overwrite. L2C_CANCELLED where somebody asked to stop. */
l2c_status l2c_session_begin(l2c_session *session, const l2c_row *rows, size_t n_rows, l2c_error *err);

/* For callers that hold the session (enter returned 1). A call that finds a request to stop returns L2C_CANCELLED and
 * leaves the request standing. */
l2c_status l2c_session_forward_held(l2c_session *session, const l2c_row *rows, size_t n_rows, l2c_error *err);
l2c_status l2c_session_sample_held(l2c_session *session, size_t i, l2c_sampler *sampler, const int32_t *history,
                                   size_t n_history, l2c_draw_options *options, int32_t *token, l2c_error *err);

l2c_status l2c_session_fail_busy(l2c_error *err);

/* ---- sampler.c --------------------------------------------------------------------------------------- */

typedef struct {
    float p;
    int32_t token;
} l2c_candidate;

/* L2C_ARG for a sampler that cannot pick from n tokens. */
l2c_status l2c_sampler_check(const l2c_sampler *sampler, int32_t n, l2c_error *err);

/* Picks from logits (n), which it uses up unless it returns L2C_ARG; candidates (2 n) are scratch. */
l2c_status l2c_sampler_pick(l2c_sampler *sampler, const l2c_kernels *kernels, float *logits, int32_t n,
                            const int32_t *history, size_t n_history, l2c_candidate *candidates, int32_t *token,
                            l2c_error *err);

/* The coin, in [0, 1), that such a choice tosses; L2C_NONFINITE for logits that nothing can be picked from. */
float l2c_sampler_coin(l2c_sampler *sampler);
static inline float l2c_sampler_toss(l2c_sampler *s) { /* 0, and none, where the likeliest token is taken */
    return s->temperature > 0.0f ? l2c_sampler_coin(s) : 0.0f;
}
l2c_status l2c_sampler_fail_unusable(l2c_error *err);

/* ---- penalties.c ------------------------------------------------------------------------------------- */

/* Whether a sampler changes logits before it looks at them. */
static inline int l2c_sampler_adjusts(const l2c_sampler *s) {
    return s->n_biases > 0 || s->repetition_penalty != 1.0f || s->presence_penalty != 0.0f || s->frequency_penalty != 0.0f;
}

/* Makes these changes, as llama2c.h has them, to logits (n); counts (n) are scratch. Tokens of the history that are
 * none count for nothing. */
void l2c_sampler_adjust(const l2c_sampler *sampler, float *logits, int32_t n, const int32_t *history, size_t n_history,
                        int32_t *counts);

/* ---- draws.c ----------------------------------------------------------------------------------------- */

/* Logits in this process's memory, and what choosing from them needs. */
typedef struct {
    const l2c_kernels *kernels;
    l2c_pool *pool;
    size_t vocab_size;
    float *logits;             /* (rows, vocab_size) */
    l2c_candidate *candidates; /* (threads, 2, vocab_size) scratch */
} l2c_chooser;

/* Fills token and status of n draws, those that `which` names or, with NULL, the first, and what their options want.
 * err is that of a draw alone. */
void l2c_choose(const l2c_chooser *chooser, l2c_draw *draws, l2c_draw_options *options, const size_t *which, size_t n,
                l2c_error *err);

/* ---- logprob.c --------------------------------------------------------------------------------------- */

/* What turns a row of logits into log-probabilities. */
typedef struct {
    double largest, log_sum;
} l2c_log_total;

l2c_log_total l2c_logprob_total(const l2c_kernels *kernels, const float *logits, size_t n);

/* Of the token that has this logit; NaN where the row holds NaN or +infinity, or nothing but -infinity. */
static inline double l2c_logprob_of(l2c_log_total total, float logit) {
    return (double)logit - total.largest - total.log_sum;
}

/* Writes the n_top (at most n) likeliest tokens, likeliest first; of equals, the smaller id first. */
void l2c_logprob_top(const l2c_kernels *kernels, l2c_log_total total, const float *logits, size_t n, l2c_logprob *top,
                     size_t n_top);

#endif
