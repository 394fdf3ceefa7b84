/* The tables of statuses and CKRs, walked from end to end, and what an error keeps. */
#include <errno.h>

#include "harness.h"
#include "pkcs11.h"

static const struct {
    const char *name;
    enum hsm_class class_;
    const char *text;
} expected[] = {
#define HSM_STATUS(name, class, text) {#name, HSM_CLASS_##class, text},
#include <hsmcore/status.def>
#undef HSM_STATUS
};

static void every_status_has_a_row(void) {
    CHECK_INT(COUNT_OF(expected), ==, HSM_STATUS_COUNT);
    for (unsigned i = 0; i < COUNT_OF(expected); i++) {
        CHECK_TEXT(hsm_status_name((hsm_status)i), expected[i].name);
        CHECK_TEXT(hsm_status_text((hsm_status)i), expected[i].text);
        CHECK_INT(hsm_status_class((hsm_status)i), ==, expected[i].class_);
        CHECK(expected[i].text[0] != '\0');
        for (unsigned j = 0; j < i; j++) {
            CHECK(strcmp(expected[i].name, expected[j].name) != 0);
            CHECK(strcmp(expected[i].text, expected[j].text) != 0);
        }
    }
    CHECK_INT(HSM_OK, ==, 0);
    CHECK_INT(hsm_status_class(HSM_OK), ==, HSM_CLASS_OK);
    for (unsigned i = 1; i < COUNT_OF(expected); i++) {
        CHECK_INT(expected[i].class_, !=, HSM_CLASS_OK);
    }
}

static void a_number_outside_the_table_is_fatal(void) {
    static const uint32_t numbers[] = {HSM_STATUS_COUNT, HSM_STATUS_COUNT + 1, 255, 65536, 0x7fffffff, 0xffffffff};
    for (size_t i = 0; i < COUNT_OF(numbers); i++) {
        CHECK_TEXT(hsm_status_name((hsm_status)numbers[i]), "INVALID");
        CHECK_TEXT(hsm_status_text((hsm_status)numbers[i]), "invalid status");
        CHECK_INT(hsm_status_class((hsm_status)numbers[i]), ==, HSM_CLASS_PROCESS_FATAL);
        CHECK_TEXT(hsm_class_name((enum hsm_class)numbers[i]), "INVALID");
    }
}

static void every_class_has_a_name(void) {
    for (unsigned i = 0; i < HSM_CLASS_COUNT; i++) {
        CHECK(strcmp(hsm_class_name((enum hsm_class)i), "INVALID") != 0);
    }
    CHECK_TEXT(hsm_class_name(HSM_CLASS_OK), "OK");
    CHECK_TEXT(hsm_class_name(HSM_CLASS_MEMBER_DOWN), "MEMBER_DOWN");
    CHECK_TEXT(hsm_class_name(HSM_CLASS_PROCESS_FATAL), "PROCESS_FATAL");
    CHECK_TEXT(hsm_class_name(HSM_CLASS_COUNT), "INVALID");
}

/* The table's numbers against the standard's header, which is not where they were copied from. */
static void the_numbers_are_the_standard_ones(void) {
    static const struct {
        uint64_t ckr;
        const char *name;
    } rows[] = {
#define SAME(name) {name, #name}
        SAME(CKR_OK),
        SAME(CKR_HOST_MEMORY),
        SAME(CKR_SLOT_ID_INVALID),
        SAME(CKR_GENERAL_ERROR),
        SAME(CKR_FUNCTION_FAILED),
        SAME(CKR_ARGUMENTS_BAD),
        SAME(CKR_NEED_TO_CREATE_THREADS),
        SAME(CKR_CANT_LOCK),
        SAME(CKR_ATTRIBUTE_READ_ONLY),
        SAME(CKR_ATTRIBUTE_SENSITIVE),
        SAME(CKR_ATTRIBUTE_TYPE_INVALID),
        SAME(CKR_ATTRIBUTE_VALUE_INVALID),
        SAME(CKR_DATA_INVALID),
        SAME(CKR_DATA_LEN_RANGE),
        SAME(CKR_DEVICE_ERROR),
        SAME(CKR_DEVICE_MEMORY),
        SAME(CKR_DEVICE_REMOVED),
        SAME(CKR_ENCRYPTED_DATA_INVALID),
        SAME(CKR_FUNCTION_CANCELED),
        SAME(CKR_FUNCTION_NOT_SUPPORTED),
        SAME(CKR_KEY_HANDLE_INVALID),
        SAME(CKR_KEY_SIZE_RANGE),
        SAME(CKR_KEY_TYPE_INCONSISTENT),
        SAME(CKR_KEY_CHANGED),
        SAME(CKR_KEY_FUNCTION_NOT_PERMITTED),
        SAME(CKR_KEY_NOT_WRAPPABLE),
        SAME(CKR_KEY_UNEXTRACTABLE),
        SAME(CKR_MECHANISM_INVALID),
        SAME(CKR_MECHANISM_PARAM_INVALID),
        SAME(CKR_OBJECT_HANDLE_INVALID),
        SAME(CKR_OPERATION_ACTIVE),
        SAME(CKR_OPERATION_NOT_INITIALIZED),
        SAME(CKR_PIN_INCORRECT),
        SAME(CKR_PIN_INVALID),
        SAME(CKR_PIN_LEN_RANGE),
        SAME(CKR_PIN_EXPIRED),
        SAME(CKR_PIN_LOCKED),
        SAME(CKR_SESSION_CLOSED),
        SAME(CKR_SESSION_COUNT),
        SAME(CKR_SESSION_HANDLE_INVALID),
        SAME(CKR_SESSION_READ_ONLY),
        SAME(CKR_SESSION_READ_ONLY_EXISTS),
        SAME(CKR_SESSION_PARALLEL_NOT_SUPPORTED),
        SAME(CKR_TEMPLATE_INCOMPLETE),
        SAME(CKR_TEMPLATE_INCONSISTENT),
        SAME(CKR_TOKEN_NOT_PRESENT),
        SAME(CKR_TOKEN_NOT_RECOGNIZED),
        SAME(CKR_USER_ALREADY_LOGGED_IN),
        SAME(CKR_USER_NOT_LOGGED_IN),
        SAME(CKR_USER_PIN_NOT_INITIALIZED),
        SAME(CKR_USER_TYPE_INVALID),
        SAME(CKR_USER_ANOTHER_ALREADY_LOGGED_IN),
        SAME(CKR_USER_TOO_MANY_TYPES),
        SAME(CKR_WRAPPED_KEY_INVALID),
        SAME(CKR_WRAPPED_KEY_LEN_RANGE),
        SAME(CKR_DOMAIN_PARAMS_INVALID),
        SAME(CKR_CURVE_NOT_SUPPORTED),
        SAME(CKR_BUFFER_TOO_SMALL),
        SAME(CKR_CRYPTOKI_NOT_INITIALIZED),
        SAME(CKR_CRYPTOKI_ALREADY_INITIALIZED),
        SAME(CKR_MUTEX_BAD),
        SAME(CKR_MUTEX_NOT_LOCKED),
        SAME(CKR_FUNCTION_REJECTED)
#undef SAME
    };
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        CHECK_TEXT(hsm_ckr_name(rows[i].ckr), rows[i].name);
    }
}

static void an_unlisted_ckr_is_unknown(void) {
    static const uint64_t numbers[] = {1, 0xfff, 0x80000000, 0x80000001, UINT32_MAX, UINT64_MAX};
    for (size_t i = 0; i < COUNT_OF(numbers); i++) {
        CHECK_STATUS(hsm_status_of_ckr(numbers[i]), HSM_CKR_UNKNOWN);
        CHECK(hsm_ckr_name(numbers[i]) == NULL);
    }
}

static void an_error_names_the_call_and_the_ckr(void) {
    hsm_error error;
    memset(&error, 0xff, sizeof error);
    CHECK_STATUS(hsm_fail_ckr(&error, CKR_DEVICE_REMOVED, "C_Sign", "key %d", 7), HSM_TOKEN_LOST);
    CHECK_STATUS(error.status, HSM_TOKEN_LOST);
    CHECK_INT(error.ckr, ==, CKR_DEVICE_REMOVED);
    CHECK_TEXT(error.call, "C_Sign");
    CHECK_TEXT(error.detail, "key 7");

    CHECK_STATUS(hsm_fail(&error, HSM_KEY_NOT_FOUND, "", "none"), HSM_KEY_NOT_FOUND);
    CHECK_INT(error.ckr, ==, 0);
    CHECK_TEXT(error.call, "");

    errno = ENOENT;
    CHECK_STATUS(hsm_fail_errno(&error, "open", "a file"), HSM_SYSTEM);
    CHECK_TEXT(error.call, "open");
    CHECK(strncmp(error.detail, "a file: ", 8) == 0);
    errno = ENOMEM;
    CHECK_STATUS(hsm_fail_errno(&error, "mmap", "an area"), HSM_OUT_OF_MEMORY);
    errno = 123456;
    CHECK_STATUS(hsm_fail_errno(&error, "mmap", "an area"), HSM_SYSTEM);

    CHECK_STATUS(hsm_fail(NULL, HSM_BUSY, "C_Sign", "nobody listens"), HSM_BUSY);
}

static void a_long_text_is_cut_not_spilled(void) {
    char text[2000];
    memset(text, 'x', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    struct {
        hsm_error error;
        uint8_t fence[16];
    } guarded;
    memset(guarded.fence, 0xa5, sizeof guarded.fence);
    (void)hsm_fail(&guarded.error, HSM_BUSY, text, "%s", text);
    CHECK_INT(strlen(guarded.error.call), ==, sizeof guarded.error.call - 1);
    CHECK_INT(strlen(guarded.error.detail), ==, sizeof guarded.error.detail - 1);
    for (size_t i = 0; i < sizeof guarded.fence; i++) {
        CHECK_INT(guarded.fence[i], ==, 0xa5);
    }
}

static void every_call_has_a_name(void) {
    CHECK_TEXT(hsm_call_name(HSM_CALL_NONE), "");
    for (uint64_t i = 1; i < HSM_CALL_COUNT; i++) {
        CHECK(strncmp(hsm_call_name(i), "C_", 2) == 0);
    }
    CHECK_TEXT(hsm_call_name(HSM_CALL_C_Sign), "C_Sign");
    CHECK_TEXT(hsm_call_name(HSM_CALL_COUNT), "");
    CHECK_TEXT(hsm_call_name(UINT64_MAX), "");
}

static const struct test tests[] = {
    TEST(every_status_has_a_row),         TEST(a_number_outside_the_table_is_fatal),
    TEST(every_class_has_a_name),         TEST(the_numbers_are_the_standard_ones),
    TEST(an_unlisted_ckr_is_unknown),     TEST(an_error_names_the_call_and_the_ckr),
    TEST(a_long_text_is_cut_not_spilled), TEST(every_call_has_a_name),
};
HARNESS_MAIN(tests)
