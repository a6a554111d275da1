/*
 * absent.c - the second backend where there is none: WebAssembly. A device cannot be opened there, so only what a
 * model asks of every backend is here.
 */
#if defined(__wasm__)
#include "backend.h"
#include "cuda_model.h"

l2c_status l2c_placed_create(l2c_model *m, l2c_dtype dtype, l2c_pool *pool, l2c_device *device, l2c_error *err) {
    (void)m, (void)dtype, (void)pool, (void)device;
    return l2c_fail(err, L2C_UNSUPPORTED, "WebAssembly has no CUDA");
}

void l2c_placed_free(l2c_placed *placed) { (void)placed; }
uint64_t l2c_placed_bytes(const l2c_model *m) { return (void)m, 0; }

const l2c_backend l2c_backend_cuda = {.name = "cuda"};
#endif
