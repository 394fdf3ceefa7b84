/* The worker's part, played by the caller's thread: claim, complete, count. */
#include <hsmcore/guest.h>

#include <string.h>

#include "table.h"

typedef struct guest_runner {
    uint32_t slot; /* of the request that it serves, or HSM_NONE */
    uint64_t begun_ns;
} guest_runner;

struct hsm_guest {
    hsm_requests *table;
    hsm_area *area;
    uint32_t count, verify_every;
    guest_runner runners[];
};

hsm_status hsm_guest_new(hsm_requests *table, uint32_t runners, uint32_t verify_every, hsm_guest **out) {
    *out = NULL;
    hsm_area *area = table->client->area;
    if (runners < 1 || runners > area->max_workers) {
        return HSM_BAD_ARGUMENT;
    }
    hsm_guest *guest = hsm_alloc(sizeof *guest + runners * sizeof guest->runners[0]);
    if (guest == NULL) {
        return HSM_OUT_OF_MEMORY;
    }
    guest->table = table;
    guest->area = area;
    guest->count = runners;
    guest->verify_every = verify_every;
    hsm_requests_serve(table, runners);
    for (uint32_t i = 0; i < runners; i++) {
        guest->runners[i].slot = HSM_NONE;
        atomic_store(&hsm_area_worker(area, i)->running, 1);
    }
    *out = guest;
    return HSM_OK;
}

void hsm_guest_free(hsm_guest *guest) {
    hsm_free(guest);
}

/* The runner of this number, if it is with a request. A call that ends after the guest or its rings, or ends twice, has
 * none: the slot that it had may be another request's. */
static guest_runner *busy(hsm_guest *guest, uint32_t runner) {
    bool serves = guest != NULL && runner < guest->count && guest->runners[runner].slot != HSM_NONE &&
                  !hsm_client_forked(guest->table->client);
    return serves ? &guest->runners[runner] : NULL;
}

/* Whether a runner is with a request for the key in this place. */
static bool serves(const hsm_guest *guest, uint32_t place) {
    for (uint32_t i = 0; i < guest->count; i++) {
        uint32_t slot = guest->runners[i].slot;
        if (slot != HSM_NONE &&
            hsm_key_place(guest->table->all[guest->table->places[slot].owner].answer.key) == place) {
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

static void complete(hsm_guest *guest, hsm_worker_record *record, uint32_t slot, hsm_status status, uint64_t ckr) {
    hsm_slot *answered = hsm_area_slot(guest->area, slot);
    answered->status = status;
    answered->ckr = ckr;
    answered->call = 0;
    answered->signature_len = status == HSM_OK ? HSM_MAX_SIGNATURE : 0;
    hsm_worker_tally(record, status);
    hsm_area_complete(guest->area, slot);
}

/* Whether the request may begin. It begins last: a request that is dropped is known not to have begun. */
static hsm_status admit(const hsm_guest *guest, hsm_slot *slot, uint64_t now) {
    if (atomic_load_explicit(&slot->stage, memory_order_relaxed) == HSM_STAGE_CANCELLED) {
        return HSM_CANCELLED;
    }
    if (now >= slot->deadline_ns) {
        return HSM_DEADLINE_EXCEEDED;
    }
    if (hsm_pinned_state(&guest->table->pinned, slot->key) != 1) {
        return HSM_KEY_DEACTIVATED;
    }
    return hsm_area_begin(slot) ? HSM_OK : HSM_CANCELLED;
}

uint64_t hsm_guest_begin(hsm_guest *guest, uint32_t runner, uint32_t *key) {
    if (guest == NULL || runner >= guest->count || guest->runners[runner].slot != HSM_NONE) {
        return 0;
    }
    hsm_worker_record *record = hsm_area_worker(guest->area, runner);
    uint32_t index;
    while (!hsm_client_forked(guest->table->client) && hsm_area_claim(guest->area, &index)) {
        uint64_t now = hsm_now_ns();
        hsm_slot *slot = hsm_area_slot(guest->area, index);
        uint64_t queued = now - atomic_load_explicit(&slot->submitted_ns, memory_order_relaxed);
        slot->queue_ns = queued < UINT32_MAX ? (uint32_t)queued : UINT32_MAX;
        slot->hsm_ns = 0;
        slot->worker = runner;
        hsm_status status = admit(guest, slot, now);
        if (status == HSM_OK) {
            guest->runners[runner].slot = index;
            guest->runners[runner].begun_ns = now;
            atomic_store_explicit(&record->call_started_ns, now, memory_order_relaxed);
            hsm_histogram_add(&record->queue, queued);
            *key = slot->key;
            return hsm_table_number(guest->table, guest->table->places[index].owner);
        }
        complete(guest, record, index, status, 0);
    }
    return 0;
}

int hsm_guest_overran(hsm_guest *guest, uint32_t runner) {
    const guest_runner *called = busy(guest, runner);
    if (called == NULL) {
        return 0;
    }
    const hsm_place *place = &guest->table->places[called->slot];
    const hsm_request *request = &guest->table->all[place->owner];
    if (request->answer.claimed || place->followers.count != 0 || hsm_now_ns() < request->deadline_ns) {
        return 0;
    }
    atomic_store_explicit(&hsm_area_worker(guest->area, runner)->quarantined, 1, memory_order_relaxed);
    return 1;
}

uint32_t hsm_guest_end(hsm_guest *guest, uint32_t runner, hsm_status status, uint64_t ckr, const uint8_t *signature) {
    guest_runner *called = busy(guest, runner);
    if (called == NULL) {
        return HSM_NONE;
    }
    uint32_t index = called->slot;
    hsm_worker_record *record = hsm_area_worker(guest->area, runner);
    hsm_slot *slot = hsm_area_slot(guest->area, index);
    uint64_t now = hsm_now_ns();
    slot->hsm_ns = now - called->begun_ns;
    hsm_histogram_add(&record->hsm, slot->hsm_ns);
    if (status == HSM_OK) {
        const hsm_request *request = &guest->table->all[guest->table->places[index].owner];
        memcpy(slot->signature, signature, HSM_MAX_SIGNATURE);
        status = hsm_pinned_check(&guest->table->pinned, slot->key, request->message, request->message_len,
                                  request->prehashed, signature, HSM_MAX_SIGNATURE);
        if (guest->verify_every != 0) {
            hsm_histogram_add(&record->verify, hsm_now_ns() - now);
        }
    }
    if (status == HSM_SIGNATURE_INVALID) {
        hsm_add_relaxed(&record->wrong, 1);
    }
    called->slot = HSM_NONE;
    atomic_store_explicit(&record->call_started_ns, 0, memory_order_relaxed);
    atomic_store_explicit(&record->quarantined, 0, memory_order_relaxed);
    complete(guest, record, index, status, ckr);
    return index;
}

void hsm_guest_refuse(hsm_guest *guest, hsm_status status) {
    if (guest == NULL) {
        return;
    }
    uint32_t index;
    while (!hsm_client_forked(guest->table->client) && hsm_area_claim(guest->area, &index)) {
        hsm_slot *slot = hsm_area_slot(guest->area, index);
        slot->queue_ns = 0;
        slot->hsm_ns = 0;
        complete(guest, hsm_area_worker(guest->area, 0), index, hsm_area_begin(slot) ? status : HSM_CANCELLED, 0);
    }
    hsm_requests_fail(guest->table, HSM_QUEUED_ONES, status);
}
