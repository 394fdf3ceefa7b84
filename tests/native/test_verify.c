/* Software verification: published vectors, libcrypto's signatures, and everything that must be refused. */
#include <openssl/bn.h>
#include <openssl/core_names.h>
#include <openssl/ec.h>
#include <openssl/ecdsa.h>
#include <openssl/evp.h>
#include <openssl/objects.h>

#include "algorithm.h"
#include "harness.h"
#include "verify.h"

static size_t unhex(const char *text, uint8_t *bytes, size_t size) {
    size_t length = strlen(text) / 2;
    REQUIRE(length <= size);
    for (size_t i = 0; i < length; i++) {
        char pair[3] = {text[2 * i], text[2 * i + 1], '\0'};
        bytes[i] = (uint8_t)strtoul(pair, NULL, 16);
    }
    return length;
}

/* ---- Ed25519: RFC 8032 section 7.1, tests 1, 2, 3 and SHA(abc) ---- */

static const struct {
    const char *public_key;
    const char *message;
    const char *signature;
} rfc8032[] = {
    {"d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a", "",
     "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46b"
     "d25bf5f0595bbe24655141438e7a100b"},
    {"3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c", "72",
     "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c"
     "387b2eaeb4302aeeb00d291612bb0c00"},
    {"fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025", "af82",
     "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc659"
     "4a7c15e9716ed28dc027beceea1ec40a"},
    {"ec172b93ad5e563bf4932c70e1245034c35467ef2efd4d64ebf819683467e2bf",
     "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd"
     "454d4423643ce80e2a9ac94fa54ca49f",
     "dc2a4459e7369633a52b1bf277839a00201009a3efbf3ecb69bea2186c26b58909351fc9ac90b3ecfdfbc7c66431e030"
     "3dca179c138ac17ad9bef1177331a704"},
};

struct case_ {
    hsm_algorithm algorithm;
    uint8_t public_key[HSM_MAX_PUBLIC_KEY];
    size_t public_key_len;
    uint8_t message[128];
    size_t message_len;
    uint8_t signature[HSM_MAX_SIGNATURE];
};

static struct case_ ed25519_case(size_t row) {
    struct case_ out = {.algorithm = HSM_ED25519};
    out.public_key_len = unhex(rfc8032[row].public_key, out.public_key, sizeof out.public_key);
    out.message_len = unhex(rfc8032[row].message, out.message, sizeof out.message);
    REQUIRE(unhex(rfc8032[row].signature, out.signature, sizeof out.signature) == HSM_MAX_SIGNATURE);
    return out;
}

static hsm_status verify(const struct case_ *what) {
    return hsm_verify(what->algorithm, what->public_key, what->public_key_len, what->message, what->message_len, 0,
                      what->signature, HSM_MAX_SIGNATURE);
}

/* Every flipped bit of message and signature is noticed; `step` bits apart where each check is slow. */
static void check_flipped_bits(struct case_ good, unsigned step) {
    for (size_t bit = 0; bit < sizeof good.signature * 8; bit += step) {
        good.signature[bit / 8] ^= (uint8_t)(1U << bit % 8);
        CHECK_STATUS(verify(&good), HSM_SIGNATURE_INVALID);
        good.signature[bit / 8] ^= (uint8_t)(1U << bit % 8);
    }
    for (size_t bit = 0; bit < good.message_len * 8; bit += step) {
        good.message[bit / 8] ^= (uint8_t)(1U << bit % 8);
        CHECK_STATUS(verify(&good), HSM_SIGNATURE_INVALID);
        good.message[bit / 8] ^= (uint8_t)(1U << bit % 8);
    }
    for (size_t bit = 0; bit < good.public_key_len * 8; bit += step) {
        good.public_key[bit / 8] ^= (uint8_t)(1U << bit % 8);
        CHECK(verify(&good) != HSM_OK); /* no point of the curve, or another key */
        good.public_key[bit / 8] ^= (uint8_t)(1U << bit % 8);
    }
    CHECK_STATUS(verify(&good), HSM_OK);
}

static void check_lengths(const struct case_ *good) {
    for (size_t length = 0; length <= HSM_MAX_SIGNATURE + 1; length++) {
        uint8_t signature[HSM_MAX_SIGNATURE + 1] = {0};
        memcpy(signature, good->signature, HSM_MAX_SIGNATURE);
        CHECK_STATUS(hsm_verify(good->algorithm, good->public_key, good->public_key_len, good->message,
                                good->message_len, 0, signature, length),
                     length == HSM_MAX_SIGNATURE ? HSM_OK : HSM_SIGNATURE_INVALID);
    }
    for (size_t length = 0; length <= HSM_MAX_PUBLIC_KEY + 1; length++) {
        uint8_t key[HSM_MAX_PUBLIC_KEY + 1] = {0};
        memcpy(key, good->public_key, good->public_key_len);
        CHECK_STATUS(hsm_verify(good->algorithm, key, length, good->message, good->message_len, 0, good->signature,
                                HSM_MAX_SIGNATURE),
                     length == good->public_key_len ? HSM_OK : HSM_BAD_ARGUMENT);
    }
}

static void published_ed25519_vectors_verify(void) {
    for (size_t i = 0; i < COUNT_OF(rfc8032); i++) {
        struct case_ row = ed25519_case(i);
        CHECK_STATUS(verify(&row), HSM_OK);
    }
    struct case_ empty = ed25519_case(0);
    CHECK_STATUS(hsm_verify(HSM_ED25519, empty.public_key, 32, NULL, 0, 0, empty.signature, HSM_MAX_SIGNATURE), HSM_OK);
}

static void a_flipped_bit_breaks_ed25519(void) {
    check_flipped_bits(ed25519_case(1), 1);
    check_flipped_bits(ed25519_case(3), 7);
}

static void wrong_lengths_are_refused(void) {
    struct case_ row = ed25519_case(2);
    check_lengths(&row);
}

/* s + L signs the same message for a verifier that does not compare s with L (RFC 8032 section 5.1.7). */
static void a_non_canonical_s_is_refused(void) {
    static const char order[] = "edd3f55c1a631258d69cf7a2def9de1400000000000000000000000000000010"; /* little-endian */
    uint8_t addend[32];
    REQUIRE(unhex(order, addend, sizeof addend) == 32);
    for (size_t row = 0; row < COUNT_OF(rfc8032); row++) {
        struct case_ malleable = ed25519_case(row);
        for (int times = 0; times < 8; times++) { /* s + L .. s + 8 L all fit into 32 bytes */
            unsigned carry = 0;
            for (size_t i = 0; i < 32; i++) {
                carry += (unsigned)malleable.signature[32 + i] + addend[i];
                malleable.signature[32 + i] = (uint8_t)carry;
                carry >>= 8U;
            }
            CHECK_STATUS(verify(&malleable), HSM_SIGNATURE_INVALID);
        }
    }
}

/* The eight points of small order and their non-canonical encodings: for such a key almost anything verifies. */
static void a_small_order_ed25519_key_is_refused(void) {
    static const char *const keys[] = {
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "0000000000000000000000000000000000000000000000000000000000000080",
        "0100000000000000000000000000000000000000000000000000000000000080",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
        "ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
    };
    for (size_t i = 0; i < COUNT_OF(keys); i++) {
        /* R = the key or the neutral element, s = 0: a forgery where the key's order divides the hash. */
        struct case_ forged = {.algorithm = HSM_ED25519, .public_key_len = 32, .message_len = 1};
        REQUIRE(unhex(keys[i], forged.public_key, 32) == 32);
        for (unsigned attempt = 0; attempt < 64; attempt++) {
            forged.message[0] = (uint8_t)attempt;
            memset(forged.signature, 0, sizeof forged.signature);
            forged.signature[0] = 1;
            CHECK(verify(&forged) != HSM_OK);
            memcpy(forged.signature, forged.public_key, 32);
            CHECK(verify(&forged) != HSM_OK);
        }
    }
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

static void a_flipped_bit_breaks_ecdsa(void) {
    for (size_t i = 0; i < COUNT_OF(ecdsa); i++) {
        struct case_ row = ecdsa_case(ecdsa[i]);
        check_flipped_bits(row, 3);
        check_lengths(&row);
    }
}

static void r_and_s_must_be_in_range(void) {
    for (size_t i = 0; i < COUNT_OF(ecdsa); i++) {
        struct case_ good = ecdsa_case(ecdsa[i]);
        uint8_t order[32];
        EC_GROUP *group = EC_GROUP_new_by_curve_name(group_nid(ecdsa[i]));
        REQUIRE(group != NULL && BN_bn2binpad(EC_GROUP_get0_order(group), order, 32) == 32);
        EC_GROUP_free(group);
        for (size_t half = 0; half < 2; half++) {
            struct case_ bad = good;
            memset(bad.signature + 32 * half, 0, 32);
            CHECK_STATUS(verify(&bad), HSM_SIGNATURE_INVALID);
            memcpy(bad.signature + 32 * half, order, 32);
            CHECK_STATUS(verify(&bad), HSM_SIGNATURE_INVALID);
            memset(bad.signature + 32 * half, 0xff, 32);
            CHECK_STATUS(verify(&bad), HSM_SIGNATURE_INVALID);
        }
    }
}

static void a_bad_point_is_refused(void) {
    for (size_t i = 0; i < COUNT_OF(ecdsa); i++) {
        struct case_ good = ecdsa_case(ecdsa[i]);
        struct case_ bad = good;
        bad.public_key[64] ^= 1U; /* beside the curve */
        CHECK_STATUS(verify(&bad), HSM_BAD_ARGUMENT);
        CHECK(hsm_verifier_new(ecdsa[i], bad.public_key, 65) == NULL);
        bad = good;
        memset(bad.public_key + 1, 0, 64); /* (0, 0) */
        CHECK_STATUS(verify(&bad), HSM_BAD_ARGUMENT);
        bad = good;
        memset(bad.public_key + 1, 0xff, 64); /* coordinates above the field's prime */
        CHECK_STATUS(verify(&bad), HSM_BAD_ARGUMENT);
        for (unsigned form = 0; form < 256; form++) {
            bad = good;
            bad.public_key[0] = (uint8_t)form;
            if (form != 0x04) {
                CHECK_STATUS(verify(&bad), HSM_BAD_ARGUMENT);
            }
        }
        /* The point of the other curve. */
        bad = good;
        bad.algorithm = ecdsa[1 - i];
        CHECK_STATUS(verify(&bad), HSM_BAD_ARGUMENT);
    }
}

static void an_unknown_algorithm_is_refused(void) {
    struct case_ row = ed25519_case(0);
    static const uint32_t numbers[] = {HSM_ALGORITHM_NONE, HSM_ALGORITHM_COUNT, UINT32_MAX};
    for (size_t i = 0; i < COUNT_OF(numbers); i++) {
        row.algorithm = (hsm_algorithm)numbers[i];
        CHECK_STATUS(verify(&row), HSM_BAD_ARGUMENT);
    }
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
    TEST(published_ed25519_vectors_verify),
    TEST(a_flipped_bit_breaks_ed25519),
    TEST(wrong_lengths_are_refused),
    TEST(a_non_canonical_s_is_refused),
    TEST(a_small_order_ed25519_key_is_refused),
    TEST(libcrypto_signatures_verify_in_low_s_form),
    TEST(a_flipped_bit_breaks_ecdsa),
    TEST(r_and_s_must_be_in_range),
    TEST(a_bad_point_is_refused),
    TEST(an_unknown_algorithm_is_refused),
    TEST(a_verifier_serves_many_times),
};
HARNESS_MAIN(tests)
