/* Tokens and sessions, as modules present them. */
#include "token.h"

#include <pthread.h>
#include <string.h>

void hsm_copy_padded(char *out, size_t out_size, const CK_UTF8CHAR *field, size_t size) {
    while (size > 0 && (field[size - 1] == ' ' || field[size - 1] == '\0')) {
        size--;
    }
    size_t length = size < out_size - 1U ? size : out_size - 1U;
    memcpy(out, field, length);
    out[length] = '\0';
}

static bool matches(const hsm_token_selector *selector, CK_SLOT_ID slot, const hsm_token_info *info) {
    return (selector->label == NULL || strcmp(selector->label, info->label) == 0) &&
           (selector->serial == NULL || strcmp(selector->serial, info->serial) == 0) &&
           (selector->slot_id < 0 || (CK_SLOT_ID)selector->slot_id == slot);
}

static void describe(const hsm_token_selector *selector, char *text, size_t size) {
    text[0] = '\0';
    hsm_append(text, size, "token");
    if (selector->label != NULL) {
        hsm_append(text, size, " labelled '%s'", selector->label);
    }
    if (selector->serial != NULL) {
        hsm_append(text, size, " with serial %s", selector->serial);
    }
    if (selector->slot_id >= 0) {
        hsm_append(text, size, " in slot %lld", (long long)selector->slot_id);
    }
}

static CK_RV read_token(CK_FUNCTION_LIST *p11, CK_SLOT_ID slot, hsm_token_info *info) {
    CK_TOKEN_INFO token = {0};
    CK_RV rv = p11->C_GetTokenInfo(slot, &token);
    if (rv != CKR_OK) {
        return rv;
    }
    memset(info, 0, sizeof *info);
    info->slot_id = slot;
    info->flags = token.flags;
    info->max_sessions = token.ulMaxSessionCount == CK_UNAVAILABLE_INFORMATION ? 0 : token.ulMaxSessionCount;
    hsm_copy_padded(info->label, sizeof info->label, token.label, sizeof token.label);
    hsm_copy_padded(info->serial, sizeof info->serial, token.serialNumber, sizeof token.serialNumber);
    hsm_copy_padded(info->manufacturer, sizeof info->manufacturer, token.manufacturerID, sizeof token.manufacturerID);
    hsm_copy_padded(info->model, sizeof info->model, token.model, sizeof token.model);
    return CKR_OK;
}

static hsm_status choose(CK_FUNCTION_LIST *p11, const CK_SLOT_ID *slots, CK_ULONG count,
                         const hsm_token_selector *selector, hsm_token_info *info, hsm_error *error) {
    char wanted[160];
    char seen[120] = "";
    unsigned found = 0;
    describe(selector, wanted, sizeof wanted);
    for (CK_ULONG i = 0; i < count; i++) {
        hsm_token_info candidate;
        /* A slot whose token does not answer is no candidate. */
        if (read_token(p11, slots[i], &candidate) != CKR_OK) {
            continue;
        }
        if (matches(selector, slots[i], &candidate)) {
            *info = candidate;
            found++;
        } else if ((candidate.flags & CKF_TOKEN_INITIALIZED) != 0) {
            hsm_append(seen, sizeof seen, "%s'%.32s'", seen[0] == '\0' ? "" : ", ", candidate.label);
        }
    }
    if (found == 1) {
        return HSM_OK;
    }
    if (found > 1) {
        return hsm_fail(error, HSM_TOKEN_AMBIGUOUS, "C_GetSlotList", "%u slots hold a %s; add serial or slot", found,
                        wanted);
    }
    return hsm_fail(error, HSM_TOKEN_NOT_FOUND, "C_GetSlotList", "no %s%s%s", wanted,
                    seen[0] != '\0' ? "; present: " : "; no initialized token is present", seen);
}

/* Choose among the slots, of which there are at most `room`. Returns C_GetSlotList's answer; if that is CKR_OK,
 * `*status` counts. */
static CK_RV choose_listed(CK_FUNCTION_LIST *p11, CK_ULONG room, const hsm_token_selector *selector,
                           hsm_token_info *info, hsm_status *status, hsm_error *error) {
    CK_SLOT_ID *slots = hsm_alloc(room * sizeof *slots);
    if (slots == NULL) {
        *status = hsm_fail(error, HSM_OUT_OF_MEMORY, "", "slot list");
        return CKR_OK;
    }
    CK_ULONG filled = room;
    CK_RV rv;
    pthread_cleanup_push(hsm_free, slots); /* a module may end its thread in a call */
    rv = p11->C_GetSlotList(CK_TRUE, slots, &filled);
    if (rv == CKR_OK) {
        *status = choose(p11, slots, filled <= room ? filled : room, selector, info, error);
    }
    pthread_cleanup_pop(1);
    return rv;
}

hsm_status hsm_token_find(CK_FUNCTION_LIST *p11, const hsm_token_selector *selector, hsm_token_info *info,
                          hsm_error *error) {
    /* The list may grow between the size query and the read (a token is plugged in), hence the second attempt. */
    for (int attempt = 0; attempt < 2; attempt++) {
        CK_ULONG count = 0;
        CK_RV rv = p11->C_GetSlotList(CK_TRUE, NULL, &count);
        if (rv != CKR_OK) {
            return hsm_fail_ckr(error, rv, "C_GetSlotList", "looking for the token");
        }
        if (count > 65536) {
            return hsm_fail(error, HSM_MODULE_INVALID, "C_GetSlotList", "the module claims %lu slots", count);
        }
        hsm_status status = HSM_OK;
        rv = choose_listed(p11, count + 1, selector, info, &status, error);
        if (rv == CKR_OK) {
            return status;
        }
        if (rv != CKR_BUFFER_TOO_SMALL) {
            return hsm_fail_ckr(error, rv, "C_GetSlotList", "looking for the token");
        }
    }
    return hsm_fail(error, HSM_TOKEN_LOST, "C_GetSlotList", "the list of slots keeps changing");
}

hsm_status hsm_session_open(CK_FUNCTION_LIST *p11, CK_SLOT_ID slot, bool read_write, CK_SESSION_HANDLE *session,
                            hsm_error *error) {
    CK_FLAGS flags = CKF_SERIAL_SESSION | (read_write ? CKF_RW_SESSION : 0);
    *session = CK_INVALID_HANDLE; /* not that of an earlier session, if the module writes none */
    CK_RV rv = p11->C_OpenSession(slot, flags, NULL, NULL, session);
    if (rv != CKR_OK) {
        return hsm_fail_ckr(error, rv, "C_OpenSession", "slot %lu", slot);
    }
    hsm_count(HSM_RESOURCE_SESSION, 1);
    return HSM_OK;
}

void hsm_session_close(CK_FUNCTION_LIST *p11, CK_SESSION_HANDLE session) {
    hsm_count(HSM_RESOURCE_SESSION, -1);
    (void)p11->C_CloseSession(session);
}

hsm_status hsm_token_login(CK_FUNCTION_LIST *p11, CK_SLOT_ID slot, CK_SESSION_HANDLE session, const uint8_t *pin,
                           size_t pin_len, bool *already, hsm_error *error) {
    *already = false;
    CK_TOKEN_INFO token = {0};
    CK_RV rv = p11->C_GetTokenInfo(slot, &token);
    if (rv != CKR_OK) {
        return hsm_fail_ckr(error, rv, "C_GetTokenInfo", "before login");
    }
    if ((token.flags & CKF_USER_PIN_LOCKED) != 0) {
        return hsm_fail(error, HSM_PIN_LOCKED, "C_Login", "no attempt was made: the token says that the PIN is locked");
    }
    if ((token.flags & CKF_USER_PIN_FINAL_TRY) != 0) {
        return hsm_fail(error, HSM_PIN_LOCKED, "C_Login",
                        "no attempt was made: the token says that a wrong PIN would lock it; log in once by hand");
    }
    /* The standard takes a non-const pointer but only reads it. */
    rv = p11->C_Login(session, CKU_USER, (CK_UTF8CHAR_PTR)(uintptr_t)pin, pin_len);
    if (rv == CKR_USER_ALREADY_LOGGED_IN) {
        *already = true;
        return HSM_OK;
    }
    return rv == CKR_OK ? HSM_OK : hsm_fail_ckr(error, rv, "C_Login", "token login");
}
