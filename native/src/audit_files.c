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

#define GROUP 64   /* so many files are open at once, each with its folder at the worst */
#define FLUSHERS 8 /* threads, the caller's included: the disk takes what waits at one time as one flush */

/* Whether the open file holds this content and no more. */
static bool holds(int fd, const hsm_audit_file *file) {
    uint8_t found[HSM_AUDIT_MAX_FILE + 1];
    ssize_t size = pread(fd, found, file->size + 1, 0);
    return size >= 0 && (size_t)size == file->size && memcmp(found, file->data, file->size) == 0;
}

/* A new file of mode 0600 that belongs to the owner of its folder, as base/ownership.py makes it: the owner may be
 * hostile to root, so nothing is followed, and no file that was there before is given away. */
static int make(int folder, const char *name, int *fd) {
    struct stat above;
    struct stat made;
    if (folder < 0) {
        return EBADF;
    }
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
    failure = failure != 0 ? failure : hsm_write_all(*fd, file->data, file->size);
    if (failure != 0 || renameat2(folder, beside, folder, name, 0) != 0) {
        return failure != 0 ? failure : errno;
    }
    (void)posix_fadvise(*fd, 0, 0, POSIX_FADV_DONTNEED); /* the disk begins now */
    return 0;
}

/* Descriptors that are to be flushed, each for a file by its number. */
struct group {
    int fds[2 * GROUP];
    size_t of[2 * GROUP];
    size_t count;
    int folder; /* of the newest file; its path has so many characters. -1: none yet */
    size_t length;
    _Atomic size_t next;
    _Atomic size_t failed;
    _Atomic int failure;
};

static void add(struct group *group, int fd, size_t number) {
    group->fds[group->count] = fd;
    group->of[group->count++] = number;
}

/* Open the folder of a file, unless the file before has the same. */
static int enter(struct group *group, const hsm_audit_file *files, size_t number) {
    char folder[4096];
    const char *path = files[number].path;
    const char *slash = strrchr(path, '/');
    size_t length = slash == NULL ? 0 : (size_t)(slash - path) + 1;
    if (length == 0 || length >= sizeof folder) {
        return length == 0 ? EINVAL : ENAMETOOLONG;
    }
    if (group->folder >= 0 && length == group->length && memcmp(path, files[number - 1].path, length) == 0) {
        return 0;
    }
    memcpy(folder, path, length);
    folder[length] = '\0';
    group->length = length;
    group->folder = hsm_counted(open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (group->folder < 0) {
        return errno;
    }
    add(group, group->folder, number);
    return 0;
}

static int store(struct group *group, const hsm_audit_file *files, size_t number) {
    int fd = -1;
    int failure = files[number].size > HSM_AUDIT_MAX_FILE ? EINVAL : enter(group, files, number);
    failure = failure != 0 ? failure : put(group->folder, files[number].path + group->length, &files[number], &fd);
    if (fd >= 0) {
        add(group, fd, number);
    }
    return failure;
}

static void *flush_some(void *argument) {
    struct group *group = argument;
    for (size_t i; (i = atomic_fetch_add(&group->next, 1)) < group->count;) {
        if (fsync(group->fds[i]) != 0) {
            atomic_store(&group->failure, errno);
            atomic_store(&group->failed, group->of[i]);
        }
    }
    return NULL;
}

static int store_group(const hsm_audit_file *files, size_t count, size_t *failed) {
    struct group group = {.folder = -1};
    pthread_t threads[FLUSHERS - 1];
    size_t started = 0;
    int failure = 0;
    for (size_t i = 0; i < count && failure == 0; i++) {
        failure = store(&group, files, i);
        *failed = i;
    }
    if (failure == 0) {
        while (started < FLUSHERS - 1 && started + 1 < group.count &&
               hsm_thread_start(&threads[started], flush_some, &group) == 0) {
            started++;
        }
        (void)flush_some(&group);
        for (size_t i = 0; i < started; i++) {
            hsm_thread_join(threads[i]);
        }
        failure = group.failure;
        *failed = group.failed;
    }
    for (size_t i = 0; i < group.count; i++) {
        hsm_close(&group.fds[i]);
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
