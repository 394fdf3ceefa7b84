/* Verification in software: libsodium for Ed25519, libcrypto for ECDSA. */
#include "verify.h"

#include <openssl/core_names.h>
#include <openssl/ec.h>
#include <openssl/ecdsa.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/param_build.h>
#include <sodium.h>
#include <string.h>

#include "algorithm.h"

struct hsm_verifier {
    hsm_algorithm algorithm;
    uint8_t public_key[HSM_MAX_PUBLIC_KEY];
    EVP_PKEY_CTX *context; /* ECDSA only */
};

bool hsm_point_is_bad(void) {
    bool bad = true;
    for (unsigned long code = ERR_get_error(); code != 0; code = ERR_get_error()) {
        bad = bad && ERR_GET_REASON(code) != ERR_R_MALLOC_FAILURE;
    }
    return bad;
}

/* A context ready for EVP_PKEY_verify on an ECDSA public key, or NULL if the point is not on the curve. */
static EVP_PKEY_CTX *ecdsa_context(hsm_algorithm algorithm, const uint8_t *public_key, size_t len) {
    char p256[] = "prime256v1";
    char secp256k1[] = "secp256k1";
    uint8_t point[HSM_MAX_PUBLIC_KEY];
    memcpy(point, public_key, len);
    OSSL_PARAM params[] = {
        OSSL_PARAM_construct_utf8_string(OSSL_PKEY_PARAM_GROUP_NAME, algorithm == HSM_ECDSA_P256 ? p256 : secp256k1, 0),
        OSSL_PARAM_construct_octet_string(OSSL_PKEY_PARAM_PUB_KEY, point, len),
        OSSL_PARAM_construct_end(),
    };
    EVP_PKEY *key = NULL;
    EVP_PKEY_CTX *context = NULL;
    EVP_PKEY_CTX *maker = EVP_PKEY_CTX_new_from_name(NULL, "EC", NULL);
    if (maker != NULL && EVP_PKEY_fromdata_init(maker) == 1 &&
        EVP_PKEY_fromdata(maker, &key, EVP_PKEY_PUBLIC_KEY, params) == 1) {
        context = EVP_PKEY_CTX_new_from_pkey(NULL, key, NULL);
        if (context != NULL && EVP_PKEY_verify_init(context) != 1) {
            EVP_PKEY_CTX_free(context);
            context = NULL;
        }
    }
    EVP_PKEY_free(key);
    EVP_PKEY_CTX_free(maker);
    return context;
}

static hsm_status make(hsm_algorithm algorithm, const uint8_t *public_key, size_t public_key_len, hsm_verifier **out) {
    const hsm_algorithm_info *info = hsm_algorithm_lookup(algorithm);
    *out = NULL;
    /* Of the forms of a point, libcrypto would take the hybrid ones 0x06 and 0x07 too: two spellings of one key. */
    if (info == NULL || public_key_len != info->public_key_len || (info->prehashed && public_key[0] != 0x04)) {
        return HSM_BAD_ARGUMENT;
    }
    hsm_verifier *verifier = hsm_alloc(sizeof *verifier);
    if (verifier == NULL) {
        return HSM_OUT_OF_MEMORY;
    }
    verifier->algorithm = algorithm;
    memcpy(verifier->public_key, public_key, public_key_len);
    if (info->prehashed) {
        verifier->context = ecdsa_context(algorithm, public_key, public_key_len);
        if (verifier->context == NULL) {
            hsm_verifier_free(verifier);
            return hsm_point_is_bad() ? HSM_BAD_ARGUMENT : HSM_OUT_OF_MEMORY;
        }
    }
    *out = verifier;
    return HSM_OK;
}

hsm_verifier *hsm_verifier_new(hsm_algorithm algorithm, const uint8_t *public_key, size_t public_key_len) {
    hsm_verifier *verifier;
    (void)make(algorithm, public_key, public_key_len, &verifier);
    return verifier;
}

void hsm_verifier_free(hsm_verifier *verifier) {
    if (verifier != NULL) {
        EVP_PKEY_CTX_free(verifier->context);
        hsm_free(verifier);
    }
}

/* r || s as the DER structure that libcrypto wants (RFC 3279 section 2.2.3). Returns its length, or 0. */
static size_t ecdsa_der(const uint8_t signature[HSM_MAX_SIGNATURE], uint8_t der[80]) {
    ECDSA_SIG *pair = ECDSA_SIG_new();
    BIGNUM *r = BN_bin2bn(signature, 32, NULL);
    BIGNUM *s = BN_bin2bn(signature + 32, 32, NULL);
    int len = 0;
    if (pair != NULL && r != NULL && s != NULL && ECDSA_SIG_set0(pair, r, s) == 1) {
        r = s = NULL; /* the pair owns them now */
        unsigned char *end = der;
        len = i2d_ECDSA_SIG(pair, &end);
    }
    BN_free(r);
    BN_free(s);
    ECDSA_SIG_free(pair);
    return len > 0 ? (size_t)len : 0;
}

static hsm_status ecdsa_check(hsm_verifier *verifier, const uint8_t digest[HSM_SHA256_SIZE], const uint8_t *signature) {
    uint8_t low[HSM_MAX_SIGNATURE];
    memcpy(low, signature, sizeof low);
    if (!hsm_normalize_s(verifier->algorithm, low) || memcmp(low, signature, sizeof low) != 0) {
        return HSM_SIGNATURE_INVALID; /* out of range, or the malleable high-s form */
    }
    uint8_t der[80];
    size_t der_len = ecdsa_der(signature, der);
    int good = der_len > 0 ? EVP_PKEY_verify(verifier->context, der, der_len, digest, HSM_SHA256_SIZE) : -1;
    /* Both numbers are in range, and their encoding is ours: else only a shortage of memory is an error. */
    bool failed = good < 0 && ERR_GET_REASON(ERR_peek_error()) != EC_R_POINT_AT_INFINITY;
    ERR_clear_error();
    if (failed) {
        return HSM_OUT_OF_MEMORY;
    }
    return good == 1 ? HSM_OK : HSM_SIGNATURE_INVALID;
}

hsm_status hsm_verifier_check(hsm_verifier *verifier, const uint8_t *message, size_t message_len, bool prehashed,
                              const uint8_t *signature, size_t signature_len) {
    if (signature_len != HSM_MAX_SIGNATURE ||
        (prehashed && hsm_takes_digest(verifier->algorithm, message_len) != HSM_OK)) {
        return HSM_SIGNATURE_INVALID;
    }
    if (prehashed) {
        return ecdsa_check(verifier, message, signature);
    }
    if (verifier->algorithm != HSM_ED25519) {
        uint8_t digest[HSM_SHA256_SIZE];
        hsm_sha256(message, message_len, digest);
        return ecdsa_check(verifier, digest, signature);
    }
    return crypto_sign_verify_detached(signature, message, message_len, verifier->public_key) == 0
               ? HSM_OK
               : HSM_SIGNATURE_INVALID;
}

hsm_status hsm_verify(hsm_algorithm algorithm, const uint8_t *public_key, size_t public_key_len, const uint8_t *message,
                      size_t message_len, int prehashed, const uint8_t *signature, size_t signature_len) {
    hsm_verifier *verifier;
    hsm_status status = make(algorithm, public_key, public_key_len, &verifier);
    if (status == HSM_OK) {
        status = hsm_verifier_check(verifier, message, message_len, prehashed != 0, signature, signature_len);
        hsm_verifier_free(verifier);
    }
    return status;
}
