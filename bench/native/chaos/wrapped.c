/* The wrapped module: loading it, and the table of its functions. What clients get in their place is in entry.c. */
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

#include "chaos.h"

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
    return dladdr(&chaos_wrapped, &ours) != 0 && dladdr(symbol, &theirs) != 0 && ours.dli_fbase == theirs.dli_fbase;
}

/* openCryptoki 3.23 fills three places and leaves the count as it was: hence the count is asked for first, and places
 * that were not filled do not count. */
CK_RV chaos_wrapped_interfaces(CK_INTERFACE list[CHAOS_INTERFACES], CK_ULONG *count) {
    *count = 0;
    if (chaos_wrapped.list_interfaces(NULL, count) != CKR_OK || *count > CHAOS_INTERFACES) {
        *count = CHAOS_INTERFACES;
    }
    memset(list, 0, CHAOS_INTERFACES * sizeof *list);
    CK_RV rv = chaos_wrapped.list_interfaces(list, count);
    *count = *count < CHAOS_INTERFACES ? *count : CHAOS_INTERFACES;
    while (*count > 0 && list[*count - 1].pFunctionList == NULL) {
        (*count)--;
    }
    return rv;
}

static const CK_FUNCTION_LIST_3_0 *best_v3(void) {
    CK_INTERFACE list[CHAOS_INTERFACES];
    CK_ULONG count;
    const CK_FUNCTION_LIST_3_0 *best = NULL;
    if (chaos_wrapped.list_interfaces == NULL || chaos_wrapped.get_interface == NULL ||
        chaos_wrapped_interfaces(list, &count) != CKR_OK) {
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
bool chaos_wrapped_load(const char *path, CK_VERSION *version, struct chaos_error *error) {
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
    find(library, "C_GetInterfaceList", &chaos_wrapped.list_interfaces);
    find(library, "C_GetInterface", &chaos_wrapped.get_interface);
    take_functions(v2, best_v3());
    *version = v2->version;
    (void)snprintf(loaded_path, sizeof loaded_path, "%s", path);
    atomic_store_explicit(&loaded, true, memory_order_release);
    return true;
}
