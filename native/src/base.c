#include "base.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
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

void hsm_count(enum hsm_resource resource, int64_t change) {
    atomic_fetch_add_explicit(&resources[resource], change, memory_order_relaxed);
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

void hsm_futex_wait(_Atomic uint32_t *word, uint32_t expected, uint64_t timeout_ns) {
    struct timespec timeout = {.tv_sec = (time_t)(timeout_ns / 1000000000U),
                               .tv_nsec = (long)(timeout_ns % 1000000000U)};
    (void)syscall(SYS_futex, word, FUTEX_WAIT, expected, timeout_ns == 0 ? NULL : &timeout, NULL, 0);
}

void hsm_futex_wake(_Atomic uint32_t *word, int count) {
    (void)syscall(SYS_futex, word, FUTEX_WAKE, count, NULL, NULL, 0);
}
