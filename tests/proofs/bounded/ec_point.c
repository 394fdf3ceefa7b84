/* CKA_EC_POINT and CKA_EC_PARAMS of any length up to a bound and any content. The buffers are as long as they say. */
#include "algorithm.h"
#include "pkcs11.h"

#include <stdlib.h>
#include <string.h>

#define MOST 80U

size_t nondet_size(void);
unsigned nondet_unsigned(void);
unsigned long nondet_ulong(void);

void prove_point(void) {
    hsm_algorithm algorithm = (hsm_algorithm)nondet_unsigned();
    size_t length = nondet_size();
    __CPROVER_assume(length <= MOST);
    uint8_t *point = malloc(length);
    __CPROVER_assume(point != NULL);
    uint8_t key[HSM_MAX_PUBLIC_KEY];
    size_t got = hsm_decode_ec_point(algorithm, point, length, key);
    if (got == 0) {
        return;
    }
    const hsm_algorithm_info *info = hsm_algorithm_lookup(algorithm);
    __CPROVER_assert(info != NULL && got == info->public_key_len, "a key has the length of its algorithm");
    __CPROVER_assert(length - got <= 3, "at most a header stands before it");
    __CPROVER_assert(!info->prehashed || key[0] == 0x04, "an ECDSA point is uncompressed");
    size_t any = nondet_size();
    __CPROVER_assume(any < got);
    __CPROVER_assert(key[any] == point[length - got + any], "the key is the end of the attribute");
}

void prove_params(void) {
    size_t length = nondet_size();
    __CPROVER_assume(length <= 24);
    uint8_t *params = malloc(length);
    __CPROVER_assume(params != NULL);
    unsigned long type = nondet_ulong();
    hsm_algorithm algorithm = hsm_algorithm_of_key(type, params, length);
    __CPROVER_assert(algorithm == HSM_ALGORITHM_NONE || hsm_algorithm_lookup(algorithm)->key_type == type,
                     "the algorithm is one of the key's type");
}
