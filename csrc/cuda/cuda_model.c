/*
 * cuda_model.c - weights on their way to a card: converted by all threads into page-locked memory, a piece at a time,
 * while the card fetches the piece before.
 */
#include <string.h>

#include "cuda_model.h"
#include "layout.h"

enum { PIECE = 8 << 20 };

typedef struct {
    l2c_placed *placed;
    l2c_pool *pool;
    l2c_gpu_matrix *next; /* what the next matrix becomes */
    l2c_fingerprint fingerprint;
    cu_stream stream;
    unsigned char *pieces[2]; /* page-locked, of piece_bytes each */
    cu_event fetched[2];      /* by the card, after which a piece may be written again */
    size_t piece_bytes;
    int turn;
} upload;

static size_t larger(size_t a, size_t b) { return a > b ? a : b; }

static l2c_status begin(upload *u, const l2c_config *c, l2c_error *err) {
    l2c_device *d = u->placed->device;
    size_t cols = larger(larger((size_t)c->dim, (size_t)c->hidden_dim), (size_t)c->n_heads * (size_t)c->head_size);
    /* A strip at least: 16 rows of float32, or of groups of 4, which have steps of 32 columns to themselves. */
    u->piece_bytes = larger(PIECE, cols * L2C_GPU_STRIP * (L2C_GPU_CHUNK / 4) + L2C_GPU_STRIP * L2C_GPU_LANES * sizeof(float));
    cu_result result = d->cu.stream_create(&u->stream, CU_STREAM_NON_BLOCKING);
    for (int i = 0; i < 2 && result == CU_SUCCESS; i++) {
        void *piece;
        result = d->cu.mem_host_alloc(&piece, u->piece_bytes, 0);
        if (result != CU_SUCCESS) break;
        u->pieces[i] = piece;
        result = d->cu.event_create(&u->fetched[i], CU_EVENT_DISABLE_TIMING);
    }
    if (result == CU_OUT_OF_MEMORY)
        return l2c_fail(err, L2C_NOMEM, "out of page-locked memory: the upload needs %zu bytes", 2 * u->piece_bytes);
    return l2c_device_check(d, result, "preparing the upload", err);
}

/* Waits until the card has everything. */
static l2c_status end(upload *u, l2c_status status, l2c_error *err) {
    l2c_device *d = u->placed->device;
    cu_result result = u->stream != NULL ? d->cu.stream_synchronize(u->stream) : CU_SUCCESS;
    if (status == L2C_OK) status = l2c_device_check(d, result, "uploading the weights", err);
    for (int i = 0; i < 2; i++) {
        if (u->fetched[i] != NULL) d->cu.event_destroy(u->fetched[i]);
        if (u->pieces[i] != NULL) d->cu.mem_free_host(u->pieces[i]);
    }
    if (u->stream != NULL) d->cu.stream_destroy(u->stream);
    return status;
}

/* The piece to write next. */
static l2c_status next_piece(upload *u, unsigned char **piece, l2c_error *err) {
    l2c_device *d = u->placed->device;
    *piece = u->pieces[u->turn];
    return l2c_device_check(d, d->cu.event_synchronize(u->fetched[u->turn]), "uploading the weights", err);
}

/* Sends what was written to it. */
static l2c_status send_piece(upload *u, cu_pointer to, size_t bytes, l2c_error *err) {
    l2c_device *d = u->placed->device;
    cu_result result = d->cu.memcpy_to_device_async(to, u->pieces[u->turn], bytes, u->stream);
    if (result == CU_SUCCESS) result = d->cu.event_record(u->fetched[u->turn], u->stream);
    u->turn = !u->turn;
    atomic_fetch_add(&d->uploaded, bytes);
    return l2c_device_check(d, result, "uploading the weights", err);
}

static l2c_status allocate(l2c_placed *p, uint64_t bytes, cu_pointer *memory, l2c_error *err) {
    l2c_status status = l2c_device_alloc(p->device, bytes, "a part of the weights", memory, err);
    if (status != L2C_OK) return status;
    p->memory[p->n_memory++] = *memory;
    p->bytes += bytes;
    return L2C_OK;
}

static l2c_status send_bytes(upload *u, cu_pointer to, const void *from, size_t size, l2c_error *err) {
    l2c_status status = L2C_OK;
    for (size_t at = 0, n; at < size && status == L2C_OK; at += n) {
        unsigned char *piece;
        n = size - at < u->piece_bytes ? size - at : u->piece_bytes;
        status = next_piece(u, &piece, err);
        if (status != L2C_OK) break;
        memcpy(piece, (const unsigned char *)from + at, n);
        status = send_piece(u, to + at, n, err);
    }
    return status;
}

/* ---- Matrices ------------------------------------------------------------------------------------ */

typedef struct {
    unsigned char *piece;
    const l2c_gpu_matrix *to;
    const l2c_matrix *from;
    size_t begin, end; /* strips */
} conversion;

static void convert_on_thread(void *arg, int thread, int n_threads) {
    const conversion *c = arg;
    size_t n = c->end - c->begin, first = n * (size_t)thread / (size_t)n_threads;
    size_t last = n * ((size_t)thread + 1) / (size_t)n_threads;
    l2c_layout_write(c->piece + first * l2c_layout_strip_bytes(c->to), c->to, c->from, c->begin + first, c->begin + last);
}

static l2c_status send_data(upload *u, cu_pointer to, const l2c_gpu_matrix *m, const l2c_matrix *from, l2c_error *err) {
    size_t strips = l2c_layout_strips(m), bytes = l2c_layout_strip_bytes(m), left = (size_t)l2c_gpu_data_bytes(m);
    size_t together = u->piece_bytes / bytes;
    l2c_status status = L2C_OK;
    for (size_t s = 0; s < strips && status == L2C_OK; s += together) {
        conversion c = {.to = m, .from = from, .begin = s, .end = strips - s < together ? strips : s + together};
        status = next_piece(u, &c.piece, err);
        if (status != L2C_OK) break;
        if (u->pool != NULL) l2c_pool_run(u->pool, convert_on_thread, &c);
        else convert_on_thread(&c, 0, 1);
        size_t size = (c.end - c.begin) * bytes; /* float types have no rows past the last */
        size = size < left ? size : left;
        status = send_piece(u, to + s * bytes, size, err);
        left -= size;
    }
    return status;
}

static l2c_status send_scales(upload *u, cu_pointer to, const l2c_gpu_matrix *m, const l2c_matrix *from, l2c_error *err) {
    size_t strips = l2c_layout_strips(m), bytes = (size_t)l2c_gpu_scale_bytes(m) / strips;
    size_t together = u->piece_bytes / bytes;
    l2c_status status = L2C_OK;
    for (size_t s = 0; s < strips && status == L2C_OK; s += together) {
        size_t n = strips - s < together ? strips - s : together;
        unsigned char *piece;
        status = next_piece(u, &piece, err);
        if (status != L2C_OK) break;
        for (size_t i = 0; i < n; i++) memcpy(piece + i * bytes, l2c_layout_scales(from, s + i), bytes);
        status = send_piece(u, to + s * bytes, n * bytes, err);
    }
    return status;
}

static l2c_status take_matrix(void *arg, const l2c_matrix *from, l2c_error *err) {
    upload *u = arg;
    l2c_gpu_matrix m = l2c_layout_of(from, u->pool);
    uint64_t data = l2c_card_lines(l2c_gpu_data_bytes(&m)), scales = l2c_gpu_scale_bytes(&m);
    cu_pointer memory;
    l2c_fingerprint_add(&u->fingerprint, from);
    l2c_status status = allocate(u->placed, data + scales, &memory, err);
    if (status == L2C_OK) status = send_data(u, memory, &m, from, err);
    if (status == L2C_OK && scales > 0) status = send_scales(u, memory + data, &m, from, err);
    m.data = l2c_card_pointer(memory);
    m.scales = scales > 0 ? l2c_card_pointer(memory + data) : NULL;
    *u->next++ = m;
    return status;
}

/* ---- The model ------------------------------------------------------------------------------------- */

/* Norms: (2 n_layers + 1, dim), one behind the other, each on a line of its own. */
static l2c_status send_norms(upload *u, l2c_model *m, l2c_error *err) {
    size_t n_layers = (size_t)m->config.n_layers, bytes = (size_t)m->config.dim * sizeof(float);
    size_t step = (size_t)l2c_card_lines(bytes);
    l2c_placed *p = u->placed;
    cu_pointer memory;
    l2c_status status = allocate(p, (2 * n_layers + 1) * step, &memory, err);
    for (size_t i = 0; i < 2 * n_layers + 1 && status == L2C_OK; i++, memory += step) {
        l2c_layer *layer = &m->layers[i / 2 < n_layers ? i / 2 : 0];
        const float **norm = i == 2 * n_layers ? &m->final_norm : i % 2 == 0 ? &layer->attention_norm : &layer->ffn_norm;
        status = send_bytes(u, memory, *norm, bytes, err);
        *norm = NULL;
        if (i == 2 * n_layers) p->final_norm = l2c_card_pointer(memory);
        else if (i % 2 == 0) p->layers[i / 2].attention_norm = l2c_card_pointer(memory);
        else p->layers[i / 2].ffn_norm = l2c_card_pointer(memory);
    }
    return status;
}

/* Matrices come in the order of EACH_MATRIX. */
static void assemble(l2c_placed *p, const l2c_config *c, const l2c_gpu_matrix *m) {
    p->token_embedding = *m++;
    for (int32_t l = 0; l < c->n_layers; l++) {
        l2c_gpu_layer *w = &p->layers[l];
        w->wq = *m++, w->wk = *m++, w->wv = *m++, w->wo = *m++;
        w->w1 = *m++, w->w2 = *m++, w->w3 = *m++;
    }
    p->classifier = c->shared_classifier ? p->token_embedding : *m;
}

static l2c_status send_model(upload *u, l2c_model *m, l2c_dtype dtype, l2c_error *err) {
    l2c_placed *p = u->placed;
    size_t layers_bytes = (size_t)m->config.n_layers * sizeof *p->layers;
    l2c_gpu_matrix *matrices = u->next;
    cu_pointer memory;
    u->fingerprint = l2c_fingerprint_begin(m);
    l2c_status status = l2c_model_hand_over(m, dtype, u->pool, take_matrix, u, err);
    if (status == L2C_OK) status = send_norms(u, m, err);
    if (status != L2C_OK) return status;
    assemble(p, &m->config, matrices);
    status = allocate(p, layers_bytes, &memory, err);
    if (status == L2C_OK) status = send_bytes(u, memory, p->layers, layers_bytes, err);
    p->card_layers = l2c_card_pointer(memory);
    m->fingerprint = l2c_fingerprint_end(&u->fingerprint);
    return status;
}

l2c_status l2c_placed_create(l2c_model *m, l2c_dtype dtype, l2c_pool *pool, l2c_device *device, l2c_error *err) {
    size_t n_layers = (size_t)m->config.n_layers, n_matrices = 7 * n_layers + 2;
    if (m->matrices.as_file)
        return l2c_fail(err, L2C_UNSUPPORTED, "int8 groups of %d are computed as runq.c does, on the processor only: "
                                              "device \"cpu\"", m->config.group_size);
    if (device->module == NULL) return l2c_fail(err, L2C_ARG, "the device has no kernels yet (l2c_device_load)");
    l2c_placed *p = m->placed = l2c_memory_zeroed(1, sizeof *p);
    if (p == NULL) return l2c_fail(err, L2C_NOMEM, "out of memory for a model");
    p->device = l2c_device_keep(device);
    p->layers = l2c_memory_zeroed(n_layers, sizeof *p->layers);
    p->memory = l2c_memory_zeroed(n_matrices + 2, sizeof *p->memory); /* the norms and the layers' table besides */
    l2c_gpu_matrix *matrices = l2c_memory_zeroed(n_matrices, sizeof *matrices);
    l2c_status status = p->layers != NULL && p->memory != NULL && matrices != NULL
                            ? l2c_device_enter(device, err)
                            : l2c_fail(err, L2C_NOMEM, "out of memory for a model");
    if (status == L2C_OK) {
        upload u = {.placed = p, .pool = pool, .next = matrices};
        status = begin(&u, &m->config, err);
        if (status == L2C_OK) status = send_model(&u, m, dtype, err);
        status = end(&u, status, err);
        l2c_device_leave(device);
    }
    l2c_memory_free(matrices);
    l2c_file_unmap(&m->mapping);
    m->mapping = (l2c_mapping){0};
    return status;
}

void l2c_placed_free(l2c_placed *p) {
    if (p == NULL) return;
    if (p->n_memory > 0 && l2c_device_enter(p->device, NULL) == L2C_OK) {
        for (size_t i = 0; i < p->n_memory; i++) p->device->cu.mem_free(p->memory[i]);
        l2c_device_leave(p->device);
    }
    l2c_memory_free(p->memory);
    l2c_memory_free(p->layers);
    l2c_device_free(p->device);
    l2c_memory_free(p);
}

uint64_t l2c_placed_bytes(const l2c_model *m) {
    const l2c_config *c = &m->config;
    uint64_t bytes = (2 * (uint64_t)c->n_layers + 1) * l2c_card_lines((uint64_t)c->dim * sizeof(float));
    return bytes + l2c_card_lines((uint64_t)c->n_layers * sizeof(l2c_gpu_layer)) + m->matrices.on_card;
}
