/* See faults.h. In a host process, the file FAULTS_FILE says which call fails, and is gone once that has happened. */
#include "faults.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static _Atomic uint64_t counted;
static _Atomic uint64_t wanted;
static _Atomic int kind;
static const char *_Atomic failed;
static _Atomic bool hung;

void faults_begin(enum fault fault, uint64_t n) {
    atomic_store(&failed, NULL);
    atomic_store(&counted, 0);
    atomic_store(&kind, (int)fault);
    atomic_store(&wanted, n);
}

bool faults_end(void) {
    atomic_store(&wanted, 0);
    return faults_call() != NULL;
}

const char *faults_call(void) {
    return atomic_load(&failed);
}

bool faults_hung(void) {
    return atomic_load(&hung);
}

void faults_release(void) {
    atomic_store(&hung, false);
}

__attribute__((constructor)) static void begin_in_host(void) {
    char number[32] = "";
    const char *name = getenv("FAULTS_FILE");
    FILE *file = name != NULL ? fopen(name, "re") : NULL;
    if (file != NULL) {
        if (fgets(number, sizeof number, file) != NULL) {
            faults_begin(FAULT_FAIL, strtoull(number, NULL, 10));
        }
        (void)fclose(file);
    }
}

static void leave_mark(void) {
    const char *name = getenv("FAULTS_FILE");
    if (name != NULL) {
        (void)unlink(name);
    }
}

/* Whether this call is the one; then errno is `code`. */
static bool fails(const char *call, int code) {
    if (atomic_load(&wanted) == 0 || atomic_load(&kind) != FAULT_FAIL ||
        atomic_fetch_add(&counted, 1) + 1 != atomic_load(&wanted)) {
        return false;
    }
    atomic_store(&failed, call);
    leave_mark();
    errno = code;
    return true;
}

/* For what blocks on a disk. */
static bool fails_or_hangs(const char *call) {
    if (atomic_load(&wanted) != 0 && atomic_load(&kind) == FAULT_HANG &&
        atomic_fetch_add(&counted, 1) + 1 == atomic_load(&wanted)) {
        const struct timespec pause = {.tv_nsec = 200000};
        atomic_store(&hung, true);
        atomic_store(&failed, call);
        while (atomic_load(&hung)) {
            (void)nanosleep(&pause, NULL);
        }
    }
    return fails(call, EIO);
}

// NOLINTBEGIN(bugprone-reserved-identifier): the linker's names
#define WRAP(result, name, parameters, arguments, code, failure)                                                       \
    result __real_##name parameters;                                                                                   \
    result __wrap_##name parameters;                                                                                   \
    result __wrap_##name parameters {                                                                                  \
        return fails(#name, code) ? (failure) : __real_##name arguments;                                               \
    }

WRAP(void *, calloc, (size_t count, size_t size), (count, size), ENOMEM, NULL)
WRAP(void *, sodium_malloc, (size_t size), (size), ENOMEM, NULL)
WRAP(void *, mmap, (void *at, size_t size, int protection, int flags, int fd, off_t offset),
     (at, size, protection, flags, fd, offset), ENOMEM, MAP_FAILED)
WRAP(int, memfd_create, (const char *name, unsigned flags), (name, flags), EMFILE, -1)
WRAP(int, eventfd, (unsigned value, int flags), (value, flags), EMFILE, -1)
WRAP(int, timerfd_create, (int clock, int flags), (clock, flags), EMFILE, -1)
WRAP(int, pthread_create, (pthread_t * thread, const pthread_attr_t *attributes, void *(*run)(void *), void *argument),
     (thread, attributes, run, argument), EAGAIN, EAGAIN)
WRAP(int, socketpair, (int domain, int type, int protocol, int pair[2]), (domain, type, protocol, pair), EMFILE, -1)
WRAP(int, posix_spawn,
     (pid_t * pid, const char *path, const posix_spawn_file_actions_t *actions, const posix_spawnattr_t *attributes,
      char *const arguments[], char *const environment[]),
     (pid, path, actions, attributes, arguments, environment), EAGAIN, EAGAIN)
WRAP(int, posix_spawn_file_actions_adddup2, (posix_spawn_file_actions_t * actions, int from, int to),
     (actions, from, to), ENOMEM, ENOMEM)
WRAP(int, posix_spawn_file_actions_addclosefrom_np, (posix_spawn_file_actions_t * actions, int from), (actions, from),
     ENOMEM, ENOMEM)
WRAP(int, pidfd_open, (pid_t pid, unsigned flags), (pid, flags), EMFILE, -1)
WRAP(int, renameat2, (int from_folder, const char *from, int to_folder, const char *to, unsigned flags),
     (from_folder, from, to_folder, to, flags), EIO, -1)
WRAP(int, ftruncate, (int fd, off_t size), (fd, size), EIO, -1)
WRAP(int, fstat, (int fd, struct stat *status), (fd, status), EIO, -1)
WRAP(int, lstat, (const char *path, struct stat *status), (path, status), EIO, -1)
WRAP(ssize_t, send, (int fd, const void *data, size_t size, int flags), (fd, data, size, flags), ENOBUFS, -1)
WRAP(char *, realpath, (const char *path, char *resolved), (path, resolved), ENOMEM, NULL)
WRAP(void *, dlopen, (const char *path, int mode), (path, mode), ENOMEM, NULL)

int __real_fsync(int fd);
int __wrap_fsync(int fd);
int __wrap_fsync(int fd) {
    return fails_or_hangs("fsync") ? -1 : __real_fsync(fd);
}

int __real_fdatasync(int fd);
int __wrap_fdatasync(int fd);
int __wrap_fdatasync(int fd) {
    return fails_or_hangs("fdatasync") ? -1 : __real_fdatasync(fd);
}

ssize_t __real_write(int fd, const void *data, size_t size);
ssize_t __wrap_write(int fd, const void *data, size_t size);
ssize_t __wrap_write(int fd, const void *data, size_t size) {
    struct stat status;
    if (__real_fstat(fd, &status) != 0 || !S_ISREG(status.st_mode) || !fails_or_hangs("write")) {
        return __real_write(fd, data, size);
    }
    (void)!__real_write(fd, data, size / 2); /* torn */
    errno = ENOSPC;
    return -1;
}

int __real_open(const char *path, int flags, ...);
int __wrap_open(const char *path, int flags, ...);
int __wrap_open(const char *path, int flags, ...) {
    va_list more;
    va_start(more, flags);
    mode_t mode = (flags & O_CREAT) != 0 ? va_arg(more, mode_t) : 0;
    va_end(more);
    return fails("open", EMFILE) ? -1 : __real_open(path, flags, mode);
}

int __real_fcntl(int fd, int command, ...);
int __wrap_fcntl(int fd, int command, ...);
int __wrap_fcntl(int fd, int command, ...) {
    va_list more;
    va_start(more, command);
    long argument = va_arg(more, long);
    va_end(more);
    return fails("fcntl", EMFILE) ? -1 : __real_fcntl(fd, command, argument);
}
// NOLINTEND(bugprone-reserved-identifier)
