/* The life of a request table, and its lists. */
#include "table.h"

#include <string.h>

#define FIRST_ROOM 256U

#define TO(state) (1U << HSM_REQUEST_##state)

const uint8_t hsm_request_moves[] = {
    [HSM_REQUEST_FREE] = TO(GIVEN),
    [HSM_REQUEST_QUEUED] = TO(READY) | TO(GIVEN),
    [HSM_REQUEST_FOLLOWING] = TO(QUEUED) | TO(GIVEN),
    /* It stays with the workers when its waiter leaves, or was answered before them. */
    [HSM_REQUEST_SENT] = TO(SENT) | TO(READY) | TO(GIVEN),
    [HSM_REQUEST_READY] = TO(SENT) | TO(GIVEN),
    [HSM_REQUEST_GIVEN] = TO(FREE) | TO(QUEUED) | TO(FOLLOWING) | TO(SENT) | TO(READY) | TO(HELD) | TO(AWAITING),
    [HSM_REQUEST_HELD] = TO(READY) | TO(GIVEN),
    [HSM_REQUEST_AWAITING] = TO(READY) | TO(GIVEN),
};

bool hsm_table_grow(hsm_requests *table) {
    uint32_t room = table->room == 0 ? FIRST_ROOM : table->room * 2U;
    hsm_request *all = room > table->room ? hsm_alloc(room * sizeof *all) : NULL;
    hsm_link *links = all != NULL ? hsm_alloc(room * sizeof *links) : NULL;
    if (links == NULL || !hsm_deadlines_grow(&table->deadlines, room)) {
        hsm_free(all);
        hsm_free(links);
        return false;
    }
    if (table->room != 0) {
        memcpy(all, table->all, table->room * sizeof *all);
        memcpy(links, table->links, table->room * sizeof *links);
    }
    hsm_free(table->all);
    hsm_free(table->links);
    table->all = all;
    table->links = links;
    for (uint32_t index = room; index-- > table->room;) {
        all[index].generation = 1; /* no number is 0 */
        all[index].slot = HSM_NONE;
        hsm_list_push(links, &table->free, index, true);
    }
    table->room = room;
    return true;
}

static hsm_list *list_of(hsm_requests *table, const hsm_request *request) {
    switch (request->state) {
    case HSM_REQUEST_QUEUED:
        return &table->queue;
    case HSM_REQUEST_FOLLOWING:
        return &table->places[request->slot].followers;
    case HSM_REQUEST_READY:
        return &table->ready;
    case HSM_REQUEST_HELD:
        return &table->held;
    case HSM_REQUEST_AWAITING:
        return &table->awaiting;
    default:
        return NULL;
    }
}

void hsm_table_move(hsm_requests *table, uint32_t index, enum hsm_request_state state) {
    hsm_request *request = &table->all[index];
    hsm_list *list = list_of(table, request);
    if (list != NULL) {
        hsm_list_drop(table->links, list, index);
    }
    hsm_request_becomes(request, state);
    list = list_of(table, request);
    if (list != NULL) {
        hsm_list_push(table->links, list, index, false);
    }
}

uint32_t hsm_table_find(const hsm_requests *table, uint64_t number) {
    uint32_t index = (uint32_t)number;
    const hsm_request *r = index < table->room ? &table->all[index] : NULL;
    return r != NULL && hsm_table_number(r, index) == number && r->state != HSM_REQUEST_FREE ? index : HSM_NONE;
}

hsm_status hsm_requests_new(hsm_client *client, hsm_cache *cache, hsm_requests **out) {
    uint32_t slots = hsm_client_slots(client);
    hsm_requests *table = hsm_alloc(sizeof *table);
    *out = table;
    if (table == NULL) {
        return HSM_OUT_OF_MEMORY;
    }
    table->client = client;
    table->cache = cache;
    hsm_list_begin(&table->free);
    hsm_list_begin(&table->queue);
    hsm_list_begin(&table->ready);
    hsm_list_begin(&table->held);
    hsm_list_begin(&table->awaiting);
    table->places = hsm_alloc(slots * sizeof *table->places);
    if (table->places == NULL || !hsm_table_grow(table)) {
        hsm_requests_free(table);
        *out = NULL;
        return HSM_OUT_OF_MEMORY;
    }
    for (uint32_t slot = 0; slot < slots; slot++) {
        table->places[slot].owner = HSM_NONE;
        hsm_list_begin(&table->places[slot].followers);
    }
    return HSM_OK;
}

void hsm_requests_free(hsm_requests *table) {
    if (table != NULL) {
        hsm_verdicts_free(table->verdicts);
        hsm_deadlines_free(&table->deadlines);
        hsm_pinned_free(&table->pinned);
        hsm_free(table->places);
        hsm_free(table->all);
        hsm_free(table->links);
        hsm_free(table);
    }
}

hsm_status hsm_requests_pin(hsm_requests *table, const hsm_key_info *key, int cacheable, uint32_t verify_every) {
    if (hsm_client_forked(table->client)) {
        return HSM_FORKED;
    }
    if (verify_every != 0 && table->verdicts == NULL) {
        hsm_status status = hsm_verdicts_new(table->client, &table->pinned, table->admission.servers, &table->verdicts);
        if (status != HSM_OK) {
            return status;
        }
    }
    if (table->verdicts == NULL) {
        return hsm_pinned_add(&table->pinned, key, cacheable != 0, verify_every);
    }
    hsm_verdicts_pause(table->verdicts);
    hsm_status status = hsm_pinned_add(&table->pinned, key, cacheable != 0, verify_every);
    hsm_verdicts_resume(table->verdicts);
    return status;
}

void hsm_requests_wake_fds(const hsm_requests *table, int *event_fd, int *timer_fd) {
    if (table->verdicts == NULL) {
        hsm_client_wake_fds(table->client, event_fd, timer_fd);
    } else {
        *event_fd = hsm_verdicts_fd(table->verdicts);
        *timer_fd = -1;
    }
}

void hsm_requests_wake_clear(hsm_requests *table) {
    if (table->verdicts == NULL) {
        hsm_client_wake_clear(table->client);
    } else if (!hsm_client_forked(table->client)) {
        hsm_verdicts_wake_clear(table->verdicts);
    }
}

int hsm_requests_catch_up(hsm_requests *table) {
    return table->verdicts == NULL ? hsm_client_catch_up(table->client) : hsm_verdicts_wait(table->verdicts);
}

void hsm_requests_settle(hsm_requests *table) {
    if (table->verdicts != NULL) {
        hsm_verdicts_end(table->verdicts);
    }
}

void hsm_requests_retire(hsm_requests *table, uint32_t key) {
    if (hsm_pinned_state(&table->pinned, key) == 1) {
        table->pinned.keys[hsm_key_place(key)].retired = true;
    }
}

int hsm_requests_knows(const hsm_requests *table, uint32_t key) {
    return hsm_pinned_state(&table->pinned, key);
}

int hsm_requests_cacheable(const hsm_requests *table, uint32_t key) {
    return table->cache != NULL && table->pinned.keys[hsm_key_place(key)].cacheable;
}

void hsm_requests_serve(hsm_requests *table, uint32_t workers) {
    table->admission.servers = workers;
    table->client->workers = workers;
}

uint32_t hsm_requests_room(hsm_requests *table) {
    return table->free.count != 0 || hsm_table_grow(table) ? table->room : 0;
}

int hsm_requests_starving(const hsm_requests *table, uint64_t waiting) {
    uint64_t left = (uint64_t)table->owed + table->queue.count;
    return table->held.count != 0 && left < table->admission.servers + waiting;
}

uint64_t hsm_requests_load(const hsm_requests *table) {
    return (uint64_t)hsm_client_slots(table->client) - hsm_client_free_slots(table->client) + table->queue.count;
}

void hsm_requests_count(const hsm_requests *table, hsm_requests_counts *counts) {
    *counts = (hsm_requests_counts){
        .open = table->open,
        .queued = table->queue.count,
        .slots = hsm_client_slots(table->client) - hsm_client_free_slots(table->client),
        .held = table->held.count,
        .awaiting = table->awaiting.count,
        .owed = table->owed,
        .wrong = table->verdicts != NULL ? hsm_verdicts_wrong(table->verdicts) : 0,
        .each_ns = table->admission.each_ns,
    };
}
