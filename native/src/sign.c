/* The two calls that make a signature. */
#include "sign.h"

#include <string.h>

const char *hsm_call_name(uint64_t call) {
    static const char *const names[] = {"",
#define X(name) #name,
                                        HSM_CALLS(X)
#undef X
    };
    return call < sizeof names / sizeof names[0] ? names[call] : "";
}

static inline bool is_nothing(const uint8_t signature[HSM_MAX_SIGNATURE]) {
    static const uint8_t nothing[HSM_MAX_SIGNATURE];
    return signature[0] == 0 && memcmp(signature, nothing, sizeof nothing) == 0;
}

hsm_status hsm_sign(CK_FUNCTION_LIST *p11, CK_SESSION_HANDLE session, CK_OBJECT_HANDLE key, hsm_algorithm algorithm,
                    uint8_t *message, size_t message_len, bool prehashed, uint8_t signature[HSM_MAX_SIGNATURE],
                    hsm_outcome *outcome) {
    const hsm_algorithm_info *info = hsm_algorithm_lookup(algorithm);
    uint8_t digest[HSM_SHA256_SIZE];
    if (info->prehashed && !prehashed) {
        hsm_sha256(message, message_len, digest);
        message = digest;
        message_len = sizeof digest;
    }

    CK_MECHANISM mechanism = {info->mechanism, NULL, 0};
    outcome->call = HSM_CALL_C_SignInit;
    outcome->ckr = p11->C_SignInit(session, &mechanism, key);
    if (outcome->ckr != CKR_OK) {
        return hsm_status_of_ckr(outcome->ckr);
    }

    /* Exactly 64: NSS refuses any other size for Ed25519. The room behind it takes the bytes of a module that writes
     * more than it may. */
    struct {
        uint8_t bytes[HSM_MAX_SIGNATURE];
        uint8_t room[192];
    } out;
    /* A module may say that it has signed and write nothing: what lay here before is no signature. */
    memset(out.bytes, 0, sizeof out.bytes);
    CK_ULONG length = sizeof out.bytes;
    outcome->call = HSM_CALL_C_Sign;
    outcome->ckr = p11->C_Sign(session, message, message_len, out.bytes, &length);
    if (outcome->ckr != CKR_OK) {
        return hsm_status_of_ckr(outcome->ckr);
    }
    bool normal = !info->prehashed || hsm_normalize_s(algorithm, out.bytes);
    if (length != sizeof out.bytes || is_nothing(out.bytes) || !normal) {
        return HSM_SIGNATURE_MALFORMED;
    }
    memcpy(signature, out.bytes, sizeof out.bytes);
    return HSM_OK;
}
