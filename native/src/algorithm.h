/* The signature algorithms: names, curve parameters, digest, low-s form. */
#ifndef HSM_ALGORITHM_H
#define HSM_ALGORITHM_H

#include "base.h"

#define HSM_SHA256_SIZE 32U

/* What a token calls the algorithm. */
typedef struct hsm_algorithm_info {
    const char *name;
    unsigned long key_type;  /* CKA_KEY_TYPE */
    unsigned long mechanism; /* CK_MECHANISM_TYPE of the signature */
    bool deterministic;
    bool prehashed; /* the token is given the SHA-256 digest instead of the message */
    size_t public_key_len;
    /* CKA_EC_PARAMS as a DER object identifier, and as a PrintableString curve name; either may be NULL. */
    const uint8_t *oid;
    size_t oid_len;
    const char *curve_name;
} hsm_algorithm_info;

/* NULL for HSM_ALGORITHM_NONE and for numbers outside the table. */
const hsm_algorithm_info *hsm_algorithm_lookup(hsm_algorithm algorithm);
/* The algorithm of a key, from its CKA_KEY_TYPE and CKA_EC_PARAMS; NONE if it is not one of ours. */
hsm_algorithm hsm_algorithm_of_key(unsigned long key_type, const uint8_t *ec_params, size_t ec_params_len);
/* The public key in a CKA_EC_POINT: raw, in an OCTET STRING, or in a BIT STRING, told apart by length alone, since a
 * raw key may begin like DER. Returns its length in `public_key`, or 0. */
size_t hsm_decode_ec_point(hsm_algorithm algorithm, const uint8_t *point, size_t point_len,
                           uint8_t public_key[HSM_MAX_PUBLIC_KEY]);
/* Whether a key of this algorithm signs these bytes as a digest, without hashing them: HSM_OK, or
 * HSM_ALGORITHM_UNSUPPORTED (Ed25519 hashes by itself), or HSM_BAD_ARGUMENT if they are not 32. */
hsm_status hsm_takes_digest(hsm_algorithm algorithm, size_t len);
/* SHA-256 (FIPS 180-4). */
void hsm_sha256(const uint8_t *message, size_t message_len, uint8_t digest[HSM_SHA256_SIZE]);
/* Replace s by n - s if it is above n / 2, in r || s. Ed25519 is left alone. Returns false if r or s is not in
 * 1..n-1. */
bool hsm_normalize_s(hsm_algorithm algorithm, uint8_t signature[HSM_MAX_SIGNATURE]);

#endif
