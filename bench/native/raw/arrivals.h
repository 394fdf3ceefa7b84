/* When requests of a Poisson process are due, for threads that take them one after the other. */
#ifndef HSMC_RAW_ARRIVALS_H
#define HSMC_RAW_ARRIVALS_H

#include <stdint.h>

/* Begin a process of `rate` a second at `now`, in nanoseconds of CLOCK_MONOTONIC; the same one each time. Not while a
 * thread takes from it. */
void arrivals_begin(double rate, uint64_t now);

/* The next one, by any thread: each is taken once, in order. */
uint64_t arrivals_take(void);

/* Returns at `due`, or at once if that has passed. */
void arrivals_await(uint64_t due);

#endif
