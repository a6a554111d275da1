/*
 * cuda_session.h - what a session is on a card: caches and scratch there, rows and draws on their way, logits that came
 * back.
 */
#ifndef L2C_CUDA_SESSION_H
#define L2C_CUDA_SESSION_H

#include "backend.h"
#include "cuda_model.h"

enum { L2C_CUDA_MAX_ENDS = 64 }; /* tokens that end a story, of those that the card itself decodes */

/* Host memory, page-locked, that the card reads and writes while a grid stays. */
typedef struct {
    int32_t cancel, done; /* not 0: no further sweep; sweeps whose tokens are there */
    int32_t tokens[L2C_MAX_STEPS];
    float coins[L2C_MAX_STEPS]; /* on their way to the card, as are */
    int32_t ends[L2C_CUDA_MAX_ENDS];
} l2c_cuda_shared;

typedef struct {
    l2c_session *session;
    const l2c_model *model;
    l2c_device *device;
    cu_stream stream;
    l2c_gpu_pass pass; /* of the next call, but for what each call and launch sets */
    cu_pointer memory; /* one block on the card, of which pass and the next seven have their parts (cuda_session.c) */
    l2c_gpu_row *card_rows;         /* (max_rows) */
    l2c_gpu_draw *card_draws;       /* (max_rows) */
    l2c_gpu_log_total *card_totals; /* (max_rows) */
    float *card_coins;              /* (L2C_MAX_STEPS) */
    int32_t *card_ends;             /* (L2C_CUDA_MAX_ENDS) */
    l2c_gpu_decode_state *card_state;
    unsigned char *card_inputs;     /* of the decode kernels (params.h); NULL where shared memory takes them */
    int decodes;                    /* 1: the decode kernels can be used */

    void *pinned;               /* one block, page-locked, of which the next six are parts */
    l2c_gpu_row *rows;          /* (max_rows) */
    l2c_gpu_draw *draws;        /* (max_rows) on their way to the card */
    l2c_gpu_draw *drawn;        /* (max_rows) and back */
    l2c_gpu_log_total *totals;  /* (max_rows) of all rows of logits, once totals_known */
    float *logit;               /* (1) */
    l2c_cuda_shared *shared;
    int totals_known;

    unsigned char *angles;      /* (blocks of n_ctx, L2C_ROPE_BLOCK positions each) 1: on the card */
    l2c_chooser chooser;        /* its logits are (max_rows, vocab_size) and hold the rows that were fetched */
    unsigned char *fetched;     /* (max_rows) */
    size_t *left;               /* (max_rows) draws that the host makes */
} l2c_cuda_session;

/* cuda_forward.c: enqueues a call's rows; the caller has entered the device, and waits. L2C_CANCELLED at once where
 * that is wanted, with work under way. */
l2c_status l2c_cuda_forward(l2c_cuda_session *s, const l2c_row *rows, size_t n_rows, l2c_error *err);

/* Its steps: RoPE's angles of a position go to the card, once; the rows do, which says how many keys the longest has. */
l2c_status l2c_cuda_send_angles(l2c_cuda_session *s, int32_t position, l2c_error *err);
l2c_status l2c_cuda_send_rows(l2c_cuda_session *s, l2c_gpu_pass *pass, const l2c_row *rows, size_t n, int32_t *max_keys,
                              l2c_error *err);

/* cuda_decode.c: the same in one launch, of few rows; L2C_UNSUPPORTED, with nothing done, where it is not to be. Then
 * the entry of the backend. */
l2c_status l2c_cuda_forward_at_once(l2c_cuda_session *s, const l2c_row *rows, size_t n_rows, l2c_error *err);
l2c_status l2c_cuda_decode(l2c_session *session, const l2c_row *row, l2c_sampler *sampler, size_t n_steps,
                           const int32_t *ends, size_t n_ends, int32_t *tokens, uint64_t *rng_states, size_t *n_new,
                           size_t *n_fed, l2c_error *err);

/* cuda_logits.c: entries of the backend. */
float *l2c_cuda_logits(l2c_session *session, size_t i);
l2c_status l2c_cuda_sample(l2c_session *session, l2c_draw *draws, l2c_draw_options *options, size_t n, l2c_error *err);
l2c_status l2c_cuda_logprob(l2c_session *session, size_t i, int32_t token, double *value, l2c_error *err);

/* Waits until the card has done all that was asked of it. */
static inline l2c_status l2c_cuda_wait(l2c_cuda_session *s, const char *doing, l2c_error *err) {
    return l2c_device_check(s->device, s->device->cu.stream_synchronize(s->stream), doing, err);
}

#endif
