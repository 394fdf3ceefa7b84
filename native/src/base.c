/* The platform: see base.h. */
#include "base.h"

#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <signal.h>
#include <sodium.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static _Atomic int64_t allocations;
static _Atomic int64_t resources[HSM_RESOURCE_COUNT];
static _Atomic uint32_t fork_generation;

static void after_fork_in_child(void) {
    atomic_fetch_add(&fork_generation, 1);
}

/* A counter bumped by the kernel's own fork path costs one load per check; getpid would cost a system call. */
__attribute__((constructor)) static void watch_forks(void) {
    (void)pthread_atfork(NULL, NULL, after_fork_in_child);
}

uint32_t hsm_fork_generation(void) {
    return atomic_load_explicit(&fork_generation, memory_order_relaxed);
}

void *hsm_alloc(size_t size) {
    void *memory = calloc(1, size == 0 ? 1 : size);
    if (memory != NULL) {
        atomic_fetch_add_explicit(&allocations, 1, memory_order_relaxed);
    }
    return memory;
}

void *hsm_alloc_undumped(size_t size) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t whole = (size + page - 1U) / page * page;
    void *memory = aligned_alloc(page, whole);
    if (memory != NULL) {
        memset(memory, 0, whole);
        (void)madvise(memory, whole, MADV_DONTDUMP);
        atomic_fetch_add_explicit(&allocations, 1, memory_order_relaxed);
    }
    return memory;
}

void hsm_free(void *memory) {
    if (memory != NULL) {
        atomic_fetch_sub_explicit(&allocations, 1, memory_order_relaxed);
        free(memory);
    }
}

char *hsm_strdup(const char *text) {
    if (text == NULL) {
        return NULL;
    }
    size_t size = strlen(text) + 1;
    char *copy = hsm_alloc(size);
    if (copy != NULL) {
        memcpy(copy, text, size);
    }
    return copy;
}

void hsm_append(char *text, size_t size, const char *format, ...) {
    size_t used = strlen(text);
    va_list arguments;
    va_start(arguments, format);
    (void)vsnprintf(text + used, size - used, format, arguments);
    va_end(arguments);
}

bool hsm_secret_copy(const uint8_t *secret, size_t len, uint8_t **copy) {
    *copy = NULL;
    if (secret == NULL) {
        return true;
    }
    /* One byte more, since an empty allocation could be NULL. */
    *copy = sodium_init() < 0 ? NULL : sodium_malloc(len + 1U);
    if (*copy != NULL) {
        memcpy(*copy, secret, len);
    }
    return *copy != NULL;
}

void hsm_count(enum hsm_resource resource, int64_t change) {
    atomic_fetch_add_explicit(&resources[resource], change, memory_order_relaxed);
}

int hsm_counted(int fd) {
    hsm_count(HSM_RESOURCE_DESCRIPTOR, fd >= 0 ? 1 : 0);
    return fd;
}

void hsm_close(int *fd) {
    if (*fd >= 0) {
        (void)close(*fd);
        hsm_count(HSM_RESOURCE_DESCRIPTOR, -1);
        *fd = -1;
    }
}

int hsm_thread_start(pthread_t *thread, void *(*run)(void *argument), void *argument) {
    sigset_t all;
    sigset_t before;
    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, &before);
    int code = pthread_create(thread, NULL, run, argument);
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    hsm_count(HSM_RESOURCE_THREAD, code == 0 ? 1 : 0);
    return code;
}

void hsm_thread_join(pthread_t thread) {
    (void)pthread_join(thread, NULL);
    hsm_count(HSM_RESOURCE_THREAD, -1);
}

bool hsm_thread_try_join(pthread_t thread) {
    bool ended = pthread_tryjoin_np(thread, NULL) == 0;
    hsm_count(HSM_RESOURCE_THREAD, ended ? -1 : 0);
    return ended;
}

int hsm_write_all(int fd, const void *data, size_t size) {
    for (size_t done = 0; done < size;) {
        ssize_t written = write(fd, (const char *)data + done, size - done);
        if (written < 0 && errno != EINTR) {
            return errno;
        }
        done += written > 0 ? (size_t)written : 0;
    }
    return 0;
}

void hsm_event_set(int event_fd) {
    const uint64_t one = 1;
    (void)!write(event_fd, &one, sizeof one);
}

void hsm_event_clear(int event_fd) {
    uint64_t count;
    const struct iovec where = {.iov_base = &count, .iov_len = sizeof count};
    if (preadv2(event_fd, &where, 1, -1, RWF_NOWAIT) < 0 && errno == EOPNOTSUPP && hsm_wait_fd(event_fd, POLLIN, 1)) {
        (void)!read(event_fd, &count, sizeof count); /* before Linux 5.8 */
    }
}

bool hsm_wait_fd(int fd, short events, uint64_t timeout_ns) {
    uint64_t begun = hsm_now_ns();
    struct pollfd what = {.fd = fd, .events = events};
    for (;;) {
        uint64_t passed = hsm_now_ns() - begun;
        struct timespec left = hsm_timespec(passed < timeout_ns ? timeout_ns - passed : 0);
        int ready = ppoll(&what, 1, timeout_ns == 0 ? NULL : &left, NULL);
        if (ready >= 0 || errno != EINTR) {
            return ready > 0;
        }
    }
}

void hsm_leaks_read(hsm_leaks *leaks) {
    leaks->allocations = atomic_load(&allocations);
    leaks->threads = atomic_load(&resources[HSM_RESOURCE_THREAD]);
    leaks->sessions = atomic_load(&resources[HSM_RESOURCE_SESSION]);
    leaks->descriptors = atomic_load(&resources[HSM_RESOURCE_DESCRIPTOR]);
}

uint64_t hsm_now_ns(void) {
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000U + (uint64_t)now.tv_nsec;
}

void hsm_wipe(void *memory, size_t size) {
    explicit_bzero(memory, size);
}

void hsm_sleep(uint64_t ns) {
    struct timespec pause = hsm_timespec(ns);
    (void)clock_nanosleep(CLOCK_MONOTONIC, 0, &pause, NULL);
}

void hsm_futex_wait(_Atomic uint32_t *word, uint32_t expected, uint64_t timeout_ns, bool one_process) {
    struct timespec timeout = hsm_timespec(timeout_ns);
    int operation = one_process ? FUTEX_WAIT_PRIVATE : FUTEX_WAIT;
    (void)syscall(SYS_futex, word, operation, expected, timeout_ns == 0 ? NULL : &timeout, NULL, 0);
}

void hsm_futex_wake(_Atomic uint32_t *word, int count, bool one_process) {
    (void)syscall(SYS_futex, word, one_process ? FUTEX_WAKE_PRIVATE : FUTEX_WAKE, count, NULL, NULL, 0);
}
