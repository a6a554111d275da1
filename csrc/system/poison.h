/*
 * poison.h - under AddressSanitizer, memory that is ours to take but not to touch.
 */
#ifndef L2C_POISON_H
#define L2C_POISON_H

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define L2C_FORBID(memory, size) ASAN_POISON_MEMORY_REGION(memory, size)
#define L2C_ALLOW(memory, size) ASAN_UNPOISON_MEMORY_REGION(memory, size)
#else
#define L2C_FORBID(memory, size) ((void)0)
#define L2C_ALLOW(memory, size) ((void)0)
#endif

#endif
