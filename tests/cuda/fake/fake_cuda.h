// fake_cuda.h - a libcuda.so.1 without a card: the driver API on the emulator, for whole sessions under the real
// loader, memory, launch and error paths.
//
//   python tests/helpers/fake_cuda.py source    builds it over csrc/cuda/kernels.cu and prints its path
//   python tests/helpers/fake_cuda.py ptx       the same over the shipped PTX, translated to C++
//   PYLLAMA2C_LIBCUDA=<path> FAKE_CUDA=cards=75+90,memory=64 pyllama2c generate --device cuda
//
// What it is strict about, so that a fault of the host shows here and not on a card:
//  - Work is queued until something waits for it (a synchronize, a query, a copy that is not asynchronous, freeing).
//    Pinned memory is read and written only then; what a copy is to fill holds 0xFF until then. With eager=1 all
//    work is done at once instead: whatever the host computes must be the same.
//  - Memory of the device is PROT_NONE for the host, except while work is done; it begins as 0xFF, and ends where a
//    page does. A kernel that reaches past it leaves CUDA_ERROR_ILLEGAL_ADDRESS behind.
//  - A function gets more than 48 KiB of shared memory only after cuFuncSetAttribute, and no more than its card has.
//  - A parameter block must have the size that the PTX says, a module must be PTX text that the card and the driver
//    can take, and over translated PTX exactly the text that was translated.
//  - A kernel that deadlocks has failed. An error of the device sticks to it: every later call gives it again, until
//    the primary context has been released by all.
//  - In a forked child every call gives CUDA_ERROR_NOT_INITIALIZED.
//
// FAKE_CUDA, or fake_cuda_configure (by ctypes: the library is loaded only once in a process), is a list of:
//   cards=75+80     capabilities; a new list takes effect when no context is retained
//   memory=4096     MiB a card has; held=0: MiB of it that others hold
//   driver=13000    what cuDriverGetVersion says; ptx=90: the newest PTX it takes (74 for version 7.4)
//   launch_us=10    microseconds that a launch takes, by the clock that events tell; nothing else takes any
//   sms=2           multiprocessors; seed=1: the order in which the emulator runs threads; eager=0
//   init=100        cuInit gives this error; retain=46, load=218: so do retaining a context, loading a module
//   mode=0          the compute mode (3: one process alone); mig=1: the card's name is that of a part of one
//   stays=720       a cooperative launch gives this error, always
//   alloc_fails=N, pin_fails=N                     the Nth from now is out of memory
//   launch_refused=N                               the Nth launch from now is refused at once (701)
//   launch_fails=N                                 the Nth launch from now fails while it runs (719; sticks)
//   lost=N, lost_error=46                          the Nth wait from now finds the device lost (sticks)
// fake_cuda_count(name) gives: allocations, bytes, pinned, contexts, streams, events, modules (all: alive now),
// launches, waits, copies (all: so far); pushed (contexts on the calling thread's stack).
#pragma once
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>
#include "api.h"
#include "texts.h"

#define API extern "C" __attribute__((visibility("default"))) CUresult

struct Card;
struct CUctx_st { Card *card; };

struct Work {
    uint64_t number;                 // of all work of this process, in the order in which it was asked for
    std::function<CUresult()> run;
};
struct CUstream_st {
    Card *card;
    bool blocking;                   // waits for the default stream, which waits for it
    std::deque<Work> queue;
};
struct CUevent_st {
    Card *card;
    CUstream stream = nullptr;       // where it was recorded last
    uint64_t number = 0;             // as which piece of work; 0: never
    long microseconds = 0;           // when that was done
};

struct Entry {                       // a kernel as its PTX declares it
    std::string name;
    std::vector<std::pair<unsigned, unsigned>> params; // offset and size of each
    unsigned bytes = 0, max_threads = 1024;
    const FakeKernel *kernel = nullptr;
};
struct CUfunc_st { CUmodule module; Entry entry; unsigned dynamic_limit = 48 << 10; };
struct CUmod_st { Card *card; std::map<std::string, CUfunc_st> functions; };

struct Pinned { Card *card; size_t bytes; }; // host memory that the device may reach
struct Allocation { unsigned char *pages; size_t page_bytes, bytes; };

struct Card {
    int number = 0, capability = 0;
    unsigned retained = 0;
    size_t used = 0;
    long microseconds = 0;           // of launches
    CUresult lost = CUDA_SUCCESS;    // what every call gives once the device has failed
    CUctx_st context{this};
    CUstream_st default_stream{this, true, {}};
    std::map<CUdeviceptr, Allocation> allocations;
    std::set<CUstream> streams;
    std::set<CUevent> events;
    std::set<CUmodule> modules;
    size_t shared_optin() const, shared_per_sm() const;
    size_t threads_per_sm() const { return capability == 75 ? 1024 : capability == 80 || capability == 90 || capability == 100 ? 2048 : 1536; }
};

struct State {
    std::recursive_mutex mutex;
    bool initialized = false;
    int process = 0;
    std::vector<Card *> cards;
    std::map<std::string, long> settings;
    std::string card_list = "80";
    std::map<uintptr_t, Pinned> pinned;
    uint64_t work = 0;
    long launches = 0, waits = 0, copies = 0;
    long get(const char *name) { return settings[name]; }
    bool strikes(const char *name);     // counts an injected fault down; true when it is due
    void configure(const char *text);
};
extern State state;

// Opens a call: takes the lock, and finds the current context where the call wants one.
struct Call {
    enum Needs { NOTHING, INIT, CONTEXT };
    std::unique_lock<std::recursive_mutex> lock;
    CUresult status = CUDA_SUCCESS;
    Card *card = nullptr;
    explicit Call(Needs needs);
};
#define ENTER(needs)           \
    Call call(Call::needs);    \
    if (call.status != CUDA_SUCCESS) return call.status; \
    Card *const card = call.card; \
    (void)card

// launch.cpp: queues work; stream NULL is the card's default stream.
CUresult enqueue(Card *card, CUstream stream, std::function<CUresult()> run);
// Does a stream's work up to a number, all of it, or all of a card.
CUresult drain(CUstream stream, uint64_t up_to = UINT64_MAX);
CUresult drain_all(Card *card);
CUresult wait_for(CUstream stream, uint64_t up_to = UINT64_MAX); // the same as a wait of the host: may find the device lost

// module.cpp
int blocks_per_sm(const Card *card, CUfunction f, unsigned threads, size_t shared);

// memory.cpp
void protect(Card *card, bool open);
void free_everything(Card *card);
