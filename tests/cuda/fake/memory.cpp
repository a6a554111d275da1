// memory.cpp - fake_cuda's memory: what the device has, pinned host memory, copies.
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <memory>
#include "fake_cuda.h"

enum { PAGE = 4096, ALIGNMENT = 256 };

void protect(Card *card, bool open) {
    for (auto &[at, a] : card->allocations) mprotect(a.pages + PAGE, a.page_bytes - 2 * PAGE, open ? PROT_READ | PROT_WRITE : PROT_NONE);
}
void free_everything(Card *card) {
    for (auto &[at, a] : card->allocations) munmap(a.pages, a.page_bytes);
    card->allocations.clear();
    card->used = 0;
    for (auto a = state.pinned.begin(); a != state.pinned.end();) {
        if (a->second.card == card) free((void *)a->first);
        a = a->second.card == card ? state.pinned.erase(a) : std::next(a);
    }
    for (CUstream stream : card->streams) delete stream;
    card->streams.clear();
    card->default_stream.queue.clear();
    for (CUevent event : card->events) delete event;
    card->events.clear();
    for (CUmodule module : card->modules) delete module;
    card->modules.clear();
}

// Does [at, at + bytes) lie in one allocation of the card, or in pinned memory?
static bool on_device(Card *card, CUdeviceptr at, size_t bytes) {
    auto a = card->allocations.upper_bound(at);
    if (a == card->allocations.begin()) return false;
    size_t within = at - (--a)->first;
    return within <= a->second.bytes && bytes <= a->second.bytes - within;
}
static bool is_pinned(const void *p, size_t bytes) {
    auto a = state.pinned.upper_bound((uintptr_t)p);
    if (a == state.pinned.begin()) return false;
    size_t within = (uintptr_t)p - (--a)->first;
    return within <= a->second.bytes && bytes <= a->second.bytes - within;
}
static bool reachable(Card *card, CUdeviceptr at, size_t bytes) {
    return on_device(card, at, bytes) || is_pinned((const void *)at, bytes);
}

API cuMemGetInfo_v2(size_t *free, size_t *total) {
    ENTER(CONTEXT);
    size_t taken = card->used + ((size_t)state.get("held") << 20);
    *total = (size_t)state.get("memory") << 20;
    *free = taken < *total ? *total - taken : 0;
    return CUDA_SUCCESS;
}

API cuMemAlloc_v2(CUdeviceptr *at, size_t bytes) {
    ENTER(CONTEXT);
    if (bytes == 0) return CUDA_ERROR_INVALID_VALUE;
    size_t free, total;
    cuMemGetInfo_v2(&free, &total);
    size_t taken = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    if (state.strikes("alloc_fails") || bytes > free || taken > free) return CUDA_ERROR_OUT_OF_MEMORY;
    size_t page_bytes = (taken + PAGE - 1) / PAGE * PAGE + 2 * PAGE; // a page on either side is never opened
    void *pages = mmap(nullptr, page_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (pages == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
    Allocation a{(unsigned char *)pages, page_bytes, bytes};
    memset(a.pages, 0xFF, page_bytes);
    mprotect(a.pages, page_bytes, PROT_NONE);
    *at = (CUdeviceptr)(uintptr_t)(a.pages + page_bytes - PAGE - taken);
    card->allocations[*at] = a;
    card->used += taken;
    return CUDA_SUCCESS;
}
API cuMemFree_v2(CUdeviceptr at) {
    ENTER(CONTEXT);
    if (at == 0) return CUDA_SUCCESS;
    auto a = card->allocations.find(at);
    if (a == card->allocations.end()) return CUDA_ERROR_INVALID_VALUE;
    CUresult status = drain_all(card);
    munmap(a->second.pages, a->second.page_bytes);
    card->used -= (a->second.bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    card->allocations.erase(a);
    return status;
}

API cuMemHostAlloc(void **p, size_t bytes, unsigned flags) {
    ENTER(CONTEXT);
    if (bytes == 0 || flags > 7) return CUDA_ERROR_INVALID_VALUE;
    void *got = state.strikes("pin_fails") ? nullptr : aligned_alloc(PAGE, (bytes + PAGE - 1) / PAGE * PAGE);
    if (!got) return CUDA_ERROR_OUT_OF_MEMORY;
    memset(got, 0xFF, bytes);
    state.pinned[(uintptr_t)got] = {card, bytes};
    *p = got;
    return CUDA_SUCCESS;
}
API cuMemAllocHost_v2(void **p, size_t bytes) { return cuMemHostAlloc(p, bytes, 0); }
API cuMemFreeHost(void *p) {
    ENTER(CONTEXT);
    auto found = state.pinned.find((uintptr_t)p);
    if (found == state.pinned.end()) return CUDA_ERROR_INVALID_VALUE;
    CUresult status = drain_all(card);
    free(p);
    state.pinned.erase(found);
    return status;
}
API cuMemHostGetDevicePointer_v2(CUdeviceptr *at, void *p, unsigned flags) {
    ENTER(CONTEXT);
    if (flags != 0 || !is_pinned(p, 1)) return CUDA_ERROR_INVALID_VALUE;
    *at = (CUdeviceptr)(uintptr_t)p;
    return CUDA_SUCCESS;
}

// ---- copies -----------------------------------------------------------------------------------------------

API cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t bytes, CUstream stream) {
    ENTER(CONTEXT);
    if (!on_device(card, to, bytes)) return CUDA_ERROR_INVALID_VALUE;
    state.copies++;
    std::shared_ptr<std::vector<unsigned char>> staged; // pageable memory is the caller's again when this returns
    if (!is_pinned(from, bytes)) staged = std::make_shared<std::vector<unsigned char>>((const unsigned char *)from, (const unsigned char *)from + bytes);
    return enqueue(card, stream, [=] {
        memcpy((void *)to, staged ? staged->data() : from, bytes);
        return CUDA_SUCCESS;
    });
}
API cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t bytes, CUstream stream) {
    ENTER(CONTEXT);
    if (!on_device(card, from, bytes)) return CUDA_ERROR_INVALID_VALUE;
    state.copies++;
    memset(to, 0xFF, bytes); // undefined until waited for
    CUresult status = enqueue(card, stream, [=] {
        memcpy(to, (const void *)from, bytes);
        return CUDA_SUCCESS;
    });
    if (status == CUDA_SUCCESS && !is_pinned(to, bytes)) status = drain(stream ? stream : &card->default_stream);
    return status;
}
API cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
    ENTER(CONTEXT);
    if (!reachable(card, to, bytes) || !reachable(card, from, bytes)) return CUDA_ERROR_INVALID_VALUE;
    state.copies++;
    return enqueue(card, stream, [=] {
        memmove((void *)to, (const void *)from, bytes);
        return CUDA_SUCCESS;
    });
}
API cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t n, CUstream stream) {
    ENTER(CONTEXT);
    if (!reachable(card, to, n)) return CUDA_ERROR_INVALID_VALUE;
    return enqueue(card, stream, [=] {
        memset((void *)to, value, n);
        return CUDA_SUCCESS;
    });
}
API cuMemsetD32Async(CUdeviceptr to, unsigned value, size_t n, CUstream stream) {
    ENTER(CONTEXT);
    if (to % 4 != 0 || n > SIZE_MAX / 4 || !reachable(card, to, 4 * n)) return CUDA_ERROR_INVALID_VALUE;
    return enqueue(card, stream, [=] {
        for (size_t i = 0; i < n; i++) ((unsigned *)to)[i] = value;
        return CUDA_SUCCESS;
    });
}

// Those that wait go through the default stream, which does not wait for streams of CU_STREAM_NON_BLOCKING.
API cuMemcpyHtoD_v2(CUdeviceptr to, const void *from, size_t bytes) {
    ENTER(CONTEXT);
    CUresult status = cuMemcpyHtoDAsync_v2(to, from, bytes, nullptr);
    return status == CUDA_SUCCESS ? wait_for(&card->default_stream) : status;
}
API cuMemcpyDtoH_v2(void *to, CUdeviceptr from, size_t bytes) {
    ENTER(CONTEXT);
    CUresult status = cuMemcpyDtoHAsync_v2(to, from, bytes, nullptr);
    return status == CUDA_SUCCESS ? wait_for(&card->default_stream) : status;
}
API cuMemcpyDtoD_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes) { return cuMemcpyDtoDAsync_v2(to, from, bytes, nullptr); }
API cuMemsetD8_v2(CUdeviceptr to, unsigned char value, size_t n) { return cuMemsetD8Async(to, value, n, nullptr); }
