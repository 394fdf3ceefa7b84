/* A token that does not answer: requests for it wait for a probe, or fail at once between two probes, until it does. */
#include "engine.h"

#define MS UINT64_C(1000000)
#define PROBE_FIRST_NS (20 * MS)
#define PROBE_MAX_NS (1000 * MS)
/* A token is down after so long without a signature: a heal that meets a fault has been repeated by then. */
#define SILENCE_NS (50 * MS)
/* The longest wait of another request for the end of a probe, or for its turn. */
#define PROBE_WAIT_NS (1000 * MS)

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
    uint64_t since = now - SILENCE_NS;
    return worker->probing_ns != 0 ||
           (worker->ladder.begun_ns <= since && !hsm_token_answered_since(worker->engine, since));
}

/* Whether a request between two probes waits for the next one. It does in the first pause, which is short and may be
 * all that the token needs; and in the second one after a heal without a signature, which may be the fault of the
 * requests that were tried. After that another member serves its caller better. */
static bool is_worth_waiting(hsm_engine *engine) {
    bool healed = atomic_load(&engine->heal_failures) == 0 && atomic_load(&engine->keys_found) > 0;
    return atomic_load(&engine->probe_failures) <= (healed ? 2U : 1U);
}

static bool admit(hsm_worker *worker, uint64_t *now, uint64_t until) {
    hsm_engine *engine = worker->engine;
    hsm_shared *shared = engine->area->shared;
    while (atomic_load_explicit(&shared->down, memory_order_relaxed) != 0) {
        uint32_t ended = atomic_load(&engine->probes_ended);
        uint64_t begun = atomic_load(&engine->probe_begun_ns);
        uint64_t at = atomic_load(&shared->probe_at_ns);
        uint64_t wake_at = until;
        if (*now >= until || atomic_load(&engine->closing)) {
            return false;
        }
        if (*now < at) {
            if (!is_worth_waiting(engine)) {
                return false;
            }
            wake_at = at < until ? at : until;
        } else if ((begun == 0 || (*now > begun && *now - begun >= PROBE_MAX_NS)) &&
                   /* One request at a time is the probe; another one takes over when its time is up. */
                   atomic_compare_exchange_strong(&engine->probe_begun_ns, &begun, *now)) {
            worker->probing_ns = *now;
            return true;
        }
        hsm_futex_wait(&engine->probes_ended, ended, wake_at - *now, true);
        *now = hsm_now_ns();
    }
    return true;
}

bool hsm_admit_to_token(hsm_worker *worker, uint64_t *now, uint64_t deadline_ns) {
    uint64_t until = *now + PROBE_WAIT_NS;
    until = deadline_ns != 0 && deadline_ns < until ? deadline_ns : until;
    /* This wait must not look like a stopped process or a hanging call. */
    atomic_store_explicit(&worker->record->call_deadline_ns, until + PROBE_MAX_NS, memory_order_relaxed);
    bool admitted = admit(worker, now, until);
    atomic_store_explicit(&worker->record->call_deadline_ns, 0, memory_order_relaxed);
    return admitted;
}

void hsm_probe_waiters_wake(hsm_engine *engine) {
    atomic_fetch_add(&engine->probes_ended, 1);
    hsm_futex_wake(&engine->probes_ended, INT32_MAX, true);
}

void hsm_probe_end(hsm_worker *worker) {
    hsm_engine *engine = worker->engine;
    /* Another worker may have taken this one's place as the probe. */
    (void)atomic_compare_exchange_strong(&engine->probe_begun_ns, &worker->probing_ns, 0);
    worker->probing_ns = 0;
    hsm_probe_waiters_wake(engine);
}

void hsm_token_answered(hsm_engine *engine) {
    atomic_store(&engine->probe_failures, 0);
    atomic_store(&engine->area->shared->probe_at_ns, 0);
    atomic_store(&engine->area->shared->down, 0);
    hsm_probe_waiters_wake(engine);
}

void hsm_token_silent(hsm_worker *worker, hsm_status status, uint64_t now) {
    hsm_engine *engine = worker->engine;
    hsm_shared *shared = engine->area->shared;
    /* If the token was healed, or has signed, the failure is the request's own. */
    if (hsm_status_class(status) >= HSM_CLASS_AUTH_FATAL || status == HSM_KEY_MISMATCH || !worker->ladder.unhealed ||
        hsm_token_answers(worker) || !hsm_token_is_silent(worker, now)) {
        return;
    }
    uint32_t answering = 0;
    if (worker->probing_ns == 0 && !atomic_compare_exchange_strong(&shared->down, &answering, 1)) {
        return; /* several requests that fail at the same time are one failure */
    }
    uint64_t pause = worker->ladder.wait_ns;
    if (pause == 0) {
        uint32_t failures = atomic_fetch_add(&engine->probe_failures, 1);
        pause = PROBE_FIRST_NS << (failures < 6 ? failures : 6);
    } /* else it was too soon to try */
    atomic_store(&shared->probe_at_ns, now + (pause < PROBE_MAX_NS ? pause : PROBE_MAX_NS));
}
