/* What every module needs from the platform: counted memory, time, futexes, fork detection. Linux only. */
#ifndef HSM_BASE_H
#define HSM_BASE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <hsmcore/hsmcore.h>

#define HSM_CACHE_LINE 64
#define HSM_ALIGNED _Alignas(HSM_CACHE_LINE)

/* Zeroed memory that hsm_leaks counts. NULL when there is none. */
void *hsm_alloc(size_t size);
void hsm_free(void *memory);
/* A counted copy; NULL for NULL. */
char *hsm_strdup(const char *text);

/* Counters behind hsm_leaks_read, for resources that are not memory. */
enum hsm_resource { HSM_RESOURCE_THREAD, HSM_RESOURCE_SESSION, HSM_RESOURCE_DESCRIPTOR, HSM_RESOURCE_COUNT };
void hsm_count(enum hsm_resource resource, int64_t change);

/* Sleep while *word == expected, until woken or `timeout_ns` has passed (0: no limit). May return early. The word may
 * lie in memory that processes share. */
void hsm_futex_wait(_Atomic uint32_t *word, uint32_t expected, uint64_t timeout_ns);
void hsm_futex_wake(_Atomic uint32_t *word, int count);

/* A hint to the processor inside a polling loop. */
static inline void hsm_relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

#endif
