/* A SoftHSM token of the test's own, in a folder that is gone afterwards. */
#ifndef HSM_TEST_SOFTHSM_H
#define HSM_TEST_SOFTHSM_H

#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <sys/stat.h>
#include <syslog.h>

#include "harness.h"
#include "module.h"

#define TOKEN_LABEL "hsmcore-test"
#define USER_PIN "user-0815"
#define SO_PIN "officer-4711"

static struct {
    const char *module_path;
    char folder[64];
} softhsm;

static inline int softhsm_remove(const char *path, const struct stat *what, int flag, struct FTW *where) {
    (void)what;
    (void)flag;
    (void)where;
    return remove(path);
}

static inline void softhsm_end(void) {
    (void)nftw(softhsm.folder, softhsm_remove, 16, FTW_DEPTH | FTW_PHYS);
}

static inline void softhsm_find_module(void) {
    static const char *const places[] = {"/usr/lib/softhsm/libsofthsm2.so", "/usr/lib64/softhsm/libsofthsm2.so",
                                         "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
                                         "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
                                         "/usr/local/lib/softhsm/libsofthsm2.so"};
    for (size_t i = 0; i < COUNT_OF(places) && softhsm.module_path == NULL; i++) {
        softhsm.module_path = access(places[i], R_OK) == 0 ? places[i] : NULL;
    }
    if (softhsm.module_path == NULL) {
        FAIL("SoftHSM is not installed: apt-get install softhsm2");
        exit(1);
    }
}

static inline void softhsm_write_configuration(void) {
    char path[PATH_MAX];
    char tokens[PATH_MAX];
    (void)snprintf(softhsm.folder, sizeof softhsm.folder, "/tmp/hsmcore-softhsm-XXXXXX");
    REQUIRE(mkdtemp(softhsm.folder) != NULL);
    (void)atexit(softhsm_end);
    (void)snprintf(tokens, sizeof tokens, "%s/tokens", softhsm.folder);
    REQUIRE(mkdir(tokens, 0700) == 0);
    (void)snprintf(path, sizeof path, "%s/softhsm2.conf", softhsm.folder);
    FILE *file = fopen(path, "w");
    REQUIRE(file != NULL);
    (void)fprintf(file, "directories.tokendir = %s\nobjectstore.backend = file\nlog.level = ERROR\n", tokens);
    REQUIRE(fclose(file) == 0);
    REQUIRE(setenv("SOFTHSM2_CONF", path, 1) == 0);
}

static inline CK_SLOT_ID softhsm_slot_of(CK_FUNCTION_LIST *p11, const char *label) {
    CK_SLOT_ID slots[16];
    CK_ULONG count = COUNT_OF(slots);
    REQUIRE(p11->C_GetSlotList(CK_TRUE, slots, &count) == CKR_OK);
    for (CK_ULONG i = 0; i < count; i++) {
        CK_TOKEN_INFO info;
        REQUIRE(p11->C_GetTokenInfo(slots[i], &info) == CKR_OK);
        bool fresh = (info.flags & CKF_TOKEN_INITIALIZED) == 0;
        if (label == NULL ? fresh : !fresh && memcmp(info.label, label, strlen(label)) == 0) {
            return slots[i];
        }
    }
    FAIL("no such slot");
    exit(1);
}

/* Make a key pair. The module and the login must be there; the label may be shared, the id says which is meant. */
static inline void softhsm_make_key(CK_FUNCTION_LIST *p11, CK_SESSION_HANDLE session, const char *label, CK_BYTE id,
                                    bool edwards, const char *oid, CK_ULONG oid_len) {
    CK_BBOOL yes = CK_TRUE;
    CK_MECHANISM mechanism = {edwards ? CKM_EC_EDWARDS_KEY_PAIR_GEN : CKM_EC_KEY_PAIR_GEN, NULL, 0};
    CK_ATTRIBUTE public_half[] = {
        {CKA_TOKEN, &yes, sizeof yes},
        {CKA_VERIFY, &yes, sizeof yes},
        {CKA_LABEL, (void *)(uintptr_t)label, strlen(label)},
        {CKA_ID, &id, sizeof id},
        {CKA_EC_PARAMS, (void *)(uintptr_t)oid, oid_len},
    };
    CK_ATTRIBUTE private_half[] = {
        {CKA_TOKEN, &yes, sizeof yes},
        {CKA_PRIVATE, &yes, sizeof yes},
        {CKA_SENSITIVE, &yes, sizeof yes},
        {CKA_SIGN, &yes, sizeof yes},
        {CKA_LABEL, (void *)(uintptr_t)label, strlen(label)},
        {CKA_ID, &id, sizeof id},
    };
    CK_OBJECT_HANDLE pair[2];
    REQUIRE(p11->C_GenerateKeyPair(session, &mechanism, public_half, COUNT_OF(public_half), private_half,
                                   COUNT_OF(private_half), &pair[0], &pair[1]) == CKR_OK);
}

#define OID_ED25519 "\x06\x03\x2b\x65\x70", 5
#define OID_P256 "\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07", 10
#define OID_SECP256K1 "\x06\x05\x2b\x81\x04\x00\x0a", 7

/* A session in which the user is logged in, for what tests do to the token behind the engine's back. */
static inline CK_SESSION_HANDLE softhsm_login(CK_FUNCTION_LIST *p11) {
    CK_SESSION_HANDLE session;
    /* Looked for every time: the number of a new token's slot changes when the module is initialized again. */
    CK_SLOT_ID slot = softhsm_slot_of(p11, TOKEN_LABEL);
    REQUIRE(p11->C_OpenSession(slot, CKF_SERIAL_SESSION | CKF_RW_SESSION, NULL, NULL, &session) == CKR_OK);
    CK_UTF8CHAR pin[] = USER_PIN;
    CK_RV rv = p11->C_Login(session, CKU_USER, pin, sizeof pin - 1);
    REQUIRE(rv == CKR_OK || rv == CKR_USER_ALREADY_LOGGED_IN);
    return session;
}

/* Make the token and its keys: "ed25519", "p256", "secp256k1" and, twice, "twin". */
static inline void softhsm_begin(void) {
    /* SoftHSM writes errors to the system's log and keeps the connection; so it is there before descriptors are
     * counted. */
    openlog("hsmcore-test", LOG_NDELAY, LOG_USER);
    softhsm_find_module();
    softhsm_write_configuration();
    hsm_module *module = NULL;
    hsm_error error = {.status = HSM_OK};
    REQUIRE_OK(hsm_module_acquire(softhsm.module_path, NULL, &module, &error), error);
    CK_FUNCTION_LIST *p11 = module->p11;
    CK_UTF8CHAR so_pin[] = SO_PIN;
    CK_UTF8CHAR user_pin[] = USER_PIN;
    CK_UTF8CHAR label[32];
    memset(label, ' ', sizeof label);
    memcpy(label, TOKEN_LABEL, sizeof TOKEN_LABEL - 1);
    REQUIRE(p11->C_InitToken(softhsm_slot_of(p11, NULL), so_pin, sizeof so_pin - 1, label) == CKR_OK);
    CK_SLOT_ID slot = softhsm_slot_of(p11, TOKEN_LABEL);
    CK_SESSION_HANDLE session;
    REQUIRE(p11->C_OpenSession(slot, CKF_SERIAL_SESSION | CKF_RW_SESSION, NULL, NULL, &session) == CKR_OK);
    REQUIRE(p11->C_Login(session, CKU_SO, so_pin, sizeof so_pin - 1) == CKR_OK);
    REQUIRE(p11->C_InitPIN(session, user_pin, sizeof user_pin - 1) == CKR_OK);
    REQUIRE(p11->C_Logout(session) == CKR_OK);
    REQUIRE(p11->C_CloseSession(session) == CKR_OK);
    session = softhsm_login(p11);
    softhsm_make_key(p11, session, "ed25519", 1, true, OID_ED25519);
    softhsm_make_key(p11, session, "p256", 2, false, OID_P256);
    softhsm_make_key(p11, session, "secp256k1", 3, false, OID_SECP256K1);
    softhsm_make_key(p11, session, "twin", 4, true, OID_ED25519);
    softhsm_make_key(p11, session, "twin", 5, true, OID_ED25519);
    REQUIRE(p11->C_CloseSession(session) == CKR_OK);
    hsm_module_release(module);
}

#endif
