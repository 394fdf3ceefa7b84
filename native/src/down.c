/* A token that does not answer: requests for it wait for a probe, or fail at once between two probes, until it does. */
#include "engine.h"
#include "ladder.h"

bool hsm_token_answered_since(const hsm_engine *engine, uint64_t since) {
    for (uint32_t i = 0; i < engine->worker_slots; i++) {
        if (atomic_load_explicit(&engine->workers[i].answered_ns, memory_order_relaxed) >= since) {
            return true;
        }
    }
    return false;
}

bool hsm_token_answers(const hsm_worker *worker) {
    return hsm_token_answered_since(worker->engine, worker->ladder.since_ns);
}

bool hsm_token_is_silent(const hsm_worker *worker, uint64_t now) {
    uint64_t since = now - hsm_limits.silence;
    return worker->probing_ns != 0 ||
           (worker->ladder.begun_ns <= since && !hsm_token_answered_since(worker->engine, since));
}

bool hsm_admit_to_token(hsm_worker *worker, uint64_t *now, uint64_t deadline_ns) {
    hsm_engine *engine = worker->engine;
    hsm_shared *shared = engine->area->shared;
    const uint64_t most = hsm_limits.rungs[HSM_RUNG_DOWN].most;
    uint64_t until = deadline_ns != 0 && deadline_ns < *now + most ? deadline_ns : *now + most;
    /* This wait must not look like a stopped process or a hanging call. */
    atomic_store_explicit(&worker->record->call_deadline_ns, until + most, memory_order_relaxed);
    bool is_down;
    while ((is_down = atomic_load_explicit(&shared->down, memory_order_relaxed) != 0) && *now < until &&
           !atomic_load(&engine->closing)) {
        uint32_t ended = atomic_load(&engine->probes_ended);
        uint64_t probe_until = atomic_load(&engine->probe_until_ns);
        uint64_t at = atomic_load(&shared->probe_at_ns);
        bool healed = atomic_load(&engine->heal_failures) == 0 && atomic_load(&engine->keys_found) > 0;
        /* A request between two probes waits in the first pause, which is short and may be all that the token needs;
         * and in the second one after a heal without a signature, which may be the fault of the requests that were
         * tried. After that another member serves its caller better. */
        if (*now < at && atomic_load(&engine->probe_failures) > (healed ? 2U : 1U)) {
            break;
        }
        /* One request at a time is the probe; another one takes over when its time is up. */
        if (*now >= at && *now >= probe_until &&
            atomic_compare_exchange_strong(&engine->probe_until_ns, &probe_until, *now + most)) {
            worker->probing_ns = *now + most;
            break;
        }
        uint64_t wake_at = *now < at && at < until ? at : until;
        hsm_futex_wait(&engine->probes_ended, ended, wake_at - *now, true);
        *now = hsm_now_ns();
    }
    atomic_store_explicit(&worker->record->call_deadline_ns, 0, memory_order_relaxed);
    return !is_down || worker->probing_ns != 0;
}

void hsm_probe_waiters_wake(hsm_engine *engine) {
    atomic_fetch_add(&engine->probes_ended, 1);
    hsm_futex_wake(&engine->probes_ended, INT32_MAX, true);
}

void hsm_probe_end(hsm_worker *worker) {
    /* Another worker may have taken this one's place as the probe. */
    (void)atomic_compare_exchange_strong(&worker->engine->probe_until_ns, &worker->probing_ns, 0);
    worker->probing_ns = 0;
    hsm_probe_waiters_wake(worker->engine);
}

void hsm_token_answered(hsm_engine *engine) {
    atomic_store(&engine->probe_failures, 0);
    atomic_store(&engine->area->shared->probe_at_ns, 0);
    atomic_store(&engine->area->shared->down, 0);
    hsm_probe_waiters_wake(engine);
}

void hsm_token_silent(hsm_worker *worker, hsm_status status, uint64_t now) {
    hsm_shared *shared = worker->engine->area->shared;
    /* If the token was healed, or has signed, the failure is the request's own. */
    bool is_own = hsm_status_class(status) >= HSM_CLASS_AUTH_FATAL || status == HSM_KEY_MISMATCH ||
                  (worker->ladder.facts & HSM_FACT_UNHEALED) == 0 || hsm_token_answers(worker);
    if (is_own || !hsm_token_is_silent(worker, now)) {
        return;
    }
    uint32_t answering = 0;
    if (worker->probing_ns == 0 && !atomic_compare_exchange_strong(&shared->down, &answering, 1)) {
        return; /* several requests that fail at the same time are one failure */
    }
    uint64_t pause = worker->ladder.wait_ns; /* if not 0, it was too soon to try */
    if (pause == 0) {
        pause = hsm_ladder_pause(HSM_RUNG_DOWN, atomic_fetch_add(&worker->engine->probe_failures, 1), 0);
    }
    const uint64_t most = hsm_limits.rungs[HSM_RUNG_DOWN].most;
    atomic_store(&shared->probe_at_ns, now + (pause < most ? pause : most));
}
