/*
 * session.c - the state of a computation: KV cache, scratch, logits; and the checks on what is fed.
 */
#include <stdlib.h>
#include <string.h>

#include "internal.h"
#include "system/float_env.h"

/* ---- Creating --------------------------------------------------------------------------------- */

/* One block of session memory: where its pointer goes, and its size as a product. */
typedef struct {
    void **pointer;
    uint64_t size, factor[5];
} block;

/* int8 rows of `cols` values as the model's matrices take them. */
static l2c_quantized rows_for(const l2c_model *m, size_t cols) {
    if (m->group == 0) return (l2c_quantized){.cols = cols};
    /* runq.c leaves out what is past the last whole group */
    size_t groups = m->classifier.type == L2C_WEIGHTS_FILE ? cols / m->group : (cols + m->group - 1) / m->group;
    return (l2c_quantized){.cols = cols, .width = groups * m->group, .group = m->group};
}

static size_t query_dim(const l2c_config *c) { return (size_t)c->n_heads * (size_t)c->head_size; }

static void shape(l2c_session *s, const l2c_model *m, l2c_kv kv) {
    s->kv = kv;
    s->kv_bytes = kv == L2C_KV_FLOAT16 ? sizeof(uint16_t) : sizeof(float);
    s->xq = rows_for(m, (size_t)m->config.dim);
    s->aq = rows_for(m, query_dim(&m->config));
    s->hq = rows_for(m, (size_t)m->config.hidden_dim);
}

/* Elements of a head's whole context in the cache from which a huge page would commit much memory that a
 * short story never uses. */
enum { SPARSE = 1 << 15 };

/* The blocks of a session; returns how many. Used to size and to allocate. */
static int list_blocks(l2c_session *s, const l2c_config *c, uint64_t n_sequences, uint64_t n_ctx,
                       uint64_t n_threads, block *blocks) {
    /* a single row is normed by every thread for itself (forward.c) */
    uint64_t rows = L2C_MAX_ROWS > n_threads ? L2C_MAX_ROWS : n_threads, dim = (uint64_t)c->dim, hidden = (uint64_t)c->hidden_dim;
    uint64_t q_dim = query_dim(c), head = (uint64_t)c->head_size, kv_heads = (uint64_t)c->n_kv_heads;
    uint64_t layers = (uint64_t)c->n_layers, vocab = (uint64_t)c->vocab_size, f = sizeof(float);
    int n = 0;
#define BLOCK(member, element, a, b, d, e, g) \
    blocks[n++] = (block){(void **)&s->member, element, {a, b, d, e, g}}
    BLOCK(key_cache, s->kv_bytes, n_sequences, layers, kv_heads, n_ctx, head);
    BLOCK(value_cache, s->kv_bytes, n_sequences, layers, kv_heads, n_ctx, head);
    BLOCK(lengths, sizeof(int32_t), n_sequences, 1, 1, 1, 1);
    BLOCK(x, f, rows, dim, 1, 1, 1);
    BLOCK(xb, f, rows, dim, 1, 1, 1);
    BLOCK(hb, f, rows, hidden, 1, 1, 1);
    BLOCK(att, f, rows, q_dim, 1, 1, 1);
    BLOCK(q, f, rows, q_dim, 1, 1, 1);
    BLOCK(delta, f, rows, dim, 1, 1, 1);
    BLOCK(k, f, rows, kv_heads, head, 1, 1);
    BLOCK(v, f, rows, kv_heads, head, 1, 1);
    BLOCK(up, f, rows, hidden, 1, 1, 1);
    BLOCK(scores, f, n_threads, L2C_TILE, n_ctx, 1, 1);
    if (s->kv == L2C_KV_FLOAT16) BLOCK(wide, f, n_threads, L2C_WIDE + 1, head, 1, 1);
    BLOCK(logits, f, rows, vocab, 1, 1, 1);
    BLOCK(candidates, sizeof(l2c_candidate), n_threads, 2, vocab, 1, 1);
    BLOCK(seen, 1, n_threads, vocab, 1, 1, 1);
    BLOCK(next, sizeof(int32_t), n_sequences, 1, 1, 1, 1);
#define QUANTIZED(member)                                             \
    BLOCK(member.q, 1, rows, s->member.width, 1, 1, 1);               \
    BLOCK(member.pairs, 2, rows, s->member.width, 1, 1, 1);           \
    BLOCK(member.scales, f, rows, s->member.width / group, 1, 1, 1);  \
    BLOCK(member.sums, f, rows, s->member.width / group, 1, 1, 1)
    if (s->xq.group > 0) {
        uint64_t group = s->xq.group;
        QUANTIZED(xq);
        QUANTIZED(aq);
        QUANTIZED(hq);
    }
#undef QUANTIZED
#undef BLOCK
    return n;
}

/* UINT64_MAX when the product does not fit. */
static uint64_t block_bytes(const block *b) {
    uint64_t bytes = b->size;
    for (int i = 0; i < 5; i++) {
        if (b->factor[i] != 0 && bytes > UINT64_MAX / b->factor[i]) return UINT64_MAX;
        bytes *= b->factor[i];
    }
    return bytes;
}

static uint64_t session_bytes(const l2c_model *model, int32_t n_sequences, int32_t n_ctx, l2c_kv kv, int32_t n_threads) {
    l2c_session unused;
    shape(&unused, model, kv);
    block blocks[L2C_SESSION_BLOCKS];
    int n = list_blocks(&unused, &model->config, (uint64_t)n_sequences, (uint64_t)n_ctx, (uint64_t)n_threads, blocks);
    uint64_t total = (uint64_t)n_ctx * (uint64_t)model->config.head_size * sizeof(float); /* rope.c's, for them */
    for (int i = 0; i < n; i++) {
        uint64_t bytes = block_bytes(&blocks[i]);
        if (bytes > UINT64_MAX - total) return UINT64_MAX;
        total += bytes;
    }
    return total;
}

uint64_t l2c_session_bytes(const l2c_model *model, int32_t n_sequences, int32_t n_ctx, l2c_kv kv) {
    if (n_ctx == 0) n_ctx = model->config.seq_len;
    return n_sequences < 1 || n_ctx < 1 ? UINT64_MAX : session_bytes(model, n_sequences, n_ctx, kv, 1);
}

l2c_session_size l2c_session_measure(const l2c_model *model, l2c_kv kv, int32_t n_threads) {
    const l2c_config *c = &model->config;
    uint64_t one = session_bytes(model, 1, 1, kv, n_threads), two = session_bytes(model, 1, 2, kv, n_threads);
    uint64_t heads = (uint64_t)c->n_layers * (uint64_t)c->n_kv_heads * (uint64_t)c->head_size; /* below 2^51 */
    if (two == UINT64_MAX) return (l2c_session_size){two, two, two};
    return (l2c_session_size){one - (two - one), two - one, 2 * heads * (kv == L2C_KV_FLOAT16 ? 2 : 4)};
}

l2c_status l2c_session_create(const l2c_model *model, l2c_pool *pool, int32_t n_sequences,
                              int32_t n_ctx, l2c_kv kv, l2c_isa isa, l2c_session **session, l2c_error *err) {
    const l2c_config *c = &model->config;
    if (n_ctx == 0) n_ctx = c->seq_len;
    if (n_ctx < 1 || n_ctx > c->seq_len)
        return l2c_fail(err, L2C_ARG, "context of %d positions; the model has %d", n_ctx, c->seq_len);
    if (n_sequences < 1)
        return l2c_fail(err, L2C_ARG, "n_sequences is %d; it must be 1 or more", n_sequences);
    if (kv != L2C_KV_FLOAT32 && kv != L2C_KV_FLOAT16) return l2c_fail(err, L2C_ARG, "unknown cache type %d", (int)kv);
    l2c_status status = l2c_isa_resolve(isa, &isa, err);
    if (status != L2C_OK) return status;
    if (isa == L2C_ISA_RUNQ && model->classifier.type != L2C_WEIGHTS_FILE)
        return l2c_fail(err, L2C_UNSUPPORTED, "the runq kernels compute int8 files of llama2.c (version 2), as they lie");
    if (isa == L2C_ISA_RUNQ && kv != L2C_KV_FLOAT32)
        return l2c_fail(err, L2C_UNSUPPORTED, "the runq kernels keep keys and values in float32, as runq.c does");

    l2c_session *s = l2c_memory_zeroed(1, sizeof *s);
    if (s == NULL) return l2c_fail(err, L2C_NOMEM, "out of memory for a session");
    s->model = model;
    s->pool = pool;
    s->kernels = model->classifier.type == L2C_WEIGHTS_FILE ? &l2c_kernels_runq : l2c_kernels_for(isa);
    s->n_sequences = n_sequences;
    s->n_ctx = n_ctx;
    shape(s, model, kv);
    block blocks[L2C_SESSION_BLOCKS];
    int n = list_blocks(s, c, (uint64_t)n_sequences, (uint64_t)n_ctx, (uint64_t)l2c_pool_size(pool), blocks);
    for (int i = 0; i < n; i++) {
        uint64_t bytes = block_bytes(&blocks[i]);
        void *memory = bytes > SIZE_MAX ? NULL : l2c_memory_zeroed((size_t)bytes, 1);
        *blocks[i].pointer = s->blocks[s->n_blocks++] = memory;
        if (memory == NULL) {
            l2c_session_free(s);
            return l2c_fail(err, L2C_NOMEM, "out of memory for a session of %d x %d positions, which needs %llu bytes",
                            n_sequences, n_ctx, (unsigned long long)l2c_session_bytes(model, n_sequences, n_ctx, kv));
        }
        if (blocks[i].factor[3] * blocks[i].factor[4] < SPARSE) l2c_memory_wish_huge(memory, (size_t)bytes);
    }
    *session = s;
    return L2C_OK;
}

void l2c_session_free(l2c_session *session) {
    if (session == NULL) return;
    for (int i = 0; i < session->n_blocks; i++) l2c_memory_free(session->blocks[i]);
    l2c_memory_free(session);
}

/* ---- Feeding ------------------------------------------------------------------------------------- */

static l2c_status check_rows(l2c_session *s, const l2c_row *rows, size_t n_rows, l2c_error *err) {
    if (n_rows < 1 || n_rows > L2C_MAX_ROWS)
        return l2c_fail(err, L2C_ARG, "%zu rows; a forward call takes 1 to %d", n_rows, L2C_MAX_ROWS);
    for (size_t r = 0; r < n_rows; r++) {
        const l2c_row *row = &rows[r];
        if (row->sequence < 0 || row->sequence >= s->n_sequences)
            return l2c_fail(err, L2C_ARG, "row %zu: sequence is %d; there are %d", r, row->sequence, s->n_sequences);
        if (row->token < 0 || row->token >= s->model->config.vocab_size)
            return l2c_fail(err, L2C_ARG, "row %zu: token is %d; the vocabulary has %d", r, row->token,
                            s->model->config.vocab_size);
        if (row->position < 0 || row->position >= s->n_ctx)
            return l2c_fail(err, L2C_RANGE, "row %zu: position is %d; the context has %d", r, row->position, s->n_ctx);
        /* after an earlier row of the same sequence, the next position; next is 0 without one */
        int32_t *next = &s->next[row->sequence];
        if (*next > 0 ? row->position != *next : row->position > s->lengths[row->sequence])
            return l2c_fail(err, L2C_RANGE, "row %zu: position is %d, but the next one of sequence %d is %d", r,
                            row->position, row->sequence, *next > 0 ? *next : s->lengths[row->sequence]);
        *next = row->position + 1;
    }
    return L2C_OK;
}

int l2c_session_enter(l2c_session *s) { return !atomic_exchange_explicit(&s->busy, 1, memory_order_acquire); }
void l2c_session_leave(l2c_session *s) { atomic_store_explicit(&s->busy, 0, memory_order_release); }

l2c_status l2c_session_fail_busy(l2c_error *err) {
    return l2c_fail(err, L2C_BUSY, "the session is being used by another thread");
}

int l2c_session_stopping(const l2c_session *s) {
    return atomic_load_explicit(&s->cancel, memory_order_relaxed) ||
           (s->partner != NULL && atomic_load_explicit(&s->partner->cancel, memory_order_relaxed));
}

l2c_status l2c_session_feed(l2c_session *s, const l2c_row *rows, size_t n_rows, l2c_error *err) {
    l2c_status status = check_rows(s, rows, n_rows, err);
    for (size_t r = 0; r < n_rows && r < L2C_MAX_ROWS; r++)
        if (rows[r].sequence >= 0 && rows[r].sequence < s->n_sequences) s->next[rows[r].sequence] = 0;
    for (size_t r = 0; r < n_rows && status == L2C_OK; r++)
        if (l2c_rope_extend(s->model, rows[r].position) != L2C_OK)
            status = l2c_fail(err, L2C_NOMEM, "out of memory for the angles of position %d", rows[r].position);
    if (status != L2C_OK) return status;
    s->n_logits = 0;
    /* What the call overwrites does not count as cached, should it be cancelled half-way. */
    for (size_t r = n_rows; r-- > 0;) s->lengths[rows[r].sequence] = rows[r].position;
    if (l2c_session_stopping(s) || l2c_forward(s, rows, n_rows) != L2C_OK)
        return l2c_fail(err, L2C_CANCELLED, "the forward pass was cancelled");
    for (size_t r = 0; r < n_rows; r++) {
        s->lengths[rows[r].sequence] = rows[r].position + 1;
        s->n_logits += rows[r].want_logits != 0;
    }
    memset(s->used, 0, s->n_logits);
    return L2C_OK;
}

l2c_status l2c_session_forward(l2c_session *s, const l2c_row *rows, size_t n_rows, l2c_error *err) {
    if (!l2c_session_enter(s)) return l2c_session_fail_busy(err);
    l2c_float_env env = l2c_float_enter();
    l2c_status status = l2c_session_feed(s, rows, n_rows, err);
    if (status == L2C_CANCELLED) l2c_session_resume(s);
    l2c_float_leave(env);
    l2c_session_leave(s);
    return status;
}

void l2c_session_cancel(l2c_session *session) { atomic_store(&session->cancel, 1); }

void l2c_session_resume(l2c_session *session) { atomic_store(&session->cancel, 0); }

/* ---- The cache as data ------------------------------------------------------------------------------ */

int32_t l2c_session_length(const l2c_session *s, int32_t sequence) {
    return sequence >= 0 && sequence < s->n_sequences ? s->lengths[sequence] : -1;
}

l2c_status l2c_session_cut(l2c_session *s, int32_t sequence, int32_t n, l2c_error *err) {
    if (sequence < 0 || sequence >= s->n_sequences || n < 0)
        return l2c_fail(err, L2C_ARG, "sequence %d to %d positions; there are %d sequences", sequence, n, s->n_sequences);
    if (!l2c_session_enter(s)) return l2c_session_fail_busy(err);
    if (s->lengths[sequence] > n) s->lengths[sequence] = n;
    l2c_session_leave(s);
    return L2C_OK;
}

/* Copies the first n positions of every head of sequence 0 from the cache or into it. */
static void copy_cache(l2c_session *s, size_t n, unsigned char *state, int into_cache) {
    const l2c_config *c = &s->model->config;
    size_t heads = (size_t)c->n_layers * (size_t)c->n_kv_heads, head = (size_t)c->head_size * s->kv_bytes;
    unsigned char *caches[] = {s->key_cache, s->value_cache};
    for (size_t k = 0; k < 2; k++)
        for (size_t i = 0; i < heads; i++) {
            unsigned char *cache = caches[k] + i * (size_t)s->n_ctx * head, *other = state + (k * heads + i) * n * head;
            if (into_cache) memcpy(cache, other, n * head);
            else memcpy(other, cache, n * head);
        }
}

l2c_status l2c_session_save(l2c_session *s, int32_t n, void *state, l2c_error *err) {
    if (!l2c_session_enter(s)) return l2c_session_fail_busy(err);
    l2c_status status = L2C_OK;
    if (n < 0 || n > s->lengths[0])
        status = l2c_fail(err, L2C_RANGE, "%d positions; the cache has %d", n, s->lengths[0]);
    else copy_cache(s, (size_t)n, state, 0);
    l2c_session_leave(s);
    return status;
}

l2c_status l2c_session_load(l2c_session *s, int32_t n, const void *state, l2c_error *err) {
    if (!l2c_session_enter(s)) return l2c_session_fail_busy(err);
    l2c_status status = L2C_OK;
    if (n < 0 || n > s->n_ctx) {
        status = l2c_fail(err, L2C_RANGE, "%d positions; the context has %d", n, s->n_ctx);
    } else {
        copy_cache(s, (size_t)n, (unsigned char *)(uintptr_t)state, 1);
        s->lengths[0] = n;
        s->n_logits = 0;
    }
    l2c_session_leave(s);
    return status;
}
