/* What a client takes back from a host process that has died: the test plays the host. */
#include <fcntl.h>
#include <unistd.h>

#include "client.h"
#include "harness.h"

#define SLOTS 8U

enum { DETERMINISTIC, RANDOMIZED }; /* key indices */

static hsm_client *make_client(void) {
    hsm_client_options options = {.slots = SLOTS, .max_message = 16, .max_workers = 2, .coalesce_ns = SECOND};
    hsm_client *client = NULL;
    hsm_error error = {.status = HSM_OK};
    REQUIRE_OK(hsm_client_new(&options, &client, &error), error);
    client->area->shared->keys[DETERMINISTIC].algorithm = HSM_ED25519;
    client->area->shared->keys[RANDOMIZED].algorithm = HSM_ECDSA_P256;
    return client;
}

static uint32_t submit(hsm_client *client, uint32_t key) {
    uint32_t slot = UINT32_MAX;
    uint64_t deadline;
    CHECK_STATUS(hsm_client_submit(client, key, (const uint8_t *)"text", 4, 0, &slot, &deadline), HSM_OK);
    return slot;
}

static uint32_t claim(hsm_client *client) {
    uint32_t index = UINT32_MAX;
    REQUIRE(hsm_area_claim(client->area, &index));
    return index;
}

static void answer(hsm_client *client, uint32_t index) {
    hsm_slot *slot = hsm_area_slot(client->area, index);
    slot->status = HSM_OK;
    slot->signature_len = HSM_MAX_SIGNATURE;
    hsm_area_complete(client->area, index);
}

static void check_next(hsm_client *client, uint32_t slot, hsm_status status) {
    hsm_completion done;
    REQUIRE(hsm_client_next(client, &done));
    CHECK_INT(done.slot, ==, slot);
    CHECK_STATUS(done.status, status);
    CHECK_INT(done.signature_len, ==, status == HSM_OK ? HSM_MAX_SIGNATURE : 0);
    hsm_client_release(client, slot);
}

static void check_empty(hsm_client *client) {
    hsm_completion done;
    uint32_t slot;
    CHECK(!hsm_client_next(client, &done));
    CHECK(!hsm_area_claim(client->area, &slot));
    CHECK_INT(hsm_client_free_slots(client), ==, SLOTS);
}

static void nothing_under_way_is_nothing_to_take_back(void) {
    hsm_client *client = make_client();
    CHECK_INT(hsm_client_replay(client), ==, 0);
    check_empty(client);
    hsm_client_free(client);
}

static void what_was_begun_is_queued_again_once(void) {
    hsm_client *client = make_client();
    uint32_t slot = submit(client, DETERMINISTIC);
    CHECK_INT(claim(client), ==, slot);
    CHECK_INT(hsm_client_replay(client), ==, 1);
    CHECK_INT(claim(client), ==, slot);
    CHECK_INT(hsm_area_slot(client->area, slot)->message_len, ==, 4);
    CHECK_INT(hsm_client_replay(client), ==, 0); /* a message that kills the host must not do so for ever */
    int event_fd;
    int timer_fd;
    hsm_client_wake_fds(client, &event_fd, &timer_fd);
    CHECK(readable(event_fd, 0));
    check_next(client, slot, HSM_HOST_LOST);
    check_empty(client);
    hsm_client_free(client);
}

/* Four requests, of which two hosts had begun the first three as they died: these are suspects. */
static hsm_client *suspecting(uint32_t slots[4]) {
    hsm_client *client = make_client();
    for (size_t i = 0; i < 4; i++) {
        slots[i] = submit(client, DETERMINISTIC);
        CHECK_INT(claim(client), ==, slots[i]);
        if (i == 2) {
            CHECK_INT(hsm_client_replay(client), ==, 3);
            for (size_t k = 0; k < 3; k++) {
                (void)claim(client);
            }
        }
    }
    (void)submit(client, DETERMINISTIC);
    CHECK_INT(hsm_client_replay(client), ==, 4);
    return client;
}

/* The only request that workers see. */
static uint32_t claim_alone(hsm_client *client) {
    uint32_t index = claim(client);
    uint32_t other;
    CHECK(!hsm_area_claim(client->area, &other));
    return index;
}

static void only_what_was_alone_inside_is_guilty(void) {
    uint32_t slots[4];
    hsm_client *client = suspecting(slots);
    (void)submit(client, RANDOMIZED); /* workers do not see it yet */
    uint32_t innocent = claim_alone(client);
    CHECK_INT(innocent, <=, slots[2]);
    answer(client, innocent);
    check_next(client, innocent, HSM_OK);
    CHECK_INT(hsm_client_replay(client), ==, 0); /* the next host dies before it begins anything */
    uint32_t guilty = claim_alone(client);
    CHECK_INT(guilty, !=, innocent);
    CHECK_INT(hsm_client_replay(client), ==, 0);
    check_next(client, guilty, HSM_HOST_LOST);
    uint32_t last = claim_alone(client);
    answer(client, last);
    /* The answer of the last suspect is in the ring as the host dies: the others are not tried. */
    CHECK_INT(hsm_client_replay(client), ==, 0);
    check_next(client, last, HSM_OK);
    CHECK_INT(innocent + guilty + last, ==, slots[0] + slots[1] + slots[2]);
    for (size_t i = 0; i < 3; i++) { /* the fourth, and those that came after */
        uint32_t slot = claim(client);
        answer(client, slot);
        check_next(client, slot, HSM_OK);
    }
    check_empty(client);
    hsm_client_free(client);
}

/* Without another death between them. */
static void suspects_are_tried_one_after_another(void) {
    uint32_t slots[4];
    hsm_client *client = suspecting(slots);
    for (size_t i = 0; i < 3; i++) {
        uint32_t suspect = claim_alone(client);
        answer(client, suspect);
        check_next(client, suspect, HSM_OK);
    }
    uint32_t rest[2] = {claim(client), claim(client)};
    for (size_t i = 0; i < COUNT_OF(rest); i++) {
        answer(client, rest[i]);
        check_next(client, rest[i], HSM_OK);
    }
    check_empty(client);
    hsm_client_free(client);
}

static void a_suspect_that_keeps_its_worker_is_not_awaited(void) {
    uint32_t slots[4];
    hsm_client *client = suspecting(slots);
    hsm_client_look(client, 10 * SECOND); /* no worker has it yet */
    hsm_client_look(client, 20 * SECOND);
    uint32_t suspect = claim_alone(client);
    hsm_client_look(client, 30 * SECOND);
    hsm_client_look(client, 31 * SECOND - 1);
    uint32_t slot;
    CHECK(!hsm_area_claim(client->area, &slot));
    hsm_client_look(client, 31 * SECOND);
    for (size_t i = 0; i < 4; i++) {
        slot = claim(client);
        CHECK_INT(slot, !=, suspect);
        answer(client, slot);
        check_next(client, slot, HSM_OK);
    }
    answer(client, suspect);
    check_next(client, suspect, HSM_OK);
    check_empty(client);
    hsm_client_free(client);
}

/* Also if the host that died has written into the key table that this key's signatures do not differ. */
static void what_may_be_begun_once_is_no_suspect(void) {
    hsm_client *client = make_client();
    uint32_t once = submit(client, RANDOMIZED);
    uint32_t slot = submit(client, DETERMINISTIC);
    (void)claim(client);
    (void)claim(client);
    client->area->shared->keys[RANDOMIZED].algorithm = HSM_ED25519;
    hsm_client_restore(client, once, RANDOMIZED, (const uint8_t *)"text", 4, false, 0, false);
    CHECK_INT(hsm_client_replay(client), ==, 1);
    check_next(client, once, HSM_HOST_LOST);
    answer(client, claim(client));
    check_next(client, slot, HSM_OK);
    check_empty(client);
    hsm_client_free(client);
}

static void a_signature_that_would_differ_is_not_made_twice(void) {
    hsm_client *client = make_client();
    uint32_t slot = submit(client, RANDOMIZED);
    (void)claim(client);
    CHECK_INT(hsm_client_replay(client), ==, 0);
    check_next(client, slot, HSM_HOST_LOST);
    check_empty(client);
    hsm_client_free(client);
}

static void what_was_not_begun_stays_queued(void) {
    hsm_client *client = make_client();
    for (uint32_t i = 0; i < SLOTS + 1U; i++) { /* the ring has gone round */
        uint32_t slot = submit(client, RANDOMIZED);
        answer(client, claim(client));
        check_next(client, slot, HSM_OK);
    }
    uint32_t slots[3];
    for (size_t i = 0; i < 3; i++) {
        slots[i] = submit(client, i == 1 ? RANDOMIZED : DETERMINISTIC);
    }
    CHECK_INT(claim(client), ==, slots[0]);
    CHECK_INT(hsm_client_replay(client), ==, 1);
    CHECK_INT(claim(client), ==, slots[1]);
    CHECK_INT(claim(client), ==, slots[2]);
    CHECK_INT(claim(client), ==, slots[0]);
    for (size_t i = 0; i < 3; i++) {
        answer(client, slots[i]);
        check_next(client, slots[i], HSM_OK);
    }
    check_empty(client);
    hsm_client_free(client);
}

static void what_was_answered_is_kept_across_a_hole(void) {
    hsm_client *client = make_client();
    uint32_t slots[3];
    for (size_t i = 0; i < 3; i++) {
        slots[i] = submit(client, DETERMINISTIC);
    }
    for (size_t i = 0; i < 3; i++) {
        (void)claim(client);
    }
    /* The first worker reserves its place in the ring and dies there; the others come after it. */
    (void)atomic_fetch_add(&client->area->shared->completion_tail, 1);
    answer(client, slots[1]);
    answer(client, slots[2]);
    hsm_completion done;
    CHECK(!hsm_client_next(client, &done)); /* the hole keeps them back */
    CHECK_INT(hsm_client_replay(client), ==, 1);
    check_next(client, slots[1], HSM_OK);
    check_next(client, slots[2], HSM_OK);
    CHECK_INT(claim(client), ==, slots[0]);
    answer(client, slots[0]);
    check_next(client, slots[0], HSM_OK);
    check_empty(client);
    hsm_client_free(client);
}

/* Between the two calls of a batch some requests are in slots and in the ring, but no worker has been shown them. */
static void an_open_batch_is_not_doubled(void) {
    hsm_client *client = make_client();
    hsm_client_batch_begin(client);
    uint32_t first = submit(client, DETERMINISTIC);
    uint32_t second = submit(client, RANDOMIZED);
    (void)hsm_client_replay(client);
    hsm_client_batch_end(client);
    unsigned times[SLOTS] = {0};
    uint32_t index;
    while (hsm_area_claim(client->area, &index)) {
        REQUIRE(index < SLOTS);
        times[index]++;
        answer(client, index);
    }
    CHECK_INT(times[first], ==, 1);
    CHECK_INT(times[second], ==, 1);
    check_next(client, first, HSM_OK);
    check_next(client, second, HSM_OK);
    check_empty(client);
    hsm_client_free(client);
}

static void a_completion_that_was_taken_is_not_taken_back(void) {
    hsm_client *client = make_client();
    uint32_t slot = submit(client, DETERMINISTIC);
    answer(client, claim(client));
    hsm_completion done;
    REQUIRE(hsm_client_next(client, &done));
    CHECK_INT(hsm_client_replay(client), ==, 0); /* its owner still reads it */
    CHECK_INT(hsm_client_free_slots(client), ==, SLOTS - 1);
    hsm_client_release(client, slot);
    check_empty(client);
    hsm_client_free(client);
}

/* A dying host may leave anything behind: every request is still answered once, and nothing out of range is touched. */
static void rubble_is_cleared(void) {
    hsm_client *client = make_client();
    for (uint32_t i = 0; i < SLOTS; i++) {
        (void)submit(client, DETERMINISTIC);
    }
    for (uint32_t i = 0; i < SLOTS; i++) {
        (void)claim(client);
    }
    hsm_area *area = client->area;
    answer(client, 3);
    answer(client, 3);                   /* twice */
    hsm_area_complete(area, 0x7ffffff0); /* out of range */
    atomic_store(&area->shared->request_head, UINT64_MAX / 2);
    atomic_store(&area->shared->request_tail, 12345);
    atomic_store(&area->shared->alarm_at_ns, UINT64_MAX); /* nobody would set an alarm */
    atomic_store(&area->shared->waiting_since_ns, UINT64_MAX);
    atomic_store(&area->shared->probe_at_ns, UINT64_MAX);
    atomic_store(&area->shared->spinning, 1);
    atomic_store(&area->shared->parked[0], UINT64_MAX);
    /* A write into an event that is full blocks. */
    const uint64_t full = UINT64_MAX - 1U;
    CHECK_INT(write(client->event_fd, &full, sizeof full), ==, (ssize_t)sizeof full);
    CHECK_INT(fcntl(client->event_fd, F_SETFL, 0), ==, 0);
    for (uint32_t i = 0; i < SLOTS; i++) {
        hsm_area_slot(area, i)->key = UINT32_MAX - i;
    }
    (void)hsm_client_replay(client);
    CHECK(readable(client->event_fd, 0));
    CHECK_INT(atomic_load(&area->shared->alarm_at_ns), ==, 0);
    CHECK_INT(atomic_load(&area->shared->waiting_since_ns), ==, 0);
    CHECK_INT(atomic_load(&area->shared->probe_at_ns), ==, 0);
    unsigned times[SLOTS] = {0};
    uint32_t index;
    while (hsm_area_claim(area, &index)) {
        REQUIRE(index < SLOTS);
        answer(client, index);
    }
    hsm_completion done;
    while (hsm_client_next(client, &done)) {
        REQUIRE(done.slot < SLOTS);
        times[done.slot]++;
        hsm_client_release(client, done.slot);
    }
    for (uint32_t i = 0; i < SLOTS; i++) {
        CHECK_INT(times[i], ==, 1);
    }
    check_empty(client);
    hsm_client_free(client);
}

/* Each word that hosts write is a fresh area's again, but for counts that go on. */
static void no_word_of_a_host_outlives_it(void) {
    hsm_client *client = make_client();
    hsm_shared *shared = client->area->shared;
    hsm_worker_record *worker = hsm_area_worker(client->area, 1);
    const hsm_shared fresh = *shared;
    const hsm_worker_record idle = *worker;
    const size_t from = offsetof(hsm_shared, notify), words = offsetof(hsm_shared, keys) - from;
    const size_t first = offsetof(hsm_worker_record, running);
    const size_t last = offsetof(hsm_worker_record, signatures) - first;
    memset((uint8_t *)shared + from, 0xff, words);
    memset((uint8_t *)worker + first, 0xff, last);
    shared->taken_at_ns = fresh.taken_at_ns; /* the client's own */
    shared->in_flight = fresh.in_flight;
    CHECK_INT(hsm_client_replay(client), ==, 0);
    CHECK_INT(shared->notify, ==, fresh.notify);
    CHECK_INT(shared->waiting_since_ns, ==, fresh.waiting_since_ns);
    CHECK_INT(shared->alarm_at_ns, ==, fresh.alarm_at_ns);
    CHECK_INT(shared->spinning, ==, fresh.spinning);
    CHECK_INT(shared->mode, ==, HSM_MODE_PAUSED);
    CHECK_INT(shared->down, ==, fresh.down);
    CHECK_INT(shared->probe_at_ns, ==, fresh.probe_at_ns);
    CHECK_INT(memcmp((void *)shared->parked, (const void *)fresh.parked, sizeof fresh.parked), ==, 0);
    CHECK_INT(worker->running, ==, idle.running);
    CHECK_INT(worker->quarantined, ==, idle.quarantined);
    CHECK_INT(worker->call_started_ns, ==, idle.call_started_ns);
    CHECK_INT(worker->call_deadline_ns, ==, idle.call_deadline_ns);
    check_empty(client);
    hsm_client_free(client);
}

static const struct test tests[] = {
    TEST(no_word_of_a_host_outlives_it),
    TEST(nothing_under_way_is_nothing_to_take_back),
    TEST(what_was_begun_is_queued_again_once),
    TEST(a_signature_that_would_differ_is_not_made_twice),
    TEST(what_was_not_begun_stays_queued),
    TEST(what_was_answered_is_kept_across_a_hole),
    TEST(an_open_batch_is_not_doubled),
    TEST(a_completion_that_was_taken_is_not_taken_back),
    TEST(rubble_is_cleared),
    TEST(only_what_was_alone_inside_is_guilty),
    TEST(suspects_are_tried_one_after_another),
    TEST(a_suspect_that_keeps_its_worker_is_not_awaited),
    TEST(what_may_be_begun_once_is_no_suspect),
};
HARNESS_MAIN(tests)
