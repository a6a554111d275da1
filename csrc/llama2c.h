/*
 * llama2c.h - Llama inference as a small C library.
 *
 *     #include <stdio.h>
 *     #include "llama2c.h"
 *
 *     int main(void) {
 *         l2c_pool *pool = NULL;
 *         l2c_model *model = NULL;
 *         l2c_tokenizer *tokenizer = NULL;
 *         l2c_session *session = NULL;
 *         l2c_error err;
 *         int failed = l2c_pool_create(2, &pool, &err) ||
 *                      l2c_model_open("stories15M.bin", L2C_DTYPE_AUTO, pool, &model, &err) ||
 *                      l2c_tokenizer_open("tokenizer.bin", 0, &tokenizer, &err) ||
 *                      l2c_session_create(model, pool, 1, 0, L2C_KV_FLOAT32, L2C_ISA_AUTO, &session, &err);
 *         if (!failed) {
 *             const int32_t bos = l2c_tokenizer_bos(tokenizer), eos = l2c_tokenizer_eos(tokenizer);
 *             l2c_sampler sampler;
 *             l2c_sampler_init(&sampler, 42);
 *             l2c_row row = {0, 0, bos, 1}; // sequence, position, token, want_logits
 *             while (row.position < l2c_model_config(model)->seq_len) {
 *                 failed = l2c_session_forward(session, &row, 1, &err) ||
 *                          l2c_session_sample(session, 0, &sampler, NULL, 0, &row.token, &err);
 *                 if (failed || row.token == bos || row.token == eos) break;
 *                 const char *piece;
 *                 size_t length;
 *                 l2c_tokenizer_piece(tokenizer, row.token, &piece, &length);
 *                 fwrite(piece, 1, length, stdout);
 *                 row.position++;
 *             }
 *         }
 *         if (failed) fprintf(stderr, "%s\n", err.message);
 *         l2c_session_free(session);
 *         l2c_tokenizer_free(tokenizer);
 *         l2c_model_free(model);
 *         l2c_pool_free(pool);
 *         return failed;
 *     }
 *
 * In a shared library of these sources, built with -fvisibility=hidden -DL2C_SHARED, exactly what is declared here can
 * be seen from outside.
 *
 * Rules that hold for every function below:
 *  - A function that can fail returns an l2c_status and fills *err when it is not L2C_OK. err may
 *    be NULL. On failure, output pointers are left as they were and nothing is leaked.
 *  - Other pointers must not be NULL unless said so. Every _free accepts NULL.
 *  - Nothing prints, exits or keeps global state (a count of forks excepted). The caller's rounding mode
 *    and flushing of denormals are set aside while a function computes. Different objects may be used from different
 *    threads at once. What a single object allows is said where it is declared.
 *  - Objects that are made from others (a session from a model and a pool) borrow them: those must
 *    outlive its last use. The order of freeing does not matter.
 */
#ifndef LLAMA2C_H
#define LLAMA2C_H

#include <stddef.h>
#include <stdint.h>

#define L2C_VERSION "0.1.0" /* of pyllama2c, whose engine this is */

#ifdef __cplusplus
extern "C" {
#endif
#ifdef L2C_SHARED
#pragma GCC visibility push(default)
#endif

/* cdef-begin: pyllama2c/_build.py hands the lines from here to cdef-end to cffi as they are. */

/* ---- Statuses and errors ------------------------------------------------------------------ */

typedef enum {
    L2C_OK = 0,
    L2C_IO,          /* the operating system refused; err->sys_errno says why */
    L2C_FORMAT,      /* a file is not what it should be */
    L2C_NOMEM,       /* memory ran out */
    L2C_ARG,         /* an argument is not valid */
    L2C_RANGE,       /* a position is past the context, or not the next one of its sequence */
    L2C_BUSY,        /* the session is being used by another thread */
    L2C_UNSUPPORTED, /* valid, but not by this build or machine */
    L2C_CANCELLED,   /* l2c_session_cancel was called */
    L2C_NONFINITE,   /* the logits hold NaN or infinity, so there is nothing to sample from */
    L2C_FULL,        /* a batch has no sequence left for another story */
    L2C_DEVICE       /* a graphics card or its driver failed, or was used after fork() */
} l2c_status;

/* Owned by the caller; message is one line without a final newline. */
typedef struct {
    l2c_status status;
    int sys_errno;
    char message[256];
} l2c_error;

/* "out of memory" and the like; never NULL. */
const char *l2c_status_text(l2c_status status);

/* ---- Instruction sets --------------------------------------------------------------------- */

/* Which kernels compute. All but runq give the same bits; they differ in speed. */
typedef enum {
    L2C_ISA_AUTO = 0, /* the fastest that this machine and its operating system run */
    L2C_ISA_SCALAR,   /* plain C: the oracle for the others */
    L2C_ISA_AVX2,     /* AVX2 + FMA + F16C */
    L2C_ISA_AVX512,   /* AVX-512 F, BW, DQ, VL, VNNI */
    L2C_ISA_NEON,     /* 64-bit ARM */
    L2C_ISA_RUNQ,     /* never automatic: runq.c's own arithmetic, in plain C; see L2C_DTYPE_FILE */
    L2C_ISA_SIMD128,  /* WebAssembly's 128-bit SIMD */
    L2C_ISA_AVXVNNI,  /* AVX2 and AVX-VNNI, for processors without AVX-512; gcc 11, clang 12 or later */
    L2C_ISA_DOTPROD,  /* 64-bit ARM with FEAT_DotProd; gcc 10, clang 16 or later */
    L2C_ISA_I8MM      /* the same with FEAT_I8MM */
} l2c_isa;

/* Resolves L2C_ISA_AUTO, and refuses (L2C_UNSUPPORTED) what this machine cannot run. */
l2c_status l2c_isa_resolve(l2c_isa wanted, l2c_isa *isa, l2c_error *err);

/* Writes the CPU features that the choice looks at, space separated, NUL terminated. */
void l2c_cpu_features(char *text, size_t size);

/* ---- Graphics cards: NVIDIA's, through the driver that is installed; any number of threads ---- */

typedef struct {
    char name[128];
    char pci[32];       /* address on the bus: "0000:3b:00.0" */
    int32_t number;     /* among those that the driver shows this process */
    int32_t driver;     /* the newest CUDA that the driver knows: 12040 is 12.4 */
    int32_t capability; /* compute capability: 89 is 8.9 */
    int32_t processors; /* streaming multiprocessors */
    int32_t exclusive;  /* 1: one process at a time may use it; 2: none may */
    uint64_t memory;    /* bytes */
} l2c_device_info;

/* Loads the driver (`library`, or NULL for the system's) and counts the cards that it shows this process.
 * L2C_UNSUPPORTED where there is no driver, or one too old; L2C_DEVICE where it does not work. */
l2c_status l2c_device_count(const char *library, int32_t *driver, int32_t *count, l2c_error *err);

/* What a card is; takes none of its memory. */
l2c_status l2c_device_describe(const char *library, int32_t number, l2c_device_info *info, l2c_error *err);

typedef struct l2c_device l2c_device;

/*
 * Opens a card: takes part in the process's primary context on it, which PyTorch and others share. Models, sessions and
 * the caller each keep it open. L2C_UNSUPPORTED for a card below compute capability 7.5. After an L2C_DEVICE that ends
 * the context ("a kernel failed"), all that is on the card is lost: every call says so, and all can still be freed. A
 * child of fork() cannot use its parent's cards (L2C_DEVICE).
 */
l2c_status l2c_device_open(const char *library, int32_t number, l2c_device **device, l2c_error *err);

const l2c_device_info *l2c_device_about(const l2c_device *device);

/* Bytes of its memory that are free just now, for any process. */
l2c_status l2c_device_free_memory(l2c_device *device, uint64_t *bytes, l2c_error *err);

/* Compiles kernels, PTX with a NUL behind its `size` bytes, for this card, which takes seconds: *image, which belongs to
 * the device until the next call, can be kept and loaded by this driver on cards of this capability. */
l2c_status l2c_device_compile(l2c_device *device, const void *ptx, size_t size, const void **image, size_t *image_size,
                              l2c_error *err);

/* Loads the kernels, once, before a model is opened on the device: what l2c_device_compile made, or PTX. L2C_DEVICE
 * for what is neither, or lacks a kernel. */
l2c_status l2c_device_load(l2c_device *device, const void *image, l2c_error *err);

/* Bytes of weights that went to the card so far, for a look from another thread at how far a model is. */
uint64_t l2c_device_uploaded(const l2c_device *device);

void l2c_device_free(l2c_device *device);

/* ---- Models: immutable after open, shared by any number of threads ------------------------- */

typedef enum {
    L2C_FILE_LLAMA2C = 0, /* llama2.c's .bin */
    L2C_FILE_GGUF
} l2c_file;

typedef struct {
    int32_t dim;        /* width of the residual stream */
    int32_t hidden_dim; /* width of the feed-forward network */
    int32_t n_layers;
    int32_t n_heads;    /* query heads */
    int32_t n_kv_heads; /* key and value heads; divides n_heads */
    int32_t head_size;  /* of queries, keys and values; n_heads * head_size need not be dim */
    int32_t vocab_size;
    int32_t seq_len;           /* positions the model was trained for */
    float rope_theta;          /* RoPE turns pair j by position * rope_theta^(-2j / head_size) */
    int32_t rope_scaled;       /* 1: and these are divided by factors of the file (Llama 3, linear) */
    float norm_eps;            /* what RMSNorm adds to the mean square */
    int32_t file;              /* l2c_file: the format, and */
    int32_t version;           /* its version: 0, 1 or 2 of llama2.c's, 2 or 3 of GGUF */
    int32_t shared_classifier; /* 1: the classifier is the token embedding */
    int32_t group_size;        /* of a llama2.c v2 file: int8 values that share a scale; else 0 */
    int32_t dtype;             /* l2c_dtype of the weights that are computed with; never auto */
} l2c_config;

/* What weights are computed with. */
typedef enum {
    L2C_DTYPE_AUTO = 0, /* what the file holds */
    L2C_DTYPE_FLOAT32,
    L2C_DTYPE_INT8, /* groups of 32 that share a float32 scale; a v2 file's own groups */
    L2C_DTYPE_INT4, /* groups of 32 that share a float16 scale, and a minimum where a GGUF file has it */
    L2C_DTYPE_MIXED, /* differs between matrices, as a GGUF file has it; nothing to ask for */
    L2C_DTYPE_FILE  /* int8 of a llama2.c v2 file as they lie in it, not packed: what L2C_ISA_RUNQ computes,
                     * and it alone. config.dtype is then L2C_DTYPE_INT8 */
} l2c_dtype;

typedef struct l2c_model l2c_model;
typedef struct l2c_pool l2c_pool;

/*
 * Opens a llama2.c checkpoint or a GGUF file of architecture `llama` and checks every size in it
 * before use. Float32 files of up to 1 GiB are copied into huge pages where the system has them; all
 * others are mapped read-only. Format and version are found from the content: GGUF v2 and v3, llama2.c
 * v0 (no magic), v1 (float32) or v2 (int8 groups). Weights that are not float32, or not to be, are
 * packed for the kernels in memory of their own, on the threads of `pool` (NULL: on this one), and the file
 * is closed again. The pool is not kept.
 *
 * L2C_DTYPE_AUTO takes each matrix of a GGUF file as it is: F32, F16 and BF16 become float32, Q8_0
 * int8, Q4_0 and Q4_1 int4 without loss, Q4_K int4 but for scales and minima rounded to float16; Q5_0,
 * Q5_1, Q5_K and Q6_K become int8, which adds its rounding to theirs. Other dtypes make all matrices
 * alike, though int4 leaves Q4_0, Q4_1 and Q4_K as they are. L2C_UNSUPPORTED names the type, tensor or
 * key of a GGUF model that this engine does not compute (another architecture, biases, experts,
 * sliding windows, ...).
 *
 * A llama2.c v2 file whose groups do not divide hidden_dim (or are not a multiple of 4, at most 512) is accepted,
 * and computed in plain C with runq.c's own arithmetic (kernels/runq.c says how). float32 of a v2
 * file is L2C_UNSUPPORTED.
 * A mapped file must not be truncated while the model is open: the operating system would answer
 * a read past its end with SIGBUS.
 */
l2c_status l2c_model_open(const char *path, l2c_dtype dtype, l2c_pool *pool, l2c_model **model, l2c_error *err);

/* The same from memory, aligned to 4 bytes, that the caller keeps unchanged until the model is
 * freed. */
l2c_status l2c_model_open_memory(const void *data, size_t size, l2c_dtype dtype, l2c_pool *pool,
                                 l2c_model **model, l2c_error *err);

/*
 * What l2c_model_open would make of a file, from its header alone: a model without weights. All that is told of a
 * model, its fingerprint excepted (0), and what its sessions would take is as if it had been opened;
 * l2c_session_create and l2c_model_quantize refuse it (L2C_ARG). Fails as l2c_model_open does, but for weights that
 * cannot be quantized, since it reads none. Takes memory for the list of tensors only, and closes the file.
 */
l2c_status l2c_model_open_header(const char *path, l2c_dtype dtype, l2c_model **model, l2c_error *err);
l2c_status l2c_model_open_header_memory(const void *data, size_t size, l2c_dtype dtype, l2c_model **model,
                                        l2c_error *err);

/*
 * The same with the weights on a card, where the model's sessions then are. They go there matrix by matrix and are not
 * kept here. What holds float16 or bfloat16 values only is kept in 16 bits there; the results are the bits of float32.
 * Computed as llama2.c's runq does (L2C_DTYPE_FILE, and int8 groups that are not packed): L2C_UNSUPPORTED. L2C_NOMEM
 * where the card has no room.
 */
l2c_status l2c_model_open_on(l2c_device *device, const char *path, l2c_dtype dtype, l2c_pool *pool, l2c_model **model,
                             l2c_error *err);
l2c_status l2c_model_open_memory_on(l2c_device *device, const void *data, size_t size, l2c_dtype dtype, l2c_pool *pool,
                                    l2c_model **model, l2c_error *err);

/* The same model with int8 or int4 weights, quantized from a float32 one, which it does not keep. */
l2c_status l2c_model_quantize(const l2c_model *from, l2c_dtype dtype, l2c_pool *pool, l2c_model **model,
                              l2c_error *err);

const l2c_config *l2c_model_config(const l2c_model *model);

/* A number of the shape, the norms and the weights that are computed with: the same for the same file and
 * dtype on every machine, another one (but for a chance of 2^-64) where any of them differs. Reads all
 * weights, at some 10 GB a second once they are in memory: ask once, and keep it. */
uint64_t l2c_model_fingerprint(const l2c_model *model);

/* Number of parameters; bytes that the weights are held in; bytes of them that decoding one token reads. */
uint64_t l2c_model_parameters(const l2c_model *model);
uint64_t l2c_model_bytes(const l2c_model *model);
uint64_t l2c_model_sweep_bytes(const l2c_model *model);

/* Bytes of card memory that the weights would take on a card, at most, or take. */
uint64_t l2c_model_device_bytes(const l2c_model *model);

/* Bytes of the file; the most of it that is held in memory, besides the weights, at any time during opening. */
uint64_t l2c_model_file_bytes(const l2c_model *model);
uint64_t l2c_model_opening_bytes(const l2c_model *model);

/* 1: the weights stay in the mapped file (or the caller's memory), whose pages the system may drop and read again. */
int l2c_model_is_mapped(const l2c_model *model);

void l2c_model_free(l2c_model *model);

/* ---- GGUF files: metadata and tensors; immutable after open, shared by any number of threads ----- */

typedef struct l2c_gguf l2c_gguf;

/* Types of metadata, as the file numbers them. */
typedef enum {
    L2C_GGUF_UINT8 = 0, L2C_GGUF_INT8, L2C_GGUF_UINT16, L2C_GGUF_INT16, L2C_GGUF_UINT32, L2C_GGUF_INT32,
    L2C_GGUF_FLOAT32, L2C_GGUF_BOOL, L2C_GGUF_STRING, L2C_GGUF_ARRAY, L2C_GGUF_UINT64, L2C_GGUF_INT64,
    L2C_GGUF_FLOAT64
} l2c_gguf_type;

/* Names are printable ASCII, not NUL terminated, and belong to the file, as do all strings and data. */
typedef struct {
    const char *name;
    size_t name_length;
    int32_t type;     /* l2c_gguf_type of the value, or of an array's elements; never L2C_GGUF_ARRAY */
    int32_t is_array;
    uint64_t count;   /* elements; 1 where it is no array */
} l2c_gguf_key;

typedef struct {
    const char *name;
    size_t name_length;
    const char *type; /* "F32", "Q4_1", ...; NUL terminated */
    int32_t type_number;
    int32_t n_dims;   /* 1 to 4 */
    uint64_t dims[4]; /* dims[0] values lie side by side; 1 from n_dims on */
    uint64_t offset;  /* of the data, in the file */
    uint64_t bytes;
    const void *data;
} l2c_gguf_tensor;

/*
 * Opens a GGUF file of version 2 or 3, little-endian, of any architecture. Everything in it is checked
 * before use: every count, length, offset and product against the size of the file, in 64 bits; names
 * are unique; tensors lie within the file, aligned, and add up to no more than it holds. The contents
 * of strings are not checked: they may be no UTF-8, or hold NUL. Arrays of arrays are L2C_UNSUPPORTED.
 * Memory: some 40 bytes a key, 100 a tensor, and 8 for 16 strings of an array.
 */
l2c_status l2c_gguf_open(const char *path, l2c_gguf **gguf, l2c_error *err);

/* The same from memory that the caller keeps unchanged until it is freed. */
l2c_status l2c_gguf_open_memory(const void *data, size_t size, l2c_gguf **gguf, l2c_error *err);

int32_t l2c_gguf_version(const l2c_gguf *gguf);

/* Keys and tensors by number, in order of their names; NULL past the last. The number of a name, or -1. */
const l2c_gguf_key *l2c_gguf_key_at(const l2c_gguf *gguf, size_t i);
const l2c_gguf_tensor *l2c_gguf_tensor_at(const l2c_gguf *gguf, size_t i);
int64_t l2c_gguf_find_key(const l2c_gguf *gguf, const char *name);
int64_t l2c_gguf_find_tensor(const l2c_gguf *gguf, const char *name);

/*
 * Element i of a key's value (0 where it is no array): an integer of any size or a bool; a number, which
 * may be one as well; a string. L2C_RANGE: no such key or element; L2C_ARG: it is of another type;
 * L2C_FORMAT: it is more than int64_t holds.
 */
l2c_status l2c_gguf_integer(const l2c_gguf *gguf, size_t key, uint64_t i, int64_t *value, l2c_error *err);
l2c_status l2c_gguf_number(const l2c_gguf *gguf, size_t key, uint64_t i, double *value, l2c_error *err);
l2c_status l2c_gguf_string(const l2c_gguf *gguf, size_t key, uint64_t i, const char **bytes, size_t *length,
                           l2c_error *err);

/* x (dims[0]) = row `row` of a tensor, of which there are dims[1] * dims[2] * dims[3], in float32.
 * L2C_UNSUPPORTED for a type that this engine cannot read, L2C_RANGE without such a tensor or row. */
l2c_status l2c_gguf_tensor_row(const l2c_gguf *gguf, size_t i, uint64_t row, float *x, l2c_error *err);

void l2c_gguf_free(l2c_gguf *gguf);

/* ---- Worker pool: shared by sessions; one forward pass runs in it at a time ------------------ */

/*
 * n_threads counts the caller of l2c_session_forward, so 1 starts no thread. 1 to 256.
 * Survives fork(): the child starts workers of its own at the next forward pass.
 */
l2c_status l2c_pool_create(int32_t n_threads, l2c_pool **pool, l2c_error *err);
void l2c_pool_free(l2c_pool *pool);

/* ---- Sampler: a plain struct of the caller's, copied and saved as it likes -------------------- */

/* What is added to a token's logit: any finite number, or minus infinity, which forbids the token. */
typedef struct {
    int32_t token;
    float value;
} l2c_logit_bias;

/*
 * Logits change in this order, each operation rounded to float32, whatever the instruction set:
 *     x += value                                     for each of the biases, in their order
 *     x = x > 0 ? x / repetition : x * repetition    for each token of the history, once (CTRL, Keskar et al. 2019)
 *     x -= frequency * count; x -= presence          for each token of the story, which it has `count` times
 * The story is the history from n_prompt on. Then comes temperature, then min_p, top_k and top_p. What falls below
 * float32's range is minus infinity, which forbids the token; what exceeds it is L2C_NONFINITE.
 */
typedef struct {
    float temperature;        /* 0: greedy */
    float top_p;              /* nucleus, 0 to 1; both 0 and 1 are off, as in llama2.c */
    int32_t top_k;            /* keep the k most probable; 0: off */
    float min_p;              /* keep p >= min_p * largest p; 0: off */
    float repetition_penalty; /* 1: off */
    float presence_penalty;   /* 0: off; below 0, what the story has becomes likelier */
    float frequency_penalty;  /* the same */
    size_t n_prompt;          /* tokens of the history before the story; a batch sets it itself */
    const l2c_logit_bias *biases; /* (n_biases) the caller's, there as long as the sampler is used */
    size_t n_biases;          /* at most vocab_size */
    uint64_t rng_state;       /* xorshift64*, as llama2.c; never 0 */
} l2c_sampler;

/* llama2.c's defaults: temperature 1, top_p 0.9, the rest off. Seed 0 stands for a fixed
 * non-zero state, since xorshift never leaves 0. */
void l2c_sampler_init(l2c_sampler *sampler, uint64_t seed);

/* ---- Sessions: KV cache, scratch, logits; one thread at a time ------------------------------- */

enum { L2C_MAX_ROWS = 256, L2C_MAX_DEVICE_ROWS = 1024 }; /* rows of one forward call; on a graphics card */

/* One token at one position of one sequence. */
typedef struct {
    int32_t sequence;
    int32_t position; /* at most the sequence's length; a smaller one cuts the sequence there */
    int32_t token;
    int32_t want_logits; /* not 0: keep this row's logits */
} l2c_row;

typedef struct l2c_session l2c_session;

/* What keys and values are kept in: float32 as they are, or half the memory, rounded to float16 (nearest
 * even). Their products and sums are float32 either way. */
typedef enum { L2C_KV_FLOAT32 = 0, L2C_KV_FLOAT16 } l2c_kv;

/*
 * n_sequences independent sequences of at most n_ctx positions (0: the model's seq_len).
 * Key and value caches are committed by the operating system as positions are used.
 * L2C_ISA_RUNQ takes a model opened with L2C_DTYPE_FILE and a float32 cache (else L2C_UNSUPPORTED).
 */
l2c_status l2c_session_create(const l2c_model *model, l2c_pool *pool, int32_t n_sequences, int32_t n_ctx,
                              l2c_kv kv, l2c_isa isa, l2c_session **session, l2c_error *err);

/* Bytes that such a session takes when it is full, with a pool of n_threads, and the model's table of angles for its
 * positions, without the rounding of that table up to 256 positions; UINT64_MAX when that does not fit 64 bits, or
 * makes no sense. Parts of a session begin on cache lines: of 64 positions each takes as much as of any other 64. */
uint64_t l2c_session_bytes(const l2c_model *model, int32_t n_sequences, int32_t n_ctx, l2c_kv kv, int32_t n_threads);

/* Bytes of card memory that a session of such a model would take there, with room for n_rows rows a call (0: the least
 * that it makes do with); a little more than on most cards. Of 64 positions each takes as much as of any other 64;
 * UINT64_MAX as above. */
uint64_t l2c_session_device_bytes(const l2c_model *model, int32_t n_sequences, int32_t n_ctx, l2c_kv kv, int32_t n_rows);

/* How many rows a forward call of this session may have: L2C_MAX_ROWS; on a card up to L2C_MAX_DEVICE_ROWS, fewer where
 * its memory is short, but 64 at least. */
int32_t l2c_session_max_rows(const l2c_session *session);

/*
 * The forward pass: feeds 1 to l2c_session_max_rows rows through the model in one sweep over the weights.
 * Rows of one sequence must be in rising order of position, without gaps. A row's result is the
 * same bits whatever the other rows, the number of threads and the instruction set.
 * L2C_CANCELLED, after l2c_session_cancel: what the call would have overwritten is no longer cached.
 */
l2c_status l2c_session_forward(l2c_session *session, const l2c_row *rows, size_t n_rows,
                               l2c_error *err);

/*
 * l2c_session_forward of one row, which also copies what that row attends to: weights (n_layers, n_heads,
 * row->position + 1), the very floats by which each head sums the values of those positions. Other calls pay nothing
 * for it. L2C_UNSUPPORTED on a graphics card, before anything is done; after any failure weights mean nothing.
 */
l2c_status l2c_session_attention(l2c_session *session, const l2c_row *row, float *weights, l2c_error *err);

/* Logits (vocab_size) of the i-th row of the last forward call that wanted them; NULL if there is
 * no such row, it is used up, or the card that it is on is lost. Rows lie one behind the other. The caller may change them before sampling; valid until the next
 * forward call, or the row is sampled. */
float *l2c_session_logits(l2c_session *session, size_t i);

/*
 * Picks a token from logits row i, by llama2.c's rule and with one coin unless temperature is 0.
 * history (n_history ids, may be NULL) is what the penalties look at. Uses up the row, unless it fails
 * with L2C_ARG: sampling, scoring or reading it again is an error. Where l2c_session_logits gave the row before, that
 * memory then holds what was chosen by, until the next forward call: e^(x - largest) of the changed logits x, or, where
 * the largest was taken for want of a coin's say, the changed logits.
 */
l2c_status l2c_session_sample(l2c_session *session, size_t i, l2c_sampler *sampler,
                              const int32_t *history, size_t n_history, int32_t *token,
                              l2c_error *err);

/* One token to pick: by `sampler` from logits row `row`, as l2c_session_sample does; what came of it. */
typedef struct {
    size_t row;
    l2c_sampler *sampler;   /* of no other draw, unless its temperature is 0: it tosses a coin */
    const int32_t *history; /* (n_history), may be NULL */
    size_t n_history;
    int32_t token;     /* out */
    l2c_status status; /* out: one draw may fail, and the others succeed */
} l2c_draw;

/* Picks n tokens from different rows, on all threads of the pool. Fails as a whole, and uses up nothing, only
 * for a row that is not there, is used up, or comes twice (L2C_ARG), and with L2C_BUSY. */
l2c_status l2c_session_sample_many(l2c_session *session, l2c_draw *draws, size_t n, l2c_error *err);

enum { L2C_MAX_TOP = 64 };

typedef struct {
    int32_t token;
    double logprob; /* natural logarithm, of the model's own distribution: before masks, changes by the
                     * caller, biases, penalties and temperature; NaN where its logits hold NaN or infinity */
} l2c_logprob;

/* What is wanted of a draw besides its token; all zero, nothing. */
typedef struct {
    const uint32_t *mask; /* a bit for each token that may be picked: bit t % 32 of mask[t / 32]; NULL: all may */
    float *logits;        /* (vocab_size) for the row as the model computed it; NULL: no log-probabilities are wanted */
    int logits_are_kept;  /* they are there already: the caller has changed the row since */
    double logprob;       /* out: of the token that was picked */
    l2c_logprob *top;     /* out: (n_top) the likeliest, likeliest first; of equals, the smaller id first */
    size_t n_top;         /* at most L2C_MAX_TOP, and vocab_size; 0 without logits */
} l2c_draw_options;

/* The same, with options for each draw; L2C_ARG also for an n_top that is too much. */
l2c_status l2c_session_sample_with(l2c_session *session, l2c_draw *draws, l2c_draw_options *options, size_t n,
                                   l2c_error *err);

enum { L2C_MAX_STEPS = 32 };

/*
 * Decodes sequence 0 by up to n_steps tokens, on a card in one launch: the same tokens as by l2c_session_forward and
 * l2c_session_sample in turn. tokens holds the n tokens so far, of which n - 1 have been fed, and has room for n_steps
 * more; *n_new of them are appended, 1 or more; rng_states[i] is the sampler's state after the i-th. Stops after any of
 * the n_ends ids in ends, and where it likes: call it again. What the newest tokens are is fed or not, as
 * l2c_session_length says.
 */
l2c_status l2c_session_decode(l2c_session *session, l2c_sampler *sampler, int32_t *tokens, size_t n, size_t n_steps,
                              const int32_t *ends, size_t n_ends, uint64_t *rng_states, size_t *n_new, l2c_error *err);

/* Natural logarithm of the probability of a token under logits row i: logit - largest - log(sum), where
 * the sum is of the kernels' float32 exps, in double. The same bits on every instruction set. */
l2c_status l2c_session_logprob(l2c_session *session, size_t i, int32_t token, double *logprob,
                               l2c_error *err);

/*
 * Exact speculative decoding of sequence 0: `draft` proposes up to n_draft tokens (at most 32), and
 * `target` checks them in one sweep. tokens holds the n tokens so far, of which target has been fed
 * n - 1, and has room for n_draft + 1 more; *n_new of them are appended, 1 or more, which are those
 * that target alone would have sampled one by one; rng_states[i] is the sampler's state after the
 * i-th. Stops after any of the n_ends ids in ends. options (n_draft + 1, or NULL) are those of the draws from target's
 * rows, one behind the other, so that all may have the same `logits`. draft may have been fed any beginning of tokens, and
 * nothing else. Where the draft's logits are not finite it proposes no further, and target goes on alone.
 * A request to stop either session stops both. On failure tokens are as they were as far as n; the
 * sampler's state is not.
 */
l2c_status l2c_speculate(l2c_session *target, l2c_session *draft, l2c_sampler *sampler,
                         int32_t *tokens, size_t n, size_t n_draft, const int32_t *ends, size_t n_ends,
                         uint64_t *rng_states, l2c_draw_options *options, size_t *n_new, l2c_error *err);

/* Positions of a sequence that are in the cache, or -1 without such a sequence. */
int32_t l2c_session_length(const l2c_session *session, int32_t sequence);

/* Forgets what a sequence has from position n on; does nothing where it is shorter. */
l2c_status l2c_session_cut(l2c_session *session, int32_t sequence, int32_t n, l2c_error *err);

/*
 * The cache of the first n positions of sequence 0, in the type that the session keeps it in: keys
 * (n_layers, n_kv_heads, n, head_size), then values. load replaces what the sequence had; any values are safe, though only those of the
 * same model mean something.
 */
l2c_status l2c_session_save(l2c_session *session, int32_t n, void *data, l2c_error *err);
l2c_status l2c_session_load(l2c_session *session, int32_t n, const void *data, l2c_error *err);

/* Gives sequence `to` the first n positions of sequence `from`, in place of what it had. Logits stay. */
l2c_status l2c_session_copy(l2c_session *session, int32_t from, int32_t to, int32_t n, l2c_error *err);

/*
 * Asks what the session is doing to stop: the forward call or speculation that runs stops at the next layer,
 * or, where none runs or it is past its last layer, the next one does at once; either returns L2C_CANCELLED,
 * which answers the request. Safe from any thread and from signal handlers.
 */
void l2c_session_cancel(l2c_session *session);

/* Takes back a request that no call has answered: what begins now is other work, which it did not mean. */
void l2c_session_resume(l2c_session *session);

void l2c_session_free(l2c_session *session);

/* ---- Batches: many stories in one session; one thread at a time, but for drop and cancel ------------- */

/*
 * Continuous batching. A story is one generation (elsewhere: a request). A sweep is one forward pass, which reads every
 * weight once. Stories are added while others are under way, and a step takes all of them one
 * token further in one sweep:
 *
 *     int64_t story;
 *     l2c_request request = {.prompt = prompt, .n_prompt = n, .sampler = &sampler, .max_tokens = 100};
 *     l2c_batch_add(batch, &request, &story, &err);
 *     while (l2c_batch_stories(batch) > 0) {
 *         const l2c_event *events; size_t n_events;
 *         if (l2c_batch_step(batch, &events, &n_events, &err)) break;
 *         for (size_t i = 0; i < n_events; i++) ...
 *     }
 *
 * A story gets the tokens that it would get alone, whatever the others are. Its events come in order; those
 * of different stories in any order. Each story has a sequence to itself, whose keys and values stay when the
 * story ends: a new story takes over, or copies, the longest beginning that its prompt shares with a sequence,
 * and waits for a story that is reading the same just now. So many stories of one prompt read it once.
 */
typedef struct l2c_batch l2c_batch;

/* What is told of a story before its end: flags. */
typedef enum {
    L2C_TELL_TOKENS = 1,   /* each token */
    L2C_TELL_LOGPROBS = 2, /* each token, with log-probabilities */
    L2C_TELL_CHOICES = 4,  /* each choice before it is made, to change its logits */
    L2C_TELL_READ = 8      /* that the prompt is read */
} l2c_tell;

/* What a story is to be. The batch copies all of it. */
typedef struct {
    const int32_t *prompt; /* (n_prompt), 1 or more */
    size_t n_prompt;
    const int32_t *ends; /* (n_ends) tokens that end the story and are no part of it; may be NULL */
    size_t n_ends;
    const l2c_sampler *sampler;
    int32_t max_tokens; /* 1 or more. The last token is not fed: n_prompt + max_tokens - 1 positions are needed */
    int32_t tell;       /* l2c_tell flags */
    int32_t n_top;      /* of L2C_TELL_LOGPROBS: so many of the likeliest tokens, at most L2C_MAX_TOP */
} l2c_request;

typedef enum {
    L2C_EVENT_TOKEN,  /* a token was sampled, which does not end the story */
    L2C_EVENT_CHOOSE, /* the next step samples from l2c_batch_row, which may be changed until then */
    L2C_EVENT_END,    /* told of every story, once, after its other events */
    L2C_EVENT_READ    /* told once, before its other events, with the first token or CHOOSE */
} l2c_event_kind;

typedef enum {
    L2C_END_STOP,      /* one of its `ends` was sampled */
    L2C_END_LENGTH,    /* max_tokens */
    L2C_END_DROPPED,   /* l2c_batch_drop */
    L2C_END_NONFINITE  /* logits hold NaN or infinity, or every token was forbidden */
} l2c_end;

typedef struct {
    int64_t story;
    int32_t kind;           /* l2c_event_kind */
    union {
        int32_t reason;   /* END: l2c_end */
        int32_t n_cached; /* READ: tokens of the prompt that were found in the cache, or taken from another story's */
    };
    l2c_logprob chosen;     /* TOKEN; the log-probability only where it was asked for */
    const l2c_logprob *top; /* TOKEN: (n_top) likeliest first; of equals, the smaller id first */
    size_t n_top;
    const int32_t *tokens; /* (n_tokens) sampled so far; NULL where the story was dropped */
    size_t n_tokens;
} l2c_event;

/* What a batch did so far. */
typedef struct {
    uint64_t sweeps, rows;         /* forward passes, and tokens fed in them */
    uint64_t tokens;               /* sampled, ends of stories not included */
    uint64_t prompt_tokens;        /* of prompts: fed, or found in the cache */
    uint64_t cached_prompt_tokens; /* of those, found */
} l2c_batch_counts;

/* A batch with a session of its own: n_sequences (1 to a call's rows) stories at a time. The rest is as for
 * l2c_session_create. All memory is taken here. */
l2c_status l2c_batch_create(const l2c_model *model, l2c_pool *pool, int32_t n_sequences, int32_t n_ctx, l2c_kv kv,
                            l2c_isa isa, l2c_batch **batch, l2c_error *err);

/* Adds a story; its number, above 0, is never given again. L2C_FULL until a story ends or is dropped.
 * L2C_ARG and L2C_RANGE say what is wrong with the request. */
l2c_status l2c_batch_add(l2c_batch *batch, const l2c_request *request, int64_t *story, l2c_error *err);

/*
 * Makes the choices that wait for CHOOSE, then one sweep: a row of every story under way, and as many rows
 * of prompts, in turn, as delay the others little. On a card it makes up to 32 sweeps, of some milliseconds together,
 * while no prompt is left to read and no story is to be changed between tokens (CHOOSE, log-probabilities, a mask,
 * penalties, biases). Does nothing without stories. Events, and what they point
 * to, are valid until the next add or step. When it fails (L2C_CANCELLED, L2C_NOMEM), the sweep did not take
 * place: the next step makes it, and tells what this one had to tell as well.
 */
l2c_status l2c_batch_step(l2c_batch *batch, const l2c_event **events, size_t *n_events, l2c_error *err);

/* Logits (vocab_size) of a story whose last event is CHOOSE, until the next step; else NULL. */
float *l2c_batch_row(l2c_batch *batch, int64_t story);

/* Allows, for the next choice of a story only, the tokens whose bit is set: bit t % 32 of bits[t / 32].
 * L2C_ARG for a story that is not under way. */
l2c_status l2c_batch_mask(l2c_batch *batch, int64_t story, const uint32_t *bits, l2c_error *err);

/* Ends a story before the next sweep, or on a card the one after; nothing for one that has ended. Safe from any
 * thread. */
void l2c_batch_drop(l2c_batch *batch, int64_t story);

/* Makes a step that runs in another thread stop at the next layer (L2C_CANCELLED), as
 * l2c_session_cancel does. A step that has made some of several sweeps succeeds with those, and the next one says
 * L2C_CANCELLED. Safe from any thread. */
void l2c_batch_cancel(l2c_batch *batch);

/* Stories that have not ended. */
int32_t l2c_batch_stories(const l2c_batch *batch);

l2c_batch_counts l2c_batch_count(const l2c_batch *batch);

void l2c_batch_free(l2c_batch *batch);

/* ---- Tokenizers: immutable after open, shared by any number of threads ------------------------ */

typedef struct l2c_tokenizer l2c_tokenizer;

/* What a piece is, numbered as SentencePiece does. */
typedef enum {
    L2C_PIECE_NORMAL = 1,
    L2C_PIECE_UNKNOWN,      /* <unk>; as a control piece, no text becomes it */
    L2C_PIECE_CONTROL,      /* stands for no text */
    L2C_PIECE_USER_DEFINED, /* taken wherever a text has it, the longest first, and joined with nothing */
    L2C_PIECE_UNUSED,       /* joined with others, but left out of what a text becomes */
    L2C_PIECE_BYTE          /* <0xHH>: characters without a piece become their bytes */
} l2c_piece_type;

/* A vocabulary of byte-pair encoding as lists, which l2c_tokenizer_create copies. */
typedef struct {
    int32_t n_pieces;
    const char *text;       /* (text_bytes) the pieces one behind the other, U+2581 as a space */
    size_t text_bytes;
    const int32_t *lengths; /* (n_pieces) bytes of each, at most 4,096 */
    const int32_t *types;   /* (n_pieces) l2c_piece_type */
    const float *scores;    /* (n_pieces) the pair that makes the piece with the highest is joined first; */
    const int32_t *merges;  /* (n_merges, 2) or NULL: ids of pairs that are joined, the first first, and no others */
    int32_t n_merges;
    int32_t split_spaces;   /* not 0: nothing is joined across the front of a space */
    int32_t bos, eos;       /* ids, or -1 */
    int32_t unknown;        /* for characters that have neither a piece nor bytes; -1: those are an error */
} l2c_vocabulary;

/* L2C_FORMAT, naming the piece, for lists that make no vocabulary; L2C_ARG for numbers out of range. */
l2c_status l2c_tokenizer_create(const l2c_vocabulary *vocabulary, l2c_tokenizer **tokenizer, l2c_error *err);

/* Reads a llama2.c tokenizer.bin of exactly vocab_size pieces (0: as many as the file holds): <unk>, BOS
 * and EOS are ids 0 to 2, bytes 3 to 258. A piece whose score is minus infinity is never what text
 * becomes. The file may change afterwards, as may what open_memory read. */
l2c_status l2c_tokenizer_open(const char *path, int32_t vocab_size, l2c_tokenizer **tokenizer,
                              l2c_error *err);
l2c_status l2c_tokenizer_open_memory(const void *data, size_t size, int32_t vocab_size,
                                     l2c_tokenizer **tokenizer, l2c_error *err);

int32_t l2c_tokenizer_vocab_size(const l2c_tokenizer *tokenizer);

/* The ids that begin and end a text, or -1. */
int32_t l2c_tokenizer_bos(const l2c_tokenizer *tokenizer);
int32_t l2c_tokenizer_eos(const l2c_tokenizer *tokenizer);

/* The bytes that a token stands for (not NUL terminated, owned by the tokenizer): one byte for a
 * byte piece, none for a control piece. L2C_RANGE for an id outside the vocabulary. */
l2c_status l2c_tokenizer_piece(const l2c_tokenizer *tokenizer, int32_t token, const char **bytes,
                               size_t *length);

/*
 * Byte-pair encodes UTF-8 text; with space_first, a space is put before it unless it is empty: what begins
 * a text is then as any other word. Adds no BOS or EOS. tokens has room for 3 * (length + 1) ids, which is
 * always enough. Characters without a piece become their bytes or, where the vocabulary lacks one of those,
 * <unk>, neighbours together; so does each byte that is not UTF-8. L2C_FORMAT where there is no <unk> either.
 */
l2c_status l2c_tokenizer_encode(const l2c_tokenizer *tokenizer, const char *text, size_t length,
                                int space_first, int32_t *tokens, size_t *n_tokens, l2c_error *err);

void l2c_tokenizer_free(l2c_tokenizer *tokenizer);

/* cdef-end */

#ifdef L2C_SHARED
#pragma GCC visibility pop
#endif
#ifdef __cplusplus
}
#endif

#endif
