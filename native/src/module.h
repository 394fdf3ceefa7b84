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
    _Atomic unsigned users;   /* engines and others that hold it; under the table's lock */
    pthread_mutex_t outside;  /* held during calls that are no worker's, and while the module is initialized again */
    uint64_t initializations; /* so far; handles of an earlier one are dead; under `outside` */
    pthread_mutex_t state;    /* held while the module is loaded, initialized or finalized; taken after `outside` */
    bool initialized;         /* by the last C_Initialize; under `state` */
    hsm_engine *first;        /* the engines among the users, in no order; under `state` */
    uint32_t fork_generation;
};

/* Before the module is initialized again: until hsm_module_disclaim no user comes or goes. Returns false, at once, if
 * there is a call inside that is no engine's, or a user that comes or goes, or another claim. */
bool hsm_module_claim(hsm_module *module);
void hsm_module_disclaim(hsm_module *module);
/* C_Finalize, then C_Initialize, for a module that lost its state. Call with a claim, and with no call inside. Where
 * there are other engines, see hsm_engine_reinitialize. */
hsm_status hsm_module_reinitialize(hsm_module *module, hsm_error *error);

#endif
