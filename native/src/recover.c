/* The recovery ladder: what a worker tries, in order of cost, before it gives a signature up.
 *
 *   retry     the same session, a moment later
 *   reopen    a new session
 *   heal      log in again if need be, look every key up again and compare it with the pinned one
 *   reinit    C_Finalize and C_Initialize, with no call inside the module (reinit.c), then heal
 *   down      fail at once between probes, until the token answers (down.c)
 *
 * The class of a failure chooses the rung; a failure that repeats takes the next one. A request leaves the ladder with
 * its deadline; after a few attempts it waits for the next one outside the workers (aside.c), since the failure may be
 * its own. Heal and reinit are single-flight (the epoch shows a worker that another one has done the work) and
 * rate-limited: a request waits for its turn. A refused PIN ends all logins. */
#include "session.h"

#define MS UINT64_C(1000000)
/* The shortest time between two attempts to heal, and to reinitialize; it doubles with each failure in a row. */
#define HEAL_INTERVAL_NS (20 * MS)
#define HEAL_INTERVAL_MAX_NS (1000 * MS)
/* The same for reinitializing beside other engines, which it stops for a moment: a token that is away for good must not
 * cost them more than that. */
#define SHARED_INTERVAL_MAX_NS (16000 * MS)
/* The time on the ladder of a request without a deadline. */
#define LADDER_NS (500 * MS)
/* A request with less time than this is not put aside any more: its error is to reach its caller. */
#define LEAST_ASIDE_NS (256 * MS)
/* The pause of a worker that puts a request aside while no session signs, so that a module that is busy is left
 * alone. */
#define PACE_NS (16 * MS)
#define BACKOFF_NS MS
#define BACKOFF_MAX_SHIFT 7U
/* Pauses after which a request is put aside. While others wait for the worker and other sessions sign, they are
 * short. */
#define MAX_SHORT_PAUSES 8U
#define MAX_PAUSES 6U

/* Find the key of a place again and note its handle. Returns HSM_OK also for a key that is missing or deactivated: only
 * a fault of the token is a failure. Call with `control` held. */
static hsm_status look_up(hsm_engine *engine, uint32_t place, bool *found, hsm_error *error) {
    hsm_engine_key *key = &engine->keys[place];
    CK_OBJECT_HANDLE handle = 0;
    hsm_status status = hsm_engine_refind(engine, engine->login_session, place, &handle, error);
    bool logged_in;
    status = hsm_engine_unless_hidden(engine, engine->login_session, status, &logged_in);
    *found = status == HSM_OK;
    /* A deactivated key keeps its handle, and the token refuses it. Another key, or several, leave the place without
     * one. A key that was not read may be the pinned one. */
    bool there = status == HSM_OK || status == HSM_KEY_DEACTIVATED;
    bool own = there || status == HSM_KEY_NOT_FOUND || status == HSM_KEY_MISMATCH ||
               (logged_in && error->ckr == CKR_OK && status != HSM_KEY_HANDLE_STALE);
    atomic_store_explicit(&key->handle, there ? handle : 0, memory_order_release);
    atomic_store(&key->gone, own && !there);
    return own ? HSM_OK : status;
}

/* Log in again if need be and find every key again. A key whose search fails has no handle afterwards; if no key is
 * found, that failure is returned. Call with `control` held. */
static hsm_status heal_token(hsm_engine *engine, hsm_error *error) {
    hsm_status status = hsm_engine_ready(engine, error);
    hsm_status failure = HSM_OK;
    uint32_t keys_found = 0;
    for (uint32_t place = 0; place < HSM_MAX_KEYS && status == HSM_OK; place++) {
        uint32_t state = atomic_load(&engine->area->shared->keys[place].state);
        if (engine->keys[place].label == NULL || (state != HSM_KEY_ACTIVE && state != HSM_KEY_MISMATCHED)) {
            continue;
        }
        bool found;
        hsm_status looked = look_up(engine, place, &found, error);
        keys_found += found ? 1U : 0U;
        if (looked != HSM_OK) {
            /* The session may be stuck in a search, which its state does not show: go on with another one. */
            failure = looked;
            hsm_engine_close_login(engine);
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

/* Initialize the module again, and heal. The module is busy if that cannot be done now, and healing fails for something
 * that another attempt may mend. Call with `control` held. */
static hsm_status reinit_module(hsm_worker *worker, hsm_error *error) {
    hsm_engine *engine = worker->engine;
    hsm_status status = hsm_engines_reinitialize(worker, error);
    if (status == HSM_OK || status == HSM_BUSY) {
        hsm_status healed = heal_token(engine, error);
        bool passes = healed != HSM_OK && hsm_status_class(healed) < HSM_CLASS_AUTH_FATAL;
        status = status == HSM_BUSY && passes ? HSM_BUSY : healed;
    }
    hsm_gate_open(engine);
    return status;
}

/* LOOK heals as well, at a slower pace: the token is there, and has another key. */
enum rung { HEAL, LOOK, REINIT };

/* The shortest time between two attempts at a rung. */
static uint64_t interval_of(const hsm_engine *engine, enum rung rung) {
    uint32_t failures = atomic_load(&engine->heal_failures);
    bool shared = rung == REINIT && atomic_load(&engine->module->engines) > 1;
    if (shared || (rung == REINIT && engine->fruitless > failures)) {
        failures = engine->fruitless;
    }
    if (rung == LOOK) {
        return HEAL_INTERVAL_MAX_NS;
    }
    uint64_t most = shared ? SHARED_INTERVAL_MAX_NS : HEAL_INTERVAL_MAX_NS;
    uint64_t interval = HEAL_INTERVAL_NS << (failures < 10 ? failures : 10);
    return interval < most ? interval : most;
}

/* Sleep outside the module, so that no reinit waits for a worker that sleeps. */
static void nap(hsm_worker *worker, uint64_t ns) {
    hsm_worker_leave(worker);
    hsm_sleep(ns);
    hsm_worker_enter(worker, hsm_now_ns());
}

/* The rung "retry": sleep, longer each time; after some attempts, outside the worker. Returns false when the request is
 * put aside, or when its time is over; before that there is one last attempt, halfway between now and then. */
static bool retry(hsm_worker *worker) {
    hsm_ladder *ladder = &worker->ladder;
    uint64_t now = hsm_now_ns();
    if (ladder->last_attempt || now >= ladder->until_ns) {
        return false;
    }
    uint64_t left = ladder->until_ns - now;
    unsigned shift = ++ladder->pauses < BACKOFF_MAX_SHIFT ? ladder->pauses : BACKOFF_MAX_SHIFT;
    uint64_t pause = BACKOFF_NS << shift;
    const hsm_engine *engine = worker->engine;
    bool others_wait = hsm_area_queued(engine->area) != 0;
    bool others_sign = hsm_token_answers(worker);
    if (ladder->pauses > (others_wait && others_sign ? MAX_SHORT_PAUSES : MAX_PAUSES)) {
        if (left >= LEAST_ASIDE_NS) {
            if (!others_sign) {
                nap(worker, PACE_NS);
            }
            ladder->due_ns = now + pause;
        }
        if (left >= LEAST_ASIDE_NS || others_wait || atomic_load(&engine->aside_count) != 0) {
            return false;
        }
    }
    pause = others_wait && others_sign ? BACKOFF_NS : pause;
    if (pause > left / 2) {
        pause = left / 2;
        ladder->last_attempt = true;
    }
    nap(worker, pause);
    return true;
}

enum result { DONE, FAILED, TOO_SOON };

/* One attempt at a rung, unless another worker has made one since this one last looked. For TOO_SOON the ladder's
 * `wait_ns` says how long until the next attempt is allowed. Call outside the module, with `control` held. */
static enum result attempt(hsm_worker *worker, enum rung rung) {
    hsm_engine *engine = worker->engine;
    hsm_ladder *ladder = &worker->ladder;
    ladder->unhealed = false;
    ladder->wait_ns = 0;
    if (hsm_worker_catch_up(worker)) {
        return DONE;
    }
    if (atomic_load(&engine->closing) || atomic_load_explicit(&engine->auth_failure, memory_order_relaxed) != HSM_OK) {
        return FAILED;
    }
    /* Each rung has its own time: the one below has just been tried when the one above is needed. */
    uint64_t *last = rung == REINIT ? &engine->last_reinit_ns : &engine->last_heal_ns;
    uint64_t interval = interval_of(engine, rung);
    uint64_t now = hsm_now_ns();
    if (now - *last < interval) {
        ladder->wait_ns = interval - (now - *last);
        /* The last attempt has failed, or has not brought one signature. */
        ladder->unhealed = atomic_load(&engine->heal_failures) != 0 || engine->fruitless != 0;
        bool declared = atomic_load(&engine->area->shared->down) != 0 && worker->probing_ns == 0;
        return declared && atomic_load(&engine->heal_failures) != 0 ? FAILED : TOO_SOON;
    }
    if (rung == REINIT) {
        bool helped = *last == 0 || hsm_token_answered_since(engine, *last);
        engine->fruitless = helped ? 0 : engine->fruitless + 1U;
    }
    hsm_error error = {.status = HSM_OK};
    *last = now;
    atomic_store(&worker->record->call_started_ns, now);
    hsm_status status = rung == REINIT ? reinit_module(worker, &error) : heal_token(engine, &error);
    atomic_store(&worker->record->call_started_ns, 0);
    (void)hsm_worker_catch_up(worker); /* with its own work */
    ladder->reinitialized = ladder->reinitialized || rung == REINIT;
    if (status == HSM_OK) {
        atomic_store(&engine->heal_failures, 0);
        ladder->unhealed = rung == REINIT && engine->fruitless != 0;
        return DONE;
    }
    atomic_fetch_add(&engine->heal_failures, 1);
    ladder->unhealed = true;
    enum hsm_class class_ = hsm_status_class(status);
    /* A token that is busy, or that signs for others, is there. */
    if (class_ == HSM_CLASS_RETRY || (class_ < HSM_CLASS_AUTH_FATAL && hsm_token_answers(worker))) {
        ladder->wait_ns = interval;
        return TOO_SOON;
    }
    return FAILED;
}

/* Whether the request's caller has left: no further attempt is owed. */
static bool is_withdrawn(const hsm_worker *worker) {
    return hsm_area_withdrawn(hsm_area_slot(worker->engine->area, worker->ladder.slot));
}

/* Take a rung; a `patient` request waits for its turn. Returns whether another attempt to sign is worth it. */
static bool take(hsm_worker *worker, enum rung rung, bool patient) {
    hsm_engine *engine = worker->engine;
    hsm_ladder *ladder = &worker->ladder;
    ladder->healed = true;
    for (;;) {
        /* A worker that waits for the lock is not inside: its holder may be waiting at the gate for all to come out. */
        hsm_worker_leave(worker);
        hsm_engine_lock(engine);
        enum result result = attempt(worker, ladder->reinitialized ? HEAL : rung);
        hsm_engine_unlock(engine);
        hsm_worker_enter(worker, hsm_now_ns());
        uint64_t now = hsm_now_ns();
        if (result != TOO_SOON) {
            return result == DONE;
        }
        if (!patient || now >= ladder->until_ns || ladder->wait_ns >= ladder->until_ns - now || is_withdrawn(worker)) {
            return false;
        }
        nap(worker, ladder->wait_ns < HEAL_INTERVAL_NS ? ladder->wait_ns : HEAL_INTERVAL_NS);
    }
}

static bool heal(hsm_worker *worker, bool patient) {
    return take(worker, HEAL, patient);
}

/* Once for each request: there is no rung above. */
static bool reinit(hsm_worker *worker) {
    return !worker->ladder.reinitialized && take(worker, REINIT, true);
}

/* Reinit may meet a fault itself: then wait a moment, until the token has been silent for so long that it is down. */
static bool reinit_or_retry(hsm_worker *worker) {
    bool refused = atomic_load_explicit(&worker->engine->auth_failure, memory_order_relaxed) != HSM_OK;
    return reinit(worker) || (!refused && !hsm_token_is_silent(worker, hsm_now_ns()) && retry(worker));
}

/* While other sessions sign, the module is well, and a moment may do. */
static bool retry_or_reinit(hsm_worker *worker) {
    return hsm_token_answers(worker) ? retry(worker) : reinit_or_retry(worker);
}

/* Whether the module says that the session or its login is gone: then the failure is not the request's own. */
static bool is_lost(const hsm_worker *worker) {
    bool logged_in;
    return worker->session_open &&
           (hsm_engine_session_state(worker->engine, worker->session, &logged_in) != CKR_OK || !logged_in);
}

/* Whether the last heal failed, or a fault of the token kept it from finding the key of this request. */
static bool is_unhealed(const hsm_worker *worker) {
    uint32_t place = atomic_load_explicit(&worker->serving, memory_order_relaxed) - 1U;
    const hsm_engine_key *key = &worker->engine->keys[place];
    return worker->ladder.unhealed || (atomic_load(&key->handle) == 0 && !atomic_load(&key->gone));
}

/* Where healing fails, or has not helped this request before, take the next rung; and then heal again, if need be. */
static bool heal_or_more(hsm_worker *worker) {
    if ((!worker->ladder.healed || is_lost(worker)) && heal(worker, true)) {
        return true;
    }
    if (!retry_or_reinit(worker)) {
        return false;
    }
    if (is_unhealed(worker)) {
        (void)heal(worker, true);
    }
    return true;
}

/* Go on with a new session. Where that does not help, the login may have gone with the old one. */
static bool reopen(hsm_worker *worker, bool again) {
    bool lost = again && is_lost(worker);
    hsm_worker_close(worker); /* ends the operation as well */
    if (lost) {
        nap(worker, BACKOFF_NS);
    }
    return !again || lost || heal_or_more(worker);
}

/* Whether the key alone is gone, and the token is not: the search found other keys and not this one. */
static bool is_gone(const hsm_worker *worker) {
    uint32_t place = atomic_load_explicit(&worker->serving, memory_order_relaxed) - 1U;
    const hsm_engine *engine = worker->engine;
    return worker->handles[place] == 0 && atomic_load(&engine->keys[place].gone) &&
           atomic_load(&engine->keys_found) > 0;
}

void hsm_ladder_begin(hsm_worker *worker, uint64_t now, uint32_t index) {
    const hsm_slot *slot = hsm_area_slot(worker->engine->area, index);
    uint64_t submitted = atomic_load_explicit(&slot->submitted_ns, memory_order_relaxed);
    if (worker->ladder.until_ns != 0 && worker->ladder.slot == index && worker->ladder.submitted_ns == submitted) {
        return; /* it was put aside */
    }
    worker->ladder = (hsm_ladder){
        .slot = index,
        .submitted_ns = submitted,
        .begun_ns = now,
        .since_ns = now,
        .failed_ns = now,
        .until_ns = slot->deadline_ns != 0 ? slot->deadline_ns : now + LADDER_NS,
    };
}

static bool climb(hsm_worker *worker, hsm_status status) {
    enum hsm_class class_ = hsm_status_class(status);
    atomic_fetch_add_explicit(&worker->record->recoveries[class_], 1, memory_order_relaxed);
    hsm_ladder *ladder = &worker->ladder;
    /* The cheap remedy has not helped before. A failure after a RETRY does not count: that one left an operation
     * behind. */
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
        return retry(worker);
    case HSM_CLASS_RESET:
    case HSM_CLASS_REOPEN:
        return reopen(worker, again);
    case HSM_CLASS_REFIND:
        if (is_gone(worker)) {
            return !ladder->healed && heal(worker, false);
        }
        return heal_or_more(worker);
    case HSM_CLASS_RELOGIN:
        return heal_or_more(worker);
    case HSM_CLASS_REINIT:
        hsm_worker_close(worker);
        return reinit_or_retry(worker);
    case HSM_CLASS_MEMBER_DOWN:
        if (status == HSM_KEY_MISMATCH) {
            return !ladder->healed && take(worker, LOOK, false);
        }
        if (status == HSM_SIGNATURE_INVALID) {
            (void)heal(worker, false); /* the handle may be another key's by now */
            return hsm_token_answers(worker) ? retry(worker) : ++ladder->wrong < HSM_MAX_WRONG;
        }
        hsm_worker_close(worker);
        return !again || retry_or_reinit(worker);
    default:
        return false;
    }
}

bool hsm_ladder_climb(hsm_worker *worker, hsm_status status) {
    return climb(worker, status) && !is_withdrawn(worker);
}

hsm_status hsm_ladder_verdict(const hsm_worker *worker, hsm_status status) {
    if (is_withdrawn(worker)) {
        return HSM_CANCELLED;
    }
    hsm_status refusal = (hsm_status)atomic_load_explicit(&worker->engine->auth_failure, memory_order_relaxed);
    switch (hsm_status_class(status)) {
    case HSM_CLASS_REOPEN:
    case HSM_CLASS_RELOGIN:
    case HSM_CLASS_REFIND:
    case HSM_CLASS_REINIT:
        if (refusal == HSM_OK && worker->engine->slot_lost) {
            return HSM_TOKEN_LOST;
        }
        return refusal != HSM_OK ? refusal : status;
    default:
        return status; /* no login would mend it */
    }
}
