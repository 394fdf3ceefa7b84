/* The recovery ladder: what is tried, in order of cost, before a signature is given up. Single-flight: whoever comes
 * second finds the work done, by the epoch. A refused PIN ends it for good. */
#include "engine.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

#include "key.h"
#include "token.h"

/* Not more often than this does the engine log in or look its keys up again. */
#define HEAL_INTERVAL_NS UINT64_C(50000000)
#define BACKOFF_NS UINT64_C(1000000)

hsm_status hsm_engine_login(hsm_engine *engine, hsm_error *error) {
    if (engine->auth_failed) {
        return hsm_fail(error, HSM_PIN_INCORRECT, "C_Login", "an earlier attempt was refused; none was made now");
    }
    if (!engine->login_open) {
        hsm_status status = hsm_session_open(engine->p11, engine->slot, engine->quirks->read_write_sessions,
                                             &engine->login_session, error);
        if (status != HSM_OK) {
            return status;
        }
        engine->login_open = true;
    }
    if (engine->pin == NULL) {
        return HSM_OK;
    }
    bool already;
    hsm_status status = hsm_token_login(engine->p11, engine->slot, engine->login_session, engine->pin, engine->pin_len,
                                        &already, error);
    if (hsm_status_class(status) == HSM_CLASS_AUTH_FATAL) {
        engine->auth_failed = true;
    }
    return status;
}

hsm_status hsm_engine_refind(hsm_engine *engine, CK_SESSION_HANDLE session, uint32_t key, CK_OBJECT_HANDLE *handle,
                             hsm_error *error) {
    hsm_engine_key *own = &engine->keys[key];
    hsm_key_record *pinned = &engine->area->keys[key];
    /* The id is the key's identity on the token; its label may be shared by its successors. */
    hsm_key_selector selector = {
        .label = own->id_len > 0 ? NULL : own->label,
        .id = own->id_len > 0 ? own->id : NULL,
        .id_len = own->id_len,
        .handle = own->fixed_handle,
        .algorithm = (hsm_algorithm)pinned->algorithm,
        .public_key = pinned->public_key,
        .public_key_len = pinned->public_key_len,
    };
    hsm_key_info info;
    hsm_status status = hsm_key_find(engine->p11, session, &selector, handle, &info, error);
    if (status == HSM_KEY_MISMATCH || status == HSM_KEY_UNUSABLE || status == HSM_ALGORITHM_UNSUPPORTED) {
        /* Another key answers to this name: nothing may be signed with it, now or later. */
        atomic_store(&pinned->state, HSM_KEY_MISMATCHED);
        return HSM_KEY_MISMATCH;
    }
    return status;
}

/* Whether the login session exists and is logged in. */
static bool logged_in(hsm_engine *engine) {
    CK_SESSION_INFO info;
    memset(&info, 0, sizeof info);
    if (!engine->login_open) {
        return false;
    }
    if (engine->p11->C_GetSessionInfo(engine->login_session, &info) != CKR_OK) {
        hsm_session_close(engine->p11, engine->login_session);
        engine->login_open = false;
        return false;
    }
    return engine->pin == NULL || info.state == CKS_RO_USER_FUNCTIONS || info.state == CKS_RW_USER_FUNCTIONS;
}

/* Log in again if need be and find every key again. Call with `control` held. */
static hsm_status heal(hsm_engine *engine, hsm_error *error) {
    hsm_status status = logged_in(engine) ? HSM_OK : hsm_engine_login(engine, error);
    uint32_t keys = atomic_load(&engine->key_count);
    for (uint32_t key = 0; key < keys && status == HSM_OK; key++) {
        if (atomic_load(&engine->area->keys[key].state) != HSM_KEY_ACTIVE) {
            continue;
        }
        CK_OBJECT_HANDLE handle;
        hsm_error one;
        if (hsm_engine_refind(engine, engine->login_session, key, &handle, &one) == HSM_OK) {
            atomic_store_explicit(&engine->keys[key].handle, handle, memory_order_release);
        }
    }
    if (status == HSM_OK) {
        atomic_fetch_add_explicit(&engine->epoch, 1, memory_order_acq_rel);
    }
    return status;
}

static bool heal_once(hsm_worker *worker) {
    hsm_engine *engine = worker->engine;
    (void)pthread_mutex_lock(&engine->control);
    bool healed = true;
    if (worker->epoch == atomic_load_explicit(&engine->epoch, memory_order_acquire)) {
        uint64_t now = hsm_now_ns();
        healed = now - engine->last_heal_ns >= HEAL_INTERVAL_NS;
        if (healed) {
            hsm_error error;
            engine->last_heal_ns = now;
            healed = heal(engine, &error) == HSM_OK;
        }
    }
    (void)pthread_mutex_unlock(&engine->control);
    return healed;
}

static void back_off(unsigned attempt) {
    struct timespec pause = {.tv_nsec = (long)(BACKOFF_NS << attempt)};
    (void)clock_nanosleep(CLOCK_MONOTONIC, 0, &pause, NULL);
}

bool hsm_recover(hsm_worker *worker, hsm_status status, const hsm_outcome *outcome, unsigned attempt) {
    (void)outcome;
    enum hsm_class class_ = hsm_status_class(status);
    _Atomic uint64_t *counter = &worker->record->recoveries[class_];
    atomic_fetch_add_explicit(counter, 1, memory_order_relaxed);
    switch (class_) {
    case HSM_CLASS_RETRY:
        back_off(attempt);
        return true;
    case HSM_CLASS_RESET:
    case HSM_CLASS_REOPEN:
        hsm_worker_close(worker);
        return true;
    case HSM_CLASS_RELOGIN:
    case HSM_CLASS_REFIND:
        return heal_once(worker);
    default:
        return false;
    }
}
