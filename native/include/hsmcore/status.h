/* Status codes: one table for what went wrong, with a class that says what mends it.
 *
 * Pure functions on constant tables: any thread, any time, also in a forked child and in a signal handler. */
#ifndef HSMCORE_STATUS_H
#define HSMCORE_STATUS_H

#include <stddef.h>
#include <stdint.h>

#define HSM_NODISCARD __attribute__((warn_unused_result))

/* What mends a failure. The recovery ladder climbs these in order; callers decide by class, never by code. */
enum hsm_class {
    HSM_CLASS_OK,
    HSM_CLASS_RETRY,         /* the same request may succeed on another session or a moment later */
    HSM_CLASS_RESET,         /* end the session's operation first */
    HSM_CLASS_REOPEN,        /* open a new session first */
    HSM_CLASS_RELOGIN,       /* log in again first, once per token */
    HSM_CLASS_REFIND,        /* look the key up again first, and compare its public key */
    HSM_CLASS_MEMBER_DOWN,   /* this token is unusable until a probe says otherwise */
    HSM_CLASS_REINIT,        /* C_Finalize and C_Initialize first, with no call inside the module */
    HSM_CLASS_AUTH_FATAL,    /* never retried: an attempt may lock the PIN */
    HSM_CLASS_REQUEST_FATAL, /* the request or the configuration is wrong; repeating it cannot help */
    HSM_CLASS_PROCESS_FATAL, /* nothing in this process can mend it */
    HSM_CLASS_COUNT
};

typedef enum hsm_status {
#define HSM_STATUS(name, class, text) HSM_##name,
#include <hsmcore/status.def>
#undef HSM_STATUS
    HSM_STATUS_COUNT
} hsm_status;

/* A failure with its circumstances. Plain data; never holds a PIN or key material. `call` and `detail` are
 * NUL-terminated and may be empty. */
typedef struct hsm_error {
    hsm_status status;
    uint64_t ckr;     /* the CK_RV behind it; 0 when no module call failed */
    char call[40];    /* the C_* function or system call that failed */
    char detail[216]; /* what was being done, for a person */
} hsm_error;

/* "KEY_NOT_FOUND"; "INVALID" for a number outside the table. Static storage. */
const char *hsm_status_name(hsm_status status);
/* One line for a person. Static storage. */
const char *hsm_status_text(hsm_status status);
enum hsm_class hsm_status_class(hsm_status status);
/* "MEMBER_DOWN". Static storage. */
const char *hsm_class_name(enum hsm_class class_);

/* The status that a CK_RV stands for on the signing path; CKR_UNKNOWN outside the table. */
hsm_status hsm_status_of_ckr(uint64_t ckr);
/* "CKR_DEVICE_ERROR", or NULL for a number outside the table. Static storage. */
const char *hsm_ckr_name(uint64_t ckr);
/* Row `index` of the CKR table, so that a test can walk all of it. Returns 0 past the end. */
int hsm_ckr_row(size_t index, uint64_t *ckr, const char **name, hsm_status *status);

/* Fill `error` (may be NULL) and return `status`, so that failing is one expression. */
hsm_status hsm_fail(hsm_error *error, hsm_status status, const char *call, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
/* The same for a module call that returned `ckr`; the status follows from the table. */
hsm_status hsm_fail_ckr(hsm_error *error, uint64_t ckr, const char *call, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
/* The same for a system call; reads errno. */
hsm_status hsm_fail_errno(hsm_error *error, const char *call, const char *what);
/* Give a filled `error` (may be NULL) another status: the caller knows better what it means. */
hsm_status hsm_fail_as(hsm_error *error, hsm_status status);

#endif
