/* The function lists of a whole module, for the one file of it that includes this. Before, that file defines
 * INTERFACE_FLAGS and ANSWER(scope, name, arguments): what each function of functions.def does, unless the file puts
 * another one into the lists by OURS, in the constructor that begins with fill_lists(). */
#ifndef HSMCORE_LISTS_H
#define HSMCORE_LISTS_H

#include <string.h>

#include <p11-kit/pkcs11.h>

#define EXPORT __attribute__((visibility("default")))

static void pad(unsigned char *out, size_t size, const char *text) {
    size_t length = strlen(text);
    for (size_t i = 0; i < size; i++) {
        out[i] = i < length ? (unsigned char)text[i] : ' ';
    }
}

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

/* What C_Initialize is given: all functions for locks or none, and leave to use the system's. */
static CK_RV check_initialize(const CK_C_INITIALIZE_ARGS *args) {
    if (args == NULL) {
        return CKR_OK;
    }
    int given = (args->CreateMutex != NULL) + (args->DestroyMutex != NULL) + (args->LockMutex != NULL) +
                (args->UnlockMutex != NULL);
    if (given != 0 && given != 4) {
        return CKR_ARGUMENTS_BAD;
    }
    return given == 4 && (args->flags & CKF_OS_LOCKING_OK) == 0 ? CKR_CANT_LOCK : CKR_OK;
}

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-parameter"
#define OBJECT(handle) handle
#define FUNCTION(version, scope, make, name, parameters, arguments)                                                    \
    static CK_RV list_##name parameters {                                                                              \
        ANSWER(scope, name, arguments)                                                                                 \
    }
#include "functions.def"
#undef FUNCTION
#pragma GCC diagnostic pop

static CK_FUNCTION_LIST list_2_40;
static CK_FUNCTION_LIST_3_0 list_3_0;
static CK_BYTE interface_name[] = "PKCS 11";
static CK_INTERFACE interfaces[] = {{(char *)interface_name, &list_3_0, INTERFACE_FLAGS},
                                    {(char *)interface_name, &list_2_40, INTERFACE_FLAGS}};

static CK_RV get_interface_list(CK_INTERFACE *list, CK_ULONG *count) {
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

static CK_RV get_interface(CK_BYTE *name, CK_VERSION *version, CK_INTERFACE **found, CK_FLAGS flags) {
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

static CK_RV get_function_list(CK_FUNCTION_LIST **list) {
    if (list == NULL) {
        return CKR_ARGUMENTS_BAD;
    }
    *list = &list_2_40;
    return CKR_OK;
}

#define BOTH(name, function) list_2_40.name = list_3_0.name = function
#define OURS(prefix, name) BOTH(C_##name, prefix##_##name)

static void fill_lists(void) {
    list_2_40.version = (CK_VERSION){2, 40};
    list_3_0.version = (CK_VERSION){3, 0};
#define FILL_V2(name) BOTH(name, list_##name);
#define FILL_V3(name) list_3_0.name = list_##name;
#define FUNCTION(version, scope, make, name, parameters, arguments) FILL_##version(name)
#include "functions.def"
#undef FUNCTION
    BOTH(C_GetFunctionList, get_function_list);
    list_3_0.C_GetInterfaceList = get_interface_list;
    list_3_0.C_GetInterface = get_interface;
}

/* The exported names lead to ours and never the other way: a program may have another module's among its globals. */
EXPORT CK_RV C_GetFunctionList(CK_FUNCTION_LIST **list) {
    return get_function_list(list);
}

EXPORT CK_RV C_GetInterfaceList(CK_INTERFACE *list, CK_ULONG *count) {
    return get_interface_list(list, count);
}

EXPORT CK_RV C_GetInterface(CK_BYTE *name, CK_VERSION *version, CK_INTERFACE **found, CK_FLAGS flags) {
    return get_interface(name, version, found, flags);
}

#endif
