/* What the engine does about a PIN in danger and about faults of the module. */
#include <sched.h>

#include "engine.h"

#include "engine_fixture.h"
#include "intercept.h"

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
    struct fixture f = noop_begin(4);
    CHECK_INT(atomic_load(&intercept.logins), ==, 1);
    CHECK_STATUS(finish(&f, submit_text(&f, SIGNED, 0)).status, HSM_OK);
    CHECK_INT(atomic_load(&intercept.logins), ==, 1);
    fixture_end(&f);
    intercept_end();
}

/* A worker that comes out of the module when the engine has been stopped and the PIN wiped. */
static void a_stopped_engine_does_not_log_in_again(void) {
    static const CK_RV ways[] = {CKR_CRYPTOKI_NOT_INITIALIZED, CKR_USER_NOT_LOGGED_IN, CKR_SESSION_HANDLE_INVALID,
                                 CKR_DEVICE_ERROR, CKR_KEY_HANDLE_INVALID};
    for (size_t i = 0; i < COUNT_OF(ways); i++) {
        intercept_begin(HSMC_NOOP_MODULE);
        struct fixture f = noop_begin(1);
        CHECK_INT(atomic_load(&intercept.logins), ==, 1);
        unsigned signs = atomic_load(&intercept.signs);
        gate_set(true);
        uint32_t inside = submit_text(&f, SIGNED, 0);
        gate_await(1);
        CHECK_INT(hsm_engine_stop(f.engine, 10 * MILLISECOND), ==, 1);
        atomic_store(&intercept.ckr, ways[i]);
        atomic_store(&intercept.fail_sign, UINT32_MAX);
        gate_set(false);
        hsm_completion done = finish(&f, inside);
        CHECK(done.status != HSM_OK);
        fixture_left(&f);
        CHECK_INT(atomic_load(&intercept.logins), ==, 1);
        CHECK_INT(atomic_load(&intercept.signs), ==, signs + 1);
        intercept_end();
    }
}

/* The test looks at the engine, as a visitor that is inside, or does so no longer. */
static void look_at(hsm_engine *engine, bool looks) {
    (void)pthread_mutex_lock(&engine->state);
    engine->visitors = looks ? 1 : 0;
    (void)pthread_cond_broadcast(&engine->changed);
    (void)pthread_mutex_unlock(&engine->state);
}

/* A login that hangs reads the PIN: it is wiped when the login has ended, and not under it. */
static void the_pin_is_not_wiped_under_a_login(void) {
    intercept_begin(HSMC_NOOP_MODULE);
    struct fixture f = noop_begin(1);
    atomic_store(&intercept.ckr, CKR_CRYPTOKI_NOT_INITIALIZED);
    atomic_store(&intercept.fail_sign, 1);
    intercept_hold_logins(true);
    uint32_t slot = submit_text(&f, SIGNED, 0);
    intercept_await_login();
    look_at(f.engine, true);
    CHECK_INT(hsm_engine_stop(f.engine, 10 * MILLISECOND), ==, 2);
    CHECK(memcmp(f.engine->pin, "1234", 4) == 0);
    intercept_hold_logins(false);
    (void)finish(&f, slot);
    while (atomic_load(&hsm_area_worker(f.client->area, 0)->running) != 0) {
        (void)sched_yield();
    }
    static const uint8_t wiped[4];
    CHECK(memcmp(f.engine->pin, wiped, 4) == 0);
    CHECK_INT(atomic_load(&intercept.wrong_pins), ==, 0);
    look_at(f.engine, false);
    fixture_left(&f);
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
    struct fixture f = noop_begin(1);
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
        CHECK_STATUS(hsm_verify(HSM_ED25519, f.key.public_key, 32, (const uint8_t *)SIGNED, strlen(SIGNED), 0,
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
    struct fixture f = noop_begin(1);
    atomic_store(&intercept.ckr, CKR_FUNCTION_FAILED);
    atomic_store(&intercept.fail_sign, UINT32_MAX);
    uint32_t slot = submit_text(&f, SIGNED, 0);
    hsm_completion done = finish(&f, slot);
    CHECK_STATUS(done.status, HSM_BUSY);
    CHECK_STATUS(hsm_client_failed(f.client, slot), HSM_BUSY);
    CHECK_INT(done.ckr, ==, CKR_FUNCTION_FAILED);
    CHECK_INT(UINT32_MAX - atomic_load(&intercept.fail_sign), <=, 10);
    atomic_store(&intercept.fail_sign, 0);
    slot = submit_text(&f, SIGNED, 0);
    CHECK_STATUS(finish(&f, slot).status, HSM_OK); /* and the next one is signed */
    CHECK_STATUS(hsm_client_failed(f.client, slot), HSM_OK);
    fixture_end(&f);
    intercept_end();
}

static void where_a_login_does_not_help_the_module_is_initialized_again(void) {
    intercept_begin(HSMC_NOOP_MODULE);
    struct fixture f = noop_begin(1);
    unsigned before = atomic_load(&intercept.finalized);
    atomic_store(&intercept.ckr, CKR_USER_NOT_LOGGED_IN);
    atomic_store(&intercept.fail_sign, UINT32_MAX);
    uint32_t slot = submit_text(&f, SIGNED, PATIENCE);
    uint64_t begun = hsm_now_ns();
    while (atomic_load(&intercept.finalized) == before && UINT32_MAX - atomic_load(&intercept.fail_sign) < 10 &&
           patient(begun)) {
        intercept_pause();
    }
    CHECK_INT(atomic_load(&intercept.finalized), >, before);
    atomic_store(&intercept.fail_sign, 0);
    CHECK_STATUS(finish(&f, slot).status, HSM_OK);
    fixture_end(&f);
    intercept_end();
}

static void sessions_that_were_closed_are_opened_again(void) {
    struct fixture f = noop_begin(2);
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

/* ---- initializing a module again beside others ---- */

static void *start_another(void *options) {
    struct fixture f = fixture_begin(&small_client, options, "noop-key");
    CHECK_STATUS(finish(&f, submit_text(&f, SIGNED, 0)).status, HSM_OK);
    fixture_end(&f);
    return NULL;
}

/* The first engine waits for its other worker to come out of the module before it calls C_Finalize. */
static void no_engine_is_inside_while_another_finalizes_the_module(void) {
    for (int round = 0; round < 5; round++) {
        intercept_begin(HSMC_NOOP_MODULE);
        struct fixture f = noop_begin(2);
        hsm_engine_options options = noop_options(1);
        gate_set(true);
        (void)submit_text(&f, SIGNED, 0);
        gate_await(1);
        atomic_store(&intercept.ckr, CKR_CRYPTOKI_NOT_INITIALIZED);
        atomic_store(&intercept.fail_sign_init, 1);
        (void)submit_text(&f, SIGNED, 0);
        while (atomic_load(&f.engine->gate) == 0) {
            (void)sched_yield();
        }
        atomic_store(&intercept.hold_open, true);
        pthread_t other;
        REQUIRE(pthread_create(&other, NULL, start_another, &options) == 0);
        for (int i = 0; i < 500 && atomic_load(&intercept.inside_open) == 0; i++) {
            intercept_pause();
        }
        gate_set(false);
        uint64_t begun = hsm_now_ns();
        while (atomic_load(&intercept.finalized) == 0 && atomic_load(&f.engine->gate) != 0 && patient(begun)) {
            intercept_pause();
        }
        CHECK_INT(atomic_load(&intercept.finalized_beside), ==, 0);
        atomic_store(&intercept.hold_open, false);
        (void)finish(&f, UINT32_MAX);
        (void)finish(&f, UINT32_MAX);
        (void)pthread_join(other, NULL);
        fixture_end(&f);
        intercept_end();
    }
}

static bool reinit_stops_others(struct fixture *f) {
    atomic_store(&intercept.ckr, CKR_CRYPTOKI_NOT_INITIALIZED);
    atomic_store(&intercept.fail_sign_init, 1);
    unsigned before = atomic_load(&intercept.finalized);
    CHECK_STATUS(finish(f, submit_text(f, SIGNED, PATIENCE)).status, HSM_OK);
    CHECK_INT(atomic_load(&intercept.finalized), >, before);
    hsm_engine_lock(f->engine);
    bool stops = f->engine->stops_others;
    CHECK(stops == (f->engine->stopped_ns != 0));
    hsm_engine_unlock(f->engine);
    return stops;
}

/* Where none signs, an outage of the whole module, reinit costs none and is tried as often as for one engine; else as
 * often as the time allows for which it stops those that sign. */
static void reinit_notes_how_long_it_stops_others(void) {
    intercept_begin(HSMC_NOOP_MODULE);
    struct fixture f = noop_begin(1);
    struct fixture other = noop_begin(1);
    for (unsigned round = 0; round < 3; round++) {
        CHECK_STATUS(finish(&other, submit_text(&other, SIGNED, 0)).status, HSM_OK);
        CHECK(reinit_stops_others(&f));
        CHECK(!reinit_stops_others(&f));
    }
    fixture_end(&other);
    fixture_end(&f);
    intercept_end();
}

static void *stay_in_module(void *left) {
    (void)hsm_module_enter(intercept.module);
    intercept_await(left, 1);
    hsm_module_exit(intercept.module);
    return NULL;
}

/* It says so, and does not pass off a login that needed nothing as the module's initialization. */
static void a_module_that_another_user_is_inside_is_busy(void) {
    intercept_begin(HSMC_NOOP_MODULE);
    struct fixture f = noop_begin(1);
    _Atomic unsigned left = 0;
    hsm_error error = {.status = HSM_OK};
    pthread_t user;
    REQUIRE(pthread_create(&user, NULL, stay_in_module, &left) == 0);
    while (hsm_module_claim(intercept.module)) {
        hsm_module_disclaim(intercept.module);
        intercept_pause();
    }
    hsm_engine_lock(f.engine);
    CHECK_STATUS(hsm_engine_reinitialize(f.engine, NULL, &error), HSM_BUSY);
    CHECK_STATUS(error.status, HSM_BUSY);
    CHECK_INT(atomic_load(&intercept.finalized), ==, 0);
    atomic_store(&left, 1);
    (void)pthread_join(user, NULL);
    CHECK_STATUS(hsm_engine_reinitialize(f.engine, NULL, &error), HSM_OK);
    CHECK_INT(atomic_load(&intercept.finalized), ==, 1);
    hsm_engine_unlock(f.engine);
    CHECK_STATUS(finish(&f, submit_text(&f, SIGNED, 0)).status, HSM_OK);
    fixture_end(&f);
    intercept_end();
}

static void *hang_in_reinitialize(void *module) {
    hsm_error error = {.status = HSM_OK};
    CHECK_STATUS(hsm_module_reinitialize(module, &error), HSM_OK);
    return NULL;
}

static void a_module_is_initialized_again_while_another_one_hangs(void) {
    char path[] = "/tmp/hsmcore-test-XXXXXX";
    copy_module(path);
    hsm_engine_options options = noop_options(1);
    options.module_path = path;
    struct fixture f = fixture_begin(&small_client, &options, "noop-key");
    intercept_begin(HSMC_NOOP_MODULE);
    atomic_store(&intercept.hold_finalize, true);
    pthread_t hangs;
    REQUIRE(pthread_create(&hangs, NULL, hang_in_reinitialize, intercept.module) == 0);
    intercept_await(&intercept.inside_finalize, 1);
    CHECK_INT(f.engine->p11->C_Finalize(NULL), ==, CKR_OK); /* other code did */
    CHECK_STATUS(finish(&f, submit_text(&f, SIGNED, 10 * SECOND)).status, HSM_OK);
    atomic_store(&intercept.hold_finalize, false);
    (void)pthread_join(hangs, NULL);
    intercept_end();
    fixture_end(&f);
    CHECK_INT(unlink(path), ==, 0);
}

static CK_RV show_another_id(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE key, CK_ATTRIBUTE *asked, CK_ULONG count) {
    CK_RV rv = intercept.real->C_GetAttributeValue(session, key, asked, count);
    if (asked->type == CKA_ID) {
        ((CK_BYTE *)asked->pValue)[0] ^= 1U;
    }
    return rv;
}

static void a_key_is_found_again_by_the_id_that_it_was_found_by(void) {
    intercept_begin(HSMC_NOOP_MODULE);
    hsm_engine_options options = noop_options(1);
    struct fixture f = fixture_begin(&small_client, &options, NULL);
    const uint8_t id = 1;
    const hsm_key_selector selector = {.id = &id, .id_len = 1, .handle = -1};
    hsm_error error;
    intercept.list.C_GetAttributeValue = show_another_id;
    CHECK_STATUS(hsm_engine_add_key(f.engine, &selector, &f.key, &error), HSM_OK);
    intercept.list.C_GetAttributeValue = intercept.real->C_GetAttributeValue;
    CHECK_INT(f.key.id[0], ==, id);
    atomic_store(&intercept.ckr, CKR_KEY_HANDLE_INVALID);
    atomic_store(&intercept.fail_sign_init, 1);
    CHECK_STATUS(finish(&f, submit_text(&f, SIGNED, 10 * SECOND)).status, HSM_OK);
    fixture_end(&f);
    intercept_end();
}

static _Atomic unsigned to_exaggerate; /* so many searches */

static CK_RV find_too_many(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE *found, CK_ULONG most, CK_ULONG *count) {
    CK_RV rv = intercept.real->C_FindObjects(session, found, most, count);
    *count += intercept_take(&to_exaggerate) ? 1000 : 0;
    return rv;
}

static void a_search_that_finds_more_than_was_asked_for_is_repeated(void) {
    intercept_begin(HSMC_NOOP_MODULE);
    struct fixture f = noop_begin(1);
    (void)add_key(f.engine, "noop-key"); /* beside another key that is found, one that is not is gone */
    intercept.list.C_FindObjects = find_too_many;
    atomic_store(&to_exaggerate, 1);
    atomic_store(&intercept.ckr, CKR_KEY_HANDLE_INVALID);
    atomic_store(&intercept.fail_sign_init, 1);
    CHECK_STATUS(finish(&f, submit_text(&f, SIGNED, 10 * SECOND)).status, HSM_OK);
    CHECK_INT(atomic_load(&to_exaggerate), ==, 0);
    fixture_end(&f);
    intercept_end();
}

static const struct test tests[] = {
    TEST(a_pin_that_might_lock_is_not_tried),
    TEST(one_login_serves_all_workers),
    TEST(a_stopped_engine_does_not_log_in_again),
    TEST(the_pin_is_not_wiped_under_a_login),
    TEST(every_ckr_gets_what_its_class_says),
    TEST(what_never_mends_is_given_up),
    TEST(where_a_login_does_not_help_the_module_is_initialized_again),
    TEST(sessions_that_were_closed_are_opened_again),
    TEST(no_engine_is_inside_while_another_finalizes_the_module),
    TEST(reinit_notes_how_long_it_stops_others),
    TEST(a_module_that_another_user_is_inside_is_busy),
    TEST(a_module_is_initialized_again_while_another_one_hangs),
    TEST(a_key_is_found_again_by_the_id_that_it_was_found_by),
    TEST(a_search_that_finds_more_than_was_asked_for_is_repeated),
};
HARNESS_MAIN(tests)
