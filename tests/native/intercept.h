/* A module with a hand on its function list: the test holds the module loaded and puts copies of its functions in front
 * that count, answer with an error, or hold a call inside the module until the test lets it go.
 *
 * One module at a time. Engines that are started between intercept_begin and intercept_end go through it. */
#ifndef HSM_TEST_INTERCEPT_H
#define HSM_TEST_INTERCEPT_H

#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <time.h>

#include "harness.h"
#include "module.h"

static struct {
    hsm_module *module;
    CK_FUNCTION_LIST *real;
    CK_FUNCTION_LIST list;

    _Atomic unsigned logins;
    _Atomic unsigned wrong_pins; /* logins with another PIN than 1234, as read when the login ends */
    _Atomic bool hold_logins;
    /* While true, the call stays inside, where it is counted. */
    _Atomic bool hold_open, hold_find, hold_finalize;
    _Atomic unsigned inside_open, inside_find, inside_finalize;
    _Atomic unsigned finalized, finalized_beside; /* of these, with a C_OpenSession inside */
    _Atomic CK_SESSION_HANDLE dead;               /* a session that was closed, */
    _Atomic unsigned used_dead;                   /* and the searches in it */
    _Atomic unsigned sign_inits;
    _Atomic unsigned signs;
    _Atomic unsigned opened;
    /* The next so many calls are answered with a CKR and do not reach the module. */
    _Atomic unsigned fail_sign_init;
    _Atomic unsigned fail_sign;
    _Atomic unsigned fail_open;
    _Atomic CK_RV ckr;
    _Atomic CK_FLAGS extra_token_flags;
    _Atomic unsigned open_limit; /* C_OpenSession fails beyond so many calls; 0: never */

    /* The gate: C_Sign waits behind it. */
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool closed;
    unsigned inside;
} intercept = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

static inline bool intercept_take(_Atomic unsigned *left) {
    unsigned now = atomic_load(left);
    while (now > 0 && !atomic_compare_exchange_weak(left, &now, now - 1)) {
    }
    return now > 0;
}

static inline void gate_pass(void) {
    (void)pthread_mutex_lock(&intercept.lock);
    intercept.inside++;
    (void)pthread_cond_broadcast(&intercept.changed);
    while (intercept.closed) {
        (void)pthread_cond_wait(&intercept.changed, &intercept.lock);
    }
    intercept.inside--;
    (void)pthread_mutex_unlock(&intercept.lock);
}

static inline void gate_set(bool closed) {
    (void)pthread_mutex_lock(&intercept.lock);
    intercept.closed = closed;
    (void)pthread_cond_broadcast(&intercept.changed);
    (void)pthread_mutex_unlock(&intercept.lock);
}

/* Wait until `count` calls stand at the gate. */
static inline void gate_await(unsigned count) {
    (void)pthread_mutex_lock(&intercept.lock);
    while (intercept.inside < count) {
        (void)pthread_cond_wait(&intercept.changed, &intercept.lock);
    }
    (void)pthread_mutex_unlock(&intercept.lock);
}

static inline void intercept_pause(void) {
    const struct timespec pause = {.tv_nsec = 100000};
    (void)nanosleep(&pause, NULL);
}

/* Whether a thread ends within ten seconds; it is joined then. */
static inline bool ends_soon(pthread_t thread) {
    struct timespec until;
    (void)clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 10;
    return pthread_timedjoin_np(thread, NULL, &until) == 0;
}

/* Copy the no-op module to a file of its own, which is another module to the loader; `path` ends in XXXXXX. */
static inline void copy_module(char *path) {
    int from = open(HSMC_NOOP_MODULE, O_RDONLY | O_CLOEXEC);
    int to = mkstemp(path);
    struct stat size;
    REQUIRE(from >= 0 && to >= 0 && fstat(from, &size) == 0);
    REQUIRE(sendfile(to, from, NULL, (size_t)size.st_size) == size.st_size);
    (void)close(from);
    (void)close(to);
}

static inline void intercept_stay(const _Atomic bool *held, _Atomic unsigned *inside) {
    atomic_fetch_add(inside, 1);
    while (atomic_load(held)) {
        intercept_pause();
    }
    atomic_fetch_sub(inside, 1);
}

static inline void intercept_await(const _Atomic unsigned *counter, unsigned count) {
    while (atomic_load(counter) < count) {
        intercept_pause();
    }
}

static inline CK_RV intercept_Finalize(void *reserved) {
    atomic_fetch_add(&intercept.finalized_beside, atomic_load(&intercept.inside_open) != 0 ? 1U : 0U);
    intercept_stay(&intercept.hold_finalize, &intercept.inside_finalize);
    CK_RV rv = intercept.real->C_Finalize(reserved);
    atomic_fetch_add(&intercept.finalized, 1);
    return rv;
}

static inline CK_RV intercept_FindObjectsInit(CK_SESSION_HANDLE session, CK_ATTRIBUTE *wanted, CK_ULONG count) {
    atomic_fetch_add(&intercept.used_dead, session == atomic_load(&intercept.dead) ? 1U : 0U);
    intercept_stay(&intercept.hold_find, &intercept.inside_find);
    return intercept.real->C_FindObjectsInit(session, wanted, count);
}

static inline CK_RV intercept_Login(CK_SESSION_HANDLE session, CK_USER_TYPE user, CK_UTF8CHAR *pin, CK_ULONG length) {
    atomic_fetch_add(&intercept.logins, 1);
    while (atomic_load(&intercept.hold_logins)) {
        intercept_pause();
    }
    atomic_fetch_add(&intercept.wrong_pins, length == 4 && memcmp(pin, "1234", 4) == 0 ? 0U : 1U);
    return intercept.real->C_Login(session, user, pin, length);
}

/* From now on a login stays inside until it is let go; wait until the second one, the ladder's, is there. */
static inline void intercept_hold_logins(bool held) {
    atomic_store(&intercept.hold_logins, held);
}

static inline void intercept_await_login(void) {
    intercept_await(&intercept.logins, 2);
}

static inline CK_RV intercept_OpenSession(CK_SLOT_ID slot, CK_FLAGS flags, void *application, CK_NOTIFY notify,
                                          CK_SESSION_HANDLE *session) {
    unsigned number = atomic_fetch_add(&intercept.opened, 1) + 1;
    unsigned limit = atomic_load(&intercept.open_limit);
    if (intercept_take(&intercept.fail_open) || (limit != 0 && number > limit)) {
        return atomic_load(&intercept.ckr);
    }
    intercept_stay(&intercept.hold_open, &intercept.inside_open);
    return intercept.real->C_OpenSession(slot, flags, application, notify, session);
}

static inline CK_RV intercept_GetTokenInfo(CK_SLOT_ID slot, CK_TOKEN_INFO *info) {
    CK_RV rv = intercept.real->C_GetTokenInfo(slot, info);
    info->flags |= atomic_load(&intercept.extra_token_flags);
    return rv;
}

/* In programs built with the address sanitizer. What is allocated in between is not held to be a leak. */
__attribute__((weak)) extern void __lsan_disable(void); // NOLINT(bugprone-reserved-identifier)
__attribute__((weak)) extern void __lsan_enable(void);  // NOLINT(bugprone-reserved-identifier)

static inline CK_RV intercept_SignInit(CK_SESSION_HANDLE session, CK_MECHANISM *mechanism, CK_OBJECT_HANDLE key) {
    atomic_fetch_add(&intercept.sign_inits, 1);
    if (intercept_take(&intercept.fail_sign_init)) {
        return atomic_load(&intercept.ckr);
    }
    /* SoftHSM 2.6.1 forgets the decoded curve name of an Edwards key in every C_SignInit (byteString2oid). A
     * suppression could not name it: the stack ends in libcrypto, which keeps no frame pointers. */
    if (__lsan_disable != NULL) {
        __lsan_disable();
    }
    CK_RV rv = intercept.real->C_SignInit(session, mechanism, key);
    if (__lsan_enable != NULL) {
        __lsan_enable();
    }
    return rv;
}

static inline CK_RV intercept_Sign(CK_SESSION_HANDLE session, CK_BYTE *data, CK_ULONG length, CK_BYTE *signature,
                                   CK_ULONG *signature_len) {
    atomic_fetch_add(&intercept.signs, 1);
    gate_pass();
    if (intercept_take(&intercept.fail_sign)) {
        return atomic_load(&intercept.ckr);
    }
    return intercept.real->C_Sign(session, data, length, signature, signature_len);
}

static inline void intercept_begin(const char *path) {
    hsm_error error = {.status = HSM_OK};
    REQUIRE_OK(hsm_module_acquire(path, NULL, &intercept.module, &error), error);
    intercept.real = intercept.module->p11;
    intercept.list = *intercept.real;
    intercept.list.C_Finalize = intercept_Finalize;
    intercept.list.C_FindObjectsInit = intercept_FindObjectsInit;
    intercept.list.C_Login = intercept_Login;
    intercept.list.C_OpenSession = intercept_OpenSession;
    intercept.list.C_GetTokenInfo = intercept_GetTokenInfo;
    intercept.list.C_SignInit = intercept_SignInit;
    intercept.list.C_Sign = intercept_Sign;
    intercept.module->p11 = &intercept.list;
    intercept.closed = false;
    atomic_store(&intercept.logins, 0);
    atomic_store(&intercept.wrong_pins, 0);
    atomic_store(&intercept.hold_logins, false);
    atomic_store(&intercept.hold_open, false);
    atomic_store(&intercept.hold_find, false);
    atomic_store(&intercept.hold_finalize, false);
    atomic_store(&intercept.finalized, 0);
    atomic_store(&intercept.dead, 0);
    atomic_store(&intercept.used_dead, 0);
    atomic_store(&intercept.finalized_beside, 0);
    atomic_store(&intercept.sign_inits, 0);
    atomic_store(&intercept.signs, 0);
    atomic_store(&intercept.opened, 0);
    atomic_store(&intercept.fail_sign_init, 0);
    atomic_store(&intercept.fail_sign, 0);
    atomic_store(&intercept.fail_open, 0);
    atomic_store(&intercept.ckr, CKR_GENERAL_ERROR);
    atomic_store(&intercept.extra_token_flags, 0);
    atomic_store(&intercept.open_limit, 0);
}

static inline void intercept_end(void) {
    intercept.module->p11 = intercept.real;
    hsm_module_release(intercept.module);
    intercept.module = NULL;
}

#endif
