/* How long a device takes: a draw from a distribution, and the sleep. */
#include <errno.h>
#include <math.h>
#include <time.h>

#include "chaos.h"

#define NS_PER_S INT64_C(1000000000)
#define SLICE_NS (50 * INT64_C(1000000)) /* how late C_Finalize may be noticed */

/* A standard normal variable (Box and Muller) from one random word. */
static double normal(uint64_t random) {
    double u = 1 - chaos_unit(random);
    double v = chaos_unit(chaos_draw(random, 1, 0));
    return sqrt(-2 * log(u)) * cos(2 * 3.14159265358979323846 * v);
}

int64_t chaos_latency_draw(const struct chaos_latency *latency, uint64_t random, uint64_t size) {
    double microseconds = 0;
    switch (latency->kind) {
    case LATENCY_NONE:
        return 0;
    case LATENCY_CONSTANT:
        microseconds = latency->a;
        break;
    case LATENCY_UNIFORM:
        microseconds = latency->a + (latency->b - latency->a) * chaos_unit(random);
        break;
    case LATENCY_LOGNORMAL:
        microseconds = latency->a * exp(latency->b * normal(random));
        break;
    case LATENCY_EXPONENTIAL:
        microseconds = -latency->a * log(1 - chaos_unit(random));
        break;
    }
    microseconds += latency->offset;
    if (latency->cap > 0 && microseconds > latency->cap) {
        microseconds = latency->cap;
    }
    if (size > latency->free_bytes) {
        microseconds += latency->per_byte * (double)(size - latency->free_bytes);
    }
    return (int64_t)(microseconds * 1000);
}

void chaos_sleep_until(int64_t deadline) {
    for (int64_t now = chaos_now(); now < deadline && atomic_load(&chaos_state) == CHAOS_UP; now = chaos_now()) {
        int64_t until = deadline - now > SLICE_NS ? now + SLICE_NS : deadline;
        struct timespec when = {.tv_sec = (time_t)(until / NS_PER_S), .tv_nsec = (long)(until % NS_PER_S)};
        while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &when, NULL) == EINTR) {
        }
    }
}
