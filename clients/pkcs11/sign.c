/* C_Sign and C_Verify, whole and in parts. Parts are kept until the last one: a gateway signs whole messages. */
#include <stdlib.h>
#include <string.h>

#include "p11.h"

enum { DIGEST = 32 }; /* bytes that CKM_ECDSA signs as they are: SHA-256's */

static CK_RV begin(CK_SESSION_HANDLE handle, CK_MECHANISM *mechanism, CK_OBJECT_HANDLE object, unsigned which) {
    bool is_private = false;
    P11_ENTER(handle)
    struct p11_operation *operation = &session->operations[which];
    if (mechanism == NULL) { /* version 3: end what is active */
        p11_operation_end(operation);
        return p11_leave(CKR_OK);
    }
    if (operation->active) {
        return p11_leave(CKR_OPERATION_ACTIVE);
    }
    if (which == P11_VERIFY && !p11_crypto_load()) {
        return p11_leave(CKR_FUNCTION_NOT_SUPPORTED);
    }
    if (!p11_is_mechanism_of(P11_ED25519, mechanism->mechanism) &&
        !p11_is_mechanism_of(P11_P256, mechanism->mechanism)) {
        return p11_leave(CKR_MECHANISM_INVALID);
    }
    if (mechanism->ulParameterLen != 0) { /* Ed25519ph and a context are not signed */
        return p11_leave(CKR_MECHANISM_PARAM_INVALID);
    }
    const struct p11_key *key = p11_object(session->slot, object, &is_private);
    if (key == NULL) {
        return p11_leave(CKR_KEY_HANDLE_INVALID);
    }
    if (is_private != (which == P11_SIGN)) {
        return p11_leave(CKR_KEY_FUNCTION_NOT_PERMITTED);
    }
    if (!p11_is_mechanism_of(key->algorithm, mechanism->mechanism)) {
        return p11_leave(CKR_KEY_TYPE_INCONSISTENT);
    }
    *operation =
        (struct p11_operation){.active = true, .mechanism = mechanism->mechanism, .key = (unsigned)((object - 1) / 2)};
    return p11_leave(CKR_OK);
}

/* The operation of a call that goes on, or what is wrong; the lock is taken then. */
static CK_RV go_on(CK_SESSION_HANDLE handle, unsigned which, struct p11_operation **operation) {
    P11_ENTER(handle)
    *operation = &session->operations[which];
    if (!(*operation)->active) {
        return p11_leave(CKR_OPERATION_NOT_INITIALIZED);
    }
    return (*operation)->busy ? p11_leave(CKR_OPERATION_ACTIVE) : CKR_OK;
}

/* End the operation and give up the lock. */
static CK_RV end(struct p11_operation *operation, CK_RV rv) {
    p11_operation_end(operation);
    return p11_leave(rv);
}

static CK_RV update(CK_SESSION_HANDLE handle, unsigned which, const CK_BYTE *part, CK_ULONG len) {
    struct p11_operation *operation;
    CK_RV rv = go_on(handle, which, &operation);
    if (rv != CKR_OK) {
        return rv;
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
        size_t room = 2 * (operation->len + len);
        uint8_t *more = realloc(operation->data, room);
        if (more == NULL) {
            return end(operation, CKR_HOST_MEMORY);
        }
        operation->data = more;
        operation->room = room;
    }
    if (len > 0) {
        memcpy(operation->data + operation->len, part, len);
    }
    operation->len += len;
    operation->parted = true;
    return p11_leave(CKR_OK);
}

static CK_RV wrong_length(const struct p11_operation *operation, size_t len) {
    return operation->mechanism == CKM_ECDSA && len != DIGEST ? CKR_DATA_LEN_RANGE : CKR_OK;
}

static bool check(unsigned place, bool digest, const CK_BYTE *data, size_t len, const uint8_t *signature) {
    struct p11_key key = p11_keys[place]; /* others may make the list longer */
    (void)pthread_mutex_unlock(&p11_lock);
    bool good = p11_verify(key.algorithm, key.public_key, data, len, digest, signature);
    (void)pthread_mutex_lock(&p11_lock);
    return good;
}

/* With the lock, and `operation` busy: it may be gone afterwards, with its session. `data` is the caller's, or was taken
 * out of the operation. */
static CK_RV sign(unsigned key, bool digest, const CK_BYTE *data, size_t len, uint8_t made[P11_SIGNATURE]) {
    CK_RV rv = p11_link_sign(key, digest ? P11_PREHASHED : 0, data, len, made);
    if (rv == CKR_OK && p11_config.verify && !check(key, digest, data, len, made)) {
        p11_log("a signature that does not verify under %s", p11_slots[p11_keys[key].slot].name);
        rv = CKR_DEVICE_ERROR;
    }
    return rv;
}

/* `data`: all of it, or NULL with `parts`. */
static CK_RV sign_all(CK_SESSION_HANDLE handle, bool parts, const CK_BYTE *data, CK_ULONG len, CK_BYTE *signature,
                      CK_ULONG *signature_len) {
    struct p11_operation *operation;
    CK_RV rv = go_on(handle, P11_SIGN, &operation);
    if (rv != CKR_OK) {
        return rv;
    }
    if (signature_len == NULL || (!parts && data == NULL && len > 0)) {
        return end(operation, CKR_ARGUMENTS_BAD);
    }
    if (!parts && operation->parted) {
        return end(operation, CKR_OPERATION_ACTIVE); /* C_SignFinal ends it */
    }
    if (signature == NULL || *signature_len < P11_SIGNATURE) {
        rv = signature == NULL ? CKR_OK : CKR_BUFFER_TOO_SMALL;
        *signature_len = P11_SIGNATURE;
        return p11_leave(rv);
    }
    len = parts ? operation->len : len;
    rv = wrong_length(operation, len);
    if (rv != CKR_OK) {
        return end(operation, rv);
    }
    uint8_t made[P11_SIGNATURE];
    uint8_t *kept = operation->data;
    operation->data = NULL;
    operation->busy = true;
    rv = sign(operation->key, operation->mechanism == CKM_ECDSA, parts ? kept : data, len, made);
    free(kept);
    struct p11_session *session = p11_initialized ? p11_session_again(handle) : NULL;
    if (session != NULL) {
        p11_operation_end(&session->operations[P11_SIGN]);
    }
    if (rv == CKR_OK) {
        memcpy(signature, made, sizeof made);
        *signature_len = sizeof made;
    }
    return p11_leave(rv);
}

static CK_RV verify_all(CK_SESSION_HANDLE handle, bool parts, const CK_BYTE *data, CK_ULONG len,
                        const CK_BYTE *signature, CK_ULONG signature_len) {
    struct p11_operation *operation;
    CK_RV rv = go_on(handle, P11_VERIFY, &operation);
    if (rv != CKR_OK) {
        return rv;
    }
    if (signature == NULL || (!parts && data == NULL && len > 0)) {
        return end(operation, CKR_ARGUMENTS_BAD);
    }
    if (!parts && operation->parted) {
        return end(operation, CKR_OPERATION_ACTIVE);
    }
    len = parts ? operation->len : len;
    rv = signature_len != P11_SIGNATURE ? CKR_SIGNATURE_LEN_RANGE : wrong_length(operation, len);
    if (rv != CKR_OK) {
        return end(operation, rv);
    }
    struct p11_operation taken = *operation;
    operation->data = NULL;
    p11_operation_end(operation);
    bool good = check(taken.key, taken.mechanism == CKM_ECDSA, parts ? taken.data : data, len, signature);
    free(taken.data);
    return p11_leave(good ? CKR_OK : CKR_SIGNATURE_INVALID);
}

CK_RV p11_SignInit(CK_SESSION_HANDLE handle, CK_MECHANISM *mechanism, CK_OBJECT_HANDLE key) {
    return begin(handle, mechanism, key, P11_SIGN);
}

CK_RV p11_Sign(CK_SESSION_HANDLE handle, CK_BYTE *data, CK_ULONG len, CK_BYTE *signature, CK_ULONG *signature_len) {
    return sign_all(handle, false, data, len, signature, signature_len);
}

CK_RV p11_SignUpdate(CK_SESSION_HANDLE handle, CK_BYTE *part, CK_ULONG len) {
    return update(handle, P11_SIGN, part, len);
}

CK_RV p11_SignFinal(CK_SESSION_HANDLE handle, CK_BYTE *signature, CK_ULONG *signature_len) {
    return sign_all(handle, true, NULL, 0, signature, signature_len);
}

CK_RV p11_VerifyInit(CK_SESSION_HANDLE handle, CK_MECHANISM *mechanism, CK_OBJECT_HANDLE key) {
    return begin(handle, mechanism, key, P11_VERIFY);
}

CK_RV p11_Verify(CK_SESSION_HANDLE handle, CK_BYTE *data, CK_ULONG len, CK_BYTE *signature, CK_ULONG signature_len) {
    return verify_all(handle, false, data, len, signature, signature_len);
}

CK_RV p11_VerifyUpdate(CK_SESSION_HANDLE handle, CK_BYTE *part, CK_ULONG len) {
    return update(handle, P11_VERIFY, part, len);
}

CK_RV p11_VerifyFinal(CK_SESSION_HANDLE handle, CK_BYTE *signature, CK_ULONG signature_len) {
    return verify_all(handle, true, NULL, 0, signature, signature_len);
}
