/* The low-s form, for every r and s: refused out of range; else s becomes min(s, n - s), and r stays. */
#include "algorithm.h"

#include <string.h>

typedef unsigned __CPROVER_bitvector[264] wide;

typedef struct signature {
    uint8_t bytes[HSM_MAX_SIGNATURE];
} signature;
signature nondet_signature(void);
_Bool nondet_bool(void);

static wide number(const uint8_t bytes[32]) {
    wide value = 0;
    for (int i = 0; i < 32; i++) {
        value = value << 8 | bytes[i];
    }
    return value;
}

/* SEC 2, as text: not the bytes that the source has. */
static wide order(bool p256) {
    const char *digits = p256 ? "ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551"
                              : "fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141";
    wide value = 0;
    for (int i = 0; i < 64; i++) {
        value = value << 4 | (wide)(digits[i] <= '9' ? digits[i] - '0' : digits[i] - 'a' + 10);
    }
    return value;
}

void prove_low_s(void) {
    bool p256 = nondet_bool();
    signature given = nondet_signature();
    signature low = given;
    bool valid = hsm_normalize_s(p256 ? HSM_ECDSA_P256 : HSM_ECDSA_SECP256K1, low.bytes);
    wide n = order(p256);
    wide r = number(given.bytes);
    wide s = number(given.bytes + 32);
    __CPROVER_assert(valid == (r > 0 && r < n && s > 0 && s < n), "r and s are of 1..n-1");
    __CPROVER_assert(number(low.bytes) == r, "r stays");
    __CPROVER_assert(number(low.bytes + 32) == (valid && n - s < s ? n - s : s), "s is the smaller of s and n - s");
}

void prove_ed25519(void) {
    signature given = nondet_signature();
    signature same = given;
    __CPROVER_assert(hsm_normalize_s(HSM_ED25519, same.bytes), "an Ed25519 signature has no such form");
    __CPROVER_assert(memcmp(given.bytes, same.bytes, sizeof given.bytes) == 0, "it stays");
}
