/* What a token's attributes mean, and the low-s form against libcrypto's big numbers. */
#include "algorithm.h"

#include <openssl/bn.h>
#include <openssl/ec.h>
#include <openssl/evp.h>
#include <openssl/objects.h>

#include "harness.h"
#include "pkcs11.h"

static void names_and_numbers(void) {
    static const char *const names[] = {"none", "ed25519", "ecdsa-p256", "ecdsa-secp256k1"};
    CHECK_INT(COUNT_OF(names), ==, HSM_ALGORITHM_COUNT);
    for (unsigned i = 0; i < COUNT_OF(names); i++) {
        CHECK_TEXT(hsm_algorithm_name((hsm_algorithm)i), names[i]);
        CHECK_INT(hsm_algorithm_of_name(names[i]), ==, i);
        CHECK_INT(hsm_algorithm_is_deterministic((hsm_algorithm)i), ==, i == HSM_ED25519);
        CHECK((hsm_algorithm_lookup((hsm_algorithm)i) == NULL) == (i == 0));
    }
    static const uint32_t numbers[] = {HSM_ALGORITHM_COUNT, 100, UINT32_MAX};
    for (size_t i = 0; i < COUNT_OF(numbers); i++) {
        CHECK(hsm_algorithm_lookup((hsm_algorithm)numbers[i]) == NULL);
        CHECK_TEXT(hsm_algorithm_name((hsm_algorithm)numbers[i]), "none");
        CHECK_INT(hsm_algorithm_is_deterministic((hsm_algorithm)numbers[i]), ==, 0);
    }
    CHECK_INT(hsm_algorithm_of_name("Ed25519"), ==, HSM_ALGORITHM_NONE);
    CHECK_INT(hsm_algorithm_of_name("ed25519 "), ==, HSM_ALGORITHM_NONE);
    CHECK_INT(hsm_algorithm_of_name(""), ==, HSM_ALGORITHM_NONE);
}

/* ---- CKA_EC_PARAMS ---- */

/* The DER object identifier of a curve, from libcrypto's tables. */
static size_t oid_of(int nid, uint8_t der[32]) {
    unsigned char *end = der;
    int length = i2d_ASN1_OBJECT(OBJ_nid2obj(nid), NULL);
    REQUIRE(length > 0 && length <= 32);
    (void)i2d_ASN1_OBJECT(OBJ_nid2obj(nid), &end);
    return (size_t)length;
}

static size_t name_of(const char *name, uint8_t der[32]) {
    size_t length = strlen(name);
    REQUIRE(length + 2 <= 32);
    der[0] = 0x13;
    der[1] = (uint8_t)length;
    memcpy(der + 2, name, length);
    return length + 2;
}

static void curves_are_known_by_oid(void) {
    static const struct {
        int nid;
        unsigned long type;
        hsm_algorithm algorithm;
    } rows[] = {
        {NID_ED25519, CKK_EC_EDWARDS, HSM_ED25519},       {NID_X9_62_prime256v1, CKK_EC, HSM_ECDSA_P256},
        {NID_secp256k1, CKK_EC, HSM_ECDSA_SECP256K1},     {NID_ED448, CKK_EC_EDWARDS, HSM_ALGORITHM_NONE},
        {NID_X25519, CKK_EC_EDWARDS, HSM_ALGORITHM_NONE}, {NID_secp384r1, CKK_EC, HSM_ALGORITHM_NONE},
        {NID_ED25519, CKK_EC, HSM_ALGORITHM_NONE},        {NID_X9_62_prime256v1, CKK_EC_EDWARDS, HSM_ALGORITHM_NONE},
        {NID_secp256k1, CKK_RSA, HSM_ALGORITHM_NONE},
    };
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        uint8_t der[33] = {0};
        size_t length = oid_of(rows[i].nid, der);
        CHECK_INT(hsm_algorithm_of_key(rows[i].type, der, length), ==, rows[i].algorithm);
        CHECK_INT(hsm_algorithm_of_key(rows[i].type, der, length - 1), ==, HSM_ALGORITHM_NONE);
        CHECK_INT(hsm_algorithm_of_key(rows[i].type, der, length + 1), ==, HSM_ALGORITHM_NONE);
        der[length - 1] ^= 0x80U; /* no neighbour of a curve of ours */
        CHECK_INT(hsm_algorithm_of_key(rows[i].type, der, length), ==, HSM_ALGORITHM_NONE);
    }
}

static void curves_are_known_by_name(void) {
    static const struct {
        const char *name;
        unsigned long type;
        hsm_algorithm algorithm;
    } rows[] = {
        {"edwards25519", CKK_EC_EDWARDS, HSM_ED25519},
        {"secp256r1", CKK_EC, HSM_ECDSA_P256},
        {"secp256k1", CKK_EC, HSM_ECDSA_SECP256K1},
        {"edwards448", CKK_EC_EDWARDS, HSM_ALGORITHM_NONE},
        {"edwards25519", CKK_EC, HSM_ALGORITHM_NONE},
        {"secp256r1", CKK_EC_EDWARDS, HSM_ALGORITHM_NONE},
        {"secp256r", CKK_EC, HSM_ALGORITHM_NONE},
        {"secp256r11", CKK_EC, HSM_ALGORITHM_NONE},
        {"", CKK_EC, HSM_ALGORITHM_NONE},
    };
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        uint8_t der[32] = {0};
        size_t length = name_of(rows[i].name, der);
        CHECK_INT(hsm_algorithm_of_key(rows[i].type, der, length), ==, rows[i].algorithm);
        der[1]++; /* a length that is not the string's */
        CHECK_INT(hsm_algorithm_of_key(rows[i].type, der, length), ==, HSM_ALGORITHM_NONE);
        der[1]--;
        der[0] = 0x0c; /* UTF8String */
        CHECK_INT(hsm_algorithm_of_key(rows[i].type, der, length), ==, HSM_ALGORITHM_NONE);
    }
    CHECK_INT(hsm_algorithm_of_key(CKK_EC, (const uint8_t *)"", 0), ==, HSM_ALGORITHM_NONE);
}

/* ---- CKA_EC_POINT ---- */

static const hsm_algorithm all[] = {HSM_ED25519, HSM_ECDSA_P256, HSM_ECDSA_SECP256K1};

/* A point that looks as much like DER as it can. */
static size_t tricky_key(hsm_algorithm algorithm, uint8_t key[HSM_MAX_PUBLIC_KEY]) {
    size_t length = hsm_algorithm_lookup(algorithm)->public_key_len;
    for (size_t i = 0; i < length; i++) {
        key[i] = (uint8_t)(i * 5 + 1);
    }
    key[0] = 0x04;
    key[1] = (uint8_t)(length - 2); /* 04 1e for Ed25519: an OCTET STRING that fills the rest */
    return length;
}

static void points_are_told_apart_by_length(void) {
    for (size_t i = 0; i < COUNT_OF(all); i++) {
        uint8_t key[HSM_MAX_PUBLIC_KEY];
        size_t length = tricky_key(all[i], key);
        uint8_t octets[HSM_MAX_PUBLIC_KEY + 2] = {0x04, (uint8_t)length};
        uint8_t bits[HSM_MAX_PUBLIC_KEY + 3] = {0x03, (uint8_t)(length + 1), 0x00};
        memcpy(octets + 2, key, length);
        memcpy(bits + 3, key, length);

        uint8_t decoded[HSM_MAX_PUBLIC_KEY];
        memset(decoded, 0xee, sizeof decoded);
        CHECK_INT(hsm_decode_ec_point(all[i], key, length, decoded), ==, length);
        CHECK_BYTES(decoded, key, length);
        memset(decoded, 0xee, sizeof decoded);
        CHECK_INT(hsm_decode_ec_point(all[i], octets, length + 2, decoded), ==, length);
        CHECK_BYTES(decoded, key, length);
        memset(decoded, 0xee, sizeof decoded);
        CHECK_INT(hsm_decode_ec_point(all[i], bits, length + 3, decoded), ==, length);
        CHECK_BYTES(decoded, key, length);
    }
}

static void a_compressed_point_is_refused(void) {
    uint8_t key[HSM_MAX_PUBLIC_KEY] = {0};
    uint8_t decoded[HSM_MAX_PUBLIC_KEY];
    for (unsigned form = 0; form < 256; form++) {
        key[0] = (uint8_t)form;
        CHECK_INT(hsm_decode_ec_point(HSM_ECDSA_P256, key, 65, decoded), ==, form == 4 ? 65 : 0);
        CHECK_INT(hsm_decode_ec_point(HSM_ECDSA_SECP256K1, key, 65, decoded), ==, form == 4 ? 65 : 0);
        CHECK_INT(hsm_decode_ec_point(HSM_ECDSA_P256, key, 33, decoded), ==, 0);
        /* Any first byte is a good one for Ed25519. */
        CHECK_INT(hsm_decode_ec_point(HSM_ED25519, key, 32, decoded), ==, 32);
    }
}

/* ---- digest and low-s ---- */

static void the_digest_is_sha256(void) {
    uint8_t message[300];
    for (size_t i = 0; i < sizeof message; i++) {
        message[i] = (uint8_t)(i * 3);
    }
    static const size_t lengths[] = {0, 1, 55, 56, 63, 64, 65, 119, 120, 300};
    for (size_t i = 0; i < COUNT_OF(lengths); i++) {
        uint8_t ours[HSM_SHA256_SIZE];
        uint8_t theirs[HSM_SHA256_SIZE];
        hsm_sha256(message, lengths[i], ours);
        REQUIRE(EVP_Digest(message, lengths[i], theirs, NULL, EVP_sha256(), NULL) == 1);
        CHECK_BYTES(ours, theirs, sizeof ours);
    }
}

static void put_number(uint8_t *out, const BIGNUM *number) {
    REQUIRE(BN_bn2binpad(number, out, 32) == 32);
}

static bool bignum_says_in_range(const BIGNUM *number, const BIGNUM *order) {
    return !BN_is_zero(number) && BN_cmp(number, order) < 0;
}

static void check_normalized(hsm_algorithm algorithm, const BIGNUM *order, const BIGNUM *r, const BIGNUM *s) {
    uint8_t signature[HSM_MAX_SIGNATURE];
    uint8_t before[HSM_MAX_SIGNATURE];
    put_number(signature, r);
    put_number(signature + 32, s);
    memcpy(before, signature, sizeof before);
    bool good = bignum_says_in_range(r, order) && bignum_says_in_range(s, order);
    CHECK(hsm_normalize_s(algorithm, signature) == good);
    if (!good) {
        return;
    }
    CHECK_BYTES(signature, before, 32); /* r stays */
    BIGNUM *half = BN_dup(order);
    BIGNUM *low = BN_dup(s);
    REQUIRE(half != NULL && low != NULL && BN_rshift1(half, half) == 1);
    if (BN_cmp(low, half) > 0) {
        REQUIRE(BN_sub(low, order, s) == 1);
    }
    uint8_t expected[32];
    put_number(expected, low);
    CHECK_BYTES(signature + 32, expected, 32);
    memcpy(before, signature, sizeof before);
    CHECK(hsm_normalize_s(algorithm, signature)); /* a low one is left alone */
    CHECK_BYTES(signature, before, sizeof before);
    BN_free(half);
    BN_free(low);
}

static void low_s_against_big_numbers(hsm_algorithm algorithm, int nid) {
    EC_GROUP *group = EC_GROUP_new_by_curve_name(nid);
    REQUIRE(group != NULL);
    const BIGNUM *order = EC_GROUP_get0_order(group);
    BIGNUM *edges[12];
    size_t count = 0;
    for (unsigned step = 0; step < 3; step++) { /* 0, 1, 2; n-1, n, n+1; around n/2; and all bits set */
        edges[count] = BN_new();
        REQUIRE(edges[count] != NULL && BN_set_word(edges[count], step) == 1);
        count++;
        edges[count] = BN_dup(order);
        REQUIRE(edges[count] != NULL && BN_sub_word(edges[count], 1) == 1 && BN_add_word(edges[count], step) == 1);
        count++;
        edges[count] = BN_new();
        REQUIRE(edges[count] != NULL && BN_rshift1(edges[count], order) == 1 && BN_sub_word(edges[count], 1) == 1 &&
                BN_add_word(edges[count], step) == 1);
        count++;
    }
    uint8_t ones[32];
    memset(ones, 0xff, sizeof ones);
    edges[count++] = BN_bin2bn(ones, sizeof ones, NULL);
    for (size_t i = 0; i < count; i++) {
        for (size_t j = 0; j < count; j++) {
            check_normalized(algorithm, order, edges[i], edges[j]);
        }
    }
    BIGNUM *r = BN_new();
    BIGNUM *s = BN_new();
    for (int i = 0; i < 2000; i++) {
        REQUIRE(BN_rand(r, 256, BN_RAND_TOP_ANY, BN_RAND_BOTTOM_ANY) == 1);
        REQUIRE(BN_rand(s, 256, BN_RAND_TOP_ANY, BN_RAND_BOTTOM_ANY) == 1);
        check_normalized(algorithm, order, r, s);
    }
    BN_free(r);
    BN_free(s);
    for (size_t i = 0; i < count; i++) {
        BN_free(edges[i]);
    }
    EC_GROUP_free(group);
}

static void low_s_on_p256(void) {
    low_s_against_big_numbers(HSM_ECDSA_P256, NID_X9_62_prime256v1);
}

static void low_s_on_secp256k1(void) {
    low_s_against_big_numbers(HSM_ECDSA_SECP256K1, NID_secp256k1);
}

static void ed25519_signatures_are_left_alone(void) {
    uint8_t signature[HSM_MAX_SIGNATURE];
    uint8_t before[HSM_MAX_SIGNATURE];
    static const uint8_t fills[] = {0x00, 0x7f, 0xff};
    for (size_t i = 0; i < COUNT_OF(fills); i++) {
        memset(signature, fills[i], sizeof signature);
        memcpy(before, signature, sizeof before);
        CHECK(hsm_normalize_s(HSM_ED25519, signature));
        CHECK_BYTES(signature, before, sizeof before);
    }
}

static const struct test tests[] = {
    TEST(names_and_numbers),
    TEST(curves_are_known_by_oid),
    TEST(curves_are_known_by_name),
    TEST(points_are_told_apart_by_length),
    TEST(a_compressed_point_is_refused),
    TEST(the_digest_is_sha256),
    TEST(low_s_on_p256),
    TEST(low_s_on_secp256k1),
    TEST(ed25519_signatures_are_left_alone),
};
HARNESS_MAIN(tests)
