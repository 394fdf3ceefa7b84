/* A worker's session: opening and closing it, the handles of keys in it, and the gate in front of the module. */
#include "session.h"

#include <string.h>

#include "token.h"

hsm_status hsm_worker_open(hsm_worker *worker, hsm_error *error) {
    if (worker->session_open) {
        return HSM_OK;
    }
    hsm_engine *engine = worker->engine;
    if (engine->slot_lost) {
        /* Its slot may be another token's by now: the ladder finds it, unless it has been found since. */
        (void)hsm_worker_catch_up(worker);
        (void)hsm_fail_ckr(error, CKR_TOKEN_NOT_PRESENT, "C_OpenSession", "not found since C_Initialize");
        return HSM_NOT_LOGGED_IN;
    }
    hsm_status status =
        hsm_session_open(engine->p11, engine->slot, engine->quirks->read_write_sessions, &worker->session, error);
    worker->session_open = status == HSM_OK;
    memset(worker->handles, 0, sizeof worker->handles);
    return status;
}

void hsm_worker_close(hsm_worker *worker) {
    if (worker->session_open) {
        worker->session_open = false; /* also if the module ends this thread in the call */
        hsm_session_close(worker->engine->p11, worker->session);
    }
}

bool hsm_worker_catch_up(hsm_worker *worker) {
    uint32_t epoch = atomic_load_explicit(&worker->engine->epoch, memory_order_acquire);
    if (worker->epoch == epoch) {
        return false;
    }
    memset(worker->handles, 0, sizeof worker->handles);
    worker->epoch = epoch;
    return true;
}

void hsm_worker_wait_at_gate(hsm_worker *worker, uint64_t now) {
    hsm_engine *engine = worker->engine;
    uint32_t gate;
    while ((gate = atomic_load(&engine->gate)) != 0) {
        atomic_store(&worker->record->call_started_ns, 0);
        hsm_futex_wait(&engine->gate, gate, 0, true);
        (void)atomic_exchange(&worker->record->call_started_ns, now);
    }
}

/* The key's handle in a module whose handles mean nothing in another session. */
static hsm_status find_own_handle(hsm_worker *worker, uint32_t place, hsm_outcome *outcome) {
    hsm_engine *engine = worker->engine;
    hsm_error error = {.status = HSM_OK};
    bool logged_in;
    /* Outside while waiting for the lock: its holder may be waiting for this worker to come out of the module. */
    hsm_worker_leave(worker);
    hsm_engine_lock(engine);
    hsm_worker_enter(worker, hsm_now_ns());
    /* While it waited, the module may have been initialized again, and the session's number given to another worker. */
    hsm_status status = worker->session_open
                            ? hsm_engine_refind(engine, worker->session, place, &worker->handles[place], &error)
                            : hsm_fail_ckr(&error, CKR_SESSION_CLOSED, "", "the module was initialized again");
    status = hsm_engine_unless_hidden(engine, worker->session, status, &logged_in);
    hsm_engine_unlock(engine);
    if (status != HSM_OK) {
        worker->handles[place] = 0;
        outcome->call = HSM_CALL_C_FindObjects;
        outcome->ckr = error.ckr;
    }
    return status;
}

hsm_status hsm_worker_handle(hsm_worker *worker, uint32_t place, CK_OBJECT_HANDLE *handle, hsm_outcome *outcome) {
    const hsm_engine *engine = worker->engine;
    hsm_status status = HSM_OK;
    (void)hsm_worker_catch_up(worker);
    if (worker->handles[place] == 0) {
        if (engine->quirks->handles_per_session) {
            status = find_own_handle(worker, place, outcome);
        } else {
            worker->handles[place] =
                (CK_OBJECT_HANDLE)atomic_load_explicit(&engine->keys[place].handle, memory_order_acquire);
            status = worker->handles[place] == 0 ? HSM_KEY_HANDLE_STALE : HSM_OK; /* the last search did not find it */
        }
        worker->doubted |= atomic_load(&engine->apart) & UINT64_C(1) << place;
    }
    *handle = worker->handles[place];
    return status;
}
