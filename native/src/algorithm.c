/* The signature algorithms as data: a row for each, and what is computed from it. Verification is in verify.c. */
#include "algorithm.h"

#include <openssl/err.h>
#include <openssl/evp.h>
#include <pthread.h>
#include <sodium.h>
#include <string.h>

#include "pkcs11.h"

/* RFC 8410: id-Ed25519 is 1.3.101.112. SEC 2: secp256r1 is 1.2.840.10045.3.1.7, secp256k1 is 1.3.132.0.10. */
static const uint8_t oid_ed25519[] = {0x06, 0x03, 0x2b, 0x65, 0x70};
static const uint8_t oid_p256[] = {0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07};
static const uint8_t oid_secp256k1[] = {0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x0a};

// clang-format off: a row is two lines
static const hsm_algorithm_info algorithms[HSM_ALGORITHM_COUNT] = {
    [HSM_ED25519] = {.name = "ed25519", .key_type = CKK_EC_EDWARDS, .mechanism = CKM_EDDSA, .deterministic = true,
        .public_key_len = 32, .oid = oid_ed25519, .oid_len = sizeof oid_ed25519, .curve_name = "edwards25519"},
    [HSM_ECDSA_P256] = {.name = "ecdsa-p256", .key_type = CKK_EC, .mechanism = CKM_ECDSA, .prehashed = true,
        .public_key_len = 65, .oid = oid_p256, .oid_len = sizeof oid_p256, .curve_name = "secp256r1"},
    [HSM_ECDSA_SECP256K1] = {.name = "ecdsa-secp256k1", .key_type = CKK_EC, .mechanism = CKM_ECDSA, .prehashed = true,
        .public_key_len = 65, .oid = oid_secp256k1, .oid_len = sizeof oid_secp256k1, .curve_name = "secp256k1"},
};
// clang-format on

const hsm_algorithm_info *hsm_algorithm_lookup(hsm_algorithm algorithm) {
    if ((size_t)algorithm >= HSM_ALGORITHM_COUNT || algorithms[algorithm].name == NULL) {
        return NULL;
    }
    return &algorithms[algorithm];
}

const char *hsm_algorithm_name(hsm_algorithm algorithm) {
    const hsm_algorithm_info *info = hsm_algorithm_lookup(algorithm);
    return info != NULL ? info->name : "none";
}

hsm_algorithm hsm_algorithm_of_name(const char *name) {
    for (size_t i = 0; i < HSM_ALGORITHM_COUNT; i++) {
        if (algorithms[i].name != NULL && strcmp(algorithms[i].name, name) == 0) {
            return (hsm_algorithm)i;
        }
    }
    return HSM_ALGORITHM_NONE;
}

int hsm_algorithm_is_deterministic(hsm_algorithm algorithm) {
    const hsm_algorithm_info *info = hsm_algorithm_lookup(algorithm);
    return info != NULL && info->deterministic ? 1 : 0;
}

hsm_status hsm_takes_digest(hsm_algorithm algorithm, size_t len) {
    const hsm_algorithm_info *info = hsm_algorithm_lookup(algorithm);
    if (info == NULL || !info->prehashed) {
        return HSM_ALGORITHM_UNSUPPORTED;
    }
    return len == HSM_SHA256_SIZE ? HSM_OK : HSM_BAD_ARGUMENT;
}

/* DER PrintableString (tag 0x13) holding `name`. */
static bool is_curve_name(const uint8_t *params, size_t len, const char *name) {
    size_t name_len = strlen(name);
    return len == name_len + 2U && params[0] == 0x13 && params[1] == name_len &&
           memcmp(params + 2, name, name_len) == 0;
}

hsm_algorithm hsm_algorithm_of_key(unsigned long key_type, const uint8_t *ec_params, size_t ec_params_len) {
    for (size_t i = 0; i < HSM_ALGORITHM_COUNT; i++) {
        const hsm_algorithm_info *info = &algorithms[i];
        if (info->name == NULL || info->key_type != key_type) {
            continue;
        }
        bool by_oid = ec_params_len == info->oid_len && memcmp(ec_params, info->oid, info->oid_len) == 0;
        if (by_oid || is_curve_name(ec_params, ec_params_len, info->curve_name)) {
            return (hsm_algorithm)i;
        }
    }
    return HSM_ALGORITHM_NONE;
}

size_t hsm_decode_ec_point(hsm_algorithm algorithm, const uint8_t *point, size_t point_len,
                           uint8_t public_key[HSM_MAX_PUBLIC_KEY]) {
    const hsm_algorithm_info *info = hsm_algorithm_lookup(algorithm);
    if (info == NULL) {
        return 0;
    }
    size_t want = info->public_key_len;
    if (point_len == want) {
        /* raw */
    } else if (point_len == want + 2U && point[0] == 0x04 && point[1] == want) {
        point += 2; /* OCTET STRING */
    } else if (point_len == want + 3U && point[0] == 0x03 && point[1] == want + 1U && point[2] == 0) {
        point += 3; /* BIT STRING without unused bits */
    } else {
        return 0;
    }
    if (info->key_type == CKK_EC && point[0] != 0x04) {
        return 0; /* not an uncompressed point (SEC 1 section 2.3.3) */
    }
    memcpy(public_key, point, want);
    return want;
}

/* libcrypto's uses the processor's own instructions. Fetched once: each use of EVP_sha256() would look it up. A thread
 * keeps its context until it ends: to make one costs more than to hash a short message. */
static EVP_MD *sha256;
static pthread_key_t sha256_contexts;
static bool keeps_contexts;
static pthread_once_t sha256_once = PTHREAD_ONCE_INIT;

static void free_context(void *context) {
    EVP_MD_CTX_free(context);
}

static void fetch_sha256(void) {
    sha256 = EVP_MD_fetch(NULL, "SHA256", NULL);
    keeps_contexts = pthread_key_create(&sha256_contexts, free_context) == 0;
}

/* The calling thread's; NULL without memory. */
static EVP_MD_CTX *sha256_context(void) {
    EVP_MD_CTX *context = keeps_contexts ? pthread_getspecific(sha256_contexts) : NULL;
    if (context == NULL && keeps_contexts && (context = EVP_MD_CTX_new()) != NULL &&
        pthread_setspecific(sha256_contexts, context) != 0) {
        EVP_MD_CTX_free(context);
        context = NULL;
    }
    return context;
}

void hsm_sha256(const uint8_t *message, size_t message_len, uint8_t digest[HSM_SHA256_SIZE]) {
    (void)pthread_once(&sha256_once, fetch_sha256);
    EVP_MD_CTX *context = sha256_context();
    if (context == NULL || EVP_DigestInit_ex2(context, sha256, NULL) != 1 ||
        EVP_DigestUpdate(context, message, message_len) != 1 || EVP_DigestFinal_ex(context, digest, NULL) != 1) {
        ERR_clear_error();
        (void)crypto_hash_sha256(digest, message, message_len); /* it needs no memory, which libcrypto was short of */
    }
}

/* Group orders n and their halves, big-endian (SEC 2 section 2.4). */
static const uint8_t p256_n[32] = {0xff, 0xff, 0xff, 0xff, 0x00, 0x00, 0x00, 0x00, 0xff, 0xff, 0xff,
                                   0xff, 0xff, 0xff, 0xff, 0xff, 0xbc, 0xe6, 0xfa, 0xad, 0xa7, 0x17,
                                   0x9e, 0x84, 0xf3, 0xb9, 0xca, 0xc2, 0xfc, 0x63, 0x25, 0x51};
static const uint8_t secp256k1_n[32] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
                                        0xff, 0xff, 0xff, 0xff, 0xfe, 0xba, 0xae, 0xdc, 0xe6, 0xaf, 0x48,
                                        0xa0, 0x3b, 0xbf, 0xd2, 0x5e, 0x8c, 0xd0, 0x36, 0x41, 0x41};

static bool in_range(const uint8_t value[32], const uint8_t order[32]) {
    static const uint8_t zero[32];
    return memcmp(value, zero, 32) != 0 && memcmp(value, order, 32) < 0;
}

static void subtract(const uint8_t minuend[32], const uint8_t subtrahend[32], uint8_t difference[32]) {
    unsigned borrow = 0;
    for (int i = 31; i >= 0; i--) {
        unsigned column = 256U + minuend[i] - subtrahend[i] - borrow;
        difference[i] = (uint8_t)column;
        borrow = column < 256U ? 1U : 0U;
    }
}

bool hsm_normalize_s(hsm_algorithm algorithm, uint8_t signature[HSM_MAX_SIGNATURE]) {
    if (algorithm == HSM_ED25519) {
        return true;
    }
    const uint8_t *order = algorithm == HSM_ECDSA_P256 ? p256_n : secp256k1_n;
    uint8_t *s = signature + 32;
    if (!in_range(signature, order) || !in_range(s, order)) {
        return false;
    }
    /* n is odd, so s and n - s are never equal and the smaller one is the low one. */
    uint8_t other[32];
    subtract(order, s, other);
    if (memcmp(other, s, 32) < 0) {
        memcpy(s, other, 32);
    }
    return true;
}
