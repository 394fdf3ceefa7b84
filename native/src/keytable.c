/* The engine's keys: each is found, proved and pinned in a place of the area's key table, until it is retired. */
#include <sodium.h>
#include <stdio.h>
#include <string.h>

#include "engine.h"
#include "key.h"
#include "token.h"

/* The index that follows in the same place; HSM_ANY_INDEX when all are used up (2^26 keys in one place). */
static uint32_t next_index(uint32_t index) {
    return index >= HSM_ANY_INDEX - HSM_MAX_KEYS ? HSM_ANY_INDEX : index + HSM_MAX_KEYS;
}

void hsm_keys_begin(hsm_engine *engine) {
    for (uint32_t place = 0; place < HSM_MAX_KEYS; place++) {
        hsm_key_record *record = &engine->area->shared->keys[place];
        if (!engine->keep_queued) {
            atomic_store(&record->state, HSM_KEY_ABSENT); /* nothing of an earlier engine's counts */
        }
        bool used = atomic_load(&record->state) != HSM_KEY_ABSENT;
        engine->keys[place].next = used ? next_index(atomic_load(&record->index)) : place;
    }
}

/* How long a test signature is repeated, from the first failure on, and the first pause. */
#define PROVE_NS UINT64_C(2000000000)
#define PROVE_PAUSE_NS UINT64_C(2000000)
/* How long reading the store again is tried. */
#define STORE_NS UINT64_C(5000000000)

/* Sign a message that can be no transaction, and verify it: this proves that both halves of the key belong together,
 * and that the token signs. */
static hsm_status prove(hsm_engine *engine, CK_OBJECT_HANDLE handle, const hsm_key_info *info, hsm_error *error) {
    uint8_t message[48];
    uint8_t signature[HSM_MAX_SIGNATURE];
    static const uint8_t title[16] = {'h', 's', 'm', 'c', 'o', 'r', 'e', ' ', 'k', 'e', 'y', ' ', 't', 'e', 's', 't'};
    memcpy(message, title, sizeof title);
    randombytes_buf(message + sizeof title, sizeof message - sizeof title);
    uint8_t copy[sizeof message]; /* the module may write into it */
    memcpy(copy, message, sizeof message);
    hsm_outcome outcome;
    hsm_status status = hsm_sign(engine->p11, engine->login_session, handle, info->algorithm, copy, sizeof copy, false,
                                 signature, &outcome);
    if (status != HSM_OK) {
        /* A signature may still be under way in it. */
        hsm_engine_close_login(engine);
        (void)hsm_fail_ckr(error, outcome.ckr, hsm_call_name(outcome.call), "test signature with '%s'", info->label);
        return hsm_fail_as(error, status);
    }
    status = hsm_verify(info->algorithm, info->public_key, info->public_key_len, message, sizeof message, 0, signature,
                        sizeof signature);
    if (status == HSM_OUT_OF_MEMORY) { /* says nothing about the key */
        return hsm_fail(error, status, "", "test signature");
    }
    return status == HSM_OK ? status
                            : hsm_fail(error, HSM_SIGNATURE_INVALID, "C_Sign",
                                       "a test signature with '%s' does not verify with its public key", info->label);
}

/* Whether another attempt, in a new session with a new login, may succeed where a test signature failed. */
static bool may_pass(const hsm_engine *engine, hsm_status status) {
    enum hsm_class class_ = hsm_status_class(status);
    return class_ != HSM_CLASS_OK && class_ < HSM_CLASS_AUTH_FATAL && status != HSM_KEY_MISMATCH &&
           !atomic_load(&engine->closing);
}

/* Find the key and prove it. A failure of the test signature is tried again for a while, like a request's, a wrong one
 * as often as a request's, and a search during which the login was lost: any other search says by itself whether the
 * key is there. */
static hsm_status find_and_prove(hsm_engine *engine, const hsm_key_selector *selector, CK_OBJECT_HANDLE *handle,
                                 hsm_key_info *info, hsm_error *error) {
    uint64_t until = 0;
    uint32_t wrong = 0;
    *handle = 0;
    for (uint64_t pause = PROVE_PAUSE_NS;; pause *= 2) {
        hsm_status status = hsm_engine_ready(engine, error);
        HSM_THEN(status, hsm_key_find(engine->p11, engine->login_session, selector, handle, info, error));
        bool logged_in;
        status = hsm_engine_unless_hidden(engine, engine->login_session, status, &logged_in);
        if (!logged_in) {
            (void)hsm_fail(error, status, "C_FindObjects", "the login was lost during the search");
        }
        if (status != HSM_OK && may_pass(engine, status)) {
            hsm_engine_close_login(engine); /* its search may still be open */
        }
        HSM_THEN(status, hsm_key_check_mechanism(engine->p11, engine->slot, info->algorithm, error));
        if (status != HSM_OK && until == 0 && logged_in) {
            return status;
        }
        HSM_THEN(status, prove(engine, *handle, info, error));
        uint64_t now = hsm_now_ns();
        until = until == 0 ? now + PROVE_NS : until;
        bool again = status == HSM_SIGNATURE_INVALID ? ++wrong < HSM_MAX_WRONG : now + pause < until;
        if (!again || !may_pass(engine, status)) {
            return status;
        }
        hsm_engine_unlock(engine); /* requests that fail wait for it too */
        hsm_sleep(pause);
        hsm_engine_lock(engine);
    }
}

/* As find_and_prove, in a store that the module has read again if the key is not there: another process may have made
 * it. Calls that are inside the module end first. */
static hsm_status find_in_store(hsm_engine *engine, const hsm_key_selector *selector, CK_OBJECT_HANDLE *handle,
                                hsm_key_info *info, hsm_error *error) {
    hsm_status status = find_and_prove(engine, selector, handle, info, error);
    if (status != HSM_KEY_NOT_FOUND || !engine->quirks->reads_store_once) {
        return status;
    }
    uint64_t until = hsm_now_ns() + STORE_NS;
    while ((status = hsm_engine_reinitialize(engine, NULL, error)) != HSM_OK && may_pass(engine, status) &&
           hsm_now_ns() < until) {
        hsm_engine_unlock(engine);
        hsm_sleep(PROVE_PAUSE_NS);
        hsm_engine_lock(engine);
    }
    return status != HSM_OK ? status : find_and_prove(engine, selector, handle, info, error);
}

/* Whether a worker may still serve a request for the key in this place. A worker sets `serving` before it reads the
 * key's state: one that has not set it yet will read RETIRED. */
static bool is_served(hsm_engine *engine, uint32_t place) {
    for (uint32_t i = 0; i < engine->worker_slots; i++) {
        if (atomic_load(&engine->workers[i].serving) == place + 1U) {
            return true;
        }
    }
    return false;
}

/* The index for another key, in the first place that is free. HSM_ANY_INDEX if there is none. */
static uint32_t free_index(hsm_engine *engine) {
    for (uint32_t place = 0; place < HSM_MAX_KEYS; place++) {
        uint32_t state = atomic_load(&engine->area->shared->keys[place].state);
        bool may = state == HSM_KEY_ABSENT || (state == HSM_KEY_RETIRED && !is_served(engine, place));
        if (may && engine->keys[place].next != HSM_ANY_INDEX) {
            return engine->keys[place].next;
        }
    }
    return HSM_ANY_INDEX;
}

static hsm_status record_key(hsm_engine *engine, const hsm_key_selector *selector, CK_OBJECT_HANDLE handle,
                             uint32_t index, hsm_key_info *info, hsm_error *error) {
    bool again = index != HSM_ANY_INDEX;
    index = again ? index : free_index(engine);
    if (index == HSM_ANY_INDEX) {
        return hsm_fail(error, HSM_BAD_ARGUMENT, "", "an engine holds at most %d keys that are not retired",
                        HSM_MAX_KEYS);
    }
    uint32_t place = hsm_key_place(index);
    hsm_engine_key *key = &engine->keys[place];
    hsm_key_record *pinned = &engine->area->shared->keys[place];
    char *label = hsm_strdup(info->label);
    if (label == NULL) {
        return hsm_fail(error, HSM_OUT_OF_MEMORY, "", "key");
    }
    if (key->label != NULL) {
        /* Workers may keep the handle of the key that had this place. */
        atomic_fetch_add_explicit(&engine->epoch, 1, memory_order_acq_rel);
    }
    hsm_free(key->label);
    key->label = label;
    memcpy(key->id, info->id, info->id_len);
    key->id_len = info->id_len;
    key->fixed_handle = selector->handle;
    key->next = next_index(index);
    hsm_engine_note_apart(engine, place, info->apart != 0); /* before a worker sees the handle */
    atomic_store(&key->handle, handle);
    atomic_store(&pinned->index, index);
    pinned->algorithm = (uint32_t)info->algorithm;
    pinned->public_key_len = info->public_key_len;
    memcpy(pinned->public_key, info->public_key, info->public_key_len);
    info->index = index;
    if (!again) { /* else it keeps its state: it may have been retired */
        atomic_store(&pinned->state, HSM_KEY_ACTIVE);
    }
    return HSM_OK;
}

/* Note a key of an engine before this one that was not found again: the ladder looks for it when it is asked for. */
static void record_missing(hsm_engine *engine, const hsm_key_selector *selector, uint32_t index) {
    hsm_key_info info = {.algorithm = selector->algorithm};
    if (selector->public_key == NULL || selector->public_key_len > sizeof info.public_key ||
        selector->id_len > sizeof info.id) {
        return;
    }
    (void)snprintf(info.label, sizeof info.label, "%s", selector->label != NULL ? selector->label : "");
    if (selector->id != NULL) {
        memcpy(info.id, selector->id, selector->id_len);
        info.id_len = (uint32_t)selector->id_len;
    }
    memcpy(info.public_key, selector->public_key, selector->public_key_len);
    info.public_key_len = (uint32_t)selector->public_key_len;
    (void)record_key(engine, selector, 0, index, &info, NULL);
}

hsm_status hsm_engine_add_key(hsm_engine *engine, const hsm_key_selector *selector, hsm_key_info *info,
                              hsm_error *error) {
    return hsm_engine_add_key_as(engine, selector, HSM_ANY_INDEX, info, error);
}

typedef struct addition {
    hsm_engine *engine;
    const hsm_key_selector *selector;
    uint32_t index;
    hsm_key_info *info;
} addition;

static hsm_status add(void *argument, hsm_error *error) {
    const addition *self = argument;
    hsm_engine *engine = self->engine;
    bool first = self->index == HSM_ANY_INDEX;
    hsm_engine_lock(engine);
    CK_OBJECT_HANDLE handle;
    hsm_status status = (first ? find_in_store : find_and_prove)(engine, self->selector, &handle, self->info, error);
    if (status == HSM_SIGNATURE_INVALID && first) {
        /* It never made a good one: its halves are two keys'. One that did is as it was, and its token is at fault. */
        status = hsm_fail_as(error, HSM_KEY_MISMATCH);
    }
    if (status == HSM_OK) {
        status = record_key(engine, self->selector, handle, self->index, self->info, error);
    } else if (!first) {
        record_missing(engine, self->selector, self->index);
    }
    hsm_engine_unlock(engine);
    return status;
}

hsm_status hsm_engine_add_key_as(hsm_engine *engine, const hsm_key_selector *selector, uint32_t index,
                                 hsm_key_info *info, hsm_error *error) {
    addition self = {.engine = engine, .selector = selector, .index = index, .info = info};
    return hsm_visit(engine, add, &self, error);
}

hsm_status hsm_engine_retire_key(hsm_engine *engine, uint32_t index) {
    if (engine->fork_generation != hsm_fork_generation()) {
        return HSM_FORKED;
    }
    hsm_key_record *pinned = &engine->area->shared->keys[hsm_key_place(index)];
    uint32_t newest = atomic_load(&pinned->index);
    if (atomic_load(&pinned->state) == HSM_KEY_ABSENT || index > newest) {
        return HSM_BAD_ARGUMENT;
    }
    if (index == newest) {
        atomic_store(&pinned->state, HSM_KEY_RETIRED);
    }
    return HSM_OK;
}
