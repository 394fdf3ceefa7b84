/* Initializing a module again, which ends the sessions of all engines that use it: no call of any of them is inside
 * meanwhile, and each finds its token, its login and its keys again, with its next request. */
#include "session.h"

#define MS UINT64_C(1000000)
/* How long re-initializing waits until no other thread is inside the module. */
#define QUIESCE_NS (200 * MS)

void hsm_engine_join(hsm_engine *engine) {
    hsm_module *module = engine->module;
    (void)pthread_mutex_lock(&module->state); /* after a C_Finalize that is under way */
    engine->next = module->first;
    module->first = engine;
    (void)pthread_mutex_unlock(&module->state);
}

void hsm_engine_leave(hsm_engine *engine) {
    hsm_module *module = engine->module;
    (void)pthread_mutex_lock(&module->state);
    hsm_engine **link = &module->first;
    while (*link != engine && *link != NULL) { /* it never joined, if the module ended the thread that was to do so */
        link = &(*link)->next;
    }
    *link = *link != NULL ? engine->next : NULL;
    (void)pthread_mutex_unlock(&module->state);
}

/* Release what lock_engines took: of the engines before `end`. */
static void unlock_engines(const hsm_engine *engine, const hsm_engine *end) {
    for (hsm_engine *other = engine->module->first; other != end; other = other->next) {
        if (other != engine) {
            hsm_engine_unlock(other);
        }
    }
}

/* Take the lock `control` of each other engine: then none of them starts, logs in, looks for keys or ends. Returns
 * false, with none taken, if one is not to be had. It waits for none that another thread may hold while it does the
 * same. */
static bool lock_engines(const hsm_engine *engine, uint64_t until) {
    for (hsm_engine *other = engine->module->first; other != NULL; other = other->next) {
        while (other != engine && pthread_mutex_trylock(&other->control) != 0) {
            if (hsm_now_ns() >= until) {
                unlock_engines(engine, other);
                return false;
            }
            hsm_sleep(MS / 10);
        }
    }
    return true;
}

/* Keep other workers than `own` out of the module and wait until those inside have come out. Returns false if one does
 * not. */
static bool close_gates(hsm_engine *first, const hsm_worker *own, uint64_t until) {
    for (hsm_engine *engine = first; engine != NULL; engine = engine->next) {
        atomic_store(&engine->gate, 1);
    }
    for (hsm_engine *engine = first; engine != NULL; engine = engine->next) {
        for (uint32_t i = 0; i < engine->worker_slots; i++) {
            hsm_worker_record *record = hsm_area_worker(engine->area, i);
            while ((own == NULL || record != own->record) && atomic_load(&record->call_started_ns) != 0) {
                if (hsm_now_ns() >= until) {
                    return false;
                }
                hsm_sleep(MS / 10);
            }
        }
    }
    return true;
}

static void open_gate(void *argument) {
    hsm_engine *engine = argument;
    atomic_store(&engine->gate, 0);
    hsm_futex_wake(&engine->gate, INT32_MAX, true);
}

/* Note whether any other engine of the module has signed since its last reinit. */
static void note_others(hsm_engine *engine) {
    engine->stops_others = false;
    for (const hsm_engine *other = engine->module->first; other != NULL; other = other->next) {
        bool signs = other != engine && hsm_token_answered_since(other, other->last_reinit_ns);
        engine->stops_others = engine->stops_others || signs;
    }
}

/* Let all but this engine go on. */
static void let_go(void *argument) {
    hsm_engine *engine = argument;
    for (hsm_engine *other = engine->module->first; other != NULL; other = other->next) {
        if (other != engine) {
            open_gate(other);
        }
    }
    unlock_engines(engine, NULL);
    hsm_module_disclaim(engine->module);
}

/* Stop the module: until let_go no other thread is inside, nor comes or goes, and this engine's workers wait until
 * open_gate. Where that fails, nothing is stopped. */
static hsm_status stop(hsm_engine *engine, const hsm_worker *own, hsm_error *error) {
    uint64_t until = hsm_now_ns() + QUIESCE_NS;
    bool claimed = hsm_module_claim(engine->module);
    if (!claimed || !lock_engines(engine, until)) {
        if (claimed) {
            hsm_module_disclaim(engine->module);
        }
        return hsm_fail(error, HSM_BUSY, "C_Finalize", "another user of the module is inside, or comes or goes");
    }
    note_others(engine);
    if (close_gates(engine->module->first, own, until)) {
        return HSM_OK;
    }
    let_go(engine);
    open_gate(engine);
    return hsm_fail(error, HSM_TOKEN_LOST, "C_Finalize", "a call inside the module does not end");
}

/* C_Finalize ends all sessions, and after it the same numbers may stand for other slots and objects. No worker is
 * inside, so this thread may close their sessions. */
static void drop_sessions(hsm_engine *engine) {
    for (uint32_t i = 0; i < engine->worker_slots; i++) {
        hsm_worker_close(&engine->workers[i]);
    }
    hsm_engine_close_login(engine);
    for (uint32_t key = 0; key < HSM_MAX_KEYS; key++) {
        atomic_store_explicit(&engine->keys[key].handle, 0, memory_order_release);
        atomic_store(&engine->keys[key].gone, false);
    }
    atomic_store(&engine->keys_found, 0);
    engine->slot_lost = true;
    atomic_fetch_add_explicit(&engine->epoch, 1, memory_order_acq_rel);
}

static hsm_status initialize(hsm_engine *engine, hsm_error *error) {
    for (hsm_engine *user = engine->module->first; user != NULL; user = user->next) {
        drop_sessions(user);
        user->last_reinit_ns = engine->last_reinit_ns;
    }
    hsm_turn_begin(engine->quirks->name, engine->module->path);
    hsm_status status = hsm_module_reinitialize(engine->module, error);
    hsm_turn_end();
    return status;
}

hsm_status hsm_engine_reinitialize(hsm_engine *engine, const hsm_worker *own, hsm_error *error) {
    hsm_status status = stop(engine, own, error);
    if (status != HSM_OK) {
        return status;
    }
    pthread_cleanup_push(open_gate, engine); /* a module may end its thread in a call */
    pthread_cleanup_push(let_go, engine);
    status = initialize(engine, error);
    pthread_cleanup_pop(1);
    HSM_THEN(status, hsm_engine_heal(engine, error));
    pthread_cleanup_pop(1);
    return status;
}
