/* A public key prepared for many verifications in software. One thread at a time. */
#ifndef HSM_VERIFY_H
#define HSM_VERIFY_H

#include "base.h"

typedef struct hsm_verifier hsm_verifier;
hsm_verifier *hsm_verifier_new(hsm_algorithm algorithm, const uint8_t *public_key, size_t public_key_len);
void hsm_verifier_free(hsm_verifier *verifier);
/* `prehashed`: the message is the digest that an ECDSA signature is of; else ECDSA hashes it. */
hsm_status hsm_verifier_check(hsm_verifier *verifier, const uint8_t *message, size_t message_len, bool prehashed,
                              const uint8_t *signature, size_t signature_len);
/* Whether libcrypto has just refused a point, and was not merely short of memory. Takes the thread's errors away. */
bool hsm_point_is_bad(void);

#endif
