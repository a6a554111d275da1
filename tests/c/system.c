/*
 * system.c - memory with a guard page, folders and files, of POSIX or Windows.
 */
#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <windows.h>

#include <stdio.h>
#include <stdlib.h>
#include <wchar.h>

#include "harness.h"
#include "system.h"

enum { GUARD = 4096, LONGEST = 2000 };

void *guarded_take(size_t size) {
    char *memory = VirtualAlloc(NULL, size + GUARD, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE);
    DWORD before;
    CHECK(memory != NULL && VirtualProtect(memory + size, GUARD, PAGE_NOACCESS, &before));
    return memory;
}

void guarded_give(void *memory, size_t size) {
    (void)size;
    CHECK(VirtualFree(memory, 0, MEM_RELEASE));
}

const char *const NOWHERE = "NUL";

typedef struct {
    wchar_t text[LONGEST];
} wide;

static wide wide_of(const char *path) {
    wide w = {L"\\\\?\\"};
    CHECK(MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, path, -1, w.text + 4, LONGEST - 4) > 0);
    for (wchar_t *c = w.text; *c; c++)
        if (*c == L'/') *c = L'\\';
    return w;
}

char *folder_make(void) {
    wchar_t temporary[MAX_PATH + 1];
    char *path = malloc(LONGEST);
    CHECK(path != NULL && GetTempPathW(MAX_PATH + 1, temporary) > 0);
    int size = WideCharToMultiByte(CP_UTF8, 0, temporary, -1, path, LONGEST - 64, NULL, NULL); /* ends with a backslash */
    CHECK(size > 0);
    snprintf(path + size - 1, 64, "l2c-harness-%lu-%llx", (unsigned long)GetCurrentProcessId(),
             (unsigned long long)l2c_time_noise());
    folder_make_at(path);
    return path;
}

void folder_make_at(const char *path) { CHECK(CreateDirectoryW(wide_of(path).text, NULL)); }

void file_write(const char *path, const void *data, size_t size) {
    HANDLE file = CreateFileW(wide_of(path).text, GENERIC_WRITE, 0, NULL, CREATE_ALWAYS, FILE_ATTRIBUTE_NORMAL, NULL);
    DWORD written = 0;
    CHECK(file != INVALID_HANDLE_VALUE && (size == 0 || WriteFile(file, data, (DWORD)size, &written, NULL)));
    CHECK(written == size && CloseHandle(file));
}

void file_remove(const char *path) { CHECK(DeleteFileW(wide_of(path).text)); }
void folder_remove(const char *path) { CHECK(RemoveDirectoryW(wide_of(path).text)); }

#else
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "harness.h"
#include "system.h"

void *guarded_take(size_t size) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    char *memory = mmap(NULL, size + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED && mprotect(memory + size, page, PROT_NONE) == 0);
    return memory;
}

void guarded_give(void *memory, size_t size) { CHECK(munmap(memory, size + (size_t)sysconf(_SC_PAGESIZE)) == 0); }

const char *const NOWHERE = "/dev/null";

char *folder_make(void) {
    char *path = strdup("/tmp/l2c-harness-XXXXXX");
    CHECK(path != NULL && mkdtemp(path) != NULL);
    return path;
}

void folder_make_at(const char *path) { CHECK(mkdir(path, 0700) == 0); }

void file_write(const char *path, const void *data, size_t size) {
    FILE *f = fopen(path, "wb");
    CHECK(f != NULL && fwrite(size > 0 ? data : "", 1, size, f) == size && fclose(f) == 0);
}

void file_remove(const char *path) { CHECK(unlink(path) == 0); }
void folder_remove(const char *path) { CHECK(rmdir(path) == 0); }
#endif
