/* What every file here needs: memory, a failure that ends the process, a sleep that a run's end cuts short. */
#include "load.h"

#include <stdarg.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

void load_fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    (void)fputs("hsmcore-load: ", stderr);
    (void)vfprintf(stderr, format, arguments);
    (void)fputc('\n', stderr);
    va_end(arguments);
    _exit(1); /* other threads may be inside the module */
}

void *load_alloc(size_t size) {
    void *memory = calloc(1, size > 0 ? size : 1U);
    if (memory == NULL) {
        load_fail("out of memory");
    }
    return memory;
}

void load_sleep_until(uint64_t when) {
    uint64_t now = hsm_now_ns();
    uint64_t until = when < now + LOAD_NAP ? when : now + LOAD_NAP;
    struct timespec at = {.tv_sec = (time_t)(until / 1000000000U), .tv_nsec = (long)(until % 1000000000U)};
    (void)clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL);
}
