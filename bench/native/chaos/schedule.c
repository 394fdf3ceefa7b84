/* Random numbers that depend on nothing but a seed and a call's number; and calls that hang. */
#include <pthread.h>
#include <time.h>

#include "chaos.h"

/* splitmix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014). */
static uint64_t mix(uint64_t x) {
    x += UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return x ^ (x >> 31);
}

/* No state: the n-th call of a stream draws the same however threads interleave. */
uint64_t chaos_draw(uint64_t seed, uint64_t stream, uint64_t number) {
    return mix(mix(mix(seed) ^ stream) ^ number);
}

double chaos_unit(uint64_t random) {
    return (double)(random >> 11) * 0x1p-53;
}

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t released;
static uint64_t generation, hung;

/* Called before any call may hang; the condition variable needs the monotonic clock, which has no static
 * initialiser. */
void chaos_hang_reset(void) {
    pthread_condattr_t attributes;
    (void)pthread_mutex_init(&lock, NULL);
    (void)pthread_condattr_init(&attributes);
    (void)pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    (void)pthread_cond_init(&released, &attributes);
    (void)pthread_condattr_destroy(&attributes);
    hung = 0;
}

bool chaos_hang(int64_t nanoseconds) {
    int64_t now = chaos_now();
    int64_t deadline = nanoseconds > INT64_MAX - now ? INT64_MAX : now + nanoseconds;
    struct timespec when = {.tv_sec = (time_t)(deadline / 1000000000), .tv_nsec = (long)(deadline % 1000000000)};
    (void)pthread_mutex_lock(&lock);
    uint64_t mine = generation;
    hung++;
    while (generation == mine && atomic_load(&chaos_state) == CHAOS_UP && chaos_now() < deadline) {
        if (deadline == INT64_MAX) {
            (void)pthread_cond_wait(&released, &lock);
        } else {
            (void)pthread_cond_timedwait(&released, &lock, &when);
        }
    }
    hung--;
    (void)pthread_mutex_unlock(&lock);
    return atomic_load(&chaos_state) == CHAOS_UP;
}

uint64_t chaos_release(void) {
    (void)pthread_mutex_lock(&lock);
    uint64_t count = hung;
    generation++;
    (void)pthread_cond_broadcast(&released);
    (void)pthread_mutex_unlock(&lock);
    return count;
}

uint64_t chaos_hung(void) {
    (void)pthread_mutex_lock(&lock);
    uint64_t count = hung;
    (void)pthread_mutex_unlock(&lock);
    return count;
}
