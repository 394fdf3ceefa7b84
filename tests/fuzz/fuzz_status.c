/* Any CKR and any text: every answer comes from the tables, and an error stays in its bounds. */
#include <hsmcore/status.h>

#include "input.h"

static bool terminated(const char *text, size_t size) {
    return memchr(text, '\0', size) != NULL;
}

static void check_number(uint64_t number) {
    hsm_status status = hsm_status_of_ckr(number);
    REQUIRE((uint32_t)status < HSM_STATUS_COUNT);
    const char *name = hsm_ckr_name(number);
    REQUIRE((name == NULL) == (status == HSM_CKR_UNKNOWN));
    REQUIRE(name == NULL || strncmp(name, "CKR_", 4) == 0);

    /* The number as a status and as a class, as if it came from the shared area. */
    hsm_status strange = (hsm_status)(uint32_t)number;
    bool known = (uint32_t)number < HSM_STATUS_COUNT;
    REQUIRE((strcmp(hsm_status_name(strange), "INVALID") == 0) == !known);
    REQUIRE(hsm_status_text(strange)[0] != '\0');
    REQUIRE(hsm_status_class(strange) <= HSM_CLASS_PROCESS_FATAL);
    REQUIRE(hsm_class_name((enum hsm_class)(uint32_t)number)[0] != '\0');

    uint64_t ckr = 0;
    hsm_status row = HSM_OK;
    if (hsm_ckr_row((size_t)number, &ckr, &name, &row)) {
        REQUIRE(hsm_status_of_ckr(ckr) == row);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct input input = {data, size};
    uint64_t number = take_u64(&input);
    check_number(number);
    check_number(take_u16(&input));

    char call[64];
    char detail[400];
    take(&input, call, sizeof call - 1);
    take(&input, detail, sizeof detail - 1);
    call[sizeof call - 1] = detail[sizeof detail - 1] = '\0';
    hsm_error error;
    memset(&error, 0xff, sizeof error);
    hsm_status status = hsm_fail_ckr(&error, number, call, "%s", detail);
    REQUIRE(status == hsm_status_of_ckr(number) && error.status == status && error.ckr == number);
    REQUIRE(terminated(error.call, sizeof error.call) && terminated(error.detail, sizeof error.detail));
    REQUIRE(strncmp(error.call, call, sizeof error.call - 1) == 0);
    REQUIRE(strncmp(error.detail, detail, sizeof error.detail - 1) == 0);
    return 0;
}
