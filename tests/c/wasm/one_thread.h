/*
 * one_thread.h - what the harness asks of its system, in WebAssembly: included before all else in its files, not in
 * the engine's.
 */
#ifndef L2C_ONE_THREAD_H
#define L2C_ONE_THREAD_H

#include <fenv.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "llama2c.h"

/* A pool of several threads is one of one. */
static inline l2c_status one_thread(int32_t n, l2c_pool **pool, l2c_error *err) {
    return l2c_pool_create(n > 0 ? 1 : n, pool, err);
}
#define l2c_pool_create one_thread

/* There is one way to round. */
#define FE_UPWARD FE_TONEAREST
#define FE_DOWNWARD FE_TONEAREST
#define FE_TOWARDZERO FE_TONEAREST

/* Memory before a page without access: the last of all memory, after which every access traps. What is allocated later
   comes behind it, but for the newest block the guard is real. */
enum { PAGE = 65536 };
static inline void *last_of_memory(size_t size) {
    size_t pages = (size + PAGE - 1) / PAGE;
    if (__builtin_wasm_memory_grow(0, pages) == SIZE_MAX) return MAP_FAILED;
    return (char *)(__builtin_wasm_memory_size(0) * PAGE) - size;
}
#define mmap(at, size, ...) last_of_memory((size) - PAGE)
#define mprotect(...) 0
#define munmap(at, size) ((void)(at), (void)(size), 0)

/* In a folder that the run has to itself. */
static inline char *folder_of_this_name(char *path) { return mkdir(path, 0700) == 0 ? path : NULL; }
#define mkdtemp folder_of_this_name

/* In the place of system/threads.h: tests that start a thread are not run. */
#define L2C_THREADS_H
typedef struct {
    char none;
} l2c_thread;
static inline int l2c_thread_start(l2c_thread *thread, void (*run)(void *), void *arg) {
    return (void)thread, (void)run, (void)arg, 0;
}
static inline int l2c_thread_join(l2c_thread *thread) { return (void)thread, 0; }
static inline void l2c_thread_yield(void) {}

#endif
