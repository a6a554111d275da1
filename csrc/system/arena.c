/*
 * arena.c - one block of memory of many parts.
 */
#include "internal.h"
#include "poison.h"

void *l2c_arena_part(l2c_arena *a, uint64_t bytes, int huge) {
    enum { LINE = 64, GAP = LINE }; /* after each part: out of bounds; rows of neighbouring parts do not alias */
    uint64_t begin = a->used;
    if (bytes > UINT64_MAX - 2 * GAP || begin > UINT64_MAX - bytes - 2 * GAP) {
        a->used = UINT64_MAX;
        return NULL;
    }
    a->used = begin + (bytes + LINE - 1) / LINE * LINE + GAP;
    if (a->memory == NULL) return NULL;
    L2C_FORBID(a->memory + begin + bytes, (size_t)(a->used - begin - bytes));
    if (huge) l2c_memory_wish_huge(a->memory + begin, (size_t)bytes);
    return a->memory + begin;
}
