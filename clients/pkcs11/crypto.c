/* The system's OpenSSL, and verification by it. */
#include <dlfcn.h>
#include <string.h>

#include "openssl.h"
#include "p11.h"

enum { DER_HEAD = 27, DER_SIGNATURE = 72, NUMBER = 32 };

struct p11_ssl p11_ssl;

bool p11_ssl_load(void) {
    void *library = p11_ssl.context != NULL ? NULL : dlopen("libssl.so.3", RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        return p11_ssl.context != NULL;
    }
#define X(name)                                                                                                        \
    *(void **)&p11_ssl.name = dlsym(library, #name);                                                                   \
    if (p11_ssl.name == NULL) {                                                                                        \
        return false;                                                                                                  \
    }
    P11_OPENSSL(X)
#undef X
    p11_ssl.context = p11_ssl.OSSL_LIB_CTX_new();
    return p11_ssl.context != NULL;
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

bool p11_verify(const struct p11_key *whose, const uint8_t *message, size_t len, bool digest,
                const uint8_t signature[P11_SIGNATURE]) {
    enum p11_algorithm algorithm = whose->algorithm;
    uint8_t der[DER_HEAD + P11_PUBLIC_KEY];
    uint8_t ecdsa[DER_SIGNATURE];
    const uint8_t *at = der;
    const uint8_t *given = signature;
    size_t given_len = P11_SIGNATURE;
    memcpy(der, heads[algorithm].bytes, heads[algorithm].len);
    memcpy(der + heads[algorithm].len, whose->public_key, whose->public_len);
    if (algorithm != P11_ED25519) {
        const uint8_t *end = put_integer(put_integer(ecdsa + 2, signature), signature + NUMBER);
        ecdsa[0] = 0x30;
        ecdsa[1] = (uint8_t)(end - ecdsa - 2);
        given = ecdsa;
        given_len = (size_t)(end - ecdsa);
    }
    (void)p11_ssl.ERR_set_mark(); /* the thread's queue of errors is the application's, too */
    EVP_PKEY *key =
        p11_ssl.d2i_PUBKEY_ex(NULL, &at, (long)(heads[algorithm].len + whose->public_len), p11_ssl.context, NULL);
    bool good = false;
    if (key != NULL && digest) {
        EVP_PKEY_CTX *context = p11_ssl.EVP_PKEY_CTX_new_from_pkey(p11_ssl.context, key, NULL);
        good = context != NULL && p11_ssl.EVP_PKEY_verify_init(context) == 1 &&
               p11_ssl.EVP_PKEY_verify(context, given, given_len, message, len) == 1;
        p11_ssl.EVP_PKEY_CTX_free(context);
    } else if (key != NULL) {
        const char *hash = algorithm == P11_ED25519 ? NULL : "SHA256";
        EVP_MD_CTX *context = p11_ssl.EVP_MD_CTX_new();
        good = context != NULL &&
               p11_ssl.EVP_DigestVerifyInit_ex(context, NULL, hash, p11_ssl.context, NULL, key, NULL) == 1 &&
               p11_ssl.EVP_DigestVerify(context, given, given_len, message, len) == 1;
        p11_ssl.EVP_MD_CTX_free(context);
    }
    p11_ssl.EVP_PKEY_free(key);
    (void)p11_ssl.ERR_pop_to_mark();
    return good;
}
