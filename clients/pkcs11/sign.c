/* C_Sign and C_Verify, whole and in parts. Parts are kept until the last one: a gateway signs whole messages. */
#include <stdlib.h>
#include <string.h>

#include "p11.h"

enum { DIGEST = 32 }; /* bytes that CKM_ECDSA signs as they are: SHA-256's */

static CK_RV begin(CK_SESSION_HANDLE session, CK_MECHANISM *mechanism, CK_OBJECT_HANDLE object, unsigned which) {
    bool is_private = false;
    const struct p11_session *found = p11_session(session);
    struct p11_operation *operation = &p11_session(session)->operations[which];
    if (mechanism == NULL) { /* version 3: end what is active */
        p11_operation_end(operation);
        return CKR_OK;
    }
    if (operation->active) {
        return CKR_OPERATION_ACTIVE;
    }
    if (which == P11_VERIFY && !p11_ssl_load()) {
        return CKR_FUNCTION_NOT_SUPPORTED;
    }
    if (!p11_is_mechanism_of(P11_ED25519, mechanism->mechanism) &&
        !p11_is_mechanism_of(P11_P256, mechanism->mechanism)) {
        return CKR_MECHANISM_INVALID;
    }
    if (mechanism->ulParameterLen != 0) { /* Ed25519ph and a context are not signed */
        return CKR_MECHANISM_PARAM_INVALID;
    }
    const struct p11_key *key = p11_object(found->slot, object, &is_private);
    if (key == NULL) {
        return CKR_KEY_HANDLE_INVALID;
    }
    if (is_private != (which == P11_SIGN)) {
        return CKR_KEY_FUNCTION_NOT_PERMITTED;
    }
    if (!p11_is_mechanism_of(key->algorithm, mechanism->mechanism)) {
        return CKR_KEY_TYPE_INCONSISTENT;
    }
    *operation =
        (struct p11_operation){.active = true, .mechanism = mechanism->mechanism, .key = (unsigned)((object - 1) / 2)};
    return CKR_OK;
}

static CK_RV end(struct p11_operation *operation, CK_RV rv) {
    p11_operation_end(operation);
    return rv;
}

static CK_RV update(CK_SESSION_HANDLE session, const CK_BYTE *part, CK_ULONG len, unsigned which) {
    struct p11_operation *operation = &p11_session(session)->operations[which];
    if (!operation->active) {
        return CKR_OPERATION_NOT_INITIALIZED;
    }
    if (part == NULL && len > 0) {
        return end(operation, CKR_ARGUMENTS_BAD);
    }
    if (operation->mechanism == CKM_ECDSA) { /* of a single part, by the standard */
        return end(operation, CKR_FUNCTION_NOT_SUPPORTED);
    }
    if (len > P11_MESSAGE || operation->len + len > P11_MESSAGE) {
        return end(operation, CKR_DATA_LEN_RANGE);
    }
    if (operation->len + len > operation->room) {
        operation->room = 2 * (operation->len + len);
        uint8_t *more = realloc(operation->data, operation->room);
        if (more == NULL) {
            return end(operation, CKR_HOST_MEMORY);
        }
        operation->data = more;
    }
    if (len > 0) {
        memcpy(operation->data + operation->len, part, len);
    }
    operation->len += len;
    operation->parted = true;
    return CKR_OK;
}

/* The last call of an operation, which ends it before it waits. `parts`: `data` is what C_SignUpdate kept. */
static CK_RV complete(CK_SESSION_HANDLE session, bool parts, const CK_BYTE *data, CK_ULONG len, CK_BYTE *signature,
                      CK_ULONG *signature_len, unsigned which) {
    struct p11_operation *operation = &p11_session(session)->operations[which];
    bool signs = which == P11_SIGN;
    if (!operation->active) {
        return CKR_OPERATION_NOT_INITIALIZED;
    }
    if (signature_len == NULL || (!signs && signature == NULL) || (!parts && data == NULL && len > 0)) {
        return end(operation, CKR_ARGUMENTS_BAD);
    }
    if (!parts && operation->parted) { /* C_SignFinal ends it */
        return end(operation, CKR_OPERATION_ACTIVE);
    }
    if (signs && (signature == NULL || *signature_len < P11_SIGNATURE)) {
        *signature_len = P11_SIGNATURE;
        return signature == NULL ? CKR_OK : CKR_BUFFER_TOO_SMALL;
    }
    if (!signs && *signature_len != P11_SIGNATURE) {
        return end(operation, CKR_SIGNATURE_LEN_RANGE);
    }
    const struct p11_operation taken = *operation;
    const struct p11_key key = p11_keys[taken.key];
    bool digest = taken.mechanism == CKM_ECDSA;
    bool checks = !signs || p11_config.verify;
    data = parts ? taken.data : data;
    len = parts ? taken.len : len;
    if (digest && len != DIGEST) {
        return end(operation, CKR_DATA_LEN_RANGE);
    }
    *operation = (struct p11_operation){.active = false};
    uint8_t made[P11_SIGNATURE];
    CK_RV rv = signs ? p11_link_sign(taken.key, digest ? P11_PREHASHED : 0, data, len, made) : p11_leave(CKR_OK);
    if (rv == CKR_OK && checks && !p11_verify(&key, data, len, digest, signs ? made : signature)) {
        rv = signs ? CKR_DEVICE_ERROR : CKR_SIGNATURE_INVALID;
    }
    if (rv == CKR_OK && signs) {
        memcpy(signature, made, sizeof made);
        *signature_len = sizeof made;
    }
    free(taken.data);
    return rv | P11_LEFT;
}

#define OPERATION(Name, which)                                                                                         \
    CK_RV p11_C_##Name##Init(CK_SESSION_HANDLE session, CK_MECHANISM *mechanism, CK_OBJECT_HANDLE key) {               \
        return begin(session, mechanism, key, which);                                                                  \
    }                                                                                                                  \
    CK_RV p11_C_##Name##Update(CK_SESSION_HANDLE session, CK_BYTE *part, CK_ULONG len) {                               \
        return update(session, part, len, which);                                                                      \
    }
OPERATION(Sign, P11_SIGN)
OPERATION(Verify, P11_VERIFY)

CK_RV p11_C_Sign(CK_SESSION_HANDLE session, CK_BYTE *data, CK_ULONG len, CK_BYTE *signature, CK_ULONG *signature_len) {
    return complete(session, false, data, len, signature, signature_len, P11_SIGN);
}

CK_RV p11_C_SignFinal(CK_SESSION_HANDLE session, CK_BYTE *signature, CK_ULONG *signature_len) {
    return complete(session, true, NULL, 0, signature, signature_len, P11_SIGN);
}

CK_RV p11_C_Verify(CK_SESSION_HANDLE session, CK_BYTE *data, CK_ULONG len, CK_BYTE *signature, CK_ULONG signature_len) {
    return complete(session, false, data, len, signature, &signature_len, P11_VERIFY);
}

CK_RV p11_C_VerifyFinal(CK_SESSION_HANDLE session, CK_BYTE *signature, CK_ULONG signature_len) {
    return complete(session, true, NULL, 0, signature, &signature_len, P11_VERIFY);
}
