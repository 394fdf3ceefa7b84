/* The client without an engine: the test plays the worker. */
#include <errno.h>
#include <fcntl.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <unistd.h>

#include "engine.h"
#include "harness.h"
#include "pkcs11.h"

#define KEY 3U

/* What happens just before the client reads its event or disarms its timer, or just after; in place of libc's, for this
 * program. Workers arm the timer, too: that happens as it does elsewhere. */
static void (*before_read)(void);
static void (*before_disarm)(void);
static void (*after_disarm)(void);

static void run_once(void (**hook)(void)) {
    void (*now)(void) = *hook;
    *hook = NULL;
    if (now != NULL) {
        now();
    }
}

ssize_t preadv2(int fd, const struct iovec *where, int count, off_t offset, int flags) {
    run_once(&before_read);
    return syscall(SYS_preadv2, fd, where, count, offset, 0, flags);
}

int timerfd_settime(int fd, int flags, const struct itimerspec *when, struct itimerspec *before) {
    bool disarms = when->it_value.tv_sec == 0 && when->it_value.tv_nsec == 0;
    if (disarms) {
        run_once(&before_disarm);
    }
    int code = (int)syscall(SYS_timerfd_settime, fd, flags, when, before);
    if (disarms) {
        run_once(&after_disarm);
    }
    return code;
}

static hsm_client *make_client(uint32_t slots, uint32_t max_message, uint64_t coalesce_ns) {
    hsm_client_options options = {
        .slots = slots, .max_message = max_message, .max_workers = 2, .coalesce_ns = coalesce_ns};
    hsm_client *client = NULL;
    hsm_error error = {.status = HSM_OK};
    REQUIRE_OK(hsm_client_new(&options, &client, &error), error);
    return client;
}

static uint32_t submit(hsm_client *client, const void *message, size_t length) {
    uint32_t slot = UINT32_MAX;
    uint64_t deadline;
    CHECK_STATUS(hsm_client_submit(client, KEY, message, length, 0, &slot, &deadline), HSM_OK);
    CHECK_INT(deadline, ==, 0);
    CHECK_INT(slot, <, hsm_client_slots(client));
    return slot;
}

/* Serve the oldest request with a signature of `fill` bytes. Returns its slot. */
static uint32_t serve(hsm_client *client, uint8_t fill) {
    uint32_t index = UINT32_MAX;
    REQUIRE(hsm_area_claim(client->area, &index));
    REQUIRE(index < hsm_client_slots(client));
    hsm_slot *slot = hsm_area_slot(client->area, index);
    slot->status = HSM_OK;
    slot->ckr = 0;
    slot->call = HSM_CALL_NONE;
    slot->signature_len = HSM_MAX_SIGNATURE;
    slot->queue_ns = 11;
    slot->hsm_ns = 22;
    memset(slot->signature, fill, HSM_MAX_SIGNATURE);
    hsm_area_complete(client->area, index);
    return index;
}

static void options_are_checked(void) {
    static const hsm_client_options wrong[] = {
        {.slots = 0, .max_message = 1, .max_workers = 1},
        {.slots = HSM_MAX_SLOTS + 1, .max_message = 1, .max_workers = 1},
        {.slots = UINT32_MAX, .max_message = 1, .max_workers = 1},
        {.slots = 1, .max_message = 0, .max_workers = 1},
        {.slots = 1, .max_message = HSM_MAX_MESSAGE + 1, .max_workers = 1},
        {.slots = 1, .max_message = 1, .max_workers = 0},
        {.slots = 1, .max_message = 1, .max_workers = HSM_MAX_WORKERS + 1},
    };
    for (size_t i = 0; i < COUNT_OF(wrong); i++) {
        hsm_client *client = (hsm_client *)&client;
        hsm_error error;
        CHECK_STATUS(hsm_client_new(&wrong[i], &client, &error), HSM_BAD_ARGUMENT);
        CHECK(client == NULL);
        CHECK(error.detail[0] != '\0');
    }
    hsm_client_free(NULL);
}

static void slots_are_rounded_up(void) {
    static const uint32_t asked[] = {1, 2, 3, 4, 5, 1000, 1024};
    static const uint32_t given[] = {1, 2, 4, 4, 8, 1024, 1024};
    for (size_t i = 0; i < COUNT_OF(asked); i++) {
        hsm_client *client = make_client(asked[i], 16, 0);
        CHECK_INT(hsm_client_slots(client), ==, given[i]);
        CHECK_INT(hsm_client_free_slots(client), ==, given[i]);
        hsm_client_free(client);
    }
}

static void the_oldest_request_is_found_wherever_the_ring_is(void) {
    hsm_client *client = make_client(4, 16, 0);
    for (uint64_t turn = 1; turn <= 9; turn++) {
        uint32_t slots[3];
        for (uint64_t i = 0; i < 3; i++) {
            slots[i] = submit(client, "m", 1);
            hsm_area_slot(client->area, slots[i])->submitted_ns = 10 * turn + i;
        }
        hsm_completion completion;
        for (uint64_t i = 0; i < 3; i++) {
            CHECK_INT(hsm_area_oldest(client->area), ==, 10 * turn + i);
            CHECK_INT(serve(client, 1), ==, slots[i]);
            CHECK_INT(hsm_client_next(client, &completion), ==, 1);
            hsm_client_release(client, slots[i]);
        }
        CHECK_INT(hsm_area_oldest(client->area), ==, 0);
    }
    hsm_client_free(client);
}

static void a_deadline_is_a_point_in_time(void) {
    hsm_client *client = make_client(4, 16, 0);
    uint32_t slot;
    uint64_t deadline;
    uint64_t before = hsm_now_ns();
    CHECK_STATUS(hsm_client_submit(client, KEY, (const uint8_t *)"x", 1, SECOND, &slot, &deadline), HSM_OK);
    CHECK_INT(deadline, >=, before + SECOND);
    CHECK_INT(deadline, <=, hsm_now_ns() + SECOND);
    CHECK(hsm_area_slot(client->area, slot)->deadline_ns == deadline);
    /* "For ever" may be given as a large number, which must not wrap round into the past. */
    CHECK_STATUS(hsm_client_submit(client, KEY, (const uint8_t *)"x", 1, UINT64_MAX, &slot, &deadline), HSM_OK);
    CHECK(deadline == 0 || deadline > hsm_now_ns());
    hsm_client_free(client);
}

static void cancelling_marks_and_reuse_unmarks(void) {
    hsm_client *client = make_client(1, 16, 0);
    hsm_completion done;
    uint32_t slot = submit(client, "x", 1);
    hsm_client_cancel(client, slot);
    CHECK_INT(atomic_load(&hsm_area_slot(client->area, slot)->stage), ==, HSM_STAGE_CANCELLED);
    (void)serve(client, 1);
    REQUIRE(hsm_client_next(client, &done));
    hsm_client_release(client, slot);
    CHECK_INT(submit(client, "x", 1), ==, slot);
    CHECK_INT(atomic_load(&hsm_area_slot(client->area, slot)->stage), ==, HSM_STAGE_QUEUED);
    hsm_client_cancel(client, 1); /* no such slot: nothing happens */
    hsm_client_cancel(client, UINT32_MAX);
    hsm_client_free(client);
}

static void a_batch_is_published_at_its_end(void) {
    hsm_client *client = make_client(256, 16, 0);
    hsm_client_batch_begin(client);
    for (int i = 0; i < 10; i++) {
        (void)submit(client, "x", 1);
    }
    CHECK_INT(hsm_area_queued(client->area), ==, 0);
    hsm_client_batch_end(client);
    CHECK_INT(hsm_area_queued(client->area), ==, 10);

    /* A long one is published in groups, so that workers start while the rest is copied. */
    hsm_client_batch_begin(client);
    for (int i = 0; i < 200; i++) {
        (void)submit(client, "x", 1);
    }
    CHECK_INT(hsm_area_queued(client->area), >, 10);
    hsm_client_batch_end(client);
    CHECK_INT(hsm_area_queued(client->area), ==, 210);

    hsm_client_batch_begin(client);
    hsm_client_batch_end(client); /* empty */
    (void)submit(client, "x", 1);
    CHECK_INT(hsm_area_queued(client->area), ==, 211);
    for (int i = 0; i < 211; i++) {
        (void)serve(client, 1);
    }
    hsm_client_free(client);
}

static void a_batch_wakes_as_many_workers_as_it_has_requests(void) {
    hsm_client_options options = {.slots = 64, .max_message = 1, .max_workers = 64, .coalesce_ns = 0};
    hsm_client *client = NULL;
    hsm_error error;
    REQUIRE_OK(hsm_client_new(&options, &client, &error), error);
    atomic_store(&client->area->shared->parked[0], UINT64_MAX);
    hsm_client_batch_begin(client);
    for (int i = 0; i < 5; i++) {
        (void)submit(client, "x", 1);
    }
    CHECK_INT(__builtin_popcountll(atomic_load(&client->area->shared->parked[0])), ==, 64);
    hsm_client_batch_end(client);
    CHECK_INT(__builtin_popcountll(atomic_load(&client->area->shared->parked[0])), ==, 59);
    atomic_store(&client->area->shared->spinning, 1); /* a polling worker finds one of them by itself */
    (void)submit(client, "x", 1);
    CHECK_INT(__builtin_popcountll(atomic_load(&client->area->shared->parked[0])), ==, 59);
    atomic_store(&client->area->shared->parked[0], 0);
    hsm_client_free(client);
}

/* ---- the wake-up ---- */

static void the_descriptors_are_non_blocking_and_private(void) {
    hsm_client *client = make_client(1, 1, 0);
    int fds[2];
    hsm_client_wake_fds(client, &fds[0], &fds[1]);
    for (size_t i = 0; i < 2; i++) {
        CHECK_INT(fcntl(fds[i], F_GETFL) & O_NONBLOCK, ==, O_NONBLOCK);
        CHECK_INT(fcntl(fds[i], F_GETFD) & FD_CLOEXEC, ==, FD_CLOEXEC);
        CHECK(!readable(fds[i], 0));
    }
    hsm_client_wake_clear(client); /* nothing to clear: must not block */
    hsm_client_free(client);
}

static void notify(hsm_client *client, bool urgent) {
    hsm_notify(client->area, client->event_fd, client->timer_fd, urgent, hsm_now_ns(),
               hsm_area_worker(client->area, 0));
}

static uint64_t wakes(const hsm_client *client) {
    hsm_stats stats;
    hsm_client_stats(client, &stats);
    return stats.wakes;
}

static void an_urgent_wake_comes_at_once_and_once(void) {
    hsm_client *client = make_client(4, 1, SECOND);
    int event_fd;
    int timer_fd;
    hsm_client_wake_fds(client, &event_fd, &timer_fd);
    for (uint64_t round = 1; round <= 3; round++) {
        for (int i = 0; i < 5; i++) {
            notify(client, true);
        }
        CHECK(readable(event_fd, 0));
        CHECK(!readable(timer_fd, 0));
        CHECK_INT(wakes(client), ==, round);
        hsm_client_wake_clear(client);
        CHECK(!readable(event_fd, 0));
    }
    hsm_client_free(client);
}

static void a_deferred_wake_comes_with_the_first_completion_that_finds_it_old(void) {
    hsm_client *client = make_client(4, 1, MILLISECOND);
    int event_fd;
    int timer_fd;
    hsm_client_wake_fds(client, &event_fd, &timer_fd);
    for (uint64_t round = 1; round <= 5; round++) {
        uint64_t begun = hsm_now_ns();
        notify(client, false);
        while (!readable(event_fd, 0) && patient(begun)) {
            notify(client, false); /* must not put the wake off */
        }
        uint64_t waited = hsm_now_ns() - begun;
        CHECK(readable(event_fd, 0));
        CHECK_INT(waited, >=, MILLISECOND * 9 / 10);
        CHECK_INT(wakes(client), ==, round);
        hsm_client_wake_clear(client);
        CHECK(!readable(event_fd, 0));
    }
    hsm_client_free(client);
}

static void the_timer_wakes_when_the_workers_do_not(void) {
    hsm_client *client = make_client(4, 1, MILLISECOND);
    int event_fd;
    int timer_fd;
    hsm_client_wake_fds(client, &event_fd, &timer_fd);
    for (uint64_t round = 1; round <= 5; round++) {
        notify(client, false);
        CHECK(readable(timer_fd, PATIENCE / MILLISECOND));
        CHECK(!readable(event_fd, 0));
        hsm_client_wake_clear(client);
        CHECK(!readable(timer_fd, 0));
    }
    hsm_client_free(client);
}

static void an_urgent_wake_overtakes_a_deferred_one(void) {
    hsm_client *client = make_client(4, 1, 3600 * SECOND);
    int event_fd;
    int timer_fd;
    hsm_client_wake_fds(client, &event_fd, &timer_fd);
    notify(client, false);
    CHECK(!readable(event_fd, 0));
    CHECK(!readable(timer_fd, 0));
    notify(client, true);
    CHECK(readable(event_fd, 0));
    notify(client, false); /* fired already: nothing more to do */
    hsm_client_wake_clear(client);
    CHECK(!readable(event_fd, 0));
    CHECK_INT(wakes(client), ==, 1);
    hsm_client_free(client);
}

static void a_worker_that_was_preempted_does_not_trust_an_alarm_that_has_gone_off(void) {
    hsm_client *client = make_client(4, 1, MILLISECOND);
    int event_fd;
    int timer_fd;
    hsm_client_wake_fds(client, &event_fd, &timer_fd);
    uint64_t completed = hsm_now_ns(); /* its own completion; then it lost the processor */
    notify(client, false);
    CHECK(readable(timer_fd, PATIENCE / MILLISECOND));
    hsm_client_wake_clear(client);
    hsm_notify(client->area, client->event_fd, client->timer_fd, false, completed, hsm_area_worker(client->area, 0));
    CHECK(readable(timer_fd, PATIENCE / MILLISECOND) || readable(event_fd, 0));
    hsm_client_free(client);
}

/* As if it had looked long ago. */
static bool catches_up_later(hsm_client *client) {
    client->taken_at_ns -= 3600 * SECOND;
    return hsm_client_catch_up(client);
}

static void a_client_that_is_awake_is_told_what_waits(void) {
    hsm_client *client = make_client(4, 1, 3600 * SECOND); /* minutes between two looks */
    hsm_completion done;
    CHECK(!hsm_client_catch_up(client));
    for (int round = 0; round < 3; round++) {
        (void)submit(client, "x", 1);
        CHECK(!hsm_client_catch_up(client)); /* nothing has completed */
        (void)serve(client, 1);
        notify(client, false);
        CHECK(catches_up_later(client));
        CHECK(!hsm_client_catch_up(client)); /* it has been told just now */
        CHECK(hsm_client_next(client, &done));
        hsm_client_release(client, done.slot);
        CHECK(!hsm_client_next(client, &done));
    }
    /* What was taken needs no wake any more, but one that is under way does no harm. */
    (void)submit(client, "y", 1);
    (void)serve(client, 1);
    notify(client, true);
    CHECK(catches_up_later(client));
    CHECK(hsm_client_next(client, &done));
    hsm_client_release(client, done.slot);
    hsm_client_wake_clear(client);
    (void)submit(client, "z", 1);
    (void)serve(client, 1);
    notify(client, true);
    int event_fd;
    int timer_fd;
    hsm_client_wake_fds(client, &event_fd, &timer_fd);
    CHECK(readable(event_fd, 0)); /* the next wake comes */
    hsm_client_free(client);
}

static hsm_client *interrupted;

static void complete_and_notify(void) {
    (void)serve(interrupted, 7);
    notify(interrupted, true);
}

static void a_wake_in_the_middle_of_clearing_is_not_swallowed(void) {
    hsm_client *client = interrupted = make_client(4, 1, 0);
    hsm_completion done;
    int event_fd;
    int timer_fd;
    hsm_client_wake_fds(client, &event_fd, &timer_fd);
    for (int round = 0; round < 3; round++) {
        (void)submit(client, "x", 1);
        (void)submit(client, "y", 1);
        (void)submit(client, "z", 1);
        (void)serve(client, 1);
        notify(client, true);
        before_read = complete_and_notify;
        hsm_client_wake_clear(client);
        CHECK(before_read == NULL);
        int taken = 0;
        while (hsm_client_next(client, &done)) {
            hsm_client_release(client, done.slot);
            taken++;
        }
        /* The drain took both, or another wake is due. */
        CHECK(taken == 2 || readable(event_fd, 0));
        (void)serve(client, 3);
        notify(client, true);
        CHECK(readable(event_fd, 0)); /* a swallowed event would leave the client deaf from here on */
        hsm_client_wake_clear(client);
        while (hsm_client_next(client, &done)) {
            hsm_client_release(client, done.slot);
            taken++;
        }
        CHECK_INT(taken, ==, 3);
    }
    hsm_client_free(client);
}

static void complete_and_defer(void) {
    (void)serve(interrupted, 7);
    notify(interrupted, false);
}

/* How many completions the drain takes, after a wake or an alarm. */
static int drain(hsm_client *client) {
    hsm_completion done;
    int taken = 0;
    while (hsm_client_next(client, &done)) {
        hsm_client_release(client, done.slot);
        taken++;
    }
    return taken;
}

static void an_alarm_that_is_set_while_the_timer_is_disarmed_is_not_lost(void) {
    hsm_client *client = interrupted = make_client(4, 1, MILLISECOND);
    int event_fd;
    int timer_fd;
    hsm_client_wake_fds(client, &event_fd, &timer_fd);
    for (int round = 0; round < 6; round++) {
        (void)submit(client, "x", 1);
        (void)submit(client, "y", 1);
        *(round % 2 == 0 ? &before_disarm : &after_disarm) = complete_and_defer;
        hsm_client_wake_clear(client);
        CHECK(before_disarm == NULL && after_disarm == NULL);
        int taken = drain(client);
        complete_and_defer(); /* must not trust an alarm that is no more */
        CHECK(readable(timer_fd, PATIENCE / MILLISECOND) || readable(event_fd, 0));
        hsm_client_wake_clear(client);
        CHECK(!readable(timer_fd, 0));
        CHECK_INT(taken + drain(client), ==, 2);
    }
    hsm_client_free(client);
}

/* A host shares both descriptors: it may make them block, and read what the client is about to read. */
static void clearing_never_blocks_whatever_the_descriptors_are_set_to(void) {
    hsm_client *client = make_client(4, 1, MILLISECOND);
    int event_fd;
    int timer_fd;
    hsm_client_wake_fds(client, &event_fd, &timer_fd);
    CHECK_INT(fcntl(event_fd, F_SETFL, 0), ==, 0);
    CHECK_INT(fcntl(timer_fd, F_SETFL, 0), ==, 0);
    hsm_client_wake_clear(client); /* with nothing to read in either */
    hsm_event_set(event_fd);
    hsm_client_wake_clear(client); /* an event without a completion */
    CHECK(!readable(event_fd, 0));
    hsm_client_free(client);
}

static void a_wake_after_clearing_is_a_new_one(void) {
    hsm_client *client = make_client(4, 1, 0);
    hsm_completion done;
    int event_fd;
    int timer_fd;
    hsm_client_wake_fds(client, &event_fd, &timer_fd);
    (void)submit(client, "x", 1);
    (void)submit(client, "y", 1);
    (void)serve(client, 1);
    notify(client, true);
    hsm_client_wake_clear(client);
    (void)serve(client,
                2); /* between the clearing and the drain: the drain takes it, and the wake comes all the same */
    notify(client, true);
    CHECK(hsm_client_next(client, &done));
    CHECK(hsm_client_next(client, &done));
    CHECK(!hsm_client_next(client, &done));
    CHECK(readable(event_fd, 0));
    hsm_client_free(client);
}

static void statistics_add_up_over_workers(void) {
    hsm_client *client = make_client(4, 1, 0);
    for (uint32_t i = 0; i < 2; i++) {
        hsm_worker_record *record = hsm_area_worker(client->area, i);
        atomic_store(&record->signatures, 10 + i);
        atomic_store(&record->failures, 20 + i);
        atomic_store(&record->expired, 30 + i);
        atomic_store(&record->cancelled, 40 + i);
        atomic_store(&record->wakes, 50 + i);
        atomic_store(&record->running, 1);
        atomic_store(&record->recoveries[HSM_CLASS_PROCESS_FATAL], 60 + i);
        atomic_store(&record->failed[HSM_CLASS_RETRY], 70 + i);
        for (uint32_t n = 0; n <= i; n++) {
            hsm_histogram_add(&record->hsm, 7);
            hsm_histogram_add(&record->verify, 100);
        }
        hsm_histogram_add(&record->queue, UINT64_MAX / 4);
    }
    atomic_store(&hsm_area_worker(client->area, 1)->call_started_ns, 12345);
    hsm_stats stats;
    memset(&stats, 0xff, sizeof stats);
    hsm_client_stats(client, &stats);
    CHECK_INT(stats.signatures, ==, 21);
    CHECK_INT(stats.failures, ==, 41);
    CHECK_INT(stats.expired, ==, 61);
    CHECK_INT(stats.cancelled, ==, 81);
    CHECK_INT(stats.wakes, ==, 101);
    CHECK_INT(stats.workers, ==, 2);
    CHECK_INT(stats.busy, ==, 1);
    CHECK_INT(stats.queued, ==, 0);
    CHECK_INT(stats.recoveries[HSM_CLASS_PROCESS_FATAL], ==, 121);
    CHECK_INT(stats.recoveries[HSM_CLASS_RETRY], ==, 0);
    CHECK_INT(stats.failed[HSM_CLASS_RETRY], ==, 141);
    CHECK_INT(stats.failed[HSM_CLASS_REOPEN], ==, 0);
    CHECK_INT(stats.hsm_ns[7], ==, 3);
    CHECK_INT(stats.hsm_sum_ns, ==, 21);
    CHECK_INT(stats.verify_ns[hsm_histogram_bucket(100)], ==, 3);
    CHECK_INT(stats.verify_sum_ns, ==, 300);
    CHECK_INT(stats.queue_ns[HSM_HISTOGRAM_BUCKETS - 1], ==, 2);
    CHECK_INT(stats.queue_sum_ns, ==, UINT64_MAX / 4 * 2);
    CHECK_INT(stats.oldest_queued_ns, ==, 0);
    CHECK_INT(stats.oldest_call_ns, >, 0);
    hsm_client_free(client);
}

/* ---- what the other side may do ---- */

static void answers_out_of_range_stay_in_range(void) {
    hsm_client *client = make_client(4, 16, 0);
    hsm_completion done;
    uint32_t slot = submit(client, "x", 1);
    hsm_slot *request = hsm_area_slot(client->area, slot);
    (void)serve(client, 1);
    request->status = 0xdeadbeef;
    request->call = 0xffff;
    request->signature_len = UINT32_MAX;
    REQUIRE(hsm_client_next(client, &done));
    CHECK_TEXT(hsm_status_name(done.status), "INVALID");
    CHECK_TEXT(hsm_call_name(done.call), "");
    CHECK_INT(done.signature_len, <=, HSM_MAX_SIGNATURE);
    hsm_client_release(client, done.slot);

    static const uint32_t numbers[] = {4, 5, 1000, UINT32_MAX - 1};
    for (size_t i = 0; i < COUNT_OF(numbers); i++) {
        hsm_area_complete(client->area, numbers[i]);
        if (hsm_client_next(client, &done)) {
            CHECK_INT(done.slot, <, 4);
        }
    }
    hsm_client_free(client);
}

/* A host may answer twice, or for a slot that is free: its owner would read another request's signature. */
static void an_answer_that_nobody_waits_for_is_dropped(void) {
    hsm_client *client = make_client(4, 16, 0);
    hsm_completion done;
    hsm_area_complete(client->area, 2);
    CHECK(!hsm_client_next(client, &done)); /* of a free slot */
    uint32_t slot = submit(client, "x", 1);
    (void)serve(client, 1);
    hsm_area_complete(client->area, slot);
    hsm_area_complete(client->area, slot + 4); /* out of range */
    REQUIRE(hsm_client_next(client, &done));
    CHECK_INT(done.slot, ==, slot);
    CHECK(!hsm_client_next(client, &done)); /* the same slot again, not given back yet */
    hsm_client_release(client, slot);
    (void)submit(client, "y", 1); /* and the rings still work */
    slot = serve(client, 2);
    REQUIRE(hsm_client_next(client, &done));
    CHECK_INT(done.slot, ==, slot);
    CHECK_INT(done.signature[0], ==, 2);
    hsm_client_free(client);
}

/* A slot that is given back twice, or that does not exist, must not come back as two requests or as none. */
static void a_slot_given_back_wrongly_is_not_used(void) {
    hsm_client *client = make_client(4, 16, 0);
    hsm_completion done;
    uint32_t first = submit(client, "x", 1);
    (void)submit(client, "y", 1);
    (void)serve(client, 1);
    REQUIRE(hsm_client_next(client, &done));
    hsm_client_release(client, first);
    hsm_client_release(client, first);
    hsm_client_release(client, 1000000);
    bool used[4] = {false};
    uint32_t slot;
    uint64_t deadline;
    for (int i = 0; i < 4; i++) {
        slot = 0;
        if (hsm_client_free_slots(client) == 0 || client->free_slots[client->free_count - 1U] >= 4) {
            break; /* what comes next would be written outside the area */
        }
        if (hsm_client_submit(client, KEY, (const uint8_t *)"z", 1, 0, &slot, &deadline) == HSM_OK) {
            CHECK(!used[slot]);
            used[slot] = true;
        }
    }
    for (uint32_t i = 0; i < client->free_count; i++) {
        CHECK_INT(client->free_slots[i], <, 4);
    }
    hsm_client_free(client);
}

static const struct test tests[] = {
    TEST(options_are_checked),
    TEST(slots_are_rounded_up),
    TEST(the_oldest_request_is_found_wherever_the_ring_is),
    TEST(a_deadline_is_a_point_in_time),
    TEST(cancelling_marks_and_reuse_unmarks),
    TEST(a_batch_is_published_at_its_end),
    TEST(a_batch_wakes_as_many_workers_as_it_has_requests),
    TEST(the_descriptors_are_non_blocking_and_private),
    TEST(an_urgent_wake_comes_at_once_and_once),
    TEST(a_deferred_wake_comes_with_the_first_completion_that_finds_it_old),
    TEST(the_timer_wakes_when_the_workers_do_not),
    TEST(an_alarm_that_is_set_while_the_timer_is_disarmed_is_not_lost),
    TEST(clearing_never_blocks_whatever_the_descriptors_are_set_to),
    TEST(an_urgent_wake_overtakes_a_deferred_one),
    TEST(a_client_that_is_awake_is_told_what_waits),
    TEST(a_worker_that_was_preempted_does_not_trust_an_alarm_that_has_gone_off),
    TEST(a_wake_in_the_middle_of_clearing_is_not_swallowed),
    TEST(a_wake_after_clearing_is_a_new_one),
    TEST(statistics_add_up_over_workers),
    TEST(answers_out_of_range_stay_in_range),
    TEST(an_answer_that_nobody_waits_for_is_dropped),
    TEST(a_slot_given_back_wrongly_is_not_used),
};
HARNESS_MAIN(tests)
