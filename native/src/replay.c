/* After a host process has died: the requests that it had begun and not answered are queued again, or fail.
 *
 * A message that crashes the module must not do so for ever, and must not take along those that were beside it. So what
 * two hosts had begun as they died is a suspect. Suspects stand at the head of the ring, and workers see one at a time:
 * the one that was alone when a further host dies is guilty. */
#include "client.h"

#include <string.h>

/* Close a completion ring up that may have holes: places that a worker had reserved and not filled. Marks the slots
 * that were answered before the end in `seen`. */
static void close_completions(hsm_client *client, uint8_t *seen) {
    hsm_area *area = client->area;
    _Atomic uint32_t *ring = area->completions;
    uint64_t end = client->head;
    for (uint64_t i = 0; i < area->slots; i++) {
        uint32_t index;
        if (hsm_area_take(area, client->head + i, &index)) {
            index &= area->slots - 1U;
            if (seen[index] == 0 && client->use[index] != HSM_USE_FREE && client->use[index] != HSM_USE_ANSWERED) {
                seen[index] = 1;
                atomic_store(&ring[end & (area->slots - 1U)], index + 1U);
                end++;
            }
        }
    }
    atomic_store(&area->shared->completion_tail, end);
}

uint32_t hsm_client_replay(hsm_client *client) {
    if (hsm_client_forked(client)) {
        return 0;
    }
    hsm_area *area = client->area;
    uint8_t *seen = client->seen;
    memset(seen, 0, area->slots);
    atomic_store(&area->shared->mode, HSM_MODE_PAUSED);
    close_completions(client, seen);
    uint64_t head = atomic_load(&area->shared->request_head);
    if (client->published - head > area->slots) {
        head = client->published; /* no worker of ours leaves such a head */
    }
    if (client->suspects != 0 && head == client->published) {
        client->suspects--; /* the one that was tried was begun */
    }
    for (uint64_t i = head; i != client->tail; i++) { /* an open batch included */
        seen[atomic_load(&area->requests[i & (area->slots - 1U)]) & (area->slots - 1U)] = 1;
    }
    atomic_store(&area->shared->spinning, 0);
    atomic_store(&area->shared->down, 0); /* the next host finds out by itself */
    atomic_store(&area->shared->notify, HSM_NOTIFY_IDLE);
    atomic_store(&area->shared->waiting_since_ns, 0);
    atomic_store(&area->shared->alarm_at_ns, 0);
    atomic_store(&area->shared->probe_at_ns, 0);
    for (uint32_t i = 0; i < HSM_PARKED_WORDS; i++) {
        atomic_store(&area->shared->parked[i], 0);
    }
    for (uint32_t i = 0; i < area->max_workers; i++) {
        hsm_worker_record *record = hsm_area_worker(area, i);
        atomic_store(&record->running, 0);
        atomic_store(&record->quarantined, 0);
        atomic_store(&record->call_started_ns, 0);
        atomic_store(&record->call_deadline_ns, 0);
    }
    for (uint32_t index = 0; index < area->slots; index++) { /* none has been begun, for the next host */
        uint32_t begun = HSM_STAGE_BEGUN;
        (void)atomic_compare_exchange_strong(&hsm_area_slot(area, index)->stage, &begun, HSM_STAGE_QUEUED);
    }
    uint32_t begun = 0;
    for (uint32_t index = 0; index < area->slots; index++) {
        begun += seen[index] == 0 && client->use[index] != HSM_USE_FREE && client->use[index] != HSM_USE_ANSWERED;
    }
    uint32_t again = 0;
    bool answers = atomic_load(&area->shared->completion_tail) != client->head;
    for (uint32_t index = 0; index < area->slots; index++) {
        if (seen[index] != 0 || client->use[index] == HSM_USE_FREE || client->use[index] == HSM_USE_ANSWERED) {
            continue;
        }
        const hsm_key_record *key = &area->shared->keys[hsm_key_place(hsm_area_slot(area, index)->key)];
        bool deterministic = hsm_algorithm_is_deterministic((hsm_algorithm)key->algorithm) != 0;
        if (client->use[index] == HSM_USE_TAKEN && deterministic) {
            client->use[index] = HSM_USE_REPLAYED;
            hsm_area_publish(area, client->tail++, index);
            again++;
        } else if (client->use[index] == HSM_USE_REPLAYED && deterministic && begun > 1) {
            hsm_area_publish(area, --head, index);
            client->suspects++;
            again++;
        } else {
            hsm_area_fail(area, index, HSM_HOST_LOST);
            answers = true;
        }
    }
    atomic_store(&area->shared->request_head, head);
    if (client->suspects != 0) {
        hsm_client_try(client, head);
    } else {
        atomic_store(&area->shared->request_tail, client->published);
        hsm_client_publish(client);
    }
    if (answers) {
        atomic_store(&area->shared->notify, HSM_NOTIFY_FIRED);
        hsm_event_clear(client->event_fd); /* the host may have filled the counter: then a write would block */
        hsm_event_set(client->event_fd);
    }
    return again;
}
