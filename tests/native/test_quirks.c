/* The table of modules, and how one is recognized. */
#include "harness.h"
#include "quirks.h"

static void every_name_leads_to_its_row(void) {
    static const char *const expected[] = {"softhsm", "nss", "yubihsm", "aws-cloudhsm", "tpm2", "generic"};
    size_t count = 0;
    for (const char *name; (name = hsm_quirks_name(count)) != NULL; count++) {
        REQUIRE(count < COUNT_OF(expected));
        CHECK_TEXT(name, expected[count]);
        CHECK(hsm_quirks_known(name));
        CHECK_TEXT(hsm_quirks_of_name(name)->name, name);
    }
    CHECK_INT(count, ==, COUNT_OF(expected));
    CHECK(hsm_quirks_name(count + 1) == NULL);
    CHECK(hsm_quirks_name(SIZE_MAX) == NULL);
}

static void an_unknown_name_is_generic(void) {
    CHECK(!hsm_quirks_known("luna"));
    CHECK(!hsm_quirks_known(""));
    CHECK(!hsm_quirks_known("SoftHSM"));
    CHECK_TEXT(hsm_quirks_of_name("luna")->name, "generic");
    CHECK_TEXT(hsm_quirks_of_name(NULL)->name, "generic");
}

static const hsm_quirks *recognize(const char *manufacturer, const char *library) {
    CK_INFO info;
    memset(&info, ' ', sizeof info);
    memcpy(info.manufacturerID, manufacturer, strlen(manufacturer));
    memcpy(info.libraryDescription, library, strlen(library));
    return hsm_quirks_of_info(&info);
}

static void modules_are_recognized_by_what_they_say(void) {
    CHECK_TEXT(recognize("SoftHSM", "Implementation of PKCS11")->name, "softhsm");
    CHECK_TEXT(recognize("Mozilla Foundation", "NSS Internal Crypto Services")->name, "nss");
    CHECK_TEXT(recognize("Yubico (www.yubico.com)", "YubiHSM PKCS#11 Library")->name, "yubihsm");
    CHECK_TEXT(recognize("Amazon", "AWS CloudHSM PKCS11 Library")->name, "aws-cloudhsm");
    CHECK_TEXT(recognize("tpm2-software.github.io", "TPM2.0 Cryptoki")->name, "tpm2");
    CHECK_TEXT(recognize("hsmcore", "no-op module")->name, "generic");
    CHECK_TEXT(recognize("", "")->name, "generic");
    /* The fields are padded, not terminated: a word that would begin in one and end in the next is none. */
    CHECK_TEXT(recognize("Somebody whose name is so long,So", "tHSM")->name, "generic");
}

static void modules_are_recognized_by_their_files(void) {
    CHECK_TEXT(hsm_quirks_of_path("/usr/lib/softhsm/libsofthsm2.so")->name, "softhsm");
    CHECK_TEXT(hsm_quirks_of_path("libsofthsm2.so")->name, "softhsm");
    CHECK_TEXT(hsm_quirks_of_path("/usr/lib/softhsm/libother.so")->name, "generic");
    CHECK_TEXT(hsm_quirks_of_path("/opt/cloudhsm/lib/libcloudhsm_pkcs11.so")->name, "generic");
    CHECK_TEXT(hsm_quirks_of_path("")->name, "generic");
}

static void the_rows_say_what_the_vendors_say(void) {
    const hsm_quirks *cloudhsm = hsm_quirks_of_name("aws-cloudhsm");
    CHECK(cloudhsm->read_write_sessions && cloudhsm->handles_per_session);
    CHECK_INT(cloudhsm->open_pause_ms, >, 0);
    const hsm_quirks *yubihsm = hsm_quirks_of_name("yubihsm");
    CHECK_INT(yubihsm->calls_in_flight, ==, 1);
    CHECK_INT(yubihsm->keepalive_s, >, 0);
    CHECK_INT(yubihsm->keepalive_s, <, 30);
    CHECK(hsm_quirks_of_name("nss")->memory_error_is_logout);
    CHECK_INT(hsm_quirks_of_name("tpm2")->sessions, ==, 1);
    CHECK(hsm_quirks_of_name("tpm2")->reads_store_once && !hsm_quirks_of_name("softhsm")->reads_store_once);
    const hsm_quirks *generic = hsm_quirks_of_name("generic");
    CHECK(!generic->read_write_sessions && !generic->handles_per_session && !generic->memory_error_is_logout);
    CHECK_INT(generic->open_pause_ms + generic->keepalive_s + generic->calls_in_flight + generic->sessions, ==, 0);
}

static void a_module_s_own_ways_of_failing(void) {
    const hsm_quirks *generic = hsm_quirks_of_name("generic");
    const hsm_quirks *nss = hsm_quirks_of_name("nss");
    const hsm_quirks *yubihsm = hsm_quirks_of_name("yubihsm");
    CHECK_INT(hsm_quirks_judge(generic, HSM_MODULE_FATAL, CKR_HOST_MEMORY, HSM_ED25519, 1), ==, HSM_MODULE_FATAL);
    CHECK_INT(hsm_quirks_judge(nss, HSM_MODULE_FATAL, CKR_HOST_MEMORY, HSM_ED25519, 1), ==, HSM_NOT_LOGGED_IN);
    CHECK_INT(hsm_quirks_judge(nss, HSM_OK, CKR_OK, HSM_ED25519, 1), ==, HSM_OK);

    uint32_t limit = yubihsm->sign_bytes;
    CHECK_INT(limit, >, 0);
    CHECK_INT(hsm_quirks_judge(yubihsm, HSM_OK, CKR_OK, HSM_ED25519, limit + 1), ==, HSM_OK);
    for (uint32_t over = 0; over < 2; over++) {
        hsm_status expected = over != 0 ? HSM_MESSAGE_REJECTED : HSM_OPERATION_STATE;
        CHECK_INT(hsm_quirks_judge(yubihsm, HSM_OPERATION_STATE, CKR_BUFFER_TOO_SMALL, HSM_ED25519, limit + over), ==,
                  expected);
    }
    CHECK_INT(hsm_quirks_judge(yubihsm, HSM_MESSAGE_REJECTED, CKR_DATA_LEN_RANGE, HSM_ED25519, 1), ==, HSM_TOKEN_LOST);
    CHECK_INT(hsm_quirks_judge(yubihsm, HSM_MECHANISM_UNSUPPORTED, CKR_MECHANISM_INVALID, HSM_ED25519, 1), ==,
              HSM_TOKEN_LOST);
    CHECK_INT(hsm_quirks_judge(yubihsm, HSM_MESSAGE_REJECTED, CKR_DATA_LEN_RANGE, HSM_ED25519, limit + 1), ==,
              HSM_MESSAGE_REJECTED);
    /* Of an ECDSA message only the digest is sent, so its length is at no fault. */
    CHECK_INT(hsm_quirks_judge(yubihsm, HSM_MESSAGE_REJECTED, CKR_DATA_LEN_RANGE, HSM_ECDSA_P256, limit + 1), ==,
              HSM_TOKEN_LOST);
    CHECK_INT(hsm_quirks_judge(generic, HSM_MESSAGE_REJECTED, CKR_DATA_LEN_RANGE, HSM_ED25519, 1), ==,
              HSM_MESSAGE_REJECTED);
}

static const struct test tests[] = {
    TEST(every_name_leads_to_its_row),
    TEST(an_unknown_name_is_generic),
    TEST(modules_are_recognized_by_what_they_say),
    TEST(modules_are_recognized_by_their_files),
    TEST(the_rows_say_what_the_vendors_say),
    TEST(a_module_s_own_ways_of_failing),
};
HARNESS_MAIN(tests)
