/* When a worker of a slow module wakes the client at once, and when its completion waits for those that follow; and when
 * the client wakes a worker. */
#include "engine.h"
#include "engine_fixture.h"

#include <poll.h>

#define TOOK (5 * MILLISECOND)

static void submit(hsm_client *client, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) {
        uint32_t slot;
        uint64_t deadline;
        CHECK_STATUS(hsm_client_submit(client, 0, (const uint8_t *)"m", 1, 0, &slot, &deadline), HSM_OK);
    }
}

/* The answer that a worker makes of a request that took so long, with so many workers and requests that wait; `since`:
 * the completion that waits, if one does, has done so for so long. */
static bool urgent(uint32_t workers, uint32_t queued, uint64_t since, uint64_t coalesce_ns) {
    hsm_client_options options = {.slots = 256, .max_message = 1, .max_workers = 128, .coalesce_ns = coalesce_ns};
    hsm_client *client = new_client(&options);
    submit(client, queued);
    uint64_t now = hsm_now_ns();
    atomic_store(&client->area->shared->waiting_since_ns, since == 0 ? 0 : now - since);
    hsm_engine *engine = calloc(1, sizeof *engine);
    REQUIRE(engine != NULL);
    engine->area = client->area;
    engine->worker_count = workers;
    hsm_worker worker = {.engine = engine};
    bool found = hsm_is_urgent(&worker, now - TOOK, now);
    free(engine);
    hsm_client_free(client);
    return found;
}

static void completions_of_many_sessions_share_a_wake_for_a_small_part_of_a_signature(void) {
    static const struct {
        uint32_t workers, queued;
        uint64_t since;
        bool urgent;
    } rows[] = {
        {128, 128, 0, false},        {128, 32, 0, false},        {64, 16, 0, false},
        {128, 128, TOOK / 9, false}, {128, 128, TOOK / 7, true}, /* the first of them has waited enough */
        {128, 31, 0, true},                                      /* the queue runs dry: as many in flight as sessions */
        {128, 0, 0, true},           {63, 128, 0, true},         /* the next one may be far away */
        {1, 128, 0, true},
    };
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        CHECK_INT(urgent(rows[i].workers, rows[i].queued, rows[i].since, MILLISECOND), ==, rows[i].urgent);
    }
}

static void without_coalescing_each_completion_is_urgent(void) {
    CHECK(urgent(128, 128, 0, 0));
}

/* ---- the client's wakes of workers ---- */

enum { PLACES = 128 };

static uint32_t sleeping(const hsm_client *client) {
    uint32_t count = 0;
    for (uint32_t word = 0; word < PLACES / 64; word++) {
        count += (uint32_t)__builtin_popcountll(atomic_load(&client->area->shared->parked[word]));
    }
    return count;
}

static hsm_client *client_of(uint32_t workers, uint32_t asleep, uint64_t coalesce_ns) {
    hsm_client_options options = {.slots = 256, .max_message = 1, .max_workers = PLACES, .coalesce_ns = coalesce_ns};
    hsm_client *client = new_client(&options);
    client->workers = workers;
    for (uint32_t i = 0; i < asleep; i++) {
        (void)atomic_fetch_or(&client->area->shared->parked[i / 64], UINT64_C(1) << (i % 64U));
    }
    return client;
}

static void requests_are_left_to_workers_that_end_soon(void) {
    static const struct {
        uint32_t workers, asleep, submitted;
        uint64_t coalesce_ns;
        uint32_t woken;
    } rows[] = {
        {128, 16, 7, MILLISECOND, 0}, /* of 112 in calls the next seven */
        {128, 16, 9, MILLISECOND, 2},
        {128, 112, 1, MILLISECOND, 0},
        {128, 113, 1, MILLISECOND, 1},
        {15, 1, 1, MILLISECOND, 1},
        {128, 16, 7, 0, 7},
    };
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        hsm_client *client = client_of(rows[i].workers, rows[i].asleep, rows[i].coalesce_ns);
        submit(client, rows[i].submitted);
        CHECK_INT(rows[i].asleep - sleeping(client), ==, rows[i].woken);
        hsm_client_free(client);
    }
}

static void what_no_worker_comes_for_is_given_to_one_that_sleeps(void) {
    hsm_client *client = client_of(128, 16, MILLISECOND);
    int event_fd;
    int timer_fd;
    submit(client, 2);
    CHECK_INT(sleeping(client), ==, 16);
    hsm_client_wake_fds(client, &event_fd, &timer_fd);
    REQUIRE(hsm_wait_fd(timer_fd, POLLIN, PATIENCE));
    hsm_client_wake_clear(client);
    CHECK_INT(sleeping(client), ==, 14);
    hsm_client_free(client);
}

static const struct test tests[] = {
    TEST(requests_are_left_to_workers_that_end_soon),
    TEST(what_no_worker_comes_for_is_given_to_one_that_sleeps),
    TEST(completions_of_many_sessions_share_a_wake_for_a_small_part_of_a_signature),
    TEST(without_coalescing_each_completion_is_urgent),
};
HARNESS_MAIN(tests)
