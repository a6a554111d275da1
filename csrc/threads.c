/*
 * threads.c - the worker pool.
 *
 * One wake-up a forward pass; inside it, threads meet at barriers that cost a fraction of a
 * microsecond. Waiting starts as spinning, because the next barrier or token is usually that near,
 * goes on yielding, so that where there are more threads than processors those that are waited for
 * get to run, and ends parked in the kernel, so that an idle machine is left alone.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "internal.h"

#if defined(L2C_X86)
#include <immintrin.h>
#define RELAX() _mm_pause()
#elif defined(__aarch64__)
#define RELAX() __asm__ volatile("yield")
#else
#define RELAX() ((void)0)
#endif

enum {
    MAX_THREADS = 256,
    SPINS = 20000,             /* before yielding, which gives others a whole time slice: some 200 microseconds */
    SPINS_OVERSUBSCRIBED = 20, /* with fewer processors than threads */
    YIELDS = 16,               /* between looks at the clock */
    PARK_AFTER = 2000000,      /* nanoseconds of yielding before parking */
    CACHE_LINE = 64
};

typedef struct {
    l2c_pool *pool;
    int index;
    pthread_t id;
} worker;

/* Where a thread of the pool last ran, written at every barrier: on a line of its own. */
typedef struct {
    _Alignas(CACHE_LINE) atomic_int cpu;
} place;

struct l2c_pool {
    int n_threads; /* the caller included */
    int n_started; /* workers that run, n_threads - 1 unless the system refused some */
    atomic_long owner; /* the process that the workers live in; 0 while they are being started */
    worker *workers;
    place *places; /* (n_threads) */
#if defined(__linux__)
    cpu_set_t allowed; /* where the program lets its threads run */
#endif
    pthread_mutex_t run_lock; /* one job at a time */
    pthread_mutex_t park_lock;
    pthread_cond_t wake;
    atomic_int n_parked; /* changed under park_lock */
    int spins;

    l2c_task task;
    void *arg;
    int n_active; /* threads in the current job */
    /* Written by all threads at full speed, hence each on a line of its own. */
    _Alignas(CACHE_LINE) atomic_uint job;     /* changes when there is work, or it is time to quit */
    _Alignas(CACHE_LINE) atomic_uint arrived; /* threads at the barrier */
    _Alignas(CACHE_LINE) atomic_uint phase;   /* changes when all are there */
    _Alignas(CACHE_LINE) atomic_int quit;
};

static int64_t nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

#if defined(__linux__)
static void note_place(l2c_pool *pool, int thread) {
    atomic_store_explicit(&pool->places[thread].cpu, sched_getcpu(), memory_order_relaxed);
}

/*
 * Kernels sometimes put two threads that wait for each other on one processor beside an idle one, above
 * all when one wakes the other, and each then waits for the other's time slice. A worker that finds itself
 * there, or is about to park, confines itself to processors where no other of the pool was seen.
 */
static void move_away(l2c_pool *pool, int thread, int even_if_alone) {
    cpu_set_t others = pool->allowed;
    int here = sched_getcpu(), shared = even_if_alone;
    if (thread == 0) return; /* the caller's thread is not ours to move */
    for (int i = 0; i < pool->n_threads; i++) {
        int cpu = atomic_load_explicit(&pool->places[i].cpu, memory_order_relaxed);
        if (i == thread || cpu < 0 || cpu >= CPU_SETSIZE) continue;
        shared |= cpu == here;
        CPU_CLR(cpu, &others);
    }
    if (shared && CPU_COUNT(&others) > 0) sched_setaffinity(0, sizeof others, &others);
}
#else
static void note_place(l2c_pool *pool, int thread) { (void)pool, (void)thread; }
static void move_away(l2c_pool *pool, int thread, int even_if_alone) { (void)pool, (void)thread, (void)even_if_alone; }
#endif

/*
 * Returns when *word is no longer what it was. Waking a parked thread takes 50 microseconds and more,
 * above all in a virtual machine, and one that parks before its partner has woken makes the partner
 * park as well, at every barrier from then on. So parking is for when nothing comes for long; until
 * then, yielding lets others have the processor, should this thread's partner be among them.
 */
static void wait_for_change(l2c_pool *pool, int thread, atomic_uint *word, unsigned was) {
    for (int spins = 0; spins < pool->spins; spins++) {
        if (atomic_load_explicit(word, memory_order_acquire) != was) return;
        RELAX();
    }
    move_away(pool, thread, 0);
    for (int64_t end = nanoseconds() + PARK_AFTER; nanoseconds() < end;)
        for (int i = 0; i < YIELDS; i++) {
            if (atomic_load_explicit(word, memory_order_acquire) != was) return;
            sched_yield();
        }
    move_away(pool, thread, 1);
    pthread_mutex_lock(&pool->park_lock);
    atomic_fetch_add(&pool->n_parked, 1);
    while (atomic_load(word) == was) pthread_cond_wait(&pool->wake, &pool->park_lock);
    atomic_fetch_sub(&pool->n_parked, 1);
    pthread_mutex_unlock(&pool->park_lock);
}

/* Sequentially consistent on both sides: either this sees the waiter parked, or the waiter, which
 * counts itself before its last look, sees the change. */
static void change(l2c_pool *pool, atomic_uint *word) {
    atomic_fetch_add(word, 1);
    if (atomic_load(&pool->n_parked) == 0) return;
    pthread_mutex_lock(&pool->park_lock);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->park_lock);
}

void l2c_pool_barrier(l2c_pool *pool, int thread) {
    unsigned n = (unsigned)pool->n_active;
    if (n == 1) return;
    note_place(pool, thread);
    unsigned phase = atomic_load_explicit(&pool->phase, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&pool->arrived, 1, memory_order_acq_rel) == n - 1) {
        atomic_store_explicit(&pool->arrived, 0, memory_order_relaxed);
        change(pool, &pool->phase);
    } else {
        wait_for_change(pool, thread, &pool->phase, phase);
    }
}

static void *worker_main(void *arg) {
    worker *self = arg;
    l2c_pool *pool = self->pool;
    unsigned last = 0;
    for (;;) {
        wait_for_change(pool, self->index, &pool->job, last);
        last++;
        if (atomic_load(&pool->quit)) return NULL;
        pool->task(pool->arg, self->index, pool->n_active);
        l2c_pool_barrier(pool, self->index);
    }
}

/* Starts the workers in this process. Fewer than asked for is not an error: work is split over
 * those there are, with the same result. */
static void start_workers(l2c_pool *pool) {
    pthread_mutex_init(&pool->run_lock, NULL);
    pthread_mutex_init(&pool->park_lock, NULL);
    pthread_cond_init(&pool->wake, NULL);
    pool->n_started = 0;
    pool->spins = sysconf(_SC_NPROCESSORS_ONLN) < pool->n_threads ? SPINS_OVERSUBSCRIBED : SPINS;
    atomic_init(&pool->n_parked, 0);
    atomic_init(&pool->job, 0);
    atomic_init(&pool->arrived, 0);
    atomic_init(&pool->phase, 0);
    atomic_init(&pool->quit, 0);
    for (int i = 0; i < pool->n_threads; i++) atomic_init(&pool->places[i].cpu, -1);
#if defined(__linux__)
    if (sched_getaffinity(0, sizeof pool->allowed, &pool->allowed) != 0) CPU_ZERO(&pool->allowed);
#endif
    /* Signals belong to the program's own threads. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    for (int i = 0; i < pool->n_threads - 1; i++) {
        worker *w = &pool->workers[i];
        w->pool = pool;
        w->index = i + 1;
        if (pthread_create(&w->id, NULL, worker_main, w) != 0) break;
        pool->n_started++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    atomic_store(&pool->owner, (long)getpid());
}

l2c_status l2c_pool_create(int32_t n_threads, l2c_pool **pool, l2c_error *err) {
    if (n_threads < 1 || n_threads > MAX_THREADS)
        return l2c_fail(err, L2C_ARG, "threads is %d; it must be 1 to %d", n_threads, MAX_THREADS);
    l2c_pool *p = l2c_memory_zeroed(1, sizeof *p);
    worker *workers = calloc((size_t)n_threads, sizeof *workers);
    place *places = l2c_memory_zeroed((size_t)n_threads, sizeof *places);
    if (p == NULL || workers == NULL || places == NULL) {
        l2c_memory_free(p);
        l2c_memory_free(places);
        free(workers);
        return l2c_fail(err, L2C_NOMEM, "out of memory for a pool of %d threads", n_threads);
    }
    p->n_threads = n_threads;
    p->workers = workers;
    p->places = places;
    start_workers(p);
    *pool = p;
    return L2C_OK;
}

int l2c_pool_size(const l2c_pool *pool) { return pool->n_threads; }

/* After fork() the child has the pool's memory but none of its threads. */
static void restart_after_fork(l2c_pool *pool) {
    long self = (long)getpid(), owner = atomic_load(&pool->owner);
    if (owner == self) return;
    if (owner != 0 && atomic_compare_exchange_strong(&pool->owner, &owner, 0)) {
        start_workers(pool);
        return;
    }
    while (atomic_load(&pool->owner) != self) sched_yield(); /* another thread is at it */
}

void l2c_pool_run(l2c_pool *pool, l2c_task task, void *arg) {
    restart_after_fork(pool);
    pthread_mutex_lock(&pool->run_lock);
    pool->task = task;
    pool->arg = arg;
    pool->n_active = pool->n_started + 1;
    if (pool->n_active > 1) change(pool, &pool->job);
    task(arg, 0, pool->n_active);
    l2c_pool_barrier(pool, 0); /* nobody still uses arg */
    pthread_mutex_unlock(&pool->run_lock);
}

void l2c_pool_free(l2c_pool *pool) {
    if (pool == NULL) return;
    if (atomic_load(&pool->owner) == (long)getpid()) {
        atomic_store(&pool->quit, 1);
        change(pool, &pool->job);
        for (int i = 0; i < pool->n_started; i++) pthread_join(pool->workers[i].id, NULL);
        pthread_cond_destroy(&pool->wake);
        pthread_mutex_destroy(&pool->park_lock);
        pthread_mutex_destroy(&pool->run_lock);
    }
    free(pool->workers);
    l2c_memory_free(pool->places);
    l2c_memory_free(pool);
}
