/* Loaded PKCS#11 modules, refcounted per process. */
#ifndef HSM_MODULE_H
#define HSM_MODULE_H

#include "base.h"
#include "pkcs11.h"

struct hsm_module {
    hsm_module *next;
    char *path; /* resolved */
    char *args; /* pReserved, or NULL */
    void *library;
    /* The v2.40 prefix of the newest interface that the module offers; later versions only append to it. */
    CK_FUNCTION_LIST *p11;
    unsigned users;
    uint32_t fork_generation;
};

/* C_Finalize, then C_Initialize, for a module that lost its state. The caller makes sure that no call is inside. */
hsm_status hsm_module_reinitialize(hsm_module *module, hsm_error *error);

#endif
