// module.cpp - fake_cuda's modules: PTX text is read as far as a launch needs it, and kernels found by its names.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <algorithm>
#include "fake_cuda.h"

static const char CUBIN[] = "\x7f" "FAKE cubin for sm_"; // what linking leaves: this, the capability, a line end, the PTX

static uint64_t fnv1a(const std::string &text) {
    uint64_t hash = 0xCBF29CE484222325ull;
    for (unsigned char c : text) hash = (hash ^ c) * 0x100000001B3ull;
    return hash;
}

static unsigned number_after(const std::string &text, const char *word, size_t from, size_t to, unsigned otherwise) {
    size_t at = text.find(word, from);
    return at < to ? (unsigned)strtoul(text.c_str() + at + strlen(word), nullptr, 10) : otherwise;
}

// The entries of PTX: name, parameters (".param .align 8 .b8 name[104]" or ".param .u64 name"), most threads.
static std::vector<Entry> entries_of(const std::string &ptx) {
    std::vector<Entry> entries;
    for (size_t at = ptx.find(".entry "); at != std::string::npos; at = ptx.find(".entry ", at)) {
        at += strlen(".entry ");
        size_t open = ptx.find('(', at), close = ptx.find(')', open), body = ptx.find('{', close);
        if (body == std::string::npos) break;
        Entry entry;
        entry.name = ptx.substr(at, ptx.find_first_of(" (\n", at) - at);
        for (size_t p = ptx.find(".param", open); p < close; p = ptx.find(".param", p)) {
            size_t end = std::min(ptx.find(',', p), close);
            unsigned size = number_after(ptx, "[", p, end, 0), bits = 0;
            if (size == 0 && sscanf(ptx.c_str() + p, ".param .%*[a-z]%u", &bits) == 1) size = bits / 8;
            unsigned align = number_after(ptx, ".align ", p, end, size);
            entry.bytes = (entry.bytes + align - 1) / align * align;
            entry.params.push_back({entry.bytes, size});
            entry.bytes += size;
            p = end;
        }
        entry.max_threads = number_after(ptx, ".maxntid ", close, body, 1024);
        entries.push_back(entry);
    }
    return entries;
}

// Checks what a driver would: that this is PTX, and PTX for this card and this driver.
static CUresult check(const std::string &ptx, const Card *card) {
    size_t version = ptx.find(".version "), target = ptx.find(".target sm_");
    if (version == std::string::npos || target == std::string::npos) return CUDA_ERROR_INVALID_IMAGE;
    unsigned major = 0, minor = 0;
    sscanf(ptx.c_str() + version, ".version %u.%u", &major, &minor);
    if ((long)(10 * major + minor) > state.get("ptx")) return CUDA_ERROR_UNSUPPORTED_PTX_VERSION;
    if (atoi(ptx.c_str() + target + strlen(".target sm_")) > card->capability) return CUDA_ERROR_NO_BINARY_FOR_GPU;
    return CUDA_SUCCESS;
}

static void write_log(const char *text, unsigned n, CUjit_option *options, void **values) {
    char *log = nullptr;
    size_t size = 0;
    for (unsigned i = 0; i < n; i++) {
        if (options[i] == CU_JIT_ERROR_LOG_BUFFER) log = (char *)values[i];
        if (options[i] == CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES) size = (size_t)values[i];
    }
    if (log && size) snprintf(log, size, "%s", text);
}

API cuModuleLoadDataEx(CUmodule *module, const void *image, unsigned n, CUjit_option *options, void **values) {
    ENTER(CONTEXT);
    if (!image) return CUDA_ERROR_INVALID_VALUE;
    if (state.get("load")) {
        write_log("fake libcuda: the load was told to fail", n, options, values);
        return (CUresult)state.get("load");
    }
    std::string ptx = (const char *)image;
    size_t magic = strlen(CUBIN);
    if (ptx.compare(0, magic, CUBIN) == 0) {
        if (atoi(ptx.c_str() + magic) != card->capability) return CUDA_ERROR_NO_BINARY_FOR_GPU;
        ptx.erase(0, ptx.find('\n') + 1);
    }
    CUresult status = check(ptx, card);
    if (status != CUDA_SUCCESS) return status;
    const FakeText *text = nullptr;
    uint64_t hash = fnv1a(ptx);
    for (size_t i = 0; i < fake_n_texts && !text; i++)
        if (fake_texts[i].hash == 0 || fake_texts[i].hash == hash) text = &fake_texts[i];
    if (!text) {
        write_log("fake libcuda: this is not the PTX that was translated", n, options, values);
        return CUDA_ERROR_INVALID_PTX;
    }
    CUmodule made = new CUmod_st{card, {}};
    for (Entry &entry : entries_of(ptx)) {
        for (size_t i = 0; i < text->n; i++)
            if (entry.name == text->kernels[i].name) entry.kernel = &text->kernels[i];
        if (!entry.kernel) continue; // found missing when it is asked for
        if (entry.kernel->bytes != entry.bytes) {
            fprintf(stderr, "fake libcuda: %s: its PTX takes %u bytes of parameters, not %u\n", entry.name.c_str(), entry.bytes, entry.kernel->bytes);
            delete made;
            return CUDA_ERROR_INVALID_IMAGE;
        }
        made->functions[entry.name] = CUfunc_st{made, entry};
    }
    card->modules.insert(made);
    *module = made;
    return CUDA_SUCCESS;
}
API cuModuleLoadData(CUmodule *module, const void *image) { return cuModuleLoadDataEx(module, image, 0, nullptr, nullptr); }
API cuModuleUnload(CUmodule module) {
    ENTER(CONTEXT);
    if (!card->modules.count(module)) return CUDA_ERROR_INVALID_HANDLE;
    CUresult status = drain_all(card);
    card->modules.erase(module);
    delete module;
    return status;
}
API cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
    ENTER(CONTEXT);
    if (!card->modules.count(module)) return CUDA_ERROR_INVALID_HANDLE;
    auto found = module->functions.find(name);
    if (found == module->functions.end()) return CUDA_ERROR_NOT_FOUND;
    *function = &found->second;
    return CUDA_SUCCESS;
}

API cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction f) {
    ENTER(CONTEXT);
    switch (attribute) {
    case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *value = (int)f->entry.max_threads; break;
    case CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES:
    case CU_FUNC_ATTRIBUTE_CONST_SIZE_BYTES:
    case CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES: *value = 0; break;
    case CU_FUNC_ATTRIBUTE_NUM_REGS: *value = (int)std::min(255u, 65536 / f->entry.max_threads); break;
    case CU_FUNC_ATTRIBUTE_PTX_VERSION:
    case CU_FUNC_ATTRIBUTE_BINARY_VERSION: *value = card->capability; break;
    case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES: *value = (int)f->dynamic_limit; break;
    default: return CUDA_ERROR_INVALID_VALUE;
    }
    return CUDA_SUCCESS;
}
API cuFuncSetAttribute(CUfunction f, CUfunction_attribute attribute, int value) {
    ENTER(CONTEXT);
    if (attribute == CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT) return CUDA_SUCCESS;
    if (attribute != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES || value < 0 || (size_t)value > card->shared_optin()) return CUDA_ERROR_INVALID_VALUE;
    f->dynamic_limit = (unsigned)value;
    return CUDA_SUCCESS;
}
int blocks_per_sm(const Card *card, CUfunction f, unsigned threads, size_t shared) {
    if (threads > f->entry.max_threads || shared > f->dynamic_limit) return 0;
    size_t each = shared + (card->capability == 75 ? 0 : 1 << 10);
    size_t most = std::min<size_t>(16, card->threads_per_sm() / threads);
    return (int)(each > 0 ? std::min(most, card->shared_per_sm() / each) : most);
}
API cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, CUfunction f, int threads, size_t shared) {
    ENTER(CONTEXT);
    if (threads <= 0) return CUDA_ERROR_INVALID_VALUE;
    *blocks = blocks_per_sm(card, f, (unsigned)threads, shared);
    return CUDA_SUCCESS;
}

// ---- linking: PTX to a cubin that the host may keep ----------------------------------------------------------

// The real one's options are for all of a link's life: it writes the log and then its size through what it was given,
// which this one does again in the end.
struct CUlinkState_st { Card *card; std::string cubin, log; unsigned n; CUjit_option *options; void **values; };

static void tell(CUlinkState link) {
    write_log(link->log.c_str(), link->n, link->options, link->values);
    for (unsigned i = 0; i < link->n; i++)
        if (link->options[i] == CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES) link->values[i] = (void *)link->log.size();
}

API cuLinkCreate_v2(unsigned n, CUjit_option *options, void **values, CUlinkState *link) {
    ENTER(CONTEXT);
    *link = new CUlinkState_st{card, {}, {}, n, options, values};
    return CUDA_SUCCESS;
}
API cuLinkAddData_v2(CUlinkState link, CUjitInputType type, void *data, size_t size, const char *name, unsigned n,
                     CUjit_option *options, void **values) {
    ENTER(CONTEXT);
    (void)name, (void)n, (void)options, (void)values;
    if (type != CU_JIT_INPUT_PTX || !link->cubin.empty()) return CUDA_ERROR_INVALID_VALUE;
    std::string ptx((const char *)data, strnlen((const char *)data, size));
    CUresult status = state.get("load") ? (CUresult)state.get("load") : check(ptx, card);
    if (status == CUDA_SUCCESS) link->cubin = CUBIN + std::to_string(card->capability) + "\n" + ptx;
    else if (status == CUDA_ERROR_INVALID_PTX) link->log = "line 7: syntax error\nline 8: another";
    tell(link);
    return status;
}
API cuLinkComplete(CUlinkState link, void **cubin, size_t *size) {
    ENTER(CONTEXT);
    if (link->cubin.empty()) return CUDA_ERROR_INVALID_IMAGE;
    *cubin = (void *)link->cubin.data();
    *size = link->cubin.size() + 1;
    return CUDA_SUCCESS;
}
API cuLinkDestroy(CUlinkState link) {
    ENTER(CONTEXT);
    tell(link);
    delete link;
    return CUDA_SUCCESS;
}
