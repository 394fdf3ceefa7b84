/* A worker's session: open it, close it, the handles that keys have in it, and going into the module and out. */
#include "session.h"

#include <string.h>

#include "token.h"

hsm_status hsm_worker_open(hsm_worker *worker, hsm_error *error) {
    if (worker->session_open) {
        return HSM_OK;
    }
    hsm_engine *engine = worker->engine;
    hsm_status status =
        hsm_session_open(engine->p11, engine->slot, engine->quirks->read_write_sessions, &worker->session, error);
    worker->session_open = status == HSM_OK;
    memset(worker->handles, 0, sizeof worker->handles);
    return status;
}

void hsm_worker_close(hsm_worker *worker) {
    if (worker->session_open) {
        hsm_session_close(worker->engine->p11, worker->session);
        worker->session_open = false;
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
        hsm_futex_wait(&engine->gate, gate, 0);
        (void)atomic_exchange(&worker->record->call_started_ns, now);
    }
}

static bool session_is_logged_in(const hsm_worker *worker) {
    CK_SESSION_INFO info;
    memset(&info, 0, sizeof info);
    CK_RV rv = worker->engine->p11->C_GetSessionInfo(worker->session, &info);
    return worker->engine->pin == NULL ||
           (rv == CKR_OK && (info.state == CKS_RO_USER_FUNCTIONS || info.state == CKS_RW_USER_FUNCTIONS));
}

hsm_status hsm_worker_handle(hsm_worker *worker, uint32_t place, CK_OBJECT_HANDLE *handle, hsm_outcome *outcome) {
    hsm_engine *engine = worker->engine;
    (void)hsm_worker_catch_up(worker);
    if (worker->handles[place] == 0) {
        if (!engine->quirks->handles_per_session) {
            worker->handles[place] =
                (CK_OBJECT_HANDLE)atomic_load_explicit(&engine->keys[place].handle, memory_order_acquire);
            if (worker->handles[place] == 0) {
                return HSM_KEY_HANDLE_STALE; /* it was looked for and not found */
            }
        } else {
            hsm_error error = {.status = HSM_OK};
            /* Outside while waiting for the lock: its holder may be waiting for us to come out of the module. */
            hsm_worker_leave(worker);
            hsm_engine_lock(engine);
            hsm_worker_enter(worker, hsm_now_ns());
            hsm_status status = hsm_engine_refind(engine, worker->session, place, &worker->handles[place], &error);
            if (status == HSM_KEY_NOT_FOUND && !session_is_logged_in(worker)) {
                status = HSM_NOT_LOGGED_IN; /* without a login no private key is seen: that is no missing key */
            }
            hsm_engine_unlock(engine);
            if (status != HSM_OK) {
                worker->handles[place] = 0;
                outcome->call = HSM_CALL_C_FindObjects;
                outcome->ckr = error.ckr;
                return status;
            }
        }
    }
    *handle = worker->handles[place];
    return HSM_OK;
}
