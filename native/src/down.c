/* A token that does not answer: requests for it fail at once, but for one probe now and then, until it does. */
#include "engine.h"

#define MS UINT64_C(1000000)
#define PROBE_FIRST_NS (20 * MS)
#define PROBE_MAX_NS (1000 * MS)
/* How long another request waits for the probe to end. */
#define PROBE_WAIT_NS (500 * MS)

bool hsm_token_answers(const hsm_worker *worker) {
    const hsm_engine *engine = worker->engine;
    for (uint32_t i = 0; i < engine->worker_slots; i++) {
        if (atomic_load_explicit(&engine->workers[i].answered_ns, memory_order_relaxed) >= worker->ladder.since_ns) {
            return true;
        }
    }
    return false;
}

bool hsm_admit_to_token(hsm_worker *worker, uint64_t now, uint64_t deadline_ns) {
    hsm_engine *engine = worker->engine;
    hsm_shared *shared = engine->area->shared;
    uint64_t until = now + PROBE_WAIT_NS;
    until = deadline_ns != 0 && deadline_ns < until ? deadline_ns : until;
    while (atomic_load_explicit(&shared->down, memory_order_relaxed) != 0) {
        uint32_t ended = atomic_load(&engine->probes_ended);
        uint64_t begun = atomic_load(&engine->probe_begun_ns);
        if (now < atomic_load(&shared->probe_at_ns)) {
            return false;
        }
        /* One request at a time is the probe; the next one may be tried when this one has had its time. */
        if ((begun == 0 || now - begun >= PROBE_MAX_NS) &&
            atomic_compare_exchange_strong(&engine->probe_begun_ns, &begun, now)) {
            worker->probing_ns = now;
            return true;
        }
        if (now >= until || atomic_load(&engine->closing)) {
            return false;
        }
        hsm_futex_wait(&engine->probes_ended, ended, until - now);
        now = hsm_now_ns();
    }
    return true;
}

void hsm_probe_waiters_wake(hsm_engine *engine) {
    atomic_fetch_add(&engine->probes_ended, 1);
    hsm_futex_wake(&engine->probes_ended, INT32_MAX);
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
    atomic_store(&engine->area->shared->down, 0);
}

void hsm_token_silent(hsm_worker *worker, hsm_status status, uint64_t now) {
    hsm_engine *engine = worker->engine;
    /* Where the token could be healed, or has signed meanwhile, the failure is the request's own. */
    if (hsm_status_class(status) >= HSM_CLASS_AUTH_FATAL || !worker->ladder.unhealed || hsm_token_answers(worker)) {
        return;
    }
    uint32_t failures = atomic_fetch_add(&engine->probe_failures, 1);
    uint64_t pause = PROBE_FIRST_NS << (failures < 6 ? failures : 6);
    atomic_store(&engine->area->shared->probe_at_ns, now + (pause < PROBE_MAX_NS ? pause : PROBE_MAX_NS));
    atomic_store(&engine->area->shared->down, 1);
}
