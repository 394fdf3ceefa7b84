/* Supervision of workers: those whose call has overrun are quarantined, and others replace them. */
#include "engine.h"

/* Start a worker in a free place. Returns false if there is none. Call with `state` held. */
static bool replace(hsm_engine *engine) {
    for (uint32_t i = 0; i < engine->worker_slots; i++) {
        hsm_worker *worker = &engine->workers[i];
        /* What the module does when one of its threads ends may take long; the caller is an event loop. */
        if (atomic_load(&worker->thread_state) == HSM_THREAD_ENDED && hsm_thread_try_join(worker->thread)) {
            atomic_store(&worker->thread_state, HSM_THREAD_NONE);
        }
        if (atomic_load(&worker->thread_state) == HSM_THREAD_NONE) {
            atomic_store(&hsm_area_worker(engine->area, i)->quarantined, 0);
            engine->starting++;
            if (hsm_worker_start(engine, i, true) == HSM_OK) {
                return true;
            }
            engine->starting--;
            return false;
        }
    }
    return false;
}

uint32_t hsm_engine_supervise(hsm_engine *engine, uint32_t *healthy) {
    *healthy = 0;
    if (engine == NULL || engine->fork_generation != hsm_fork_generation()) {
        return 0;
    }
    uint64_t now = hsm_now_ns();
    uint32_t stuck = 0;
    (void)pthread_mutex_lock(&engine->state);
    bool stopping = atomic_load(&engine->area->shared->mode) == HSM_MODE_STOPPING;
    for (uint32_t i = 0; i < engine->worker_slots && !stopping; i++) {
        hsm_worker_record *record = hsm_area_worker(engine->area, i);
        if (atomic_load(&engine->workers[i].thread_state) != HSM_THREAD_STARTED) {
            continue;
        }
        if (hsm_worker_overran(record, now)) {
            hsm_area_quarantine(engine->area, i);
        }
        bool quarantined = atomic_load(&record->quarantined) != 0;
        stuck += quarantined ? 1U : 0U;
        *healthy += quarantined ? 0U : 1U;
    }
    while (!stopping && *healthy < engine->worker_count && replace(engine)) {
        (*healthy)++;
    }
    (void)pthread_mutex_unlock(&engine->state);
    return stuck;
}
