/* The rungs of the recovery ladder: what a worker tries, in order of cost, before it gives a signature up. ladder.h
 * names them, ladder.c says which one comes next and how long the pauses are. A request leaves the ladder with its
 * deadline; after a few attempts it waits for the next one outside the workers (aside.c), since the failure may be its
 * own. Heal and reinit (reinit.c) are single-flight (the epoch shows a worker that another one has done the work) and
 * rate-limited: a request waits for its turn. A refused PIN ends all logins. Where no rung helps, see down.c. */
#include "ladder.h"
#include "session.h"

static void note(hsm_ladder *ladder, enum hsm_fact fact, bool holds) {
    ladder->facts = holds ? ladder->facts | fact : ladder->facts & ~(unsigned)fact;
}

/* Sleep outside the module, so that no reinit waits for a worker that sleeps. */
static void nap(hsm_worker *worker, uint64_t ns) {
    if (ns == 0) {
        return;
    }
    hsm_worker_leave(worker);
    hsm_sleep(ns);
    hsm_worker_enter(worker, hsm_now_ns());
}

/* The rung "retry": a pause, here or outside the workers. Returns false when the request is put aside, or when its time
 * is over. */
static bool retry(hsm_worker *worker) {
    hsm_ladder *ladder = &worker->ladder;
    uint64_t now = hsm_now_ns();
    if (ladder->last_attempt || now >= ladder->until_ns) {
        return false;
    }
    bool others_wait = hsm_area_queued(worker->engine->area) != 0 || atomic_load(&worker->engine->aside_count) != 0;
    hsm_ladder_wait wait =
        hsm_ladder_retry(++ladder->pauses, ladder->until_ns - now, others_wait, hsm_token_answers(worker));
    ladder->last_attempt = wait.is_last;
    ladder->due_ns = wait.aside_ns != 0 ? now + wait.aside_ns : 0;
    nap(worker, wait.here_ns);
    return wait.here_ns != 0 && wait.aside_ns == 0;
}

/* One attempt at a rung, unless another worker has made one since this one last looked. Returns whether it helped; if
 * not, the ladder's `wait_ns` says how long until the next attempt is allowed. Call outside the module, with `control`
 * held. */
static bool attempt(hsm_worker *worker, enum hsm_rung rung) {
    hsm_engine *engine = worker->engine;
    hsm_ladder *ladder = &worker->ladder;
    note(ladder, HSM_FACT_UNHEALED, false);
    ladder->wait_ns = 0;
    if (hsm_worker_catch_up(worker)) {
        return true;
    }
    if (atomic_load(&engine->closing) || atomic_load_explicit(&engine->auth_failure, memory_order_relaxed) != HSM_OK) {
        return false;
    }
    /* Reinit has its own time: heal has just been tried when it is needed. Once for each request; then heal again. */
    bool whole = rung == HSM_RUNG_REINIT && (ladder->facts & HSM_FACT_REINITIALIZED) == 0;
    uint64_t *last = whole ? &engine->last_reinit_ns : &engine->last_heal_ns;
    if (hsm_token_answered_since(engine, engine->last_reinit_ns)) {
        engine->fruitless = 0;
    }
    uint32_t failures = atomic_load(&engine->heal_failures);
    uint64_t interval = hsm_ladder_pause(rung, whole ? engine->fruitless : failures, whole ? engine->stopped_ns : 0);
    uint64_t now = hsm_now_ns();
    if (now - *last < interval) {
        bool declared = atomic_load(&engine->area->shared->down) != 0 && worker->probing_ns == 0;
        ladder->wait_ns = declared && failures != 0 ? 0 : interval - (now - *last);
        /* The last attempt has failed, or the reinit before it has not brought one signature. */
        note(ladder, HSM_FACT_UNHEALED, failures != 0 || engine->fruitless > 1);
        return false;
    }
    hsm_error error = {.status = HSM_OK};
    *last = now;
    atomic_store(&worker->record->call_started_ns, now);
    hsm_status status = whole ? hsm_engine_reinitialize(engine, worker, &error) : hsm_engine_heal(engine, &error);
    atomic_store(&worker->record->call_started_ns, 0);
    (void)hsm_worker_catch_up(worker); /* with its own work */
    if (whole) {
        note(ladder, HSM_FACT_REINITIALIZED, true);
        engine->fruitless++;
        engine->stopped_ns = engine->stops_others ? hsm_now_ns() - now : 0;
    }
    atomic_store(&engine->heal_failures, status == HSM_OK ? 0 : failures + 1U);
    note(ladder, HSM_FACT_UNHEALED, status != HSM_OK || engine->fruitless > 1);
    enum hsm_class class_ = hsm_status_class(status);
    /* A token that is busy, or that signs for others, is there. */
    if (class_ == HSM_CLASS_RETRY || (status != HSM_OK && class_ < HSM_CLASS_AUTH_FATAL && hsm_token_answers(worker))) {
        ladder->wait_ns = interval;
    }
    return status == HSM_OK;
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
    hsm_ladder *ladder = &worker->ladder;
    note(ladder, HSM_FACT_HEALED, true);
    /* A worker that waits for the lock is not inside: its holder may be waiting at the gate for all to come out. */
    hsm_worker_leave(worker);
    for (;;) {
        hsm_engine_lock(worker->engine);
        bool helped = attempt(worker, rung);
        hsm_engine_unlock(worker->engine);
        if (ladder->wait_ns == 0 || !hsm_limits.rungs[rung].waits || is_over(worker) ||
            hsm_now_ns() + ladder->wait_ns >= ladder->until_ns) {
            hsm_worker_enter(worker, hsm_now_ns());
            return helped;
        }
        hsm_sleep(ladder->wait_ns < hsm_limits.step ? ladder->wait_ns : hsm_limits.step);
    }
}

static bool take(void *on, enum hsm_rung rung) {
    hsm_worker *worker = on;
    if (rung == HSM_RUNG_RETRY) {
        return retry(worker);
    }
    if (rung != HSM_RUNG_REOPEN && rung != HSM_RUNG_REOPEN_LATER) {
        return mend(worker, rung);
    }
    hsm_worker_close(worker); /* ends the operation as well */
    nap(worker, hsm_limits.rungs[rung].first);
    return true;
}

static bool holds(void *on, enum hsm_fact fact) {
    const hsm_worker *worker = on;
    const hsm_engine *engine = worker->engine;
    uint32_t place = atomic_load_explicit(&worker->serving, memory_order_relaxed) - 1U;
    const hsm_engine_key *key = &engine->keys[place];
    bool noted = (worker->ladder.facts & fact) != 0;
    bool logged_in;
    switch (fact) {
    case HSM_FACT_UNHEALED:
        return noted || (atomic_load(&key->handle) == 0 && !atomic_load(&key->gone));
    case HSM_FACT_REFUSED:
        return atomic_load_explicit(&engine->auth_failure, memory_order_relaxed) != HSM_OK;
    case HSM_FACT_GONE:
        return worker->handles[place] == 0 && atomic_load(&key->gone) && atomic_load(&engine->keys_found) > 0;
    case HSM_FACT_ANSWERS:
        return hsm_token_answers(worker);
    case HSM_FACT_SILENT:
        return hsm_token_is_silent(worker, hsm_now_ns());
    case HSM_FACT_LOST:
        return worker->session_open &&
               (hsm_engine_session_state(engine, worker->session, &logged_in) != CKR_OK || !logged_in);
    default:
        return noted;
    }
}

void hsm_ladder_begin(hsm_worker *worker, uint64_t now, uint32_t index) {
    const hsm_slot *slot = hsm_area_slot(worker->engine->area, index);
    uint64_t submitted = atomic_load_explicit(&slot->submitted_ns, memory_order_relaxed);
    if (worker->ladder.slot == index && worker->ladder.submitted_ns == submitted) {
        return; /* it was put aside */
    }
    worker->ladder = (hsm_ladder){
        .slot = index,
        .submitted_ns = submitted,
        .begun_ns = now,
        .since_ns = now,
        .failed_ns = now,
        .until_ns = slot->deadline_ns != 0 ? slot->deadline_ns : now + hsm_limits.time,
    };
}

bool hsm_ladder_climb(hsm_worker *worker, hsm_status status) {
    static const hsm_ladder_calls calls = {.over = is_over, .holds = holds, .take = take};
    enum hsm_class class_ = hsm_status_class(status);
    atomic_fetch_add_explicit(&worker->record->recoveries[class_], 1, memory_order_relaxed);
    hsm_ladder *ladder = &worker->ladder;
    /* A failure after a RETRY does not count: that one left an operation behind. */
    note(ladder, HSM_FACT_AGAIN, (ladder->seen & (1U << class_)) != 0 && ladder->last != HSM_CLASS_RETRY);
    note(ladder, HSM_FACT_OWN, class_ >= HSM_CLASS_RESET && class_ <= HSM_CLASS_REFIND);
    ladder->seen |= 1U << class_;
    ladder->last = class_;
    ladder->since_ns = ladder->failed_ns;
    ladder->failed_ns = hsm_now_ns();
    ladder->wrong += status == HSM_SIGNATURE_INVALID && !hsm_token_answers(worker) ? 1U : 0U;
    note(ladder, HSM_FACT_BAD, ladder->wrong >= HSM_MAX_WRONG);
    return hsm_ladder_walk(hsm_ladder_first(status), &calls, worker);
}

hsm_status hsm_ladder_verdict(const hsm_worker *worker, hsm_status status) {
    if (is_withdrawn(worker)) {
        return HSM_CANCELLED;
    }
    enum hsm_class class_ = hsm_status_class(status);
    if (class_ < HSM_CLASS_REOPEN || class_ > HSM_CLASS_REINIT || class_ == HSM_CLASS_MEMBER_DOWN) {
        return status; /* no login would mend it */
    }
    hsm_status refusal = (hsm_status)atomic_load_explicit(&worker->engine->auth_failure, memory_order_relaxed);
    if (refusal != HSM_OK) {
        return refusal;
    }
    return worker->engine->slot_lost ? HSM_TOKEN_LOST : status;
}
