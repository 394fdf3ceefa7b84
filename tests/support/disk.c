/* Preloaded (LD_PRELOAD): a disk that hangs. While `disk_hold` holds one of its calls, a thread that makes this call on
 * a file stays in it, as it would in the kernel. Pipes and sockets go on. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <sys/stat.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

enum { WRITE = 1, SYNC = 2 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static int held;
static int inside;

/* From now on these calls hang: WRITE, SYNC or both; 0: all go on. */
EXPORT void disk_hold(int calls) {
    pthread_mutex_lock(&lock);
    held = calls;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
}

/* How many calls hang. */
EXPORT int disk_inside(void) {
    pthread_mutex_lock(&lock);
    int count = inside;
    pthread_mutex_unlock(&lock);
    return count;
}

static void pass(int call, int fd) {
    struct stat status;
    if (fstat(fd, &status) != 0 || (!S_ISREG(status.st_mode) && !S_ISDIR(status.st_mode))) {
        return;
    }
    pthread_mutex_lock(&lock);
    inside++;
    while (held & call) {
        pthread_cond_wait(&changed, &lock);
    }
    inside--;
    pthread_mutex_unlock(&lock);
}

EXPORT ssize_t write(int fd, const void *data, size_t size) {
    ssize_t (*real)(int, const void *, size_t) = dlsym(RTLD_NEXT, "write");
    pass(WRITE, fd);
    return real(fd, data, size);
}

EXPORT int fsync(int fd) {
    int (*real)(int) = dlsym(RTLD_NEXT, "fsync");
    pass(SYNC, fd);
    return real(fd);
}

EXPORT int fdatasync(int fd) {
    int (*real)(int) = dlsym(RTLD_NEXT, "fdatasync");
    pass(SYNC, fd);
    return real(fd);
}
