/*
 * cpu_session.c - the CPU as a backend: a session's memory, and what is made of its logits. The forward pass
 * is in forward.c.
 */
#include <string.h>

#include "cpu_session.h"

/* ---- Memory: one block, laid out by one function ----------------------------------------------------- */

/* Elements of a head's whole context in the cache from which a huge page would commit much memory that a
 * short story never uses. */
enum { SPARSE = 1 << 15 };

/* int8 rows of `cols` values, as the model's matrices take them. */
static l2c_quantized quantized_rows(l2c_arena *a, const l2c_matrices *m, uint64_t rows, uint64_t cols) {
    l2c_quantized x = {.cols = (size_t)cols};
    if (m->group == 0) return x;
    /* runq.c leaves out what is past the last whole group */
    uint64_t groups = m->as_file ? cols / m->group : (cols + m->group - 1) / m->group;
    x.group = m->group;
    x.width = (size_t)groups * m->group;
    x.q = l2c_arena_part(a, rows * x.width, 1);
    x.pairs = l2c_arena_part(a, rows * x.width * sizeof *x.pairs, 1);
    x.scales = l2c_arena_part(a, rows * groups * sizeof *x.scales, 1);
    x.sums = l2c_arena_part(a, rows * groups * sizeof *x.sums, 1);
    return x;
}

/* Gives s its parts of `memory`, or with NULL none; returns the bytes of it all, UINT64_MAX for too many. Only
 * what depends on n_sequences and n_ctx can be too much: the rest is bounded by the header's checks. */
static uint64_t lay_out(l2c_cpu_session *s, unsigned char *memory, const l2c_model *model, const l2c_session_options *o,
                        int32_t n_threads) {
    const l2c_config *c = &model->config;
    const l2c_matrices *m = &model->matrices;
    l2c_arena a = {memory, 0};
    uint64_t threads = (uint64_t)n_threads, f = sizeof(float);
    uint64_t rows = L2C_MAX_ROWS > threads ? L2C_MAX_ROWS : threads; /* a single row is normed by every thread */
    uint64_t dim = (uint64_t)c->dim, hidden = (uint64_t)c->hidden_dim, vocab = (uint64_t)c->vocab_size;
    uint64_t head = (uint64_t)c->head_size, q_dim = (uint64_t)c->n_heads * head, kv_dim = (uint64_t)c->n_kv_heads * head;
    uint64_t n_ctx = (uint64_t)o->n_ctx, layers = (uint64_t)c->n_layers;
    uint64_t number = o->kv == L2C_KV_FLOAT16 ? sizeof(uint16_t) : f;
    uint64_t cache = l2c_times(l2c_times((uint64_t)o->n_sequences, layers * kv_dim * number), n_ctx);
    int dense = n_ctx * head < SPARSE;
    s->key_cache = l2c_arena_part(&a, cache, dense);
    s->value_cache = l2c_arena_part(&a, cache, dense);
    s->x = l2c_arena_part(&a, rows * dim * f, 1);
    s->xb = l2c_arena_part(&a, rows * dim * f, 1);
    s->hb = l2c_arena_part(&a, rows * hidden * f, 1);
    s->attn_out = l2c_arena_part(&a, rows * q_dim * f, 1);
    s->q = l2c_arena_part(&a, rows * q_dim * f, 1);
    s->delta = l2c_arena_part(&a, rows * dim * f, 1);
    s->k = l2c_arena_part(&a, rows * kv_dim * f, 1);
    s->v = l2c_arena_part(&a, rows * kv_dim * f, 1);
    s->up = l2c_arena_part(&a, rows * hidden * f, 1);
    s->scores = l2c_arena_part(&a, threads * L2C_TILE * n_ctx * f, 1);
    s->value_sums = threads > 1 ? l2c_arena_part(&a, (threads - 1) * l2c_tile_sums(n_ctx, head) * f, 1) : NULL;
    s->kv_f32 = o->kv == L2C_KV_FLOAT16 ? l2c_arena_part(&a, threads * L2C_SUM_BLOCK * head * f, 1) : NULL;
    s->logits = l2c_arena_part(&a, rows * vocab * f, 1);
    s->candidates = l2c_arena_part(&a, threads * 2 * vocab * sizeof *s->candidates, 1);
    s->xq = quantized_rows(&a, m, rows, dim);
    s->aq = quantized_rows(&a, m, rows, q_dim);
    s->hq = quantized_rows(&a, m, rows, hidden);
    return a.used;
}

static uint64_t session_bytes(const l2c_model *model, const l2c_session_options *options, int32_t n_threads) {
    l2c_cpu_session unused;
    uint64_t bytes = lay_out(&unused, NULL, model, options, n_threads);
    uint64_t angles = sizeof(float) * (uint64_t)options->n_ctx * (uint64_t)model->config.head_size; /* rope.c's table */
    return bytes > UINT64_MAX - angles ? UINT64_MAX : bytes + angles;
}

static l2c_status session_open(l2c_session *session, const l2c_session_options *o, l2c_error *err) {
    const l2c_model *m = session->model;
    l2c_isa isa;
    l2c_status status = l2c_isa_resolve(o->isa, &isa, err);
    if (status != L2C_OK) return status;
    if (isa == L2C_ISA_RUNQ && !m->matrices.as_file)
        return l2c_fail(err, L2C_UNSUPPORTED, "the runq kernels only compute int8 files of llama2.c (version 2), opened "
                                              "as L2C_DTYPE_FILE");
    if (isa == L2C_ISA_RUNQ && o->kv != L2C_KV_FLOAT32)
        return l2c_fail(err, L2C_UNSUPPORTED, "the runq kernels keep keys and values in float32, as runq.c does");
    int32_t n_threads = l2c_pool_size(o->pool);
    l2c_cpu_session unplaced, *s = l2c_memory_zeroed(1, sizeof *s);
    uint64_t bytes = lay_out(&unplaced, NULL, m, o, n_threads);
    void *memory = bytes > SIZE_MAX ? NULL : l2c_memory_zeroed((size_t)bytes, 1);
    if (s == NULL || memory == NULL) {
        l2c_memory_free(s);
        l2c_memory_free(memory);
        return l2c_fail(err, L2C_NOMEM, "out of memory for a session of %d x %d positions, which needs %llu bytes",
                        o->n_sequences, o->n_ctx, (unsigned long long)bytes);
    }
    lay_out(s, memory, m, o, n_threads);
    s->memory = memory;
    s->session = session;
    s->model = m;
    s->pool = o->pool;
    s->kernels = m->matrices.as_file ? &l2c_kernels_runq : l2c_kernels_for(isa);
    s->kv = o->kv;
    s->kv_bytes = o->kv == L2C_KV_FLOAT16 ? sizeof(uint16_t) : sizeof(float);
    s->n_ctx = (size_t)o->n_ctx;
    session->state = s;
    session->max_rows = L2C_MAX_ROWS;
    return L2C_OK;
}

static void session_close(l2c_session *session) {
    l2c_cpu_session *s = session->state;
    if (s == NULL) return;
    l2c_memory_free(s->memory);
    l2c_memory_free(s);
}

/* ---- Rows and their logits ---------------------------------------------------------------------------- */

static l2c_status forward(l2c_session *session, const l2c_row *rows, size_t n_rows, l2c_error *err) {
    l2c_cpu_session *s = session->state;
    for (size_t r = 0; r < n_rows; r++)
        if (l2c_rope_extend(s->model, rows[r].position) != L2C_OK)
            return l2c_fail(err, L2C_NOMEM, "out of memory for the angles of position %d", rows[r].position);
    return l2c_forward(s, rows, n_rows) == L2C_OK ? L2C_OK : l2c_session_fail_cancelled(err);
}

static float *logits(l2c_session *session, size_t i) {
    const l2c_cpu_session *s = session->state;
    return s->logits + i * (size_t)s->model->config.vocab_size;
}

static l2c_status sample(l2c_session *session, l2c_draw *draws, l2c_draw_options *options, size_t n, l2c_error *err) {
    const l2c_cpu_session *s = session->state;
    const l2c_chooser chooser = {.kernels = s->kernels, .pool = s->pool, .vocab_size = (size_t)s->model->config.vocab_size,
                                 .logits = s->logits, .candidates = s->candidates};
    l2c_choose(&chooser, draws, options, NULL, n, err);
    return L2C_OK;
}

static l2c_status logprob(l2c_session *session, size_t i, int32_t token, double *value, l2c_error *err) {
    (void)err;
    const l2c_cpu_session *s = session->state;
    const float *x = logits(session, i);
    size_t n = (size_t)s->model->config.vocab_size;
    *value = l2c_logprob_of(l2c_logprob_total(s->kernels, x, n), x[token]);
    return L2C_OK;
}

/* ---- The cache as data ---------------------------------------------------------------------------------- */

/* Keys, then values: each head's context, (n_ctx, head_size), of a sequence. */
static unsigned char *context_of(const l2c_cpu_session *s, int32_t sequence, size_t i, size_t heads, size_t head) {
    unsigned char *cache = i < heads ? s->key_cache : s->value_cache;
    return cache + ((size_t)sequence * heads + i % heads) * s->n_ctx * head;
}

static size_t heads_of(const l2c_cpu_session *s) {
    return (size_t)s->model->config.n_layers * (size_t)s->model->config.n_kv_heads;
}

static l2c_status cache_read(l2c_session *session, int32_t sequence, size_t n, void *data, l2c_error *err) {
    (void)err;
    const l2c_cpu_session *s = session->state;
    size_t heads = heads_of(s), head = (size_t)s->model->config.head_size * s->kv_bytes;
    for (size_t i = 0; i < 2 * heads; i++)
        memcpy((unsigned char *)data + i * n * head, context_of(s, sequence, i, heads, head), n * head);
    return L2C_OK;
}

static l2c_status cache_write(l2c_session *session, int32_t sequence, size_t n, const void *data, l2c_error *err) {
    (void)err;
    const l2c_cpu_session *s = session->state;
    size_t heads = heads_of(s), head = (size_t)s->model->config.head_size * s->kv_bytes;
    for (size_t i = 0; i < 2 * heads; i++)
        memcpy(context_of(s, sequence, i, heads, head), (const unsigned char *)data + i * n * head, n * head);
    return L2C_OK;
}

static l2c_status cache_copy(l2c_session *session, int32_t from, int32_t to, size_t n, l2c_error *err) {
    (void)err;
    const l2c_cpu_session *s = session->state;
    size_t heads = heads_of(s), head = (size_t)s->model->config.head_size * s->kv_bytes;
    for (size_t i = 0; i < 2 * heads; i++)
        memcpy(context_of(s, to, i, heads, head), context_of(s, from, i, heads, head), n * head);
    return L2C_OK;
}

const l2c_backend l2c_backend_cpu = {
    .name = "cpu",
    .session_bytes = session_bytes,
    .session_open = session_open,
    .session_close = session_close,
    .forward = forward,
    .logits = logits,
    .sample = sample,
    .logprob = logprob,
    .cache_read = cache_read,
    .cache_write = cache_write,
    .cache_copy = cache_copy,
};
