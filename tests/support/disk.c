/* Preloaded (LD_PRELOAD): a disk that hangs or fails. Only calls on files of an audit log are counted, held and failed:
 * those with "audit.log" in their path. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

enum { WRITE = 1, SYNC = 2, OPEN = 4, NAME = 8 /* rename, link, unlink, mkdir */ };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static int held;
static int counted;
static long count;
static long failing; /* the number of the first call that fails; 0: none does */
static int once;

/* From now on these calls hang, as they would in the kernel; 0: all go on. */
EXPORT void disk_hold(int calls) {
    pthread_mutex_lock(&lock);
    held = calls;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
}

/* Of these calls, counted from now on, the n-th fails with EIO, and unless `only` all that follow; 0: none. */
EXPORT void disk_fail(int calls, long n, int only) {
    pthread_mutex_lock(&lock);
    counted = calls;
    count = 0;
    failing = n;
    once = only;
    pthread_mutex_unlock(&lock);
}

/* How many calls were counted since then. */
EXPORT long disk_count(void) {
    pthread_mutex_lock(&lock);
    long calls = count;
    pthread_mutex_unlock(&lock);
    return calls;
}

/* Whether the call may go on. */
static int passes(int call, const char *path) {
    if (strstr(path, "audit.log") == NULL) {
        return 1;
    }
    pthread_mutex_lock(&lock);
    while (held & call) {
        pthread_cond_wait(&changed, &lock);
    }
    int fails = 0;
    if (counted & call) {
        count++;
        fails = failing > 0 && (once ? count == failing : count >= failing);
    }
    pthread_mutex_unlock(&lock);
    errno = fails ? EIO : errno;
    return !fails;
}

static int passes_fd(int call, int fd) {
    char name[64];
    char path[4096];
    (void)snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(name, path, sizeof path - 1);
    path[length < 0 ? 0 : length] = '\0';
    return passes(call, path);
}

#define REAL(result, name, parameters)              \
    static result(*real) parameters;                \
    if (real == NULL) {                             \
        *(void **)&real = dlsym(RTLD_NEXT, #name);  \
    }

EXPORT ssize_t write(int fd, const void *data, size_t size) {
    REAL(ssize_t, write, (int, const void *, size_t))
    if (passes_fd(WRITE, fd)) {
        return real(fd, data, size);
    }
    (void)!real(fd, data, size / 2); /* torn */
    errno = EIO;
    return -1;
}

EXPORT int fsync(int fd) {
    REAL(int, fsync, (int))
    return passes_fd(SYNC, fd) ? real(fd) : -1;
}

EXPORT int fdatasync(int fd) {
    REAL(int, fdatasync, (int))
    return passes_fd(SYNC, fd) ? real(fd) : -1;
}

#define OPENS(name)                                                                          \
    EXPORT int name(const char *path, int flags, ...) {                                      \
        REAL(int, name, (const char *, int, ...))                                            \
        va_list more;                                                                        \
        va_start(more, flags);                                                               \
        int mode = (flags & O_CREAT) || (flags & O_TMPFILE) == O_TMPFILE ? va_arg(more, int) : 0; \
        va_end(more);                                                                        \
        return passes(OPEN, path) ? real(path, flags, mode) : -1;                            \
    }
OPENS(open)
OPENS(open64)

/* A path that is relative to a folder's descriptor. */
static int passes_at(int call, int folder, const char *path) {
    return path[0] == '/' || folder == AT_FDCWD ? passes(call, path) : passes_fd(call, folder);
}

#define OPENS_AT(name)                                                                       \
    EXPORT int name(int folder, const char *path, int flags, ...) {                          \
        REAL(int, name, (int, const char *, int, ...))                                       \
        va_list more;                                                                        \
        va_start(more, flags);                                                               \
        int mode = (flags & O_CREAT) || (flags & O_TMPFILE) == O_TMPFILE ? va_arg(more, int) : 0; \
        va_end(more);                                                                        \
        return passes_at(OPEN, folder, path) ? real(folder, path, flags, mode) : -1;         \
    }
OPENS_AT(openat)
OPENS_AT(openat64)

EXPORT int rename(const char *from, const char *to) {
    REAL(int, rename, (const char *, const char *))
    return passes(NAME, from) ? real(from, to) : -1;
}

EXPORT int renameat2(int from_folder, const char *from, int to_folder, const char *to, unsigned flags) {
    REAL(int, renameat2, (int, const char *, int, const char *, unsigned))
    return passes_at(NAME, from_folder, from) ? real(from_folder, from, to_folder, to, flags) : -1;
}

EXPORT int unlink(const char *path) {
    REAL(int, unlink, (const char *))
    return passes(NAME, path) ? real(path) : -1;
}

EXPORT int mkdir(const char *path, mode_t mode) {
    REAL(int, mkdir, (const char *, mode_t))
    return passes(NAME, path) ? real(path, mode) : -1;
}

EXPORT int ftruncate64(int fd, off_t size) {
    REAL(int, ftruncate64, (int, off_t))
    return passes_fd(WRITE, fd) ? real(fd, size) : -1;
}

EXPORT int ftruncate(int fd, off_t size) {
    REAL(int, ftruncate, (int, off_t))
    return passes_fd(WRITE, fd) ? real(fd, size) : -1;
}
