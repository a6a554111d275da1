/*
 * emulator.cpp - fibers, and the order in which they run.
 */
#include "emulator.h"

#include <stdlib.h>
#include <sys/mman.h>

#include <utility>

namespace emulator {

fiber *current;
dim3 grid_size;
unsigned block_size;

namespace {

enum : size_t {
    STACK = 256 << 10,  /* bytes; committed as they are used */
    RESIDENT = 512,     /* threads that are under way at a time, in whole blocks, where blocks need not wait for others */
    MOST_THREADS = 1024 /* of a block */
};
enum { LOOKS = 100 }; /* rounds in which nobody did more than look, until it counts as a deadlock */

void *scheduler_stack;
void (*kernel)(const void *);
const void *param;
status failure;

/* Changes to another stack. What calls must keep, by the System V ABI, is on the stack that is left. */
extern "C" void emulator_switch(void **save, void *load);
__asm__(".text\n.type emulator_switch,@function\nemulator_switch:\n"
        "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
        "movq %rsp,(%rdi)\nmovq %rsi,%rsp\n"
        "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nret\n");

void leave() { emulator_switch(&current->stack_pointer, scheduler_stack); }

void pass_barrier(block *b) {
    b->at_barrier = 0;
    b->any[(b->barriers + 1) & 1] = 0;
    b->barriers++;
}

/* What a fiber does. It never returns. */
void entry() {
    kernel(param);
    block *b = current->of;
    current->done = true;
    if (--b->alive > 0 && b->at_barrier == b->alive) pass_barrier(b); /* who has ended need not come to it */
    leave();
    abort();
}

/* Shared memory: `bytes` of NaN, a multiple of 16, of which the last ones lie before a page without access. */
struct shared_memory {
    unsigned char *map;
    size_t size, bytes;
    explicit shared_memory(size_t wanted) : bytes((wanted + 15) / 16 * 16) {
        enum : size_t { PAGE = 4096 };
        size = (bytes + PAGE - 1) / PAGE * PAGE + PAGE;
        map = (unsigned char *)mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (map == MAP_FAILED || mprotect(map + size - PAGE, PAGE, PROT_NONE) != 0) abort();
        memset(map, 0xFF, size - PAGE);
    }
    unsigned char *begin() const { return map + size - 4096 - bytes; }
    ~shared_memory() { munmap(map, size); }
    shared_memory(const shared_memory &) = delete;
};

unsigned char *stack_of(size_t i) {
    static std::vector<unsigned char *> stacks; /* kept from launch to launch */
    while (stacks.size() <= i) {
        void *stack = mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (stack == MAP_FAILED) abort();
        stacks.push_back((unsigned char *)stack);
    }
    return stacks[i];
}

void start(fiber &f, unsigned char *stack) {
    void **top = (void **)(stack + STACK - 64);
    *--top = nullptr;
    *--top = (void *)entry; /* where emulator_switch returns to */
    for (int i = 0; i < 6; i++) *--top = nullptr;
    f.stack_pointer = top;
}

uint64_t next_random(uint64_t &seed) {
    seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
    return seed >> 20;
}

/* 0 to n - 1, shuffled unless the seed is 0. */
std::vector<uint32_t> order_of(size_t n, uint64_t &seed) {
    std::vector<uint32_t> order(n);
    for (size_t i = 0; i < n; i++) order[i] = (uint32_t)i;
    for (size_t i = n; seed != 0 && i > 1; i--) std::swap(order[i - 1], order[next_random(seed) % i]);
    return order;
}

bool ready(const fiber &f) { return !f.done && (f.waits_for == nullptr || *f.waits_for > f.past); }

/* Runs fibers, in turns, until all are done. With a seed, half of the warps stand still for some turns, others then: so
 * that some are far ahead of what they do not wait for. */
status run_fibers(std::vector<fiber> &fibers, uint64_t &seed) {
    std::vector<uint32_t> order = order_of(fibers.size(), seed);
    std::vector<char> still(fibers.size() / WARP, 0);
    size_t left = fibers.size();
    for (int looks = 0, turns = 0; left > 0; turns--) {
        if (seed != 0 && turns <= 0) {
            turns = 1 + (int)(next_random(seed) % 200);
            for (char &warp : still) warp = (char)(next_random(seed) & 1);
        }
        size_t ran = 0, looked = 0, stood = 0;
        for (uint32_t i : order) {
            fiber &f = fibers[i];
            if (!ready(f)) continue;
            if (still[i / WARP]) {
                stood++;
                continue;
            }
            f.waits_for = nullptr;
            f.looks = false;
            current = &f;
            emulator_switch(&scheduler_stack, f.stack_pointer);
            if (failure != OK) return failure;
            ran++;
            looked += f.looks;
            left -= f.done;
        }
        if (ran == looked && stood > 0) turns = 0; /* let those go on who can */
        looks = ran > looked || stood > 0 ? 0 : looks + 1;
        if (left > 0 && stood == 0 && (ran == 0 || looks > LOOKS)) return DEADLOCK;
    }
    return OK;
}

/* Runs some blocks, by their numbers, at the same time. */
status run_blocks(const launch &l, const uint32_t *numbers, size_t n, uint64_t &seed) {
    std::vector<block> blocks(n);
    std::vector<fiber> fibers(n * l.threads);
    shared_memory shared(n * ((l.shared + 127) / 128 * 128));
    for (size_t i = 0; i < n; i++) {
        block &b = blocks[i];
        b.index = dim3{numbers[i] % l.grid.x, numbers[i] / l.grid.x % l.grid.y, numbers[i] / l.grid.x / l.grid.y};
        b.alive = l.threads;
        b.shared = shared.begin() + i * (shared.bytes / n);
        b.warps.resize(l.threads / WARP);
        for (unsigned t = 0; t < l.threads; t++) {
            fiber &f = fibers[i * l.threads + t];
            f.of = &b;
            f.in_warp = &b.warps[t / WARP];
            f.thread = t;
            f.lane = t % WARP;
            start(f, stack_of(i * l.threads + t));
        }
    }
    return run_fibers(fibers, seed);
}

status run(const launch &l, uint64_t &seed) {
    if (l.threads == 0 || l.threads % WARP != 0 || l.threads > MOST_THREADS) return REFUSED;
    kernel = l.kernel;
    param = l.param.data();
    grid_size = l.grid;
    block_size = l.threads;
    failure = OK;
    size_t n_blocks = (size_t)l.grid.x * l.grid.y * l.grid.z;
    size_t at_once = l.cooperative ? n_blocks : RESIDENT / l.threads > 1 ? RESIDENT / l.threads : 1;
    std::vector<uint32_t> order = order_of(n_blocks, seed);
    for (size_t i = 0; i < n_blocks; i += at_once) {
        status s = run_blocks(l, order.data() + i, n_blocks - i < at_once ? n_blocks - i : at_once, seed);
        if (s != OK) return s;
    }
    return OK;
}

std::vector<launch> queue;

} // namespace

void look_again() {
    current->looks = true;
    leave();
}

void wait_for(const uint64_t *counter, uint64_t past) {
    current->waits_for = counter;
    current->past = past;
    leave();
}

void diverged() {
    failure = DIVERGED;
    leave();
    abort();
}

int barrier(int predicate) {
    block *b = current->of;
    uint64_t mine = current->barriers++;
    b->any[mine & 1] |= predicate;
    if (++b->at_barrier == b->alive) pass_barrier(b);
    else wait_for(&b->barriers, mine);
    return b->any[mine & 1];
}

void enqueue(const launch &l) { queue.push_back(l); }

status synchronize(uint64_t seed) {
    std::vector<launch> work;
    work.swap(queue);
    for (const launch &l : work) {
        status s = run(l, seed);
        if (s != OK) return s;
    }
    return OK;
}

} // namespace emulator
