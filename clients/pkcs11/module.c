/* The module: its function lists, C_Initialize, slots and tokens, fork. */
#include <stdio.h>
#include <string.h>

#include "p11.h"

pthread_mutex_t p11_lock = PTHREAD_MUTEX_INITIALIZER;
static bool initialized;
static bool forked; /* this process is a child that has not called C_Initialize */

CK_RV p11_leave(CK_RV rv) {
    if ((rv & P11_LEFT) == 0) {
        (void)pthread_mutex_unlock(&p11_lock);
    }
    return rv & ~P11_LEFT;
}

/* ---- the function lists: each takes the lock, checks its first argument, and calls ours, if there is one ---- */

/* A program may know its slot's number and ask for no list. */
static CK_RV check_slot(CK_SLOT_ID slot) {
    if (slot >= p11_slot_count && p11_link_refresh() == CKR_CRYPTOKI_NOT_INITIALIZED) {
        return CKR_CRYPTOKI_NOT_INITIALIZED;
    }
    return slot < p11_slot_count ? CKR_OK : CKR_SLOT_ID_INVALID;
}

#define CHECK_MODULE CKR_OK
#define CHECK_SLOT check_slot(slot)
#define CHECK_SESSION (p11_session(session) != NULL ? CKR_OK : CKR_SESSION_HANDLE_INVALID)
#define ANSWER(scope, name, arguments)                                                                                 \
    CK_RV rv = CKR_CRYPTOKI_NOT_INITIALIZED;                                                                           \
    (void)pthread_mutex_lock(&p11_lock);                                                                               \
    if (initialized) {                                                                                                 \
        rv = p11_##name == NULL ? CKR_FUNCTION_NOT_SUPPORTED : CHECK_##scope;                                          \
    }                                                                                                                  \
    return p11_leave(rv == CKR_OK ? p11_##name arguments : rv);
#define INTERFACE_FLAGS CKF_INTERFACE_FORK_SAFE
#include "lists.h"

/* ---- fork: the child has the parent's sessions, and a connection of its own ---- */

static void before_fork(void) {
    (void)pthread_mutex_lock(&p11_lock);
}

static void in_parent(void) {
    (void)pthread_mutex_unlock(&p11_lock);
}

static void in_child(void) {
    if (initialized) {
        forked = true;
        p11_link_after_fork();
    }
    (void)pthread_mutex_unlock(&p11_lock);
}

/* ---- C_Initialize ---- */

CK_RV p11_C_Finalize(void *reserved) {
    if (reserved != NULL) {
        return CKR_ARGUMENTS_BAD;
    }
    initialized = false;
    p11_link_close();
    p11_sessions_free();
    p11_keys_free();
    p11_config_free();
    return CKR_OK;
}

static CK_RV initialize(const CK_C_INITIALIZE_ARGS *args) {
    CK_RV rv = check_initialize(args);
    if (rv != CKR_OK) {
        return rv;
    }
    if (initialized && forked) { /* by the rules a child begins afresh */
        (void)p11_C_Finalize(NULL);
    }
    forked = false;
    if (initialized) {
        return CKR_CRYPTOKI_ALREADY_INITIALIZED;
    }
    const char *problem = p11_config_load(args == NULL ? NULL : args->pReserved);
    if (problem != NULL) {
        (void)fprintf(stderr, "hsmcore_pkcs11: %s\n", problem);
        return CKR_ARGUMENTS_BAD;
    }
    if (p11_config.verify && !p11_ssl_load()) {
        (void)fputs("hsmcore_pkcs11: verify = yes needs libssl.so.3: install OpenSSL 3\n", stderr);
        p11_config_free();
        return CKR_LIBRARY_LOAD_FAILED;
    }
    rv = p11_link_open();
    initialized = rv == CKR_OK;
    return rv;
}

CK_RV p11_C_Initialize(void *args) {
    (void)pthread_mutex_lock(&p11_lock);
    return p11_leave(initialize(args));
}

CK_RV p11_C_GetInfo(CK_INFO *info) {
    if (info == NULL) {
        return CKR_ARGUMENTS_BAD;
    }
    *info = (CK_INFO){.cryptokiVersion = {3, 0}, .libraryVersion = {1, 0}};
    pad(info->manufacturerID, sizeof info->manufacturerID, "hsmcore");
    pad(info->libraryDescription, sizeof info->libraryDescription, "hsmcore gateway");
    return CKR_OK;
}

/* ---- slots ---- */

/* A slot is a key manager that this process may use, and its token is there while the gateway says so. */
CK_RV p11_C_GetSlotList(CK_BYTE token_present, CK_SLOT_ID *list, CK_ULONG *count) {
    CK_SLOT_ID found[P11_SLOTS];
    CK_ULONG all = 0;
    if (count == NULL) {
        return CKR_ARGUMENTS_BAD;
    }
    CK_RV rv = p11_link_refresh();
    if (rv != CKR_OK && p11_slot_count == 0) {
        return rv == CKR_CRYPTOKI_NOT_INITIALIZED ? rv : CKR_FUNCTION_FAILED;
    }
    for (unsigned i = 0; i < p11_slot_count; i++) {
        if (!token_present || p11_slots[i].number >= 0) {
            found[all++] = i;
        }
    }
    return put_list(found, all, list, count);
}

CK_RV p11_C_GetSlotInfo(CK_SLOT_ID slot, CK_SLOT_INFO *info) {
    if (info == NULL) {
        return CKR_ARGUMENTS_BAD;
    }
    *info = (CK_SLOT_INFO){.flags = CKF_REMOVABLE_DEVICE | (p11_slots[slot].number >= 0 ? CKF_TOKEN_PRESENT : 0)};
    pad(info->slotDescription, sizeof info->slotDescription, p11_slots[slot].name);
    pad(info->manufacturerID, sizeof info->manufacturerID, "hsmcore");
    return CKR_OK;
}

CK_RV p11_C_GetTokenInfo(CK_SLOT_ID slot, CK_TOKEN_INFO *info) {
    if (info == NULL) {
        return CKR_ARGUMENTS_BAD;
    }
    if (p11_slots[slot].number < 0) {
        return CKR_TOKEN_NOT_PRESENT;
    }
    *info = (CK_TOKEN_INFO){
        .flags = CKF_RNG | CKF_WRITE_PROTECTED | CKF_USER_PIN_INITIALIZED | CKF_TOKEN_INITIALIZED,
        .ulMaxSessionCount = CK_EFFECTIVELY_INFINITE,
        .ulMaxRwSessionCount = CK_EFFECTIVELY_INFINITE,
        .ulMaxPinLen = 255,
        .ulTotalPublicMemory = CK_UNAVAILABLE_INFORMATION,
        .ulFreePublicMemory = CK_UNAVAILABLE_INFORMATION,
        .ulTotalPrivateMemory = CK_UNAVAILABLE_INFORMATION,
        .ulFreePrivateMemory = CK_UNAVAILABLE_INFORMATION,
    };
    pad(info->label, sizeof info->label, p11_slots[slot].name);
    pad(info->manufacturerID, sizeof info->manufacturerID, "hsmcore");
    pad(info->model, sizeof info->model, "gateway");
    pad(info->serialNumber, sizeof info->serialNumber, p11_slots[slot].name);
    p11_sessions_count(slot, &info->ulSessionCount, &info->ulRwSessionCount);
    return CKR_OK;
}

CK_RV p11_C_GetMechanismList(CK_SLOT_ID slot, CK_MECHANISM_TYPE *list, CK_ULONG *count) {
    CK_MECHANISM_TYPE found[3];
    return count == NULL ? CKR_ARGUMENTS_BAD : put_list(found, p11_mechanisms(slot, NULL, found), list, count);
}

CK_RV p11_C_GetMechanismInfo(CK_SLOT_ID slot, CK_MECHANISM_TYPE type, CK_MECHANISM_INFO *info) {
    CK_MECHANISM_TYPE found[3];
    if (info == NULL) {
        return CKR_ARGUMENTS_BAD;
    }
    for (CK_ULONG i = p11_mechanisms(slot, NULL, found); i > 0; i--) {
        if (found[i - 1] == type) {
            CK_ULONG bits = type == CKM_EDDSA ? 255 : 256;
            *info = (CK_MECHANISM_INFO){bits, bits, CKF_SIGN | (p11_ssl_load() ? CKF_VERIFY : 0)};
            info->flags |= type == CKM_EDDSA ? 0 : CKF_EC_F_P | CKF_EC_NAMEDCURVE | CKF_EC_UNCOMPRESS;
            return CKR_OK;
        }
    }
    return CKR_MECHANISM_INVALID;
}

/* At load, so that the lists are complete before any thread can ask for them. */
__attribute__((constructor)) static void begin(void) {
    fill_lists();
    OURS(p11_C, Initialize);
    (void)pthread_atfork(before_fork, in_parent, in_child);
}
