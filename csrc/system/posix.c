/*
 * posix.c - the operating system: mapped files, aligned memory, forks (POSIX).
 */
#if !defined(_WIN32)
#define _GNU_SOURCE /* madvise */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "internal.h"
#include "poison.h"

enum {
    CACHE_LINE = 64,
    HUGE_PAGE = 2 << 20,
    COPY_LIMIT = 1 << 30
};

static l2c_status fail_errno(l2c_error *err, int code, const char *what) {
    l2c_fail(err, L2C_IO, "cannot open %s: %s", what, strerror(code));
    if (err != NULL) err->sys_errno = code;
    return L2C_IO;
}

/* Opens a regular file that is not empty and fits the address space. */
static l2c_status open_file(const char *path, const char *what, int *file, size_t *size, l2c_error *err) {
    /* O_NONBLOCK: opening a named pipe must not wait for somebody to write to it. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return fail_errno(err, errno, what);
    struct stat info;
    if (fstat(fd, &info) != 0) {
        int code = errno;
        close(fd);
        return fail_errno(err, code, what);
    }
    if (!S_ISREG(info.st_mode)) {
        close(fd);
        const char *kind = S_ISDIR(info.st_mode) ? "a directory" : "not a regular file";
        return l2c_fail(err, L2C_FORMAT, "%s is %s", what, kind);
    }
    if (info.st_size <= 0) {
        close(fd);
        return l2c_fail(err, L2C_FORMAT, "%s is empty (0 bytes)", what);
    }
    if ((uint64_t)info.st_size > SIZE_MAX) {
        close(fd);
        return l2c_fail(err, L2C_NOMEM, "%s does not fit the address space", what);
    }
    *file = fd;
    *size = (size_t)info.st_size;
    return L2C_OK;
}

l2c_status l2c_file_map(const char *path, const char *what, l2c_mapping *mapping, l2c_error *err) {
    int fd = -1;
    size_t size = 0;
    l2c_status status = open_file(path, what, &fd, &size, err);
    if (status != L2C_OK) return status;
    void *data = mmap(NULL, size, PROT_READ, MAP_PRIVATE, fd, 0);
    int code = errno;
    close(fd); /* the mapping stays */
    if (data == MAP_FAILED && code == ENOMEM)
        return l2c_fail(err, L2C_NOMEM, "%s of %lld bytes: the address space has no room to map it (ulimit -v?)", what,
                        (long long)size);
    if (data == MAP_FAILED) return fail_errno(err, code, what);
    *mapping = (l2c_mapping){data, size, data, size, 1};
    return L2C_OK;
}

l2c_status l2c_file_read(const char *path, const char *what, size_t limit, unsigned char **data, size_t *size,
                         l2c_error *err) {
    int fd = -1;
    l2c_status status = open_file(path, what, &fd, size, err);
    if (status != L2C_OK) return status;
    unsigned char *bytes = *size > limit ? NULL : l2c_memory_zeroed(*size, 1);
    size_t at = 0;
    ssize_t n = 1;
    while (bytes != NULL && at < *size && (n > 0 || (n < 0 && errno == EINTR))) {
        n = read(fd, bytes + at, *size - at);
        if (n > 0) at += (size_t)n;
    }
    int code = errno;
    close(fd);
    if (*size > limit)
        status = l2c_fail(err, L2C_FORMAT, "%s of %zu bytes; it can have %zu at most", what, *size, limit);
    else if (bytes == NULL)
        status = l2c_fail(err, L2C_NOMEM, "out of memory for a %s of %zu bytes", what, *size);
    else if (n < 0)
        status = fail_errno(err, code, what);
    else if (at < *size)
        status = l2c_fail(err, L2C_FORMAT, "%s became shorter while it was read", what);
    if (status == L2C_OK) *data = bytes;
    else l2c_memory_free(bytes);
    return status;
}

void l2c_file_unmap(l2c_mapping *mapping) {
    if (mapping->block != NULL) munmap(mapping->block, mapping->block_size);
    mapping->block = NULL;
}

void l2c_file_forget(const l2c_mapping *mapping, const void *data, size_t size) {
#if defined(MADV_DONTNEED)
    if (!mapping->is_file || size == 0) return;
    size_t page = (size_t)sysconf(_SC_PAGESIZE), begin = (size_t)((const unsigned char *)data - mapping->data);
    begin -= begin % page; /* a mapping begins on a page */
    madvise((char *)mapping->block + begin, (size_t)((const unsigned char *)data - mapping->data) + size - begin,
            MADV_DONTNEED);
#else
    (void)mapping, (void)data, (void)size;
#endif
}

l2c_status l2c_memory_map(size_t size, l2c_mapping *mapping) {
    if (size > SIZE_MAX / 2) return L2C_NOMEM;
    size_t room = (size + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
    char *block = mmap(NULL, room + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (block == MAP_FAILED) return L2C_NOMEM;
    char *start = block + (HUGE_PAGE - (uintptr_t)block % HUGE_PAGE) % HUGE_PAGE;
#if defined(MADV_HUGEPAGE)
    if (size >= HUGE_PAGE) madvise(start, room, MADV_HUGEPAGE); /* a wish; clearing one takes a while */
#endif
    *mapping = (l2c_mapping){(unsigned char *)start, size, block, room + HUGE_PAGE, 0};
    return L2C_OK;
}

int l2c_file_is_moved(size_t size) {
#if defined(MADV_HUGEPAGE)
    return size <= COPY_LIMIT;
#else
    return (void)size, 0;
#endif
}

l2c_status l2c_file_to_memory(l2c_mapping *mapping, size_t header) {
#if defined(MADV_HUGEPAGE)
    l2c_mapping copy;
    if (!l2c_file_is_moved(mapping->size)) return L2C_UNSUPPORTED;
    if (l2c_memory_map(mapping->size + CACHE_LINE, &copy) != L2C_OK) return L2C_NOMEM;
    copy.data += (CACHE_LINE - header % CACHE_LINE) % CACHE_LINE;
    copy.size = mapping->size;
    for (size_t at = 0, n; at < mapping->size; at += n) { /* not the whole file twice */
        n = mapping->size - at < L2C_MOVED_PIECE ? mapping->size - at : L2C_MOVED_PIECE;
        memcpy((unsigned char *)(uintptr_t)copy.data + at, mapping->data + at, n);
        l2c_file_forget(mapping, mapping->data + at, n);
    }
    l2c_file_unmap(mapping);
    *mapping = copy;
    return L2C_OK;
#else
    (void)mapping, (void)header;
    return L2C_UNSUPPORTED;
#endif
}

/*
 * Large memory comes from mmap, always: calloc recycles what was freed before, and then clears it, which
 * touches all of a cache that a short story uses little of. What stands before the memory says how it is
 * freed. Under AddressSanitizer the pages' rest is out of bounds, as behind any other block.
 */
typedef struct {
    void *block;
    size_t mapped; /* bytes; 0: from calloc */
} origin;

enum { ALIGNMENT = CACHE_LINE, WORTH_MAPPING = 128 << 10 };

void *l2c_memory_zeroed(size_t count, size_t size) {
    if (size != 0 && count > (SIZE_MAX / 2) / size) return NULL;
    size_t bytes = count * size, room = bytes + 2 * ALIGNMENT, mapped = room < WORTH_MAPPING ? 0 : room;
    char *block;
    if (mapped == 0) block = calloc(1, room);
    else block = mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (block == NULL || block == MAP_FAILED) return NULL;
    char *memory = block + ALIGNMENT + (ALIGNMENT - (uintptr_t)block % ALIGNMENT) % ALIGNMENT;
    ((origin *)(void *)memory)[-1] = (origin){block, mapped};
    L2C_FORBID(memory + bytes, (size_t)(block + room - (memory + bytes)));
    return memory;
}

void l2c_memory_free(void *memory) {
    if (memory == NULL) return;
    origin from = ((origin *)memory)[-1];
    if (from.mapped == 0) {
        free(from.block);
        return;
    }
    L2C_ALLOW(from.block, from.mapped);
    munmap(from.block, from.mapped);
}

void l2c_memory_wish_huge(void *memory, size_t size) {
#if defined(MADV_HUGEPAGE)
    size_t skip = (HUGE_PAGE - (uintptr_t)memory % HUGE_PAGE) % HUGE_PAGE;
    if (size >= skip + HUGE_PAGE)
        madvise((char *)memory + skip, (size - skip) / HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE);
#else
    (void)memory, (void)size;
#endif
}

uint64_t l2c_time_noise(void) { return (uint64_t)time(NULL) << 32 ^ (uint64_t)clock(); }

/*
 * Which fork of a fork this process is: the library's one global. A process id would not do, since a child
 * in a namespace of its own may have its parent's.
 */
static atomic_uint generation = 1;
static pthread_once_t counting = PTHREAD_ONCE_INIT;

static void count_fork(void) { atomic_fetch_add(&generation, 1); }
static void count_forks(void) { pthread_atfork(NULL, NULL, count_fork); }

unsigned l2c_fork_generation(void) {
    pthread_once(&counting, count_forks);
    return atomic_load(&generation);
}
#endif
