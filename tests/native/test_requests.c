/* Requests to an engine on the no-op module: each completes once, whatever comes in between. */
#include "engine.h"

#include <pthread.h>
#include <sched.h>

#include "engine_fixture.h"
#include "intercept.h"

/* ---- requests ---- */

struct watch {
    const hsm_client *client;
    _Atomic bool ended;
    uint64_t reads;
    bool forward;
};

/* Read statistics all the time, as a scrape in another thread does. */
static void *watch(void *argument) {
    struct watch *watch = argument;
    uint64_t last = 0;
    watch->forward = true;
    while (!atomic_load(&watch->ended)) {
        hsm_stats stats;
        hsm_client_stats(watch->client, &stats);
        watch->forward = watch->forward && stats.signatures >= last && stats.oldest_queued_ns < 60 * SECOND;
        last = stats.signatures;
        watch->reads++;
        (void)sched_yield();
    }
    return NULL;
}

static void every_request_completes_once(void) {
    enum { REQUESTS = 20000 };
    static uint8_t seen[REQUESTS];
    memset(seen, 0, sizeof seen);
    struct fixture f = noop_begin(3);
    struct watch watcher = {.client = f.client};
    pthread_t thread;
    REQUIRE(pthread_create(&thread, NULL, watch, &watcher) == 0);
    uint32_t request_of[64];
    uint32_t submitted = 0;
    uint32_t completed = 0;
    while (completed < REQUESTS) {
        hsm_client_batch_begin(f.client);
        while (submitted < REQUESTS) {
            uint32_t slot;
            uint64_t deadline;
            char text[40];
            (void)snprintf(text, sizeof text, "request %u", submitted);
            if (hsm_client_submit(f.client, 0, (const uint8_t *)text, strlen(text), 0, &slot, &deadline) != HSM_OK) {
                break;
            }
            request_of[slot] = submitted++;
        }
        hsm_client_batch_end(f.client);
        hsm_completion done;
        await_completion(f.client, &done);
        do {
            CHECK_STATUS(done.status, HSM_OK);
            seen[request_of[done.slot]]++;
            completed++;
            hsm_client_release(f.client, done.slot);
        } while (hsm_client_next(f.client, &done));
    }
    for (uint32_t i = 0; i < REQUESTS; i++) {
        CHECK_INT(seen[i], ==, 1);
    }
    atomic_store(&watcher.ended, true);
    (void)pthread_join(thread, NULL);
    CHECK(watcher.forward);
    CHECK_INT(watcher.reads, >, 0);
    hsm_stats stats = stats_of(&f);
    CHECK_INT(stats.signatures, ==, REQUESTS);
    CHECK_INT(stats.failures, ==, 0);
    CHECK_INT(stats.queued, ==, 0);
    uint64_t samples = 0;
    for (uint32_t bucket = 0; bucket < HSM_HISTOGRAM_BUCKETS; bucket++) {
        samples += stats.hsm_ns[bucket];
    }
    CHECK_INT(samples, ==, REQUESTS);
    CHECK_INT(hsm_client_free_slots(f.client), ==, 64);
    fixture_end(&f);
}

static void signatures_are_those_of_the_key(void) {
    struct fixture f = noop_begin(2);
    for (int i = 0; i < 50; i++) {
        char text[40];
        (void)snprintf(text, sizeof text, SIGNED " %d", i);
        hsm_completion done = finish(&f, submit_text(&f, text, 0));
        CHECK_STATUS(done.status, HSM_OK);
        CHECK_STATUS(hsm_verify(HSM_ED25519, f.key.public_key, 32, (const uint8_t *)text, strlen(text), 0,
                                done.signature, done.signature_len),
                     HSM_OK);
    }
    fixture_end(&f);
}

static void a_message_of_any_length_arrives_whole(void) {
    hsm_client_options client = {.slots = 2, .max_message = HSM_MAX_MESSAGE, .max_workers = 1};
    hsm_engine_options options = noop_options(1);
    struct fixture f = fixture_begin(&client, &options, "noop-key");
    uint8_t *message = calloc(1, HSM_MAX_MESSAGE);
    REQUIRE(message != NULL);
    static const size_t lengths[] = {0, 1, HSM_INLINE_MESSAGE, HSM_INLINE_MESSAGE + 1, HSM_MAX_MESSAGE};
    for (size_t i = 0; i < COUNT_OF(lengths); i++) {
        uint32_t slot;
        uint64_t deadline;
        CHECK_STATUS(hsm_client_submit(f.client, 0, message, lengths[i], 0, &slot, &deadline), HSM_OK);
        CHECK_STATUS(finish(&f, slot).status, HSM_OK);
    }
    free(message);
    fixture_end(&f);
}

static void a_cancelled_request_costs_no_call(void) {
    intercept_begin(HSMC_NOOP_MODULE);
    struct fixture f = noop_begin(1);
    unsigned before = atomic_load(&intercept.signs);
    gate_set(true);
    uint32_t inside = submit_text(&f, SIGNED, 0);
    gate_await(1);
    uint32_t first = submit_text(&f, SIGNED, 0);
    uint32_t second = submit_text(&f, SIGNED, 0);
    hsm_client_cancel(f.client, inside); /* too late: completes as it was */
    hsm_client_cancel(f.client, first);
    gate_set(false);
    CHECK_STATUS(finish(&f, inside).status, HSM_OK);
    hsm_completion done = finish(&f, first);
    CHECK_STATUS(done.status, HSM_CANCELLED);
    CHECK_INT(done.signature_len, ==, 0);
    CHECK_STATUS(finish(&f, second).status, HSM_OK);
    CHECK_INT(atomic_load(&intercept.signs), ==, before + 2);
    CHECK_INT(stats_of(&f).cancelled, ==, 1);
    CHECK_INT(stats_of(&f).signatures, ==, 2);
    fixture_end(&f);
    intercept_end();
}

static void a_late_request_costs_no_call(void) {
    intercept_begin(HSMC_NOOP_MODULE);
    struct fixture f = noop_begin(1);
    unsigned before = atomic_load(&intercept.sign_inits);
    gate_set(true);
    uint32_t inside = submit_text(&f, SIGNED, 0);
    gate_await(1);
    uint32_t late = submit_text(&f, SIGNED, 1);
    uint32_t patient_one = submit_text(&f, SIGNED, PATIENCE);
    gate_set(false);
    CHECK_STATUS(finish(&f, inside).status, HSM_OK);
    hsm_completion done = finish(&f, late);
    CHECK_STATUS(done.status, HSM_DEADLINE_EXCEEDED);
    CHECK_INT(done.signature_len, ==, 0);
    CHECK_INT(done.hsm_ns, ==, 0);
    CHECK_STATUS(finish(&f, patient_one).status, HSM_OK);
    CHECK_INT(atomic_load(&intercept.sign_inits), ==, before + 2);
    CHECK_INT(stats_of(&f).expired, ==, 1);
    fixture_end(&f);
    intercept_end();
}

static void a_wrong_signature_does_not_get_out(void) {
    hsm_engine_options options = noop_options(1);
    options.verify_every = 1;
    struct fixture f = fixture_begin(&small_client, &options, "noop-key");
    CHECK_STATUS(finish(&f, submit_text(&f, SIGNED, 0)).status, HSM_OK);
    /* The no-op module answers everything else with a constant. */
    for (int i = 0; i < 10; i++) {
        hsm_completion done = finish(&f, submit_text(&f, "no test message", 0));
        CHECK_STATUS(done.status, HSM_SIGNATURE_INVALID);
        CHECK_INT(done.signature_len, ==, 0);
    }
    fixture_end(&f);
}

/* ---- stopping ---- */

struct stopping {
    struct fixture *fixture;
    uint32_t left;
};

static void *stop(void *argument) {
    struct stopping *self = argument;
    self->left = hsm_engine_stop(self->fixture->engine, PATIENCE);
    return NULL;
}

static void stopping_answers_what_is_queued(void) {
    intercept_begin(HSMC_NOOP_MODULE);
    struct fixture f = noop_begin(1);
    gate_set(true);
    uint32_t inside = submit_text(&f, SIGNED, 0);
    gate_await(1);
    for (int i = 0; i < 20; i++) {
        (void)submit_text(&f, SIGNED, 0);
    }
    unsigned signs = atomic_load(&intercept.signs);
    struct stopping stopping = {.fixture = &f};
    pthread_t thread;
    REQUIRE(pthread_create(&thread, NULL, stop, &stopping) == 0);
    uint64_t begun = hsm_now_ns();
    while (atomic_load(&f.client->area->shared->mode) == 0 && patient(begun)) {
        (void)sched_yield();
    }
    gate_set(false);
    (void)pthread_join(thread, NULL);
    CHECK_INT(stopping.left, ==, 0);
    unsigned closed = 0;
    for (int i = 0; i < 21; i++) {
        hsm_completion done = finish(&f, UINT32_MAX);
        CHECK_STATUS(done.status, done.slot == inside ? HSM_OK : HSM_CLOSED);
        closed += done.status == HSM_CLOSED ? 1U : 0U;
        CHECK_INT(done.signature_len, ==, done.status == HSM_OK ? HSM_MAX_SIGNATURE : 0);
    }
    CHECK_INT(closed, ==, 20);
    CHECK_INT(atomic_load(&intercept.signs), ==, signs);
    hsm_completion none;
    CHECK(!hsm_client_next(f.client, &none));
    CHECK_INT(hsm_client_free_slots(f.client), ==, 64);
    hsm_client_free(f.client);
    intercept_end();
}

static void a_start_that_fails_answers_what_is_queued(void) {
    struct fixture f = {.client = new_client(&small_client)};
    uint32_t slot = submit_text(&f, SIGNED, 0);
    hsm_engine_options options = noop_options(1);
    options.token.label = "another";
    hsm_error error;
    CHECK_STATUS(hsm_engine_start(f.client, &options, &f.engine, &error), HSM_TOKEN_NOT_FOUND);
    CHECK_STATUS(finish(&f, slot).status, HSM_CLOSED);
    hsm_client_free(f.client);
}

static void stopping_does_not_wait_longer_than_asked(void) {
    intercept_begin(HSMC_NOOP_MODULE);
    struct fixture f = noop_begin(2);
    gate_set(true);
    uint32_t inside = submit_text(&f, SIGNED, 0);
    gate_await(1);
    CHECK_INT(stats_of(&f).busy, ==, 1);
    CHECK_INT(hsm_engine_stop(f.engine, 10 * MILLISECOND), >=, 1);
    gate_set(false);
    CHECK_STATUS(finish(&f, inside).status, HSM_OK);
    fixture_left(&f);
    intercept_end();
}

static const struct test tests[] = {
    TEST(every_request_completes_once),
    TEST(signatures_are_those_of_the_key),
    TEST(a_message_of_any_length_arrives_whole),
    TEST(a_cancelled_request_costs_no_call),
    TEST(a_late_request_costs_no_call),
    TEST(a_wrong_signature_does_not_get_out),
    TEST(stopping_answers_what_is_queued),
    TEST(a_start_that_fails_answers_what_is_queued),
    TEST(stopping_does_not_wait_longer_than_asked),
};
HARNESS_MAIN(tests)
