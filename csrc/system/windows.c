/*
 * windows.c - the operating system: mapped files and aligned memory (Windows).
 */
#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#define NOMINMAX
#include <windows.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <wchar.h>

#include "internal.h"

enum { CACHE_LINE = 64 };

/* ---- Files -------------------------------------------------------------------------------------- */

/* A Windows error code as errno, which Python makes its exceptions from. */
static int errno_of(DWORD code) {
    switch (code) {
    case ERROR_FILE_NOT_FOUND: case ERROR_PATH_NOT_FOUND: case ERROR_INVALID_DRIVE: case ERROR_INVALID_NAME:
    case ERROR_BAD_PATHNAME: case ERROR_BAD_NETPATH: case ERROR_BAD_NET_NAME: case ERROR_NO_UNICODE_TRANSLATION:
        return ENOENT;
    case ERROR_ACCESS_DENIED: case ERROR_SHARING_VIOLATION: case ERROR_LOCK_VIOLATION: return EACCES;
    case ERROR_NOT_ENOUGH_MEMORY: case ERROR_OUTOFMEMORY: case ERROR_COMMITMENT_LIMIT: return ENOMEM;
    case ERROR_TOO_MANY_OPEN_FILES: return EMFILE;
    case ERROR_FILENAME_EXCED_RANGE: return ENAMETOOLONG;
    default: return EIO;
    }
}

static l2c_status fail_windows(l2c_error *err, DWORD code, const char *what) {
    int number = errno_of(code);
    l2c_fail(err, L2C_IO, "cannot open %s: %s (Windows error %lu)", what, strerror(number), (unsigned long)code);
    if (err != NULL) err->sys_errno = number;
    return L2C_IO;
}

/* NULL (GetLastError) where the text is not UTF-8 or out of memory; freed with free. */
static wchar_t *utf16(const char *text) {
    int size = MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, text, -1, NULL, 0);
    if (size <= 0) return NULL;
    wchar_t *wide = malloc((size_t)size * sizeof *wide);
    if (wide == NULL) SetLastError(ERROR_NOT_ENOUGH_MEMORY);
    else MultiByteToWideChar(CP_UTF8, 0, text, -1, wide, size);
    return wide;
}

/* The absolute path in UTF-16, of any length: past MAX_PATH, Windows takes only paths that begin with \\?\.
 * NULL (GetLastError) where there is none; freed with free. */
static wchar_t *wide_path(const char *path) {
    static const wchar_t share[] = L"\\\\?\\UNC\\", plain[] = L"\\\\?\\";
    wchar_t *given = utf16(path);
    if (given == NULL) return NULL;
    DWORD room = GetFullPathNameW(given, 0, NULL, NULL), length = 0; /* room is with the final zero */
    size_t front = sizeof share / sizeof *share; /* the longest that may come in front of it */
    wchar_t *wide = malloc((front + room) * sizeof *wide);
    if (wide != NULL && room > 0) length = GetFullPathNameW(given, room, wide + front, NULL);
    free(given);
    if (length == 0 || length >= room) { /* there is none of an empty path; or the current folder changed meanwhile */
        SetLastError(wide == NULL ? ERROR_NOT_ENOUGH_MEMORY : ERROR_PATH_NOT_FOUND);
        free(wide);
        return NULL;
    }
    wchar_t *full = wide + front;
    if (length + 1 < MAX_PATH || wcsncmp(full, L"\\\\?\\", 4) == 0 || wcsncmp(full, L"\\\\.\\", 4) == 0) {
        wmemmove(wide, full, length + 1);
    } else if (wcsncmp(full, L"\\\\", 2) == 0) {
        wmemcpy(wide, share, front - 1);
        wmemmove(wide + front - 1, full + 2, length - 1);
    } else {
        wmemcpy(wide, plain, 4);
        wmemmove(wide + 4, full, length + 1);
    }
    return wide;
}

/* Opens a regular file that is not empty and fits the address space. */
static l2c_status open_file(const char *path, const char *what, HANDLE *file, size_t *size, l2c_error *err) {
    wchar_t *wide = wide_path(path);
    if (wide == NULL) return fail_windows(err, GetLastError(), what);
    /* Others may open it for writing, rename and delete it, as on POSIX. BACKUP_SEMANTICS opens folders as well, to say
     * what they are. */
    HANDLE opened = CreateFileW(wide, GENERIC_READ, FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE, NULL,
                                OPEN_EXISTING, FILE_ATTRIBUTE_NORMAL | FILE_FLAG_BACKUP_SEMANTICS, NULL);
    DWORD code = GetLastError();
    free(wide);
    if (opened == INVALID_HANDLE_VALUE) return fail_windows(err, code, what);
    BY_HANDLE_FILE_INFORMATION info;
    int on_disk = GetFileType(opened) == FILE_TYPE_DISK, known = on_disk && GetFileInformationByHandle(opened, &info);
    code = GetLastError();
    if (!known) {
        CloseHandle(opened);
        return on_disk ? fail_windows(err, code, what) : l2c_fail(err, L2C_FORMAT, "%s is not a regular file", what);
    }
    uint64_t bytes = (uint64_t)info.nFileSizeHigh << 32 | info.nFileSizeLow;
    l2c_status status = L2C_OK;
    if (info.dwFileAttributes & FILE_ATTRIBUTE_DIRECTORY)
        status = l2c_fail(err, L2C_FORMAT, "%s is a directory", what);
    else if (bytes == 0)
        status = l2c_fail(err, L2C_FORMAT, "%s is empty (0 bytes)", what);
    else if (bytes > SIZE_MAX)
        status = l2c_fail(err, L2C_NOMEM, "%s does not fit the address space", what);
    if (status != L2C_OK) {
        CloseHandle(opened);
        return status;
    }
    *file = opened;
    *size = (size_t)bytes;
    return L2C_OK;
}

l2c_status l2c_file_map(const char *path, const char *what, l2c_mapping *mapping, l2c_error *err) {
    HANDLE file;
    size_t size = 0;
    l2c_status status = open_file(path, what, &file, &size, err);
    if (status != L2C_OK) return status;
    HANDLE section = CreateFileMappingW(file, NULL, PAGE_READONLY, 0, 0, NULL);
    void *data = section != NULL ? MapViewOfFile(section, FILE_MAP_READ, 0, 0, size) : NULL;
    DWORD code = GetLastError();
    if (section != NULL) CloseHandle(section); /* the view stays */
    CloseHandle(file);
    if (data == NULL && errno_of(code) == ENOMEM)
        return l2c_fail(err, L2C_NOMEM, "%s of %llu bytes: the address space has no room to map it", what,
                        (unsigned long long)size);
    if (data == NULL) return fail_windows(err, code, what);
    *mapping = (l2c_mapping){data, size, data, size, 1};
    return L2C_OK;
}

l2c_status l2c_file_read(const char *path, const char *what, size_t limit, unsigned char **data, size_t *size,
                         l2c_error *err) {
    HANDLE file;
    l2c_status status = open_file(path, what, &file, size, err);
    if (status != L2C_OK) return status;
    unsigned char *bytes = *size > limit ? NULL : l2c_memory_zeroed(*size, 1);
    size_t at = 0;
    int fine = 1;
    for (DWORD n = 1; bytes != NULL && at < *size && fine && n > 0; at += n) {
        size_t rest = *size - at;
        fine = ReadFile(file, bytes + at, rest < 1 << 30 ? (DWORD)rest : 1 << 30, &n, NULL) != 0;
        if (!fine) n = 0;
    }
    DWORD code = GetLastError();
    CloseHandle(file);
    if (*size > limit)
        status = l2c_fail(err, L2C_FORMAT, "%s of %zu bytes; it can have %zu at most", what, *size, limit);
    else if (bytes == NULL)
        status = l2c_fail(err, L2C_NOMEM, "out of memory for a %s of %zu bytes", what, *size);
    else if (!fine)
        status = fail_windows(err, code, what);
    else if (at < *size)
        status = l2c_fail(err, L2C_FORMAT, "%s became shorter while it was read", what);
    if (status == L2C_OK) *data = bytes;
    else l2c_memory_free(bytes);
    return status;
}

void l2c_file_unmap(l2c_mapping *mapping) {
    if (mapping->block != NULL && mapping->is_file) UnmapViewOfFile(mapping->block);
    else if (mapping->block != NULL) VirtualFree(mapping->block, 0, MEM_RELEASE);
    mapping->block = NULL;
}

void l2c_file_forget(const l2c_mapping *mapping, const void *data, size_t size) {
    /* Pages that were never locked, it removes from the working set: what madvise does elsewhere. */
    if (mapping->is_file && size > 0) VirtualUnlock((void *)(uintptr_t)data, size);
}

/* ---- Memory ------------------------------------------------------------------------------------- */

/* Large pages need a privilege that an administrator grants (SeLockMemoryPrivilege): none are asked for, and a file
 * that is used as it lies stays mapped. */

l2c_status l2c_memory_map(size_t size, l2c_mapping *mapping) {
    void *block = size <= SIZE_MAX / 2 ? VirtualAlloc(NULL, size, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE) : NULL;
    if (block == NULL) return L2C_NOMEM;
    *mapping = (l2c_mapping){block, size, block, size, 0};
    return L2C_OK;
}

int l2c_file_is_moved(size_t size) { return (void)size, 0; }

l2c_status l2c_file_to_memory(l2c_mapping *mapping, size_t header) {
    (void)mapping, (void)header;
    return L2C_UNSUPPORTED;
}

void l2c_memory_wish_huge(void *memory, size_t size) { (void)memory, (void)size; }

/* Large memory comes in pages, whose zeros cost nothing until they are touched. What stands before the memory
 * says how it is freed. */
typedef struct {
    void *block;
    int is_pages;
} origin;

enum { ALIGNMENT = CACHE_LINE, WORTH_PAGES = 128 << 10 };

void *l2c_memory_zeroed(size_t count, size_t size) {
    if (size != 0 && count > (SIZE_MAX / 2) / size) return NULL;
    size_t room = count * size + 2 * ALIGNMENT;
    int is_pages = room >= WORTH_PAGES;
    char *block = is_pages ? VirtualAlloc(NULL, room, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE) : calloc(1, room);
    if (block == NULL) return NULL;
    char *memory = block + ALIGNMENT + (ALIGNMENT - (uintptr_t)block % ALIGNMENT) % ALIGNMENT;
    ((origin *)(void *)memory)[-1] = (origin){block, is_pages};
    return memory;
}

void l2c_memory_free(void *memory) {
    if (memory == NULL) return;
    origin from = ((origin *)memory)[-1];
    if (from.is_pages) VirtualFree(from.block, 0, MEM_RELEASE);
    else free(from.block);
}

/* ---- Time and processes -------------------------------------------------------------------------- */

uint64_t l2c_time_noise(void) {
    FILETIME now; /* in steps of 100 nanoseconds */
    LARGE_INTEGER ticks;
    GetSystemTimeAsFileTime(&now);
    QueryPerformanceCounter(&ticks);
    return ((uint64_t)now.dwHighDateTime << 32 | now.dwLowDateTime) ^ (uint64_t)ticks.QuadPart << 32;
}

unsigned l2c_fork_generation(void) { return 1; } /* there is no fork() */
#endif
