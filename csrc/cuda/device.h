/*
 * device.h - an open card: its context, kernels, memory; what models and sessions on it share.
 */
#ifndef L2C_CUDA_DEVICE_H
#define L2C_CUDA_DEVICE_H

#include "driver.h"
#include "params.h"

struct l2c_device {
    l2c_driver cu;
    l2c_device_info info;
    cu_device number;
    cu_context context;
    cu_module module; /* NULL until the kernels are loaded */
    cu_function kernels[L2C_GPU_N_KERNELS];
    int32_t shared_limit;                  /* bytes of shared memory that a block may have on this card */
    int cooperative;                       /* 1: it starts grids whose blocks wait for each other */
    void *compiled;                        /* the last result of l2c_device_compile */
    unsigned generation;                   /* of forks: the process that opened it */
    atomic_int lost;                       /* the cu_result that ended it, or 0 */
    _Atomic uint64_t uploaded;             /* bytes of weights */
    atomic_int users;                      /* who keep it: the caller, models, sessions */
};

/* Another user of the device, who ends with l2c_device_free. */
l2c_device *l2c_device_keep(l2c_device *device);

/* Around all that follows: makes the card's context this thread's. L2C_DEVICE, and then no leave, where the card is
 * lost or belongs to the parent of this process. */
l2c_status l2c_device_enter(l2c_device *device, l2c_error *err);
void l2c_device_leave(l2c_device *device);

/* L2C_OK for success; else as l2c_driver_fail, and notes where the card is lost. */
l2c_status l2c_device_check(l2c_device *device, cu_result result, const char *doing, l2c_error *err);

/* Memory on the card; L2C_NOMEM says what for, how much, and what is free. */
l2c_status l2c_device_alloc(l2c_device *device, uint64_t bytes, const char *what, cu_pointer *memory, l2c_error *err);

/* Addresses on the card, as numbers and as the pointers that kernels are given. */
static inline cu_pointer l2c_card_address(const void *pointer) { return (cu_pointer)(uintptr_t)pointer; }
static inline void *l2c_card_pointer(cu_pointer address) { return (void *)(uintptr_t)address; }

/* Starts a kernel; parameter: its struct (params.h), which is copied. */
l2c_status l2c_device_launch(l2c_device *device, cu_stream stream, l2c_gpu_launch launch, void *parameter, l2c_error *err);

#endif
