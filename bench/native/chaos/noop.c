/* A PKCS #11 module that does nothing: a client that measures on it measures itself.
 *
 * One slot, one token ("noop"; login required, any PIN), any number of sessions, one Ed25519 key pair ("noop-key", id
 * 01). C_SignInit and C_Sign take no lock, share no written cache line and return a constant: they are safe on as many
 * sessions as there are threads. One exception keeps honest clients usable: a client may prove a key at start by
 * verifying one signature, so a message of at most PROOF_MAX bytes that starts with PROOF_PREFIX, with or without a
 * byte 0xff before it, is really signed. pReserved may be "key=NAME" (at most KEY_NAME_MAX bytes): another key pair for
 * each name. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>

#include <p11-kit/pkcs11.h>
#include <sodium.h>

#include "noop_objects.h"
#include "noop_session.h"

#define INTERFACE_FLAGS 0
#define ANSWER(scope, name, arguments) return CKR_FUNCTION_NOT_SUPPORTED;
#include "lists.h"

#define PROOF_PREFIX "hsmcore"
#define PROOF_MAX 64
#define SIGNATURE_LEN 64
#define KEY_PREFIX "key="
#define KEY_NAME_MAX 64

static unsigned char proof_public[crypto_sign_PUBLICKEYBYTES], proof_secret[crypto_sign_SECRETKEYBYTES];

/* ---- the signing path ---- */

static CK_RV noop_SignInit(CK_SESSION_HANDLE handle, CK_MECHANISM *mechanism, CK_OBJECT_HANDLE key) {
    struct noop_session *session;
    CK_RV rv = noop_session_of(handle, &session);
    if (rv != CKR_OK) {
        return rv;
    }
    if (mechanism == NULL || mechanism->mechanism != CKM_EDDSA) {
        return CKR_MECHANISM_INVALID;
    }
    if (key != NOOP_PRIVATE_KEY) {
        return CKR_KEY_HANDLE_INVALID;
    }
    return atomic_load_explicit(&noop_logged_in, memory_order_relaxed) ? CKR_OK : CKR_USER_NOT_LOGGED_IN;
}

static int is_proof(const CK_BYTE *data, CK_ULONG size) {
    size_t before = size > 0 && data[0] == 0xff ? 1 : 0;
    return size <= PROOF_MAX && size >= before + sizeof PROOF_PREFIX - 1 &&
           memcmp(data + before, PROOF_PREFIX, sizeof PROOF_PREFIX - 1) == 0;
}

static CK_RV noop_Sign(CK_SESSION_HANDLE handle, CK_BYTE *data, CK_ULONG data_len, CK_BYTE *signature,
                       CK_ULONG *signature_len) {
    static const CK_BYTE constant[SIGNATURE_LEN] = "noop: this is not a signature, it costs nothing to make it";
    struct noop_session *session;
    CK_RV rv = noop_session_of(handle, &session);
    if (rv != CKR_OK) {
        return rv;
    }
    if (signature_len == NULL || (data == NULL && data_len != 0)) {
        return CKR_ARGUMENTS_BAD;
    }
    if (signature != NULL && *signature_len < SIGNATURE_LEN) {
        rv = CKR_BUFFER_TOO_SMALL;
    } else if (signature != NULL && is_proof(data, data_len)) {
        (void)crypto_sign_detached(signature, NULL, data, data_len, proof_secret);
    } else if (signature != NULL) {
        memcpy(signature, constant, SIGNATURE_LEN);
    }
    *signature_len = SIGNATURE_LEN;
    return rv;
}

/* ---- module, slot, token ---- */

/* The seed of the key that pReserved names; 0: it is something else. */
static int seed_of(const char *reserved, unsigned char seed[crypto_sign_SEEDBYTES]) {
    static const unsigned char fixed[crypto_sign_SEEDBYTES] = "hsmcore no-op module, fixed seed";
    memcpy(seed, fixed, sizeof fixed);
    if (reserved == NULL) {
        return 1;
    }
    size_t size = strnlen(reserved, sizeof KEY_PREFIX + KEY_NAME_MAX);
    return size > strlen(KEY_PREFIX) && size <= strlen(KEY_PREFIX) + KEY_NAME_MAX &&
           memcmp(reserved, KEY_PREFIX, strlen(KEY_PREFIX)) == 0 &&
           crypto_generichash(seed, crypto_sign_SEEDBYTES, (const unsigned char *)reserved, size, fixed,
                              sizeof fixed) == 0;
}

static CK_RV noop_Initialize(void *init_args) {
    unsigned char seed[crypto_sign_SEEDBYTES];
    const CK_C_INITIALIZE_ARGS *args = init_args;
    CK_RV rv = check_initialize(args);
    if (rv != CKR_OK) {
        return rv;
    }
    (void)pthread_mutex_lock(&noop_lock);
    if (atomic_load(&noop_initialized)) {
        rv = CKR_CRYPTOKI_ALREADY_INITIALIZED;
    } else if (sodium_init() < 0) {
        rv = CKR_GENERAL_ERROR;
    } else if (!seed_of(args == NULL ? NULL : args->pReserved, seed)) {
        rv = CKR_ARGUMENTS_BAD;
    } else if (crypto_sign_seed_keypair(proof_public, proof_secret, seed) != 0) {
        rv = CKR_GENERAL_ERROR;
    } else {
        noop_set_public_key(proof_public);
        atomic_store(&noop_initialized, 1);
    }
    (void)pthread_mutex_unlock(&noop_lock);
    return rv;
}

static CK_RV noop_Finalize(void *reserved) {
    if (reserved != NULL) {
        return CKR_ARGUMENTS_BAD;
    }
    (void)pthread_mutex_lock(&noop_lock);
    CK_RV rv = atomic_exchange(&noop_initialized, 0) ? CKR_OK : CKR_CRYPTOKI_NOT_INITIALIZED;
    if (rv == CKR_OK) {
        noop_close_all();
    }
    (void)pthread_mutex_unlock(&noop_lock);
    return rv;
}

static CK_RV noop_GetInfo(CK_INFO *info) {
    CK_RV rv = noop_check_slot(NOOP_SLOT, info);
    if (rv == CKR_OK) {
        memset(info, 0, sizeof *info);
        info->cryptokiVersion = (CK_VERSION){3, 0};
        pad(info->manufacturerID, sizeof info->manufacturerID, "hsmcore");
        pad(info->libraryDescription, sizeof info->libraryDescription, "no-op module");
        info->libraryVersion = (CK_VERSION){1, 0};
    }
    return rv;
}

static CK_RV noop_GetSlotList(CK_BYTE token_present, CK_SLOT_ID *list, CK_ULONG *count) {
    static const CK_ULONG slot = NOOP_SLOT;
    (void)token_present;
    CK_RV rv = noop_check_slot(NOOP_SLOT, count);
    return rv == CKR_OK ? put_list(&slot, 1, list, count) : rv;
}

static CK_RV noop_GetSlotInfo(CK_SLOT_ID slot, CK_SLOT_INFO *info) {
    CK_RV rv = noop_check_slot(slot, info);
    if (rv == CKR_OK) {
        memset(info, 0, sizeof *info);
        pad(info->slotDescription, sizeof info->slotDescription, "no-op slot");
        pad(info->manufacturerID, sizeof info->manufacturerID, "hsmcore");
        info->flags = CKF_TOKEN_PRESENT;
    }
    return rv;
}

static CK_RV noop_GetTokenInfo(CK_SLOT_ID slot, CK_TOKEN_INFO *info) {
    CK_RV rv = noop_check_slot(slot, info);
    if (rv != CKR_OK) {
        return rv;
    }
    memset(info, 0, sizeof *info);
    pad(info->label, sizeof info->label, "noop");
    pad(info->manufacturerID, sizeof info->manufacturerID, "hsmcore");
    pad(info->model, sizeof info->model, "noop");
    pad(info->serialNumber, sizeof info->serialNumber, "0");
    info->flags = CKF_LOGIN_REQUIRED | CKF_USER_PIN_INITIALIZED | CKF_TOKEN_INITIALIZED;
    info->ulMaxSessionCount = info->ulMaxRwSessionCount = CK_EFFECTIVELY_INFINITE;
    info->ulMaxPinLen = 255;
    info->ulTotalPublicMemory = info->ulFreePublicMemory = CK_UNAVAILABLE_INFORMATION;
    info->ulTotalPrivateMemory = info->ulFreePrivateMemory = CK_UNAVAILABLE_INFORMATION;
    (void)pthread_mutex_lock(&noop_lock);
    info->ulSessionCount = noop_sessions_open;
    (void)pthread_mutex_unlock(&noop_lock);
    info->ulRwSessionCount = CK_UNAVAILABLE_INFORMATION;
    return CKR_OK;
}

static CK_RV noop_GetMechanismList(CK_SLOT_ID slot, CK_MECHANISM_TYPE *list, CK_ULONG *count) {
    static const CK_ULONG mechanism = CKM_EDDSA;
    CK_RV rv = noop_check_slot(slot, count);
    return rv == CKR_OK ? put_list(&mechanism, 1, list, count) : rv;
}

static CK_RV noop_GetMechanismInfo(CK_SLOT_ID slot, CK_MECHANISM_TYPE type, CK_MECHANISM_INFO *info) {
    CK_RV rv = noop_check_slot(slot, info);
    if (rv == CKR_OK && type != CKM_EDDSA) {
        return CKR_MECHANISM_INVALID;
    }
    if (rv == CKR_OK) {
        *info = (CK_MECHANISM_INFO){.ulMinKeySize = 255, .ulMaxKeySize = 255, .flags = CKF_SIGN};
    }
    return rv;
}

/* ---- the function lists ---- */

/* At load, so that the lists are complete before any thread can ask for them. */
__attribute__((constructor)) static void begin(void) {
    fill_lists();
    OURS(noop, Initialize), OURS(noop, Finalize), OURS(noop, GetInfo);
    OURS(noop, GetSlotList), OURS(noop, GetSlotInfo), OURS(noop, GetTokenInfo);
    OURS(noop, GetMechanismList), OURS(noop, GetMechanismInfo);
    OURS(noop, OpenSession), OURS(noop, CloseSession), OURS(noop, CloseAllSessions);
    OURS(noop, GetSessionInfo), OURS(noop, Login), OURS(noop, Logout);
    OURS(noop, FindObjectsInit), OURS(noop, FindObjects);
    OURS(noop, FindObjectsFinal), OURS(noop, GetAttributeValue);
    OURS(noop, SignInit), OURS(noop, Sign);
}
