/* When a worker of a slow module wakes the client at once, and when its completion waits for those that follow. */
#include "engine.h"
#include "engine_fixture.h"

#define TOOK (5 * MILLISECOND)

/* The answer that a worker makes of a request that took so long, with so many workers and requests that wait; `since`:
 * the completion that waits, if one does, has done so for so long. */
static bool urgent(uint32_t workers, uint32_t queued, uint64_t since, uint64_t coalesce_ns) {
    hsm_client_options options = {.slots = 256, .max_message = 1, .max_workers = 128, .coalesce_ns = coalesce_ns};
    hsm_client *client = new_client(&options);
    for (uint32_t i = 0; i < queued; i++) {
        uint32_t slot;
        uint64_t deadline;
        CHECK_STATUS(hsm_client_submit(client, 0, "m", 1, 0, &slot, &deadline), HSM_OK);
    }
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
        {128, 128, 0, false},        {128, 32, 0, false}, {64, 16, 0, false}, {128, 128, TOOK / 33, false},
        {128, 128, TOOK / 31, true},                     /* the first of them has waited enough */
        {128, 31, 0, true},                              /* the queue runs dry: as many in flight as sessions */
        {128, 0, 0, true},           {63, 128, 0, true}, /* the next one may be far away */
        {1, 128, 0, true},
    };
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        CHECK_INT(urgent(rows[i].workers, rows[i].queued, rows[i].since, MILLISECOND), ==, rows[i].urgent);
    }
}

static void without_coalescing_each_completion_is_urgent(void) {
    CHECK(urgent(128, 128, 0, 0));
}

static const struct test tests[] = {
    TEST(completions_of_many_sessions_share_a_wake_for_a_small_part_of_a_signature),
    TEST(without_coalescing_each_completion_is_urgent),
};
HARNESS_MAIN(tests)
