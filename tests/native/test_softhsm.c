/* The engine on a real token: every signature verified, and what happens when the token is touched from outside.
 *
 * Every test goes through the intercepted function list, also for what intercept_SignInit says of leaks. */
#include <sched.h>

#include "engine.h"
#include "engine_fixture.h"
#include "intercept.h"
#include "softhsm.h"

static hsm_engine_options softhsm_options(uint32_t workers) {
    return (hsm_engine_options){.module_path = softhsm.module_path,
                                .token = {.label = TOKEN_LABEL, .slot_id = -1},
                                .pin = (const uint8_t *)USER_PIN,
                                .pin_len = sizeof USER_PIN - 1,
                                .workers = workers};
}

static struct fixture begin(uint32_t workers, const char *key) {
    hsm_engine_options options = softhsm_options(workers);
    return fixture_begin(&small_client, &options, key);
}

static hsm_status check_signature(const struct fixture *fixture, const char *text, const hsm_completion *done) {
    return hsm_verify(fixture->key.algorithm, fixture->key.public_key, fixture->key.public_key_len,
                      (const uint8_t *)text, strlen(text), 0, done->signature, done->signature_len);
}

/* Sign `count` different messages, as many at once as there are slots, and verify every signature. */
static void sign_and_verify(struct fixture *f, uint32_t count) {
    uint8_t *seen = calloc(count, 1);
    REQUIRE(seen != NULL);
    uint32_t request_of[64];
    uint32_t submitted = 0;
    uint32_t completed = 0;
    while (completed < count) {
        while (submitted < count && hsm_client_free_slots(f->client) > 0) {
            char text[64];
            (void)snprintf(text, sizeof text, "transaction %u of %u", submitted, count);
            uint32_t slot = submit_text(f, text, 0);
            REQUIRE(slot < COUNT_OF(request_of));
            request_of[slot] = submitted++;
        }
        hsm_completion done;
        await_completion(f->client, &done);
        do {
            char text[64];
            (void)snprintf(text, sizeof text, "transaction %u of %u", request_of[done.slot], count);
            CHECK_STATUS(done.status, HSM_OK);
            CHECK_STATUS(check_signature(f, text, &done), HSM_OK);
            seen[request_of[done.slot]]++;
            completed++;
            hsm_client_release(f->client, done.slot);
        } while (hsm_client_next(f->client, &done));
    }
    for (uint32_t i = 0; i < count; i++) {
        CHECK_INT(seen[i], ==, 1);
    }
    free(seen);
}

static void ten_thousand_signatures_by_two_workers(void) {
    intercept_begin(softhsm.module_path);
    struct fixture f = begin(2, "ed25519");
    CHECK_INT(f.key.algorithm, ==, HSM_ED25519);
    hsm_token_info token;
    hsm_engine_token(f.engine, &token);
    CHECK_TEXT(token.quirks, "softhsm");
    CHECK_TEXT(token.label, TOKEN_LABEL);
    CHECK_INT(token.max_sessions, ==, 0);
    sign_and_verify(&f, 10000);
    hsm_stats stats;
    hsm_client_stats(f.client, &stats);
    CHECK_INT(stats.signatures, ==, 10000);
    CHECK_INT(stats.failures, ==, 0);
    fixture_end(&f);
    intercept_end();
}

static void retiring_a_key_under_load(void) {
    intercept_begin(softhsm.module_path);
    struct fixture f = begin(2, "ed25519");
    unsigned signed_ones = 0;
    unsigned refused = 0;
    for (int i = 0; i < 64; i++) {
        (void)submit_text(&f, "text", 0);
    }
    hsm_completion done = finish(&f, UINT32_MAX);
    CHECK_STATUS(done.status, HSM_OK);
    CHECK_STATUS(hsm_engine_retire_key(f.engine, f.key.index), HSM_OK);
    (void)submit_text(&f, "text", 0); /* after retiring: cannot be signed */
    for (int i = 0; i < 64; i++) {
        done = finish(&f, UINT32_MAX);
        CHECK(done.status == HSM_OK || done.status == HSM_KEY_DEACTIVATED);
        signed_ones += done.status == HSM_OK ? 1U : 0U;
        refused += done.status == HSM_KEY_DEACTIVATED ? 1U : 0U;
    }
    CHECK_INT(signed_ones + refused, ==, 64);
    CHECK_INT(refused, >, 0);
    fixture_end(&f);
    intercept_end();
}

/* Two keys that take turns in the only free place of the table, each added while requests for the other one are under
 * way: no request ever gets a signature of the other key. */
static void a_place_that_changes_hands_under_load(void) {
    intercept_begin(softhsm.module_path);
    static const char *const labels[] = {"ed25519", "p256"};
    hsm_engine_options options = softhsm_options(2);
    options.verify_every = 3;
    struct fixture f = fixture_begin(&small_client, &options, labels[0]);
    for (uint32_t i = 1; i < HSM_MAX_KEYS; i++) {
        (void)add_key(f.engine, labels[0]);
    }
    unsigned refused = 0;
    unsigned good = 0;
    for (unsigned round = 0; round < 150; round++) {
        hsm_key_info keys[2] = {f.key};
        uint8_t key_of[64] = {0};
        for (int i = 0; i < 6; i++) {
            (void)submit_text(&f, "text", 0);
        }
        CHECK_STATUS(hsm_engine_retire_key(f.engine, keys[0].index), HSM_OK);
        hsm_key_selector selector = {.label = labels[(round + 1) % 2], .handle = -1};
        hsm_error error = {.status = HSM_OK};
        hsm_status added;
        do {
            added = hsm_engine_add_key(f.engine, &selector, &keys[1], &error);
        } while (added == HSM_BAD_ARGUMENT); /* a worker is still at the other one */
        REQUIRE_OK(added, error);
        for (int i = 0; i < 12; i++) {
            f.key = keys[i % 2];
            key_of[submit_text(&f, "text", 0)] = (uint8_t)(i % 2);
        }
        for (int i = 0; i < 18; i++) {
            hsm_completion done;
            await_completion(f.client, &done);
            f.key = keys[key_of[done.slot]];
            CHECK_INT(done.key, ==, f.key.index);
            if (done.status == HSM_OK) {
                CHECK_STATUS(check_signature(&f, "text", &done), HSM_OK);
                good++;
            } else {
                CHECK_STATUS(done.status, HSM_KEY_DEACTIVATED);
                CHECK_INT(key_of[done.slot], ==, 0);
                refused++;
            }
            hsm_client_release(f.client, done.slot);
        }
        f.key = keys[1];
    }
    CHECK_INT(f.key.index, ==, 150 * HSM_MAX_KEYS);
    CHECK_INT(good, >=, 150 * 6);
    CHECK_INT(refused, >=, 150 * 6);
    fixture_end(&f);
    intercept_end();
}

static void stopping_under_load_answers_everything(void) {
    intercept_begin(softhsm.module_path);
    for (int round = 0; round < 5; round++) {
        struct fixture f = begin(2, "ed25519");
        for (int i = 0; i < 64; i++) {
            (void)submit_text(&f, "text", 0);
        }
        CHECK_INT(hsm_engine_stop(f.engine, PATIENCE), ==, 0);
        unsigned answered = 0;
        hsm_completion done;
        while (hsm_client_next(f.client, &done)) {
            CHECK(done.status == HSM_OK || done.status == HSM_CLOSED);
            if (done.status == HSM_OK) {
                CHECK_STATUS(check_signature(&f, "text", &done), HSM_OK);
            }
            hsm_client_release(f.client, done.slot);
            answered++;
        }
        CHECK_INT(answered, ==, 64);
        hsm_client_free(f.client);
    }
    intercept_end();
}

/* ---- the token is touched from outside ---- */

static void a_logout_by_others_is_mended(void) {
    intercept_begin(softhsm.module_path);
    struct fixture f = begin(2, "ed25519");
    CK_SESSION_HANDLE session = softhsm_login(intercept.real);
    CHECK_INT(intercept.real->C_Logout(session), ==, CKR_OK); /* ends the login of the whole process, and its handles */
    hsm_completion done = finish(&f, submit_text(&f, "text", 0));
    CHECK_STATUS(done.status, HSM_OK);
    CHECK_STATUS(check_signature(&f, "text", &done), HSM_OK);
    CHECK_INT(atomic_load(&intercept.logins), ==, 2); /* the engine's first and one more */
    CHECK_INT(intercept.real->C_CloseSession(session), ==, CKR_OK);
    fixture_end(&f);
    intercept_end();
}

/* The key is gone and another one answers to its label and id: nothing may be signed with that. */
static void a_key_that_was_exchanged_signs_nothing(void) {
    intercept_begin(softhsm.module_path);
    CK_FUNCTION_LIST *p11 = intercept.real;
    CK_SESSION_HANDLE session = softhsm_login(p11);
    softhsm_make_key(p11, session, "exchanged", 9, true, OID_ED25519);
    struct fixture f = begin(2, "exchanged");
    CHECK_STATUS(finish(&f, submit_text(&f, "text", 0)).status, HSM_OK);

    CK_UTF8CHAR label[] = "exchanged";
    CK_ATTRIBUTE template[] = {{CKA_LABEL, label, sizeof label - 1}};
    CK_OBJECT_HANDLE objects[4];
    CK_ULONG count = 0;
    REQUIRE(p11->C_FindObjectsInit(session, template, 1) == CKR_OK);
    REQUIRE(p11->C_FindObjects(session, objects, COUNT_OF(objects), &count) == CKR_OK);
    REQUIRE(p11->C_FindObjectsFinal(session) == CKR_OK);
    CHECK_INT(count, ==, 2);
    for (CK_ULONG i = 0; i < count; i++) {
        CHECK_INT(p11->C_DestroyObject(session, objects[i]), ==, CKR_OK);
    }
    softhsm_make_key(p11, session, "exchanged", 9, true, OID_ED25519);

    for (int i = 0; i < 4; i++) {
        hsm_completion done = finish(&f, submit_text(&f, "text", 0));
        CHECK(done.status != HSM_OK);
        CHECK_INT(done.signature_len, ==, 0);
    }
    CHECK_STATUS(finish(&f, submit_text(&f, "text", 0)).status, HSM_KEY_MISMATCH);
    CHECK_INT(p11->C_CloseSession(session), ==, CKR_OK);
    fixture_end(&f);
    intercept_end();
}

static const struct test tests[] = {
    TEST(ten_thousand_signatures_by_two_workers), TEST(retiring_a_key_under_load),
    TEST(a_place_that_changes_hands_under_load),  TEST(stopping_under_load_answers_everything),
    TEST(a_logout_by_others_is_mended),           TEST(a_key_that_was_exchanged_signs_nothing),
};

int main(int argc, char **argv) {
    softhsm_begin();
    return harness_run(tests, COUNT_OF(tests), argc, argv);
}
