/* Attributes as a token may send them: what is decoded is of the right form, and what is verified was signed. */
#include "algorithm.h"
#include "verify.h"

#include "input.h"
#include "pkcs11.h"

static void check_params(struct input *input) {
    static const unsigned long types[] = {CKK_EC, CKK_EC_EDWARDS, CKK_RSA, CKK_EC_MONTGOMERY};
    unsigned long type = types[take_u8(input) % 4];
    size_t length = take_u8(input) % 41;
    /* On the heap and as long as it says, so that reading past its end is seen. */
    uint8_t *exact = malloc(length > 0 ? length : 1);
    REQUIRE(exact != NULL);
    take(input, exact, length);
    hsm_algorithm algorithm = hsm_algorithm_of_key(type, exact, length);
    REQUIRE(algorithm == HSM_ALGORITHM_NONE || hsm_algorithm_lookup(algorithm)->key_type == type);
    free(exact);
}

static void check_verification(struct input *input, hsm_algorithm algorithm, const uint8_t *key, size_t key_len) {
    hsm_verifier *verifier = hsm_verifier_new(algorithm, key, key_len);
    if (verifier == NULL) {
        return;
    }
    uint8_t signature[HSM_MAX_SIGNATURE];
    take(input, signature, sizeof signature);
    size_t message_len = input->left;
    const uint8_t *message = message_len > 0 ? input->data : signature;
    hsm_status status = hsm_verifier_check(verifier, message, message_len, false, signature, sizeof signature);
    REQUIRE(status == HSM_OK || status == HSM_SIGNATURE_INVALID);

    uint8_t normal[HSM_MAX_SIGNATURE];
    memcpy(normal, signature, sizeof normal);
    bool in_range = hsm_normalize_s(algorithm, normal);
    REQUIRE(in_range || status == HSM_SIGNATURE_INVALID);
    if (in_range) {
        uint8_t twice[HSM_MAX_SIGNATURE];
        memcpy(twice, normal, sizeof twice);
        REQUIRE(hsm_normalize_s(algorithm, twice) && memcmp(twice, normal, sizeof twice) == 0);
        /* Only the low form may be good. */
        REQUIRE(status != HSM_OK || memcmp(normal, signature, sizeof normal) == 0);
    }
    hsm_verifier_free(verifier);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct input input = {data, size};
    hsm_algorithm algorithm = (hsm_algorithm)(take_u8(&input) % (HSM_ALGORITHM_COUNT + 1));
    size_t length = take_u8(&input);
    check_params(&input);

    uint8_t *point = malloc(length > 0 ? length : 1);
    REQUIRE(point != NULL);
    take(&input, point, length);
    uint8_t key[HSM_MAX_PUBLIC_KEY];
    size_t key_len = hsm_decode_ec_point(algorithm, point, length, key);
    if (key_len > 0) {
        REQUIRE(key_len == hsm_algorithm_lookup(algorithm)->public_key_len);
        REQUIRE(length - key_len <= 3 && memcmp(point + (length - key_len), key, key_len) == 0);
        uint8_t again[HSM_MAX_PUBLIC_KEY];
        REQUIRE(hsm_decode_ec_point(algorithm, key, key_len, again) == key_len && memcmp(key, again, key_len) == 0);
        check_verification(&input, algorithm, key, key_len);
    }
    free(point);
    return 0;
}
