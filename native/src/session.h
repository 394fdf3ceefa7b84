/* What a worker does with its session; see session.c. Called by the worker's own thread, but for hsm_worker_close while
 * the module is initialized again. */
#ifndef HSM_SESSION_H
#define HSM_SESSION_H

#include "engine.h"

/* Open the worker's session, if it has none. */
hsm_status hsm_worker_open(hsm_worker *worker, hsm_error *error);
void hsm_worker_close(hsm_worker *worker);
/* Forget this worker's handles if they have become invalid. Returns whether they had. */
bool hsm_worker_catch_up(hsm_worker *worker);
/* The key's handle in this worker's session. */
hsm_status hsm_worker_handle(hsm_worker *worker, uint32_t place, CK_OBJECT_HANDLE *handle, hsm_outcome *outcome);
/* Wait outside the module until its gate is open, and go in. */
void hsm_worker_wait_at_gate(hsm_worker *worker, uint64_t now);

/* Go into the module: marks the worker as inside, waiting first while the module is initialized again. */
static inline void hsm_worker_enter(hsm_worker *worker, uint64_t now) {
    /* An exchange, not a store: the thread that closes the gate sees this worker inside, or this one sees the gate
     * closed. */
    (void)atomic_exchange(&worker->record->call_started_ns, now);
    if (atomic_load(&worker->engine->gate) != 0) {
        hsm_worker_wait_at_gate(worker, now);
    }
}

static inline void hsm_worker_leave(hsm_worker *worker) {
    atomic_store_explicit(&worker->record->call_started_ns, 0, memory_order_release);
}

#endif
