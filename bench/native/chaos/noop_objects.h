/* The two objects of the no-op token and their attributes. */
#ifndef HSMCORE_NOOP_OBJECTS_H
#define HSMCORE_NOOP_OBJECTS_H

#include <string.h>

#include <p11-kit/pkcs11.h>

#define PUBLIC_KEY 1UL
#define PRIVATE_KEY 2UL

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
    {CKA_EC_POINT, PUBLIC, ec_point, sizeof ec_point},
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

#endif
