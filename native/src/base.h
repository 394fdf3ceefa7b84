/* What every file here needs of the platform: counted memory, descriptors and threads, time, futexes. Linux only. */
#ifndef HSM_BASE_H
#define HSM_BASE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <pthread.h>
#include <time.h>

#include <hsmcore/hsmcore.h>

#define HSM_CACHE_LINE 64
#define HSM_ALIGNED _Alignas(HSM_CACHE_LINE)

/* Take the next step, whose status it is then, unless one before it has failed. */
#define HSM_THEN(status, step) ((status) = (status) != HSM_OK ? (status) : (step))

/* Zeroed memory that hsm_leaks counts. NULL when there is none. */
void *hsm_alloc(size_t size);
/* The same in pages of its own that core dumps leave out. */
void *hsm_alloc_undumped(size_t size);
void hsm_free(void *memory);
/* A counted copy; NULL for NULL. */
char *hsm_strdup(const char *text);

/* Append to a text of `size` bytes; what does not fit is cut off. */
void hsm_append(char *text, size_t size, const char *format, ...) __attribute__((format(printf, 3, 4)));
/* Copy a secret into guarded and locked memory outside core dumps, which sodium_free wipes and frees; NULL for NULL.
 * Returns false if there is no such memory. */
bool hsm_secret_copy(const uint8_t *secret, size_t len, uint8_t **copy);

/* Counters behind hsm_leaks_read, for resources that are not memory. */
enum hsm_resource { HSM_RESOURCE_THREAD, HSM_RESOURCE_SESSION, HSM_RESOURCE_DESCRIPTOR, HSM_RESOURCE_COUNT };
void hsm_count(enum hsm_resource resource, int64_t change);
/* Count a descriptor that a system call returned, unless that failed. Returns it. */
int hsm_counted(int fd);
/* Close a counted descriptor, unless it is -1, which it is afterwards. */
void hsm_close(int *fd);
/* Start a thread, which is counted, with all signals blocked: they are the application's, and must not interrupt a call
 * inside a module. Returns 0 or an errno. */
int hsm_thread_start(pthread_t *thread, void *(*run)(void *argument), void *argument);
void hsm_thread_join(pthread_t thread);
/* Join it if it has ended. Returns whether it had. */
bool hsm_thread_try_join(pthread_t thread);

/* Write all of it. Returns 0 or an errno. */
int hsm_write_all(int fd, const void *data, size_t size);

/* Make an eventfd readable, and unreadable again. Clearing never blocks, whatever another process that has the
 * descriptor does with it, O_NONBLOCK included; setting does not unless that process has filled the counter. */
void hsm_event_set(int event_fd);
void hsm_event_clear(int event_fd);
/* Whether one of `events` comes within `timeout_ns` (0: no limit). */
bool hsm_wait_fd(int fd, short events, uint64_t timeout_ns);

static inline struct timespec hsm_timespec(uint64_t ns) {
    return (struct timespec){.tv_sec = (time_t)(ns / 1000000000U), .tv_nsec = (long)(ns % 1000000000U)};
}

void hsm_sleep(uint64_t ns);
/* Sleep while *word == expected, until woken or `timeout_ns` has passed (0: no limit). May return early. With
 * `one_process` only threads of this process wait on the word, or wake it: the kernel need not look up its page. */
void hsm_futex_wait(_Atomic uint32_t *word, uint32_t expected, uint64_t timeout_ns, bool one_process);
void hsm_futex_wake(_Atomic uint32_t *word, int count, bool one_process);

/* A hint to the processor inside a polling loop. */
static inline void hsm_relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

#endif
