/* The tables behind status.h, and errors put together from them. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <hsmcore/status.h>

static const struct row {
    const char *name;
    const char *text;
    enum hsm_class class_;
} statuses[] = {
#define HSM_STATUS(name, class, text) {#name, text, HSM_CLASS_##class},
#include <hsmcore/status.def>
#undef HSM_STATUS
};

static const struct {
    uint64_t ckr;
    const char *name;
    hsm_status status;
} ckrs[] = {
#define HSM_CKR(name, number, status) {number, #name, HSM_##status},
#include <hsmcore/ckr.def>
#undef HSM_CKR
};

static const char *const class_names[HSM_CLASS_COUNT] = {"OK",         "RETRY",         "RESET",        "REOPEN",
                                                         "RELOGIN",    "REFIND",        "MEMBER_DOWN",  "REINIT",
                                                         "AUTH_FATAL", "REQUEST_FATAL", "PROCESS_FATAL"};

#define COUNT(table) (sizeof(table) / sizeof((table)[0]))

/* A status may come out of shared memory, so a number outside the table must not index it. */
static const struct row *row_of(hsm_status status) {
    static const struct row invalid = {"INVALID", "invalid status", HSM_CLASS_PROCESS_FATAL};
    return (size_t)status < COUNT(statuses) ? &statuses[status] : &invalid;
}

const char *hsm_status_name(hsm_status status) {
    return row_of(status)->name;
}

const char *hsm_status_text(hsm_status status) {
    return row_of(status)->text;
}

enum hsm_class hsm_status_class(hsm_status status) {
    return row_of(status)->class_;
}

const char *hsm_class_name(enum hsm_class class_) {
    return (size_t)class_ < HSM_CLASS_COUNT ? class_names[class_] : "INVALID";
}

hsm_status hsm_status_of_ckr(uint64_t ckr) {
    for (size_t i = 0; i < COUNT(ckrs); i++) {
        if (ckrs[i].ckr == ckr) {
            return ckrs[i].status;
        }
    }
    return HSM_CKR_UNKNOWN;
}

const char *hsm_ckr_name(uint64_t ckr) {
    for (size_t i = 0; i < COUNT(ckrs); i++) {
        if (ckrs[i].ckr == ckr) {
            return ckrs[i].name;
        }
    }
    return NULL;
}

int hsm_ckr_row(size_t index, uint64_t *ckr, const char **name, hsm_status *status) {
    if (index >= COUNT(ckrs)) {
        return 0;
    }
    *ckr = ckrs[index].ckr;
    *name = ckrs[index].name;
    *status = ckrs[index].status;
    return 1;
}

static void describe(hsm_error *error, hsm_status status, uint64_t ckr, const char *call, const char *format,
                     va_list arguments) {
    if (error != NULL) {
        *error = (hsm_error){.status = status, .ckr = ckr};
        (void)snprintf(error->call, sizeof error->call, "%s", call);
        (void)vsnprintf(error->detail, sizeof error->detail, format, arguments);
    }
}

hsm_status hsm_fail(hsm_error *error, hsm_status status, const char *call, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    describe(error, status, 0, call, format, arguments);
    va_end(arguments);
    return status;
}

hsm_status hsm_fail_ckr(hsm_error *error, uint64_t ckr, const char *call, const char *format, ...) {
    hsm_status status = hsm_status_of_ckr(ckr);
    va_list arguments;
    va_start(arguments, format);
    describe(error, status, ckr, call, format, arguments);
    va_end(arguments);
    return status;
}

hsm_status hsm_fail_errno(hsm_error *error, const char *call, const char *what) {
    int code = errno;
    const char *text = strerrordesc_np(code); /* not translated, and safe in any thread */
    return hsm_fail(error, code == ENOMEM ? HSM_OUT_OF_MEMORY : HSM_SYSTEM, call, "%s: %s", what,
                    text != NULL ? text : "unknown error");
}

hsm_status hsm_fail_as(hsm_error *error, hsm_status status) {
    if (error != NULL) {
        error->status = status;
    }
    return status;
}
