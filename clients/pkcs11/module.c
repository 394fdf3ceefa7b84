/* The module: its function lists, C_Initialize, slots and tokens, fork. */
#include <stdio.h>
#include <string.h>

#include "p11.h"

#define EXPORT __attribute__((visibility("default")))

static bool forked; /* this process is a child that has not called C_Initialize */

static void pad(unsigned char *out, size_t size, const char *text) {
    size_t length = strlen(text);
    for (size_t i = 0; i < size; i++) {
        out[i] = i < length ? (unsigned char)text[i] : ' ';
    }
}

/* ---- fork: the child has the parent's sessions, and a connection of its own ---- */

static void before_fork(void) {
    (void)pthread_mutex_lock(&p11_lock);
}

static void in_parent(void) {
    (void)pthread_mutex_unlock(&p11_lock);
}

static void in_child(void) {
    if (p11_initialized) {
        forked = true;
        p11_link_after_fork();
    }
    (void)pthread_mutex_unlock(&p11_lock);
}

/* ---- C_Initialize ---- */

static void tear_down(void) {
    p11_initialized = false;
    p11_link_close();
    p11_sessions_free();
    p11_keys_free();
    p11_config_free();
}

static CK_RV initialize(const CK_C_INITIALIZE_ARGS *args) {
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
    if (p11_initialized && forked) { /* by the rules a child begins afresh */
        tear_down();
    }
    forked = false;
    if (p11_initialized) {
        return CKR_CRYPTOKI_ALREADY_INITIALIZED;
    }
    const char *problem = p11_config_load(args == NULL ? NULL : args->pReserved);
    if (problem != NULL) {
        (void)fprintf(stderr, "hsmcore_pkcs11: %s\n", problem);
        return CKR_ARGUMENTS_BAD;
    }
    if (p11_config.verify && !p11_crypto_load()) {
        (void)fputs("hsmcore_pkcs11: verify = yes needs libcrypto.so.3: install OpenSSL 3\n", stderr);
        p11_config_free();
        return CKR_LIBRARY_LOAD_FAILED;
    }
    CK_RV rv = p11_link_open();
    p11_initialized = rv == CKR_OK;
    return rv;
}

static CK_RV p11_Initialize(void *args) {
    (void)pthread_mutex_lock(&p11_lock);
    return p11_leave(initialize(args));
}

static CK_RV p11_Finalize(void *reserved) {
    CK_RV rv = reserved != NULL ? CKR_ARGUMENTS_BAD : p11_enter();
    if (rv == CKR_OK) {
        tear_down();
        (void)p11_leave(CKR_OK);
    }
    return rv;
}

static CK_RV p11_GetInfo(CK_INFO *info) {
    CK_RV rv = p11_enter();
    if (rv != CKR_OK || (rv = p11_leave(info == NULL ? CKR_ARGUMENTS_BAD : CKR_OK)) != CKR_OK) {
        return rv;
    }
    memset(info, 0, sizeof *info);
    info->cryptokiVersion = (CK_VERSION){3, 0};
    pad(info->manufacturerID, sizeof info->manufacturerID, "hsmcore");
    pad(info->libraryDescription, sizeof info->libraryDescription, "hsmcore gateway");
    info->libraryVersion = (CK_VERSION){1, 0};
    return CKR_OK;
}

/* ---- slots ---- */

/* The rule of section 5.2 for a list of variable length. */
static CK_RV put_list(const CK_ULONG *value, CK_ULONG available, CK_ULONG *list, CK_ULONG *count) {
    CK_RV rv = CKR_OK;
    if (list != NULL && *count < available) {
        rv = CKR_BUFFER_TOO_SMALL;
    } else if (list != NULL && available > 0) {
        memcpy(list, value, available * sizeof *value);
    }
    *count = available;
    return rv;
}

/* A slot is a key manager that this process may use, and its token is there while the gateway says so. */
static CK_RV p11_GetSlotList(CK_BYTE token_present, CK_SLOT_ID *list, CK_ULONG *count) {
    CK_RV rv = p11_enter();
    if (rv != CKR_OK) {
        return rv;
    }
    if (count == NULL) {
        return p11_leave(CKR_ARGUMENTS_BAD);
    }
    rv = p11_link_refresh();
    if (rv != CKR_OK && p11_slot_count == 0) {
        return p11_leave(rv == CKR_CRYPTOKI_NOT_INITIALIZED ? rv : CKR_FUNCTION_FAILED);
    }
    CK_SLOT_ID found[P11_SLOTS];
    CK_ULONG all = 0;
    for (unsigned i = 0; i < p11_slot_count; i++) {
        if (!token_present || p11_slots[i].number >= 0) {
            found[all++] = i;
        }
    }
    return p11_leave(put_list(found, all, list, count));
}

/* Take the lock for a call about a slot. */
static CK_RV enter_slot(CK_SLOT_ID slot, const void *result) {
    CK_RV rv = p11_enter();
    if (rv == CKR_OK && result == NULL) {
        rv = p11_leave(CKR_ARGUMENTS_BAD);
    } else if (rv == CKR_OK && slot >= p11_slot_count) {
        rv = p11_leave(CKR_SLOT_ID_INVALID);
    }
    return rv;
}

static CK_RV p11_GetSlotInfo(CK_SLOT_ID slot, CK_SLOT_INFO *info) {
    CK_RV rv = enter_slot(slot, info);
    if (rv != CKR_OK) {
        return rv;
    }
    memset(info, 0, sizeof *info);
    pad(info->slotDescription, sizeof info->slotDescription, p11_slots[slot].name);
    pad(info->manufacturerID, sizeof info->manufacturerID, "hsmcore");
    info->flags = CKF_REMOVABLE_DEVICE | (p11_slots[slot].number >= 0 ? CKF_TOKEN_PRESENT : 0);
    return p11_leave(CKR_OK);
}

static CK_RV p11_GetTokenInfo(CK_SLOT_ID slot, CK_TOKEN_INFO *info) {
    CK_RV rv = enter_slot(slot, info);
    if (rv != CKR_OK) {
        return rv;
    }
    if (p11_slots[slot].number < 0) {
        return p11_leave(CKR_TOKEN_NOT_PRESENT);
    }
    memset(info, 0, sizeof *info);
    pad(info->label, sizeof info->label, p11_slots[slot].name);
    pad(info->manufacturerID, sizeof info->manufacturerID, "hsmcore");
    pad(info->model, sizeof info->model, "gateway");
    pad(info->serialNumber, sizeof info->serialNumber, p11_slots[slot].name);
    info->flags = CKF_RNG | CKF_WRITE_PROTECTED | CKF_USER_PIN_INITIALIZED | CKF_TOKEN_INITIALIZED;
    info->ulMaxSessionCount = info->ulMaxRwSessionCount = CK_EFFECTIVELY_INFINITE;
    info->ulMaxPinLen = 255;
    info->ulTotalPublicMemory = info->ulFreePublicMemory = CK_UNAVAILABLE_INFORMATION;
    info->ulTotalPrivateMemory = info->ulFreePrivateMemory = CK_UNAVAILABLE_INFORMATION;
    p11_sessions_count(slot, &info->ulSessionCount, &info->ulRwSessionCount);
    return p11_leave(CKR_OK);
}

static CK_RV p11_GetMechanismList(CK_SLOT_ID slot, CK_MECHANISM_TYPE *list, CK_ULONG *count) {
    CK_MECHANISM_TYPE found[3];
    CK_RV rv = enter_slot(slot, count);
    return rv != CKR_OK ? rv : p11_leave(put_list(found, p11_mechanisms(slot, NULL, found), list, count));
}

static CK_RV p11_GetMechanismInfo(CK_SLOT_ID slot, CK_MECHANISM_TYPE type, CK_MECHANISM_INFO *info) {
    CK_MECHANISM_TYPE found[3];
    CK_RV rv = enter_slot(slot, info);
    if (rv != CKR_OK) {
        return rv;
    }
    CK_ULONG count = p11_mechanisms(slot, NULL, found), i = 0;
    while (i < count && found[i] != type) {
        i++;
    }
    if (i == count) {
        return p11_leave(CKR_MECHANISM_INVALID);
    }
    CK_ULONG bits = type == CKM_EDDSA ? 255 : 256;
    *info = (CK_MECHANISM_INFO){bits, bits, CKF_SIGN | (p11_crypto_load() ? CKF_VERIFY : 0)};
    info->flags |= type == CKM_EDDSA ? 0 : CKF_EC_F_P | CKF_EC_NAMEDCURVE | CKF_EC_UNCOMPRESS;
    return p11_leave(CKR_OK);
}

/* ---- the function lists ---- */

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-parameter"
#define FUNCTION(version, scope, make, name, parameters, arguments)                                                    \
    static CK_RV unsupported_##name parameters {                                                                       \
        CK_RV rv = p11_enter();                                                                                        \
        return rv != CKR_OK ? rv : p11_leave(CKR_FUNCTION_NOT_SUPPORTED);                                              \
    }
#include "functions.def"
#undef FUNCTION
#pragma GCC diagnostic pop

static CK_FUNCTION_LIST list_2_40;
static CK_FUNCTION_LIST_3_0 list_3_0;
static CK_BYTE interface_name[] = "PKCS 11";
static CK_INTERFACE interfaces[] = {{(char *)interface_name, &list_3_0, CKF_INTERFACE_FORK_SAFE},
                                    {(char *)interface_name, &list_2_40, CKF_INTERFACE_FORK_SAFE}};

static CK_RV p11_GetInterfaceList(CK_INTERFACE *list, CK_ULONG *count) {
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

static CK_RV p11_GetInterface(CK_BYTE *name, CK_VERSION *version, CK_INTERFACE **found, CK_FLAGS flags) {
    if (found == NULL) {
        return CKR_ARGUMENTS_BAD;
    }
    for (size_t i = 0; i < 2; i++) {
        const CK_VERSION *have = interfaces[i].pFunctionList;
        if ((name == NULL || strcmp((const char *)name, (const char *)interface_name) == 0) &&
            (flags & ~interfaces[i].flags) == 0 &&
            (version == NULL || (version->major == have->major && version->minor == have->minor))) {
            *found = &interfaces[i];
            return CKR_OK;
        }
    }
    return CKR_FUNCTION_FAILED;
}

static CK_RV p11_GetFunctionList(CK_FUNCTION_LIST **list) {
    if (list == NULL) {
        return CKR_ARGUMENTS_BAD;
    }
    *list = &list_2_40;
    return CKR_OK;
}

#define BOTH(name, function) list_2_40.name = list_3_0.name = function
#define OURS(name) BOTH(C_##name, p11_##name)

/* At load, so that the lists are complete before any thread can ask for them. */
__attribute__((constructor)) static void begin(void) {
    list_2_40.version = (CK_VERSION){2, 40};
    list_3_0.version = (CK_VERSION){3, 0};
#define FILL_V2(name) BOTH(name, unsupported_##name);
#define FILL_V3(name) list_3_0.name = unsupported_##name;
#define FUNCTION(version, scope, make, name, parameters, arguments) FILL_##version(name)
#include "functions.def"
#undef FUNCTION
    OURS(Initialize), OURS(Finalize), OURS(GetInfo), OURS(GetFunctionList);
    OURS(GetSlotList), OURS(GetSlotInfo), OURS(GetTokenInfo), OURS(GetMechanismList), OURS(GetMechanismInfo);
    OURS(OpenSession), OURS(CloseSession), OURS(CloseAllSessions), OURS(GetSessionInfo), OURS(Login), OURS(Logout);
    OURS(FindObjectsInit), OURS(FindObjects), OURS(FindObjectsFinal), OURS(GetAttributeValue);
    OURS(SignInit), OURS(Sign), OURS(SignUpdate), OURS(SignFinal);
    OURS(VerifyInit), OURS(Verify), OURS(VerifyUpdate), OURS(VerifyFinal);
    OURS(GenerateRandom), OURS(SeedRandom);
    list_3_0.C_SessionCancel = p11_SessionCancel;
    list_3_0.C_GetInterfaceList = p11_GetInterfaceList;
    list_3_0.C_GetInterface = p11_GetInterface;
    (void)pthread_atfork(before_fork, in_parent, in_child);
}

/* The exported names lead to ours and never the other way: a program may have another module's among its globals. */
EXPORT CK_RV C_GetFunctionList(CK_FUNCTION_LIST **list) {
    return p11_GetFunctionList(list);
}

EXPORT CK_RV C_GetInterfaceList(CK_INTERFACE *list, CK_ULONG *count) {
    return p11_GetInterfaceList(list, count);
}

EXPORT CK_RV C_GetInterface(CK_BYTE *name, CK_VERSION *version, CK_INTERFACE **found, CK_FLAGS flags) {
    return p11_GetInterface(name, version, found, flags);
}
