/* Verification by the system's libcrypto, opened when it is first needed. Its library context is our own: see stream.c. */
#include <dlfcn.h>
#include <string.h>

#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/x509.h>

#include "p11.h"

enum { DER_HEAD = 27, DER_SIGNATURE = 72, NUMBER = 32 };

// clang-format off: several names in a line
#define FUNCTIONS(X) \
    X(OSSL_LIB_CTX_new) X(d2i_PUBKEY_ex) X(EVP_PKEY_free) X(EVP_MD_CTX_new) X(EVP_MD_CTX_free) \
    X(EVP_DigestVerifyInit_ex) X(EVP_DigestVerify) X(EVP_PKEY_CTX_new_from_pkey) X(EVP_PKEY_CTX_free) \
    X(EVP_PKEY_verify_init) X(EVP_PKEY_verify) X(ERR_set_mark) X(ERR_pop_to_mark)
// clang-format on

static struct {
// NOLINTNEXTLINE(bugprone-macro-parentheses): a declaration
#define X(name) __typeof__(name) *name;
    FUNCTIONS(X)
#undef X
    OSSL_LIB_CTX *context;
} crypto;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void load(void) {
    void *library = dlopen("libcrypto.so.3", RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        return;
    }
#define X(name)                                                                                                        \
    *(void **)&crypto.name = dlsym(library, #name);                                                                    \
    if (crypto.name == NULL) {                                                                                         \
        return;                                                                                                        \
    }
    FUNCTIONS(X)
#undef X
    crypto.context = crypto.OSSL_LIB_CTX_new();
}

bool p11_crypto_load(void) {
    (void)pthread_once(&once, load);
    return crypto.context != NULL;
}

/* SubjectPublicKeyInfo before the key itself, by enum p11_algorithm. */
static const struct {
    uint8_t len, bytes[DER_HEAD];
} heads[] = {
    {0, {0}},
    {12, {0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00}},
    {26, {0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01,
          0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00}},
    {23, {0x30, 0x56, 0x30, 0x10, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02,
          0x01, 0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x0a, 0x03, 0x42, 0x00}},
};

/* An INTEGER of DER: no zeros in front, but one where the first bit is set. */
static uint8_t *put_integer(uint8_t *out, const uint8_t number[NUMBER]) {
    size_t skip = 0;
    while (skip < NUMBER - 1 && number[skip] == 0) {
        skip++;
    }
    size_t zero = number[skip] >> 7;
    *out++ = 0x02;
    *out++ = (uint8_t)(NUMBER - skip + zero);
    *out = 0;
    memcpy(out + zero, number + skip, NUMBER - skip);
    return out + zero + NUMBER - skip;
}

bool p11_verify(enum p11_algorithm algorithm, const uint8_t *public_key, const uint8_t *message, size_t len,
                bool digest, const uint8_t signature[P11_SIGNATURE]) {
    uint8_t der[DER_HEAD + P11_PUBLIC_KEY];
    uint8_t ecdsa[DER_SIGNATURE];
    const uint8_t *at = der;
    const uint8_t *given = signature;
    size_t key_len = algorithm == P11_ED25519 ? 32 : P11_PUBLIC_KEY;
    size_t given_len = P11_SIGNATURE;
    if (!p11_crypto_load()) {
        return false;
    }
    memcpy(der, heads[algorithm].bytes, heads[algorithm].len);
    memcpy(der + heads[algorithm].len, public_key, key_len);
    if (algorithm != P11_ED25519) {
        const uint8_t *end = put_integer(put_integer(ecdsa + 2, signature), signature + NUMBER);
        ecdsa[0] = 0x30;
        ecdsa[1] = (uint8_t)(end - ecdsa - 2);
        given = ecdsa;
        given_len = (size_t)(end - ecdsa);
    }
    (void)crypto.ERR_set_mark(); /* the thread's queue of errors is the application's, too */
    EVP_PKEY *key = crypto.d2i_PUBKEY_ex(NULL, &at, (long)(heads[algorithm].len + key_len), crypto.context, NULL);
    bool good = false;
    if (key != NULL && digest) {
        EVP_PKEY_CTX *context = crypto.EVP_PKEY_CTX_new_from_pkey(crypto.context, key, NULL);
        good = context != NULL && crypto.EVP_PKEY_verify_init(context) == 1 &&
               crypto.EVP_PKEY_verify(context, given, given_len, message, len) == 1;
        crypto.EVP_PKEY_CTX_free(context);
    } else if (key != NULL) {
        const char *hash = algorithm == P11_ED25519 ? NULL : "SHA256";
        EVP_MD_CTX *context = crypto.EVP_MD_CTX_new();
        good = context != NULL &&
               crypto.EVP_DigestVerifyInit_ex(context, NULL, hash, crypto.context, NULL, key, NULL) == 1 &&
               crypto.EVP_DigestVerify(context, given, given_len, message, len) == 1;
        crypto.EVP_MD_CTX_free(context);
    }
    crypto.EVP_PKEY_free(key);
    (void)crypto.ERR_pop_to_mark();
    return good;
}
