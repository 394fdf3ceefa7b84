/* Private keys on a token, as modules present them. */
#include "key.h"

#include <string.h>

#include "algorithm.h"

#define MAX_ATTRIBUTE 256U

/* Search by class and label or id only: some modules answer a search by key type, EC parameters or CKA_SIGN with an
 * error or an empty list. The rest is compared here. */
static hsm_status find_objects(CK_FUNCTION_LIST *p11, CK_SESSION_HANDLE session, CK_OBJECT_CLASS class_,
                               const char *label, const uint8_t *id, size_t id_len, CK_OBJECT_HANDLE found[2],
                               CK_ULONG *count, hsm_error *error) {
    CK_ATTRIBUTE template[3] = {{CKA_CLASS, &class_, sizeof class_}};
    CK_ULONG attributes = 1;
    if (label != NULL) {
        template[attributes++] = (CK_ATTRIBUTE){CKA_LABEL, (void *)(uintptr_t)label, strlen(label)};
    }
    if (id != NULL) {
        template[attributes++] = (CK_ATTRIBUTE){CKA_ID, (void *)(uintptr_t)id, id_len};
    }
    CK_RV rv = p11->C_FindObjectsInit(session, template, attributes);
    if (rv != CKR_OK) {
        return hsm_fail_ckr(error, rv, "C_FindObjectsInit", "looking for a key");
    }
    *count = 0;
    /* Modules may return fewer objects than asked for, so only an empty answer ends the search. */
    while (*count < 2) {
        CK_ULONG more = 0;
        rv = p11->C_FindObjects(session, found + *count, 2 - *count, &more);
        rv = more <= 2 - *count ? rv : CKR_GENERAL_ERROR; /* more than were asked for say nothing about the key */
        if (rv != CKR_OK || more == 0) {
            break;
        }
        *count += more;
    }
    CK_RV final_rv = p11->C_FindObjectsFinal(session);
    if (rv != CKR_OK) {
        return hsm_fail_ckr(error, rv, "C_FindObjects", "looking for a key");
    }
    return final_rv == CKR_OK ? HSM_OK : hsm_fail_ckr(error, final_rv, "C_FindObjectsFinal", "looking for a key");
}

/* Read one attribute. Returns CKR_OK with length 0 for one that the object does not have. */
static CK_RV read_attribute(CK_FUNCTION_LIST *p11, CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object,
                            CK_ATTRIBUTE_TYPE type, void *value, size_t size, size_t *length) {
    CK_ATTRIBUTE attribute = {type, value, size};
    *length = 0;
    CK_RV rv = p11->C_GetAttributeValue(session, object, &attribute, 1);
    if (rv == CKR_ATTRIBUTE_TYPE_INVALID || rv == CKR_ATTRIBUTE_SENSITIVE) {
        return CKR_OK;
    }
    if (rv == CKR_OK && attribute.ulValueLen != CK_UNAVAILABLE_INFORMATION && attribute.ulValueLen <= size) {
        *length = attribute.ulValueLen;
    }
    return rv;
}

static void describe(const hsm_key_selector *selector, char *text, size_t size) {
    text[0] = '\0';
    hsm_append(text, size, "private key");
    if (selector->label != NULL) {
        hsm_append(text, size, " labelled '%s'", selector->label);
    }
    if (selector->handle >= 0) {
        hsm_append(text, size, " with handle %lld", (long long)selector->handle);
    }
    for (size_t i = 0; selector->id != NULL && i < selector->id_len; i++) {
        hsm_append(text, size, "%s%02x", i == 0 ? " with id " : "", selector->id[i]);
    }
}

static hsm_status find_private(CK_FUNCTION_LIST *p11, CK_SESSION_HANDLE session, const hsm_key_selector *selector,
                               CK_OBJECT_HANDLE *handle, hsm_error *error) {
    char wanted[200];
    describe(selector, wanted, sizeof wanted);
    if (selector->handle >= 0) {
        *handle = (CK_OBJECT_HANDLE)selector->handle;
        return HSM_OK;
    }
    CK_OBJECT_HANDLE found[2] = {0};
    CK_ULONG count = 0;
    hsm_status status = find_objects(p11, session, CKO_PRIVATE_KEY, selector->label, selector->id, selector->id_len,
                                     found, &count, error);
    if (status != HSM_OK) {
        return status;
    }
    if (count == 0) {
        return hsm_fail(error, HSM_KEY_NOT_FOUND, "C_FindObjects", "no %s", wanted);
    }
    if (count > 1) {
        return hsm_fail(error, HSM_KEY_AMBIGUOUS, "C_FindObjects", "more than one %s; choose one by keyId", wanted);
    }
    *handle = found[0];
    return HSM_OK;
}

/* Read CKA_EC_POINT from the private key if the module keeps it there, else from the public key with the same id, or
 * for a key without an id with the same label. */
static hsm_status read_point(CK_FUNCTION_LIST *p11, CK_SESSION_HANDLE session, CK_OBJECT_HANDLE private_key,
                             hsm_key_info *info, uint8_t *point, size_t *point_len, hsm_error *error) {
    CK_RV rv = read_attribute(p11, session, private_key, CKA_EC_POINT, point, MAX_ATTRIBUTE, point_len);
    if (rv == CKR_OK && *point_len > 0) {
        return HSM_OK;
    }
    info->apart = 1;
    CK_OBJECT_HANDLE found[2] = {0};
    CK_ULONG count = 0;
    hsm_status status = find_objects(p11, session, CKO_PUBLIC_KEY, info->id_len > 0 ? NULL : info->label,
                                     info->id_len > 0 ? info->id : NULL, info->id_len, found, &count, error);
    if (status != HSM_OK) {
        return status;
    }
    if (count > 1) {
        return hsm_fail(error, HSM_KEY_AMBIGUOUS, "C_FindObjects",
                        "more than one public key belongs to the private key labelled '%s'", info->label);
    }
    *point_len = 0;
    if (count == 1) {
        rv = read_attribute(p11, session, found[0], CKA_EC_POINT, point, MAX_ATTRIBUTE, point_len);
        if (rv != CKR_OK) {
            return hsm_fail_ckr(error, rv, "C_GetAttributeValue", "CKA_EC_POINT of the public key");
        }
    }
    return HSM_OK;
}

static hsm_status read_public_key(CK_FUNCTION_LIST *p11, CK_SESSION_HANDLE session, const hsm_key_selector *selector,
                                  CK_OBJECT_HANDLE handle, hsm_key_info *info, hsm_error *error) {
    uint8_t point[MAX_ATTRIBUTE] = {0};
    size_t point_len = 0;
    hsm_status status = read_point(p11, session, handle, info, point, &point_len, error);
    if (status != HSM_OK) {
        return status;
    }
    if (point_len > 0) {
        info->public_key_len = (uint32_t)hsm_decode_ec_point(info->algorithm, point, point_len, info->public_key);
        if (info->public_key_len == 0) {
            return hsm_fail(error, HSM_KEY_UNUSABLE, "C_GetAttributeValue",
                            "CKA_EC_POINT of '%s' (%zu bytes) is no %s public key", info->label, point_len,
                            hsm_algorithm_name(info->algorithm));
        }
    }
    if (selector->public_key == NULL) {
        return point_len > 0 ? HSM_OK
                             : hsm_fail(error, HSM_PUBLIC_KEY_MISSING, "C_FindObjects",
                                        "the token has no public key for '%s'; give it as publicKey", info->label);
    }
    if (point_len == 0) {
        if (selector->public_key_len != hsm_algorithm_lookup(info->algorithm)->public_key_len) {
            return hsm_fail(error, HSM_BAD_ARGUMENT, "", "publicKey has %zu bytes", selector->public_key_len);
        }
        memcpy(info->public_key, selector->public_key, selector->public_key_len);
        info->public_key_len = (uint32_t)selector->public_key_len;
        return HSM_OK;
    }
    if (selector->public_key_len != info->public_key_len ||
        memcmp(selector->public_key, info->public_key, info->public_key_len) != 0) {
        return hsm_fail(error, HSM_KEY_MISMATCH, "C_GetAttributeValue",
                        "the key labelled '%s' on the token is another key than the expected one", info->label);
    }
    return HSM_OK;
}

static hsm_status read_attributes(CK_FUNCTION_LIST *p11, CK_SESSION_HANDLE session, CK_OBJECT_HANDLE handle,
                                  hsm_key_info *info, hsm_error *error) {
    /* A module may say that it has answered and write nothing: that must not look like what is wanted. */
    CK_OBJECT_CLASS class_ = CK_UNAVAILABLE_INFORMATION;
    CK_KEY_TYPE type = CK_UNAVAILABLE_INFORMATION;
    CK_BBOOL sign = CK_TRUE;
    uint8_t params[MAX_ATTRIBUTE] = {0};
    enum { CLASS, TYPE, PARAMS, SIGN, ID, LABEL, COUNT };
    struct {
        CK_ATTRIBUTE_TYPE type;
        void *value;
        size_t size;
        const char *name;
        size_t length;
    } wanted[COUNT] = {
        [CLASS] = {CKA_CLASS, &class_, sizeof class_, "CKA_CLASS", 0},
        [TYPE] = {CKA_KEY_TYPE, &type, sizeof type, "CKA_KEY_TYPE", 0},
        [PARAMS] = {CKA_EC_PARAMS, params, sizeof params, "CKA_EC_PARAMS", 0},
        [SIGN] = {CKA_SIGN, &sign, sizeof sign, "CKA_SIGN", 0},
        [ID] = {CKA_ID, info->id, sizeof info->id, "CKA_ID", 0},
        [LABEL] = {CKA_LABEL, info->label, sizeof info->label - 1U, "CKA_LABEL", 0},
    };
    for (size_t i = 0; i < COUNT; i++) {
        CK_RV rv =
            read_attribute(p11, session, handle, wanted[i].type, wanted[i].value, wanted[i].size, &wanted[i].length);
        if (rv == CKR_BUFFER_TOO_SMALL) {
            return hsm_fail(error, HSM_KEY_UNUSABLE, "C_GetAttributeValue",
                            "%s of the private key is longer than %zu bytes", wanted[i].name, wanted[i].size);
        }
        if (rv != CKR_OK) {
            return hsm_fail_ckr(error, rv, "C_GetAttributeValue", "%s of the private key", wanted[i].name);
        }
    }
    info->id_len = (uint32_t)wanted[ID].length;
    info->label[wanted[LABEL].length] = '\0';
    if (wanted[CLASS].length != sizeof class_ || class_ != CKO_PRIVATE_KEY) {
        return hsm_fail(error, HSM_KEY_UNUSABLE, "C_GetAttributeValue", "the object is no private key");
    }
    info->algorithm = wanted[TYPE].length == sizeof type ? hsm_algorithm_of_key(type, params, wanted[PARAMS].length)
                                                         : HSM_ALGORITHM_NONE;
    if (info->algorithm == HSM_ALGORITHM_NONE) {
        return hsm_fail(error, HSM_ALGORITHM_UNSUPPORTED, "C_GetAttributeValue",
                        "'%s' has key type 0x%lx; Ed25519, P-256 and secp256k1 keys are supported", info->label, type);
    }
    if (wanted[SIGN].length == sizeof sign && sign != CK_TRUE) {
        return hsm_fail(error, HSM_KEY_DEACTIVATED, "C_GetAttributeValue",
                        "'%s' has CKA_SIGN false: it was deactivated or made for another use", info->label);
    }
    return HSM_OK;
}

hsm_status hsm_key_find(CK_FUNCTION_LIST *p11, CK_SESSION_HANDLE session, const hsm_key_selector *selector,
                        CK_OBJECT_HANDLE *handle, hsm_key_info *info, hsm_error *error) {
    memset(info, 0, sizeof *info);
    hsm_status status = find_private(p11, session, selector, handle, error);
    HSM_THEN(status, read_attributes(p11, session, *handle, info, error));
    if (status == HSM_OK && selector->handle < 0 && selector->id_len > 0 && selector->id_len <= sizeof info->id) {
        /* By this id it was found, and is found again, whatever the module says now. */
        memcpy(info->id, selector->id, selector->id_len);
        info->id_len = (uint32_t)selector->id_len;
    }
    if (status == HSM_OK && selector->algorithm != HSM_ALGORITHM_NONE && selector->algorithm != info->algorithm) {
        status = hsm_fail(error, HSM_KEY_UNUSABLE, "C_GetAttributeValue", "'%s' is an %s key, not %s", info->label,
                          hsm_algorithm_name(info->algorithm), hsm_algorithm_name(selector->algorithm));
    }
    HSM_THEN(status, read_public_key(p11, session, selector, *handle, info, error));
    return status;
}

hsm_status hsm_key_check_mechanism(CK_FUNCTION_LIST *p11, CK_SLOT_ID slot, hsm_algorithm algorithm, hsm_error *error) {
    const hsm_algorithm_info *info = hsm_algorithm_lookup(algorithm);
    CK_MECHANISM_INFO mechanism = {0};
    CK_RV rv = p11->C_GetMechanismInfo(slot, info->mechanism, &mechanism);
    if (rv == CKR_MECHANISM_INVALID || (rv == CKR_OK && (mechanism.flags & CKF_SIGN) == 0)) {
        return hsm_fail(error, HSM_MECHANISM_UNSUPPORTED, "C_GetMechanismInfo", "the token cannot sign %s (0x%lx)",
                        info->name, info->mechanism);
    }
    return rv == CKR_OK ? HSM_OK : hsm_fail_ckr(error, rv, "C_GetMechanismInfo", "%s", info->name);
}
