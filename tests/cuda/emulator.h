/*
 * emulator.h - runs a graphics card's kernels on this processor, thread by thread, for tests.
 *
 * Every thread of a grid is a fiber with a stack of its own. It runs until it has to wait: at a barrier of its
 * block, at an operation of its whole warp (a shuffle, a vote, a tensor-core product), or in a loop that looks at
 * memory. Which of the ready fibers runs next is drawn from a seed, so that a missing barrier shows as a difference
 * between seeds. Shared memory begins as NaN and ends where access ends. Kernels are queued, as a stream does.
 *
 * What it cannot show: memory that is ordered more weakly than one thing after another. x86-64 only.
 */
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <vector>

namespace emulator {

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};

enum status {
    OK,
    DEADLOCK, /* every thread waits for another one, or for memory that nobody changes */
    DIVERGED, /* threads of a warp came to different operations of the whole warp */
    REFUSED   /* a block that is not whole warps, or too large */
};

struct launch {
    void (*kernel)(const void *param);
    std::vector<unsigned char> param; /* what the kernel is called with */
    dim3 grid;
    unsigned threads = 32;    /* of a block */
    size_t shared = 0;        /* bytes of dynamic shared memory */
    bool cooperative = false; /* all blocks are there at once, and may wait for each other */
};

/* Queues a kernel. */
void enqueue(const launch &l);

/* Runs what is queued, in order. After one that fails the rest is dropped. Seed 0 is the order of the numbers. */
status synchronize(uint64_t seed);

/* ---- For kernels: who is running, and what threads do together -------------------------------------- */

enum { WARP = 32, MOST_IN = 12, MOST_OUT = 4 };

struct warp {
    uint64_t completed = 0; /* operations of the whole warp */
    unsigned arrived = 0;   /* at the next one */
    int operation = 0;      /* which it is */
    /* Two of each, in turn: a lane may arrive at the next operation before another has read this one's results. */
    uint32_t in[2][WARP][MOST_IN], out[2][WARP][MOST_OUT];
};

struct block {
    dim3 index;
    unsigned alive, at_barrier = 0;
    uint64_t barriers = 0; /* passed */
    int any[2] = {0, 0};   /* some thread's predicate, at the barriers of either parity */
    unsigned char *shared;
    std::vector<warp> warps;
};

struct fiber {
    void *stack_pointer;
    block *of;
    warp *in_warp;
    unsigned thread, lane;
    uint64_t operations = 0, barriers = 0; /* that it has come to */
    const uint64_t *waits_for = nullptr;   /* ready once this is above `past` */
    uint64_t past = 0;
    bool done = false, looks = false; /* looks: it yielded to look at memory again */
};

extern fiber *current;
extern dim3 grid_size;
extern unsigned block_size;

/* Lets others run; for loops that wait for memory to change. */
void look_again();

void wait_for(const uint64_t *counter, uint64_t past);
[[noreturn]] void diverged();

/* The barrier of a block; returns whether any thread's predicate was not 0. */
int barrier(int predicate);

/* An operation of a whole warp. Each lane brings n words; compute(in, out), called once, writes what each gets. Returns
 * this lane's, valid until its next operation. `operation` tells one kind from another. */
template <class Compute>
inline const uint32_t *together(int operation, const uint32_t *words, int n, Compute compute) {
    fiber *f = current;
    warp *w = f->in_warp;
    uint64_t mine = f->operations++;
    int side = (int)(mine & 1);
    if (w->arrived == 0) w->operation = operation;
    else if (w->operation != operation) diverged();
    if (n > 0) memcpy(w->in[side][f->lane], words, (size_t)n * sizeof *words);
    if (++w->arrived < WARP) {
        wait_for(&w->completed, mine);
    } else {
        compute(w->in[side], w->out[side]);
        w->arrived = 0;
        w->completed++;
    }
    return w->out[side][f->lane];
}

/* The operations that kernels use. Lanes are numbers below 32. */
enum { SHUFFLE = 1, BALLOT, SYNC, MMA_M16N8K32, MMA_M8N8K16 };

inline uint32_t shuffle(uint32_t value, unsigned from) {
    const uint32_t words[2] = {value, from};
    return *together(SHUFFLE, words, 2, [](uint32_t(*in)[MOST_IN], uint32_t(*out)[MOST_OUT]) {
        for (int l = 0; l < WARP; l++) out[l][0] = in[in[l][1] % WARP][0];
    });
}

inline uint32_t ballot(bool predicate) {
    const uint32_t word = predicate;
    return *together(BALLOT, &word, 1, [](uint32_t(*in)[MOST_IN], uint32_t(*out)[MOST_OUT]) {
        uint32_t bits = 0;
        for (int l = 0; l < WARP; l++) bits |= in[l][0] << l;
        for (int l = 0; l < WARP; l++) out[l][0] = bits;
    });
}

inline void sync_warp() {
    together(SYNC, nullptr, 0, [](uint32_t(*)[MOST_IN], uint32_t(*)[MOST_OUT]) {});
}

inline int32_t signed_byte(uint32_t word, int i) { return (int8_t)(word >> 8 * i); }

/* d (16, 8) = a (16, 32) b (32, 8) + c, int8 to int32. Lanes hold fragments as the PTX ISA says (mma.m16n8k32):
 * a: words (k / 16) * 2 + row / 8 of lane (row % 8) * 4 + k % 16 / 4; b: word k / 16 of lane col * 4 + k % 16 / 4;
 * c and d: word row / 8 * 2 + col % 2 of lane row % 8 * 4 + col / 2. */
inline void mma_m16n8k32(uint32_t d[4], const uint32_t a[4], const uint32_t b[2], const uint32_t c[4]) {
    const uint32_t words[10] = {a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], c[2], c[3]};
    const uint32_t *result = together(MMA_M16N8K32, words, 10, [](uint32_t(*in)[MOST_IN], uint32_t(*out)[MOST_OUT]) {
        for (int row = 0; row < 16; row++)
            for (int col = 0; col < 8; col++) {
                int lane = row % 8 * 4 + col / 2, at = row / 8 * 2 + col % 2;
                uint32_t sum = in[lane][6 + at];
                for (int k = 0; k < 32; k++)
                    sum += (uint32_t)(signed_byte(in[row % 8 * 4 + k % 16 / 4][k / 16 * 2 + row / 8], k % 4) *
                                      signed_byte(in[col * 4 + k % 16 / 4][4 + k / 16], k % 4));
                out[lane][at] = sum;
            }
    });
    memcpy(d, result, 4 * sizeof *d);
}

/* The same of (8, 16) and (16, 8): word 0 of lane row * 4 + k / 4, and of lane col * 4 + k / 4; c and d: word col % 2
 * of lane row * 4 + col / 2. */
inline void mma_m8n8k16(uint32_t d[2], uint32_t a, uint32_t b, const uint32_t c[2]) {
    const uint32_t words[4] = {a, b, c[0], c[1]};
    const uint32_t *result = together(MMA_M8N8K16, words, 4, [](uint32_t(*in)[MOST_IN], uint32_t(*out)[MOST_OUT]) {
        for (int row = 0; row < 8; row++)
            for (int col = 0; col < 8; col++) {
                int lane = row * 4 + col / 2;
                uint32_t sum = in[lane][2 + col % 2];
                for (int k = 0; k < 16; k++)
                    sum += (uint32_t)(signed_byte(in[row * 4 + k / 4][0], k % 4) *
                                      signed_byte(in[col * 4 + k / 4][1], k % 4));
                out[lane][col % 2] = sum;
            }
    });
    memcpy(d, result, 2 * sizeof *d);
}

} // namespace emulator
