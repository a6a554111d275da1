/*
 * threads.h - threads, mutexes and condition variables, of POSIX or Windows.
 */
#ifndef L2C_THREADS_H
#define L2C_THREADS_H

#include <stdint.h>

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#define NOMINMAX
#include <windows.h>

#include <process.h>

typedef SRWLOCK l2c_mutex;
typedef CONDITION_VARIABLE l2c_condition;
typedef HANDLE l2c_thread_id;
#else
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

typedef pthread_mutex_t l2c_mutex;
typedef pthread_cond_t l2c_condition;
typedef pthread_t l2c_thread_id;
#endif

typedef struct {
    void (*run)(void *);
    void *arg;
    l2c_thread_id id;
} l2c_thread;

#if defined(_WIN32)
static inline void l2c_mutex_init(l2c_mutex *mutex) { InitializeSRWLock(mutex); }
static inline void l2c_mutex_destroy(l2c_mutex *mutex) { (void)mutex; }
static inline void l2c_mutex_lock(l2c_mutex *mutex) { AcquireSRWLockExclusive(mutex); }
static inline void l2c_mutex_unlock(l2c_mutex *mutex) { ReleaseSRWLockExclusive(mutex); }

static inline void l2c_condition_init(l2c_condition *condition) { InitializeConditionVariable(condition); }
static inline void l2c_condition_destroy(l2c_condition *condition) { (void)condition; }
static inline void l2c_condition_broadcast(l2c_condition *condition) { WakeAllConditionVariable(condition); }
static inline void l2c_condition_wait(l2c_condition *condition, l2c_mutex *mutex) {
    SleepConditionVariableSRW(condition, mutex, INFINITE, 0);
}

static inline unsigned __stdcall l2c_thread_main(void *arg) {
    l2c_thread *thread = arg;
    thread->run(thread->arg);
    return 0;
}

static inline int l2c_thread_create(l2c_thread *thread) {
    uintptr_t handle = _beginthreadex(NULL, 0, l2c_thread_main, thread, 0, NULL);
    thread->id = (HANDLE)handle;
    return handle != 0;
}

static inline int l2c_thread_join(l2c_thread *thread) {
    return WaitForSingleObject(thread->id, INFINITE) == WAIT_OBJECT_0 && CloseHandle(thread->id);
}

static inline void l2c_thread_yield(void) { SwitchToThread(); }

static inline int64_t l2c_nanoseconds(void) {
    LARGE_INTEGER ticks, a_second;
    QueryPerformanceCounter(&ticks);
    QueryPerformanceFrequency(&a_second);
    int64_t rest = ticks.QuadPart % a_second.QuadPart; /* ticks * 1e9 would overflow within the hour */
    return ticks.QuadPart / a_second.QuadPart * 1000000000 + rest * 1000000000 / a_second.QuadPart;
}

/* How many this process may run on: the mask is 0 where those are in several groups. */
static inline long l2c_processors(void) {
    DWORD_PTR allowed, all;
    long n = 0;
    if (GetProcessAffinityMask(GetCurrentProcess(), &allowed, &all))
        for (; allowed != 0; allowed &= allowed - 1) n++;
    return n > 0 ? n : (long)GetActiveProcessorCount(ALL_PROCESSOR_GROUPS);
}
#else
static inline void l2c_mutex_init(l2c_mutex *mutex) { pthread_mutex_init(mutex, NULL); }
static inline void l2c_mutex_destroy(l2c_mutex *mutex) { pthread_mutex_destroy(mutex); }
static inline void l2c_mutex_lock(l2c_mutex *mutex) { pthread_mutex_lock(mutex); }
static inline void l2c_mutex_unlock(l2c_mutex *mutex) { pthread_mutex_unlock(mutex); }

static inline void l2c_condition_init(l2c_condition *condition) { pthread_cond_init(condition, NULL); }
static inline void l2c_condition_destroy(l2c_condition *condition) { pthread_cond_destroy(condition); }
static inline void l2c_condition_broadcast(l2c_condition *condition) { pthread_cond_broadcast(condition); }
static inline void l2c_condition_wait(l2c_condition *condition, l2c_mutex *mutex) { pthread_cond_wait(condition, mutex); }

static inline void *l2c_thread_main(void *arg) {
    l2c_thread *thread = arg;
    thread->run(thread->arg);
    return NULL;
}

static inline int l2c_thread_create(l2c_thread *thread) {
    sigset_t all, before; /* signals belong to the program's own threads */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int failed = pthread_create(&thread->id, NULL, l2c_thread_main, thread);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return failed == 0;
}

static inline int l2c_thread_join(l2c_thread *thread) { return pthread_join(thread->id, NULL) == 0; }

static inline void l2c_thread_yield(void) { sched_yield(); }

static inline int64_t l2c_nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static inline long l2c_processors(void) { return sysconf(_SC_NPROCESSORS_ONLN); }
#endif

/* Runs run(arg) in a new thread; *thread must not move until it is joined. 0: the system refused. */
static inline int l2c_thread_start(l2c_thread *thread, void (*run)(void *), void *arg) {
    thread->run = run;
    thread->arg = arg;
    return l2c_thread_create(thread);
}

#endif
