/* The engine's life and its keys, on the no-op module. */
#include <sched.h>

#include "engine.h"

#include "engine_fixture.h"
#include "intercept.h"

/* ---- life cycle ---- */

static void it_starts_says_who_it_is_and_stops(void) {
    struct fixture f = noop_begin(3);
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
    struct fixture f = noop_begin(1);
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
    struct fixture one = noop_begin(1);
    struct fixture two = noop_begin(2);
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
    struct fixture f = noop_begin(1);
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
    struct fixture f = noop_begin(1);
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

static void places_are_used_again_and_indices_never(void) {
    struct fixture f = noop_begin(2);
    uint32_t before = f.key.index;
    for (int i = 0; i < 200; i++) {
        CHECK_STATUS(hsm_engine_retire_key(f.engine, before), HSM_OK);
        f.key = add_key(f.engine, "noop-key");
        CHECK_INT(f.key.index, >, before);
        CHECK_STATUS(finish(&f, submit_text(&f, SIGNED, 0)).status, HSM_OK);
        uint32_t now = f.key.index;
        f.key.index = before;
        CHECK_STATUS(finish(&f, submit_text(&f, SIGNED, 0)).status, HSM_KEY_DEACTIVATED);
        before = now;
    }
    CHECK_INT(before, ==, 200 * HSM_MAX_KEYS);
    CHECK_STATUS(hsm_engine_retire_key(f.engine, before - HSM_MAX_KEYS), HSM_OK); /* long retired: not its successor */
    f.key.index = before;
    CHECK_STATUS(finish(&f, submit_text(&f, SIGNED, 0)).status, HSM_OK);
    fixture_end(&f);
}

static void the_place_of_a_key_that_still_signs_is_not_given_away(void) {
    intercept_begin(HSMC_NOOP_MODULE);
    struct fixture f = noop_begin(1);
    hsm_key_selector selector = {.label = "noop-key", .handle = -1};
    for (uint32_t i = 1; i < HSM_MAX_KEYS; i++) {
        (void)add_key(f.engine, "noop-key");
    }
    gate_set(true);
    uint32_t inside = submit_text(&f, SIGNED, 0);
    gate_await(1);
    CHECK_STATUS(hsm_engine_retire_key(f.engine, f.key.index), HSM_OK);
    gate_set(false);
    hsm_completion done = finish(&f, inside);
    CHECK_STATUS(done.status, HSM_OK);
    hsm_worker *worker = &f.engine->workers[0];
    while (atomic_load(&worker->serving) != 0) {
        (void)sched_yield();
    }
    atomic_store(&worker->serving, hsm_key_place(f.key.index) + 1U); /* as if it were still inside */
    check_key_refused(&f, &selector, HSM_BAD_ARGUMENT);
    atomic_store(&worker->serving, 0);
    CHECK_INT(add_key(f.engine, "noop-key").index, ==, f.key.index + HSM_MAX_KEYS);
    fixture_end(&f);
    intercept_end();
}

static void a_key_that_was_not_added_signs_nothing(void) {
    struct fixture f = noop_begin(1);
    f.key.index = 1;
    hsm_completion done = finish(&f, submit_text(&f, SIGNED, 0));
    CHECK_STATUS(done.status, HSM_KEY_NOT_FOUND);
    CHECK_INT(done.signature_len, ==, 0);
    static const uint32_t never[] = {HSM_MAX_KEYS, 2 * HSM_MAX_KEYS,
                                     UINT32_MAX - HSM_MAX_KEYS + 1}; /* the place of 0 */
    for (size_t i = 0; i < COUNT_OF(never); i++) {
        f.key.index = never[i];
        CHECK_STATUS(finish(&f, submit_text(&f, SIGNED, 0)).status, HSM_BAD_ARGUMENT);
    }
    fixture_end(&f);
}

static void a_retired_key_signs_nothing_more(void) {
    intercept_begin(HSMC_NOOP_MODULE);
    struct fixture f = noop_begin(1);
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

static const struct test tests[] = {
    TEST(it_starts_says_who_it_is_and_stops),
    TEST(a_start_that_cannot_work_is_refused),
    TEST(a_session_that_does_not_open_ends_the_start),
    TEST(one_client_outlives_many_engines),
    TEST(a_new_engine_begins_without_keys),
    TEST(two_engines_share_a_module),
    TEST(a_key_is_found_by_all_that_is_said_of_it),
    TEST(an_engine_holds_so_many_keys_and_no_more),
    TEST(places_are_used_again_and_indices_never),
    TEST(the_place_of_a_key_that_still_signs_is_not_given_away),
    TEST(a_key_that_was_not_added_signs_nothing),
    TEST(a_retired_key_signs_nothing_more),
};
HARNESS_MAIN(tests)
