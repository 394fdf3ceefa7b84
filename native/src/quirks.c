/* The table of quirks, and what follows from a row. */
#include "quirks.h"

#include <string.h>

#include "algorithm.h"

/* The last row is the one for modules that are not recognized. */
// clang-format off: a row is one line where it fits
static const hsm_quirks rows[] = {
    {.name = "softhsm", .library_contains = "SoftHSM", .file_contains = "softhsm", .store_variable = "SOFTHSM2_CONF",
     .login_hides_token = true, .patience_ms = 500},
    {.name = "nss", .library_contains = "Mozilla Foundation", .memory_error_is_logout = true, .patience_ms = 500},
    /* A signature of 3 KB takes a YubiHSM 2 about 0.9 s. */
    {.name = "yubihsm", .library_contains = "Yubico", .users_are_objects = true, .keepalive_s = 20,
     .calls_in_flight = 1, .patience_ms = 2000,
     .sign_bytes = 3114}, /* observed: a frame of 3136 (firmware 2.4) less headers, ids, padding and MAC */
    {.name = "aws-cloudhsm", .library_contains = "CloudHSM", .read_write_sessions = true, .handles_per_session = true,
     .open_pause_ms = 50, .patience_ms = 1000}, /* its library repeats throttled calls by itself */
    /* Its sessions disturb each other, up to a crash, and a TPM works on one command at a time. A chip takes up to some
     * hundred ms. */
    {.name = "tpm2", .library_contains = "TPM2.0 Cryptoki", .reads_store_once = true, .sessions = 1,
     .patience_ms = 2000},
    {.name = "generic", .patience_ms = 500},
};
// clang-format on

#define COUNT (sizeof rows / sizeof rows[0])

const char *hsm_quirks_name(size_t index) {
    return index < COUNT ? rows[index].name : NULL;
}

const hsm_quirks *hsm_quirks_of_name(const char *name) {
    for (size_t i = 0; name != NULL && i < COUNT; i++) {
        if (strcmp(rows[i].name, name) == 0) {
            return &rows[i];
        }
    }
    return &rows[COUNT - 1];
}

bool hsm_quirks_known(const char *name) {
    return strcmp(hsm_quirks_of_name(name)->name, name) == 0;
}

hsm_status hsm_quirks_judge(const hsm_quirks *quirks, hsm_status status, CK_RV ckr, hsm_algorithm algorithm,
                            size_t message_len) {
    if (status == HSM_MODULE_FATAL && ckr == CKR_HOST_MEMORY && quirks->memory_error_is_logout) {
        return HSM_NOT_LOGGED_IN;
    }
    if (quirks->sign_bytes == 0 || status == HSM_OK) {
        return status;
    }
    if (!hsm_algorithm_lookup(algorithm)->prehashed && message_len > quirks->sign_bytes) {
        return HSM_MESSAGE_REJECTED;
    }
    /* The key has signed before: the channel is out of step, or the module could not read the device's abilities. */
    return ckr == CKR_DATA_LEN_RANGE || ckr == CKR_MECHANISM_INVALID ? HSM_TOKEN_LOST : status;
}

const hsm_quirks *hsm_quirks_of_path(const char *path) {
    const char *slash = strrchr(path, '/');
    const char *file = slash != NULL ? slash + 1 : path;
    for (size_t i = 0; i < COUNT - 1; i++) {
        if (rows[i].file_contains != NULL && strstr(file, rows[i].file_contains) != NULL) {
            return &rows[i];
        }
    }
    return &rows[COUNT - 1];
}

static bool contains(const CK_UTF8CHAR *padded, size_t size, const char *word) {
    return memmem(padded, size, word, strlen(word)) != NULL;
}

const hsm_quirks *hsm_quirks_of_info(const CK_INFO *info) {
    for (size_t i = 0; i < COUNT - 1; i++) {
        if (contains(info->libraryDescription, sizeof info->libraryDescription, rows[i].library_contains) ||
            contains(info->manufacturerID, sizeof info->manufacturerID, rows[i].library_contains)) {
            return &rows[i];
        }
    }
    return &rows[COUNT - 1];
}
