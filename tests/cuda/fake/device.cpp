// device.cpp - fake_cuda's settings, devices and contexts.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <algorithm>
#include <sstream>
#include "fake_cuda.h"

State state;
static thread_local std::vector<CUcontext> stack; // contexts of this thread, the current one last

static const std::map<std::string, long> DEFAULTS = {{"memory", 4096}, {"driver", 13000}, {"ptx", 90}, {"sms", 2}, {"seed", 1}, {"launch_us", 10}, {"lost_error", 46}};

bool State::strikes(const char *name) {
    long &left = settings[name];
    return left > 0 && --left == 0;
}

void State::configure(const char *text) {
    std::stringstream list(text ? text : "");
    for (std::string item; std::getline(list, item, ',');) {
        size_t at = item.find('=');
        if (at == std::string::npos) { fprintf(stderr, "fake libcuda: FAKE_CUDA: %s has no value\n", item.c_str()); abort(); }
        if (item.substr(0, at) == "cards") card_list = item.substr(at + 1);
        else settings[item.substr(0, at)] = strtol(item.c_str() + at + 1, nullptr, 10);
    }
}

static void make_cards() {
    for (Card *card : state.cards)
        if (card->retained) return; // their list stays until nobody uses one
    for (Card *card : state.cards) delete card;
    state.cards.clear();
    std::stringstream list(state.card_list);
    for (std::string capability; std::getline(list, capability, '+');) {
        Card *card = new Card;
        card->number = (int)state.cards.size();
        card->capability = atoi(capability.c_str());
        state.cards.push_back(card);
    }
}

extern "C" __attribute__((visibility("default"))) void fake_cuda_configure(const char *text) {
    std::lock_guard<std::recursive_mutex> lock(state.mutex);
    if (!state.initialized && state.settings.empty()) state.settings = DEFAULTS;
    state.configure(text);
    if (state.initialized) make_cards();
}

extern "C" __attribute__((visibility("default"))) long fake_cuda_count(const char *name) {
    std::lock_guard<std::recursive_mutex> lock(state.mutex);
    std::map<std::string, long> n = {{"launches", state.launches}, {"waits", state.waits}, {"copies", state.copies},
                                     {"pinned", (long)state.pinned.size()}, {"pushed", (long)stack.size()}};
    for (Card *card : state.cards) {
        n["allocations"] += (long)card->allocations.size();
        n["bytes"] += (long)card->used;
        n["contexts"] += card->retained;
        n["streams"] += (long)card->streams.size();
        n["events"] += (long)card->events.size();
        n["modules"] += (long)card->modules.size();
    }
    return n.count(name) ? n[name] : -1;
}

Call::Call(Needs needs) {
    // A forked child must not even take the lock: another thread of the parent may have held it.
    if (state.process != 0 && state.process != getpid()) { status = CUDA_ERROR_NOT_INITIALIZED; return; }
    lock = std::unique_lock<std::recursive_mutex>(state.mutex);
    if (needs >= INIT && !state.initialized) status = CUDA_ERROR_NOT_INITIALIZED;
    else if (needs == CONTEXT && (stack.empty() || stack.back()->card->retained == 0)) status = CUDA_ERROR_INVALID_CONTEXT;
    else if (needs == CONTEXT) {
        card = stack.back()->card;
        status = card->lost;
    }
}

static Card *find(CUdevice device) {
    return device >= 0 && (size_t)device < state.cards.size() ? state.cards[(size_t)device] : nullptr;
}

API cuInit(unsigned flags) {
    ENTER(NOTHING);
    if (flags != 0) return CUDA_ERROR_INVALID_VALUE;
    if (state.settings.empty()) state.settings = DEFAULTS;
    if (!state.initialized) state.configure(getenv("FAKE_CUDA"));
    if (state.get("init")) return (CUresult)state.get("init");
    make_cards();
    state.process = getpid();
    state.initialized = true;
    return state.cards.empty() ? CUDA_ERROR_NO_DEVICE : CUDA_SUCCESS;
}

API cuDriverGetVersion(int *version) {
    ENTER(NOTHING);
    if (state.settings.empty()) { // allowed before cuInit
        state.settings = DEFAULTS;
        state.configure(getenv("FAKE_CUDA"));
    }
    *version = (int)state.get("driver");
    return CUDA_SUCCESS;
}

static const std::map<int, std::pair<const char *, const char *>> ERRORS = {
    {0, {"CUDA_SUCCESS", "no error"}},
    {1, {"CUDA_ERROR_INVALID_VALUE", "invalid argument"}},
    {2, {"CUDA_ERROR_OUT_OF_MEMORY", "out of memory"}},
    {3, {"CUDA_ERROR_NOT_INITIALIZED", "initialization error"}},
    {46, {"CUDA_ERROR_DEVICE_UNAVAILABLE", "CUDA-capable device(s) is/are busy or unavailable"}},
    {100, {"CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"}},
    {101, {"CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"}},
    {200, {"CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"}},
    {201, {"CUDA_ERROR_INVALID_CONTEXT", "invalid device context"}},
    {209, {"CUDA_ERROR_NO_BINARY_FOR_GPU", "no kernel image is available for execution on the device"}},
    {214, {"CUDA_ERROR_ECC_UNCORRECTABLE", "uncorrectable ECC error encountered"}},
    {218, {"CUDA_ERROR_INVALID_PTX", "a PTX JIT compilation failed"}},
    {221, {"CUDA_ERROR_JIT_COMPILER_NOT_FOUND", "PTX JIT compiler library not found"}},
    {222, {"CUDA_ERROR_UNSUPPORTED_PTX_VERSION", "the provided PTX was compiled with an unsupported toolchain."}},
    {223, {"CUDA_ERROR_JIT_COMPILATION_DISABLED", "PTX JIT compilation was disabled"}},
    {304, {"CUDA_ERROR_OPERATING_SYSTEM", "OS call failed or operation not supported on this OS"}},
    {400, {"CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"}},
    {500, {"CUDA_ERROR_NOT_FOUND", "named symbol not found"}},
    {600, {"CUDA_ERROR_NOT_READY", "device not ready"}},
    {700, {"CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"}},
    {701, {"CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", "too many resources requested for launch"}},
    {702, {"CUDA_ERROR_LAUNCH_TIMEOUT", "the launch timed out and was terminated"}},
    {719, {"CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"}},
    {720, {"CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE", "too many blocks in cooperative launch"}},
    {801, {"CUDA_ERROR_NOT_SUPPORTED", "operation not supported"}},
    {802, {"CUDA_ERROR_SYSTEM_NOT_READY", "system not yet initialized"}},
    {803, {"CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "system has unsupported display driver / cuda driver combination"}},
    {999, {"CUDA_ERROR_UNKNOWN", "unknown error"}},
};
API cuGetErrorName(CUresult error, const char **text) {
    auto found = ERRORS.find((int)error);
    *text = found == ERRORS.end() ? nullptr : found->second.first;
    return *text ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
API cuGetErrorString(CUresult error, const char **text) {
    auto found = ERRORS.find((int)error);
    *text = found == ERRORS.end() ? nullptr : found->second.second;
    return *text ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

// ---- devices ----------------------------------------------------------------------------------------------

API cuDeviceGetCount(int *count) {
    ENTER(INIT);
    *count = (int)state.cards.size();
    return CUDA_SUCCESS;
}
API cuDeviceGet(CUdevice *device, int ordinal) {
    ENTER(INIT);
    if (!find(ordinal)) return CUDA_ERROR_INVALID_DEVICE;
    *device = ordinal;
    return CUDA_SUCCESS;
}
API cuDeviceGetName(char *name, int length, CUdevice device) {
    ENTER(INIT);
    if (!find(device)) return CUDA_ERROR_INVALID_DEVICE;
    snprintf(name, (size_t)length, "Fake sm_%d%s", find(device)->capability, state.get("mig") ? " MIG 1g.10gb" : "");
    return CUDA_SUCCESS;
}
API cuDeviceTotalMem_v2(size_t *bytes, CUdevice device) {
    ENTER(INIT);
    if (!find(device)) return CUDA_ERROR_INVALID_DEVICE;
    *bytes = (size_t)state.get("memory") << 20;
    return CUDA_SUCCESS;
}
API cuDeviceGetPCIBusId(char *id, int length, CUdevice device) {
    ENTER(INIT);
    if (!find(device)) return CUDA_ERROR_INVALID_DEVICE;
    snprintf(id, (size_t)length, "0000:%02X:00.0", device + 1);
    return CUDA_SUCCESS;
}
API cuDeviceGetUuid_v2(CUuuid *uuid, CUdevice device) {
    ENTER(INIT);
    if (!find(device)) return CUDA_ERROR_INVALID_DEVICE;
    memset(uuid->bytes, 0x10 + device, sizeof uuid->bytes);
    return CUDA_SUCCESS;
}

// CUDA C++ Programming Guide, technical specifications per compute capability; 1 KiB of each block is the driver's.
size_t Card::shared_per_sm() const {
    return (size_t)(capability == 75 ? 64 : capability == 80 || capability == 87 ? 164 : capability == 90 || capability / 10 == 10 ? 228 : 100) << 10;
}
size_t Card::shared_optin() const { return shared_per_sm() - (capability == 75 ? 0 : 1 << 10); }

API cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
    ENTER(INIT);
    const Card *c = find(device);
    if (!c) return CUDA_ERROR_INVALID_DEVICE;
    switch (attribute) {
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK:
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X: *value = 1024; break;
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X: *value = 2147483647; break;
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y:
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z: *value = 65535; break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK: *value = 48 << 10; break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: *value = (int)c->shared_optin(); break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR: *value = (int)c->shared_per_sm(); break;
    case CU_DEVICE_ATTRIBUTE_RESERVED_SHARED_MEMORY_PER_BLOCK: *value = c->capability == 75 ? 0 : 1 << 10; break;
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE: *value = 32; break;
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK:
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR: *value = 65536; break;
    case CU_DEVICE_ATTRIBUTE_CLOCK_RATE: *value = 1500000; break;
    case CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE: *value = 1000000; break;
    case CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH: *value = 256; break;
    case CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE: *value = 4 << 20; break;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *value = (int)state.get("sms"); break;
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR: *value = (int)c->threads_per_sm(); break;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCKS_PER_MULTIPROCESSOR: *value = 16; break;
    case CU_DEVICE_ATTRIBUTE_KERNEL_EXEC_TIMEOUT:
    case CU_DEVICE_ATTRIBUTE_INTEGRATED:
    case CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID:
    case CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID: *value = 0; break;
    case CU_DEVICE_ATTRIBUTE_PCI_BUS_ID: *value = device + 1; break;
    case CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY:
    case CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING:
    case CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH: *value = 1; break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_MODE: *value = (int)state.get("mode"); break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *value = c->capability / 10; break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *value = c->capability % 10; break;
    default: return CUDA_ERROR_INVALID_VALUE;
    }
    return CUDA_SUCCESS;
}

// ---- contexts ---------------------------------------------------------------------------------------------

API cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
    ENTER(INIT);
    Card *c = find(device);
    if (!c) return CUDA_ERROR_INVALID_DEVICE;
    if (state.get("retain")) return (CUresult)state.get("retain");
    c->retained++;
    *context = &c->context;
    return CUDA_SUCCESS;
}
API cuDevicePrimaryCtxRelease_v2(CUdevice device) {
    ENTER(INIT);
    Card *c = find(device);
    if (!c || c->retained == 0) return CUDA_ERROR_INVALID_CONTEXT;
    if (--c->retained == 0) {
        free_everything(c);
        c->lost = CUDA_SUCCESS;
    }
    return CUDA_SUCCESS;
}
API cuDevicePrimaryCtxGetState(CUdevice device, unsigned *flags, int *active) {
    ENTER(INIT);
    if (!find(device)) return CUDA_ERROR_INVALID_DEVICE;
    *flags = 0;
    *active = find(device)->retained > 0;
    return CUDA_SUCCESS;
}
API cuCtxPushCurrent_v2(CUcontext context) {
    ENTER(INIT);
    if (!context) return CUDA_ERROR_INVALID_CONTEXT;
    stack.push_back(context);
    return CUDA_SUCCESS;
}
API cuCtxPopCurrent_v2(CUcontext *context) {
    ENTER(INIT);
    if (stack.empty()) return CUDA_ERROR_INVALID_CONTEXT;
    if (context) *context = stack.back();
    stack.pop_back();
    return CUDA_SUCCESS;
}
API cuCtxGetCurrent(CUcontext *context) {
    ENTER(INIT);
    *context = stack.empty() ? nullptr : stack.back();
    return CUDA_SUCCESS;
}
API cuCtxSetCurrent(CUcontext context) {
    ENTER(INIT);
    if (!stack.empty()) stack.pop_back();
    if (context) stack.push_back(context);
    return CUDA_SUCCESS;
}
API cuCtxGetDevice(CUdevice *device) {
    ENTER(CONTEXT);
    *device = card->number;
    return CUDA_SUCCESS;
}
API cuCtxSynchronize(void) {
    ENTER(CONTEXT);
    CUresult status = wait_for(&card->default_stream);
    return status != CUDA_SUCCESS ? status : drain_all(card);
}
