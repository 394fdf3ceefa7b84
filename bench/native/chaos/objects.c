/* The wrappers that make objects, and the one that reads them: templates, mechanisms and handles as the vendor has
 * them. */
#include <string.h>

#include "chaos.h"

#define MAX_POINT 256U /* bytes of a CKA_EC_POINT */
#define MAX_ROWS 64U

/* The new object's handle, as the client is to know it. */
static CK_RV made(struct chaos_call *call, CK_RV rv, CK_OBJECT_HANDLE *object) {
    if (rv == CKR_OK && object != NULL) {
        chaos_handles_found(call, object, 1);
    }
    return chaos_leave(call, rv);
}

CK_RV chaos_C_CreateObject(CK_SESSION_HANDLE session, CK_ATTRIBUTE *templ, CK_ULONG count, CK_OBJECT_HANDLE *object) {
    struct chaos_call call = {.function = CHAOS_C_CreateObject, .handle = session};
    if (!chaos_enter(&call)) {
        return call.rv;
    }
    CK_RV rv = chaos_refused_template(&call, templ, count);
    return made(&call, rv == CKR_OK ? chaos_wrapped.C_CreateObject(session, templ, count, object) : rv, object);
}

CK_RV chaos_C_CopyObject(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object, CK_ATTRIBUTE *templ, CK_ULONG count,
                         CK_OBJECT_HANDLE *new_object) {
    struct chaos_call call = {.function = CHAOS_C_CopyObject, .handle = session};
    if (!chaos_enter(&call)) {
        return call.rv;
    }
    CK_RV rv = chaos_refused_template(&call, templ, count);
    if (rv == CKR_OK) {
        rv = chaos_wrapped.C_CopyObject(session, chaos_handle(&call, object), templ, count, new_object);
    }
    return made(&call, rv, new_object);
}

CK_RV chaos_C_GenerateKey(CK_SESSION_HANDLE session, CK_MECHANISM *mechanism, CK_ATTRIBUTE *templ, CK_ULONG count,
                          CK_OBJECT_HANDLE *key) {
    struct chaos_call call = {.function = CHAOS_C_GenerateKey, .handle = session};
    CK_MECHANISM own;
    if (!chaos_enter(&call)) {
        return call.rv;
    }
    CK_RV rv = chaos_refused_template(&call, templ, count);
    rv = rv == CKR_OK ? chaos_translated(&call, &mechanism, &own, templ, count) : rv;
    return made(&call, rv == CKR_OK ? chaos_wrapped.C_GenerateKey(session, mechanism, templ, count, key) : rv, key);
}

CK_RV chaos_C_GenerateKeyPair(CK_SESSION_HANDLE session, CK_MECHANISM *mechanism, CK_ATTRIBUTE *public_key_template,
                              CK_ULONG public_key_attribute_count, CK_ATTRIBUTE *private_key_template,
                              CK_ULONG private_key_attribute_count, CK_OBJECT_HANDLE *public_key,
                              CK_OBJECT_HANDLE *private_key) {
    struct chaos_call call = {.function = CHAOS_C_GenerateKeyPair, .handle = session};
    CK_MECHANISM own;
    if (!chaos_enter(&call)) {
        return call.rv;
    }
    CK_RV rv = chaos_refused_template(&call, public_key_template, public_key_attribute_count);
    rv = rv == CKR_OK ? chaos_refused_template(&call, private_key_template, private_key_attribute_count) : rv;
    rv = rv == CKR_OK ? chaos_translated(&call, &mechanism, &own, public_key_template, public_key_attribute_count) : rv;
    if (rv == CKR_OK) {
        rv =
            chaos_wrapped.C_GenerateKeyPair(session, mechanism, public_key_template, public_key_attribute_count,
                                            private_key_template, private_key_attribute_count, public_key, private_key);
    }
    if (rv == CKR_OK && public_key != NULL) {
        chaos_handles_found(&call, public_key, 1);
    }
    return made(&call, rv, private_key);
}

CK_RV chaos_C_WrapKey(CK_SESSION_HANDLE session, CK_MECHANISM *mechanism, CK_OBJECT_HANDLE wrapping_key,
                      CK_OBJECT_HANDLE key, CK_BYTE *wrapped_key, CK_ULONG *wrapped_key_len) {
    struct chaos_call call = {.function = CHAOS_C_WrapKey, .handle = session};
    CK_MECHANISM own;
    if (!chaos_enter(&call)) {
        return call.rv;
    }
    CK_RV rv = chaos_translated(&call, &mechanism, &own, NULL, 0);
    if (rv == CKR_OK) {
        rv = chaos_wrapped.C_WrapKey(session, mechanism, chaos_handle(&call, wrapping_key), chaos_handle(&call, key),
                                     wrapped_key, wrapped_key_len);
    }
    return chaos_leave(&call, rv);
}

CK_RV chaos_C_UnwrapKey(CK_SESSION_HANDLE session, CK_MECHANISM *mechanism, CK_OBJECT_HANDLE unwrapping_key,
                        CK_BYTE *wrapped_key, CK_ULONG wrapped_key_len, CK_ATTRIBUTE *templ, CK_ULONG attribute_count,
                        CK_OBJECT_HANDLE *key) {
    struct chaos_call call = {.function = CHAOS_C_UnwrapKey, .handle = session};
    CK_MECHANISM own;
    if (!chaos_enter(&call)) {
        return call.rv;
    }
    CK_RV rv = chaos_refused_template(&call, templ, attribute_count);
    rv = rv == CKR_OK ? chaos_translated(&call, &mechanism, &own, NULL, 0) : rv;
    if (rv == CKR_OK) {
        rv = chaos_wrapped.C_UnwrapKey(session, mechanism, chaos_handle(&call, unwrapping_key), wrapped_key,
                                       wrapped_key_len, templ, attribute_count, key);
    }
    return made(&call, rv, key);
}

CK_RV chaos_C_DeriveKey(CK_SESSION_HANDLE session, CK_MECHANISM *mechanism, CK_OBJECT_HANDLE base_key,
                        CK_ATTRIBUTE *templ, CK_ULONG attribute_count, CK_OBJECT_HANDLE *key) {
    struct chaos_call call = {.function = CHAOS_C_DeriveKey, .handle = session};
    CK_MECHANISM own;
    if (!chaos_enter(&call)) {
        return call.rv;
    }
    CK_RV rv = chaos_refused_template(&call, templ, attribute_count);
    rv = rv == CKR_OK ? chaos_translated(&call, &mechanism, &own, NULL, 0) : rv;
    if (rv == CKR_OK) {
        rv = chaos_wrapped.C_DeriveKey(session, mechanism, chaos_handle(&call, base_key), templ, attribute_count, key);
    }
    return made(&call, rv, key);
}

/* ---- reading ---- */

/* A DER OCTET STRING of less than 128 bytes, without its header. */
static void unwrap_point(const CK_BYTE *from, CK_ULONG length, CK_ATTRIBUTE *to) {
    if (length != CK_UNAVAILABLE_INFORMATION && length > 2 && from[0] == 0x04 && from[1] == length - 2) {
        from += 2;
        length -= 2;
    }
    if (length == CK_UNAVAILABLE_INFORMATION || (to->pValue != NULL && to->ulValueLen < length)) {
        to->ulValueLen = CK_UNAVAILABLE_INFORMATION;
        return;
    }
    if (to->pValue != NULL) {
        memcpy(to->pValue, from, length);
    }
    to->ulValueLen = length;
}

/* The wrapped module writes the points into memory of ours, because it needs more room than the client gave. */
static CK_RV read_raw_points(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object, CK_ATTRIBUTE *templ, CK_ULONG count) {
    CK_ATTRIBUTE rows[MAX_ROWS];
    CK_BYTE point[MAX_POINT] = {0};
    memcpy(rows, templ, count * sizeof *templ);
    for (CK_ULONG i = 0; i < count; i++) {
        if (rows[i].type == CKA_EC_POINT) {
            rows[i].pValue = point;
            rows[i].ulValueLen = sizeof point;
        }
    }
    CK_RV rv = chaos_wrapped.C_GetAttributeValue(session, object, rows, count);
    for (CK_ULONG i = 0; i < count; i++) {
        bool small = false;
        if (rows[i].type == CKA_EC_POINT) {
            unwrap_point(point, rows[i].ulValueLen, &templ[i]);
            small =
                rows[i].ulValueLen != CK_UNAVAILABLE_INFORMATION && templ[i].ulValueLen == CK_UNAVAILABLE_INFORMATION;
        } else {
            templ[i].ulValueLen = rows[i].ulValueLen;
        }
        rv = rv == CKR_OK && small ? CKR_BUFFER_TOO_SMALL : rv;
    }
    return rv;
}

CK_RV chaos_C_GetAttributeValue(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object, CK_ATTRIBUTE *templ,
                                CK_ULONG count) {
    struct chaos_call call = {.function = CHAOS_C_GetAttributeValue, .handle = session};
    if (!chaos_enter(&call)) {
        return call.rv;
    }
    CK_OBJECT_HANDLE real = chaos_handle(&call, object);
    bool raw = !call.plain && chaos_config.vendor.raw_points && templ != NULL && count <= MAX_ROWS;
    return chaos_leave(&call, raw ? read_raw_points(session, real, templ, count)
                                  : chaos_wrapped.C_GetAttributeValue(session, real, templ, count));
}
