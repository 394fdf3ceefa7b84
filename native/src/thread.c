/* A worker's thread: start it, join it. */
#include "engine.h"

#include <errno.h>
#include <signal.h>

hsm_status hsm_worker_start(hsm_engine *engine, uint32_t index, bool replacement) {
    hsm_worker *worker = &engine->workers[index];
    worker->engine = engine;
    worker->index = index;
    worker->replacement = replacement;
    worker->record = hsm_area_worker(engine->area, index);
    if (worker->message == NULL) {
        worker->message = hsm_alloc(engine->area->max_message);
    }
    if (worker->message == NULL) {
        return HSM_OUT_OF_MEMORY;
    }
    /* Signals are the application's: a worker must not be interrupted inside the module. */
    sigset_t all;
    sigset_t before;
    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, &before);
    int code = pthread_create(&worker->thread, NULL, hsm_worker_main, worker);
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (code != 0) {
        errno = code;
        return HSM_SYSTEM;
    }
    atomic_store(&worker->thread_state, HSM_THREAD_STARTED);
    hsm_count(HSM_RESOURCE_THREAD, 1);
    return HSM_OK;
}

void hsm_worker_reap(hsm_worker *worker) {
    if (atomic_load(&worker->thread_state) != HSM_THREAD_NONE) {
        (void)pthread_join(worker->thread, NULL);
        hsm_count(HSM_RESOURCE_THREAD, -1);
        atomic_store(&worker->thread_state, HSM_THREAD_NONE);
    }
}
