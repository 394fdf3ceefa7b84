/* Loading and initializing modules, once for each process and path. */
#include "module.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* One table for the process, as C_Initialize is for the process. Its lock guards the list and the counts of users, and
 * is held across no call of a module: one that hangs holds up no other. */
static pthread_mutex_t table_lock = PTHREAD_MUTEX_INITIALIZER;
static hsm_module *table;

/* Another thread may have held the lock at the moment of the fork; the child has no such thread to release it. */
static void reset_in_child(void) {
    (void)pthread_mutex_init(&table_lock, NULL);
}

__attribute__((constructor)) static void watch_forks(void) {
    (void)pthread_atfork(NULL, NULL, reset_in_child);
}

/* dlsym returns an object pointer; POSIX guarantees that the bits are those of the function. */
static void load_symbol(void *library, const char *name, void *function, size_t size) {
    void *symbol = dlsym(library, name);
    memcpy(function, &symbol, size);
}

/* The newest "PKCS 11" interface of the list, because some modules refuse a request for a version that they have. */
static CK_FUNCTION_LIST *newest_interface(void *library) {
    CK_C_GetInterfaceList get_list;
    load_symbol(library, "C_GetInterfaceList", &get_list, sizeof get_list);
    /* Zeroed, and the count asked for first: openCryptoki 3.23 fills three places and leaves the count as it was. */
    CK_INTERFACE interfaces[32] = {{0}};
    const CK_ULONG room = sizeof interfaces / sizeof interfaces[0];
    CK_ULONG count = 0;
    if (get_list == NULL) {
        return NULL;
    }
    if (get_list(NULL, &count) != CKR_OK || count > room) {
        count = room;
    }
    if (get_list(interfaces, &count) != CKR_OK) {
        return NULL;
    }
    CK_FUNCTION_LIST *best = NULL;
    for (CK_ULONG i = 0; i < count && i < room; i++) {
        CK_FUNCTION_LIST *list = interfaces[i].pFunctionList;
        if (list == NULL || interfaces[i].pInterfaceName == NULL ||
            strcmp((const char *)interfaces[i].pInterfaceName, "PKCS 11") != 0) {
            continue;
        }
        bool newer = best == NULL || list->version.major > best->version.major ||
                     (list->version.major == best->version.major && list->version.minor > best->version.minor);
        best = newer ? list : best;
    }
    return best;
}

static hsm_status load(hsm_module *module, hsm_error *error) {
    if (access(module->path, R_OK) != 0) {
        return hsm_fail(error, HSM_MODULE_MISSING, "dlopen", "%s: no such file, or not readable", module->path);
    }
    /* NODELETE: threads and exit handlers of several modules run on after dlclose. */
    module->library = dlopen(module->path, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (module->library == NULL) {
        const char *why = dlerror();
        return hsm_fail(error, HSM_MODULE_INVALID, "dlopen", "%s", why != NULL ? why : module->path);
    }
    module->p11 = newest_interface(module->library);
    if (module->p11 != NULL) {
        return HSM_OK;
    }
    CK_C_GetFunctionList get_list;
    load_symbol(module->library, "C_GetFunctionList", &get_list, sizeof get_list);
    if (get_list == NULL) {
        return hsm_fail(error, HSM_MODULE_INVALID, "dlsym", "%s has no C_GetFunctionList", module->path);
    }
    CK_RV rv = get_list(&module->p11);
    if (rv != CKR_OK) {
        module->p11 = NULL;
        return hsm_fail_ckr(error, rv, "C_GetFunctionList", "%s", module->path);
    }
    return module->p11 != NULL ? HSM_OK : hsm_fail(error, HSM_MODULE_INVALID, "C_GetFunctionList", "%s", module->path);
}

static hsm_status initialize(hsm_module *module, hsm_error *error) {
    CK_C_INITIALIZE_ARGS args = {.flags = CKF_OS_LOCKING_OK, .pReserved = module->args};
    CK_RV rv = module->p11->C_Initialize(&args);
    if (rv == CKR_CRYPTOKI_ALREADY_INITIALIZED) {
        /* The other code may have promised a single thread, which several modules answer by dropping their locks. */
        return hsm_fail_ckr(error, rv, "C_Initialize",
                            "other code in this process has initialized %s; let hsmcore do it first", module->path);
    }
    module->initialized = rv == CKR_OK;
    return rv == CKR_OK ? HSM_OK : hsm_fail_ckr(error, rv, "C_Initialize", "%s", module->path);
}

static void discard(hsm_module *module) {
    if (module->library != NULL) {
        (void)dlclose(module->library);
    }
    (void)pthread_mutex_destroy(&module->state);
    (void)pthread_mutex_destroy(&module->outside);
    hsm_free(module->path);
    hsm_free(module->args);
    hsm_free(module);
}

static hsm_module *find(const char *path) {
    for (hsm_module *module = table; module != NULL; module = module->next) {
        if (strcmp(module->path, path) == 0) {
            return module;
        }
    }
    return NULL;
}

static bool same_args(const char *one, const char *other) {
    return (one == NULL && other == NULL) || (one != NULL && other != NULL && strcmp(one, other) == 0);
}

static hsm_module *new_module(const char *path, const char *args) {
    hsm_module *module = hsm_alloc(sizeof *module);
    if (module == NULL) {
        return NULL;
    }
    (void)pthread_mutex_init(&module->state, NULL);
    (void)pthread_mutex_init(&module->outside, NULL);
    module->fork_generation = hsm_fork_generation();
    module->path = hsm_strdup(path);
    module->args = hsm_strdup(args);
    if (module->path == NULL || (args != NULL && module->args == NULL)) {
        discard(module);
        return NULL;
    }
    return module;
}

/* Count a user of the module, which is put into the table if it is not there. Call with `table_lock` held. */
static hsm_status enlist(const char *path, const char *args, hsm_module **out, hsm_error *error) {
    hsm_module *module = find(path);
    if (module == NULL) {
        module = new_module(path, args);
        if (module == NULL) {
            return hsm_fail(error, HSM_OUT_OF_MEMORY, "", "module");
        }
        module->next = table;
        table = module;
    } else if (module->fork_generation != hsm_fork_generation()) {
        return hsm_fail(error, HSM_FORKED, "C_Initialize",
                        "%s was open when this process was forked; use spawn instead of fork", path);
    } else if (!same_args(module->args, args)) {
        return hsm_fail(error, HSM_BAD_ARGUMENT, "C_Initialize", "%s is in use in this process with another moduleArgs",
                        path);
    }
    atomic_fetch_add(&module->users, 1);
    *out = module;
    return HSM_OK;
}

static void unlock_state(void *argument) {
    hsm_module *module = argument;
    (void)pthread_mutex_unlock(&module->state);
}

static hsm_status make_ready(hsm_module *module, hsm_error *error) {
    hsm_status status;
    (void)pthread_mutex_lock(&module->state);
    pthread_cleanup_push(unlock_state, module); /* a module may end its thread in a call */
    status = module->p11 != NULL ? HSM_OK : load(module, error);
    if (status == HSM_OK && module->p11 != NULL && !module->initialized) {
        status = initialize(module, error);
    }
    pthread_cleanup_pop(1);
    return status;
}

hsm_status hsm_module_acquire(const char *path, const char *args, hsm_module **out, hsm_error *error) {
    *out = NULL;
    hsm_module *module = NULL;
    char *resolved = realpath(path, NULL);
    if (resolved == NULL) {
        return hsm_fail(error, HSM_MODULE_MISSING, "dlopen", "%s: no such file, or not readable", path);
    }
    (void)pthread_mutex_lock(&table_lock);
    hsm_status status = enlist(resolved, args, &module, error);
    (void)pthread_mutex_unlock(&table_lock);
    free(resolved);
    if (module == NULL) {
        return status;
    }
    *out = module;
    status = make_ready(module, error);
    if (status != HSM_OK) {
        *out = NULL;
        hsm_module_release(module);
    }
    return status;
}

/* A user has gone: forget the module if that was the last one. */
static void forget(void *argument) {
    hsm_module *module = argument;
    (void)pthread_mutex_lock(&table_lock);
    bool unused = atomic_load(&module->users) == 0; /* a user that came during C_Finalize initializes it again */
    hsm_module **link = &table;
    while (unused && *link != module) {
        link = &(*link)->next;
    }
    *link = unused ? module->next : *link;
    (void)pthread_mutex_unlock(&table_lock);
    unlock_state(module);
    if (unused) {
        discard(module);
    }
}

void hsm_module_release(hsm_module *module) {
    if (module == NULL || module->fork_generation != hsm_fork_generation()) {
        return;
    }
    (void)pthread_mutex_lock(&module->state);
    (void)pthread_mutex_lock(&table_lock);
    bool last = atomic_fetch_sub(&module->users, 1) == 1;
    (void)pthread_mutex_unlock(&table_lock);
    pthread_cleanup_push(forget, module); /* a module may end its thread in a call */
    if (last && module->initialized) {
        module->initialized = false;
        (void)module->p11->C_Finalize(NULL);
    }
    pthread_cleanup_pop(1);
}

void *hsm_module_functions(const char *path) {
    char *resolved = realpath(path, NULL);
    if (resolved == NULL) {
        return NULL;
    }
    (void)pthread_mutex_lock(&table_lock);
    hsm_module *module = find(resolved);
    void *functions = module != NULL && module->fork_generation == hsm_fork_generation() ? module->p11 : NULL;
    (void)pthread_mutex_unlock(&table_lock);
    free(resolved);
    return functions;
}

bool hsm_module_claim(hsm_module *module) {
    if (pthread_mutex_trylock(&module->outside) != 0) {
        return false;
    }
    if (pthread_mutex_trylock(&module->state) == 0) {
        return true;
    }
    (void)pthread_mutex_unlock(&module->outside);
    return false;
}

void hsm_module_disclaim(hsm_module *module) {
    (void)pthread_mutex_unlock(&module->state);
    (void)pthread_mutex_unlock(&module->outside);
}

uint64_t hsm_module_enter(hsm_module *module) {
    (void)pthread_mutex_lock(&module->outside);
    return module->initializations;
}

void hsm_module_exit(hsm_module *module) {
    (void)pthread_mutex_unlock(&module->outside);
}

hsm_status hsm_module_reinitialize(hsm_module *module, hsm_error *error) {
    (void)module->p11->C_Finalize(NULL);
    module->initialized = false;
    module->initializations++;
    return initialize(module, error);
}
