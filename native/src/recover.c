/* The recovery ladder: what a worker tries, in order of cost, before it gives a signature up.
 *
 *   retry     the same session, a moment later
 *   reopen    a new session
 *   heal      log in again if need be, look every key up again and compare it with the pinned one
 *   reinit    C_Finalize and C_Initialize, with no call inside the module (reinit.c), then heal
 *   down      fail at once between probes, until the token answers (down.c)
 *
 * ladder.c says which rung comes next; here are the rungs. A request leaves the ladder with its deadline; after a few
 * attempts it waits for the next one outside the workers (aside.c), since the failure may be its own. Heal and reinit
 * are single-flight (the epoch shows a worker that another one has done the work) and rate-limited: a request waits for
 * its turn. A refused PIN ends all logins. */
#include "ladder.h"
#include "session.h"

#define MS UINT64_C(1000000)
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
/* The longest step of the wait for a rung's turn. */
#define STEP_NS (20 * MS)

/* The shortest time between two attempts at a rung: it doubles with each failure in a row. Beside other engines that
 * sign, which reinit stops for a moment, a token that is away for good must not cost them more than the last one
 * says. */
static const struct pace {
    uint64_t first_ns, most_ns, most_shared_ns;
} paces[] = {
    [HSM_RUNG_HEAL] = {20 * MS, 1000 * MS, 1000 * MS},
    [HSM_RUNG_HEAL_NOW] = {20 * MS, 1000 * MS, 1000 * MS},
    [HSM_RUNG_LOOK] = {1000 * MS, 1000 * MS, 1000 * MS},
    [HSM_RUNG_REINIT] = {20 * MS, 1000 * MS, 16000 * MS},
};

static uint64_t interval_of(const hsm_engine *engine, enum hsm_rung rung) {
    uint32_t failures = atomic_load(&engine->heal_failures);
    bool shared = rung == HSM_RUNG_REINIT && engine->stops_others;
    if (shared || (rung == HSM_RUNG_REINIT && engine->fruitless > failures)) {
        failures = engine->fruitless;
    }
    uint64_t most = shared ? paces[rung].most_shared_ns : paces[rung].most_ns;
    uint64_t interval = paces[rung].first_ns << (failures < 10 ? failures : 10);
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
static enum result attempt(hsm_worker *worker, enum hsm_rung rung) {
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
    /* Reinit has its own time: heal has just been tried when it is needed. */
    bool whole = rung == HSM_RUNG_REINIT;
    uint64_t *last = whole ? &engine->last_reinit_ns : &engine->last_heal_ns;
    uint64_t interval = interval_of(engine, rung);
    uint64_t now = hsm_now_ns();
    if (now - *last < interval) {
        ladder->wait_ns = interval - (now - *last);
        /* The last attempt has failed, or has not brought one signature. */
        ladder->unhealed = atomic_load(&engine->heal_failures) != 0 || engine->fruitless != 0;
        bool declared = atomic_load(&engine->area->shared->down) != 0 && worker->probing_ns == 0;
        return declared && atomic_load(&engine->heal_failures) != 0 ? FAILED : TOO_SOON;
    }
    if (whole) {
        bool helped = *last == 0 || hsm_token_answered_since(engine, *last);
        engine->fruitless = helped ? 0 : engine->fruitless + 1U;
    }
    hsm_error error = {.status = HSM_OK};
    *last = now;
    atomic_store(&worker->record->call_started_ns, now);
    hsm_status status = whole ? hsm_engine_reinitialize(engine, worker, &error) : hsm_engine_heal(engine, &error);
    atomic_store(&worker->record->call_started_ns, 0);
    (void)hsm_worker_catch_up(worker); /* with its own work */
    ladder->reinitialized = ladder->reinitialized || whole;
    if (status == HSM_OK) {
        atomic_store(&engine->heal_failures, 0);
        ladder->unhealed = whole && engine->fruitless != 0;
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

static bool is_over(void *on) {
    const hsm_worker *worker = on;
    return atomic_load(&worker->engine->closing) || hsm_now_ns() >= worker->ladder.until_ns || is_withdrawn(worker);
}

/* Heal or reinit, in its turn. */
static bool mend(hsm_worker *worker, enum hsm_rung rung) {
    hsm_engine *engine = worker->engine;
    hsm_ladder *ladder = &worker->ladder;
    bool is_patient = rung == HSM_RUNG_HEAL || rung == HSM_RUNG_REINIT;
    ladder->healed = true;
    for (;;) {
        /* A worker that waits for the lock is not inside: its holder may be waiting at the gate for all to come out. */
        hsm_worker_leave(worker);
        hsm_engine_lock(engine);
        enum result result = attempt(worker, rung == HSM_RUNG_REINIT && ladder->reinitialized ? HSM_RUNG_HEAL : rung);
        hsm_engine_unlock(engine);
        hsm_worker_enter(worker, hsm_now_ns());
        if (result != TOO_SOON) {
            return result == DONE;
        }
        if (!is_patient || is_over(worker) || ladder->wait_ns >= ladder->until_ns - hsm_now_ns()) {
            return false;
        }
        nap(worker, ladder->wait_ns < STEP_NS ? ladder->wait_ns : STEP_NS);
    }
}

static bool take(void *on, enum hsm_rung rung) {
    hsm_worker *worker = on;
    switch (rung) {
    case HSM_RUNG_RETRY:
        return retry(worker);
    case HSM_RUNG_REOPEN:
    case HSM_RUNG_REOPEN_LATER:
        hsm_worker_close(worker); /* ends the operation as well */
        if (rung == HSM_RUNG_REOPEN_LATER) {
            nap(worker, BACKOFF_NS);
        }
        return true;
    default:
        return mend(worker, rung);
    }
}

static bool holds(void *on, enum hsm_fact fact) {
    const hsm_worker *worker = on;
    const hsm_engine *engine = worker->engine;
    const hsm_ladder *ladder = &worker->ladder;
    uint32_t place = atomic_load_explicit(&worker->serving, memory_order_relaxed) - 1U;
    const hsm_engine_key *key = &engine->keys[place];
    bool logged_in;
    switch (fact) {
    case HSM_FACT_AGAIN:
        return ladder->again;
    case HSM_FACT_OWN:
        return ladder->last >= HSM_CLASS_RESET && ladder->last <= HSM_CLASS_REFIND;
    case HSM_FACT_HEALED:
        return ladder->healed;
    case HSM_FACT_REINITIALIZED:
        return ladder->reinitialized;
    case HSM_FACT_UNHEALED:
        return ladder->unhealed || (atomic_load(&key->handle) == 0 && !atomic_load(&key->gone));
    case HSM_FACT_REFUSED:
        return atomic_load_explicit(&engine->auth_failure, memory_order_relaxed) != HSM_OK;
    case HSM_FACT_BAD:
        return ladder->wrong >= HSM_MAX_WRONG;
    case HSM_FACT_GONE:
        return worker->handles[place] == 0 && atomic_load(&key->gone) && atomic_load(&engine->keys_found) > 0;
    case HSM_FACT_ANSWERS:
        return hsm_token_answers(worker);
    case HSM_FACT_SILENT:
        return hsm_token_is_silent(worker, hsm_now_ns());
    case HSM_FACT_LOST:
        return worker->session_open &&
               (hsm_engine_session_state(engine, worker->session, &logged_in) != CKR_OK || !logged_in);
    }
    return false;
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

bool hsm_ladder_climb(hsm_worker *worker, hsm_status status) {
    static const hsm_ladder_calls calls = {.over = is_over, .holds = holds, .take = take};
    enum hsm_class class_ = hsm_status_class(status);
    atomic_fetch_add_explicit(&worker->record->recoveries[class_], 1, memory_order_relaxed);
    hsm_ladder *ladder = &worker->ladder;
    /* A failure after a RETRY does not count: that one left an operation behind. */
    ladder->again = (ladder->seen & (1U << class_)) != 0 && ladder->last != HSM_CLASS_RETRY;
    ladder->seen |= 1U << class_;
    ladder->last = class_;
    ladder->since_ns = ladder->failed_ns;
    ladder->failed_ns = hsm_now_ns();
    ladder->wrong += status == HSM_SIGNATURE_INVALID && !hsm_token_answers(worker) ? 1U : 0U;
    return hsm_ladder_walk(hsm_ladder_first(status), &calls, worker);
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
