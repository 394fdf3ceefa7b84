/* The wrappers that must look at a call's arguments or results. */
#include <stdlib.h>
#include <string.h>

#include "chaos.h"

static bool any_absent(void) {
    for (struct chaos_slot *slot = chaos_slot_first(); slot != NULL; slot = slot->next) {
        if (chaos_slot_absent(slot)) {
            return true;
        }
    }
    return false;
}

/* The slots, less those that are not shown and, of those with a token, the ones whose token is gone for a while. */
static CK_RV listed_slots(CK_BYTE token_present, CK_SLOT_ID *list, CK_ULONG *count) {
    CK_ULONG total = 0;
    CK_ULONG present = 0;
    CK_RV rv = chaos_wrapped.C_GetSlotList(token_present, NULL, &total);
    CK_SLOT_ID *slots = calloc(total + 1, sizeof *slots);
    if (slots == NULL) {
        return CKR_HOST_MEMORY;
    }
    if (rv == CKR_OK) {
        rv = chaos_wrapped.C_GetSlotList(token_present, slots, &total);
    }
    for (CK_ULONG i = 0; rv == CKR_OK && i < total; i++) {
        bool hidden = chaos_config.vendor.slot_count > 0 && chaos_slot_info_of(slots[i]) == NULL;
        if (!hidden && (!token_present || !chaos_slot_absent(chaos_slot_of(slots[i])))) {
            slots[present++] = slots[i];
        }
    }
    if (rv == CKR_OK && list != NULL && *count < present) {
        rv = CKR_BUFFER_TOO_SMALL;
    }
    for (CK_ULONG i = 0; rv == CKR_OK && list != NULL && i < present; i++) {
        list[i] = slots[i];
    }
    if (rv == CKR_OK || rv == CKR_BUFFER_TOO_SMALL) {
        *count = present;
    }
    free(slots);
    return rv;
}

CK_RV chaos_C_GetSlotList(CK_BYTE token_present, CK_SLOT_ID *slot_list, CK_ULONG *count) {
    struct chaos_call call = {.function = CHAOS_C_GetSlotList, .query = slot_list == NULL};
    if (!chaos_enter(&call)) {
        return call.rv;
    }
    bool filtered =
        !call.plain && count != NULL && (chaos_config.vendor.slot_count > 0 || (token_present && any_absent()));
    return chaos_leave(&call, filtered ? listed_slots(token_present, slot_list, count)
                                       : chaos_wrapped.C_GetSlotList(token_present, slot_list, count));
}

CK_RV chaos_C_GetSlotInfo(CK_SLOT_ID slot, CK_SLOT_INFO *info) {
    struct chaos_call call = {.function = CHAOS_C_GetSlotInfo, .slot_id = slot};
    if (!chaos_enter(&call)) {
        return call.rv;
    }
    CK_RV rv = chaos_wrapped.C_GetSlotInfo(slot, info);
    if (rv == CKR_OK && !call.plain) {
        if (chaos_slot_absent(call.slot)) {
            info->flags &= ~CKF_TOKEN_PRESENT;
        }
        chaos_show_slot(chaos_slot_info_of(slot), info);
    }
    return chaos_leave(&call, rv);
}

/* ---- sessions ---- */

/* A module may give the number of a dead session to a new one; a client that still holds the dead one would then use
 * the new one. Such sessions are put aside until one has a number that no client holds. */
static CK_RV open_fresh(CK_SLOT_ID slot, CK_FLAGS flags, void *application, CK_NOTIFY notify,
                        CK_SESSION_HANDLE *handle) {
    CK_SESSION_HANDLE aside[64];
    size_t count = 0;
    CK_RV rv = chaos_wrapped.C_OpenSession(slot, flags, application, notify, handle);
    while (rv == CKR_OK && chaos_session_known(*handle) && count < sizeof aside / sizeof aside[0]) {
        aside[count++] = *handle;
        rv = chaos_wrapped.C_OpenSession(slot, flags, application, notify, handle);
    }
    while (count > 0) {
        (void)chaos_wrapped.C_CloseSession(aside[--count]);
    }
    return rv;
}

/* Makes it ours. A token that went while the session was opened took it along. */
static CK_RV adopt(const struct chaos_call *call, CK_SESSION_HANDLE handle) {
    if (!chaos_session_add(handle, call->slot)) {
        (void)chaos_wrapped.C_CloseSession(handle);
        return CKR_HOST_MEMORY;
    }
    if (atomic_load(&call->slot->removals) == call->removals) {
        return CKR_OK;
    }
    struct chaos_session *session = chaos_session_pin(handle);
    if (session != NULL) {
        chaos_session_kill(session);
        chaos_session_unpin(session);
    }
    return CKR_TOKEN_NOT_PRESENT;
}

CK_RV chaos_C_OpenSession(CK_SLOT_ID slot, CK_FLAGS flags, void *application, CK_NOTIFY notify,
                          CK_SESSION_HANDLE *handle) {
    struct chaos_call call = {.function = CHAOS_C_OpenSession, .slot_id = slot};
    if (!chaos_enter(&call)) {
        return call.rv;
    }
    if (call.plain || handle == NULL) {
        return chaos_leave(&call, chaos_wrapped.C_OpenSession(slot, flags, application, notify, handle));
    }
    CK_RV rv = chaos_refused_session(&call, flags);
    if (rv == CKR_OK) {
        rv = open_fresh(slot, flags, application, notify, handle);
    }
    return chaos_leave(&call, rv == CKR_OK ? adopt(&call, *handle) : rv);
}

CK_RV chaos_C_CloseSession(CK_SESSION_HANDLE session) {
    struct chaos_call call = {.function = CHAOS_C_CloseSession, .handle = session};
    if (!chaos_enter(&call)) {
        chaos_session_forget(session); /* of a dead session the client gives the number up */
        return call.rv;
    }
    CK_RV rv = chaos_wrapped.C_CloseSession(session);
    if (rv == CKR_OK && call.session != NULL) {
        chaos_session_closed(call.session);
    }
    return chaos_leave(&call, rv);
}

CK_RV chaos_C_CloseAllSessions(CK_SLOT_ID slot) {
    struct chaos_call call = {.function = CHAOS_C_CloseAllSessions, .slot_id = slot};
    if (!chaos_enter(&call)) {
        return call.rv;
    }
    CK_RV rv = chaos_wrapped.C_CloseAllSessions(slot);
    if (rv == CKR_OK && !call.plain) {
        chaos_sessions_closed(call.slot);
    }
    return chaos_leave(&call, rv);
}

/* Some modules number an object when it is found. Private keys come first, so that the only one of a token has the same
 * number each time, in whichever order the module finds objects. */
static void number_objects(CK_SESSION_HANDLE session) {
    CK_OBJECT_CLASS class_ = CKO_PRIVATE_KEY;
    CK_ATTRIBUTE private_keys = {CKA_CLASS, &class_, sizeof class_};
    for (int everything = 0; everything < 2; everything++) {
        CK_OBJECT_HANDLE found[64];
        CK_ULONG count = 1;
        if (chaos_wrapped.C_FindObjectsInit(session, &private_keys, everything ? 0 : 1) == CKR_OK) {
            while (count > 0 && chaos_wrapped.C_FindObjects(session, found, 64, &count) == CKR_OK) {
            }
            (void)chaos_wrapped.C_FindObjectsFinal(session);
        }
    }
}

CK_RV chaos_C_Login(CK_SESSION_HANDLE session, CK_USER_TYPE user_type, CK_BYTE *pin, CK_ULONG pin_len) {
    struct chaos_call call = {.function = CHAOS_C_Login, .handle = session};
    if (!chaos_enter(&call)) {
        return call.rv;
    }
    if (call.plain || chaos_config.vendor.user_count == 0) {
        return chaos_leave(&call, chaos_wrapped.C_Login(session, user_type, pin, pin_len));
    }
    const struct chaos_user *user = chaos_user_of(pin, pin_len);
    if (user == NULL) {
        return chaos_leave(&call, CKR_PIN_INCORRECT);
    }
    CK_BYTE real[CHAOS_PIN];
    size_t length = strlen(user->token_pin);
    memcpy(real, user->token_pin, length);
    CK_RV rv = chaos_wrapped.C_Login(session, user_type, real, length);
    explicit_bzero(real, sizeof real);
    if (rv == CKR_OK) {
        atomic_store(&call.slot->user, user);
        if (chaos_config.vendor.handles_at_login) {
            number_objects(session);
        }
    }
    return chaos_leave(&call, rv);
}

CK_RV chaos_C_Logout(CK_SESSION_HANDLE session) {
    struct chaos_call call = {.function = CHAOS_C_Logout, .handle = session};
    if (!chaos_enter(&call)) {
        return call.rv;
    }
    CK_RV rv = chaos_wrapped.C_Logout(session);
    if (rv == CKR_OK && !call.plain) {
        atomic_store(&call.slot->user, NULL);
    }
    return chaos_leave(&call, rv);
}

/* ---- objects ---- */

CK_RV chaos_C_FindObjects(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE *object, CK_ULONG max_object_count,
                          CK_ULONG *object_count) {
    struct chaos_call call = {.function = CHAOS_C_FindObjects, .handle = session};
    if (!chaos_enter(&call)) {
        return call.rv;
    }
    CK_RV rv = chaos_wrapped.C_FindObjects(session, object, max_object_count, object_count);
    if (rv == CKR_OK) {
        chaos_handles_found(&call, object, *object_count);
    }
    for (CK_ULONG i = 0; rv == CKR_OK && call.altered && i < *object_count; i++) {
        CK_OBJECT_HANDLE other;
        if (chaos_other_key_find(&call, chaos_handle(&call, object[i]), &other)) {
            chaos_handle_recycle(&call, object[i], other);
        }
    }
    return chaos_leave(&call, rv);
}

/* ---- signatures ---- */

CK_RV chaos_C_SignInit(CK_SESSION_HANDLE session, CK_MECHANISM *mechanism, CK_OBJECT_HANDLE key) {
    struct chaos_call call = {.function = CHAOS_C_SignInit, .handle = session, .object = key};
    if (!chaos_enter(&call)) {
        return call.rv;
    }
    CK_OBJECT_HANDLE real = chaos_handle(&call, key);
    CK_MECHANISM own;
    CK_RV rv = chaos_translated(&call, &mechanism, &own, NULL, 0);
    rv = rv == CKR_OK ? chaos_wrapped.C_SignInit(session, mechanism, real) : rv;
    if (rv == CKR_OK && call.session != NULL && mechanism != NULL) {
        call.session->mechanism = mechanism->mechanism;
        call.session->plain_mechanism = mechanism->ulParameterLen == 0;
        call.session->key = real;
        call.session->given_key = key;
    }
    return chaos_leave(&call, rv);
}

CK_RV chaos_C_Sign(CK_SESSION_HANDLE session, CK_BYTE *data, CK_ULONG data_len, CK_BYTE *signature,
                   CK_ULONG *signature_len) {
    struct chaos_call call = {
        .function = CHAOS_C_Sign, .handle = session, .size = data_len, .query = signature == NULL};
    if (!chaos_enter(&call)) {
        return call.rv;
    }
    CK_ULONG room = signature_len != NULL ? *signature_len : 0;
    CK_RV rv = chaos_wrapped.C_Sign(session, data, data_len, signature, signature_len);
    if (rv == CKR_OK && call.altered) {
        chaos_alter_signature(&call, data, data_len, signature, signature_len, room);
    }
    return chaos_leave(&call, rv);
}

CK_RV chaos_C_SignFinal(CK_SESSION_HANDLE session, CK_BYTE *signature, CK_ULONG *signature_len) {
    struct chaos_call call = {.function = CHAOS_C_SignFinal, .handle = session, .query = signature == NULL};
    if (!chaos_enter(&call)) {
        return call.rv;
    }
    CK_ULONG room = signature_len != NULL ? *signature_len : 0;
    CK_RV rv = chaos_wrapped.C_SignFinal(session, signature, signature_len);
    if (rv == CKR_OK && call.altered) {
        chaos_alter_signature(&call, NULL, 0, signature, signature_len, room);
    }
    return chaos_leave(&call, rv);
}
