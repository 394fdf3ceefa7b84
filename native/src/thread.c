/* Threads that call the module: a worker's, to start it and join it, and a visitor's. */
#include "engine.h"
#include "list.h"

#include <errno.h>

hsm_status hsm_worker_start(hsm_engine *engine, uint32_t index, bool replacement) {
    hsm_worker *worker = &engine->workers[index];
    worker->engine = engine;
    worker->index = index;
    worker->replacement = replacement;
    worker->announced = worker->running = worker->returned = false;
    worker->slot = HSM_NONE;
    worker->record = hsm_area_worker(engine->area, index);
    worker->message = worker->message != NULL ? worker->message : hsm_alloc_undumped(engine->area->max_message);
    if (worker->message == NULL) {
        return HSM_OUT_OF_MEMORY;
    }
    worker->used = engine->area->max_message < HSM_INLINE_MESSAGE ? engine->area->max_message : HSM_INLINE_MESSAGE;
    /* A replacement whose start hangs, in the module or at its gate, is no better than the worker that it replaces. */
    atomic_store(&worker->record->call_deadline_ns, replacement ? hsm_now_ns() + engine->patience_ns : 0);
    errno = hsm_thread_start(&worker->thread, hsm_worker_main, worker);
    if (errno != 0) {
        atomic_store(&worker->record->call_deadline_ns, 0);
        return HSM_SYSTEM;
    }
    atomic_store(&worker->thread_state, HSM_THREAD_STARTED);
    return HSM_OK;
}

void hsm_worker_reap(hsm_worker *worker) {
    if (atomic_load(&worker->thread_state) != HSM_THREAD_NONE) {
        hsm_thread_join(worker->thread);
        atomic_store(&worker->thread_state, HSM_THREAD_NONE);
    }
}

typedef struct visit {
    hsm_engine *engine;
    hsm_status (*work)(void *argument, hsm_error *error);
    void *argument;
    hsm_error *error;
    hsm_status status;
    bool returned;
} visit;

static void end_visit(void *argument) {
    visit *self = argument;
    if (!self->returned) {
        self->status = hsm_engine_let_go(self->engine, "", self->error);
    }
}

static void *visit_main(void *argument) {
    visit *self = argument;
    pthread_cleanup_push(end_visit, self);
    self->status = self->work(self->argument, self->error);
    self->returned = true;
    pthread_cleanup_pop(1);
    return NULL;
}

hsm_status hsm_visit(hsm_engine *engine, hsm_status (*work)(void *argument, hsm_error *error), void *argument,
                     hsm_error *error) {
    if (engine->fork_generation != hsm_fork_generation()) {
        return hsm_fail(error, HSM_FORKED, "", "use spawn instead of fork");
    }
    (void)pthread_mutex_lock(&engine->state);
    bool closing = atomic_load(&engine->closing);
    engine->visitors += closing ? 0U : 1U;
    (void)pthread_mutex_unlock(&engine->state);
    if (closing) {
        return hsm_fail(error, HSM_CLOSED, "", "the engine is being stopped");
    }
    visit self = {.engine = engine, .work = work, .argument = argument, .error = error};
    pthread_t thread;
    errno = hsm_thread_start(&thread, visit_main, &self);
    if (errno != 0) {
        self.status = hsm_fail_errno(error, "pthread_create", "visitor");
    } else {
        hsm_thread_join(thread);
    }
    (void)pthread_mutex_lock(&engine->state);
    engine->visitors--;
    (void)pthread_cond_broadcast(&engine->changed);
    (void)pthread_mutex_unlock(&engine->state);
    return self.status;
}
