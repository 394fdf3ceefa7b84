/* The rings under contention, and sleeping workers that must never miss a request. */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "area.h"
#include "harness.h"

#define REQUESTS 200000U
#define CONSUMERS 4U
#define SLOTS 256U

static hsm_area *make_area(uint32_t slots, uint32_t max_message, uint32_t workers, int *fd) {
    hsm_client_options options = {.slots = slots, .max_message = max_message, .max_workers = workers};
    hsm_area *area = hsm_alloc(sizeof *area);
    hsm_error error = {.status = HSM_OK};
    REQUIRE(area != NULL);
    REQUIRE_OK(hsm_area_create(&options, area, fd, &error), error);
    return area;
}

static void free_area(hsm_area *area, int fd) {
    hsm_area_destroy(area, &fd);
    hsm_free(area);
}

static uint64_t offset_of(const hsm_area *area, const void *place) {
    return (uint64_t)((const char *)place - (const char *)area->shared);
}

/* ---- layout ---- */

struct region {
    uint64_t begin;
    uint64_t end;
};

static void check_layout(uint32_t slots, uint32_t max_message, uint32_t workers) {
    int fd = -1;
    hsm_area *area = make_area(slots, max_message, workers, &fd);
    CHECK_INT(area->shared->magic == HSM_AREA_MAGIC, ==, 1);
    CHECK_INT(area->shared->version, ==, HSM_AREA_VERSION);
    CHECK_INT(area->slots, >=, slots);
    CHECK_INT(area->slots & (area->slots - 1U), ==, 0);
    CHECK_INT(area->max_message, ==, max_message);
    CHECK_INT(area->overflow_stride >= max_message || max_message <= HSM_INLINE_MESSAGE, ==, 1);

    const struct region regions[] = {
        {0, sizeof *area->shared},
        {offset_of(area, area->requests), offset_of(area, area->requests + area->slots)},
        {offset_of(area, area->completions), offset_of(area, area->completions + area->slots)},
        {offset_of(area, area->slot_table), offset_of(area, area->slot_table + area->slots)},
        {offset_of(area, area->worker_table), offset_of(area, area->worker_table + workers)},
        {offset_of(area, area->overflow), offset_of(area, area->overflow) + area->slots * area->overflow_stride},
    };
    for (size_t i = 0; i < COUNT_OF(regions); i++) {
        CHECK_INT(regions[i].begin % HSM_CACHE_LINE, ==, 0);
        CHECK_INT(regions[i].end, <=, area->size);
        if (i > 0) {
            CHECK_INT(regions[i].begin, >=, regions[i - 1].end);
        }
    }
    /* The last byte of the last message is there to be written. */
    uint8_t *message = hsm_area_message(area, area->slots - 1U, max_message);
    message[max_message - 1U] = 0x5a;
    CHECK_INT(message[max_message - 1U], ==, 0x5a);
    free_area(area, fd);
}

static void regions_do_not_overlap(void) {
    check_layout(1, 1, 1);
    check_layout(3, HSM_INLINE_MESSAGE, 2);
    check_layout(4, HSM_INLINE_MESSAGE + 1, 65);
    check_layout(1000, 5000, HSM_MAX_WORKERS);
    check_layout(16, HSM_MAX_MESSAGE, 4);
    check_layout(HSM_MAX_SLOTS, HSM_MAX_MESSAGE, 1); /* reserved, not used: costs no memory */
}

static void the_other_side_adds_no_seal(void) {
    int fd = -1;
    hsm_area *area = make_area(4, 1, 1, &fd);
    CHECK_INT(fcntl(fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE), ==, -1);
    CHECK_INT(errno, ==, EPERM);
    free_area(area, fd);
}

static void a_header_that_was_overwritten_is_written_again(void) {
    int fd = -1;
    hsm_area *area = make_area(3, HSM_INLINE_MESSAGE + 1, 2, &fd);
    hsm_area other = {.slots = 0};
    memset(area->shared, 0xa5, HSM_CACHE_LINE);
    CHECK_STATUS(hsm_area_attach(fd, &other), HSM_HOST_MISMATCH);
    hsm_area_write_header(area);
    CHECK_STATUS(hsm_area_attach(fd, &other), HSM_OK);
    CHECK_INT(other.size, ==, area->size);
    CHECK_INT(other.slots, ==, area->slots);
    CHECK_INT(other.max_message, ==, area->max_message);
    CHECK_INT(other.max_workers, ==, area->max_workers);
    CHECK_INT(other.overflow_stride, ==, area->overflow_stride);
    int none = -1;
    hsm_area_destroy(&other, &none);
    free_area(area, fd);
}

/* A head beyond the tail is no request: a worker that reads an old tail beside a new head, or a process that writes
 * what it likes, must not have places claimed that were never published. */
static void a_head_beyond_the_tail_is_an_empty_ring(void) {
    int fd = -1;
    hsm_area *area = make_area(4, 100, 1, &fd);
    uint32_t slot = 99;
    const uint64_t heads[] = {1, 3, 5, UINT64_C(1) << 62};
    for (size_t i = 0; i < COUNT_OF(heads); i++) {
        atomic_store(&area->shared->request_head, heads[i]);
        CHECK(!hsm_area_claim(area, &slot));
        CHECK_INT(hsm_area_queued(area), ==, 0);
        CHECK_INT(hsm_area_oldest(area), ==, 0);
        CHECK_INT(atomic_load(&area->shared->request_head), ==, heads[i]);
    }
    hsm_area_park(area, 0, MILLISECOND); /* sleeps, and does not take it for work */
    free_area(area, fd);
}

/* ---- contention: one producer, four consumers, one drainer ---- */

static struct {
    hsm_area *area;
    _Atomic uint8_t *served; /* how often each request was */
    uint8_t *drained;
    _Atomic uint32_t returned[SLOTS]; /* slots on their way back from the drainer to the producer, plus one */
    _Atomic bool hurry;               /* something went wrong: do not wait any more */
} contention;

static void *produce(void *argument) {
    (void)argument;
    hsm_area *area = contention.area;
    uint64_t begun = hsm_now_ns();
    for (uint64_t sequence = 0; sequence < REQUESTS && !atomic_load(&contention.hurry); sequence++) {
        _Atomic uint32_t *place = &contention.returned[sequence % SLOTS];
        uint32_t slot;
        while ((slot = atomic_exchange(place, 0)) == 0) {
            if (!patient(begun)) {
                FAIL("slot %llu did not come back", (unsigned long long)sequence);
                atomic_store(&contention.hurry, true);
                return NULL;
            }
            (void)sched_yield();
        }
        slot -= 1;
        hsm_area_slot(area, slot)->submitted_ns = sequence;
        hsm_area_slot(area, slot)->key = (uint32_t)(sequence * 7);
        hsm_area_publish(area, sequence, slot);
        atomic_store_explicit(&area->shared->request_tail, sequence + 1, memory_order_release);
        atomic_thread_fence(memory_order_seq_cst);
        hsm_area_unpark(area, 1);
    }
    return NULL;
}

static void *consume(void *argument) {
    uint32_t worker = *(const uint32_t *)argument;
    hsm_area *area = contention.area;
    uint32_t index;
    for (;;) {
        if (!hsm_area_claim(area, &index)) {
            if (atomic_load(&area->shared->mode) != 0) {
                return NULL;
            }
            hsm_area_park(area, worker, 0);
            continue;
        }
        if (index >= SLOTS) {
            FAIL("claimed slot %u", index);
            return NULL;
        }
        hsm_slot *slot = hsm_area_slot(area, index);
        uint64_t sequence = slot->submitted_ns;
        CHECK_INT(sequence, <, REQUESTS);
        CHECK_INT(slot->key, ==, (uint32_t)(sequence * 7));
        atomic_fetch_add_explicit(&contention.served[sequence], 1, memory_order_relaxed);
        slot->hsm_ns = sequence * 3 + 1;
        hsm_area_complete(area, index);
    }
}

static void drain(void) {
    uint64_t begun = hsm_now_ns();
    for (uint64_t head = 0; head < REQUESTS; head++) {
        uint32_t index;
        while (!hsm_area_take(contention.area, head, &index)) {
            if (!patient(begun) || atomic_load(&contention.hurry)) {
                FAIL("completion %llu did not come", (unsigned long long)head);
                atomic_store(&contention.hurry, true);
                return;
            }
            (void)sched_yield();
        }
        REQUIRE(index < SLOTS);
        hsm_slot *slot = hsm_area_slot(contention.area, index);
        REQUIRE(slot->submitted_ns < REQUESTS);
        CHECK_INT(slot->hsm_ns, ==, slot->submitted_ns * 3 + 1);
        contention.drained[slot->submitted_ns]++;
        /* Its place is free: at most SLOTS are under way, and this one was taken from there. */
        atomic_store(&contention.returned[head % SLOTS], index + 1);
    }
}

static void no_request_is_lost_or_doubled(void) {
    int fd = -1;
    contention.area = make_area(SLOTS, 1, CONSUMERS, &fd);
    contention.served = calloc(REQUESTS, sizeof *contention.served);
    contention.drained = calloc(REQUESTS, 1);
    atomic_store(&contention.hurry, false);
    REQUIRE(contention.served != NULL && contention.drained != NULL);
    for (uint32_t i = 0; i < SLOTS; i++) {
        atomic_store(&contention.returned[i], i + 1);
    }
    pthread_t producer;
    pthread_t consumers[CONSUMERS];
    uint32_t numbers[CONSUMERS];
    for (uint32_t i = 0; i < CONSUMERS; i++) {
        numbers[i] = i;
        REQUIRE(pthread_create(&consumers[i], NULL, consume, &numbers[i]) == 0);
    }
    REQUIRE(pthread_create(&producer, NULL, produce, NULL) == 0);
    drain();
    (void)pthread_join(producer, NULL);
    atomic_store(&contention.area->shared->mode, HSM_MODE_STOPPING);
    hsm_area_unpark(contention.area, HSM_MAX_WORKERS);
    for (uint32_t i = 0; i < CONSUMERS; i++) {
        (void)pthread_join(consumers[i], NULL);
    }
    for (uint32_t i = 0; i < REQUESTS; i++) {
        CHECK_INT(contention.served[i], ==, 1);
        CHECK_INT(contention.drained[i], ==, 1);
    }
    free((void *)contention.served);
    free(contention.drained);
    free_area(contention.area, fd);
}

/* ---- sleeping ---- */

#define NAPS 20000U

static _Atomic uint64_t awoken;

struct sleeper {
    hsm_area *area;
    uint32_t worker;
};

static void *sleep_and_claim(void *argument) {
    const struct sleeper *self = argument;
    uint32_t slot;
    while (atomic_load(&self->area->shared->mode) == 0) {
        if (hsm_area_claim(self->area, &slot)) {
            atomic_fetch_add(&awoken, 1);
        } else {
            hsm_area_park(self->area, self->worker, 0); /* no timeout: a lost wake is lost for ever */
        }
    }
    return NULL;
}

static void no_wake_is_lost(void) {
    int fd = -1;
    hsm_area *area = make_area(4, 1, 130, &fd);
    /* In different words of the bit map, so that both are searched. */
    struct sleeper sleepers[2] = {{area, 1}, {area, 129}};
    pthread_t threads[2];
    atomic_store(&awoken, 0);
    for (size_t i = 0; i < 2; i++) {
        REQUIRE(pthread_create(&threads[i], NULL, sleep_and_claim, &sleepers[i]) == 0);
    }
    uint64_t begun = hsm_now_ns();
    for (uint64_t nap = 0; nap < NAPS && patient(begun); nap++) {
        hsm_area_publish(area, nap, (uint32_t)(nap % 4));
        atomic_store_explicit(&area->shared->request_tail, nap + 1, memory_order_release);
        atomic_thread_fence(memory_order_seq_cst);
        hsm_area_unpark(area, 1);
        while (atomic_load(&awoken) <= nap && patient(begun)) {
            (void)sched_yield();
        }
    }
    CHECK_INT(atomic_load(&awoken), ==, NAPS);
    atomic_store(&area->shared->mode, HSM_MODE_STOPPING);
    hsm_area_unpark(area, HSM_MAX_WORKERS);
    for (size_t i = 0; i < 2; i++) {
        (void)pthread_join(threads[i], NULL);
    }
    free_area(area, fd);
}

static void a_worker_does_not_sleep_past_work_or_the_end(void) {
    int fd = -1;
    hsm_area *area = make_area(4, 1, 1, &fd);
    hsm_area_publish(area, 0, 0);
    atomic_store(&area->shared->request_tail, 1);
    hsm_area_park(area, 0, 0); /* returns at once: a request waits */
    uint32_t slot;
    CHECK(hsm_area_claim(area, &slot));
    atomic_store(&area->shared->mode, HSM_MODE_STOPPING);
    hsm_area_park(area, 0, 0); /* returns at once: the area is stopping */
    atomic_store(&area->shared->mode, HSM_MODE_RUN);
    uint64_t begun = hsm_now_ns();
    hsm_area_park(area, 0, MILLISECOND);
    CHECK_INT(hsm_now_ns() - begun, <, PATIENCE);
    CHECK_INT(atomic_load(&area->shared->parked[0]), ==, 0);
    free_area(area, fd);
}

static void unpark_wakes_no_more_than_asked(void) {
    int fd = -1;
    hsm_area *area = make_area(4, 1, 200, &fd);
    static const uint32_t asleep[] = {0, 63, 64, 127, 199};
    for (size_t i = 0; i < COUNT_OF(asleep); i++) {
        atomic_fetch_or(&area->shared->parked[asleep[i] / 64], UINT64_C(1) << (asleep[i] % 64));
    }
    hsm_area_unpark(area, 0);
    hsm_area_unpark(area, 3);
    unsigned woken = 0;
    for (uint32_t worker = 0; worker < 200; worker++) {
        bool still = (atomic_load(&area->shared->parked[worker / 64]) >> (worker % 64) & 1U) != 0;
        bool signalled = atomic_load(&hsm_area_worker(area, worker)->park) != 0;
        CHECK(!still || !signalled);
        woken += signalled ? 1U : 0U;
    }
    CHECK_INT(woken, ==, 3);
    hsm_area_unpark(area, HSM_MAX_WORKERS);
    for (size_t i = 0; i < COUNT_OF(asleep); i++) {
        CHECK_INT(atomic_load(&hsm_area_worker(area, asleep[i])->park), ==, 1);
    }
    free_area(area, fd);
}

static void what_each_request_writes_lies_apart_from_what_each_completion_reads(void) {
    static const size_t read_per_completion[] = {offsetof(hsm_shared, notify), offsetof(hsm_shared, taken_at_ns),
                                                 offsetof(hsm_shared, spinning), offsetof(hsm_shared, mode)};
    for (size_t i = 0; i < COUNT_OF(read_per_completion); i++) {
        CHECK_INT(offsetof(hsm_shared, in_flight) / HSM_CACHE_LINE, !=, read_per_completion[i] / HSM_CACHE_LINE);
    }
}

/* In place of libc's, to see which kind of futex is used. */
static _Atomic long last_futex;

long syscall(long number, ...) {
    va_list arguments;
    va_start(arguments, number);
    _Atomic uint32_t *word = va_arg(arguments, _Atomic uint32_t *);
    int operation = va_arg(arguments, int);
    uint32_t value = va_arg(arguments, uint32_t);
    const struct timespec *timeout = va_arg(arguments, const struct timespec *);
    va_end(arguments);
    REQUIRE(number == SYS_futex);
    atomic_store(&last_futex, operation);
    static long (*real)(long, ...);
    void *symbol = dlsym(RTLD_NEXT, "syscall");
    memcpy(&real, &symbol, sizeof real);
    return real(number, word, operation, value, timeout, NULL, 0);
}

static void one_process_s_futexes_are_private(void) {
    int fd = -1;
    hsm_area *area = make_area(4, 64, 1, &fd);
    hsm_area_park(area, 0, MILLISECOND);
    CHECK_INT(atomic_load(&last_futex), ==, FUTEX_WAIT_PRIVATE);
    hsm_area other;
    memset(&other, 0, sizeof other);
    REQUIRE(hsm_area_attach(fd, &other) == HSM_OK);
    hsm_area_park(&other, 0, MILLISECOND);
    CHECK_INT(atomic_load(&last_futex), ==, FUTEX_WAIT);
    int none = -1;
    hsm_area_destroy(&other, &none);
    free_area(area, fd);
}

/* Another process may still hold the file. */
static void messages_are_wiped_with_the_area(void) {
    enum { LONG = 3 * HSM_INLINE_MESSAGE };
    static char found[LONG];
    int fd = -1;
    hsm_area *area = make_area(64, LONG, 1, &fd);
    int kept = dup(fd);
    uint64_t places[] = {offset_of(area, hsm_area_message(area, 3, 1)),
                         offset_of(area, hsm_area_message(area, 60, LONG))};
    memset(hsm_area_message(area, 3, 1), 'm', HSM_INLINE_MESSAGE);
    memset(hsm_area_message(area, 60, LONG), 'm', LONG);
    uint64_t size = area->size;
    free_area(area, fd);
    for (size_t i = 0; i < COUNT_OF(places); i++) {
        CHECK_INT(pread(kept, found, LONG, (off_t)places[i]), ==, LONG);
        CHECK(memchr(found, 'm', LONG) == NULL);
    }
    struct stat status;
    REQUIRE(fstat(kept, &status) == 0);
    CHECK_INT((uint64_t)status.st_blocks * 512U, <, size / 2U); /* what was never used is none the more */
    (void)close(kept);
}

static const struct test tests[] = {
    TEST(regions_do_not_overlap),
    TEST(the_other_side_adds_no_seal),
    TEST(a_header_that_was_overwritten_is_written_again),
    TEST(a_head_beyond_the_tail_is_an_empty_ring),
    TEST(no_request_is_lost_or_doubled),
    TEST(what_each_request_writes_lies_apart_from_what_each_completion_reads),
    TEST(one_process_s_futexes_are_private),
    TEST(messages_are_wiped_with_the_area),
    TEST(no_wake_is_lost),
    TEST(a_worker_does_not_sleep_past_work_or_the_end),
    TEST(unpark_wakes_no_more_than_asked),
};
HARNESS_MAIN(tests)
