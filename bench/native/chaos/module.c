/* The module's life: C_Initialize, C_Finalize, fork. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "chaos.h"

#define CONFIG_VARIABLE "HSMCORE_CHAOS_CONFIG"
#define DRAIN_NS (INT64_C(5) * 1000000000)

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* C_Initialize, C_Finalize, loading */
static bool forked;
static pthread_once_t once = PTHREAD_ONCE_INIT;

/* Back to nothing. With `free_them` false the memory is left alone, because a call may still be in there. */
static void reset(bool free_them) {
    chaos_sessions_reset(free_them);
    chaos_slots_reset(free_them);
    chaos_faults_reset(free_them);
    chaos_handles_reset();
    chaos_hang_reset();
    chaos_settings_reset(free_them);
}

/* ---- fork ---- */

/* The child goes straight to the wrapped module, which may or may not support that; our locks, sessions and control
 * socket are the parent's. Nothing but stores here: only one thread exists, and others may have held any lock. */
static void in_child(void) {
    if (atomic_load(&chaos_state) != CHAOS_DOWN) {
        atomic_store(&chaos_state, CHAOS_DOWN);
        forked = true;
    }
    (void)pthread_mutex_init(&lock, NULL);
}

static void prepare_once(void) {
    (void)pthread_atfork(NULL, NULL, in_child);
}

/* The first C_Initialize or C_Finalize of the child forgets the parent's state. */
static void forget_parent(void) {
    if (forked) {
        forked = false;
        chaos_control_forget();
        reset(false);
        atomic_store(&chaos_inside, 0); /* the parent's other threads are not here */
    }
}

/* ---- C_Initialize ---- */

/* pReserved "config=/path" or "config=/path args=rest": the rest is the wrapped module's. Any other string is the
 * wrapped module's as a whole. Returns false if the path is too long. */
static bool take_reserved(const char *reserved, char path[CHAOS_PATH], const char **rest) {
    static const char prefix[] = "config=";
    static const char separator[] = " args=";
    *rest = reserved;
    if (reserved == NULL || strncmp(reserved, prefix, sizeof prefix - 1) != 0) {
        const char *variable = getenv(CONFIG_VARIABLE);
        return snprintf(path, CHAOS_PATH, "%s", variable == NULL ? "" : variable) < CHAOS_PATH;
    }
    reserved += sizeof prefix - 1;
    const char *args = strstr(reserved, separator);
    *rest = args == NULL ? NULL : args + sizeof separator - 1;
    int length = args == NULL ? (int)strlen(reserved) : (int)(args - reserved);
    return snprintf(path, CHAOS_PATH, "%.*s", length, reserved) < CHAOS_PATH;
}

static CK_RV refuse(const char *reason) {
    chaos_complain("%s", reason);
    return CKR_GENERAL_ERROR;
}

static CK_RV load(const char *path, CK_VERSION *version) {
    struct chaos_error error = {""};
    if (path[0] == '\0') {
        return refuse("no configuration: name a file in " CONFIG_VARIABLE " or in pReserved as \"config=/path\"");
    }
    if (!chaos_config_load(path, &chaos_config, &error)) {
        return refuse(error.text);
    }
    if (!chaos_wrapped_load(chaos_config.module, version, &error)) {
        struct chaos_error full;
        (void)snprintf(full.text, sizeof full.text, "%.128s: %.880s", path, error.text);
        chaos_config_free(&chaos_config);
        return refuse(full.text);
    }
    return CKR_OK;
}

static bool arm(void) {
    reset(true);
    while (chaos_config.faults != NULL) {
        struct chaos_fault *fault = chaos_config.faults;
        chaos_config.faults = fault->all;
        chaos_fault_add(fault);
    }
    chaos_random_set(&chaos_config.random);
    return chaos_settings_replace(&chaos_config.settings);
}

static CK_RV initialize(const CK_C_INITIALIZE_ARGS *given, CK_VERSION *version) {
    char path[CHAOS_PATH];
    const char *rest = NULL;
    forget_parent();
    if (atomic_load(&chaos_state) != CHAOS_DOWN) {
        return CKR_CRYPTOKI_ALREADY_INITIALIZED;
    }
    if (!take_reserved(given != NULL ? given->pReserved : NULL, path, &rest)) {
        return refuse("the configuration's path is too long");
    }
    CK_RV rv = load(path, version);
    if (rv != CKR_OK) {
        return rv;
    }
    if (chaos_config.socket[0] != '\0' && given != NULL && (given->flags & CKF_LIBRARY_CANT_CREATE_OS_THREADS) != 0) {
        chaos_config_free(&chaos_config);
        chaos_complain("%s: $.socket: needs a thread, which the application forbids", path);
        return CKR_NEED_TO_CREATE_THREADS;
    }
    CK_C_INITIALIZE_ARGS args;
    if (given != NULL) {
        args = *given;
        memcpy(&args.pReserved, &rest, sizeof rest); /* the standard's field is not const */
    }
    rv = chaos_wrapped.C_Initialize(given != NULL ? &args : NULL);
    if (rv != CKR_OK) {
        chaos_log("C_Initialize of %s fails with 0x%lx", chaos_config.module, rv);
        chaos_config_free(&chaos_config);
        return rv;
    }
    struct chaos_error error = {""};
    bool armed = arm();
    atomic_store(&chaos_state, CHAOS_UP);
    if (!armed || (chaos_config.socket[0] != '\0' && !chaos_control_start(chaos_config.socket, &error))) {
        atomic_store(&chaos_state, CHAOS_DOWN);
        (void)chaos_wrapped.C_Finalize(NULL);
        reset(true);
        chaos_complain(armed ? "%s: $.socket: %s" : "%s: out of memory%s", path, error.text);
        return CKR_GENERAL_ERROR;
    }
    chaos_log("wrapping %s, configuration %s", chaos_config.module, path);
    return CKR_OK;
}

CK_RV chaos_initialize(void *init_args, CK_VERSION *version) {
    (void)pthread_once(&once, prepare_once);
    (void)pthread_mutex_lock(&lock);
    CK_RV rv = initialize(init_args, version);
    if (rv != CKR_OK && rv != CKR_CRYPTOKI_ALREADY_INITIALIZED) {
        chaos_log_close();
    }
    (void)pthread_mutex_unlock(&lock);
    return rv;
}

/* So that version and interfaces are the wrapped module's before C_Initialize, which reports errors of the
 * configuration. */
bool chaos_preload(CK_VERSION *version) {
    if (chaos_wrapped_loaded()) {
        return true;
    }
    const char *path = getenv(CONFIG_VARIABLE);
    (void)pthread_mutex_lock(&lock);
    struct chaos_config *config = path == NULL ? NULL : malloc(sizeof *config);
    struct chaos_error error;
    if (config != NULL && !chaos_wrapped_loaded() && chaos_config_load(path, config, &error)) {
        (void)chaos_wrapped_load(config->module, version, &error);
        chaos_config_free(config);
    }
    if (config != NULL) {
        chaos_log_close();
    }
    free(config);
    (void)pthread_mutex_unlock(&lock);
    return chaos_wrapped_loaded();
}

/* ---- C_Finalize ---- */

/* Ends all hangs, sleeps and waits, then waits for the calls in the wrapped module; not for ever, since a call may be
 * stuck in there. */
static bool drain(void) {
    int64_t deadline = chaos_now() + DRAIN_NS;
    for (;;) {
        (void)chaos_release();
        chaos_slots_cancel();
        if (atomic_load(&chaos_inside) == 0) {
            return true;
        }
        if (chaos_now() >= deadline) {
            return false;
        }
        struct timespec pause = {.tv_nsec = 200000};
        (void)nanosleep(&pause, NULL);
    }
}

static CK_RV finalize(void *reserved) {
    forget_parent();
    if (atomic_load(&chaos_state) == CHAOS_DOWN) {
        return chaos_wrapped_loaded() ? chaos_wrapped.C_Finalize(reserved) : CKR_CRYPTOKI_NOT_INITIALIZED;
    }
    if (reserved != NULL) { /* an error, which must not tear anything down; which one, the wrapped module knows */
        CK_RV rv = chaos_wrapped.C_Finalize(reserved);
        if (rv != CKR_OK) {
            return rv;
        }
    }
    chaos_control_stop();
    atomic_store(&chaos_state, CHAOS_ENDING);
    bool drained = drain();
    CK_RV rv = reserved != NULL ? CKR_OK : chaos_wrapped.C_Finalize(NULL);
    if (!drained) {
        chaos_complain("C_Finalize: a call is still inside the wrapped module");
    }
    chaos_log("finalized: 0x%lx", rv);
    atomic_store(&chaos_state, CHAOS_DOWN);
    reset(drained);
    chaos_log_close();
    return rv;
}

CK_RV chaos_C_Finalize(void *reserved) {
    (void)pthread_mutex_lock(&lock);
    CK_RV rv = finalize(reserved);
    (void)pthread_mutex_unlock(&lock);
    return rv;
}
