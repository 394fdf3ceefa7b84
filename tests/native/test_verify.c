/* Software verification: libcrypto's signatures, and a shortage of memory. tests/unit has vectors and refusals. */
#include <openssl/bn.h>
#include <openssl/core_names.h>
#include <openssl/ec.h>
#include <openssl/ecdsa.h>
#include <openssl/evp.h>
#include <openssl/objects.h>

#include "algorithm.h"
#include "harness.h"
#include "verify.h"

struct case_ {
    hsm_algorithm algorithm;
    uint8_t public_key[HSM_MAX_PUBLIC_KEY];
    size_t public_key_len;
    uint8_t message[128];
    size_t message_len;
    uint8_t signature[HSM_MAX_SIGNATURE];
};

static hsm_status verify(const struct case_ *what) {
    return hsm_verify(what->algorithm, what->public_key, what->public_key_len, what->message, what->message_len, 0,
                      what->signature, HSM_MAX_SIGNATURE);
}

/* ---- ECDSA, against libcrypto's signer ---- */

static const char *group_name(hsm_algorithm algorithm) {
    return algorithm == HSM_ECDSA_P256 ? "prime256v1" : "secp256k1";
}

static int group_nid(hsm_algorithm algorithm) {
    return algorithm == HSM_ECDSA_P256 ? NID_X9_62_prime256v1 : NID_secp256k1;
}

static EVP_PKEY *make_key(hsm_algorithm algorithm, struct case_ *out) {
    EVP_PKEY *key = EVP_EC_gen(group_name(algorithm));
    REQUIRE(key != NULL);
    out->algorithm = algorithm;
    REQUIRE(EVP_PKEY_get_octet_string_param(key, OSSL_PKEY_PARAM_PUB_KEY, out->public_key, sizeof out->public_key,
                                            &out->public_key_len) == 1);
    REQUIRE(out->public_key_len == 65);
    return key;
}

static void libcrypto_sign(EVP_PKEY *key, struct case_ *out) {
    unsigned char der[80];
    size_t der_len = sizeof der;
    EVP_MD_CTX *context = EVP_MD_CTX_new();
    REQUIRE(context != NULL && EVP_DigestSignInit(context, NULL, EVP_sha256(), NULL, key) == 1);
    REQUIRE(EVP_DigestSign(context, der, &der_len, out->message, out->message_len) == 1);
    EVP_MD_CTX_free(context);
    const unsigned char *at = der;
    ECDSA_SIG *pair = d2i_ECDSA_SIG(NULL, &at, (long)der_len);
    REQUIRE(pair != NULL);
    REQUIRE(BN_bn2binpad(ECDSA_SIG_get0_r(pair), out->signature, 32) == 32);
    REQUIRE(BN_bn2binpad(ECDSA_SIG_get0_s(pair), out->signature + 32, 32) == 32);
    ECDSA_SIG_free(pair);
}

/* s -> n - s, by libcrypto. */
static void negate_s(struct case_ *what) {
    EC_GROUP *group = EC_GROUP_new_by_curve_name(group_nid(what->algorithm));
    BIGNUM *s = BN_bin2bn(what->signature + 32, 32, NULL);
    REQUIRE(group != NULL && s != NULL && BN_sub(s, EC_GROUP_get0_order(group), s) == 1);
    REQUIRE(BN_bn2binpad(s, what->signature + 32, 32) == 32);
    BN_free(s);
    EC_GROUP_free(group);
}

static const hsm_algorithm ecdsa[] = {HSM_ECDSA_P256, HSM_ECDSA_SECP256K1};

static void libcrypto_signatures_verify_in_low_s_form(void) {
    for (size_t i = 0; i < COUNT_OF(ecdsa); i++) {
        unsigned high = 0;
        for (unsigned round = 0; round < 40; round++) {
            struct case_ row = {.message_len = round};
            memset(row.message, (int)round, sizeof row.message);
            EVP_PKEY *key = make_key(ecdsa[i], &row);
            libcrypto_sign(key, &row);
            EVP_PKEY_free(key);
            struct case_ low = row;
            REQUIRE(hsm_normalize_s(ecdsa[i], low.signature));
            CHECK_STATUS(verify(&low), HSM_OK);
            high += memcmp(low.signature, row.signature, sizeof low.signature) != 0 ? 1U : 0U;
            negate_s(&low);
            CHECK_STATUS(verify(&low), HSM_SIGNATURE_INVALID);
        }
        CHECK_INT(high, >, 0); /* libcrypto makes both forms, so both were seen */
        CHECK_INT(high, <, 40);
    }
}

static struct case_ ecdsa_case(hsm_algorithm algorithm) {
    struct case_ row = {.message = "transaction", .message_len = 11};
    EVP_PKEY *key = make_key(algorithm, &row);
    libcrypto_sign(key, &row);
    EVP_PKEY_free(key);
    REQUIRE(hsm_normalize_s(algorithm, row.signature));
    return row;
}

static void a_verifier_serves_many_times(void) {
    struct case_ row = ecdsa_case(HSM_ECDSA_P256);
    hsm_verifier *verifier = hsm_verifier_new(row.algorithm, row.public_key, row.public_key_len);
    REQUIRE(verifier != NULL);
    for (int i = 0; i < 20; i++) {
        CHECK_STATUS(
            hsm_verifier_check(verifier, row.message, row.message_len, false, row.signature, HSM_MAX_SIGNATURE),
            HSM_OK);
        CHECK_STATUS(
            hsm_verifier_check(verifier, row.message, row.message_len - 1, false, row.signature, HSM_MAX_SIGNATURE),
            HSM_SIGNATURE_INVALID);
    }
    hsm_verifier_free(verifier);
    hsm_verifier_free(NULL);
}

/* libcrypto's allocations: the n-th one fails. */
static uint64_t crypto_calls;
static uint64_t crypto_fails;

static void *crypto_malloc(size_t size, const char *file, int line) {
    (void)file;
    (void)line;
    return crypto_fails != 0 && ++crypto_calls == crypto_fails ? NULL : malloc(size);
}

static void *crypto_realloc(void *memory, size_t size, const char *file, int line) {
    (void)file;
    (void)line;
    return crypto_fails != 0 && ++crypto_calls == crypto_fails ? NULL : realloc(memory, size);
}

static void crypto_free(void *memory, const char *file, int line) {
    (void)file;
    (void)line;
    free(memory);
}

__attribute__((constructor)) static void take_over(void) {
    REQUIRE(CRYPTO_set_mem_functions(crypto_malloc, crypto_realloc, crypto_free) == 1);
}

static void a_shortage_of_memory_says_nothing_about_key_and_signature(void) {
    static const hsm_algorithm algorithms[] = {HSM_ECDSA_P256, HSM_ECDSA_SECP256K1};
    for (size_t i = 0; i < COUNT_OF(algorithms); i++) {
        struct case_ row = ecdsa_case(algorithms[i]);
        uint64_t short_of = 0;
        do {
            crypto_calls = 0;
            crypto_fails++;
            hsm_status status = verify(&row);
            if (status != HSM_OK) {
                CHECK_STATUS(status, HSM_OUT_OF_MEMORY);
                short_of++;
            }
        } while (crypto_calls >= crypto_fails);
        crypto_fails = 0;
        CHECK_INT(short_of, >, 0);
        CHECK_STATUS(verify(&row), HSM_OK);
    }
}

static void a_shortage_of_memory_gives_no_other_recovery_id(void) {
    struct case_ row = ecdsa_case(HSM_ECDSA_SECP256K1);
    uint8_t digest[HSM_SHA256_SIZE];
    hsm_sha256(row.message, row.message_len, digest);
    uint8_t right = UINT8_MAX;
    CHECK_STATUS(hsm_recovery_id(row.public_key, digest, row.signature, &right), HSM_OK);
    uint64_t short_of = 0;
    do {
        uint8_t id = UINT8_MAX;
        crypto_calls = 0;
        crypto_fails++;
        hsm_status status = hsm_recovery_id(row.public_key, digest, row.signature, &id);
        CHECK(status == HSM_OUT_OF_MEMORY || (status == HSM_OK && id == right));
        short_of += status != HSM_OK;
    } while (crypto_calls >= crypto_fails);
    crypto_fails = 0;
    CHECK_INT(short_of, >, 0);
    CHECK_STATUS(hsm_recovery_id(row.public_key, digest, row.signature, &right), HSM_OK);
}

static const struct test tests[] = {
    TEST(a_shortage_of_memory_says_nothing_about_key_and_signature),
    TEST(a_shortage_of_memory_gives_no_other_recovery_id),
    TEST(libcrypto_signatures_verify_in_low_s_form),
    TEST(a_verifier_serves_many_times),
};
HARNESS_MAIN(tests)
