/*
 * threads.c - the worker pool.
 *
 * One wake-up a forward pass; inside it, threads meet at barriers that cost a fraction of a
 * microsecond. Waiting starts as spinning, because the next barrier or token is usually that near,
 * goes on yielding, so that where there are more threads than processors those that are waited for
 * get to run, and ends parked in the kernel, so that an idle machine is left alone.
 */
#define _GNU_SOURCE
#include "threads.h"

#include <stdlib.h>

#include "float_env.h"
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
    l2c_thread thread;
#if defined(__linux__)
    /* Where others let this thread run, and where it confined itself to last: a third mask says that
     * somebody (taskset, a container) has changed it since. */
    cpu_set_t given, chosen;
#endif
} worker;

/* Where a thread of the pool last ran, written at every barrier: on a line of its own. */
typedef struct {
    _Alignas(CACHE_LINE) atomic_int cpu;
} place;

struct l2c_pool {
    int n_threads; /* the caller included */
    int n_started; /* workers that run, n_threads - 1 unless the system refused some */
    atomic_uint home; /* the process that the workers live in: started(its generation), or starting() */
    worker *workers;
    place *places; /* (n_threads) */
#if defined(__linux__)
    cpu_set_t allowed; /* where the caller of the last job may run; changed under place_lock */
#endif
    l2c_mutex run_lock; /* one job at a time */
    l2c_mutex place_lock;
    l2c_mutex park_lock;
    l2c_condition wake;
    atomic_int n_parked; /* changed under park_lock */
    atomic_int spins;    /* before a waiting thread yields */

    l2c_task task;
    void *arg;
    int n_active; /* threads in the current job */
    /* Written by all threads at full speed, hence each on a line of its own. */
    _Alignas(CACHE_LINE) atomic_uint job;     /* changes when there is work, or it is time to quit */
    _Alignas(CACHE_LINE) atomic_uint arrived; /* threads at the barrier */
    _Alignas(CACHE_LINE) atomic_uint phase;   /* changes when all are there */
    _Alignas(CACHE_LINE) atomic_int quit;
};

/* Of the fork generation, 1 and more, that a pool's workers are started or being started in. */
static unsigned starting(unsigned g) { return 2 * g; }
static unsigned started(unsigned g) { return 2 * g + 1; }

static void set_spins(l2c_pool *pool, long processors) {
    int spins = processors < pool->n_threads ? SPINS_OVERSUBSCRIBED : SPINS;
    atomic_store_explicit(&pool->spins, spins, memory_order_relaxed);
}

#if defined(__linux__)
static void note_place(l2c_pool *pool, int thread) {
    atomic_store_explicit(&pool->places[thread].cpu, sched_getcpu(), memory_order_relaxed);
}

/* At the beginning of a job: where its caller may run, the workers may, and as many processors there are. */
static void note_allowed(l2c_pool *pool) {
    cpu_set_t now;
    if (pool->n_threads == 1 || sched_getaffinity(0, sizeof now, &now) != 0 || CPU_EQUAL(&now, &pool->allowed)) return;
    l2c_mutex_lock(&pool->place_lock);
    pool->allowed = now;
    l2c_mutex_unlock(&pool->place_lock);
    set_spins(pool, CPU_COUNT(&now));
}

/*
 * Kernels sometimes put two threads that wait for each other on one processor beside an idle one, above
 * all when one wakes the other, and each then waits for the other's time slice. A worker that finds itself
 * there, or is about to park, confines itself to processors where no other of the pool was seen: of those
 * that it was given and that the caller may use, so that nobody's wish is undone.
 */
static void move_away(l2c_pool *pool, int thread, int even_if_alone) {
    if (thread == 0) return; /* the caller's thread is not ours to move */
    worker *self = &pool->workers[thread - 1];
    cpu_set_t now, others;
    if (sched_getaffinity(0, sizeof now, &now) != 0) return;
    if (!CPU_EQUAL(&now, &self->chosen)) self->given = self->chosen = now;
    l2c_mutex_lock(&pool->place_lock);
    CPU_AND(&others, &pool->allowed, &self->given);
    l2c_mutex_unlock(&pool->place_lock);
    int here = sched_getcpu(), shared = even_if_alone;
    for (int i = 0; i < pool->n_threads; i++) {
        int cpu = atomic_load_explicit(&pool->places[i].cpu, memory_order_relaxed);
        if (i == thread || cpu < 0 || cpu >= CPU_SETSIZE) continue;
        shared |= cpu == here;
        CPU_CLR(cpu, &others);
    }
    if (shared && CPU_COUNT(&others) > 0 && sched_setaffinity(0, sizeof others, &others) == 0) self->chosen = others;
}
#else
static void note_place(l2c_pool *pool, int thread) { (void)pool, (void)thread; }
static void note_allowed(l2c_pool *pool) { (void)pool; }
static void move_away(l2c_pool *pool, int thread, int even_if_alone) { (void)pool, (void)thread, (void)even_if_alone; }
#endif

/*
 * Returns when *word is no longer what it was. Waking a parked thread takes 50 microseconds and more,
 * above all in a virtual machine, and one that parks before its partner has woken makes the partner
 * park as well, at every barrier from then on. So parking is for when nothing comes for long; until
 * then, yielding lets others have the processor, should this thread's partner be among them.
 */
static void wait_for_change(l2c_pool *pool, int thread, atomic_uint *word, unsigned was) {
    int most = atomic_load_explicit(&pool->spins, memory_order_relaxed);
    for (int spins = 0; spins < most; spins++) {
        if (atomic_load_explicit(word, memory_order_acquire) != was) return;
        RELAX();
    }
    move_away(pool, thread, 0);
    for (int64_t end = l2c_nanoseconds() + PARK_AFTER; l2c_nanoseconds() < end;)
        for (int i = 0; i < YIELDS; i++) {
            if (atomic_load_explicit(word, memory_order_acquire) != was) return;
            l2c_thread_yield();
        }
    move_away(pool, thread, 1);
    l2c_mutex_lock(&pool->park_lock);
    atomic_fetch_add(&pool->n_parked, 1);
    while (atomic_load(word) == was) l2c_condition_wait(&pool->wake, &pool->park_lock);
    atomic_fetch_sub(&pool->n_parked, 1);
    l2c_mutex_unlock(&pool->park_lock);
}

/* Sequentially consistent on both sides: either this sees the waiter parked, or the waiter, which
 * counts itself before its last look, sees the change. */
static void change(l2c_pool *pool, atomic_uint *word) {
    atomic_fetch_add(word, 1);
    if (atomic_load(&pool->n_parked) == 0) return;
    l2c_mutex_lock(&pool->park_lock);
    l2c_condition_broadcast(&pool->wake);
    l2c_mutex_unlock(&pool->park_lock);
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

static void worker_main(void *arg) {
    worker *self = arg;
    l2c_pool *pool = self->pool;
    unsigned last = 0;
    l2c_float_enter(); /* for good: what the starting thread had set is none of ours */
#if defined(__linux__)
    if (sched_getaffinity(0, sizeof self->given, &self->given) != 0) CPU_ZERO(&self->given);
    self->chosen = self->given;
#endif
    for (;;) {
        wait_for_change(pool, self->index, &pool->job, last);
        last++;
        if (atomic_load(&pool->quit)) return;
        pool->task(pool->arg, self->index, pool->n_active);
        l2c_pool_barrier(pool, self->index);
    }
}

/* Starts the workers in this process. Fewer than asked for is not an error: work is split over
 * those there are, with the same result. */
static void start_workers(l2c_pool *pool) {
    l2c_mutex_init(&pool->run_lock);
    l2c_mutex_init(&pool->place_lock);
    l2c_mutex_init(&pool->park_lock);
    l2c_condition_init(&pool->wake);
    pool->n_started = 0;
    set_spins(pool, l2c_processors());
    atomic_init(&pool->n_parked, 0);
    atomic_init(&pool->job, 0);
    atomic_init(&pool->arrived, 0);
    atomic_init(&pool->phase, 0);
    atomic_init(&pool->quit, 0);
    for (int i = 0; i < pool->n_threads; i++) atomic_init(&pool->places[i].cpu, -1);
#if defined(__linux__)
    CPU_ZERO(&pool->allowed);
#endif
    note_allowed(pool);
    for (int i = 0; i < pool->n_threads - 1; i++) {
        worker *w = &pool->workers[i];
        w->pool = pool;
        w->index = i + 1;
        if (!l2c_thread_start(&w->thread, worker_main, w)) break;
        pool->n_started++;
    }
    atomic_store(&pool->home, started(l2c_fork_generation()));
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
    unsigned here = l2c_fork_generation(), home = atomic_load(&pool->home);
    if (home == started(here)) return;
    if (home != starting(here) && atomic_compare_exchange_strong(&pool->home, &home, starting(here))) {
        start_workers(pool);
        return;
    }
    while (atomic_load(&pool->home) != started(here)) l2c_thread_yield(); /* another thread is at it */
}

void l2c_pool_run(l2c_pool *pool, l2c_task task, void *arg) {
    restart_after_fork(pool);
    l2c_mutex_lock(&pool->run_lock);
    note_allowed(pool);
    pool->task = task;
    pool->arg = arg;
    pool->n_active = pool->n_started + 1;
    if (pool->n_active > 1) change(pool, &pool->job);
    task(arg, 0, pool->n_active);
    l2c_pool_barrier(pool, 0); /* nobody still uses arg */
    l2c_mutex_unlock(&pool->run_lock);
}

void l2c_pool_free(l2c_pool *pool) {
    if (pool == NULL) return;
    if (atomic_load(&pool->home) == started(l2c_fork_generation())) {
        atomic_store(&pool->quit, 1);
        change(pool, &pool->job);
        for (int i = 0; i < pool->n_started; i++) l2c_thread_join(&pool->workers[i].thread);
        l2c_condition_destroy(&pool->wake);
        l2c_mutex_destroy(&pool->park_lock);
        l2c_mutex_destroy(&pool->place_lock);
        l2c_mutex_destroy(&pool->run_lock);
    }
    free(pool->workers);
    l2c_memory_free(pool->places);
    l2c_memory_free(pool);
}
