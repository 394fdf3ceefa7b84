/* The client, for the engine and for replay.c. */
#ifndef HSM_CLIENT_H
#define HSM_CLIENT_H

#include "area.h"

/* What a slot is to the client: REPLAYED is taken, and was begun by a host that died. */
enum hsm_slot_use { HSM_USE_FREE, HSM_USE_TAKEN, HSM_USE_REPLAYED, HSM_USE_ANSWERED };

struct hsm_client {
    hsm_area *area; /* &own_area, or in a host process that of its own */
    hsm_area own_area;
    int area_fd, event_fd, timer_fd;
    uint32_t fork_generation;
    uint32_t free_count;
    uint64_t tail;        /* of the request ring; only this thread moves it */
    uint64_t published;   /* the tail that workers can see */
    uint64_t head;        /* of the completion ring */
    uint64_t taken_at_ns; /* our own copy: what is in the area others may overwrite */
    bool batching;
    uint8_t *use;         /* by slot: enum hsm_slot_use */
    uint32_t *free_slots; /* a stack, so that the slots in use stay few and warm */
};

static inline bool hsm_client_forked(const hsm_client *client) {
    return client->fork_generation != hsm_fork_generation();
}

/* Let workers see what was queued, and wake as many as there is work for. */
void hsm_client_publish(hsm_client *client);

#endif
