/* The recovery ladder: what is tried, in order of cost, before a signature is given up.
 *
 *   retry     the same session, a moment later
 *   reopen    a new session
 *   heal      log in again if need be, look every key up again and compare it with what was pinned
 *   reinit    C_Finalize and C_Initialize, with no call inside the module, then heal
 *   down      fail at once, but for one probe now and then, until the token answers
 *
 * Single-flight: whoever comes second finds the work done, by the epoch. Rate-limited. A refused PIN ends all logins. */
#include "engine.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

#include "key.h"
#include "token.h"

#define MS UINT64_C(1000000)
/* Not more often than this does the engine log in or look its keys up again; it grows while that fails. */
#define HEAL_INTERVAL_NS (20 * MS)
#define HEAL_INTERVAL_MAX_NS (1000 * MS)
/* A key that has been destroyed looks like a token that has gone. While other keys are there, looking for it must not
 * disturb them often. */
#define REINIT_INTERVAL_MAX_NS (60000 * MS)
#define BACKOFF_NS MS
/* How long re-initializing waits for the other workers to come out of the module. */
#define QUIESCE_NS (200 * MS)
#define PROBE_FIRST_NS (20 * MS)
#define PROBE_MAX_NS (1000 * MS)

hsm_status hsm_engine_login(hsm_engine *engine, hsm_error *error) {
    if (atomic_load_explicit(&engine->auth_failure, memory_order_relaxed) != HSM_OK) {
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
    if (status == HSM_KEY_HANDLE_STALE && engine->quirks->users_are_objects) {
        /* It must not look like a key's stale handle, which would be tried again. */
        status = HSM_LOGIN_REFUSED;
        if (error != NULL) {
            error->status = status;
        }
    }
    if (hsm_status_class(status) == HSM_CLASS_AUTH_FATAL) {
        atomic_store_explicit(&engine->auth_failure, status, memory_order_relaxed);
    }
    return status;
}

hsm_status hsm_engine_refind(hsm_engine *engine, CK_SESSION_HANDLE session, uint32_t place, CK_OBJECT_HANDLE *handle,
                             hsm_error *error) {
    hsm_engine_key *own = &engine->keys[place];
    hsm_key_record *pinned = &engine->area->shared->keys[place];
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
    bool other_key = status == HSM_KEY_MISMATCH || status == HSM_KEY_UNUSABLE || status == HSM_ALGORITHM_UNSUPPORTED;
    /* What a module returned is a failure of the search; only what was read and compared is another key. */
    if (other_key && error->ckr == CKR_OK) {
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

hsm_status hsm_engine_ready(hsm_engine *engine, hsm_error *error) {
    return logged_in(engine) ? HSM_OK : hsm_engine_login(engine, error);
}

/* Log in again if need be and find every key again. Call with `control` held. */
static hsm_status heal(hsm_engine *engine, hsm_error *error) {
    hsm_status status = hsm_engine_ready(engine, error);
    engine->keys_found = 0;
    engine->keys_missing = 0;
    for (uint32_t key = 0; key < HSM_MAX_KEYS && status == HSM_OK; key++) {
        if (engine->keys[key].label == NULL || atomic_load(&engine->area->shared->keys[key].state) != HSM_KEY_ACTIVE) {
            continue;
        }
        CK_OBJECT_HANDLE handle;
        hsm_status found = hsm_engine_refind(engine, engine->login_session, key, &handle, error);
        if (found == HSM_OK) {
            atomic_store_explicit(&engine->keys[key].handle, handle, memory_order_release);
            engine->keys_found++;
        } else if (found == HSM_KEY_NOT_FOUND) {
            atomic_store_explicit(&engine->keys[key].handle, 0, memory_order_release);
            engine->keys_missing++;
        } else if (found != HSM_KEY_MISMATCH && found != HSM_KEY_DEACTIVATED) {
            status = found; /* the token, not the key, is at fault: come again */
        }
    }
    if (status == HSM_OK) {
        atomic_fetch_add_explicit(&engine->epoch, 1, memory_order_acq_rel);
    } else if (engine->login_open) {
        /* It may be stuck in a search, which its state does not show: the next attempt begins with another one. */
        hsm_session_close(engine->p11, engine->login_session);
        engine->login_open = false;
    }
    return status;
}

/* Keep other workers out of the module and wait until those inside have come out. Returns false, with the gate open
 * again, if one does not. */
static bool close_gate(hsm_worker *worker) {
    hsm_engine *engine = worker->engine;
    atomic_store(&engine->gate, 1);
    uint64_t until = hsm_now_ns() + QUIESCE_NS;
    for (uint32_t i = 0; i < engine->worker_slots; i++) {
        hsm_worker_record *other = hsm_area_worker(engine->area, i);
        while (i != worker->index && atomic_load(&other->call_started_ns) != 0) {
            if (hsm_now_ns() >= until) {
                return false;
            }
            struct timespec pause = {.tv_nsec = 100000};
            (void)clock_nanosleep(CLOCK_MONOTONIC, 0, &pause, NULL);
        }
    }
    return true;
}

static void open_gate(hsm_engine *engine) {
    atomic_store(&engine->gate, 0);
    hsm_futex_wake(&engine->gate, INT32_MAX);
}

/* After C_Finalize the same numbers may stand for other objects. */
static void forget_handles(hsm_engine *engine) {
    for (uint32_t key = 0; key < HSM_MAX_KEYS; key++) {
        atomic_store_explicit(&engine->keys[key].handle, 0, memory_order_release);
    }
    atomic_fetch_add_explicit(&engine->epoch, 1, memory_order_acq_rel);
}

/* Initialize the module anew, if nobody else in this process uses it and no call is inside, and heal. Call with
 * `control` held. */
static hsm_status reinitialize(hsm_worker *worker, hsm_error *error) {
    hsm_engine *engine = worker->engine;
    if (!hsm_module_claim(engine->module)) {
        return hsm_fail(error, HSM_TOKEN_LOST, "C_Finalize", "others in this process use the module");
    }
    hsm_status status = HSM_TOKEN_LOST;
    if (close_gate(worker)) {
        for (uint32_t i = 0; i < engine->worker_slots; i++) {
            /* C_Finalize ends all sessions; nobody else is inside, so their flags may be cleared from here. */
            hsm_worker *other = &engine->workers[i];
            if (other->session_open) {
                hsm_worker_close(other);
            }
        }
        if (engine->login_open) {
            hsm_session_close(engine->p11, engine->login_session);
            engine->login_open = false;
        }
        forget_handles(engine);
        status = hsm_module_reinitialize(engine->module, error);
        if (status == HSM_OK) {
            status = hsm_token_find(engine->p11, &engine->selector, &engine->token_now, error);
            engine->slot = status == HSM_OK ? engine->token_now.slot_id : engine->slot;
        }
        if (status == HSM_OK) {
            status = heal(engine, error);
        }
    }
    open_gate(engine);
    hsm_module_unclaim(engine->module);
    return status;
}

static uint64_t heal_interval(const hsm_engine *engine) {
    unsigned shift = engine->heal_failures < 6 ? engine->heal_failures : 6;
    uint64_t interval = HEAL_INTERVAL_NS << shift;
    return interval < HEAL_INTERVAL_MAX_NS ? interval : HEAL_INTERVAL_MAX_NS;
}

static uint64_t reinit_interval(const hsm_engine *engine) {
    unsigned shift = engine->fruitless < 12 ? engine->fruitless : 12;
    uint64_t interval = HEAL_INTERVAL_NS << shift;
    uint64_t most = engine->keys_found > 0 ? REINIT_INTERVAL_MAX_NS : HEAL_INTERVAL_MAX_NS;
    uint64_t least = heal_interval(engine);
    interval = interval < most ? interval : most;
    return interval > least ? interval : least;
}

/* Heal, or with `anew` initialize the module first, unless somebody has done so since this worker last looked.
 * Returns whether another attempt is worth it. */
static bool mend(hsm_worker *worker, bool anew) {
    hsm_engine *engine = worker->engine;
    /* Whoever waits here is not inside: it must not keep the one who mends waiting at the gate. */
    hsm_worker_leave(worker);
    (void)pthread_mutex_lock(&engine->control);
    bool mended = true;
    worker->healed = true;
    if (!hsm_worker_catch_up(worker)) {
        uint64_t now = hsm_now_ns();
        /* Each rung has its own: the one below has just been tried when the one above is needed. */
        uint64_t *last = anew ? &engine->last_reinit_ns : &engine->last_heal_ns;
        uint64_t interval = anew ? reinit_interval(engine) : heal_interval(engine);
        bool refused = atomic_load_explicit(&engine->auth_failure, memory_order_relaxed) != HSM_OK;
        mended = now - *last >= interval && !refused;
        if (mended) {
            hsm_error error = {.status = HSM_OK};
            *last = now;
            atomic_store(&worker->record->call_started_ns, now);
            hsm_status status = anew ? reinitialize(worker, &error) : heal(engine, &error);
            atomic_store(&worker->record->call_started_ns, 0);
            mended = status == HSM_OK;
            engine->heal_failures = mended ? 0 : engine->heal_failures + 1U;
            (void)hsm_worker_catch_up(worker); /* with what it has just done itself */
            if (mended) {
                engine->fruitless = engine->keys_missing == 0 ? 0 : engine->fruitless + (anew ? 1U : 0U);
            }
        }
    }
    (void)pthread_mutex_unlock(&engine->control);
    hsm_worker_enter(worker, hsm_now_ns());
    return mended;
}

static void back_off(unsigned attempt) {
    struct timespec pause = {.tv_nsec = (long)(BACKOFF_NS << attempt)};
    (void)clock_nanosleep(CLOCK_MONOTONIC, 0, &pause, NULL);
}

bool hsm_recover(hsm_worker *worker, hsm_status status, unsigned attempt) {
    enum hsm_class class_ = hsm_status_class(status);
    atomic_fetch_add_explicit(&worker->record->recoveries[class_], 1, memory_order_relaxed);
    switch (class_) {
    case HSM_CLASS_RETRY:
        back_off(attempt);
        return true;
    case HSM_CLASS_RESET:
    case HSM_CLASS_REOPEN:
        /* Where a new session does not help, the login may have gone with the old one. */
        hsm_worker_close(worker);
        return attempt == 1 || mend(worker, false);
    case HSM_CLASS_RELOGIN:
    case HSM_CLASS_REFIND:
        /* Modules report stale handles when the whole token has gone; only a new start shows it. */
        return mend(worker, worker->healed);
    case HSM_CLASS_REINIT:
        hsm_worker_close(worker);
        return mend(worker, true);
    case HSM_CLASS_MEMBER_DOWN:
        if (status == HSM_KEY_MISMATCH) {
            return false;
        }
        if (status == HSM_SIGNATURE_INVALID) {
            return mend(worker, false); /* the handle may be another key's by now */
        }
        hsm_worker_close(worker);
        return attempt == 1 || mend(worker, true);
    default:
        return false;
    }
}

hsm_status hsm_verdict(const hsm_worker *worker, hsm_status status) {
    hsm_status refusal = (hsm_status)atomic_load_explicit(&worker->engine->auth_failure, memory_order_relaxed);
    switch (hsm_status_class(status)) {
    case HSM_CLASS_REOPEN:
    case HSM_CLASS_RELOGIN:
    case HSM_CLASS_REFIND:
    case HSM_CLASS_REINIT:
        return refusal != HSM_OK ? refusal : status;
    default:
        return status; /* no login would mend it */
    }
}

/* ---- a token that does not answer ---- */

bool hsm_admit_to_token(hsm_worker *worker, uint64_t now) {
    hsm_area *area = worker->engine->area;
    if (atomic_load_explicit(&area->shared->down, memory_order_relaxed) == 0) {
        return true;
    }
    uint64_t at = atomic_load(&area->shared->probe_at_ns);
    /* One request at a time is the probe; the next one may be tried when this one has had its time. */
    return now >= at && atomic_compare_exchange_strong(&area->shared->probe_at_ns, &at, now + PROBE_MAX_NS);
}

void hsm_token_answered(hsm_worker *worker) {
    hsm_engine *engine = worker->engine;
    if (atomic_load_explicit(&engine->area->shared->down, memory_order_relaxed) != 0) {
        atomic_store(&engine->probe_failures, 0);
        atomic_store(&engine->area->shared->down, 0);
    }
}

void hsm_token_silent(hsm_worker *worker, hsm_status status, uint64_t now) {
    hsm_engine *engine = worker->engine;
    enum hsm_class class_ = hsm_status_class(status);
    bool silent = status != HSM_KEY_MISMATCH && status != HSM_SIGNATURE_INVALID &&
                  (class_ == HSM_CLASS_MEMBER_DOWN || class_ == HSM_CLASS_REINIT || class_ == HSM_CLASS_REOPEN ||
                   class_ == HSM_CLASS_RELOGIN || class_ == HSM_CLASS_REFIND);
    if (!silent) {
        return;
    }
    uint32_t failures = atomic_fetch_add(&engine->probe_failures, 1);
    uint64_t pause = PROBE_FIRST_NS << (failures < 6 ? failures : 6);
    atomic_store(&engine->area->shared->probe_at_ns, now + (pause < PROBE_MAX_NS ? pause : PROBE_MAX_NS));
    atomic_store(&engine->area->shared->down, 1);
}
