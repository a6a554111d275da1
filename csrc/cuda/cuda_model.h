/*
 * cuda_model.h - a model whose weights are on a card.
 */
#ifndef L2C_CUDA_MODEL_H
#define L2C_CUDA_MODEL_H

#include "device.h"

struct l2c_placed {
    l2c_device *device;
    l2c_gpu_layer *layers;              /* (n_layers), on the host: launches take matrices from it */
    const l2c_gpu_layer *card_layers;   /* the same, on the card */
    l2c_gpu_matrix token_embedding;
    l2c_gpu_matrix classifier;
    const float *final_norm;            /* on the card */
    uint64_t bytes;                     /* of card memory */
    cu_pointer *memory;                 /* (n_memory) what is freed in the end */
    size_t n_memory;
};

/* Takes the weights of a model whose header has been read to the card, and gives the file back; sets model->placed,
 * also where it fails. */
l2c_status l2c_placed_create(l2c_model *model, l2c_dtype dtype, l2c_pool *pool, l2c_device *device, l2c_error *err);
void l2c_placed_free(l2c_placed *placed);

/* Bytes of card memory for the weights of a model that was planned (files/pack.c), at most: what turns out to be exact
 * in 16 bits takes less. */
uint64_t l2c_placed_bytes(const l2c_model *model);

#endif
