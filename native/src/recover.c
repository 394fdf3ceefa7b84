/* The recovery ladder: what is tried, in order of cost, before a signature is given up.
 *
 *   retry     the same session, a moment later
 *   reopen    a new session
 *   heal      log in again if need be, look every key up again and compare it with what was pinned
 *   reinit    C_Finalize and C_Initialize, with no call inside the module, then heal
 *   down      fail at once between probes, until the token answers (down.c)
 *
 * Every rung can be reached at any attempt: a failure that repeats takes the next one. A request stays on the ladder until
 * LADDER_NS have passed or its deadline has; while others wait for its worker no longer than a few attempts, since its failure
 * may be its own. Mending is single-flight (the epoch shows a worker that another one has done the
 * work) and rate-limited: a request waits for its turn. A refused PIN ends all logins. */
#include "session.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

#include "token.h"

#define MS UINT64_C(1000000)
/* Not more often than this does the engine log in or look its keys up again; it grows while that fails. */
#define HEAL_INTERVAL_NS (20 * MS)
#define HEAL_INTERVAL_MAX_NS (1000 * MS)
/* How long a request may stay on the ladder; until then its worker serves no other one. */
#define LADDER_NS (500 * MS)
#define BACKOFF_NS MS
#define BACKOFF_MAX_SHIFT 7U
/* After so many pauses a request gives way to those that wait: they are short ones while other sessions sign. */
#define MAX_SHORT_PAUSES 8U
#define MAX_PAUSES 6U
/* After so many wrong signatures the request fails. */
#define MAX_WRONG 4U
/* How long re-initializing waits for the other workers to come out of the module. */
#define QUIESCE_NS (200 * MS)

/* Find the key of a place again and note its handle. Returns HSM_OK also for a key that is not there, or that signs nothing
 * any more: only what the token is to blame for is a failure. Call with `control` held. */
static hsm_status look_up(hsm_engine *engine, uint32_t place, bool *found, hsm_error *error) {
    hsm_engine_key *key = &engine->keys[place];
    CK_OBJECT_HANDLE handle = 0;
    hsm_status status = hsm_engine_refind(engine, engine->login_session, place, &handle, error);
    *found = status == HSM_OK;
    /* A deactivated key keeps its handle, and the token refuses it. What is not this key, or not this key alone, has none. */
    bool there = status == HSM_OK || status == HSM_KEY_DEACTIVATED;
    bool own = there || status == HSM_KEY_NOT_FOUND || status == HSM_KEY_MISMATCH || error->ckr == CKR_OK;
    atomic_store_explicit(&key->handle, there ? handle : 0, memory_order_release);
    atomic_store(&key->gone, own && !there);
    return own ? HSM_OK : status;
}

/* Log in again if need be and find every key again. A key that cannot be looked for is left without a handle; it is a
 * failure if none could be found. Call with `control` held. */
static hsm_status heal(hsm_engine *engine, hsm_error *error) {
    hsm_status status = hsm_engine_ready(engine, error);
    hsm_status failure = HSM_OK;
    uint32_t keys_found = 0;
    for (uint32_t place = 0; place < HSM_MAX_KEYS && status == HSM_OK; place++) {
        if (engine->keys[place].label == NULL ||
            atomic_load(&engine->area->shared->keys[place].state) != HSM_KEY_ACTIVE) {
            continue;
        }
        bool found;
        hsm_status looked = look_up(engine, place, &found, error);
        keys_found += found ? 1U : 0U;
        if (looked != HSM_OK) {
            /* The session may be stuck in a search, which its state does not show: go on with another one. */
            failure = looked;
            hsm_session_close(engine->p11, engine->login_session);
            engine->login_open = false;
            status = hsm_engine_ready(engine, error);
        }
    }
    if (status == HSM_OK && keys_found == 0) {
        status = failure;
    }
    atomic_store(&engine->keys_found, status == HSM_OK ? keys_found : 0);
    if (status == HSM_OK) {
        atomic_fetch_add_explicit(&engine->epoch, 1, memory_order_acq_rel);
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
        atomic_store(&engine->keys[key].gone, false);
    }
    atomic_store(&engine->keys_found, 0);
    atomic_fetch_add_explicit(&engine->epoch, 1, memory_order_acq_rel);
}

/* Initialize the module anew, if nobody else in this process uses it and no call is inside, and heal. Call with
 * `control` held. */
static hsm_status reinitialize(hsm_worker *worker, hsm_error *error) {
    hsm_engine *engine = worker->engine;
    if (!hsm_module_claim(engine->module)) {
        return heal(engine, error); /* others in this process use the module */
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
    uint32_t failures = atomic_load(&engine->heal_failures);
    unsigned shift = failures < 6 ? failures : 6;
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

/* Sleep, longer each time. Returns false when the request's time on the ladder is over; before that there is one last
 * attempt, halfway between now and then. */
static bool back_off(hsm_worker *worker) {
    hsm_ladder *ladder = &worker->ladder;
    uint64_t now = hsm_now_ns();
    if (ladder->last_attempt || now >= ladder->until_ns) {
        return false;
    }
    unsigned shift = ++ladder->pauses < BACKOFF_MAX_SHIFT ? ladder->pauses : BACKOFF_MAX_SHIFT;
    if (hsm_area_queued(worker->engine->area) != 0) {
        bool others_sign = hsm_token_answers(worker);
        if (ladder->pauses > (others_sign ? MAX_SHORT_PAUSES : MAX_PAUSES)) {
            return false;
        }
        shift = others_sign ? 0 : shift;
    }
    uint64_t pause = BACKOFF_NS << shift;
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
 * TOO_SOON the ladder's `wait_ns` says how long until this may be tried again. Call outside the module, with `control`
 * held. */
static enum mending mend_once(hsm_worker *worker, bool anew) {
    hsm_engine *engine = worker->engine;
    hsm_ladder *ladder = &worker->ladder;
    ladder->unhealed = false;
    ladder->wait_ns = 0;
    if (hsm_worker_catch_up(worker)) {
        return MENDED;
    }
    if (atomic_load(&engine->closing) || atomic_load_explicit(&engine->auth_failure, memory_order_relaxed) != HSM_OK) {
        return NOT_MENDED;
    }
    /* Each rung has its own: the one below has just been tried when the one above is needed. */
    uint64_t *last = anew ? &engine->last_reinit_ns : &engine->last_heal_ns;
    uint64_t interval = anew ? reinit_interval(engine) : heal_interval(engine);
    uint64_t now = hsm_now_ns();
    if (now - *last < interval) {
        ladder->wait_ns = interval - (now - *last);
        /* The last mending has failed, or has not brought one signature. */
        ladder->unhealed = atomic_load(&engine->heal_failures) != 0 || engine->fruitless != 0;
        bool declared = atomic_load(&engine->area->shared->down) != 0 && worker->probing_ns == 0;
        return declared && atomic_load(&engine->heal_failures) != 0 ? NOT_MENDED : TOO_SOON;
    }
    if (anew) {
        bool helped = *last == 0 || hsm_token_answered_since(engine, *last);
        engine->fruitless = helped ? 0 : engine->fruitless + 1U;
    }
    hsm_error error = {.status = HSM_OK};
    *last = now;
    atomic_store(&worker->record->call_started_ns, now);
    hsm_status status = anew ? reinitialize(worker, &error) : heal(engine, &error);
    atomic_store(&worker->record->call_started_ns, 0);
    (void)hsm_worker_catch_up(worker); /* with what it has just done itself */
    ladder->renewed = ladder->renewed || anew;
    if (status == HSM_OK) {
        atomic_store(&engine->heal_failures, 0);
        ladder->unhealed = anew && engine->fruitless != 0;
        return MENDED;
    }
    atomic_fetch_add(&engine->heal_failures, 1);
    ladder->unhealed = true;
    if (hsm_status_class(status) == HSM_CLASS_RETRY) { /* a token that is busy is there */
        ladder->wait_ns = interval;
        return TOO_SOON;
    }
    return NOT_MENDED;
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
        /* A worker that waits here is not inside: it must not keep the one that mends waiting at the gate. */
        hsm_worker_leave(worker);
        hsm_engine_lock(engine);
        enum mending result = mend_once(worker, anew && !ladder->renewed);
        hsm_engine_unlock(engine);
        hsm_worker_enter(worker, hsm_now_ns());
        uint64_t now = hsm_now_ns();
        if (result != TOO_SOON) {
            return result == MENDED;
        }
        if (!patient || now >= ladder->until_ns || ladder->wait_ns >= ladder->until_ns - now) {
            return false;
        }
        nap(worker, ladder->wait_ns < HEAL_INTERVAL_NS ? ladder->wait_ns : HEAL_INTERVAL_NS);
    }
}

/* Initialize the module anew, unless other sessions sign: then the module is well, and a moment may do. */
static bool renew(hsm_worker *worker) {
    return hsm_token_answers(worker) ? back_off(worker) : mend(worker, true, true);
}

/* Heal. Where that is not possible, or has not helped this request before, initialize the module anew. */
static bool climb(hsm_worker *worker) {
    return (!worker->ladder.healed && mend(worker, false, true)) || renew(worker);
}

/* A key that was looked for in vain while others were found is gone, and the token is not. */
static bool is_gone(const hsm_worker *worker) {
    uint32_t place = atomic_load_explicit(&worker->serving, memory_order_relaxed) - 1U;
    const hsm_engine *engine = worker->engine;
    return worker->handles[place] == 0 && atomic_load(&engine->keys[place].gone) &&
           atomic_load(&engine->keys_found) > 0;
}

void hsm_ladder_begin(hsm_worker *worker, uint64_t now, uint64_t deadline_ns) {
    uint64_t until = now + LADDER_NS;
    worker->ladder = (hsm_ladder){
        .since_ns = now,
        .failed_ns = now,
        .until_ns = deadline_ns != 0 && deadline_ns < until ? deadline_ns : until,
    };
}

bool hsm_recover(hsm_worker *worker, hsm_status status) {
    enum hsm_class class_ = hsm_status_class(status);
    atomic_fetch_add_explicit(&worker->record->recoveries[class_], 1, memory_order_relaxed);
    hsm_ladder *ladder = &worker->ladder;
    /* The cheap remedy has not helped before. What follows on a RETRY is its consequence: an operation that it left. */
    bool again = (ladder->seen & (1U << class_)) != 0 && ladder->last != HSM_CLASS_RETRY;
    ladder->seen |= 1U << class_;
    ladder->last = class_;
    ladder->since_ns = ladder->failed_ns;
    ladder->failed_ns = hsm_now_ns();
    if (atomic_load(&worker->engine->closing) || ladder->failed_ns >= ladder->until_ns) {
        return false;
    }
    switch (class_) {
    case HSM_CLASS_RETRY:
        return back_off(worker);
    case HSM_CLASS_RESET:
    case HSM_CLASS_REOPEN:
        /* This ends the operation as well. Where a new session does not help, the login may have gone with the old one. */
        hsm_worker_close(worker);
        return !again || climb(worker);
    case HSM_CLASS_REFIND:
        if (is_gone(worker)) {
            return !ladder->healed && mend(worker, false, false);
        }
        return climb(worker);
    case HSM_CLASS_RELOGIN:
        return climb(worker);
    case HSM_CLASS_REINIT:
        hsm_worker_close(worker);
        return mend(worker, true, true);
    case HSM_CLASS_MEMBER_DOWN:
        if (status == HSM_KEY_MISMATCH) {
            return false;
        }
        if (status == HSM_SIGNATURE_INVALID) {
            (void)mend(worker, false, false); /* the handle may be another key's by now */
            return ++ladder->wrong < MAX_WRONG;
        }
        hsm_worker_close(worker);
        return !again || renew(worker);
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
