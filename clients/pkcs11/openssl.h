/* The system's OpenSSL 3, opened when it is first needed: C_Verify, the setting verify, and tls: addresses need it. Its
 * library context is our own, so that providers which the application configured (one may be this module) have no part
 * in it. */
#ifndef HSMCORE_P11_OPENSSL_H
#define HSMCORE_P11_OPENSSL_H

#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>

// clang-format off: several names in a line
#define P11_OPENSSL(X) \
    X(OSSL_LIB_CTX_new) X(d2i_PUBKEY_ex) X(EVP_PKEY_free) X(EVP_MD_CTX_new) X(EVP_MD_CTX_free) \
    X(EVP_DigestVerifyInit_ex) X(EVP_DigestVerify) X(EVP_PKEY_CTX_new_from_pkey) X(EVP_PKEY_CTX_free) \
    X(EVP_PKEY_verify_init) X(EVP_PKEY_verify) X(ERR_set_mark) X(ERR_pop_to_mark) X(ERR_get_error) \
    X(ERR_error_string_n) X(ERR_clear_error) X(TLS_client_method) X(SSL_CTX_new_ex) X(SSL_CTX_free) X(SSL_CTX_ctrl) \
    X(SSL_CTX_set_verify) X(SSL_CTX_load_verify_locations) X(SSL_CTX_use_certificate_chain_file) \
    X(SSL_CTX_use_PrivateKey_file) X(SSL_CTX_set_alpn_protos) X(SSL_new) X(SSL_free) X(SSL_ctrl) X(SSL_set1_host) \
    X(SSL_set_fd) X(SSL_connect) X(SSL_read) X(SSL_write) X(SSL_get_error) X(SSL_get_verify_result) \
    X(SSL_get0_param) X(X509_VERIFY_PARAM_set1_ip_asc)
// clang-format on

#pragma GCC visibility push(hidden)
extern struct p11_ssl {
// NOLINTNEXTLINE(bugprone-macro-parentheses): a declaration
#define X(name) __typeof__(name) *name;
    P11_OPENSSL(X)
#undef X
    OSSL_LIB_CTX *context;
} p11_ssl;
#pragma GCC visibility pop

#endif
