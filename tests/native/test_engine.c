/* The engine on the no-op module: life cycle, keys, deadlines, cancelling, stopping, faults on the way. */
#include "engine.h"

#include <sched.h>

#include "engine_fixture.h"
#include "intercept.h"

/* The no-op module really signs what begins like this and is short. */
#define SIGNED "hsmcore test message"

static struct fixture begin(uint32_t workers) {
    hsm_engine_options options = noop_options(workers);
    return fixture_begin(&small_client, &options, "noop-key");
}

static hsm_stats stats_of(const struct fixture *fixture) {
    hsm_stats stats;
    hsm_client_stats(fixture->client, &stats);
    return stats;
}

/* ---- life cycle ---- */

static void it_starts_says_who_it_is_and_stops(void) {
    struct fixture f = begin(3);
    hsm_token_info token;
    hsm_engine_token(f.engine, &token);
    CHECK_TEXT(token.label, "noop");
    CHECK_TEXT(token.manufacturer, "hsmcore");
    CHECK_TEXT(token.serial, "0");
    CHECK_TEXT(token.library, "no-op module 1.0");
    CHECK_TEXT(token.quirks, "generic");
    CHECK_INT(token.max_sessions, ==, 0);
    CHECK_INT(stats_of(&f).workers, ==, 3);
    hsm_leaks leaks;
    hsm_leaks_read(&leaks);
    CHECK_INT(leaks.threads, ==, 3);
    CHECK_INT(leaks.sessions, ==, 4);
    CHECK_INT(leaks.descriptors, ==, 3);
    CHECK_INT(hsm_engine_stop(f.engine, PATIENCE), ==, 0);
    CHECK_INT(stats_of(&f).workers, ==, 0);
    hsm_client_free(f.client);
    CHECK_INT(hsm_engine_stop(NULL, 0), ==, 0);
}

static void check_start_refused(hsm_client *client, const hsm_engine_options *options, hsm_status expected) {
    hsm_engine *engine = (hsm_engine *)&engine;
    hsm_error error;
    memset(&error, 0, sizeof error);
    CHECK_STATUS(hsm_engine_start(client, options, &engine, &error), expected);
    CHECK(engine == NULL);
    CHECK_STATUS(error.status, expected);
    CHECK(error.detail[0] != '\0');
    CHECK(strstr(error.detail, "1234") == NULL); /* the PIN */
    CHECK_STATUS(hsm_engine_start(client, options, &engine, NULL), expected);
}

static void a_start_that_cannot_work_is_refused(void) {
    hsm_client *client = new_client(&small_client);
    hsm_engine_options options = noop_options(0);
    check_start_refused(client, &options, HSM_BAD_ARGUMENT);
    options.workers = small_client.max_workers + 1;
    check_start_refused(client, &options, HSM_BAD_ARGUMENT);
    options = noop_options(1);
    options.quirks = "luna";
    check_start_refused(client, &options, HSM_BAD_ARGUMENT);
    options = noop_options(1);
    options.module_path = NULL;
    check_start_refused(client, &options, HSM_BAD_ARGUMENT);
    options.module_path = "/nonexistent.so";
    check_start_refused(client, &options, HSM_MODULE_MISSING);
    options = noop_options(1);
    options.token.label = "another";
    check_start_refused(client, &options, HSM_TOKEN_NOT_FOUND);
    options = noop_options(1);
    options.token.serial = "1";
    check_start_refused(client, &options, HSM_TOKEN_NOT_FOUND);
    options = noop_options(1);
    options.token.slot_id = 1;
    check_start_refused(client, &options, HSM_TOKEN_NOT_FOUND);
    hsm_client_free(client);
}

static void a_session_that_does_not_open_ends_the_start(void) {
    intercept_begin(HSMC_NOOP_MODULE);
    hsm_client *client = new_client(&small_client);
    hsm_engine_options options = noop_options(4);
    atomic_store(&intercept.ckr, CKR_SESSION_COUNT);
    for (unsigned limit = 1; limit <= 4; limit++) { /* the login session, then 0 to 3 of the workers' */
        atomic_store(&intercept.opened, 0);
        atomic_store(&intercept.open_limit, limit);
        hsm_engine *engine;
        hsm_error error;
        CHECK_STATUS(hsm_engine_start(client, &options, &engine, &error), HSM_BUSY);
        CHECK_TEXT(error.call, "C_OpenSession");
        CHECK_INT(error.ckr, ==, CKR_SESSION_COUNT);
        hsm_leaks leaks;
        hsm_leaks_read(&leaks);
        CHECK_INT(leaks.sessions, ==, 0);
        CHECK_INT(leaks.threads, ==, 0);
    }
    hsm_client_free(client);
    intercept_end();
}

static void one_client_outlives_many_engines(void) {
    struct fixture f = {.client = new_client(&small_client)};
    hsm_engine_options options = noop_options(2);
    for (int round = 0; round < 5; round++) {
        hsm_error error = {.status = HSM_OK};
        REQUIRE_OK(hsm_engine_start(f.client, &options, &f.engine, &error), error);
        f.key = add_key(f.engine, "noop-key");
        CHECK_INT(f.key.index, ==, 0);
        uint32_t slot = submit_text(&f, SIGNED, 0);
        CHECK_STATUS(finish(&f, slot).status, HSM_OK);
        CHECK_INT(hsm_engine_stop(f.engine, PATIENCE), ==, 0);
    }
    hsm_client_free(f.client);
}

/* A key that an earlier engine knew is not one of this engine's until it is added again. */
static void a_new_engine_begins_without_keys(void) {
    struct fixture f = begin(1);
    CHECK_INT(hsm_engine_stop(f.engine, PATIENCE), ==, 0);
    intercept_begin(HSMC_NOOP_MODULE);
    hsm_engine_options options = noop_options(1);
    hsm_error error = {.status = HSM_OK};
    REQUIRE_OK(hsm_engine_start(f.client, &options, &f.engine, &error), error);
    CHECK_STATUS(finish(&f, submit_text(&f, SIGNED, 0)).status, HSM_KEY_NOT_FOUND);
    CHECK_INT(atomic_load(&intercept.sign_inits), ==, 0);
    fixture_end(&f);
    intercept_end();
}

static void two_engines_share_a_module(void) {
    struct fixture one = begin(1);
    struct fixture two = begin(2);
    CHECK_STATUS(finish(&one, submit_text(&one, SIGNED, 0)).status, HSM_OK);
    CHECK_STATUS(finish(&two, submit_text(&two, SIGNED, 0)).status, HSM_OK);
    fixture_end(&one);
    CHECK_STATUS(finish(&two, submit_text(&two, SIGNED, 0)).status, HSM_OK);
    fixture_end(&two);
}

/* ---- keys ---- */

static void check_key_refused(struct fixture *fixture, const hsm_key_selector *selector, hsm_status expected) {
    hsm_key_info info;
    hsm_error error;
    CHECK_STATUS(hsm_engine_add_key(fixture->engine, selector, &info, &error), expected);
    CHECK_STATUS(error.status, expected);
    CHECK(error.detail[0] != '\0');
}

static void a_key_is_found_by_all_that_is_said_of_it(void) {
    struct fixture f = begin(1);
    CHECK_INT(f.key.algorithm, ==, HSM_ED25519);
    CHECK_INT(f.key.public_key_len, ==, 32);
    CHECK_INT(f.key.id_len, ==, 1);
    CHECK_INT(f.key.id[0], ==, 1);
    CHECK_TEXT(f.key.label, "noop-key");

    hsm_key_info info;
    hsm_error error = {.status = HSM_OK};
    static const uint8_t id = 1;
    hsm_key_selector by_everything = {.label = "noop-key",
                                      .id = &id,
                                      .id_len = 1,
                                      .handle = -1,
                                      .algorithm = HSM_ED25519,
                                      .public_key = f.key.public_key,
                                      .public_key_len = 32};
    REQUIRE_OK(hsm_engine_add_key(f.engine, &by_everything, &info, &error), error);
    CHECK_INT(info.index, ==, 1);
    hsm_key_selector by_handle = {.handle = 2};
    REQUIRE_OK(hsm_engine_add_key(f.engine, &by_handle, &info, &error), error);
    CHECK_BYTES(info.public_key, f.key.public_key, 32);

    hsm_key_selector wrong = by_everything;
    wrong.label = "another";
    check_key_refused(&f, &wrong, HSM_KEY_NOT_FOUND);
    wrong = by_everything;
    wrong.id = (const uint8_t *)"\2";
    check_key_refused(&f, &wrong, HSM_KEY_NOT_FOUND);
    wrong = by_everything;
    wrong.algorithm = HSM_ECDSA_P256;
    check_key_refused(&f, &wrong, HSM_KEY_UNUSABLE);
    uint8_t other[32];
    memcpy(other, f.key.public_key, 32);
    other[31] ^= 1U;
    wrong = by_everything;
    wrong.public_key = other;
    check_key_refused(&f, &wrong, HSM_KEY_MISMATCH);
    hsm_key_selector public_half = {.handle = 1};
    check_key_refused(&f, &public_half, HSM_KEY_UNUSABLE);
    fixture_end(&f);
}

static void an_engine_holds_so_many_keys_and_no_more(void) {
    struct fixture f = begin(1);
    hsm_key_selector selector = {.label = "noop-key", .handle = -1};
    hsm_key_info info;
    hsm_error error = {.status = HSM_OK};
    for (uint32_t i = 1; i < HSM_MAX_KEYS; i++) {
        REQUIRE_OK(hsm_engine_add_key(f.engine, &selector, &info, &error), error);
        CHECK_INT(info.index, ==, i);
    }
    check_key_refused(&f, &selector, HSM_BAD_ARGUMENT);
    f.key = info;
    CHECK_STATUS(finish(&f, submit_text(&f, SIGNED, 0)).status, HSM_OK);
    fixture_end(&f);
}

static void a_key_that_was_not_added_signs_nothing(void) {
    struct fixture f = begin(1);
    f.key.index = 1;
    hsm_completion done = finish(&f, submit_text(&f, SIGNED, 0));
    CHECK_STATUS(done.status, HSM_KEY_NOT_FOUND);
    CHECK_INT(done.signature_len, ==, 0);
    fixture_end(&f);
}

static void a_retired_key_signs_nothing_more(void) {
    intercept_begin(HSMC_NOOP_MODULE);
    struct fixture f = begin(1);
    unsigned before = atomic_load(&intercept.signs);
    gate_set(true);
    uint32_t inside = submit_text(&f, SIGNED, 0);
    gate_await(1);
    uint32_t queued = submit_text(&f, SIGNED, 0);
    CHECK_STATUS(hsm_engine_retire_key(f.engine, f.key.index), HSM_OK);
    gate_set(false);
    CHECK_STATUS(finish(&f, inside).status, HSM_OK); /* one inside the module still ends */
    CHECK_STATUS(finish(&f, queued).status, HSM_KEY_DEACTIVATED);
    CHECK_STATUS(finish(&f, submit_text(&f, SIGNED, 0)).status, HSM_KEY_DEACTIVATED);
    CHECK_INT(atomic_load(&intercept.signs), ==, before + 1);
    CHECK_STATUS(hsm_engine_retire_key(f.engine, f.key.index), HSM_OK);
    CHECK_STATUS(hsm_engine_retire_key(f.engine, 1), HSM_BAD_ARGUMENT);
    CHECK_STATUS(hsm_engine_retire_key(f.engine, UINT32_MAX), HSM_BAD_ARGUMENT);
    f.key = add_key(f.engine, "noop-key"); /* under a new index it signs again */
    CHECK_STATUS(finish(&f, submit_text(&f, SIGNED, 0)).status, HSM_OK);
    fixture_end(&f);
    intercept_end();
}

/* ---- requests ---- */

static void every_request_completes_once(void) {
    enum { REQUESTS = 20000 };
    static uint8_t seen[REQUESTS];
    memset(seen, 0, sizeof seen);
    struct fixture f = begin(3);
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
            CHECK_INT(done.worker, <, 3);
            seen[request_of[done.slot]]++;
            completed++;
            hsm_client_release(f.client, done.slot);
        } while (hsm_client_next(f.client, &done));
    }
    for (uint32_t i = 0; i < REQUESTS; i++) {
        CHECK_INT(seen[i], ==, 1);
    }
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

/* One request after another, so that workers fall asleep in between; a wake that is lost would show as a request that
 * waits until its worker looks round by itself. */
static void no_request_waits_for_a_sleeping_worker(void) {
    hsm_engine_options options = noop_options(2);
    static const uint64_t spins[] = {0, 20000};
    for (size_t i = 0; i < COUNT_OF(spins); i++) {
        options.spin_ns = spins[i];
        struct fixture f = fixture_begin(&small_client, &options, "noop-key");
        for (int request = 0; request < 3000; request++) {
            hsm_completion done = finish(&f, submit_text(&f, SIGNED, 0));
            CHECK_STATUS(done.status, HSM_OK);
            CHECK_INT(done.queue_ns, <, 900 * MILLISECOND);
        }
        fixture_end(&f);
    }
}

static void signatures_are_those_of_the_key(void) {
    struct fixture f = begin(2);
    for (int i = 0; i < 50; i++) {
        char text[40];
        (void)snprintf(text, sizeof text, SIGNED " %d", i);
        hsm_completion done = finish(&f, submit_text(&f, text, 0));
        CHECK_STATUS(done.status, HSM_OK);
        CHECK_STATUS(hsm_verify(HSM_ED25519, f.key.public_key, 32, (const uint8_t *)text, strlen(text), done.signature,
                                done.signature_len),
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
    struct fixture f = begin(1);
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
    struct fixture f = begin(1);
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

static void every_nth_signature_is_verified(void) {
    hsm_engine_options options = noop_options(1);
    options.verify_every = 5;
    struct fixture f = fixture_begin(&small_client, &options, "noop-key");
    unsigned invalid = 0;
    for (int i = 0; i < 50; i++) {
        invalid += finish(&f, submit_text(&f, "no test message", 0)).status == HSM_SIGNATURE_INVALID ? 1U : 0U;
    }
    CHECK_INT(invalid, ==, 10);
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
    struct fixture f = begin(1);
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
    while (atomic_load(&f.client->area->stopping) == 0 && patient(begun)) {
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
    struct fixture f = begin(2);
    gate_set(true);
    uint32_t inside = submit_text(&f, SIGNED, 0);
    gate_await(1);
    CHECK_INT(stats_of(&f).busy, ==, 1);
    uint64_t begun = hsm_now_ns();
    uint32_t left = hsm_engine_stop(f.engine, 10 * MILLISECOND);
    CHECK_INT(left, >=, 1);
    CHECK_INT(hsm_now_ns() - begun, <, PATIENCE);
    gate_set(false);
    /* The one that was left behind still answers, and stopping again then takes it along. */
    CHECK_STATUS(finish(&f, inside).status, HSM_OK);
    CHECK_INT(hsm_engine_stop(f.engine, PATIENCE), ==, 0);
    hsm_client_free(f.client);
    intercept_end();
}

/* ---- the PIN ---- */

static void a_pin_that_might_lock_is_not_tried(void) {
    static const CK_FLAGS flags[] = {CKF_USER_PIN_LOCKED, CKF_USER_PIN_FINAL_TRY};
    for (size_t i = 0; i < COUNT_OF(flags); i++) {
        intercept_begin(HSMC_NOOP_MODULE);
        atomic_store(&intercept.extra_token_flags, flags[i]);
        hsm_client *client = new_client(&small_client);
        hsm_engine_options options = noop_options(2);
        check_start_refused(client, &options, HSM_PIN_LOCKED);
        CHECK_INT(atomic_load(&intercept.logins), ==, 0);
        hsm_client_free(client);
        intercept_end();
    }
}

static void one_login_serves_all_workers(void) {
    intercept_begin(HSMC_NOOP_MODULE);
    struct fixture f = begin(4);
    CHECK_INT(atomic_load(&intercept.logins), ==, 1);
    CHECK_STATUS(finish(&f, submit_text(&f, SIGNED, 0)).status, HSM_OK);
    CHECK_INT(atomic_load(&intercept.logins), ==, 1);
    fixture_end(&f);
    intercept_end();
}

/* ---- one fault on the way ---- */

static bool mends(enum hsm_class class_) {
    return class_ == HSM_CLASS_RETRY || class_ == HSM_CLASS_RESET || class_ == HSM_CLASS_REOPEN ||
           class_ == HSM_CLASS_RELOGIN || class_ == HSM_CLASS_REFIND;
}

/* What repeating cannot mend comes back at once; what a step of the ladder mends comes back signed. */
static void check_one_fault(_Atomic unsigned *place, const char *call, CK_RV ckr, hsm_status status) {
    enum hsm_class class_ = hsm_status_class(status);
    bool decided = mends(class_) || class_ == HSM_CLASS_AUTH_FATAL || class_ == HSM_CLASS_REQUEST_FATAL ||
                   class_ == HSM_CLASS_PROCESS_FATAL;
    if (!decided) {
        return; /* the token is down or must be initialized again: more than one request's business */
    }
    struct fixture f = begin(1);
    unsigned before = atomic_load(&intercept.sign_inits);
    atomic_store(&intercept.ckr, ckr);
    atomic_store(place, 1);
    hsm_completion done = finish(&f, submit_text(&f, SIGNED, 0));
    unsigned attempts = atomic_load(&intercept.sign_inits) - before;
    hsm_stats stats = stats_of(&f);
    if (mends(class_)) {
        CHECK_STATUS(done.status, HSM_OK);
        CHECK_INT(attempts, ==, 2);
        CHECK_INT(stats.recoveries[class_], ==, 1);
        CHECK_STATUS(hsm_verify(HSM_ED25519, f.key.public_key, 32, (const uint8_t *)SIGNED, strlen(SIGNED),
                                done.signature, done.signature_len),
                     HSM_OK);
    } else {
        CHECK_STATUS(done.status, status);
        CHECK_INT(done.ckr, ==, ckr);
        CHECK_TEXT(hsm_call_name(done.call), call);
        CHECK_INT(done.signature_len, ==, 0);
        CHECK_INT(attempts, ==, 1);
        CHECK_INT(stats.failures, ==, 1);
    }
    CHECK_INT(atomic_load(&intercept.logins), <=, 2);
    fixture_end(&f);
}

static void every_ckr_gets_what_its_class_says(void) {
    uint64_t ckr;
    const char *name;
    hsm_status status;
    for (size_t row = 0; hsm_ckr_row(row, &ckr, &name, &status); row++) {
        if (status == HSM_OK) {
            continue;
        }
        unsigned failures = atomic_load(&harness_failures);
        intercept_begin(HSMC_NOOP_MODULE);
        check_one_fault(&intercept.fail_sign_init, "C_SignInit", (CK_RV)ckr, status);
        check_one_fault(&intercept.fail_sign, "C_Sign", (CK_RV)ckr, status);
        intercept_end();
        if (atomic_load(&harness_failures) != failures) {
            printf("# the above was with %s\n", name);
        }
    }
}

static void what_never_mends_is_given_up(void) {
    intercept_begin(HSMC_NOOP_MODULE);
    struct fixture f = begin(1);
    atomic_store(&intercept.ckr, CKR_FUNCTION_FAILED);
    atomic_store(&intercept.fail_sign, UINT32_MAX);
    hsm_completion done = finish(&f, submit_text(&f, SIGNED, 0));
    CHECK_STATUS(done.status, HSM_BUSY);
    CHECK_INT(done.ckr, ==, CKR_FUNCTION_FAILED);
    CHECK_INT(UINT32_MAX - atomic_load(&intercept.fail_sign), <=, 10);
    atomic_store(&intercept.fail_sign, 0);
    CHECK_STATUS(finish(&f, submit_text(&f, SIGNED, 0)).status, HSM_OK); /* and the next one is signed */
    fixture_end(&f);
    intercept_end();
}

static void sessions_that_were_closed_are_opened_again(void) {
    struct fixture f = begin(2);
    hsm_module *module = NULL;
    hsm_error error = {.status = HSM_OK};
    REQUIRE_OK(hsm_module_acquire(HSMC_NOOP_MODULE, NULL, &module, &error), error);
    CHECK_INT(module->p11->C_CloseAllSessions(0), ==, CKR_OK); /* logs out as well */
    CHECK_STATUS(finish(&f, submit_text(&f, SIGNED, 0)).status, HSM_OK);
    hsm_stats stats = stats_of(&f);
    CHECK_INT(stats.recoveries[HSM_CLASS_REOPEN], >=, 1);
    CHECK_INT(stats.failures, ==, 0);
    hsm_module_release(module);
    fixture_end(&f);
}

static const struct test tests[] = {
    TEST(it_starts_says_who_it_is_and_stops),
    TEST(a_start_that_cannot_work_is_refused),
    TEST(a_session_that_does_not_open_ends_the_start),
    TEST(one_client_outlives_many_engines),
    TEST(a_new_engine_begins_without_keys),
    TEST(two_engines_share_a_module),
    TEST(a_key_is_found_by_all_that_is_said_of_it),
    TEST(an_engine_holds_so_many_keys_and_no_more),
    TEST(a_key_that_was_not_added_signs_nothing),
    TEST(a_retired_key_signs_nothing_more),
    TEST(every_request_completes_once),
    TEST(no_request_waits_for_a_sleeping_worker),
    TEST(signatures_are_those_of_the_key),
    TEST(a_message_of_any_length_arrives_whole),
    TEST(a_cancelled_request_costs_no_call),
    TEST(a_late_request_costs_no_call),
    TEST(a_wrong_signature_does_not_get_out),
    TEST(every_nth_signature_is_verified),
    TEST(stopping_answers_what_is_queued),
    TEST(a_start_that_fails_answers_what_is_queued),
    TEST(stopping_does_not_wait_longer_than_asked),
    TEST(a_pin_that_might_lock_is_not_tried),
    TEST(one_login_serves_all_workers),
    TEST(every_ckr_gets_what_its_class_says),
    TEST(what_never_mends_is_given_up),
    TEST(sessions_that_were_closed_are_opened_again),
};
HARNESS_MAIN(tests)
