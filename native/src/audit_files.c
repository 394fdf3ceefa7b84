/* Small files that are written and flushed together: a log at full rate fills a thousand tiles in a second, and each
 * flush of its own would wait for the disk on its own. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <hsmcore/audit.h>

#include "base.h"

#define GROUP 64   /* so many files are open at once */
#define FLUSHERS 8 /* threads, the caller's included: the disk takes what waits at one time as one flush */

static int write_all(int fd, const uint8_t *data, size_t size) {
    for (size_t done = 0; done < size;) {
        ssize_t written = write(fd, data + done, size - done);
        if (written < 0 && errno != EINTR) {
            return errno;
        }
        done += written > 0 ? (size_t)written : 0;
    }
    return 0;
}

/* Whether the open file holds this content and no more. */
static bool holds(int fd, const hsm_audit_file *file) {
    uint8_t found[HSM_AUDIT_MAX_FILE + 1];
    ssize_t size = pread(fd, found, file->size + 1, 0);
    return size >= 0 && (size_t)size == file->size && memcmp(found, file->data, file->size) == 0;
}

/* A new file of mode 0600 that belongs to the owner of its folder, as base/ownership.py makes it: the folder's owner may
 * be hostile to root, so nothing is followed, and no file that was there before is given away. */
static int make(int folder, const char *name, int *fd) {
    struct stat above;
    struct stat made;
    *fd = hsm_counted(openat(folder, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
    if (*fd < 0 || fchmod(*fd, 0600) != 0 || fstat(folder, &above) != 0 || fstat(*fd, &made) != 0) {
        return errno;
    }
    bool given = above.st_uid == made.st_uid || fchown(*fd, above.st_uid, above.st_gid) == 0;
    return given || errno == EPERM || errno == EACCES ? 0 : errno; /* not root: the owner stays as it is */
}

/* Have the content under `name`; a reader finds all of it or none. The descriptor is open also after an error. */
static int put(int folder, const char *name, const hsm_audit_file *file, int *fd) {
    char beside[256 + 8];
    *fd = hsm_counted(openat(folder, name, O_RDONLY | O_NONBLOCK | O_CLOEXEC)); /* a pipe would wait for a writer */
    if ((*fd < 0 && errno != ENOENT) || (*fd >= 0 && holds(*fd, file))) {
        return *fd < 0 ? errno : 0;
    }
    hsm_close(fd);
    if ((size_t)snprintf(beside, sizeof beside, "%s.new", name) >= sizeof beside) {
        return ENAMETOOLONG;
    }
    int failure = make(folder, beside, fd);
    if (*fd < 0 && failure == EEXIST) { /* a crash left it */
        failure = unlinkat(folder, beside, 0) == 0 ? make(folder, beside, fd) : errno;
    }
    failure = failure != 0 ? failure : write_all(*fd, file->data, file->size);
    if (failure != 0 || renameat2(folder, beside, folder, name, 0) != 0) {
        return failure != 0 ? failure : errno;
    }
    (void)posix_fadvise(*fd, 0, 0, POSIX_FADV_DONTNEED); /* the disk begins now */
    return 0;
}

static int store(const hsm_audit_file *file, int *fd) {
    char folder[4096];
    const char *slash = strrchr(file->path, '/');
    size_t length = slash == NULL ? 0 : (size_t)(slash - file->path);
    if (slash == NULL || length >= sizeof folder || file->size > HSM_AUDIT_MAX_FILE) {
        return slash != NULL && length >= sizeof folder ? ENAMETOOLONG : EINVAL;
    }
    memcpy(folder, file->path, length);
    folder[length] = '\0';
    int above = hsm_counted(open(length > 0 ? folder : "/", O_PATH | O_DIRECTORY | O_CLOEXEC));
    int failure = above < 0 ? errno : put(above, slash + 1, file, fd);
    hsm_close(&above);
    return failure;
}

struct flush {
    const int *fds;
    size_t count;
    _Atomic size_t next;
    _Atomic size_t failed; /* the number of a file that was not flushed, and its errno; `count`: all were */
    _Atomic int failure;
};

static void *flush_some(void *argument) {
    struct flush *flush = argument;
    for (size_t i; (i = atomic_fetch_add(&flush->next, 1)) < flush->count;) {
        if (fsync(flush->fds[i]) != 0) {
            atomic_store(&flush->failure, errno);
            atomic_store(&flush->failed, i);
        }
    }
    return NULL;
}

/* A group of files. */
static int store_group(const hsm_audit_file *files, size_t count, size_t *failed) {
    int fds[GROUP];
    pthread_t threads[FLUSHERS - 1];
    size_t opened = 0;
    size_t started = 0;
    int failure = 0;
    for (; opened < count && failure == 0; opened++) {
        fds[opened] = -1;
        failure = store(&files[opened], &fds[opened]);
        *failed = opened;
    }
    if (failure == 0) {
        struct flush flush = {.fds = fds, .count = count, .failed = count};
        while (started < FLUSHERS - 1 && started + 1 < count &&
               hsm_thread_start(&threads[started], flush_some, &flush) == 0) {
            started++;
        }
        (void)flush_some(&flush);
        for (size_t i = 0; i < started; i++) {
            hsm_thread_join(threads[i]);
        }
        failure = flush.failure;
        *failed = flush.failed;
    }
    for (size_t i = 0; i < opened; i++) {
        hsm_close(&fds[i]);
    }
    return failure;
}

int hsm_audit_store(const hsm_audit_file *files, size_t count, size_t *failed) {
    int failure = 0;
    for (size_t done = 0; done < count && failure == 0; done += GROUP) {
        failure = store_group(files + done, count - done < GROUP ? count - done : GROUP, failed);
        *failed += done;
    }
    return failure;
}
