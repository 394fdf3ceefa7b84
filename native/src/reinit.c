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
    while (*link != engine) {
        link = &(*link)->next;
    }
    *link = engine->next;
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

static void open_gate(hsm_engine *engine) {
    atomic_store(&engine->gate, 0);
    hsm_futex_wake(&engine->gate, INT32_MAX, true);
}

/* C_Finalize ends all sessions, and after it the same numbers may stand for other slots and objects. No worker is
 * inside, so this thread may close their sessions. */
static void let_go(hsm_engine *engine) {
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

/* Note whether any other engine of the module has signed since its last reinit. */
static void note_others(hsm_engine *engine) {
    engine->stops_others = false;
    for (const hsm_engine *other = engine->module->first; other != NULL; other = other->next) {
        bool signs = other != engine && hsm_token_answered_since(other, other->last_reinit_ns);
        engine->stops_others = engine->stops_others || signs;
    }
}

/* This engine's gate may be closed afterwards, so that it can heal first. */
static hsm_status reinitialize(hsm_engine *engine, const hsm_worker *own, hsm_error *error) {
    hsm_module *module = engine->module;
    hsm_status status = HSM_BUSY;
    uint64_t until = hsm_now_ns() + QUIESCE_NS;
    if (!hsm_module_claim(module)) {
        return status;
    }
    if (lock_engines(engine, until)) {
        note_others(engine);
        status = HSM_TOKEN_LOST;
        if (close_gates(module->first, own, until)) {
            for (hsm_engine *user = module->first; user != NULL; user = user->next) {
                let_go(user);
                user->last_reinit_ns = engine->last_reinit_ns;
            }
            hsm_turn_begin(engine->quirks->name, module->path);
            status = hsm_module_reinitialize(module, error);
            hsm_turn_end();
        }
        for (hsm_engine *user = module->first; user != NULL; user = user->next) {
            if (user != engine) {
                open_gate(user);
            }
        }
        unlock_engines(engine, NULL);
    }
    hsm_module_disclaim(module);
    return status;
}

hsm_status hsm_engine_reinitialize(hsm_engine *engine, const hsm_worker *own, hsm_error *error) {
    hsm_status status = reinitialize(engine, own, error);
    if (status == HSM_OK || status == HSM_BUSY) {
        hsm_status healed = hsm_engine_heal(engine, error);
        bool passes = healed != HSM_OK && hsm_status_class(healed) < HSM_CLASS_AUTH_FATAL;
        status = status == HSM_BUSY && passes ? HSM_BUSY : healed;
    }
    open_gate(engine);
    return status;
}
