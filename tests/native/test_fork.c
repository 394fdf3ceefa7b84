/* After fork: in the child every function that takes a handle says so or does nothing; the parent goes on. */
#include <signal.h>
#include <sys/wait.h>

#include <hsmcore/guest.h>

#include "engine.h"
#include "engine_fixture.h"
#include "table.h"

/* Run `check` in a child. It reports like everything else and must end by itself. */
static void in_child(void (*check)(struct fixture *), struct fixture *fixture) {
    (void)fflush(stdout);
    pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        atomic_store(&harness_failures, 0);
        check(fixture);
        (void)fflush(stdout);
        _exit(atomic_load(&harness_failures) > 0 ? 1 : 0); /* no exit handlers: they are the parent's */
    }
    int status = 0;
    REQUIRE(waitpid(child, &status, 0) == child);
    if (WIFSIGNALED(status)) {
        FAIL("the child died of signal %d (%s)", WTERMSIG(status), strsignal(WTERMSIG(status)));
    } else {
        CHECK_INT(WEXITSTATUS(status), ==, 0);
    }
}

static void check_parent(struct fixture *f) {
    CHECK_INT(hsm_fork_generation(), ==, 0);
    for (int i = 0; i < 100; i++) {
        hsm_completion done = finish(f, submit_text(f, SIGNED, 0));
        CHECK_STATUS(done.status, HSM_OK);
    }
}

/* ---- the client ---- */

static void use_client(struct fixture *f) {
    CHECK_INT(hsm_fork_generation(), ==, 1);
    uint32_t slot = 0;
    uint64_t deadline;
    CHECK_STATUS(hsm_client_submit(f->client, 0, (const uint8_t *)"x", 1, 0, &slot, &deadline), HSM_FORKED);
    hsm_client_batch_begin(f->client);
    CHECK_STATUS(hsm_client_submit(f->client, 0, (const uint8_t *)"x", 1, 0, &slot, &deadline), HSM_FORKED);
    hsm_client_batch_end(f->client);
    hsm_completion done;
    CHECK_INT(hsm_client_next(f->client, &done), ==, 0);
    hsm_client_release(f->client, 0);
    hsm_client_cancel(f->client, 0);
    hsm_client_wake_clear(f->client);
    CHECK_INT(hsm_client_slots(f->client), ==, 0);
    int fds[2];
    hsm_client_wake_fds(f->client, &fds[0], &fds[1]);
    hsm_stats stats;
    memset(&stats, 0xff, sizeof stats);
    hsm_client_stats(f->client, &stats);
    CHECK_INT(stats.signatures, ==, 0);
    CHECK_INT(stats.workers, ==, 0);
}

static void the_client_is_dead_in_the_child(void) {
    struct fixture f = noop_begin(2);
    check_parent(&f);
    in_child(use_client, &f);
    check_parent(&f);
    fixture_end(&f);
}

static void count_free_slots(struct fixture *f) {
    CHECK_INT(hsm_client_free_slots(f->client), ==, 0); /* none can be submitted to */
}

static void no_slot_is_free_in_the_child(void) {
    struct fixture f = noop_begin(2);
    in_child(count_free_slots, &f);
    fixture_end(&f);
}

static void free_client(struct fixture *f) {
    int fds[2];
    hsm_client_wake_fds(f->client, &fds[0], &fds[1]);
    hsm_leaks before;
    hsm_leaks_read(&before);
    hsm_client_free(f->client);
    hsm_leaks after;
    hsm_leaks_read(&after);
    CHECK_INT(after.allocations, <, before.allocations);
}

static void the_child_may_free_its_copy(void) {
    struct fixture f = noop_begin(2);
    in_child(free_client, &f);
    check_parent(&f); /* whose descriptors and area are untouched */
    fixture_end(&f);
}

/* ---- the engine ---- */

static void use_engine(struct fixture *f) {
    hsm_key_selector selector = {.label = "noop-key", .handle = -1};
    hsm_key_info info;
    hsm_error error;
    CHECK_STATUS(hsm_engine_add_key(f->engine, &selector, &info, &error), HSM_FORKED);
    CHECK_STATUS(error.status, HSM_FORKED);
    CHECK_STATUS(hsm_engine_add_key(f->engine, &selector, &info, NULL), HSM_FORKED);
    CHECK_STATUS(hsm_engine_retire_key(f->engine, 0), HSM_FORKED);
    hsm_token_info token;
    hsm_engine_token(f->engine, &token);
    CHECK_INT(hsm_engine_stop(f->engine, UINT64_MAX), ==, 0); /* waits for no worker: there are none here */
}

static void the_engine_is_dead_in_the_child(void) {
    struct fixture f = noop_begin(2);
    in_child(use_engine, &f);
    check_parent(&f);
    fixture_end(&f);
}

static void start_engine(struct fixture *f) {
    hsm_engine_options options = noop_options(1);
    hsm_engine *engine = (hsm_engine *)&engine;
    hsm_error error;
    CHECK_STATUS(hsm_engine_start(f->client, &options, &engine, &error), HSM_FORKED);
    CHECK(engine == NULL);
}

static void no_engine_starts_on_a_dead_client(void) {
    struct fixture f = noop_begin(2);
    in_child(start_engine, &f);
    check_parent(&f);
    fixture_end(&f);
}

/* ---- the module ---- */

static void use_module(struct fixture *f) {
    (void)f;
    hsm_module *module = (hsm_module *)&module;
    hsm_error error;
    CHECK_STATUS(hsm_module_acquire(HSMC_NOOP_MODULE, NULL, &module, &error), HSM_FORKED);
    CHECK(module == NULL);
    CHECK(strstr(error.detail, "spawn") != NULL);
}

static void the_module_is_dead_in_the_child(void) {
    struct fixture f = noop_begin(2);
    in_child(use_module, &f);
    check_parent(&f);
    fixture_end(&f);
}

static hsm_module *held;

static void release_module(struct fixture *f) {
    (void)f;
    hsm_module_release(held);
    CHECK_INT(held->users, ==, 1);
}

static void releasing_it_there_does_nothing(void) {
    hsm_error error = {.status = HSM_OK};
    REQUIRE_OK(hsm_module_acquire(HSMC_NOOP_MODULE, NULL, &held, &error), error);
    in_child(release_module, NULL);
    CK_INFO info;
    CHECK_INT(held->p11->C_GetInfo(&info), ==, CKR_OK);
    hsm_module_release(held);
}

static void begin_anew(struct fixture *f) {
    (void)f;
    struct fixture own = {.client = new_client(&small_client)};
    uint32_t slot;
    uint64_t deadline;
    CHECK_STATUS(hsm_client_submit(own.client, 0, (const uint8_t *)"x", 1, 0, &slot, &deadline), HSM_OK);
    hsm_client_free(own.client);
    hsm_module *module = NULL;
    hsm_error error;
    CHECK_STATUS(hsm_module_acquire(HSMC_NOOP_MODULE, NULL, &module, &error), HSM_OK);
    hsm_module_release(module);
}

/* A child of a process that had nothing open may use the library like any other process. */
static void a_child_may_begin_anew(void) {
    in_child(begin_anew, NULL);
}

/* ---- the request table and its guest ---- */

static hsm_requests *table;
static hsm_guest *guest;
static const hsm_ask question = {.message = (const uint8_t *)"x", .message_len = 1, .timeout_ns = PATIENCE};

static void use_table(struct fixture *f) {
    hsm_answer answer;
    CHECK_STATUS(hsm_requests_submit(table, &question, &answer), HSM_FORKED);
    CHECK_INT(answer.request, ==, 0);
    uint32_t key;
    CHECK_INT(hsm_guest_begin(guest, 1, &key), ==, 0);
    CHECK_INT(hsm_guest_overran(guest, 0), ==, 0);
    (void)hsm_guest_end(guest, 0, HSM_TOKEN_LOST, 0, NULL);
    hsm_guest_refuse(guest, HSM_CLOSED);
    CHECK_INT(hsm_requests_next(table, &answer), ==, 0);
    (void)hsm_requests_sweep(table, UINT64_MAX);
    int begun;
    (void)hsm_requests_cancel(table, answer.request, &begun);
    hsm_requests_fail(table, HSM_ALL, HSM_CLOSED);
    CHECK_INT(hsm_requests_replay(table), ==, 0);
    CHECK_INT(hsm_requests_next(table, &answer), ==, 0);
    hsm_requests_counts counts;
    hsm_requests_count(table, &counts);
    CHECK_INT(counts.slots, ==, 0);
    hsm_guest_free(guest);
    hsm_requests_free(table);
    hsm_client_free(f->client);
}

static void the_table_is_dead_in_the_child(void) {
    struct fixture f = {.client = new_client(&small_client)};
    hsm_key_info info = {.algorithm = HSM_ED25519, .public_key_len = 32};
    REQUIRE(hsm_requests_new(f.client, NULL, &table) == HSM_OK);
    REQUIRE(hsm_guest_new(table, 2, 0, &guest) == HSM_OK && hsm_guest_add_key(guest, &info, 1) == HSM_OK);
    hsm_answer begun;
    hsm_answer waits;
    uint32_t key;
    CHECK_STATUS(hsm_requests_submit(table, &question, &begun), HSM_OK);
    CHECK_STATUS(hsm_requests_submit(table, &question, &waits), HSM_OK);
    CHECK_INT(hsm_guest_begin(guest, 0, &key), ==, begun.request);
    in_child(use_table, &f);
    CHECK_INT(hsm_guest_begin(guest, 1, &key), ==, waits.request);
    for (uint32_t runner = 0; runner < 2; runner++) {
        hsm_answer answer;
        (void)hsm_guest_end(guest, runner, HSM_TOKEN_LOST, 0, NULL);
        CHECK_INT(hsm_requests_next(table, &answer), ==, 1);
        CHECK_INT(answer.request, ==, runner == 0 ? begun.request : waits.request);
        hsm_requests_end(table, answer.request);
    }
    hsm_guest_free(guest);
    hsm_requests_free(table);
    hsm_client_free(f.client);
}

static hsm_key_info verified = {.algorithm = HSM_ED25519, .public_key_len = 32};

static void use_verdicts(struct fixture *f) {
    hsm_answer answer;
    CHECK_INT(hsm_requests_next(table, &answer), ==, 0);
    CHECK_INT(hsm_requests_replay(table), ==, 0); /* nor does it wait for a thread that is the parent's */
    CHECK_STATUS(hsm_requests_pin(table, &verified, 0, 1), HSM_FORKED);
    hsm_requests_wake_clear(table);
    hsm_requests_settle(table);
    hsm_requests_free(table);
    hsm_client_free(f->client);
}

static void the_verifying_thread_is_the_parent_s(void) {
    struct fixture f = {.client = new_client(&small_client)};
    REQUIRE(hsm_requests_new(f.client, NULL, &table) == HSM_OK);
    REQUIRE(hsm_requests_pin(table, &verified, 0, 1) == HSM_OK);
    hsm_verdicts_pause(table->verdicts);
    in_child(use_verdicts, &f);
    hsm_verdicts_resume(table->verdicts);
    hsm_answer answer;
    CHECK_STATUS(hsm_requests_submit(table, &question, &answer), HSM_OK);
    uint32_t slot;
    REQUIRE(hsm_area_claim(f.client->area, &slot));
    hsm_area_fail(f.client->area, slot, HSM_TOKEN_LOST);
    hsm_event_set(f.client->event_fd);
    int fds[2];
    hsm_requests_wake_fds(table, &fds[0], &fds[1]);
    CHECK(readable(fds[0], (int)(PATIENCE / MILLISECOND)));
    CHECK_INT(hsm_requests_next(table, &answer), ==, 1);
    CHECK_STATUS(answer.status, HSM_TOKEN_LOST);
    hsm_requests_end(table, answer.request);
    hsm_requests_free(table);
    hsm_client_free(f.client);
}

/* ---- a cache is plain memory of one thread, and goes on ---- */

static hsm_cache *shared_cache;

static void use_cache(struct fixture *f) {
    (void)f;
    uint8_t signature[HSM_MAX_SIGNATURE];
    uint32_t length;
    uint64_t leader;
    uint64_t entry;
    CHECK_INT(
        hsm_cache_lookup(shared_cache, 0, HSM_ED25519, (const uint8_t *)"x", 1, signature, &length, &leader, &entry),
        ==, HSM_CACHE_MISS);
    hsm_cache_abandon(shared_cache, entry);
    hsm_cache_free(shared_cache);
}

static void a_cache_goes_on_in_the_child(void) {
    REQUIRE(hsm_cache_new(10, &shared_cache) == HSM_OK);
    in_child(use_cache, NULL);
    hsm_cache_free(shared_cache);
}

static const struct test tests[] = {
    TEST(the_client_is_dead_in_the_child),   TEST(no_slot_is_free_in_the_child),
    TEST(the_child_may_free_its_copy),       TEST(the_engine_is_dead_in_the_child),
    TEST(no_engine_starts_on_a_dead_client), TEST(the_module_is_dead_in_the_child),
    TEST(releasing_it_there_does_nothing),   TEST(a_child_may_begin_anew),
    TEST(the_table_is_dead_in_the_child),    TEST(the_verifying_thread_is_the_parent_s),
    TEST(a_cache_goes_on_in_the_child),
};
HARNESS_MAIN(tests)
