/*
 * cuda_forward.c - the transformer on a card: a kernel a phase, on the session's stream (params.h has the list).
 */
#include "cuda_session.h"

/* Launches, until one fails. */
typedef struct {
    l2c_cuda_session *s;
    l2c_gpu_pass pass; /* of this call */
    l2c_status status;
    l2c_error *err;
} queue;

static void launch(queue *q, l2c_gpu_launch how, void *parameter) {
    if (q->status == L2C_OK) q->status = l2c_device_launch(q->s->device, q->s->stream, how, parameter, q->err);
}

static int is_packed(const l2c_gpu_matrix *w) { return w->type >= L2C_GPU_Q8; }

/* xq where a matrix wants it, else nothing to write. */
static l2c_gpu_quantized wanted(l2c_gpu_quantized xq, int by_some) {
    if (!by_some) xq.q = NULL;
    return xq;
}

/* xb, and xq where it is wanted, = RMSNorm of x; with `rows` only those that want logits */
static void norm(queue *q, const float *weight, int in_int8, const l2c_gpu_row *rows) {
    const l2c_gpu_pass *p = &q->pass;
    l2c_gpu_norm n = {.x = p->x, .weight = weight, .out = p->xb, .xq = wanted(p->xq, in_int8), .rows = rows, .n = p->n,
                      .cols = p->dim, .eps = p->norm_eps};
    launch(q, l2c_gpu_norm_launch(&n), &n);
}

/* out (n, w->rows) = or += x w^T */
static void linear(queue *q, float *out, int32_t out_pitch, const float *x, const l2c_gpu_quantized *xq, int32_t n,
                   const l2c_gpu_matrix *w, int accumulate) {
    l2c_gpu_linear l = {.w = *w, .x = x, .xq = *xq, .out = out, .out_pitch = out_pitch, .n = n, .accumulate = accumulate};
    launch(q, l2c_gpu_linear_launch(&l), &l);
}

static void product(queue *q, float *out, const float *x, const l2c_gpu_quantized *xq, const l2c_gpu_matrix *w) {
    linear(q, out, l2c_gpu_pitch(w->rows), x, xq, q->pass.n, w, 0);
}

static void add_product(queue *q, const float *x, const l2c_gpu_quantized *xq, const l2c_gpu_matrix *w) {
    linear(q, q->pass.x, l2c_gpu_pitch(w->rows), x, xq, q->pass.n, w, 1);
}

static void layer(queue *q, const l2c_gpu_layer *w, int32_t max_keys) {
    l2c_gpu_pass *p = &q->pass;
    norm(q, w->attention_norm, is_packed(&w->wq) || is_packed(&w->wk) || is_packed(&w->wv), NULL);
    product(q, p->q, p->xb, &p->xq, &w->wq);
    product(q, p->k, p->xb, &p->xq, &w->wk);
    product(q, p->v, p->xb, &p->xq, &w->wv);
    launch(q, l2c_gpu_store_kv_launch(p), p);
    launch(q, l2c_gpu_attention_launch(p, max_keys, q->s->device->shared_limit), p);
    if (is_packed(&w->wo)) {
        l2c_gpu_quantize a = {.x = p->attn_out, .to = p->aq, .n = p->n};
        launch(q, l2c_gpu_quantize_launch(&a), &a);
    }
    add_product(q, p->attn_out, &p->aq, &w->wo);

    norm(q, w->ffn_norm, is_packed(&w->w1) || is_packed(&w->w3), NULL);
    product(q, p->hb, p->xb, &p->xq, &w->w1);
    product(q, p->up, p->xb, &p->xq, &w->w3);
    l2c_gpu_swiglu h = {.gate = p->hb, .up = p->up, .to = wanted(p->hq, is_packed(&w->w2)), .n = p->n, .cols = p->hidden_dim};
    launch(q, l2c_gpu_swiglu_launch(&h), &h);
    add_product(q, p->hb, &p->hq, &w->w2);
}

/* ---- What goes to the card before ------------------------------------------------------------------- */

/* RoPE's angles of a position, with those of the block around it, once. */
l2c_status l2c_cuda_send_angles(l2c_cuda_session *s, int32_t position, l2c_error *err) {
    size_t b = (size_t)position / L2C_ROPE_BLOCK, pairs = (size_t)s->model->config.head_size / 2, first = b * L2C_ROPE_BLOCK;
    if (s->angles[b]) return L2C_OK;
    if (l2c_rope_extend(s->model, position) != L2C_OK)
        return l2c_fail(err, L2C_NOMEM, "out of memory for the angles of position %d", position);
    size_t n_ctx = (size_t)s->pass.n_ctx, n = n_ctx - first < L2C_ROPE_BLOCK ? n_ctx - first : L2C_ROPE_BLOCK;
    const float *cosines = l2c_rope_at(s->model, (int32_t)first), *sines = cosines + L2C_ROPE_BLOCK * pairs;
    size_t bytes = n * pairs * sizeof(float);
    const l2c_driver *cu = &s->device->cu;
    cu_result result = cu->memcpy_to_device_async(l2c_card_address(s->pass.rope_cos + first * pairs), cosines, bytes, s->stream);
    if (result == CU_SUCCESS)
        result = cu->memcpy_to_device_async(l2c_card_address(s->pass.rope_sin + first * pairs), sines, bytes, s->stream);
    s->angles[b] = result == CU_SUCCESS;
    return l2c_device_check(s->device, result, "sending the angles of RoPE", err);
}

l2c_status l2c_cuda_send_rows(l2c_cuda_session *s, l2c_gpu_pass *p, const l2c_row *rows, size_t n, int32_t *max_keys,
                              l2c_error *err) {
    p->n = (int32_t)n;
    p->n_logits = 0;
    *max_keys = 0;
    for (size_t r = 0; r < n; r++) {
        l2c_status status = l2c_cuda_send_angles(s, rows[r].position, err);
        if (status != L2C_OK) return status;
        s->rows[r] = (l2c_gpu_row){rows[r].sequence, rows[r].position, rows[r].token,
                                   rows[r].want_logits ? p->n_logits++ : -1};
        *max_keys = rows[r].position >= *max_keys ? rows[r].position + 1 : *max_keys;
    }
    cu_result result = s->device->cu.memcpy_to_device_async(l2c_card_address(s->card_rows), s->rows,
                                                            n * sizeof *s->rows, s->stream);
    return l2c_device_check(s->device, result, "sending the rows", err);
}

/* ---- The pass ------------------------------------------------------------------------------------------ */

l2c_status l2c_cuda_pass(l2c_cuda_session *s, const l2c_gpu_pass *pass, int32_t max_keys, int in_parts, l2c_error *err) {
    enum { LAYERS_AHEAD = 4 }; /* are under way at a time, of a pass in parts: a wish to stop is soon heard */
    const l2c_placed *w = s->model->placed;
    queue q = {.s = s, .pass = *pass, .err = err};
    l2c_gpu_pass *p = &q.pass;
    launch(&q, l2c_gpu_embed_launch(p), p);
    for (p->layer = 0; p->layer < p->n_layers && q.status == L2C_OK; p->layer++) {
        if (in_parts && p->layer % LAYERS_AHEAD == 0) q.status = l2c_cuda_wait(s, "computing", err);
        if (q.status == L2C_OK && l2c_session_stopping(s->session)) return l2c_session_fail_cancelled(err);
        layer(&q, &w->layers[p->layer], max_keys);
    }
    if (p->n_logits > 0) {
        norm(&q, w->final_norm, is_packed(&w->classifier), p->rows);
        linear(&q, p->logits, p->vocab_size, p->xb, &p->xq, p->n_logits, &w->classifier, 0);
    }
    return q.status;
}

l2c_status l2c_cuda_forward(l2c_cuda_session *s, const l2c_row *rows, size_t n_rows, l2c_error *err) {
    l2c_gpu_pass pass = s->pass;
    int32_t max_keys;
    l2c_status status = l2c_cuda_send_rows(s, &pass, rows, n_rows, &max_keys, err);
    return status == L2C_OK ? l2c_cuda_pass(s, &pass, max_keys, n_rows > L2C_CUDA_MANY_ROWS, err) : status;
}
