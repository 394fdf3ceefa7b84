/* The two objects of the no-op token, their attributes, and the calls that find and read them. */
#include "noop_objects.h"

#include <string.h>

#include "noop_session.h"

static const CK_BYTE yes = 1, no = 0, key_id = 1;
static const CK_ULONG class_public = CKO_PUBLIC_KEY, class_private = CKO_PRIVATE_KEY, key_type = CKK_EC_EDWARDS;
static const CK_ULONG generated_by = CKM_EC_EDWARDS_KEY_PAIR_GEN;
static const CK_BYTE ec_params[] = {0x06, 0x03, 0x2b, 0x65, 0x70}; /* id-Ed25519, RFC 8410 section 3 */
static CK_BYTE ec_point[2 + 32] = {0x04, 32};
static const char key_label[] = "noop-key";

#define PUBLIC 1U
#define PRIVATE 2U
static const struct {
    CK_ATTRIBUTE_TYPE type;
    unsigned objects;
    const void *value;
    CK_ULONG size;
} attributes[] = {
    {CKA_CLASS, PUBLIC, &class_public, sizeof class_public},
    {CKA_CLASS, PRIVATE, &class_private, sizeof class_private},
    {CKA_TOKEN, PUBLIC | PRIVATE, &yes, 1},
    {CKA_PRIVATE, PUBLIC, &no, 1},
    {CKA_PRIVATE, PRIVATE, &yes, 1},
    {CKA_MODIFIABLE, PUBLIC | PRIVATE, &no, 1},
    {CKA_LABEL, PUBLIC | PRIVATE, key_label, sizeof key_label - 1},
    {CKA_ID, PUBLIC | PRIVATE, &key_id, 1},
    {CKA_KEY_TYPE, PUBLIC | PRIVATE, &key_type, sizeof key_type},
    {CKA_LOCAL, PUBLIC | PRIVATE, &yes, 1},
    {CKA_KEY_GEN_MECHANISM, PUBLIC | PRIVATE, &generated_by, sizeof generated_by},
    {CKA_DERIVE, PUBLIC | PRIVATE, &no, 1},
    {CKA_EC_PARAMS, PUBLIC | PRIVATE, ec_params, sizeof ec_params},
    {CKA_EC_POINT, PUBLIC | PRIVATE, ec_point, sizeof ec_point},
    {CKA_VERIFY, PUBLIC, &yes, 1},
    {CKA_ENCRYPT, PUBLIC, &no, 1},
    {CKA_WRAP, PUBLIC, &no, 1},
    {CKA_SIGN, PRIVATE, &yes, 1},
    {CKA_DECRYPT, PRIVATE, &no, 1},
    {CKA_UNWRAP, PRIVATE, &no, 1},
    {CKA_SENSITIVE, PRIVATE, &yes, 1},
    {CKA_ALWAYS_SENSITIVE, PRIVATE, &yes, 1},
    {CKA_EXTRACTABLE, PRIVATE, &no, 1},
    {CKA_NEVER_EXTRACTABLE, PRIVATE, &yes, 1},
    {CKA_ALWAYS_AUTHENTICATE, PRIVATE, &no, 1},
};
#define ATTRIBUTES (sizeof attributes / sizeof attributes[0])

static size_t attribute_of(CK_OBJECT_HANDLE object, CK_ATTRIBUTE_TYPE type) {
    size_t i = 0;
    while (i < ATTRIBUTES && (attributes[i].type != type || (attributes[i].objects & (unsigned)object) == 0)) {
        i++;
    }
    return i;
}

static int matches(CK_OBJECT_HANDLE object, const CK_ATTRIBUTE *template, CK_ULONG count) {
    for (CK_ULONG i = 0; i < count; i++) {
        size_t row = attribute_of(object, template[i].type);
        if (row == ATTRIBUTES || attributes[row].size != template[i].ulValueLen ||
            memcmp(attributes[row].value, template[i].pValue, attributes[row].size) != 0) {
            return 0;
        }
    }
    return 1;
}

void noop_set_public_key(const CK_BYTE key[32]) {
    memcpy(ec_point + 2, key, 32);
}

CK_RV noop_FindObjectsInit(CK_SESSION_HANDLE handle, CK_ATTRIBUTE *template, CK_ULONG count) {
    struct noop_session *session;
    CK_RV rv = noop_session_of(handle, &session);
    if (rv != CKR_OK) {
        return rv;
    }
    if (template == NULL && count != 0) {
        return CKR_ARGUMENTS_BAD;
    }
    if (session->finding) {
        return CKR_OPERATION_ACTIVE;
    }
    session->finding = 1;
    session->found_count = session->found_next = 0;
    CK_OBJECT_HANDLE last = atomic_load(&noop_logged_in) ? NOOP_PRIVATE_KEY : NOOP_PUBLIC_KEY;
    for (CK_OBJECT_HANDLE object = NOOP_PUBLIC_KEY; object <= last; object++) {
        if (matches(object, template, count)) {
            session->found[session->found_count++] = object;
        }
    }
    return CKR_OK;
}

CK_RV noop_FindObjects(CK_SESSION_HANDLE handle, CK_OBJECT_HANDLE *objects, CK_ULONG max, CK_ULONG *count) {
    struct noop_session *session;
    CK_RV rv = noop_session_of(handle, &session);
    if (rv != CKR_OK) {
        return rv;
    }
    if (objects == NULL || count == NULL) {
        return CKR_ARGUMENTS_BAD;
    }
    if (!session->finding) {
        return CKR_OPERATION_NOT_INITIALIZED;
    }
    for (*count = 0; *count < max && session->found_next < session->found_count; (*count)++) {
        objects[*count] = session->found[session->found_next++];
    }
    return CKR_OK;
}

CK_RV noop_FindObjectsFinal(CK_SESSION_HANDLE handle) {
    struct noop_session *session;
    CK_RV rv = noop_session_of(handle, &session);
    if (rv == CKR_OK && !session->finding) {
        return CKR_OPERATION_NOT_INITIALIZED;
    }
    if (rv == CKR_OK) {
        session->finding = 0;
    }
    return rv;
}

CK_RV noop_GetAttributeValue(CK_SESSION_HANDLE handle, CK_OBJECT_HANDLE object, CK_ATTRIBUTE *template,
                             CK_ULONG count) {
    struct noop_session *session;
    CK_RV rv = noop_session_of(handle, &session);
    if (rv != CKR_OK) {
        return rv;
    }
    if (template == NULL) {
        return CKR_ARGUMENTS_BAD;
    }
    if (object != NOOP_PUBLIC_KEY && (object != NOOP_PRIVATE_KEY || !atomic_load(&noop_logged_in))) {
        return CKR_OBJECT_HANDLE_INVALID;
    }
    for (CK_ULONG i = 0; i < count; i++) {
        size_t row = attribute_of(object, template[i].type);
        if (row == ATTRIBUTES) {
            template[i].ulValueLen = CK_UNAVAILABLE_INFORMATION;
            rv = template[i].type == CKA_VALUE ? CKR_ATTRIBUTE_SENSITIVE : CKR_ATTRIBUTE_TYPE_INVALID;
        } else if (template[i].pValue != NULL && template[i].ulValueLen < attributes[row].size) {
            template[i].ulValueLen = CK_UNAVAILABLE_INFORMATION;
            rv = CKR_BUFFER_TOO_SMALL;
        } else {
            if (template[i].pValue != NULL) {
                memcpy(template[i].pValue, attributes[row].value, attributes[row].size);
            }
            template[i].ulValueLen = attributes[row].size;
        }
    }
    return rv;
}
