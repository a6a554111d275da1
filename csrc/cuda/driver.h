/*
 * driver.h - NVIDIA's driver API: what is used of it, found in the driver's library at run time.
 *
 * The declarations are our own, so that neither building nor running needs a toolkit; a test holds them against cuda.h
 * where there is one. Names are the API's without `cu` and its _v2.
 */
#ifndef L2C_CUDA_DRIVER_H
#define L2C_CUDA_DRIVER_H

#include "internal.h"

typedef int cu_result; /* 0: success */
typedef int cu_device;
typedef uint64_t cu_pointer; /* an address on the card */
typedef struct cu_context_object *cu_context;
typedef struct cu_module_object *cu_module;
typedef struct cu_function_object *cu_function;
typedef struct cu_stream_object *cu_stream;
typedef struct cu_event_object *cu_event;
typedef struct cu_link_object *cu_link;

/* Results that are told apart. */
enum {
    CU_SUCCESS = 0,
    CU_OUT_OF_MEMORY = 2,
    CU_NOT_INITIALIZED = 3,
    CU_DEINITIALIZED = 4,
    CU_STUB_LIBRARY = 34,
    CU_DEVICE_UNAVAILABLE = 46,
    CU_NO_DEVICE = 100,
    CU_INVALID_DEVICE = 101,
    CU_INVALID_IMAGE = 200,
    CU_INVALID_CONTEXT = 201,
    CU_NO_BINARY_FOR_GPU = 209,
    CU_ECC_UNCORRECTABLE = 214,
    CU_INVALID_PTX = 218,
    CU_NVLINK_UNCORRECTABLE = 220,
    CU_JIT_COMPILER_NOT_FOUND = 221,
    CU_UNSUPPORTED_PTX_VERSION = 222,
    CU_JIT_COMPILATION_DISABLED = 223,
    CU_CONTAINED = 226,
    CU_OPERATING_SYSTEM = 304,
    CU_NOT_FOUND = 500,
    CU_ILLEGAL_ADDRESS = 700,
    CU_LAUNCH_TIMEOUT = 702,
    CU_CONTEXT_IS_DESTROYED = 709,
    CU_ASSERT = 710,
    CU_HARDWARE_STACK_ERROR = 714,
    CU_LAUNCH_FAILED = 719,
    CU_COOPERATIVE_LAUNCH_TOO_LARGE = 720,
    CU_NOT_PERMITTED = 800,
    CU_NOT_SUPPORTED = 801,
    CU_SYSTEM_NOT_READY = 802,
    CU_SYSTEM_DRIVER_MISMATCH = 803,
    CU_COMPAT_NOT_SUPPORTED_ON_DEVICE = 804,
    CU_UNKNOWN = 999
};

enum { /* CUdevice_attribute */
    CU_MULTIPROCESSOR_COUNT = 16,
    CU_COMPUTE_MODE = 20,
    CU_CAPABILITY_MAJOR = 75,
    CU_CAPABILITY_MINOR = 76,
    CU_COOPERATIVE_LAUNCH = 95,
    CU_MAX_SHARED_MEMORY_OPTIN = 97
};
enum { CU_MODE_PROHIBITED = 2, CU_MODE_EXCLUSIVE_PROCESS = 3 };
enum { CU_STREAM_NON_BLOCKING = 1, CU_EVENT_DISABLE_TIMING = 2, CU_FUNC_MAX_DYNAMIC_SHARED = 8, CU_JIT_INPUT_PTX = 1 };
enum { CU_JIT_ERROR_LOG = 5, CU_JIT_ERROR_LOG_SIZE = 6 };

/* F(member, the library's name for it, parameters) */
#define L2C_DRIVER_FUNCTIONS(F)                                                                                        \
    F(init, cuInit, (unsigned flags))                                                                                  \
    F(driver_get_version, cuDriverGetVersion, (int *version))                                                          \
    F(get_error_name, cuGetErrorName, (cu_result result, const char **name))                                           \
    F(device_get_count, cuDeviceGetCount, (int *count))                                                                \
    F(device_get, cuDeviceGet, (cu_device *device, int ordinal))                                                       \
    F(device_get_name, cuDeviceGetName, (char *name, int size, cu_device device))                                      \
    F(device_get_pci_bus_id, cuDeviceGetPCIBusId, (char *id, int size, cu_device device))                              \
    F(device_total_mem, cuDeviceTotalMem_v2, (size_t *bytes, cu_device device))                                        \
    F(device_get_attribute, cuDeviceGetAttribute, (int *value, int attribute, cu_device device))                       \
    F(primary_ctx_retain, cuDevicePrimaryCtxRetain, (cu_context *context, cu_device device))                           \
    F(primary_ctx_release, cuDevicePrimaryCtxRelease_v2, (cu_device device))                                           \
    F(ctx_push_current, cuCtxPushCurrent_v2, (cu_context context))                                                     \
    F(ctx_pop_current, cuCtxPopCurrent_v2, (cu_context *context))                                                      \
    F(mem_get_info, cuMemGetInfo_v2, (size_t *free, size_t *total))                                                    \
    F(mem_alloc, cuMemAlloc_v2, (cu_pointer *pointer, size_t bytes))                                                   \
    F(mem_free, cuMemFree_v2, (cu_pointer pointer))                                                                    \
    F(mem_host_alloc, cuMemHostAlloc, (void **memory, size_t bytes, unsigned flags))                                   \
    F(mem_free_host, cuMemFreeHost, (void *memory))                                                                    \
    F(memset_d8_async, cuMemsetD8Async, (cu_pointer to, unsigned char value, size_t bytes, cu_stream stream))          \
    F(memcpy_to_device_async, cuMemcpyHtoDAsync_v2, (cu_pointer to, const void *from, size_t bytes, cu_stream stream)) \
    F(memcpy_to_host_async, cuMemcpyDtoHAsync_v2, (void *to, cu_pointer from, size_t bytes, cu_stream stream))         \
    F(stream_create, cuStreamCreate, (cu_stream *stream, unsigned flags))                                              \
    F(stream_destroy, cuStreamDestroy_v2, (cu_stream stream))                                                          \
    F(stream_synchronize, cuStreamSynchronize, (cu_stream stream))                                                     \
    F(event_create, cuEventCreate, (cu_event *event, unsigned flags))                                                  \
    F(event_destroy, cuEventDestroy_v2, (cu_event event))                                                              \
    F(event_record, cuEventRecord, (cu_event event, cu_stream stream))                                                 \
    F(event_synchronize, cuEventSynchronize, (cu_event event))                                                         \
    F(event_elapsed_time, cuEventElapsedTime, (float *milliseconds, cu_event start, cu_event end))                     \
    F(module_load_data_ex, cuModuleLoadDataEx,                                                                         \
      (cu_module *module, const void *image, unsigned n_options, int *options, void **values))                         \
    F(module_unload, cuModuleUnload, (cu_module module))                                                               \
    F(module_get_function, cuModuleGetFunction, (cu_function *function, cu_module module, const char *name))           \
    F(func_set_attribute, cuFuncSetAttribute, (cu_function function, int attribute, int value))                        \
    F(launch_kernel, cuLaunchKernel,                                                                                   \
      (cu_function function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,    \
       unsigned block_z, unsigned shared_bytes, cu_stream stream, void **parameters, void **extra))                    \
    F(launch_cooperative_kernel, cuLaunchCooperativeKernel,                                                            \
      (cu_function function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,    \
       unsigned block_z, unsigned shared_bytes, cu_stream stream, void **parameters))                                  \
    F(link_create, cuLinkCreate_v2, (unsigned n_options, int *options, void **values, cu_link *link))                  \
    F(link_add_data, cuLinkAddData_v2,                                                                                 \
      (cu_link link, int type, void *data, size_t size, const char *name, unsigned n_options, int *options,            \
       void **values))                                                                                                 \
    F(link_complete, cuLinkComplete, (cu_link link, void **cubin, size_t *size))                                       \
    F(link_destroy, cuLinkDestroy, (cu_link link))

typedef struct {
    int version; /* 12040: it knows CUDA 12.4 */
#define MEMBER(member, symbol, parameters) cu_result (*member) parameters;
    L2C_DRIVER_FUNCTIONS(MEMBER)
#undef MEMBER
} l2c_driver;

/* Loads and starts the driver from this library, or with NULL from the system's. L2C_UNSUPPORTED and L2C_DEVICE say in
 * a sentence why there is none. It stays loaded as long as the process lives. */
l2c_status l2c_driver_load(const char *library, l2c_driver *driver, l2c_error *err);

/* What a result other than CU_SUCCESS means, in a status and a sentence; doing: "loading the kernels". */
l2c_status l2c_driver_fail(const l2c_driver *driver, cu_result result, const char *doing, l2c_error *err);

/* Whether a result says that the card's context is beyond use. */
int l2c_driver_is_lost(cu_result result);

#endif
