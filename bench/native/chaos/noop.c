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
#include <stdlib.h>
#include <string.h>

#include <p11-kit/pkcs11.h>
#include <sodium.h>

#include "noop_objects.h"

#define EXPORT __attribute__((visibility("default")))

#define SLOT 0UL
#define PROOF_PREFIX "hsmcore"
#define PROOF_MAX 64
#define SIGNATURE_LEN 64
#define KEY_PREFIX "key="
#define KEY_NAME_MAX 64
#define CHUNK 1024
#define CHUNKS 4096
#define NOWHERE SIZE_MAX

/* A session belongs to one thread at a time, as the standard demands, so only its handle is atomic. The place of a
 * session is used again, its handle is not: the low 32 bits are the place and the rest counts, so that a stale handle
 * stays stale. */
struct session {
    _Atomic CK_SESSION_HANDLE handle; /* 0: closed */
    size_t next_free;
    CK_FLAGS flags;
    CK_OBJECT_HANDLE found[2];
    unsigned found_count, found_next;
    int finding;
};

static atomic_bool initialized;
static atomic_bool logged_in;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* opening and closing only */
static struct session *_Atomic chunks[CHUNKS];           /* kept until the process ends: readers take no lock */
static size_t places_used, first_free = NOWHERE, sessions_open;
static CK_SESSION_HANDLE opened; /* ever */
static unsigned char proof_public[crypto_sign_PUBLICKEYBYTES], proof_secret[crypto_sign_SECRETKEYBYTES];

static struct session *session_at(size_t place) {
    if (place >= (size_t)CHUNK * CHUNKS) {
        return NULL;
    }
    struct session *chunk = atomic_load_explicit(&chunks[place / CHUNK], memory_order_acquire);
    return chunk == NULL ? NULL : &chunk[place % CHUNK];
}

/* CKR_OK and the session, or what the standard answers for a call without one. */
static CK_RV session_of(CK_SESSION_HANDLE handle, struct session **session) {
    if (!atomic_load_explicit(&initialized, memory_order_acquire)) {
        return CKR_CRYPTOKI_NOT_INITIALIZED;
    }
    *session = session_at(handle & UINT32_MAX);
    return handle != 0 && *session != NULL && atomic_load_explicit(&(*session)->handle, memory_order_acquire) == handle
               ? CKR_OK
               : CKR_SESSION_HANDLE_INVALID;
}

static CK_RV check_slot(CK_SLOT_ID slot, const void *out) {
    if (!atomic_load_explicit(&initialized, memory_order_acquire)) {
        return CKR_CRYPTOKI_NOT_INITIALIZED;
    }
    if (slot != SLOT) {
        return CKR_SLOT_ID_INVALID;
    }
    return out == NULL ? CKR_ARGUMENTS_BAD : CKR_OK;
}

static void pad(unsigned char *out, size_t size, const char *text) {
    size_t length = strlen(text);
    for (size_t i = 0; i < size; i++) {
        out[i] = i < length ? (unsigned char)text[i] : ' ';
    }
}

/* ---- the signing path ---- */

static CK_RV noop_SignInit(CK_SESSION_HANDLE handle, CK_MECHANISM *mechanism, CK_OBJECT_HANDLE key) {
    struct session *session;
    CK_RV rv = session_of(handle, &session);
    if (rv != CKR_OK) {
        return rv;
    }
    if (mechanism == NULL || mechanism->mechanism != CKM_EDDSA) {
        return CKR_MECHANISM_INVALID;
    }
    if (key != PRIVATE_KEY) {
        return CKR_KEY_HANDLE_INVALID;
    }
    return atomic_load_explicit(&logged_in, memory_order_relaxed) ? CKR_OK : CKR_USER_NOT_LOGGED_IN;
}

static int is_proof(const CK_BYTE *data, CK_ULONG size) {
    size_t before = size > 0 && data[0] == 0xff ? 1 : 0;
    return size <= PROOF_MAX && size >= before + sizeof PROOF_PREFIX - 1 &&
           memcmp(data + before, PROOF_PREFIX, sizeof PROOF_PREFIX - 1) == 0;
}

static CK_RV noop_Sign(CK_SESSION_HANDLE handle, CK_BYTE *data, CK_ULONG data_len, CK_BYTE *signature,
                       CK_ULONG *signature_len) {
    static const CK_BYTE constant[SIGNATURE_LEN] = "noop: this is not a signature, it costs nothing to make it";
    struct session *session;
    CK_RV rv = session_of(handle, &session);
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
    if (args != NULL) {
        int given = (args->CreateMutex != NULL) + (args->DestroyMutex != NULL) + (args->LockMutex != NULL) +
                    (args->UnlockMutex != NULL);
        if (given != 0 && given != 4) {
            return CKR_ARGUMENTS_BAD;
        }
        if (given == 4 && (args->flags & CKF_OS_LOCKING_OK) == 0) {
            return CKR_CANT_LOCK; /* the caller insists on locks of its own */
        }
    }
    (void)pthread_mutex_lock(&lock);
    CK_RV rv = CKR_OK;
    if (atomic_load(&initialized)) {
        rv = CKR_CRYPTOKI_ALREADY_INITIALIZED;
    } else if (sodium_init() < 0) {
        rv = CKR_GENERAL_ERROR;
    } else if (!seed_of(args == NULL ? NULL : args->pReserved, seed)) {
        rv = CKR_ARGUMENTS_BAD;
    } else if (crypto_sign_seed_keypair(proof_public, proof_secret, seed) != 0) {
        rv = CKR_GENERAL_ERROR;
    } else {
        memcpy(ec_point + 2, proof_public, sizeof proof_public);
        atomic_store(&initialized, 1);
    }
    (void)pthread_mutex_unlock(&lock);
    return rv;
}

static void close_locked(size_t place) {
    struct session *session = session_at(place);
    atomic_store(&session->handle, 0);
    session->next_free = first_free;
    first_free = place;
    if (--sessions_open == 0) {
        atomic_store(&logged_in, 0);
    }
}

static void close_all(void) {
    for (size_t place = 0; place < places_used; place++) {
        if (atomic_load(&session_at(place)->handle) != 0) {
            close_locked(place);
        }
    }
}

static CK_RV noop_Finalize(void *reserved) {
    if (reserved != NULL) {
        return CKR_ARGUMENTS_BAD;
    }
    (void)pthread_mutex_lock(&lock);
    CK_RV rv = atomic_exchange(&initialized, 0) ? CKR_OK : CKR_CRYPTOKI_NOT_INITIALIZED;
    if (rv == CKR_OK) {
        close_all();
    }
    (void)pthread_mutex_unlock(&lock);
    return rv;
}

static CK_RV noop_GetInfo(CK_INFO *info) {
    CK_RV rv = check_slot(SLOT, info);
    if (rv == CKR_OK) {
        memset(info, 0, sizeof *info);
        info->cryptokiVersion = (CK_VERSION){3, 0};
        pad(info->manufacturerID, sizeof info->manufacturerID, "hsmcore");
        pad(info->libraryDescription, sizeof info->libraryDescription, "no-op module");
        info->libraryVersion = (CK_VERSION){1, 0};
    }
    return rv;
}

/* The rule of section 5.2 for a list of variable length. */
static CK_RV put_list(const CK_ULONG *value, CK_ULONG available, CK_ULONG *list, CK_ULONG *count) {
    CK_RV rv = CKR_OK;
    if (list != NULL && *count < available) {
        rv = CKR_BUFFER_TOO_SMALL;
    } else if (list != NULL) {
        memcpy(list, value, available * sizeof *value);
    }
    *count = available;
    return rv;
}

static CK_RV noop_GetSlotList(CK_BYTE token_present, CK_SLOT_ID *list, CK_ULONG *count) {
    static const CK_ULONG slot = SLOT;
    (void)token_present;
    CK_RV rv = check_slot(SLOT, count);
    return rv == CKR_OK ? put_list(&slot, 1, list, count) : rv;
}

static CK_RV noop_GetSlotInfo(CK_SLOT_ID slot, CK_SLOT_INFO *info) {
    CK_RV rv = check_slot(slot, info);
    if (rv == CKR_OK) {
        memset(info, 0, sizeof *info);
        pad(info->slotDescription, sizeof info->slotDescription, "no-op slot");
        pad(info->manufacturerID, sizeof info->manufacturerID, "hsmcore");
        info->flags = CKF_TOKEN_PRESENT;
    }
    return rv;
}

static CK_RV noop_GetTokenInfo(CK_SLOT_ID slot, CK_TOKEN_INFO *info) {
    CK_RV rv = check_slot(slot, info);
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
    (void)pthread_mutex_lock(&lock);
    info->ulSessionCount = sessions_open;
    (void)pthread_mutex_unlock(&lock);
    info->ulRwSessionCount = CK_UNAVAILABLE_INFORMATION;
    return CKR_OK;
}

static CK_RV noop_GetMechanismList(CK_SLOT_ID slot, CK_MECHANISM_TYPE *list, CK_ULONG *count) {
    static const CK_ULONG mechanism = CKM_EDDSA;
    CK_RV rv = check_slot(slot, count);
    return rv == CKR_OK ? put_list(&mechanism, 1, list, count) : rv;
}

static CK_RV noop_GetMechanismInfo(CK_SLOT_ID slot, CK_MECHANISM_TYPE type, CK_MECHANISM_INFO *info) {
    CK_RV rv = check_slot(slot, info);
    if (rv == CKR_OK && type != CKM_EDDSA) {
        return CKR_MECHANISM_INVALID;
    }
    if (rv == CKR_OK) {
        *info = (CK_MECHANISM_INFO){.ulMinKeySize = 255, .ulMaxKeySize = 255, .flags = CKF_SIGN};
    }
    return rv;
}

/* ---- sessions ---- */

static CK_RV noop_OpenSession(CK_SLOT_ID slot, CK_FLAGS flags, void *application, CK_NOTIFY notify,
                              CK_SESSION_HANDLE *handle) {
    (void)application;
    (void)notify;
    CK_RV rv = check_slot(slot, handle);
    if (rv != CKR_OK) {
        return rv;
    }
    if ((flags & CKF_SERIAL_SESSION) == 0) {
        return CKR_SESSION_PARALLEL_NOT_SUPPORTED;
    }
    (void)pthread_mutex_lock(&lock);
    size_t place = first_free != NOWHERE ? first_free : places_used;
    if (place / CHUNK >= CHUNKS) {
        rv = CKR_SESSION_COUNT;
    } else if (session_at(place) == NULL) {
        struct session *chunk = calloc(CHUNK, sizeof *chunk);
        rv = chunk == NULL ? CKR_HOST_MEMORY : CKR_OK;
        atomic_store_explicit(&chunks[place / CHUNK], chunk, memory_order_release);
    }
    if (rv == CKR_OK) {
        struct session *session = session_at(place);
        if (place == first_free) {
            first_free = session->next_free;
        } else {
            places_used++;
        }
        session->flags = flags;
        session->finding = 0;
        *handle = (++opened << 32) | place;
        atomic_store_explicit(&session->handle, *handle, memory_order_release);
        sessions_open++;
    }
    (void)pthread_mutex_unlock(&lock);
    return rv;
}

static CK_RV noop_CloseSession(CK_SESSION_HANDLE handle) {
    struct session *session;
    (void)pthread_mutex_lock(&lock);
    CK_RV rv = session_of(handle, &session);
    if (rv == CKR_OK) {
        close_locked(handle & UINT32_MAX);
    }
    (void)pthread_mutex_unlock(&lock);
    return rv;
}

static CK_RV noop_CloseAllSessions(CK_SLOT_ID slot) {
    CK_RV rv = check_slot(slot, &lock);
    if (rv == CKR_OK) {
        (void)pthread_mutex_lock(&lock);
        close_all();
        (void)pthread_mutex_unlock(&lock);
    }
    return rv;
}

static CK_RV noop_GetSessionInfo(CK_SESSION_HANDLE handle, CK_SESSION_INFO *info) {
    struct session *session;
    CK_RV rv = session_of(handle, &session);
    if (rv == CKR_OK && info == NULL) {
        return CKR_ARGUMENTS_BAD;
    }
    if (rv == CKR_OK) {
        CK_STATE public = (session->flags & CKF_RW_SESSION) != 0 ? CKS_RW_PUBLIC_SESSION : CKS_RO_PUBLIC_SESSION;
        *info = (CK_SESSION_INFO){.slotID = SLOT, .state = public, .flags = session->flags};
        if (atomic_load(&logged_in)) {
            info->state++; /* CKS_R*_USER_FUNCTIONS */
        }
    }
    return rv;
}

static CK_RV noop_Login(CK_SESSION_HANDLE handle, CK_USER_TYPE user, CK_BYTE *pin, CK_ULONG pin_len) {
    struct session *session;
    CK_RV rv = session_of(handle, &session);
    if (rv != CKR_OK) {
        return rv;
    }
    if (pin == NULL && pin_len != 0) {
        return CKR_ARGUMENTS_BAD;
    }
    if (user != CKU_USER) {
        return CKR_USER_TYPE_INVALID;
    }
    return atomic_exchange(&logged_in, 1) ? CKR_USER_ALREADY_LOGGED_IN : CKR_OK;
}

static CK_RV noop_Logout(CK_SESSION_HANDLE handle) {
    struct session *session;
    CK_RV rv = session_of(handle, &session);
    if (rv != CKR_OK) {
        return rv;
    }
    return atomic_exchange(&logged_in, 0) ? CKR_OK : CKR_USER_NOT_LOGGED_IN;
}

/* ---- objects ---- */

static CK_RV noop_FindObjectsInit(CK_SESSION_HANDLE handle, CK_ATTRIBUTE *template, CK_ULONG count) {
    struct session *session;
    CK_RV rv = session_of(handle, &session);
    if (rv != CKR_OK) {
        return rv;
    }
    if (template == NULL && count != 0) {
        return CKR_ARGUMENTS_BAD;
    }
    if (session->finding) {
        return CKR_OPERATION_ACTIVE;
    }
    session->finding = 1;
    session->found_count = session->found_next = 0;
    CK_OBJECT_HANDLE last = atomic_load(&logged_in) ? PRIVATE_KEY : PUBLIC_KEY;
    for (CK_OBJECT_HANDLE object = PUBLIC_KEY; object <= last; object++) {
        if (matches(object, template, count)) {
            session->found[session->found_count++] = object;
        }
    }
    return CKR_OK;
}

static CK_RV noop_FindObjects(CK_SESSION_HANDLE handle, CK_OBJECT_HANDLE *objects, CK_ULONG max, CK_ULONG *count) {
    struct session *session;
    CK_RV rv = session_of(handle, &session);
    if (rv != CKR_OK) {
        return rv;
    }
    if (objects == NULL || count == NULL) {
        return CKR_ARGUMENTS_BAD;
    }
    if (!session->finding) {
        return CKR_OPERATION_NOT_INITIALIZED;
    }
    for (*count = 0; *count < max && session->found_next < session->found_count; (*count)++) {
        objects[*count] = session->found[session->found_next++];
    }
    return CKR_OK;
}

static CK_RV noop_FindObjectsFinal(CK_SESSION_HANDLE handle) {
    struct session *session;
    CK_RV rv = session_of(handle, &session);
    if (rv == CKR_OK && !session->finding) {
        return CKR_OPERATION_NOT_INITIALIZED;
    }
    if (rv == CKR_OK) {
        session->finding = 0;
    }
    return rv;
}

static CK_RV noop_GetAttributeValue(CK_SESSION_HANDLE handle, CK_OBJECT_HANDLE object, CK_ATTRIBUTE *template,
                                    CK_ULONG count) {
    struct session *session;
    CK_RV rv = session_of(handle, &session);
    if (rv != CKR_OK) {
        return rv;
    }
    if (template == NULL) {
        return CKR_ARGUMENTS_BAD;
    }
    if (object != PUBLIC_KEY && (object != PRIVATE_KEY || !atomic_load(&logged_in))) {
        return CKR_OBJECT_HANDLE_INVALID;
    }
    for (CK_ULONG i = 0; i < count; i++) {
        size_t row = attribute_of(object, template[i].type);
        if (row == ATTRIBUTES) {
            template[i].ulValueLen = CK_UNAVAILABLE_INFORMATION;
            rv = template[i].type == CKA_VALUE ? CKR_ATTRIBUTE_SENSITIVE : CKR_ATTRIBUTE_TYPE_INVALID;
        } else if (template[i].pValue != NULL && template[i].ulValueLen < attributes[row].size) {
            template[i].ulValueLen = CK_UNAVAILABLE_INFORMATION;
            rv = CKR_BUFFER_TOO_SMALL;
        } else {
            if (template[i].pValue != NULL) {
                memcpy(template[i].pValue, attributes[row].value, attributes[row].size);
            }
            template[i].ulValueLen = attributes[row].size;
        }
    }
    return rv;
}

/* ---- the function lists ---- */

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-parameter"
#define FUNCTION(version, scope, make, name, parameters, arguments)                                                    \
    static CK_RV unsupported_##name parameters {                                                                       \
        return CKR_FUNCTION_NOT_SUPPORTED;                                                                             \
    }
#include "functions.def"
#undef FUNCTION
#pragma GCC diagnostic pop

static CK_FUNCTION_LIST list_2_40;
static CK_FUNCTION_LIST_3_0 list_3_0;
static CK_BYTE interface_name[] = "PKCS 11";
static CK_INTERFACE interfaces[] = {{(char *)interface_name, &list_3_0, 0}, {(char *)interface_name, &list_2_40, 0}};

static CK_RV noop_GetInterfaceList(CK_INTERFACE *list, CK_ULONG *count) {
    if (count == NULL) {
        return CKR_ARGUMENTS_BAD;
    }
    CK_RV rv = list != NULL && *count < 2 ? CKR_BUFFER_TOO_SMALL : CKR_OK;
    if (rv == CKR_OK && list != NULL) {
        memcpy(list, interfaces, sizeof interfaces);
    }
    *count = 2;
    return rv;
}

static CK_RV noop_GetInterface(CK_BYTE *name, CK_VERSION *version, CK_INTERFACE **found, CK_FLAGS flags) {
    if (found == NULL) {
        return CKR_ARGUMENTS_BAD;
    }
    for (size_t i = 0; i < 2; i++) {
        const CK_VERSION *have = interfaces[i].pFunctionList;
        if ((name == NULL || strcmp((const char *)name, (const char *)interface_name) == 0) && flags == 0 &&
            (version == NULL || (version->major == have->major && version->minor == have->minor))) {
            *found = &interfaces[i];
            return CKR_OK;
        }
    }
    return CKR_FUNCTION_FAILED;
}

static CK_RV noop_GetFunctionList(CK_FUNCTION_LIST **list) {
    if (list == NULL) {
        return CKR_ARGUMENTS_BAD;
    }
    *list = &list_2_40;
    return CKR_OK;
}

#define BOTH(name, function) list_2_40.name = list_3_0.name = function
#define NOOP(name) BOTH(C_##name, noop_##name)

/* At load, so that the lists are complete before any thread can ask for them. */
__attribute__((constructor)) static void fill_lists(void) {
    list_2_40.version = (CK_VERSION){2, 40};
    list_3_0.version = (CK_VERSION){3, 0};
#define FILL_V2(name) BOTH(name, unsupported_##name);
#define FILL_V3(name) list_3_0.name = unsupported_##name;
#define FUNCTION(version, scope, make, name, parameters, arguments) FILL_##version(name)
#include "functions.def"
#undef FUNCTION
    NOOP(Initialize), NOOP(Finalize), NOOP(GetInfo);
    NOOP(GetSlotList), NOOP(GetSlotInfo), NOOP(GetTokenInfo), NOOP(GetMechanismList), NOOP(GetMechanismInfo);
    NOOP(OpenSession), NOOP(CloseSession), NOOP(CloseAllSessions), NOOP(GetSessionInfo), NOOP(Login), NOOP(Logout);
    NOOP(FindObjectsInit), NOOP(FindObjects), NOOP(FindObjectsFinal), NOOP(GetAttributeValue);
    NOOP(SignInit), NOOP(Sign);
    NOOP(GetFunctionList);
    list_3_0.C_GetInterfaceList = noop_GetInterfaceList;
    list_3_0.C_GetInterface = noop_GetInterface;
}

/* The exported names lead to ours and never the other way: a program may have another module's among its globals. */
EXPORT CK_RV C_GetFunctionList(CK_FUNCTION_LIST **list) {
    return noop_GetFunctionList(list);
}

EXPORT CK_RV C_GetInterfaceList(CK_INTERFACE *list, CK_ULONG *count) {
    return noop_GetInterfaceList(list, count);
}

EXPORT CK_RV C_GetInterface(CK_BYTE *name, CK_VERSION *version, CK_INTERFACE **found, CK_FLAGS flags) {
    return noop_GetInterface(name, version, found, flags);
}
