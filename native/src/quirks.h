/* What differs from module to module, as data. Sources: the vendors' documents and observed behaviour. */
#ifndef HSM_QUIRKS_H
#define HSM_QUIRKS_H

#include "base.h"
#include "pkcs11.h"

typedef struct hsm_quirks {
    const char *name;
    const char *library_contains; /* in CK_INFO, as description or manufacturer, to recognize the module; or NULL */
    const char *file_contains;    /* in the name of its file, to recognize it before it is initialized; or NULL */
    const char *store_variable;   /* the environment's, with the file that names the store of its tokens (turn.c) */
    bool read_write_sessions;     /* read-only sessions are refused */
    bool handles_per_session;     /* object handles mean nothing in another session */
    bool memory_error_is_logout;  /* CKR_HOST_MEMORY from C_SignInit after a logout */
    bool users_are_objects;       /* CKR_OBJECT_HANDLE_INVALID from C_Login: there is no such user */
    bool reads_store_once;        /* at C_Initialize: keys that another process makes are found after the next one */
    bool login_hides_token;       /* from a C_Initialize in another process: its file is half written */
    uint32_t open_pause_ms;       /* between two C_OpenSession calls */
    uint32_t keepalive_s;         /* idle sessions die after somewhat longer; 0: they do not */
    uint32_t sessions;            /* that may sign at once; 0: no limit known */
    uint32_t calls_in_flight;     /* that one slot works on at once; 0: no limit known */
    uint32_t patience_ms;         /* a shorter call does not count as hanging: several times what the device takes */
    /* The most bytes that C_Sign can send to the device; 0: not known. Of a module that has a limit, an error about the
     * length of a shorter message means that the channel to the device is out of step, and only a new one helps. */
    uint32_t sign_bytes;
} hsm_quirks;

/* By name, or the generic row for NULL and unknown names. */
const hsm_quirks *hsm_quirks_of_name(const char *name);
/* Recognize a module by the last part of its path; the generic row where that says nothing. */
const hsm_quirks *hsm_quirks_of_path(const char *path);
/* Recognize a module by what it says of itself. */
const hsm_quirks *hsm_quirks_of_info(const CK_INFO *info);
bool hsm_quirks_known(const char *name);
/* What a failed C_Sign means, where a module says it in a way of its own; `status` is what it would mean of others. */
hsm_status hsm_quirks_judge(const hsm_quirks *quirks, hsm_status status, CK_RV ckr, hsm_algorithm algorithm,
                            size_t message_len);

#endif
