/* Where a client begins: C_Initialize, and the function lists and interfaces that it gets.
 *
 * Lists and interfaces may be asked for before C_Initialize, when only the environment can tell which module is
 * wrapped. If it does not, the client gets the 2.40 list alone. Read module.c next. */
#include <pthread.h>
#include <string.h>

#include "chaos.h"

#define EXPORT __attribute__((visibility("default")))

#define IN_V2_V2(name) .name = chaos_##name,
#define IN_V2_V3(name)
static CK_FUNCTION_LIST list_v2 = {
    .version = {2, 40},
#define FUNCTION(version, scope, make, name, parameters, arguments) IN_V2_##version(name)
#include "functions.def"
#undef FUNCTION
};

static const CK_FUNCTION_LIST_3_0 list_v3 = {
    .version = {3, 0},
#define FUNCTION(version, scope, make, name, parameters, arguments) .name = chaos_##name,
#include "functions.def"
#undef FUNCTION
};

/* Our 2.40 list bears the version of the wrapped module's. */
static bool load_early(void) {
    return chaos_preload(&list_v2.version);
}

CK_RV chaos_C_Initialize(void *init_args) {
    return chaos_initialize(init_args, &list_v2.version);
}

CK_RV chaos_C_GetFunctionList(CK_FUNCTION_LIST **list) {
    if (list == NULL) {
        return CKR_ARGUMENTS_BAD;
    }
    (void)load_early();
    *list = &list_v2;
    return CKR_OK;
}

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char standard_name[] = "PKCS 11";
static CK_INTERFACE own = {standard_name, &list_v2, 0};

/* Our interfaces in place of the wrapped module's; never freed, because clients keep the pointers. */
static struct {
    void *of;
    CK_INTERFACE interface;
    CK_FUNCTION_LIST_3_0 list;
} wrapped_interfaces[CHAOS_INTERFACES];
static size_t interface_count;

/* Standard interfaces get our functions. Others are passed on untouched: their lists have a form that we don't know. A
 * 3.x list has the form of 3.0 up to 3.1; a later one is offered as 3.1. */
static CK_INTERFACE *ours(const CK_INTERFACE *theirs) {
    CK_INTERFACE *result = NULL;
    (void)pthread_mutex_lock(&lock);
    for (size_t i = 0; i < interface_count && result == NULL; i++) {
        if (wrapped_interfaces[i].of == theirs->pFunctionList) {
            result = &wrapped_interfaces[i].interface;
        }
    }
    if (result == NULL && interface_count < CHAOS_INTERFACES) {
        size_t i = interface_count++;
        wrapped_interfaces[i].of = theirs->pFunctionList;
        wrapped_interfaces[i].interface = *theirs;
        result = &wrapped_interfaces[i].interface;
        const CK_VERSION *have = theirs->pFunctionList;
        bool standard = theirs->pInterfaceName != NULL && have != NULL &&
                        strcmp((const char *)theirs->pInterfaceName, standard_name) == 0;
        if (standard && have->major == 2) {
            result->pFunctionList = &list_v2;
        } else if (standard && have->major == 3) {
            wrapped_interfaces[i].list = list_v3;
            wrapped_interfaces[i].list.version = (CK_VERSION){3, have->minor > 1 ? 1 : have->minor};
            result->pFunctionList = &wrapped_interfaces[i].list;
        }
    }
    (void)pthread_mutex_unlock(&lock);
    return result;
}

CK_RV chaos_C_GetInterfaceList(CK_INTERFACE *list, CK_ULONG *count) {
    if (count == NULL) {
        return CKR_ARGUMENTS_BAD;
    }
    if (load_early() && chaos_wrapped.list_interfaces != NULL) {
        CK_INTERFACE theirs[CHAOS_INTERFACES];
        CK_ULONG room = *count;
        CK_RV rv = chaos_wrapped_interfaces(theirs, count);
        if (rv != CKR_OK || list == NULL) {
            return rv;
        }
        if (room < *count) {
            return CKR_BUFFER_TOO_SMALL;
        }
        for (CK_ULONG i = 0; i < *count; i++) {
            const CK_INTERFACE *mine = ours(&theirs[i]);
            list[i] = mine != NULL ? *mine : theirs[i];
        }
        return rv;
    }
    CK_RV rv = list != NULL && *count < 1 ? CKR_BUFFER_TOO_SMALL : CKR_OK;
    if (rv == CKR_OK && list != NULL) {
        *list = own;
    }
    *count = 1;
    return rv;
}

CK_RV chaos_C_GetInterface(CK_BYTE *name, CK_VERSION *wanted, CK_INTERFACE **found, CK_FLAGS flags) {
    if (found == NULL) {
        return CKR_ARGUMENTS_BAD;
    }
    if (load_early() && chaos_wrapped.get_interface != NULL) {
        CK_RV rv = chaos_wrapped.get_interface(name, wanted, found, flags);
        CK_INTERFACE *mine = rv == CKR_OK && *found != NULL ? ours(*found) : NULL;
        *found = mine != NULL ? mine : *found;
        return rv;
    }
    bool named = name == NULL || strcmp((const char *)name, standard_name) == 0;
    bool versioned =
        wanted == NULL || (wanted->major == list_v2.version.major && wanted->minor == list_v2.version.minor);
    if (!named || !versioned || (flags & ~own.flags) != 0) {
        return CKR_FUNCTION_FAILED;
    }
    *found = &own;
    return CKR_OK;
}

/* The exported names lead to ours and never the other way: a program may have another module's C_GetFunctionList among
 * its global symbols. */
EXPORT CK_RV C_GetFunctionList(CK_FUNCTION_LIST **list) {
    return chaos_C_GetFunctionList(list);
}

EXPORT CK_RV C_GetInterfaceList(CK_INTERFACE *list, CK_ULONG *count) {
    return chaos_C_GetInterfaceList(list, count);
}

EXPORT CK_RV C_GetInterface(CK_BYTE *name, CK_VERSION *wanted, CK_INTERFACE **found, CK_FLAGS flags) {
    return chaos_C_GetInterface(name, wanted, found, flags);
}
