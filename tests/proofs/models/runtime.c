/* What the engine's sources call beside their own code: the platform's waits, and the sanitizer's runtime. */
#include "machine.h"

#include <string.h>

void mm_pause(void) {
    thread *self = &threads[current];
    if (self->turn == self->turn_before) { /* it read nothing new: as if it had paused all along */
        prune();
    }
    self->turn_before = self->turn;
    if (!self->has_put) { /* then one turn of the loop is like many */
        self->history = self->history_at_pause;
    }
    self->history_at_pause = self->history;
    self->has_put = false;
    wait_for(PAUSES, 0, 0);
    self->turn = 0;
    memset(self->watches, 0, sizeof self->watches);
}

void mm_join(int thread) {
    wait_for(JOINS, (uintptr_t)thread, 0);
    join_thread(&threads[thread]);
}

/* Both sides of a descriptor take the kernel's lock. */
static uint8_t readable[8];

void mm_wait_readable(int fd, int other) {
    wait_for(READABLE, (uintptr_t)&readable[fd], (uintptr_t)&readable[other]);
}

void hsm_event_set(int fd) {
    (void)modify((uintptr_t)&readable[fd], 1, EXCHANGE, 1, 0, ACQ_REL, RELAXED);
}

void hsm_event_clear(int fd) {
    (void)modify((uintptr_t)&readable[fd], 1, EXCHANGE, 0, 0, ACQ_REL, RELAXED);
}

/* FUTEX_WAIT and FUTEX_WAKE. The kernel compares the word and lists the sleeper under a lock, and takes it to wake: a
 * compare that comes later sees the word as the waking thread has seen it. Nothing else is ordered here. */
void hsm_futex_wait(uint32_t *word, uint32_t expected, uint64_t timeout_ns) {
    (void)timeout_ns;
    location *place = use((uintptr_t)word, sizeof *word);
    if (place != NULL) {
        raise_to(&threads[current].now.at[place - locations], place->woken);
        threads[current].has_acted = false; /* no thread comes in between */
    }
    bool sleeps = load((uintptr_t)word, sizeof *word, RELAXED) == expected;
    threads[current].has_acted = true;
    if (sleeps) {
        wait_for(FUTEX, (uintptr_t)word, 0);
    }
}

void hsm_futex_wake(uint32_t *word, int count) {
    location *place = use((uintptr_t)word, sizeof *word);
    if (place != NULL) {
        raise_to(&place->woken, threads[current].now.at[place - locations]);
    }
    threads[current].has_acted = true;
    for (unsigned i = 0; i < thread_count && count > 0; i++) {
        if (threads[i].wait == FUTEX && threads[i].waits_for[0] == (uintptr_t)word) {
            threads[i].waits_for[0] = 0;
            count--;
        }
    }
}

__attribute__((weak)) uint64_t hsm_now_ns(void) {
    return current == MAIN ? 1 : ++threads[current].clock_ns;
}

/* In place of the processor's hint, in loops that poll for a bounded time: one turn is like many. */
void mm_relax(void) {
    thread *self = &threads[current];
    if (self->has_put) {
        self->has_put = false;
        self->history_at_pause = self->history;
    }
    self->history = self->history_at_pause;
}

void hsm_sleep(uint64_t ns) {
    threads[current].clock_ns += ns;
    schedule();
}

void hsm_thread_join(unsigned long thread) {
    mm_join((int)thread);
}

int pthread_mutex_lock(void *mutex) {
    location *place = use((uintptr_t)mutex, 1);
    if (place == NULL) {
        *(uint8_t *)mutex = 1;
        return 0;
    }
    wait_for(LOCKS, (uintptr_t)mutex, 0);
    raise_to(&threads[current].now.at[place - locations], place->messages[place->count - 1].at);
    threads[current].has_acted = false; /* no thread comes in between */
    (void)modify((uintptr_t)mutex, 1, EXCHANGE, 1, 0, ACQUIRE, RELAXED);
    return 0;
}

int pthread_mutex_trylock(void *mutex) {
    return modify((uintptr_t)mutex, 1, COMPARE, 1, 0, ACQUIRE, RELAXED) != 0 ? 16 /* EBUSY */ : 0;
}

int pthread_mutex_unlock(void *mutex) {
    store((uintptr_t)mutex, 1, 0, RELEASE);
    return 0;
}

/* ---- the sanitizer's runtime ---- */

#define A(pointer) ((uintptr_t)(pointer))
#define ATOMIC(bits, type)                                                                                             \
    type __tsan_atomic##bits##_load(const type *a, int mo) {                                                           \
        return (type)load(A(a), sizeof *a, mo);                                                                        \
    }                                                                                                                  \
    void __tsan_atomic##bits##_store(type *a, type v, int mo) {                                                        \
        store(A(a), sizeof *a, v, mo);                                                                                 \
    }                                                                                                                  \
    type __tsan_atomic##bits##_compare_exchange_val(type *a, type e, type v, int mo, int failed) {                     \
        return (type)modify(A(a), sizeof *a, COMPARE, v, e, mo, failed);                                               \
    }                                                                                                                  \
    CHANGE(bits, type, exchange, EXCHANGE)                                                                             \
    CHANGE(bits, type, fetch_add, ADD)                                                                                 \
    CHANGE(bits, type, fetch_sub, SUB)                                                                                 \
    CHANGE(bits, type, fetch_and, AND)                                                                                 \
    CHANGE(bits, type, fetch_or, OR)                                                                                   \
    CHANGE(bits, type, fetch_xor, XOR)
#define CHANGE(bits, type, name, change)                                                                               \
    type __tsan_atomic##bits##_##name(type *a, type v, int mo) {                                                       \
        return (type)modify(A(a), sizeof *a, change, v, 0, mo, mo);                                                    \
    }
#define PLAIN(name, size)                                                                                              \
    void __tsan_read##name(void *a) {                                                                                  \
        touch(A(a), size, false);                                                                                      \
    }                                                                                                                  \
    void __tsan_write##name(void *a) {                                                                                 \
        touch(A(a), size, true);                                                                                       \
    }                                                                                                                  \
    void __tsan_unaligned_read##name(void *a) {                                                                        \
        touch(A(a), size, false);                                                                                      \
    }                                                                                                                  \
    void __tsan_unaligned_write##name(void *a) {                                                                       \
        touch(A(a), size, true);                                                                                       \
    }
ATOMIC(8, uint8_t)
ATOMIC(16, uint16_t)
ATOMIC(32, uint32_t)
ATOMIC(64, uint64_t)
PLAIN(1, 1)
PLAIN(2, 2)
PLAIN(4, 4)
PLAIN(8, 8)
PLAIN(16, 16)
void __tsan_init(void) {}
void __tsan_func_entry(void *from) {
    (void)from;
}
void __tsan_func_exit(void) {}
void __tsan_atomic_thread_fence(int order) {
    if (current != MAIN) {
        fence(order);
    }
}
void *__tsan_memcpy(void *to, const void *from, unsigned long size) {
    touch(A(from), size, false);
    touch(A(to), size, true);
    return memcpy(to, from, size);
}
void *__tsan_memset(void *to, int byte, unsigned long size) {
    touch(A(to), size, true);
    return memset(to, byte, size);
}

void begin_runtime(void) {
    memset(readable, 0, sizeof readable);
}
