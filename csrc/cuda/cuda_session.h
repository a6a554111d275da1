/*
 * cuda_session.h - what a session is on a card: caches and scratch there, rows and draws on their way, logits that came
 * back.
 */
#ifndef L2C_CUDA_SESSION_H
#define L2C_CUDA_SESSION_H

#include <string.h>

#include "backend.h"
#include "cuda_model.h"
#include "pace.h"

/* A launch of several sweeps, or sweeps on the stream, begin and end; the last of those, and the last but one. */
enum { L2C_CUDA_BEGAN, L2C_CUDA_ENDED, L2C_CUDA_SWEPT, L2C_CUDA_N_EVENTS = L2C_CUDA_SWEPT + 2 };

enum {
    L2C_CUDA_MAX_ENDS = 64,    /* tokens that end a story, of those that the card is told */
    L2C_CUDA_AHEAD = 8,        /* sweeps of many rows that are made without the host, at most */
    L2C_CUDA_MANY_ROWS = 64,   /* of more than these, a sweep may take so long that it is made in parts */
    L2C_CUDA_SHORT_SWEEP = 5   /* unless it takes less than so many milliseconds */
};

/* Host memory, page-locked, that the card reads and writes while a grid stays. */
typedef struct {
    atomic_int cancel; /* not 0: no further sweep */
    int32_t done;      /* sweeps whose tokens are there */
    int32_t ends[L2C_CUDA_MAX_ENDS]; /* on their way to the card */
} l2c_cuda_shared;

typedef struct {
    l2c_session *session;
    const l2c_model *model;
    l2c_device *device;
    cu_stream stream;
    l2c_gpu_pass pass; /* of the next call, but for what each call and launch sets */
    cu_event events[L2C_CUDA_N_EVENTS];
    l2c_pace launch_pace, queue_pace;
    cu_pointer memory; /* one block on the card, of which pass and the next nine have their parts (cuda_session.c) */
    l2c_gpu_row *card_rows;         /* (max_rows) */
    l2c_gpu_draw *card_draws;       /* (max_rows) */
    l2c_gpu_log_total *card_totals; /* (max_rows) */
    float *card_coins;              /* (L2C_CUDA_AHEAD, max_rows), or what a decode kernel has of them */
    int32_t *card_ends;             /* (L2C_CUDA_MAX_ENDS) */
    uint32_t *card_bits;            /* (2 * max_rows, a bit for each token): masks, and tokens that a penalty is for */
    l2c_gpu_decode_state *card_state;
    unsigned char *card_inputs;     /* of the decode kernels (params.h); NULL where shared memory takes them */
    int decodes;                    /* 1: the decode kernels can be used */

    void *pinned;               /* one block, page-locked, of which the next eight are parts */
    l2c_gpu_row *rows;          /* (max_rows) */
    l2c_gpu_draw *draws;        /* (max_rows) on their way to the card */
    l2c_gpu_draw *drawn;        /* (max_rows) and back */
    l2c_gpu_log_total *totals;  /* (max_rows) of all rows of logits, once totals_known */
    float *coins;               /* as card_coins, on their way to the card */
    int32_t *tokens;            /* as many, and the card writes them */
    float *logit;               /* (1) */
    l2c_cuda_shared *shared;
    int totals_known;

    unsigned char *angles;      /* (blocks of n_ctx, L2C_ROPE_BLOCK positions each) 1: on the card */
    uint32_t *bits;             /* as card_bits, on their way to the card */
    l2c_chooser chooser;        /* its logits are (max_rows, vocab_size) and hold the rows that were fetched */
    unsigned char *fetched;     /* (max_rows) */
    size_t *left;               /* (max_rows) draws that the host makes, */
    l2c_draw *host_draws;       /* (max_rows) and where those have no caller, */
    l2c_sampler *samplers;      /* (max_rows) with these */
} l2c_cuda_session;

/* cuda_forward.c: enqueues a call's rows; the caller has entered the device, and waits. L2C_CANCELLED at once where
 * that is wanted, with work under way. */
l2c_status l2c_cuda_forward(l2c_cuda_session *s, const l2c_row *rows, size_t n_rows, l2c_error *err);

/* Its steps: RoPE's angles of a position go to the card, once; the rows do, which says how many keys the longest has; the
 * pass, which waits now and then for the card if it is to be made in parts. */
l2c_status l2c_cuda_send_angles(l2c_cuda_session *s, int32_t position, l2c_error *err);
l2c_status l2c_cuda_send_rows(l2c_cuda_session *s, l2c_gpu_pass *pass, const l2c_row *rows, size_t n, int32_t *max_keys,
                              l2c_error *err);

l2c_status l2c_cuda_pass(l2c_cuda_session *s, const l2c_gpu_pass *pass, int32_t max_keys, int in_parts, l2c_error *err);

/* cuda_decode.c: the same in one launch, of few rows; L2C_UNSUPPORTED, with nothing done, where it is not to be. Then
 * several sweeps in one, of a row and a draw for each story, which are on the card. */
l2c_status l2c_cuda_forward_at_once(l2c_cuda_session *s, const l2c_row *rows, size_t n_rows, l2c_error *err);
l2c_status l2c_cuda_launch_sweeps(l2c_cuda_session *s, const l2c_gpu_pass *pass, int32_t max_keys, int32_t n_ends,
                                  size_t n_sweeps, l2c_error *err);

/* cuda_ahead.c: the entry of the backend. */
l2c_status l2c_cuda_decode(l2c_session *session, const l2c_row *rows, l2c_continuation *stories, size_t n,
                           const int32_t *ends, size_t n_ends, l2c_error *err);

/* cuda_logits.c: a draw without its coin; rows of logits come to the host; and entries of the backend. */
l2c_gpu_draw l2c_cuda_draw(size_t row, const l2c_sampler *sampler);
l2c_status l2c_cuda_fetch_rows(l2c_cuda_session *s, const size_t *rows, size_t n, l2c_error *err);
float *l2c_cuda_logits(l2c_session *session, size_t i);
l2c_status l2c_cuda_sample(l2c_session *session, l2c_draw *draws, l2c_draw_options *options, size_t n, l2c_error *err);
l2c_status l2c_cuda_logprob(l2c_session *session, size_t i, int32_t token, double *value, l2c_error *err);

/* What comes computes other logits. */
static inline void l2c_cuda_forget_logits(l2c_cuda_session *s) {
    memset(s->fetched, 0, (size_t)s->session->max_rows);
    s->totals_known = 0;
}

/* Waits until the card has done all that was asked of it. */
static inline l2c_status l2c_cuda_wait(l2c_cuda_session *s, const char *doing, l2c_error *err) {
    return l2c_device_check(s->device, s->device->cu.stream_synchronize(s->stream), doing, err);
}

#endif
