/*
 * library.c - shared libraries, found at run time: a card's driver is libcuda.so.1, or nvcuda.dll.
 */
#define _GNU_SOURCE /* RTLD_NODELETE */
#include <stdio.h>

#include "internal.h"

#if defined(_WIN32)
#include <windows.h>

void *l2c_library_open(const char *name, char *why, size_t size) {
    wchar_t path[MAX_PATH];
    int known = MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, name, -1, path, MAX_PATH) > 0;
    HMODULE library = known ? LoadLibraryW(path) : NULL;
    if (library == NULL) snprintf(why, size, "%s cannot be loaded (Windows error %lu)", name, (unsigned long)GetLastError());
    return library;
}

void *l2c_library_symbol(void *library, const char *name) { return (void *)(uintptr_t)GetProcAddress(library, name); }

#else
#include <dlfcn.h>

void *l2c_library_open(const char *name, char *why, size_t size) {
    /* NODELETE: a driver starts threads of its own, which must find their code until the process ends */
    void *library = dlopen(name, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    const char *message = library == NULL ? dlerror() : NULL;
    if (library == NULL) snprintf(why, size, "%s", message != NULL ? message : name);
    return library;
}

void *l2c_library_symbol(void *library, const char *name) { return dlsym(library, name); }
#endif
