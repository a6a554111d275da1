/*
 * system.h - what tests ask of the operating system.
 */
#ifndef L2C_TEST_SYSTEM_H
#define L2C_TEST_SYSTEM_H

#include <stddef.h>

/* `size` bytes, a multiple of every system's pages, after which access ends. */
void *guarded_take(size_t size);
void guarded_give(void *memory, size_t size);

/* A device that reads as nothing. */
extern const char *const NOWHERE;

/* A new folder's path, in UTF-8; freed with free. */
char *folder_make(void);

/* Paths are in UTF-8, absolute, and of any length. */
void folder_make_at(const char *path);
void file_write(const char *path, const void *data, size_t size);
void file_remove(const char *path);
void folder_remove(const char *path);

#endif
