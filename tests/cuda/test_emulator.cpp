/*
 * test_emulator.cpp - the emulator sees what it is there to see.
 */
#include "check.h"
#include "device_on_cpu.h"

namespace {

struct param {
    unsigned *counter;
    int *out;
};

/* The second block waits for a third one. */
void waits_for_nobody(const void *) {
    if (blockIdx.x == 1 && threadIdx.x == 0) emulator::wait_for(&emulator::current->of->barriers, 0);
}

void looks_for_nothing(const void *p) {
    while (load_and_acquire(((const param *)p)->counter) == 0) look_again();
}

void differs_within_a_warp(const void *) {
    if (threadIdx.x % 2) __syncwarp();
    else __ballot_sync(0xFFFFFFFFu, 1);
}

void leaves_a_warp(const void *) {
    if (threadIdx.x == 5) return;
    __syncwarp();
}

void is_well(const void *p) { add_and_release(((const param *)p)->counter, 1); }

/* What the other half of the block wrote, with or without the barrier before; twice, so that one may run ahead. */
template <bool FIRST, bool SECOND> void exchanges(const void *p) {
    int *shared = (int *)shared_memory(), other = threadIdx.x ^ 32;
    for (int i = 0; i < 20; i++) {
        __syncwarp();
        shared[threadIdx.x] = i;
        if (FIRST) __syncthreads();
        ((const param *)p)->out[threadIdx.x] += shared[other] != i;
        if (SECOND) __syncthreads();
    }
}

emulator::status run(void (*kernel)(const void *), const param &p, unsigned blocks, uint64_t seed) {
    emulator::launch l;
    l.kernel = kernel;
    l.param.assign((const unsigned char *)&p, (const unsigned char *)(&p + 1));
    l.grid.x = blocks;
    l.threads = 64;
    l.shared = 64 * sizeof(int);
    l.cooperative = true;
    emulator::enqueue(l);
    return emulator::synchronize(seed);
}

void check_status(const char *what, emulator::status is, emulator::status should_be) {
    check_bytes(what, &is, &should_be, sizeof is);
}

/* Faults that some seed of 20 has shown. */
int shown(void (*kernel)(const void *)) {
    buffer<int> out(64);
    const param p = {nullptr, out.begin()};
    int sum = 0;
    for (uint64_t seed = 0; seed < 20; seed++) run(kernel, p, 1, seed);
    for (int i = 0; i < 64; i++) sum += out[i];
    return sum > 0;
}

} // namespace

void test_emulator() {
    buffer<unsigned> counter(1), nothing(1);
    const param p = {counter.begin(), nullptr}, never = {nothing.begin(), nullptr};
    for (uint64_t seed : {0, 3, 8}) {
        check_status("a thread that waits for nobody", run(waits_for_nobody, p, 2, seed), emulator::DEADLOCK);
        check_status("threads that look for nothing", run(looks_for_nothing, never, 2, seed), emulator::DEADLOCK);
        check_status("different operations of a warp", run(differs_within_a_warp, p, 1, seed), emulator::DIVERGED);
        check_status("a lane that has left", run(leaves_a_warp, p, 1, seed), emulator::DEADLOCK);
        check_status("after a failure", run(is_well, p, 3, seed), emulator::OK);
    }
    const unsigned threads = 3 * 3 * 64;
    check_bytes("each thread runs once", counter.begin(), &threads, sizeof threads);
    const int faults[] = {shown(exchanges<true, true>), shown(exchanges<false, true>), shown(exchanges<true, false>)};
    const int expected[] = {0, 1, 1};
    check_bytes("a barrier that is missing shows", faults, expected, sizeof faults);
}
