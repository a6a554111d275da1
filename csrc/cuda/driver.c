/*
 * driver.c - loading NVIDIA's driver, and its results in words.
 */
#include <stdio.h>
#include <string.h>

#include "driver.h"

#if defined(_WIN32)
#define SYSTEM_LIBRARY "nvcuda.dll"
#else
#define SYSTEM_LIBRARY "libcuda.so.1"
#endif

enum { LEAST_VERSION = 11040 }; /* the first CUDA whose driver reads our PTX (.version 7.4) */
#define LEAST_DRIVER "470"

static l2c_status find_functions(void *library, const char *name, l2c_driver *driver, l2c_error *err) {
    const char *missing = NULL;
    void *address;
    /* a function pointer is copied from a void * by its bytes, as POSIX has it */
#define FIND(member, symbol, parameters)                                                     \
    address = l2c_library_symbol(library, #symbol);                                          \
    if (address == NULL) missing = #symbol;                                                  \
    memcpy(&driver->member, &address, sizeof address);
    L2C_DRIVER_FUNCTIONS(FIND)
#undef FIND
    if (missing == NULL) return L2C_OK;
    return l2c_fail(err, L2C_UNSUPPORTED, "%s lacks %s: the NVIDIA driver is too old (%s or newer is needed), or this is "
                                          "another library", name, missing, LEAST_DRIVER);
}

l2c_status l2c_driver_load(const char *library, l2c_driver *driver, l2c_error *err) {
    const char *name = library != NULL ? library : SYSTEM_LIBRARY;
    char why[160];
    void *loaded = l2c_library_open(name, why, sizeof why);
    if (loaded == NULL) return l2c_fail(err, L2C_UNSUPPORTED, "no NVIDIA driver: %s", why);
    l2c_status status = find_functions(loaded, name, driver, err);
    if (status != L2C_OK) return status;
    cu_result result = driver->init(0);
    /* It tells its version even where it finds no card. */
    if (driver->driver_get_version(&driver->version) == CU_SUCCESS && driver->version < LEAST_VERSION)
        return l2c_fail(err, L2C_UNSUPPORTED, "the NVIDIA driver is too old: it knows CUDA %d.%d; %d.%d is needed (driver "
                                              LEAST_DRIVER " or newer)", driver->version / 1000,
                        driver->version % 1000 / 10, LEAST_VERSION / 1000, LEAST_VERSION % 1000 / 10);
    return result == CU_SUCCESS ? L2C_OK : l2c_driver_fail(driver, result, "starting the NVIDIA driver", err);
}

int l2c_driver_is_lost(cu_result result) {
    return (result >= CU_HARDWARE_STACK_ERROR && result <= CU_LAUNCH_FAILED) || result == CU_ILLEGAL_ADDRESS
        || result == CU_LAUNCH_TIMEOUT || result == CU_CONTEXT_IS_DESTROYED || result == CU_ASSERT
        || result == CU_ECC_UNCORRECTABLE || result == CU_NVLINK_UNCORRECTABLE || result == CU_CONTAINED
        || result == CU_DEVICE_UNAVAILABLE || result == CU_UNKNOWN;
}

/* NULL where only the driver's own name for it can be told. */
static const char *in_words(cu_result result) {
    switch (result) {
    case CU_NOT_INITIALIZED: return "this process was forked from one that uses the driver, and cannot: start processes "
                                    "with \"spawn\"";
    case CU_DEINITIALIZED: return "the process is ending, and the driver has ended already";
    case CU_STUB_LIBRARY: return "the library is the toolkit's stub, not a driver";
    case CU_DEVICE_UNAVAILABLE: return "the card is not available (does another process hold it?)";
    case CU_NO_DEVICE: return "the driver finds no card that this process may use (is it hidden by CUDA_VISIBLE_DEVICES, "
                              "or /dev/nvidia* not readable?)";
    case CU_INVALID_DEVICE: return "there is no such card";
    case CU_JIT_COMPILER_NOT_FOUND: return "the driver's compiler, libnvidia-ptxjitcompiler.so.1, is missing";
    case CU_JIT_COMPILATION_DISABLED: return "CUDA_DISABLE_PTX_JIT forbids the driver to compile";
    case CU_UNSUPPORTED_PTX_VERSION: return "the driver is too old for these kernels (" LEAST_DRIVER " or newer is needed)";
    case CU_NO_BINARY_FOR_GPU:
    case CU_INVALID_IMAGE:
    case CU_INVALID_PTX: return "the driver cannot read the kernels";
    case CU_OPERATING_SYSTEM: return "the operating system refused (may this user open /dev/nvidia*?)";
    case CU_NOT_PERMITTED: return "not permitted to this user";
    case CU_SYSTEM_NOT_READY: return "the machine's cards are not ready (is nvidia-fabricmanager running?)";
    case CU_SYSTEM_DRIVER_MISMATCH: return "the driver's library and its kernel module are of different versions: restart "
                                           "the machine";
    case CU_COMPAT_NOT_SUPPORTED_ON_DEVICE: return "the CUDA compatibility package's driver library does not run on this "
                                                   "card";
    case CU_ECC_UNCORRECTABLE: return "the card's memory failed";
    case CU_ILLEGAL_ADDRESS: return "a kernel went outside its memory";
    case CU_LAUNCH_TIMEOUT: return "a kernel ran into the time limit of a card that also drives a screen";
    case CU_LAUNCH_FAILED: return "a kernel failed";
    case CU_CONTEXT_IS_DESTROYED: return "another part of this process has reset the card";
    default: return NULL;
    }
}

l2c_status l2c_driver_fail(const l2c_driver *driver, cu_result result, const char *doing, l2c_error *err) {
    const char *name = NULL, *words = in_words(result);
    if (driver->get_error_name(result, &name) != CU_SUCCESS || name == NULL) name = "an unknown error";
    l2c_status status = result == CU_OUT_OF_MEMORY ? L2C_NOMEM : L2C_DEVICE;
    if (words == NULL) return l2c_fail(err, status, "%s failed: %s (%d)", doing, name, result);
    return l2c_fail(err, status, "%s failed: %s (%s)", doing, words, name);
}
