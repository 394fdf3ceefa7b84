/* The keys as the client's side knows them: what the area's key table says, another process could overwrite. One thread
 * at a time; see hsm_verdicts_pause. */
#ifndef HSM_PINNED_H
#define HSM_PINNED_H

#include "area.h"
#include "verify.h"

typedef struct hsm_pinned_key {
    hsm_algorithm algorithm;
    uint32_t index; /* of the key that has this place now */
    bool known, cacheable, retired;
    uint32_t verify_every, unverified;
    hsm_verifier *verifier; /* NULL: nothing is verified on this side */
} hsm_pinned_key;

typedef struct hsm_pinned {
    hsm_pinned_key keys[HSM_MAX_KEYS]; /* by place; see hsm_key_place */
} hsm_pinned;

/* As hsm_requests_pin. */
hsm_status hsm_pinned_add(hsm_pinned *pinned, const hsm_key_info *info, bool cacheable, uint32_t verify_every);
void hsm_pinned_free(hsm_pinned *pinned);
/* HSM_OK, or HSM_SIGNATURE_INVALID if it was this signature's turn to be verified and it does not fit;
 * HSM_KEY_DEACTIVATED if its key was retired and another one has its place: it cannot be verified any more. */
hsm_status hsm_pinned_check(hsm_pinned *pinned, uint32_t index, const uint8_t *message, size_t message_len,
                            bool prehashed, const uint8_t *signature, size_t signature_len);

/* As hsm_requests_knows. */
static inline int hsm_pinned_state(const hsm_pinned *pinned, uint32_t index) {
    const hsm_pinned_key *key = &pinned->keys[hsm_key_place(index)];
    if (!key->known || index > key->index) {
        return -1;
    }
    return key->index == index && !key->retired;
}

#endif
