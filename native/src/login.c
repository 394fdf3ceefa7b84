/* The token's login, one for all workers of an engine, with a PIN that is wiped when the engine stops; and the search
 * for keys, which needs it. */
#include <string.h>

#include "engine.h"
#include "key.h"
#include "token.h"

void hsm_engine_wipe_pin(hsm_engine *engine) {
    /* Either a thread that has released the lock sees `closing`, or the one that stored it sees the lock released. */
    atomic_thread_fence(memory_order_seq_cst);
    if (atomic_load(&engine->closing) && pthread_mutex_trylock(&engine->control) == 0) {
        if (engine->pin != NULL) {
            hsm_wipe(engine->pin, engine->pin_len);
        }
        (void)pthread_mutex_unlock(&engine->control);
    }
}

/* Whose lock this thread holds: a module may end the thread in a call. */
static _Thread_local const hsm_engine *held;

void hsm_engine_lock(hsm_engine *engine) {
    (void)pthread_mutex_lock(&engine->control);
    held = engine;
}

hsm_status hsm_engine_let_go(hsm_engine *engine, const char *call, hsm_error *error) {
    hsm_turn_drop();
    if (held == engine) {
        hsm_engine_unlock(engine);
    }
    return hsm_fail(error, HSM_TOKEN_LOST, call, "the module ended the thread that called it");
}

void hsm_engine_unlock(hsm_engine *engine) {
    held = held == engine ? NULL : held; /* else it is another engine's, of the same module */
    (void)pthread_mutex_unlock(&engine->control);
    /* hsm_engine_stop could not wipe the PIN while this thread held the lock. */
    hsm_engine_wipe_pin(engine);
}

hsm_status hsm_engine_login(hsm_engine *engine, hsm_error *error) {
    if (atomic_load(&engine->closing)) {
        return hsm_fail(error, HSM_CLOSED, "C_Login", "the engine is being stopped; no attempt was made");
    }
    if (atomic_load_explicit(&engine->auth_failure, memory_order_relaxed) != HSM_OK) {
        return hsm_fail(error, HSM_PIN_INCORRECT, "C_Login", "an earlier attempt was refused; none was made now");
    }
    if (!engine->login_open) {
        hsm_status status = hsm_session_open(engine->p11, engine->slot, engine->quirks->read_write_sessions,
                                             &engine->login_session, error);
        if (status != HSM_OK) {
            return status;
        }
        engine->login_open = true;
    }
    if (engine->pin == NULL) {
        return HSM_OK;
    }
    bool already;
    hsm_turn_begin(engine->quirks->name, engine->module->path);
    hsm_status status = hsm_token_login(engine->p11, engine->slot, engine->login_session, engine->pin, engine->pin_len,
                                        &already, error);
    hsm_turn_end();
    if (status == HSM_KEY_HANDLE_STALE && engine->quirks->users_are_objects) {
        /* It must not look like a key's stale handle, which would be tried again. */
        status = hsm_fail_as(error, HSM_LOGIN_REFUSED);
    }
    if (hsm_status_class(status) == HSM_CLASS_AUTH_FATAL) {
        atomic_store_explicit(&engine->auth_failure, status, memory_order_relaxed);
    }
    return status;
}

void hsm_engine_close_login(hsm_engine *engine) {
    if (engine->login_open) {
        engine->login_open = false; /* also if the module ends this thread in the call */
        hsm_session_close(engine->p11, engine->login_session);
    }
}

CK_RV hsm_engine_session_state(const hsm_engine *engine, CK_SESSION_HANDLE session, bool *logged_in) {
    CK_SESSION_INFO info = {0};
    CK_RV rv = engine->p11->C_GetSessionInfo(session, &info);
    *logged_in = engine->pin == NULL ||
                 (rv == CKR_OK && (info.state == CKS_RO_USER_FUNCTIONS || info.state == CKS_RW_USER_FUNCTIONS));
    return rv;
}

hsm_status hsm_engine_unless_hidden(const hsm_engine *engine, CK_SESSION_HANDLE session, hsm_status status,
                                    bool *logged_in) {
    *logged_in = true;
    if (status == HSM_KEY_NOT_FOUND || status == HSM_KEY_HANDLE_STALE) {
        (void)hsm_engine_session_state(engine, session, logged_in);
    }
    return *logged_in ? status : HSM_NOT_LOGGED_IN;
}

hsm_status hsm_engine_ready(hsm_engine *engine, hsm_error *error) {
    bool logged_in = false;
    if (engine->login_open && hsm_engine_session_state(engine, engine->login_session, &logged_in) != CKR_OK) {
        hsm_engine_close_login(engine);
    }
    if (engine->slot_lost) { /* the PIN is for this token alone */
        hsm_token_info found;
        hsm_turn_begin(engine->quirks->name, engine->module->path);
        hsm_status status = hsm_token_find(engine->p11, &engine->selector, &found, error);
        hsm_turn_end();
        if (status != HSM_OK) {
            return status;
        }
        engine->slot = found.slot_id; /* before the flag: workers look at that first */
        engine->slot_lost = false;
    }
    return engine->login_open && logged_in ? HSM_OK : hsm_engine_login(engine, error);
}

void hsm_engine_note_apart(hsm_engine *engine, uint32_t place, bool apart) {
    uint64_t bit = UINT64_C(1) << place;
    (void)(apart ? atomic_fetch_or(&engine->apart, bit) : atomic_fetch_and(&engine->apart, ~bit));
}

/* Whether a search ended before a public key was read: what the module said of the other attributes is no key's, or not
 * of this one's kind. It may say otherwise in a moment. */
static bool is_unread(hsm_status status) {
    return status == HSM_KEY_UNUSABLE || status == HSM_ALGORITHM_UNSUPPORTED || status == HSM_BAD_ARGUMENT;
}

hsm_status hsm_engine_refind(hsm_engine *engine, CK_SESSION_HANDLE session, uint32_t place, CK_OBJECT_HANDLE *handle,
                             hsm_error *error) {
    hsm_engine_key *own = &engine->keys[place];
    hsm_key_record *pinned = &engine->area->shared->keys[place];
    /* The id is the key's identity on the token; its label may be shared by its successors. */
    hsm_key_selector selector = {
        .label = own->id_len > 0 ? NULL : own->label,
        .id = own->id_len > 0 ? own->id : NULL,
        .id_len = own->id_len,
        .handle = own->fixed_handle,
        .public_key = pinned->public_key,
        .public_key_len = pinned->public_key_len,
    };
    hsm_key_info info;
    hsm_status status = hsm_key_find(engine->p11, session, &selector, handle, &info, error);
    uint32_t active = HSM_KEY_ACTIVE;
    uint32_t mismatched = HSM_KEY_MISMATCHED;
    if (status == HSM_KEY_MISMATCH) {
        /* Another key answers to this name: nothing may be signed with it until the pinned one does again. */
        (void)atomic_compare_exchange_strong(&pinned->state, &active, HSM_KEY_MISMATCHED);
    } else if (status == HSM_OK && (uint32_t)info.algorithm == pinned->algorithm) {
        hsm_engine_note_apart(engine, place, info.apart != 0);
        (void)atomic_compare_exchange_strong(&pinned->state, &mismatched, HSM_KEY_ACTIVE);
    } else if (status == HSM_OK || (is_unread(status) && error->ckr == CKR_OK)) {
        status = hsm_fail_as(error, HSM_KEY_HANDLE_STALE);
    }
    return status;
}

/* Find the key of a place again and note its handle. Returns HSM_OK also for a key that is missing or deactivated: only
 * a fault of the token is a failure. Call with `control` held. */
static hsm_status look_up(hsm_engine *engine, uint32_t place, bool *found, hsm_error *error) {
    hsm_engine_key *key = &engine->keys[place];
    CK_OBJECT_HANDLE handle = 0;
    hsm_status status = hsm_engine_refind(engine, engine->login_session, place, &handle, error);
    bool logged_in;
    status = hsm_engine_unless_hidden(engine, engine->login_session, status, &logged_in);
    *found = status == HSM_OK;
    /* A deactivated key keeps its handle, and the token refuses it. Another key, or several, leave the place without
     * one. A key that was not read may be the pinned one. */
    bool there = status == HSM_OK || status == HSM_KEY_DEACTIVATED;
    bool own = there || status == HSM_KEY_NOT_FOUND || status == HSM_KEY_MISMATCH ||
               (logged_in && error->ckr == CKR_OK && status != HSM_KEY_HANDLE_STALE);
    atomic_store_explicit(&key->handle, there ? handle : 0, memory_order_release);
    atomic_store(&key->gone, own && !there);
    return own ? HSM_OK : status;
}

hsm_status hsm_engine_heal(hsm_engine *engine, hsm_error *error) {
    hsm_status status = hsm_engine_ready(engine, error);
    hsm_status failure = HSM_OK;
    uint32_t keys_found = 0;
    for (uint32_t place = 0; place < HSM_MAX_KEYS && status == HSM_OK; place++) {
        uint32_t state = atomic_load(&engine->area->shared->keys[place].state);
        if (engine->keys[place].label == NULL || (state != HSM_KEY_ACTIVE && state != HSM_KEY_MISMATCHED)) {
            continue;
        }
        bool found;
        hsm_status looked = look_up(engine, place, &found, error);
        keys_found += found ? 1U : 0U;
        if (looked != HSM_OK) {
            /* The session may be stuck in a search, which its state does not show: go on with another one. */
            failure = looked;
            hsm_engine_close_login(engine);
            status = hsm_engine_ready(engine, error);
        }
    }
    if (status == HSM_OK && keys_found == 0) {
        status = failure;
    }
    atomic_store(&engine->keys_found, status == HSM_OK ? keys_found : 0);
    if (status == HSM_OK) {
        atomic_fetch_add_explicit(&engine->epoch, 1, memory_order_acq_rel);
    }
    return status;
}
