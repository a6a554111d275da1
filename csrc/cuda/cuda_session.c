/*
 * cuda_session.c - a card as a backend: a session's memory, its calls, its cache as data.
 */
#include <string.h>

#include "cuda_session.h"
#include "layout.h"

/* ---- Memory: a block on the card, laid out by one function ------------------------------------------------ */

typedef struct {
    cu_pointer memory; /* 0: only measures */
    uint64_t used;     /* UINT64_MAX once it would pass that */
} arena;

static void *part(arena *a, uint64_t bytes) {
    uint64_t begin = a->used;
    if (bytes > UINT64_MAX - L2C_CARD_LINE || begin > UINT64_MAX - L2C_CARD_LINE - bytes) {
        a->used = UINT64_MAX;
        return NULL;
    }
    a->used = begin + l2c_card_lines(bytes);
    return a->memory == 0 ? NULL : l2c_card_pointer(a->memory + begin);
}

static float *float_rows(arena *a, uint64_t rows, int32_t cols) {
    return part(a, rows * (uint64_t)l2c_gpu_pitch(cols) * sizeof(float));
}

static l2c_gpu_quantized quantized_rows(arena *a, const l2c_matrices *m, int32_t rows, int32_t cols) {
    if (m->group == 0) return (l2c_gpu_quantized){.cols = cols};
    l2c_gpu_quantized x = l2c_gpu_quantized_shape(cols, (int32_t)m->group);
    x.q = part(a, l2c_gpu_q_bytes(&x, rows));
    x.scales = part(a, l2c_gpu_q_scale_bytes(&x, rows));
    x.sums = part(a, l2c_gpu_q_scale_bytes(&x, rows));
    return x;
}

/* A block of the decode kernels for each multiprocessor has its inputs here, where its shared memory is too small. */
static unsigned char *decode_inputs(const l2c_cuda_session *s, arena *a, int32_t rows, int32_t processors,
                                    int32_t shared_limit) {
    l2c_gpu_decode p = {.pass = s->pass};
    p.pass.n = rows < L2C_GPU_TOKENS ? rows : L2C_GPU_TOKENS;
    l2c_gpu_decode_launch(&p, 1, processors, shared_limit);
    return p.inputs_in_global ? part(a, (uint64_t)processors * (uint64_t)p.input_bytes) : NULL;
}

/* Gives s its parts of the card's memory, or with 0 none; returns the bytes of it all, UINT64_MAX for too many.
 * processors and shared_limit are the card's. */
static uint64_t lay_out(l2c_cuda_session *s, cu_pointer memory, const l2c_model *model, const l2c_session_options *o,
                        int32_t rows, int32_t processors, int32_t shared_limit) {
    const l2c_config *c = &model->config;
    const l2c_matrices *m = &model->matrices;
    l2c_gpu_pass *p = &s->pass;
    arena a = {memory, 0};
    int32_t q_dim = c->n_heads * c->head_size, kv_dim = c->n_kv_heads * c->head_size;
    uint64_t n_ctx = (uint64_t)o->n_ctx, n = (uint64_t)rows, head = (uint64_t)l2c_gpu_pitch(c->head_size);
    uint64_t number = o->kv == L2C_KV_FLOAT16 ? sizeof(uint16_t) : sizeof(float);
    uint64_t heads = l2c_times((uint64_t)o->n_sequences, (uint64_t)c->n_layers * (uint64_t)c->n_kv_heads);
    uint64_t cache = l2c_times(l2c_times(heads, n_ctx), head * number), angles = n_ctx * (uint64_t)c->head_size / 2 * sizeof(float);
    p->key_cache = part(&a, cache);
    p->value_cache = part(&a, cache);
    p->rope_cos = part(&a, angles);
    p->rope_sin = part(&a, angles);
    p->x = float_rows(&a, n, c->dim);
    p->xb = float_rows(&a, n, c->dim);
    p->q = float_rows(&a, n, q_dim);
    p->k = float_rows(&a, n, kv_dim);
    p->v = float_rows(&a, n, kv_dim);
    p->attn_out = float_rows(&a, n, q_dim);
    p->hb = float_rows(&a, n, c->hidden_dim);
    p->up = float_rows(&a, n, c->hidden_dim);
    p->xq = quantized_rows(&a, m, rows, c->dim);
    p->aq = quantized_rows(&a, m, rows, q_dim);
    p->hq = quantized_rows(&a, m, rows, c->hidden_dim);
    p->logits = part(&a, n * (uint64_t)c->vocab_size * sizeof(float));
    /* a block for each half of a multiprocessor has the scores of one head that are too many for it */
    p->score_slots = l2c_gpu_attention_shared(c->head_size, o->n_ctx) > shared_limit ? 2 * processors : 0;
    p->scores = p->score_slots > 0 ? part(&a, (uint64_t)p->score_slots * n_ctx * sizeof(float)) : NULL;
    s->card_rows = part(&a, n * sizeof *s->card_rows);
    s->card_draws = part(&a, n * sizeof *s->card_draws);
    s->card_totals = part(&a, n * sizeof *s->card_totals);
    s->card_coins = part(&a, L2C_MAX_STEPS * sizeof *s->card_coins);
    s->card_ends = part(&a, L2C_CUDA_MAX_ENDS * sizeof *s->card_ends);
    s->card_state = part(&a, sizeof *s->card_state);
    s->card_inputs = decode_inputs(s, &a, rows, processors, shared_limit);
    return a.used;
}

enum { LEAST_ROWS = 64, MOST_PROCESSORS = 160 };

uint64_t l2c_session_device_bytes(const l2c_model *model, int32_t n_sequences, int32_t n_ctx, l2c_kv kv, int32_t n_rows) {
    l2c_cuda_session unplaced = {.session = NULL};
    const l2c_session_options options = {.n_sequences = n_sequences, .n_ctx = n_ctx != 0 ? n_ctx : model->config.seq_len,
                                         .kv = kv};
    if (n_sequences < 1 || options.n_ctx < 1 || n_rows < 0 || n_rows > L2C_MAX_DEVICE_ROWS) return UINT64_MAX;
    return lay_out(&unplaced, 0, model, &options, n_rows > 0 ? n_rows : LEAST_ROWS, MOST_PROCESSORS, 0);
}

/* On the host. */
static uint64_t session_bytes(const l2c_model *model, const l2c_session_options *options, int32_t n_threads) {
    uint64_t vocab = (uint64_t)model->config.vocab_size, rows = L2C_MAX_DEVICE_ROWS;
    (void)options;
    return vocab * (rows * sizeof(float) + (uint64_t)n_threads * (2 * sizeof(l2c_candidate) + 1));
}

/* Takes the card's memory for as many rows as leave most of it free. */
static l2c_status take_memory(l2c_cuda_session *s, const l2c_session_options *o, l2c_error *err) {
    enum { SHARE = 8 }; /* of free memory, for scratch: one part in so many */
    l2c_device *d = s->device;
    size_t free = 0, total = 0;
    l2c_status status = l2c_device_check(d, d->cu.mem_get_info(&free, &total), "asking for free memory", err);
    int32_t rows = L2C_MAX_DEVICE_ROWS;
    uint64_t bytes, base = lay_out(s, 0, s->model, o, 0, d->info.processors, d->shared_limit);
    while (bytes = lay_out(s, 0, s->model, o, rows, d->info.processors, d->shared_limit),
           rows > LEAST_ROWS && bytes - base > free / SHARE)
        rows /= 2;
    if (status == L2C_OK) status = l2c_device_alloc(d, bytes, "a session", &s->memory, err);
    if (status != L2C_OK) return status;
    lay_out(s, s->memory, s->model, o, rows, d->info.processors, d->shared_limit);
    s->session->max_rows = rows;
    /* zeros where rows are padded, which no kernel writes */
    return l2c_device_check(d, d->cu.memset_d8_async(s->memory, 0, (size_t)bytes, s->stream), "clearing the session", err);
}

static l2c_status take_host_memory(l2c_cuda_session *s, const l2c_session_options *o, l2c_error *err) {
    size_t rows = (size_t)s->session->max_rows, vocab = (size_t)s->model->config.vocab_size;
    size_t threads = (size_t)l2c_pool_size(o->pool);
    size_t bytes = rows * (sizeof *s->rows + 2 * sizeof *s->draws + sizeof *s->totals) + sizeof *s->shared + sizeof *s->logit;
    cu_result result = s->device->cu.mem_host_alloc(&s->pinned, bytes, 0);
    if (result == CU_OUT_OF_MEMORY)
        return l2c_fail(err, L2C_NOMEM, "out of page-locked memory: a session needs %zu bytes", bytes);
    if (result != CU_SUCCESS) return l2c_device_check(s->device, result, "taking page-locked memory", err);
    s->totals = s->pinned;
    s->draws = (l2c_gpu_draw *)(void *)(s->totals + rows);
    s->drawn = s->draws + rows;
    s->rows = (l2c_gpu_row *)(void *)(s->drawn + rows);
    s->shared = (l2c_cuda_shared *)(void *)(s->rows + rows);
    s->logit = (float *)(void *)(s->shared + 1);
    s->chooser.logits = l2c_memory_zeroed(rows * vocab, sizeof(float));
    s->chooser.candidates = l2c_memory_zeroed(threads * 2 * vocab, sizeof *s->chooser.candidates);
    s->fetched = l2c_memory_zeroed(rows, 1);
    s->left = l2c_memory_zeroed(rows, sizeof *s->left);
    s->angles = l2c_memory_zeroed((size_t)o->n_ctx / L2C_ROPE_BLOCK + 1, 1);
    if (s->chooser.logits == NULL || s->chooser.candidates == NULL || s->fetched == NULL ||
        s->left == NULL || s->angles == NULL)
        return l2c_fail(err, L2C_NOMEM, "out of memory for a session of %zu rows", rows);
    return L2C_OK;
}

/* ---- Opening and closing ------------------------------------------------------------------------------- */

static void describe_model(l2c_gpu_pass *p, const l2c_model *m, const l2c_session_options *o) {
    const l2c_config *c = &m->config;
    const l2c_placed *w = m->placed;
    p->n_layers = c->n_layers, p->dim = c->dim, p->hidden_dim = c->hidden_dim;
    p->n_heads = c->n_heads, p->n_kv_heads = c->n_kv_heads, p->head_size = c->head_size;
    p->vocab_size = c->vocab_size;
    p->norm_eps = c->norm_eps;
    p->layers = w->card_layers;
    p->token_embedding = w->token_embedding, p->classifier = w->classifier;
    p->final_norm = w->final_norm;
    p->n_ctx = o->n_ctx;
    p->kv = o->kv == L2C_KV_FLOAT16 ? L2C_GPU_KV_F16 : L2C_GPU_KV_F32;
}

static l2c_status session_open(l2c_session *session, const l2c_session_options *o, l2c_error *err) {
    const l2c_model *m = session->model;
    l2c_isa isa;
    l2c_status status = l2c_isa_resolve(o->isa, &isa, err);
    if (status != L2C_OK) return status;
    if (isa == L2C_ISA_RUNQ)
        return l2c_fail(err, L2C_UNSUPPORTED, "the runq kernels compute on the processor only: device \"cpu\"");
    l2c_cuda_session *s = session->state = l2c_memory_zeroed(1, sizeof *s);
    if (s == NULL) return l2c_fail(err, L2C_NOMEM, "out of memory for a session");
    s->session = session;
    s->model = m;
    s->device = l2c_device_keep(m->placed->device);
    s->decodes = s->device->cooperative && l2c_gpu_decode_takes(m->placed->layers, m->config.n_layers);
    s->chooser = (l2c_chooser){.kernels = l2c_kernels_for(isa), .pool = o->pool, .vocab_size = (size_t)m->config.vocab_size};
    status = l2c_device_enter(s->device, err);
    if (status != L2C_OK) return status;
    cu_result result = s->device->cu.stream_create(&s->stream, CU_STREAM_NON_BLOCKING);
    status = l2c_device_check(s->device, result, "opening a session", err);
    if (status == L2C_OK) status = take_memory(s, o, err);
    if (status == L2C_OK) status = take_host_memory(s, o, err);
    describe_model(&s->pass, m, o);
    s->pass.rows = s->card_rows;
    l2c_device_leave(s->device);
    return status;
}

static void session_close(l2c_session *session) {
    l2c_cuda_session *s = session->state;
    if (s == NULL) return;
    if (l2c_device_enter(s->device, NULL) == L2C_OK) {
        const l2c_driver *cu = &s->device->cu;
        if (s->stream != NULL) cu->stream_synchronize(s->stream);
        if (s->memory != 0) cu->mem_free(s->memory);
        if (s->pinned != NULL) cu->mem_free_host(s->pinned);
        if (s->stream != NULL) cu->stream_destroy(s->stream);
        l2c_device_leave(s->device);
    }
    l2c_memory_free(s->chooser.logits);
    l2c_memory_free(s->chooser.candidates);
    l2c_memory_free(s->fetched);
    l2c_memory_free(s->left);
    l2c_memory_free(s->angles);
    l2c_device_free(s->device);
    l2c_memory_free(s);
}

/* ---- Calls ---------------------------------------------------------------------------------------------- */

static l2c_status forward(l2c_session *session, const l2c_row *rows, size_t n_rows, l2c_error *err) {
    l2c_cuda_session *s = session->state;
    l2c_status status = l2c_device_enter(s->device, err);
    if (status != L2C_OK) return status;
    memset(s->fetched, 0, (size_t)session->max_rows);
    s->totals_known = 0;
    status = l2c_cuda_forward_at_once(s, rows, n_rows, err);
    if (status == L2C_UNSUPPORTED) status = l2c_cuda_forward(s, rows, n_rows, err);
    /* also where it failed: what is under way reads this session's memory */
    l2c_status waited = l2c_cuda_wait(s, "computing", status == L2C_OK ? err : NULL);
    l2c_device_leave(s->device);
    return status == L2C_OK ? waited : status;
}

static void cancel(l2c_session *session) {
    l2c_cuda_session *s = session->state;
    s->shared->cancel = 1; /* a launch that stays sees it after its sweep */
}

/* ---- The cache as data ---------------------------------------------------------------------------------- */

static int64_t heads_of(const l2c_cuda_session *s) { return (int64_t)s->pass.n_layers * s->pass.n_kv_heads; }

static size_t head_bytes(const l2c_cuda_session *s, size_t n) {
    return n * (size_t)s->pass.head_size * (s->pass.kv == L2C_GPU_KV_F16 ? sizeof(uint16_t) : sizeof(float));
}

static l2c_gpu_cache cache_part(const l2c_cuda_session *s, void *cache, int64_t first, int64_t heads, size_t n) {
    return (l2c_gpu_cache){.cache = cache, .first = first, .heads = (int32_t)heads, .n = (int32_t)n, .n_ctx = s->pass.n_ctx,
                           .head_size = s->pass.head_size, .kv = s->pass.kv};
}

/* Keys, then values, through `between` on the card, which has room for `together` heads. */
static l2c_status move_cache(l2c_cuda_session *s, int32_t sequence, size_t n, unsigned char *data, int reads,
                             cu_pointer between, int64_t together, l2c_error *err) {
    const l2c_driver *cu = &s->device->cu;
    int64_t heads = heads_of(s);
    l2c_gpu_kernel kernel = reads ? L2C_GPU_KERNEL_cache_read : L2C_GPU_KERNEL_cache_write;
    for (int64_t i = 0, some; i < 2 * heads; i += some) {
        int64_t of_half = heads - i % heads;
        some = of_half < together ? of_half : together;
        l2c_gpu_cache c = cache_part(s, i < heads ? s->pass.key_cache : s->pass.value_cache, sequence * heads + i % heads, some, n);
        unsigned char *at = data + (size_t)i * head_bytes(s, n);
        size_t bytes = (size_t)some * head_bytes(s, n);
        c.other = l2c_card_pointer(between);
        cu_result result = reads ? CU_SUCCESS : cu->memcpy_to_device_async(between, at, bytes, s->stream);
        l2c_status status = l2c_device_check(s->device, result, "moving the cache", err);
        if (status == L2C_OK) status = l2c_device_launch(s->device, s->stream, l2c_gpu_cache_launch(kernel, &c), &c, err);
        if (status != L2C_OK) return status;
        if (reads) result = cu->memcpy_to_host_async(at, between, bytes, s->stream);
        status = l2c_device_check(s->device, result, "moving the cache", err);
        if (status == L2C_OK) status = l2c_cuda_wait(s, "moving the cache", err);
        if (status != L2C_OK) return status;
    }
    return L2C_OK;
}

static l2c_status read_or_write(l2c_session *session, int32_t sequence, size_t n, unsigned char *data, int reads,
                                l2c_error *err) {
    enum { AT_A_TIME = 16 << 20 }; /* bytes, but a head at least */
    l2c_cuda_session *s = session->state;
    size_t head = head_bytes(s, n), together = head == 0 ? 0 : AT_A_TIME / head > 0 ? AT_A_TIME / head : 1;
    if (together == 0) return L2C_OK;
    if (together > (size_t)heads_of(s)) together = (size_t)heads_of(s);
    l2c_status status = l2c_device_enter(s->device, err);
    if (status != L2C_OK) return status;
    cu_pointer between;
    status = l2c_device_alloc(s->device, together * head, "a part of the cache on its way", &between, err);
    if (status == L2C_OK) {
        status = move_cache(s, sequence, n, data, reads, between, (int64_t)together, err);
        s->device->cu.mem_free(between);
    }
    l2c_device_leave(s->device);
    return status;
}

static l2c_status cache_read(l2c_session *session, int32_t sequence, size_t n, void *data, l2c_error *err) {
    return read_or_write(session, sequence, n, data, 1, err);
}

static l2c_status cache_write(l2c_session *session, int32_t sequence, size_t n, const void *data, l2c_error *err) {
    return read_or_write(session, sequence, n, (unsigned char *)(uintptr_t)data, 0, err); /* which is only read */
}

static l2c_status cache_copy(l2c_session *session, int32_t from, int32_t to, size_t n, l2c_error *err) {
    l2c_cuda_session *s = session->state;
    int64_t heads = heads_of(s);
    l2c_status status = n > 0 ? l2c_device_enter(s->device, err) : L2C_OK;
    if (status != L2C_OK || n == 0) return status;
    for (int i = 0; i < 2 && status == L2C_OK; i++) {
        l2c_gpu_cache c = cache_part(s, i == 0 ? s->pass.key_cache : s->pass.value_cache, from * heads, heads, n);
        c.to = to * heads;
        status = l2c_device_launch(s->device, s->stream, l2c_gpu_cache_launch(L2C_GPU_KERNEL_cache_copy, &c), &c, err);
    }
    if (status == L2C_OK) status = l2c_cuda_wait(s, "copying the cache", err);
    l2c_device_leave(s->device);
    return status;
}

const l2c_backend l2c_backend_cuda = {
    .name = "cuda",
    .session_bytes = session_bytes,
    .session_open = session_open,
    .session_close = session_close,
    .forward = forward,
    .logits = l2c_cuda_logits,
    .sample = l2c_cuda_sample,
    .logprob = l2c_cuda_logprob,
    .decode = l2c_cuda_decode,
    .cancel = cancel,
    .cache_read = cache_read,
    .cache_write = cache_write,
    .cache_copy = cache_copy,
};
