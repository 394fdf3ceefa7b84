/* Workers whose module is the caller, one for each runner: its thread begins their calls, and ends them. */
#include <hsmcore/guest.h>

#include <string.h>

#include "table.h"

struct hsm_guest {
    hsm_requests *table;
    hsm_area *area;
    uint32_t count, verify_every;
    uint32_t slots[]; /* by runner: of the request that it serves, or HSM_NONE */
};

hsm_status hsm_guest_new(hsm_requests *table, uint32_t runners, uint32_t verify_every, hsm_guest **out) {
    *out = NULL;
    hsm_area *area = table->client->area;
    if (runners < 1 || runners > area->max_workers) {
        return HSM_BAD_ARGUMENT;
    }
    hsm_guest *guest = hsm_alloc(sizeof *guest + runners * sizeof guest->slots[0]);
    if (guest == NULL) {
        return HSM_OUT_OF_MEMORY;
    }
    guest->table = table;
    guest->area = area;
    guest->count = runners;
    guest->verify_every = verify_every;
    hsm_requests_serve(table, runners);
    for (uint32_t i = 0; i < runners; i++) {
        guest->slots[i] = HSM_NONE;
        atomic_store(&hsm_area_worker(area, i)->running, 1);
    }
    *out = guest;
    return HSM_OK;
}

void hsm_guest_free(hsm_guest *guest) {
    hsm_free(guest);
}

/* Whether this runner is with a request. A call that ends after the guest or its rings, or ends twice, has none: the
 * slot that it had may be another request's. */
static bool is_busy(const hsm_guest *guest, uint32_t runner) {
    return guest != NULL && runner < guest->count && guest->slots[runner] != HSM_NONE &&
           !hsm_client_forked(guest->table->client);
}

static const hsm_request *request_in(const hsm_guest *guest, uint32_t slot) {
    return &guest->table->all[guest->table->places[slot].owner];
}

/* Whether a runner is with a request for the key in this place. */
static bool serves(const hsm_guest *guest, uint32_t place) {
    for (uint32_t i = 0; i < guest->count; i++) {
        uint32_t slot = guest->slots[i];
        if (slot != HSM_NONE && hsm_key_place(request_in(guest, slot)->answer.key) == place) {
            return true;
        }
    }
    return false;
}

hsm_status hsm_guest_add_key(hsm_guest *guest, hsm_key_info *info, int cacheable) {
    if (guest == NULL) {
        return HSM_CLOSED;
    }
    for (uint32_t place = 0; place < HSM_MAX_KEYS; place++) {
        const hsm_pinned_key *key = &guest->table->pinned.keys[place];
        if (!key->known || (key->retired && key->index < UINT32_MAX - HSM_MAX_KEYS && !serves(guest, place))) {
            info->index = key->known ? key->index + HSM_MAX_KEYS : place;
            return hsm_pinned_add(&guest->table->pinned, info, cacheable != 0, guest->verify_every);
        }
    }
    return HSM_BAD_ARGUMENT;
}

/* Whether the request may begin. It begins last: a request that is dropped is known not to have begun. */
static hsm_status admit(const hsm_guest *guest, hsm_slot *slot, uint64_t now) {
    hsm_status status = hsm_area_wanted(slot, now);
    if (status == HSM_OK && hsm_pinned_state(&guest->table->pinned, slot->key) != 1) {
        status = HSM_KEY_DEACTIVATED;
    }
    return status != HSM_OK || hsm_area_begin(slot) ? status : HSM_CANCELLED;
}

uint64_t hsm_guest_begin(hsm_guest *guest, uint32_t runner, uint32_t *key) {
    if (guest == NULL || runner >= guest->count || guest->slots[runner] != HSM_NONE) {
        return 0;
    }
    uint32_t index;
    while (!hsm_client_forked(guest->table->client) && hsm_area_claim(guest->area, &index)) {
        uint64_t now = hsm_now_ns();
        hsm_slot *slot = hsm_area_slot(guest->area, index);
        hsm_status status = admit(guest, slot, now);
        if (status == HSM_OK) {
            guest->slots[runner] = index;
            atomic_store_explicit(&hsm_area_worker(guest->area, runner)->call_started_ns, now, memory_order_relaxed);
            *key = slot->key;
            uint32_t owner = guest->table->places[index].owner;
            return hsm_table_number(&guest->table->all[owner], owner);
        }
        hsm_area_answer(guest->area, runner, index, &(hsm_ending){.status = status, .begun_ns = now, .ended_ns = now});
    }
    return 0;
}

int hsm_guest_overran(hsm_guest *guest, uint32_t runner) {
    if (!is_busy(guest, runner)) {
        return 0;
    }
    const hsm_request *request = request_in(guest, guest->slots[runner]);
    bool awaited = request->answer.claimed || guest->table->places[guest->slots[runner]].followers.count != 0;
    if (awaited || hsm_now_ns() < request->deadline_ns) {
        return 0;
    }
    atomic_store_explicit(&hsm_area_worker(guest->area, runner)->quarantined, 1, memory_order_relaxed);
    return 1;
}

uint32_t hsm_guest_end(hsm_guest *guest, uint32_t runner, hsm_status status, uint64_t ckr, const uint8_t *signature) {
    if (!is_busy(guest, runner)) {
        return HSM_NONE;
    }
    uint32_t index = guest->slots[runner];
    hsm_worker_record *record = hsm_area_worker(guest->area, runner);
    hsm_ending ending = {.status = status, .ckr = ckr, .begun_ns = record->call_started_ns, .ended_ns = hsm_now_ns()};
    if (status == HSM_OK) {
        const hsm_request *request = request_in(guest, index);
        memcpy(hsm_area_slot(guest->area, index)->signature, signature, HSM_MAX_SIGNATURE);
        ending.status = hsm_pinned_check(&guest->table->pinned, request->answer.key, request->message,
                                         request->message_len, request->prehashed, signature, HSM_MAX_SIGNATURE);
        if (guest->verify_every != 0) {
            hsm_histogram_add(&record->verify, hsm_now_ns() - ending.ended_ns);
        }
    }
    if (ending.status == HSM_SIGNATURE_INVALID) {
        hsm_add_relaxed(&record->wrong, 1);
    }
    guest->slots[runner] = HSM_NONE;
    atomic_store_explicit(&record->call_started_ns, 0, memory_order_relaxed);
    atomic_store_explicit(&record->quarantined, 0, memory_order_relaxed);
    hsm_area_answer(guest->area, runner, index, &ending);
    return index;
}

void hsm_guest_refuse(hsm_guest *guest, hsm_status status) {
    if (guest == NULL) {
        return;
    }
    uint32_t index;
    while (!hsm_client_forked(guest->table->client) && hsm_area_claim(guest->area, &index)) {
        bool begins = hsm_area_begin(hsm_area_slot(guest->area, index));
        hsm_area_answer(guest->area, 0, index, &(hsm_ending){.status = begins ? status : HSM_CANCELLED});
    }
    hsm_requests_fail(guest->table, HSM_QUEUED_ONES, status);
}
