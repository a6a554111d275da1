// launch.cpp - fake_cuda's queues: streams, events, kernels.
#include <fenv.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <algorithm>
#include "emulator.h"
#include "fake_cuda.h"

// ---- doing what is queued ---------------------------------------------------------------------------------

// While work is done: memory of the device open, the rounding mode a card's, and a fault of a kernel survived.
static int opened;
static sigjmp_buf fault_return;
static volatile sig_atomic_t in_kernel;
static struct sigaction before;

static void on_fault(int, siginfo_t *info, void *) {
    if (!in_kernel) { // not ours: as it would have been, when the instruction is run again
        sigaction(SIGSEGV, &before, nullptr);
        return;
    }
    fprintf(stderr, "fake libcuda: a kernel reached for %p, which is no memory of the device\n", info->si_addr);
    siglongjmp(fault_return, 1);
}

struct Open {
    Card *card;
    fenv_t environment;
    explicit Open(Card *c) : card(c) {
        if (opened++ > 0) return;
        protect(card, true);
        fegetenv(&environment);
        fesetenv(FE_DFL_ENV);
        struct sigaction action = {};
        action.sa_sigaction = on_fault;
        action.sa_flags = SA_SIGINFO | SA_NODEFER;
        sigaction(SIGSEGV, &action, &before);
    }
    ~Open() {
        if (--opened > 0) return;
        sigaction(SIGSEGV, &before, nullptr);
        fesetenv(&environment);
        protect(card, false);
    }
};

// The device has failed: nothing that was queued is done, and every call says so.
static CUresult lose(Card *card, CUresult error) {
    card->lost = error;
    card->default_stream.queue.clear();
    for (CUstream s : card->streams) s->queue.clear();
    return error;
}

CUresult drain(CUstream stream, uint64_t up_to) {
    Card *card = stream->card;
    Open open(card);
    while (card->lost == CUDA_SUCCESS && !stream->queue.empty() && stream->queue.front().number <= up_to) {
        Work work = std::move(stream->queue.front());
        stream->queue.pop_front();
        // The default stream comes after what blocking streams were given before, and they after it.
        if (stream != &card->default_stream) {
            if (stream->blocking) drain(&card->default_stream, work.number);
        } else {
            for (CUstream other : card->streams)
                if (other->blocking) drain(other, work.number);
        }
        CUresult status = card->lost == CUDA_SUCCESS ? work.run() : card->lost;
        if (status != CUDA_SUCCESS) lose(card, status);
    }
    return card->lost;
}
CUresult drain_all(Card *card) {
    drain(&card->default_stream);
    for (CUstream stream : card->streams) drain(stream);
    return card->lost;
}
CUresult wait_for(CUstream stream, uint64_t up_to) {
    state.waits++;
    CUresult status = drain(stream, up_to);
    if (status == CUDA_SUCCESS && state.strikes("lost")) status = lose(stream->card, (CUresult)state.get("lost_error"));
    return status;
}

static CUstream stream_of(Card *card, CUstream stream) { // NULL for none of this card's
    if (stream == nullptr) return &card->default_stream;
    return card->streams.count(stream) ? stream : nullptr;
}
CUresult enqueue(Card *card, CUstream asked, std::function<CUresult()> run) {
    CUstream stream = stream_of(card, asked);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    stream->queue.push_back({++state.work, std::move(run)});
    return state.get("eager") ? drain(stream) : CUDA_SUCCESS;
}

// ---- streams and events -----------------------------------------------------------------------------------

API cuStreamCreate(CUstream *stream, unsigned flags) {
    ENTER(CONTEXT);
    if (flags > CU_STREAM_NON_BLOCKING) return CUDA_ERROR_INVALID_VALUE;
    *stream = new CUstream_st{card, flags != CU_STREAM_NON_BLOCKING, {}};
    card->streams.insert(*stream);
    return CUDA_SUCCESS;
}
API cuStreamDestroy_v2(CUstream stream) {
    ENTER(CONTEXT);
    if (!card->streams.count(stream)) return CUDA_ERROR_INVALID_HANDLE;
    CUresult status = drain(stream);
    for (CUevent event : card->events)
        if (event->stream == stream) event->stream = nullptr;
    card->streams.erase(stream);
    delete stream;
    return status;
}
API cuStreamSynchronize(CUstream asked) {
    ENTER(CONTEXT);
    CUstream stream = stream_of(card, asked);
    return stream ? wait_for(stream) : CUDA_ERROR_INVALID_HANDLE;
}
// What is asked for is not ready, but becomes so.
API cuStreamQuery(CUstream asked) {
    ENTER(CONTEXT);
    CUstream stream = stream_of(card, asked);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    if (stream->queue.empty()) return CUDA_SUCCESS;
    CUresult status = wait_for(stream);
    return status == CUDA_SUCCESS ? CUDA_ERROR_NOT_READY : status;
}
API cuEventCreate(CUevent *event, unsigned flags) {
    ENTER(CONTEXT);
    (void)flags;
    *event = new CUevent_st{card};
    card->events.insert(*event);
    return CUDA_SUCCESS;
}
API cuEventDestroy_v2(CUevent event) {
    ENTER(CONTEXT);
    if (!card->events.count(event)) return CUDA_ERROR_INVALID_HANDLE;
    CUresult status = event->stream ? drain(event->stream, event->number) : CUDA_SUCCESS;
    card->events.erase(event);
    delete event;
    return status;
}
API cuEventRecord(CUevent event, CUstream asked) {
    ENTER(CONTEXT);
    CUstream stream = stream_of(card, asked);
    if (!stream || !card->events.count(event)) return CUDA_ERROR_INVALID_HANDLE;
    event->stream = stream;
    event->number = state.work + 1;
    return enqueue(card, asked, [=] {
        event->microseconds = card->microseconds;
        return CUDA_SUCCESS;
    });
}
static bool reached(CUevent event) {
    return !event->stream || event->stream->queue.empty() || event->stream->queue.front().number > event->number;
}
API cuEventQuery(CUevent event) {
    ENTER(CONTEXT);
    if (!card->events.count(event)) return CUDA_ERROR_INVALID_HANDLE;
    if (reached(event)) return CUDA_SUCCESS;
    CUresult status = wait_for(event->stream, event->number);
    return status == CUDA_SUCCESS ? CUDA_ERROR_NOT_READY : status;
}
API cuEventSynchronize(CUevent event) {
    ENTER(CONTEXT);
    if (!card->events.count(event)) return CUDA_ERROR_INVALID_HANDLE;
    return event->stream ? wait_for(event->stream, event->number) : CUDA_SUCCESS;
}
API cuEventElapsedTime(float *milliseconds, CUevent start, CUevent end) {
    ENTER(CONTEXT);
    if (!card->events.count(start) || !card->events.count(end)) return CUDA_ERROR_INVALID_HANDLE;
    if (start->number == 0 || end->number == 0) return CUDA_ERROR_INVALID_HANDLE;
    if (!reached(start) || !reached(end)) return CUDA_ERROR_NOT_READY;
    *milliseconds = (float)(end->microseconds - start->microseconds) / 1000.0f;
    return CUDA_SUCCESS;
}
API cuStreamWaitEvent(CUstream asked, CUevent event, unsigned flags) {
    ENTER(CONTEXT);
    if (flags != 0) return CUDA_ERROR_INVALID_VALUE;
    if (!card->events.count(event)) return CUDA_ERROR_INVALID_HANDLE;
    CUstream recorded = event->stream;
    uint64_t number = event->number;
    return enqueue(card, asked, [=] { return recorded ? drain(recorded, number) : CUDA_SUCCESS; });
}

// ---- kernels ----------------------------------------------------------------------------------------------

static CUresult run_kernel(const emulator::launch &launch, const char *name) {
    if (sigsetjmp(fault_return, 1)) {
        in_kernel = 0;
        fprintf(stderr, "fake libcuda: that was %s\n", name);
        return CUDA_ERROR_ILLEGAL_ADDRESS;
    }
    in_kernel = 1;
    emulator::enqueue(launch);
    emulator::status end = emulator::synchronize((uint64_t)state.get("seed"));
    in_kernel = 0;
    if (end == emulator::OK) return CUDA_SUCCESS;
    fprintf(stderr, "fake libcuda: %s: %s\n", name,
            end == emulator::DEADLOCK ? "deadlock" : end == emulator::DIVERGED ? "a warp came apart" : "refused by the emulator");
    return CUDA_ERROR_LAUNCH_FAILED;
}

static CUresult launch_kernel(CUfunction f, const unsigned grid[3], const unsigned block[3], unsigned shared, CUstream stream,
                              void **params, bool cooperative) {
    ENTER(CONTEXT);
    if (!f || !params || f->module->card != card) return CUDA_ERROR_INVALID_HANDLE;
    const Entry &entry = f->entry;
    if (grid[0] == 0 || grid[1] == 0 || grid[2] == 0 || grid[0] > 2147483647u || grid[1] > 65535 || grid[2] > 65535) return CUDA_ERROR_INVALID_VALUE;
    if (block[0] == 0 || block[1] != 1 || block[2] != 1 || block[0] > entry.max_threads) return CUDA_ERROR_INVALID_VALUE;
    if (shared > f->dynamic_limit) return CUDA_ERROR_INVALID_VALUE;
    if (state.strikes("launch_refused")) return CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES;
    if (cooperative && state.get("stays")) return (CUresult)state.get("stays");
    uint64_t resident = (uint64_t)blocks_per_sm(card, f, block[0], shared) * (uint64_t)state.get("sms");
    if (cooperative && (uint64_t)grid[0] * grid[1] * grid[2] > resident)
        return CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE;
    emulator::launch launch;
    launch.kernel = entry.kernel->call;
    launch.param.resize(entry.bytes);
    for (size_t i = 0; i < entry.params.size(); i++) memcpy(launch.param.data() + entry.params[i].first, params[i], entry.params[i].second);
    launch.grid = {grid[0], grid[1], grid[2]};
    launch.threads = block[0];
    launch.shared = shared;
    launch.cooperative = cooperative;
    state.launches++;
    bool fails = state.strikes("launch_fails");
    const char *name = entry.kernel->name;
    return enqueue(card, stream, [=] {
        card->microseconds += state.get("launch_us");
        return fails ? CUDA_ERROR_LAUNCH_FAILED : run_kernel(launch, name);
    });
}

API cuLaunchKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared,
                   CUstream stream, void **params, void **extra) {
    const unsigned grid[3] = {gx, gy, gz}, block[3] = {bx, by, bz};
    if (extra) return CUDA_ERROR_INVALID_VALUE;
    return launch_kernel(f, grid, block, shared, stream, params, false);
}
API cuLaunchCooperativeKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                              unsigned shared, CUstream stream, void **params) {
    const unsigned grid[3] = {gx, gy, gz}, block[3] = {bx, by, bz};
    return launch_kernel(f, grid, block, shared, stream, params, true);
}
