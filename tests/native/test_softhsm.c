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

static void ecdsa_signatures_verify_too(void) {
    intercept_begin(softhsm.module_path);
    static const char *const labels[] = {"p256", "secp256k1"};
    static const hsm_algorithm algorithms[] = {HSM_ECDSA_P256, HSM_ECDSA_SECP256K1};
    for (size_t i = 0; i < COUNT_OF(labels); i++) {
        struct fixture f = begin(2, labels[i]);
        CHECK_INT(f.key.algorithm, ==, algorithms[i]);
        CHECK_INT(f.key.public_key_len, ==, 65);
        sign_and_verify(&f, 200); /* hsm_verify refuses a high s */
        fixture_end(&f);
    }
    intercept_end();
}

static hsm_completion sign_digest(struct fixture *f, const uint8_t *digest, size_t len) {
    uint32_t slot;
    CHECK_STATUS(hsm_client_write(f->client, f->key.index, digest, len, true, hsm_now_ns(), 0, &slot), HSM_OK);
    return finish(f, slot);
}

static void a_digest_is_signed_as_it_is(void) {
    intercept_begin(softhsm.module_path);
    static const char *const labels[] = {"p256", "secp256k1", "ed25519"};
    const uint8_t digest[33] = "a digest is signed, not hashed..";
    hsm_engine_options options = softhsm_options(1);
    options.verify_every = 1;
    for (size_t i = 0; i < COUNT_OF(labels); i++) {
        struct fixture f = fixture_begin(&small_client, &options, labels[i]);
        const hsm_key_info *key = &f.key;
        bool ecdsa = key->algorithm != HSM_ED25519;
        hsm_completion done = sign_digest(&f, digest, 32);
        /* What the request table refuses, a worker refuses too. */
        CHECK_STATUS(done.status, ecdsa ? HSM_OK : HSM_BAD_ARGUMENT);
        CHECK_STATUS(
            hsm_verify(key->algorithm, key->public_key, key->public_key_len, digest, 32, 1, done.signature, 64),
            ecdsa ? HSM_OK : HSM_SIGNATURE_INVALID);
        if (ecdsa) {
            CHECK_STATUS(hsm_verify(key->algorithm, key->public_key, key->public_key_len, digest, 32, 0, done.signature,
                                    done.signature_len),
                         HSM_SIGNATURE_INVALID);
        }
        CHECK_STATUS(sign_digest(&f, digest, 31).status, HSM_BAD_ARGUMENT);
        CHECK_STATUS(sign_digest(&f, digest, 33).status, HSM_BAD_ARGUMENT);
        CHECK_STATUS(sign_digest(&f, digest, 0).status, HSM_BAD_ARGUMENT);
        done = finish(&f, submit_text(&f, "hsmcore test message", 0)); /* nothing of it stays in slot or worker */
        CHECK_STATUS(check_signature(&f, "hsmcore test message", &done), HSM_OK);
        fixture_end(&f);
    }
    intercept_end();
}

static void all_keys_in_one_engine(void) {
    intercept_begin(softhsm.module_path);
    static const char *const labels[] = {"ed25519", "p256", "secp256k1"};
    hsm_engine_options options = softhsm_options(2);
    options.verify_every = 1;
    struct fixture f = fixture_begin(&small_client, &options, NULL);
    hsm_key_info keys[3];
    for (size_t i = 0; i < 3; i++) {
        keys[i] = add_key(f.engine, labels[i]);
    }
    for (size_t round = 0; round < 30; round++) {
        f.key = keys[round % 3];
        char text[16];
        (void)snprintf(text, sizeof text, "round %zu", round);
        hsm_completion done = finish(&f, submit_text(&f, text, 0));
        CHECK_STATUS(done.status, HSM_OK);
        CHECK_STATUS(check_signature(&f, text, &done), HSM_OK);
    }
    fixture_end(&f);
    intercept_end();
}

static void one_label_for_two_keys_is_ambiguous(void) {
    intercept_begin(softhsm.module_path);
    struct fixture f = begin(1, NULL);
    hsm_key_selector selector = {.label = "twin", .handle = -1};
    hsm_key_info info;
    hsm_error error = {.status = HSM_OK};
    CHECK_STATUS(hsm_engine_add_key(f.engine, &selector, &info, &error), HSM_KEY_AMBIGUOUS);
    CHECK(strstr(error.detail, "twin") != NULL);
    uint8_t keys[2][32];
    for (uint8_t id = 4; id <= 5; id++) {
        selector.id = &id;
        selector.id_len = 1;
        REQUIRE_OK(hsm_engine_add_key(f.engine, &selector, &info, &error), error);
        memcpy(keys[id - 4], info.public_key, 32);
        f.key = info;
        hsm_completion done = finish(&f, submit_text(&f, "text", 0));
        CHECK_STATUS(check_signature(&f, "text", &done), HSM_OK);
    }
    CHECK(memcmp(keys[0], keys[1], 32) != 0);
    selector.id = (const uint8_t *)"\1"; /* that of another label */
    CHECK_STATUS(hsm_engine_add_key(f.engine, &selector, &info, &error), HSM_KEY_NOT_FOUND);
    fixture_end(&f);
    intercept_end();
}

static void the_wrong_pin_is_tried_once(void) {
    intercept_begin(softhsm.module_path);
    hsm_client *client = new_client(&small_client);
    hsm_engine_options options = softhsm_options(2);
    static const char *const pins[] = {"wrong-pin-9", "", "x"};
    for (size_t i = 0; i < COUNT_OF(pins); i++) {
        atomic_store(&intercept.logins, 0);
        options.pin = (const uint8_t *)pins[i];
        options.pin_len = strlen(pins[i]);
        hsm_engine *engine = NULL;
        hsm_error error = {.status = HSM_OK};
        hsm_status status = hsm_engine_start(client, &options, &engine, &error);
        CHECK(engine == NULL);
        CHECK_INT(hsm_status_class(status), !=, HSM_CLASS_OK);
        CHECK_INT(atomic_load(&intercept.logins), ==, 1);
        CHECK_TEXT(error.call, "C_Login");
        if (i == 0) {
            CHECK_STATUS(status, HSM_PIN_INCORRECT);
            CHECK_INT(error.ckr, ==, CKR_PIN_INCORRECT);
            CHECK(strstr(error.detail, pins[i]) == NULL);
        }
        hsm_leaks leaks;
        hsm_leaks_read(&leaks);
        CHECK_INT(leaks.sessions, ==, 0);
    }
    options = softhsm_options(1); /* and the right one still works */
    struct fixture f = {.client = client};
    hsm_error error = {.status = HSM_OK};
    REQUIRE_OK(hsm_engine_start(client, &options, &f.engine, &error), error);
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

static void a_message_of_any_length_is_signed(void) {
    intercept_begin(softhsm.module_path);
    hsm_client_options client = {.slots = 2, .max_message = HSM_MAX_MESSAGE, .max_workers = 1};
    hsm_engine_options options = softhsm_options(1);
    uint8_t *message = malloc(HSM_MAX_MESSAGE);
    REQUIRE(message != NULL);
    for (size_t i = 0; i < HSM_MAX_MESSAGE; i++) {
        message[i] = (uint8_t)(i * 7 + i / 255);
    }
    static const char *const labels[] = {"ed25519", "p256"};
    static const size_t lengths[] = {1, 1280, 1281, HSM_MAX_MESSAGE};
    for (size_t label = 0; label < COUNT_OF(labels); label++) {
        struct fixture f = fixture_begin(&client, &options, labels[label]);
        for (size_t i = 0; i < COUNT_OF(lengths); i++) {
            uint32_t slot;
            uint64_t deadline;
            CHECK_STATUS(hsm_client_submit(f.client, 0, message, lengths[i], 0, &slot, &deadline), HSM_OK);
            hsm_completion done = finish(&f, slot);
            CHECK_STATUS(done.status, HSM_OK);
            CHECK_STATUS(hsm_verify(f.key.algorithm, f.key.public_key, f.key.public_key_len, message, lengths[i], 0,
                                    done.signature, done.signature_len),
                         HSM_OK);
        }
        fixture_end(&f);
    }
    free(message);
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

static void sessions_closed_by_others_are_mended(void) {
    intercept_begin(softhsm.module_path);
    struct fixture f = begin(2, "ed25519");
    CHECK_INT(intercept.real->C_CloseAllSessions(softhsm_slot_of(intercept.real, TOKEN_LABEL)), ==, CKR_OK);
    hsm_completion done = finish(&f, submit_text(&f, "text", 0));
    CHECK_STATUS(done.status, HSM_OK);
    CHECK_STATUS(check_signature(&f, "text", &done), HSM_OK);
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
    TEST(ten_thousand_signatures_by_two_workers),
    TEST(ecdsa_signatures_verify_too),
    TEST(a_digest_is_signed_as_it_is),
    TEST(all_keys_in_one_engine),
    TEST(one_label_for_two_keys_is_ambiguous),
    TEST(the_wrong_pin_is_tried_once),
    TEST(retiring_a_key_under_load),
    TEST(a_place_that_changes_hands_under_load),
    TEST(stopping_under_load_answers_everything),
    TEST(a_message_of_any_length_is_signed),
    TEST(a_logout_by_others_is_mended),
    TEST(sessions_closed_by_others_are_mended),
    TEST(a_key_that_was_exchanged_signs_nothing),
};

int main(int argc, char **argv) {
    softhsm_begin();
    return harness_run(tests, COUNT_OF(tests), argc, argv);
}
