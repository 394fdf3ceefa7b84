/* The recovery id of an ECDSA signature on secp256k1: computed from the public key, which is known, so that no
 * candidate has to be tried. */
#include <openssl/bn.h>
#include <openssl/ec.h>
#include <openssl/err.h>
#include <openssl/obj_mac.h>
#include <string.h>

#include "algorithm.h"
#include "verify.h"

/* What one computation holds. */
typedef struct scratch {
    EC_GROUP *group;
    const BIGNUM *order;
    BN_CTX *context;
    EC_POINT *key, *point;
    BIGNUM *r, *s, *digest, *x, *y;
} scratch;

static bool prepare(scratch *with, const uint8_t *digest, const uint8_t *signature) {
    with->group = EC_GROUP_new_by_curve_name(NID_secp256k1);
    with->context = BN_CTX_new();
    if (with->group == NULL || with->context == NULL) {
        return false;
    }
    BN_CTX_start(with->context);
    with->order = EC_GROUP_get0_order(with->group);
    with->key = EC_POINT_new(with->group);
    with->point = EC_POINT_new(with->group);
    with->r = BN_CTX_get(with->context);
    with->s = BN_CTX_get(with->context);
    with->digest = BN_CTX_get(with->context);
    with->x = BN_CTX_get(with->context);
    with->y = BN_CTX_get(with->context); /* NULL if any of them is */
    return with->key != NULL && with->point != NULL && with->y != NULL && BN_bin2bn(signature, 32, with->r) != NULL &&
           BN_bin2bn(signature + 32, 32, with->s) != NULL && BN_bin2bn(digest, 32, with->digest) != NULL;
}

/* The coordinates of R = (digest / s) G + (r / s) Q (SEC 1 section 4.1.4), in `x` and `y`. */
static hsm_status find_point(scratch *with, const uint8_t *public_key) {
    if (EC_POINT_oct2point(with->group, with->key, public_key, HSM_MAX_PUBLIC_KEY, with->context) != 1) {
        return hsm_point_is_bad() ? HSM_BAD_ARGUMENT : HSM_OUT_OF_MEMORY;
    }
    if (BN_mod_inverse(with->s, with->s, with->order, with->context) == NULL ||
        BN_mod_mul(with->digest, with->digest, with->s, with->order, with->context) != 1 ||
        BN_mod_mul(with->s, with->r, with->s, with->order, with->context) != 1 ||
        EC_POINT_mul(with->group, with->point, with->digest, with->key, with->s, with->context) != 1) {
        return HSM_OUT_OF_MEMORY;
    }
    if (EC_POINT_is_at_infinity(with->group, with->point) == 1) {
        return HSM_SIGNATURE_INVALID;
    }
    return EC_POINT_get_affine_coordinates(with->group, with->point, with->x, with->y, with->context) == 1
               ? HSM_OK
               : HSM_OUT_OF_MEMORY;
}

/* The id that goes with R, if r is its x modulo the order. */
static hsm_status name_point(const scratch *with, uint8_t *recovery_id) {
    bool beyond = BN_cmp(with->x, with->order) >= 0;
    if (beyond && BN_sub(with->x, with->x, with->order) != 1) {
        return HSM_OUT_OF_MEMORY;
    }
    *recovery_id = (uint8_t)((BN_is_odd(with->y) != 0 ? 1U : 0U) | (beyond ? 2U : 0U));
    return BN_cmp(with->x, with->r) == 0 ? HSM_OK : HSM_SIGNATURE_INVALID;
}

hsm_status hsm_recovery_id(const uint8_t public_key[HSM_MAX_PUBLIC_KEY], const uint8_t digest[32],
                           const uint8_t signature[HSM_MAX_SIGNATURE], uint8_t *recovery_id) {
    uint8_t low[HSM_MAX_SIGNATURE];
    memcpy(low, signature, sizeof low);
    if (!hsm_normalize_s(HSM_ECDSA_SECP256K1, low) || memcmp(low, signature, sizeof low) != 0) {
        return HSM_SIGNATURE_INVALID;
    }
    if (public_key[0] != 0x04) {
        return HSM_BAD_ARGUMENT;
    }
    scratch with = {.group = NULL};
    hsm_status status = prepare(&with, digest, signature) ? find_point(&with, public_key) : HSM_OUT_OF_MEMORY;
    if (status == HSM_OK) {
        status = name_point(&with, recovery_id);
    }
    EC_POINT_free(with.point);
    EC_POINT_free(with.key);
    if (with.order != NULL) { /* else it was not started */
        BN_CTX_end(with.context);
    }
    BN_CTX_free(with.context);
    EC_GROUP_free(with.group);
    ERR_clear_error();
    return status;
}
