/* The recovery ladder: what is tried, in order of cost, before a signature is given up.
 *
 *   retry     the same session, a moment later
 *   reopen    a new session
 *   heal      log in again if need be, look every key up again and compare it with what was pinned
 *   reinit    C_Finalize and C_Initialize, with no call inside the module, then heal
 *   down      fail at once between probes, until the token answers (down.c)
 *
 * Every rung can be reached at any attempt: a failure that repeats takes the next one. A request stays on the ladder until
 * LADDER_NS have passed or its deadline has. Mending is single-flight (the epoch shows a worker that another one has done
 * the work) and rate-limited: a request waits for its turn. A refused PIN ends all logins. */
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
/* How long a request may stay on the ladder; until then its worker serves no other one. */
#define LADDER_NS (500 * MS)
#define BACKOFF_NS MS
#define BACKOFF_MAX_SHIFT 7U
/* After so many wrong signatures in a row the request fails. */
#define MAX_WRONG 4U
/* How long re-initializing waits for the other workers to come out of the module. */
#define QUIESCE_NS (200 * MS)

void hsm_engine_wipe_pin(hsm_engine *engine) {
    if (atomic_load(&engine->closing) && pthread_mutex_trylock(&engine->control) == 0) {
        if (engine->pin != NULL) {
            hsm_wipe(engine->pin, engine->pin_len);
        }
        (void)pthread_mutex_unlock(&engine->control);
    }
}

void hsm_engine_lock(hsm_engine *engine) {
    (void)pthread_mutex_lock(&engine->control);
}

void hsm_engine_unlock(hsm_engine *engine) {
    (void)pthread_mutex_unlock(&engine->control);
    /* hsm_engine_stop could not wipe the PIN while this thread held the lock. */
    hsm_engine_wipe_pin(engine);
}

hsm_status hsm_engine_login(hsm_engine *engine, hsm_error *error) {
    if (atomic_load(&engine->closing)) {
        return hsm_fail(error, HSM_CLOSED, "C_Login", "the engine is being stopped; no attempt was made");
    }
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
    uint32_t keys_found = 0;
    engine->keys_missing = 0;
    for (uint32_t key = 0; key < HSM_MAX_KEYS && status == HSM_OK; key++) {
        if (engine->keys[key].label == NULL || atomic_load(&engine->area->shared->keys[key].state) != HSM_KEY_ACTIVE) {
            continue;
        }
        CK_OBJECT_HANDLE handle;
        hsm_status found = hsm_engine_refind(engine, engine->login_session, key, &handle, error);
        if (found == HSM_OK) {
            atomic_store_explicit(&engine->keys[key].handle, handle, memory_order_release);
            keys_found++;
        } else if (found == HSM_KEY_MISMATCH || found == HSM_KEY_DEACTIVATED) {
            continue; /* its state, or the token, refuses it */
        } else if (found == HSM_KEY_NOT_FOUND || error->ckr == CKR_OK) {
            /* What was found is not this key, or not this key alone: no other key's matter. */
            atomic_store_explicit(&engine->keys[key].handle, 0, memory_order_release);
            engine->keys_missing++;
        } else {
            status = found; /* the token, not the key, is at fault: come again */
        }
    }
    atomic_store(&engine->keys_found, keys_found);
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
    atomic_store(&engine->keys_found, 0);
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
    unsigned shift = engine->fruitless < 6 ? engine->fruitless : 6;
    uint64_t interval = HEAL_INTERVAL_NS << shift;
    uint64_t least = heal_interval(engine);
    interval = interval < HEAL_INTERVAL_MAX_NS ? interval : HEAL_INTERVAL_MAX_NS;
    return interval > least ? interval : least;
}

/* Sleep outside the module: who initializes it anew must not wait for a worker that sleeps. */
static void nap(hsm_worker *worker, uint64_t ns) {
    struct timespec pause = {.tv_sec = (time_t)(ns / (1000 * MS)), .tv_nsec = (long)(ns % (1000 * MS))};
    hsm_worker_leave(worker);
    (void)clock_nanosleep(CLOCK_MONOTONIC, 0, &pause, NULL);
    hsm_worker_enter(worker, hsm_now_ns());
}

/* Sleep longer after each attempt. Returns false when the request's time on the ladder is over; before that there is one
 * last attempt, halfway between now and then. */
static bool back_off(hsm_worker *worker, unsigned attempt) {
    hsm_ladder *ladder = &worker->ladder;
    uint64_t now = hsm_now_ns();
    uint64_t pause = BACKOFF_NS << (attempt < BACKOFF_MAX_SHIFT ? attempt : BACKOFF_MAX_SHIFT);
    if (ladder->last_attempt || now >= ladder->until_ns) {
        return false;
    }
    if (pause > ladder->until_ns - now) {
        pause = (ladder->until_ns - now) / 2;
        ladder->last_attempt = true;
    }
    nap(worker, pause);
    return true;
}

/* What came of one try to mend. */
enum mending { MENDED, NOT_MENDED, TOO_SOON };

/* Heal, or with `anew` initialize the module first, unless another worker has done so since this one last looked. For
 * TOO_SOON `*wait_ns` says how long until this may be tried again. Call outside the module. */
static enum mending mend_once(hsm_worker *worker, bool anew, uint64_t *wait_ns) {
    hsm_engine *engine = worker->engine;
    if (hsm_worker_catch_up(worker)) {
        return MENDED;
    }
    /* Each rung has its own: the one below has just been tried when the one above is needed. */
    uint64_t *last = anew ? &engine->last_reinit_ns : &engine->last_heal_ns;
    uint64_t interval = anew ? reinit_interval(engine) : heal_interval(engine);
    uint64_t now = hsm_now_ns();
    if (atomic_load(&engine->closing) || atomic_load_explicit(&engine->auth_failure, memory_order_relaxed) != HSM_OK) {
        return NOT_MENDED;
    }
    if (now - *last < interval) {
        *wait_ns = interval - (now - *last);
        return engine->heal_failures == 0 ? TOO_SOON : NOT_MENDED;
    }
    hsm_error error = {.status = HSM_OK};
    *last = now;
    atomic_store(&worker->record->call_started_ns, now);
    hsm_status status = anew ? reinitialize(worker, &error) : heal(engine, &error);
    atomic_store(&worker->record->call_started_ns, 0);
    engine->heal_failures = status == HSM_OK ? 0 : engine->heal_failures + 1U;
    (void)hsm_worker_catch_up(worker); /* with what it has just done itself */
    if (status == HSM_OK) {
        engine->fruitless = engine->keys_missing == 0 ? 0 : engine->fruitless + (anew ? 1U : 0U);
        worker->ladder.renewed = worker->ladder.renewed || anew;
    }
    return status == HSM_OK ? MENDED : NOT_MENDED;
}

/* The same, waiting where it is `patient` until enough time has passed since the token was last mended. Returns whether
 * another attempt is worth it. */
static bool mend(hsm_worker *worker, bool anew, bool patient) {
    hsm_engine *engine = worker->engine;
    hsm_ladder *ladder = &worker->ladder;
    if (anew && ladder->renewed) {
        return false; /* there is no rung above that one */
    }
    ladder->healed = true;
    for (;;) {
        uint64_t wait_ns = 0;
        /* A worker that waits here is not inside: it must not keep the one that mends waiting at the gate. */
        hsm_worker_leave(worker);
        hsm_engine_lock(engine);
        enum mending result = mend_once(worker, anew, &wait_ns);
        hsm_engine_unlock(engine);
        hsm_worker_enter(worker, hsm_now_ns());
        if (result != TOO_SOON) {
            ladder->unhealed = result == NOT_MENDED;
            return result == MENDED;
        }
        uint64_t now = hsm_now_ns();
        if (!patient || now >= ladder->until_ns || wait_ns >= ladder->until_ns - now) {
            return false;
        }
        nap(worker, wait_ns < HEAL_INTERVAL_NS ? wait_ns : HEAL_INTERVAL_NS);
    }
}

/* Initialize the module anew, unless other sessions sign: then the module is well, and a moment may do. */
static bool renew(hsm_worker *worker, unsigned attempt) {
    return hsm_token_answers(worker) ? back_off(worker, attempt) : mend(worker, true, true);
}

/* Heal. Where that is not possible, or has not helped this request before, initialize the module anew. */
static bool climb(hsm_worker *worker, unsigned attempt) {
    return (!worker->ladder.healed && mend(worker, false, true)) || renew(worker, attempt);
}

/* A key that was looked for in vain while others were found is gone, and the token is not. */
static bool is_gone(const hsm_worker *worker) {
    uint32_t place = atomic_load_explicit(&worker->serving, memory_order_relaxed) - 1U;
    return worker->handles[place] == 0 && atomic_load(&worker->engine->keys_found) > 0;
}

void hsm_ladder_begin(hsm_worker *worker, uint64_t now, uint64_t deadline_ns) {
    uint64_t until = now + LADDER_NS;
    worker->ladder = (hsm_ladder){
        .since_ns = now,
        .failed_ns = now,
        .until_ns = deadline_ns != 0 && deadline_ns < until ? deadline_ns : until,
        .last = HSM_CLASS_OK,
    };
}

bool hsm_recover(hsm_worker *worker, hsm_status status, unsigned attempt) {
    enum hsm_class class_ = hsm_status_class(status);
    atomic_fetch_add_explicit(&worker->record->recoveries[class_], 1, memory_order_relaxed);
    hsm_ladder *ladder = &worker->ladder;
    bool again = class_ == ladder->last; /* the remedy for it did not help */
    ladder->last = class_;
    ladder->since_ns = ladder->failed_ns;
    ladder->failed_ns = hsm_now_ns();
    if (atomic_load(&worker->engine->closing)) {
        return false;
    }
    switch (class_) {
    case HSM_CLASS_RETRY:
        return back_off(worker, attempt);
    case HSM_CLASS_RESET:
    case HSM_CLASS_REOPEN:
        /* This ends the operation as well. Where a new session does not help, the login may have gone with the old one. */
        hsm_worker_close(worker);
        return !again || climb(worker, attempt);
    case HSM_CLASS_REFIND:
        if (is_gone(worker)) {
            return !ladder->healed && mend(worker, false, false);
        }
        return climb(worker, attempt);
    case HSM_CLASS_RELOGIN:
        return climb(worker, attempt);
    case HSM_CLASS_REINIT:
        hsm_worker_close(worker);
        return mend(worker, true, true);
    case HSM_CLASS_MEMBER_DOWN:
        if (status == HSM_KEY_MISMATCH) {
            return false;
        }
        if (status == HSM_SIGNATURE_INVALID) {
            (void)mend(worker, false, false); /* the handle may be another key's by now */
            return attempt < MAX_WRONG;
        }
        hsm_worker_close(worker);
        return !again || renew(worker, attempt);
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
