/*
 * wasm.c - the operating system that WebAssembly has: memory, and one thread. Models come from memory.
 */
#if defined(__wasm__)
#include <stddef.h>
#include <stdlib.h>

#include "internal.h"

enum { LINE = 64 };

/* ---- Structs: where pyllama2c/wasm/layout.js has their fields ------------------------------------------- */

#define SIZE(type, size) _Static_assert(sizeof(type) == (size), "layout.js: size of " #type)
#define AT(type, field, offset) _Static_assert(offsetof(type, field) == (offset), "layout.js: " #type "." #field)
SIZE(l2c_error, 264); AT(l2c_error, message, 8);
SIZE(l2c_config, 64); AT(l2c_config, dim, 0); AT(l2c_config, hidden_dim, 4); AT(l2c_config, n_layers, 8);
AT(l2c_config, n_heads, 12); AT(l2c_config, n_kv_heads, 16); AT(l2c_config, head_size, 20);
AT(l2c_config, vocab_size, 24); AT(l2c_config, seq_len, 28);
AT(l2c_config, dtype, 60);
SIZE(l2c_row, 16); AT(l2c_row, sequence, 0); AT(l2c_row, position, 4); AT(l2c_row, token, 8);
AT(l2c_row, want_logits, 12);
SIZE(l2c_sampler, 48); AT(l2c_sampler, temperature, 0); AT(l2c_sampler, top_p, 4); AT(l2c_sampler, top_k, 8);
AT(l2c_sampler, min_p, 12); AT(l2c_sampler, repetition_penalty, 16); AT(l2c_sampler, rng_state, 40);
SIZE(l2c_request, 32); AT(l2c_request, prompt, 0); AT(l2c_request, n_prompt, 4); AT(l2c_request, ends, 8);
AT(l2c_request, n_ends, 12); AT(l2c_request, sampler, 16); AT(l2c_request, max_tokens, 20);
AT(l2c_request, tell, 24); AT(l2c_request, n_top, 28);
SIZE(l2c_event, 48); AT(l2c_event, story, 0); AT(l2c_event, kind, 8); AT(l2c_event, chosen.token, 16);
SIZE(l2c_vocabulary, 48); AT(l2c_vocabulary, n_pieces, 0); AT(l2c_vocabulary, text, 4);
AT(l2c_vocabulary, text_bytes, 8); AT(l2c_vocabulary, lengths, 12); AT(l2c_vocabulary, types, 16);
AT(l2c_vocabulary, scores, 20); AT(l2c_vocabulary, merges, 24); AT(l2c_vocabulary, n_merges, 28);
AT(l2c_vocabulary, split_spaces, 32); AT(l2c_vocabulary, bos, 36); AT(l2c_vocabulary, eos, 40);
AT(l2c_vocabulary, unknown, 44);
#undef SIZE
#undef AT

/* ---- Memory ----------------------------------------------------------------------------------------- */

void *l2c_memory_zeroed(size_t count, size_t size) {
    if (size != 0 && count > (SIZE_MAX / 2) / size) return NULL;
    char *block = calloc(1, count * size + 2 * LINE);
    if (block == NULL) return NULL;
    char *memory = block + LINE + (LINE - (uintptr_t)block % LINE) % LINE;
    ((void **)(void *)memory)[-1] = block;
    return memory;
}

void l2c_memory_free(void *memory) {
    if (memory != NULL) free(((void **)memory)[-1]);
}

void l2c_memory_wish_huge(void *memory, size_t size) { (void)memory, (void)size; }

l2c_status l2c_memory_map(size_t size, l2c_mapping *mapping) {
    void *block = l2c_memory_zeroed(size, 1);
    if (block == NULL) return L2C_NOMEM;
    *mapping = (l2c_mapping){block, size, block, size, 0};
    return L2C_OK;
}

/* ---- Files: none ------------------------------------------------------------------------------------- */

l2c_status l2c_file_map(const char *path, const char *what, l2c_mapping *mapping, l2c_error *err) {
    (void)path, (void)mapping;
    return l2c_fail(err, L2C_UNSUPPORTED, "%s: WebAssembly has no files; open it from memory", what);
}

l2c_status l2c_file_read(const char *path, const char *what, size_t limit, unsigned char **data, size_t *size,
                         l2c_error *err) {
    (void)path, (void)limit, (void)data, (void)size;
    return l2c_fail(err, L2C_UNSUPPORTED, "%s: WebAssembly has no files; open it from memory", what);
}

void l2c_file_unmap(l2c_mapping *mapping) {
    l2c_memory_free(mapping->block);
    mapping->block = NULL;
}

void l2c_file_forget(const l2c_mapping *mapping, const void *data, size_t size) { (void)mapping, (void)data, (void)size; }

int l2c_file_is_moved(size_t size) { return (void)size, 0; }

l2c_status l2c_file_to_memory(l2c_mapping *mapping, size_t header) {
    (void)mapping, (void)header;
    return L2C_UNSUPPORTED;
}

/* ---- Threads: the caller's --------------------------------------------------------------------------- */

struct l2c_pool {
    char is_there;
};

l2c_status l2c_pool_create(int32_t n_threads, l2c_pool **pool, l2c_error *err) {
    if (n_threads != 1)
        return l2c_fail(err, L2C_ARG, "a pool of %d threads; WebAssembly has 1", (int)n_threads);
    *pool = calloc(1, sizeof **pool);
    return *pool != NULL ? L2C_OK : l2c_fail(err, L2C_NOMEM, "out of memory");
}

void l2c_pool_free(l2c_pool *pool) { free(pool); }
int l2c_pool_size(const l2c_pool *pool) { return (void)pool, 1; }
void l2c_pool_run(l2c_pool *pool, l2c_task task, void *arg) { (void)pool, task(arg, 0, 1); }
void l2c_pool_barrier(l2c_pool *pool, int thread) { (void)pool, (void)thread; }
uint64_t l2c_time_noise(void) { return 0; }
int l2c_cpu_count(void) { return 1; }
unsigned l2c_fork_generation(void) { return 0; }
#endif
