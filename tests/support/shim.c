/* A PKCS#11 module for tests that passes every call on to SHIM_TARGET. It counts calls, and on request it fails them,
 * lies about the token's flags, or holds C_Sign back until the test lets it go. Its knobs are plain exported functions:
 * the test loads the same file, so both see one set of variables. Beside a file with its own name and ".state" it keeps
 * them there, and then they are one set for all processes. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <p11-kit/pkcs11.h>

#define EXPORT __attribute__((visibility("default")))

#define COUNTED(X)         \
    X(C_Initialize)        \
    X(C_Finalize)          \
    X(C_Login)             \
    X(C_OpenSession)       \
    X(C_CloseSession)      \
    X(C_FindObjectsInit)   \
    X(C_SignInit)          \
    X(C_Sign)              \
    X(C_SetAttributeValue) \
    X(C_GetTokenInfo)      \
    X(C_GetMechanismInfo)

enum function {
#define X(name) SHIM_##name,
    COUNTED(X)
#undef X
        FUNCTIONS
};

static const char *const names[] = {
#define X(name) #name,
    COUNTED(X)
#undef X
};

struct knob {
    atomic_long calls;
    atomic_long failures; /* how many calls are still to fail; below 0: all */
    atomic_long every;    /* each so many-th call fails; 0: none does for that */
    atomic_ulong ckr;
};

/* All zero to begin with. Nothing in it needs to be unlocked by a process that may be killed. */
struct state {
    struct knob knobs[FUNCTIONS];
    atomic_ulong extra_flags;
    atomic_int held;
    atomic_long permits;
    atomic_long inside;
};

static struct state own_state;
static struct state *state = &own_state;

static CK_FUNCTION_LIST *target;
static CK_FUNCTION_LIST functions;
static CK_FUNCTION_LIST_3_0 functions_3;
static CK_RV (*target_interfaces)(CK_INTERFACE *, CK_ULONG *);
static pthread_once_t once = PTHREAD_ONCE_INIT;

static struct knob *knob_of(const char *name) {
    for (size_t i = 0; i < FUNCTIONS; i++) {
        if (strcmp(names[i], name) == 0) {
            return &state->knobs[i];
        }
    }
    return NULL;
}

/* Count the call; the CKR it is to fail with, or CKR_OK. */
static CK_RV enter(enum function function) {
    struct knob *knob = &state->knobs[function];
    long call = atomic_fetch_add(&knob->calls, 1) + 1;
    long every = atomic_load(&knob->every);
    if (every > 0 && call % every == 0) {
        return atomic_load(&knob->ckr);
    }
    long left = atomic_load(&knob->failures);
    while (left != 0) {
        if (left < 0 || atomic_compare_exchange_weak(&knob->failures, &left, left - 1)) {
            return atomic_load(&knob->ckr);
        }
    }
    return CKR_OK;
}

#define PASS(name, parameters, arguments)        \
    static CK_RV shim_##name parameters {        \
        CK_RV rv = enter(SHIM_##name);           \
        return rv != CKR_OK ? rv : target->name arguments; \
    }

PASS(C_Initialize, (void *args), (args))
PASS(C_Finalize, (void *reserved), (reserved))
PASS(C_Login, (CK_SESSION_HANDLE s, CK_USER_TYPE user, CK_UTF8CHAR *pin, CK_ULONG length), (s, user, pin, length))
PASS(C_OpenSession, (CK_SLOT_ID slot, CK_FLAGS flags, void *data, CK_NOTIFY notify, CK_SESSION_HANDLE *s),
     (slot, flags, data, notify, s))
PASS(C_CloseSession, (CK_SESSION_HANDLE s), (s))
PASS(C_FindObjectsInit, (CK_SESSION_HANDLE s, CK_ATTRIBUTE *wanted, CK_ULONG count), (s, wanted, count))
PASS(C_SignInit, (CK_SESSION_HANDLE s, CK_MECHANISM *mechanism, CK_OBJECT_HANDLE key), (s, mechanism, key))
PASS(C_SetAttributeValue, (CK_SESSION_HANDLE s, CK_OBJECT_HANDLE object, CK_ATTRIBUTE *set, CK_ULONG count),
     (s, object, set, count))
PASS(C_GetMechanismInfo, (CK_SLOT_ID slot, CK_MECHANISM_TYPE type, CK_MECHANISM_INFO *info), (slot, type, info))

static CK_RV shim_C_GetTokenInfo(CK_SLOT_ID slot, CK_TOKEN_INFO *info) {
    CK_RV rv = enter(SHIM_C_GetTokenInfo);
    rv = rv != CKR_OK ? rv : target->C_GetTokenInfo(slot, info);
    if (rv == CKR_OK) {
        info->flags |= atomic_load(&state->extra_flags);
    }
    return rv;
}

static int take_permit(void) {
    long left = atomic_load(&state->permits);
    while (left > 0) {
        if (atomic_compare_exchange_weak(&state->permits, &left, left - 1)) {
            return 1;
        }
    }
    return 0;
}

static CK_RV shim_C_Sign(CK_SESSION_HANDLE s, CK_BYTE *data, CK_ULONG length, CK_BYTE *signature, CK_ULONG *size) {
    CK_RV rv = enter(SHIM_C_Sign);
    const struct timespec pause = {.tv_nsec = 200000};
    atomic_fetch_add(&state->inside, 1);
    while (atomic_load(&state->held) && !take_permit()) {
        (void)nanosleep(&pause, NULL);
    }
    atomic_fetch_sub(&state->inside, 1);
    return rv != CKR_OK ? rv : target->C_Sign(s, data, length, signature, size);
}

/* Use the state file that lies beside this library, if one does. */
__attribute__((constructor)) static void share_state(void) {
    Dl_info self;
    char path[PATH_MAX];
    if (dladdr(&own_state, &self) == 0 ||
        snprintf(path, sizeof path, "%s.state", self.dli_fname) >= (int)sizeof path) {
        return;
    }
    int file = open(path, O_RDWR | O_CLOEXEC);
    if (file >= 0 && ftruncate(file, sizeof *state) == 0) {
        void *shared = mmap(NULL, sizeof *state, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
        state = shared == MAP_FAILED ? state : shared;
    }
    if (file >= 0) {
        (void)close(file);
    }
}

static void load(void) {
    void *library = dlopen(SHIM_TARGET, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    CK_C_GetFunctionList get_list = NULL;
    void *symbol = library == NULL ? NULL : dlsym(library, "C_GetFunctionList");
    memcpy(&get_list, &symbol, sizeof symbol);
    if (get_list == NULL || get_list(&target) != CKR_OK) {
        target = NULL;
        return;
    }
    symbol = dlsym(library, "C_GetInterfaceList");
    memcpy(&target_interfaces, &symbol, sizeof symbol);
    functions = *target;
#define X(name) functions.name = shim_##name;
    COUNTED(X)
#undef X
}

EXPORT CK_RV C_GetFunctionList(CK_FUNCTION_LIST **list) {
    (void)pthread_once(&once, load);
    *list = &functions;
    return target == NULL ? CKR_GENERAL_ERROR : CKR_OK;
}

/* The target's list, with whatever count it gives, and the standard's interfaces in it by way of the shim. */
EXPORT CK_RV C_GetInterfaceList(CK_INTERFACE *list, CK_ULONG *count) {
    (void)pthread_once(&once, load);
    CK_RV rv = target_interfaces == NULL ? CKR_FUNCTION_NOT_SUPPORTED : target_interfaces(list, count);
    for (CK_ULONG i = 0; rv == CKR_OK && list != NULL && i < *count; i++) {
        const CK_FUNCTION_LIST_3_0 *found = list[i].pFunctionList;
        if (found == NULL || strcmp((const char *)list[i].pInterfaceName, "PKCS 11") != 0) {
            continue;
        }
        list[i].pFunctionList = &functions;
        if (found->version.major == 3) {
            functions_3 = *found;
#define X(name) functions_3.name = shim_##name;
            COUNTED(X)
#undef X
            list[i].pFunctionList = &functions_3;
        }
    }
    return rv;
}

/* ---- knobs: any thread; names are from COUNTED ---- */

EXPORT long shim_calls(const char *name) {
    struct knob *knob = knob_of(name);
    return knob == NULL ? -1 : atomic_load(&knob->calls);
}

EXPORT int shim_fail(const char *name, unsigned long ckr, long times) {
    struct knob *knob = knob_of(name);
    if (knob == NULL) {
        return -1;
    }
    atomic_store(&knob->ckr, ckr);
    atomic_store(&knob->failures, times);
    return 0;
}

/* Each n-th call fails, without being passed on; 0: none. */
EXPORT int shim_fail_each(const char *name, unsigned long ckr, long n) {
    struct knob *knob = knob_of(name);
    if (knob == NULL) {
        return -1;
    }
    atomic_store(&knob->ckr, ckr);
    atomic_store(&knob->every, n);
    return 0;
}

EXPORT void shim_token_flags(unsigned long flags) {
    atomic_store(&state->extra_flags, flags);
}

/* From now on C_Sign waits; `let` lets that many calls go on. */
EXPORT void shim_hold(void) {
    atomic_store(&state->permits, 0);
    atomic_store(&state->held, 1);
}

EXPORT void shim_let(long count) {
    atomic_fetch_add(&state->permits, count);
}

EXPORT void shim_release(void) {
    atomic_store(&state->held, 0);
}

/* How many calls wait in C_Sign. One in a process that was killed goes on being counted. */
EXPORT long shim_inside(void) {
    return atomic_load(&state->inside);
}
