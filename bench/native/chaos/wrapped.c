/* The wrapped module: loading it, its functions, its interfaces. */
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "chaos.h"

#define EXPORT __attribute__((visibility("default")))
#define INTERFACES 32

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-parameter"
#define FUNCTION(version, scope, make, name, parameters, arguments)                                                    \
    static CK_RV missing_##name parameters {                                                                           \
        return CKR_FUNCTION_NOT_SUPPORTED;                                                                             \
    }
#include "functions.def"
#undef FUNCTION
#pragma GCC diagnostic pop

struct chaos_wrapped chaos_wrapped;
static atomic_bool loaded;
static char loaded_path[CHAOS_PATH];
static CK_VERSION version;
static CK_C_GetInterfaceList interface_list;
static CK_C_GetInterface interface;

bool chaos_wrapped_loaded(void) {
    return atomic_load_explicit(&loaded, memory_order_acquire);
}

/* dlsym's object pointer to a function pointer, as POSIX allows and C does not. */
static void find(void *library, const char *name, void *out) {
    void *symbol = dlsym(library, name);
    memcpy(out, &symbol, sizeof symbol);
}

static bool is_ours(void *library) {
    Dl_info ours;
    Dl_info theirs;
    void *symbol = dlsym(library, "C_GetFunctionList");
    return dladdr(&chaos_list_v2, &ours) != 0 && dladdr(symbol, &theirs) != 0 && ours.dli_fbase == theirs.dli_fbase;
}

/* The wrapped module's interfaces. openCryptoki 3.23 fills three places and leaves the count as it was: hence the count is
 * asked for first, and what was not filled does not count. */
static CK_RV their_interfaces(CK_INTERFACE list[INTERFACES], CK_ULONG *count) {
    *count = 0;
    if (interface_list(NULL, count) != CKR_OK || *count > INTERFACES) {
        *count = INTERFACES;
    }
    memset(list, 0, INTERFACES * sizeof *list);
    CK_RV rv = interface_list(list, count);
    *count = *count < INTERFACES ? *count : INTERFACES;
    while (*count > 0 && list[*count - 1].pFunctionList == NULL) {
        (*count)--;
    }
    return rv;
}

static const CK_FUNCTION_LIST_3_0 *best_v3(void) {
    CK_INTERFACE list[INTERFACES];
    CK_ULONG count;
    const CK_FUNCTION_LIST_3_0 *best = NULL;
    if (interface_list == NULL || interface == NULL || their_interfaces(list, &count) != CKR_OK) {
        return NULL;
    }
    for (CK_ULONG i = 0; i < count; i++) {
        const CK_FUNCTION_LIST_3_0 *candidate = list[i].pFunctionList;
        if (list[i].pInterfaceName != NULL && strcmp((const char *)list[i].pInterfaceName, "PKCS 11") == 0 &&
            candidate != NULL && candidate->version.major == 3 &&
            (best == NULL || candidate->version.minor > best->version.minor)) {
            best = candidate;
        }
    }
    return best;
}

static void take_functions(const CK_FUNCTION_LIST *v2, const CK_FUNCTION_LIST_3_0 *v3) {
#define TAKE_V2(name) chaos_wrapped.name = v2->name != NULL ? v2->name : missing_##name;
#define TAKE_V3(name) chaos_wrapped.name = v3 != NULL && v3->name != NULL ? v3->name : missing_##name;
#define FUNCTION(version, scope, make, name, parameters, arguments) TAKE_##version(name)
#include "functions.def"
#undef FUNCTION
}

/* Never unloaded again: modules leave exit handlers and thread-local destructors behind that must still find their
 * code, and other threads may be inside. */
bool chaos_wrapped_load(const char *path, struct chaos_error *error) {
    if (chaos_wrapped_loaded() && strcmp(path, loaded_path) == 0) {
        return true;
    }
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        (void)snprintf(error->text, sizeof error->text, "$.module: can't load %.256s: %.600s", path, dlerror());
        return false;
    }
    CK_C_GetFunctionList get = NULL;
    find(library, "C_GetFunctionList", &get);
    if (get == NULL) {
        (void)snprintf(error->text, sizeof error->text, "$.module: %.512s is no PKCS #11 module: no C_GetFunctionList",
                       path);
        return false;
    }
    if (is_ours(library)) { /* asking it would wait for the lock that we hold */
        (void)snprintf(error->text, sizeof error->text, "$.module: %.512s is this module itself", path);
        return false;
    }
    CK_FUNCTION_LIST *v2 = NULL;
    CK_RV rv = get(&v2);
    if (rv != CKR_OK || v2 == NULL) {
        (void)snprintf(error->text, sizeof error->text, "$.module: C_GetFunctionList of %.512s fails with 0x%lx", path,
                       rv);
        return false;
    }
    find(library, "C_GetInterfaceList", &interface_list);
    find(library, "C_GetInterface", &interface);
    take_functions(v2, best_v3());
    version = v2->version;
    chaos_list_v2.version = version;
    (void)snprintf(loaded_path, sizeof loaded_path, "%s", path);
    atomic_store_explicit(&loaded, true, memory_order_release);
    return true;
}

/* ---- function lists and interfaces
 * ----------------------------------------------------------------------------------------
 *
 * They may be asked for before C_Initialize, when only the environment can tell which module is wrapped. If it does
 * not, the client gets the 2.40 list alone.
 */

CK_RV chaos_C_GetFunctionList(CK_FUNCTION_LIST **list) {
    if (list == NULL) {
        return CKR_ARGUMENTS_BAD;
    }
    (void)chaos_preload();
    *list = &chaos_list_v2;
    return CKR_OK;
}

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char standard_name[] = "PKCS 11";
static CK_INTERFACE own = {standard_name, &chaos_list_v2, 0};

/* What a client gets in place of one of the wrapped module's interfaces; kept, because clients keep the pointer. */
static struct {
    void *of;
    CK_INTERFACE interface;
    CK_FUNCTION_LIST_3_0 list;
} wrapped_interfaces[INTERFACES];
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
    if (result == NULL && interface_count < INTERFACES) {
        size_t i = interface_count++;
        wrapped_interfaces[i].of = theirs->pFunctionList;
        wrapped_interfaces[i].interface = *theirs;
        result = &wrapped_interfaces[i].interface;
        const CK_VERSION *have = theirs->pFunctionList;
        bool standard = theirs->pInterfaceName != NULL && have != NULL &&
                        strcmp((const char *)theirs->pInterfaceName, standard_name) == 0;
        if (standard && have->major == 2) {
            result->pFunctionList = &chaos_list_v2;
        } else if (standard && have->major == 3) {
            wrapped_interfaces[i].list = chaos_list_v3;
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
    if (chaos_preload() && interface_list != NULL) {
        CK_INTERFACE theirs[INTERFACES];
        CK_ULONG room = *count;
        CK_RV rv = their_interfaces(theirs, count);
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
    if (chaos_preload() && interface != NULL) {
        CK_RV rv = interface(name, wanted, found, flags);
        CK_INTERFACE *mine = rv == CKR_OK && *found != NULL ? ours(*found) : NULL;
        *found = mine != NULL ? mine : *found;
        return rv;
    }
    bool named = name == NULL || strcmp((const char *)name, standard_name) == 0;
    bool versioned = wanted == NULL ||
                     (wanted->major == chaos_list_v2.version.major && wanted->minor == chaos_list_v2.version.minor);
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
