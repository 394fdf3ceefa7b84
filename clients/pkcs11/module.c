/* The module: its function lists, C_Initialize, slots and tokens, fork. */
#include <stdio.h>
#include <string.h>

#include "p11.h"

static CK_RV unsupported(void) {
    CK_RV rv = p11_enter();
    return rv != CKR_OK ? rv : p11_leave(CKR_FUNCTION_NOT_SUPPORTED);
}

#define INTERFACE_FLAGS CKF_INTERFACE_FORK_SAFE
#include "lists.h"

static bool forked; /* this process is a child that has not called C_Initialize */

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
    CK_RV rv = check_initialize(args);
    if (rv != CKR_OK) {
        return rv;
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
    rv = p11_link_open();
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
    if (rv != CKR_OK) {
        return rv;
    }
    if (info == NULL) {
        return p11_leave(CKR_ARGUMENTS_BAD);
    }
    memset(info, 0, sizeof *info);
    info->cryptokiVersion = (CK_VERSION){3, 0};
    pad(info->manufacturerID, sizeof info->manufacturerID, "hsmcore");
    pad(info->libraryDescription, sizeof info->libraryDescription, "hsmcore gateway");
    info->libraryVersion = (CK_VERSION){1, 0};
    return p11_leave(CKR_OK);
}

/* ---- slots ---- */

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
    CK_ULONG count = p11_mechanisms(slot, NULL, found);
    CK_ULONG i = 0;
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

/* At load, so that the lists are complete before any thread can ask for them. */
__attribute__((constructor)) static void begin(void) {
    fill_lists();
    OURS(p11, Initialize), OURS(p11, Finalize), OURS(p11, GetInfo);
    OURS(p11, GetSlotList), OURS(p11, GetSlotInfo), OURS(p11, GetTokenInfo);
    OURS(p11, GetMechanismList), OURS(p11, GetMechanismInfo);
    OURS(p11, OpenSession), OURS(p11, CloseSession), OURS(p11, CloseAllSessions);
    OURS(p11, GetSessionInfo), OURS(p11, Login), OURS(p11, Logout);
    OURS(p11, FindObjectsInit), OURS(p11, FindObjects);
    OURS(p11, FindObjectsFinal), OURS(p11, GetAttributeValue);
    OURS(p11, SignInit), OURS(p11, Sign), OURS(p11, SignUpdate), OURS(p11, SignFinal);
    OURS(p11, VerifyInit), OURS(p11, Verify), OURS(p11, VerifyUpdate), OURS(p11, VerifyFinal);
    OURS(p11, GenerateRandom), OURS(p11, SeedRandom);
    list_3_0.C_SessionCancel = p11_SessionCancel;
    (void)pthread_atfork(before_fork, in_parent, in_child);
}
