/* The client, for the engine and for replay.c. */
#ifndef HSM_CLIENT_H
#define HSM_CLIENT_H

#include "area.h"

/* What a slot is to the client: REPLAYED is taken, and was begun by a host that died; ONCE may not be begun again. */
enum hsm_slot_use { HSM_USE_FREE, HSM_USE_TAKEN, HSM_USE_REPLAYED, HSM_USE_ONCE, HSM_USE_ANSWERED };

struct hsm_client {
    hsm_area *area; /* &own_area, or in a host process that of its own */
    hsm_area own_area;
    int area_fd, event_fd, timer_fd;
    uint32_t fork_generation;
    _Atomic uint32_t users; /* its owner, and the engine; the last one frees it */
    uint32_t free_count;
    uint32_t open; /* slots in use, and held answers */
    uint32_t held;
    uint32_t workers;     /* that serve it; 0: not known */
    uint64_t tail;        /* of the request ring; only this thread moves it */
    uint64_t published;   /* the tail that workers can see */
    uint64_t head;        /* of the completion ring */
    uint64_t taken_at_ns; /* our own copy: what is in the area others may overwrite */
    uint32_t suspects; /* at the head of the ring, tried one at a time: workers see the first one only; see replay.c */
    uint32_t tried;    /* the slot of that one */
    uint64_t alone_ns; /* since when it is seen to be with a worker; 0: it was not */
    bool batching;
    uint8_t *seen;        /* by slot, for hsm_client_replay, which must not fail */
    _Atomic uint8_t *use; /* by slot: enum hsm_slot_use; see hsm_client_next */
    uint32_t *free_slots; /* a stack, so that the slots in use stay few and warm */
};

/* The slot that hsm_client_write takes next; UINT32_MAX: there is none. */
static inline uint32_t hsm_client_next_slot(const hsm_client *client) {
    return client->free_count != 0 ? client->free_slots[client->free_count - 1U] : UINT32_MAX;
}

static inline bool hsm_client_forked(const hsm_client *client) {
    return client->fork_generation != hsm_fork_generation();
}

/* As hsm_client_submit, at `now`, with a deadline (0: none) in place of a timeout. `prehashed`: the message is a
 * digest, to be signed as it is. */
hsm_status hsm_client_write(hsm_client *client, uint32_t key, const uint8_t *message, size_t message_len,
                            bool prehashed, uint64_t now, uint64_t deadline_ns, uint32_t *slot);
/* Before hsm_client_replay: write the request of a slot in use again, as the host process that died may have
 * overwritten it. `again`: it may be signed once more if the host had begun it. */
void hsm_client_restore(hsm_client *client, uint32_t slot, uint32_t key, const uint8_t *message, size_t message_len,
                        bool prehashed, uint64_t deadline_ns, bool again);
/* So many answers are held: they have no slot, and their requests are open. */
void hsm_client_note_held(hsm_client *client, uint32_t held);
/* How the attempt that failed last did, of the request in a slot: it may be under way. HSM_OK: none has failed. */
hsm_status hsm_client_failed(const hsm_client *client, uint32_t slot);
/* Have the timer wake the client if nothing else has. Arming it costs far more than reading the clock, hence not for
 * each request or group of completions. Any thread, also a worker's. */
void hsm_set_alarm(hsm_area *area, int timer_fd);
/* Let workers see what was queued, and wake as many as there is work for. While there are suspects: nothing. */
void hsm_client_publish(hsm_client *client);
/* Show the workers the first suspect, and nothing else. */
void hsm_client_try(hsm_client *client, uint64_t head);
/* Now and then: a suspect that has kept its worker for long has not crashed the module; the others wait no longer. */
void hsm_client_look(hsm_client *client, uint64_t now);

#endif
