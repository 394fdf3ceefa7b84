#include "arrivals.h"

#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <stddef.h>
#include <time.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static double mean_ns;
static uint64_t next_due, dice; /* under `lock` */

void arrivals_begin(double rate, uint64_t now) {
    mean_ns = 1e9 / rate;
    next_due = now;
    dice = UINT64_C(88172645463325252);
}

uint64_t arrivals_take(void) {
    pthread_mutex_lock(&lock);
    dice ^= dice >> 12; /* xorshift64* */
    dice ^= dice << 25;
    dice ^= dice >> 27;
    double chance =
        ((double)((dice * UINT64_C(2685821657736338717)) >> 11) + 1.0) / 9007199254740993.0; /* 0 < .. < 1 */
    next_due += (uint64_t)(-log(chance) * mean_ns);
    uint64_t due = next_due;
    pthread_mutex_unlock(&lock);
    return due;
}

void arrivals_await(uint64_t due) {
    struct timespec t = {.tv_sec = (time_t)(due / 1000000000u), .tv_nsec = (long)(due % 1000000000u)};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR) {
    }
}
