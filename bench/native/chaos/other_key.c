/* Another key of the same kind, for the faults that put one in place of the right one.
 *
 * A key that the token has is taken first, because it is what a confused device would use. Else a session key pair is
 * made. All of it goes to the wrapped module on a session of its own, so that the client's operations stay as they
 * are. */
#include <string.h>

#include "chaos.h"

#define CANDIDATES 256

struct kind {
    CK_OBJECT_CLASS class_;
    CK_KEY_TYPE type;
    CK_BYTE params[128]; /* CKA_EC_PARAMS; empty for a key without */
    CK_ULONG params_len;
};

static bool kind_of(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE key, struct kind *kind) {
    memset(kind, 0, sizeof *kind);
    CK_ATTRIBUTE identity[] = {{CKA_CLASS, &kind->class_, sizeof kind->class_},
                               {CKA_KEY_TYPE, &kind->type, sizeof kind->type}};
    if (chaos_wrapped.C_GetAttributeValue(session, key, identity, 2) != CKR_OK) {
        return false;
    }
    CK_ATTRIBUTE params = {CKA_EC_PARAMS, kind->params, sizeof kind->params};
    if (chaos_wrapped.C_GetAttributeValue(session, key, &params, 1) == CKR_OK) {
        kind->params_len = params.ulValueLen;
    }
    return kind->class_ == CKO_PRIVATE_KEY || kind->class_ == CKO_SECRET_KEY;
}

/* A key that may not sign would be refused instead of signing wrongly. One that does not say may. */
static bool signs(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE key) {
    CK_BBOOL may = CK_TRUE;
    CK_ATTRIBUTE asked = {CKA_SIGN, &may, sizeof may};
    return chaos_wrapped.C_GetAttributeValue(session, key, &asked, 1) != CKR_OK || may == CK_TRUE;
}

/* Searched by class alone: some modules can't search by key type. */
static bool find_other(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE key, struct kind *kind, CK_OBJECT_HANDLE *other) {
    CK_OBJECT_HANDLE found[CANDIDATES];
    CK_ULONG count = 0;
    CK_ATTRIBUTE template = {CKA_CLASS, &kind->class_, sizeof kind->class_};
    if (chaos_wrapped.C_FindObjectsInit(session, &template, 1) != CKR_OK) {
        return false;
    }
    if (chaos_wrapped.C_FindObjects(session, found, CANDIDATES, &count) != CKR_OK) {
        count = 0;
    }
    (void)chaos_wrapped.C_FindObjectsFinal(session);
    for (CK_ULONG i = 0; i < count; i++) {
        struct kind candidate;
        if (found[i] != key && kind_of(session, found[i], &candidate) && candidate.type == kind->type &&
            candidate.params_len == kind->params_len && memcmp(candidate.params, kind->params, kind->params_len) == 0 &&
            signs(session, found[i])) {
            *other = found[i];
            return true;
        }
    }
    return false;
}

static bool make_other(CK_SESSION_HANDLE session, struct kind *kind, CK_OBJECT_HANDLE *public,
                       CK_OBJECT_HANDLE *other) {
    CK_BYTE yes = 1;
    CK_BYTE no = 0;
    CK_MECHANISM mechanism = {.mechanism =
                                  kind->type == CKK_EC_EDWARDS ? CKM_EC_EDWARDS_KEY_PAIR_GEN : CKM_EC_KEY_PAIR_GEN};
    CK_ATTRIBUTE of_public[] = {
        {CKA_TOKEN, &no, 1}, {CKA_VERIFY, &yes, 1}, {CKA_EC_PARAMS, kind->params, kind->params_len}};
    CK_ATTRIBUTE of_private[] = {{CKA_TOKEN, &no, 1}, {CKA_SIGN, &yes, 1}};
    return kind->params_len > 0 &&
           chaos_wrapped.C_GenerateKeyPair(session, &mechanism, of_public, 3, of_private, 2, public, other) == CKR_OK;
}

static bool open_session(const struct chaos_call *call, CK_SESSION_HANDLE *session) {
    return chaos_wrapped.C_OpenSession(call->slot->id, CKF_SERIAL_SESSION | CKF_RW_SESSION, NULL, NULL, session) ==
           CKR_OK;
}

bool chaos_other_key_find(const struct chaos_call *call, CK_OBJECT_HANDLE key, CK_OBJECT_HANDLE *other) {
    CK_SESSION_HANDLE session;
    CK_OBJECT_HANDLE public;
    struct kind kind;
    bool found = false, made = false;
    if (open_session(call, &session)) {
        if (kind_of(session, key, &kind)) {
            found = find_other(session, key, &kind, other);
            made = !found && make_other(session, &kind, &public, other);
        }
        if (!made) { /* a session key lives as long as its session: until C_Finalize */
            (void)chaos_wrapped.C_CloseSession(session);
        }
    }
    if (!found && !made) {
        chaos_fault_skip(call, ACTION_RECYCLE_HANDLE, "the token has no other key of that kind and makes none");
    }
    return found || made;
}

bool chaos_other_key_sign(const struct chaos_call *call, CK_BYTE *data, CK_ULONG data_len, CK_BYTE *signature,
                          CK_ULONG *signature_len) {
    const struct chaos_session *origin = call->session;
    if (origin == NULL || origin->key == CK_INVALID_HANDLE || !origin->plain_mechanism) {
        chaos_fault_skip(call, ACTION_OTHER_KEY_SIGNATURE, "the key is unknown or its mechanism has a parameter");
        return false;
    }
    CK_SESSION_HANDLE session;
    CK_OBJECT_HANDLE other;
    CK_OBJECT_HANDLE public;
    CK_MECHANISM mechanism = {.mechanism = origin->mechanism};
    struct kind kind;
    bool signed_ = false;
    if (open_session(call, &session)) {
        if (kind_of(session, origin->key, &kind) &&
            (find_other(session, origin->key, &kind, &other) || make_other(session, &kind, &public, &other))) {
            signed_ = chaos_wrapped.C_SignInit(session, &mechanism, other) == CKR_OK &&
                      chaos_wrapped.C_Sign(session, data, data_len, signature, signature_len) == CKR_OK;
        }
        (void)chaos_wrapped.C_CloseSession(session); /* takes the pair with it, if it was made */
    }
    if (!signed_) {
        chaos_fault_skip(call, ACTION_OTHER_KEY_SIGNATURE, "the token has no other key of that kind and makes none");
    }
    return signed_;
}
