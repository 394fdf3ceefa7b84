/* The client's own table of keys, and verification on the client's side of the boundary. */
#include "pinned.h"

hsm_status hsm_pinned_add(hsm_pinned *pinned, const hsm_key_info *info, bool cacheable, uint32_t verify_every) {
    hsm_verifier *verifier = NULL;
    if (verify_every != 0) {
        verifier = hsm_verifier_new(info->algorithm, info->public_key, info->public_key_len);
        if (verifier == NULL) {
            return HSM_OUT_OF_MEMORY;
        }
    }
    hsm_pinned_key *key = &pinned->keys[hsm_key_place(info->index)];
    hsm_verifier_free(key->verifier);
    *key = (hsm_pinned_key){.algorithm = info->algorithm,
                            .index = info->index,
                            .known = true,
                            .cacheable = cacheable,
                            .verify_every = verify_every,
                            .verifier = verifier};
    return HSM_OK;
}

void hsm_pinned_free(hsm_pinned *pinned) {
    for (uint32_t place = 0; place < HSM_MAX_KEYS; place++) {
        hsm_verifier_free(pinned->keys[place].verifier);
        pinned->keys[place].verifier = NULL;
    }
}

hsm_status hsm_pinned_check(hsm_pinned *pinned, uint32_t index, const uint8_t *message, size_t message_len,
                            bool prehashed, const uint8_t *signature, size_t signature_len) {
    hsm_pinned_key *key = &pinned->keys[hsm_key_place(index)];
    if (key->verifier == NULL) {
        return HSM_OK;
    }
    if (key->index != index) {
        return HSM_KEY_DEACTIVATED;
    }
    if (++key->unverified < key->verify_every) {
        return HSM_OK;
    }
    key->unverified = 0;
    return hsm_verifier_check(key->verifier, message, message_len, prehashed, signature, signature_len);
}
