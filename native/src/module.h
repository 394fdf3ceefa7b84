/* Loaded PKCS#11 modules, counted by their users in this process. */
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
    unsigned users;           /* engines and others that hold it */
    unsigned engines;         /* among the users */
    pthread_mutex_t outside;  /* held during calls that are no worker's, and while the module is initialized again */
    uint64_t initializations; /* so far; handles of an earlier one are dead */
    uint32_t fork_generation;
};

/* An engine's hold, which hsm_module_claim counts. Released with hsm_module_release after hsm_module_leave. */
void hsm_module_join(hsm_module *module);
void hsm_module_leave(hsm_module *module);
/* As hsm_module_enter, for the only engine before it initializes the module again. Returns false, at once, if there is
 * another engine, or a call inside that is no worker's. hsm_module_exit ends it. */
bool hsm_module_claim(hsm_module *module);
/* C_Finalize, then C_Initialize, for a module that lost its state. The caller makes sure that no call is inside. */
hsm_status hsm_module_reinitialize(hsm_module *module, hsm_error *error);

#endif
