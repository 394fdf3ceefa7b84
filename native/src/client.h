/* What the engine needs of a client: where the rings are and how to wake it. */
#ifndef HSM_CLIENT_H
#define HSM_CLIENT_H

#include "area.h"

struct hsm_client {
    hsm_area *area; /* &own_area, or in a host process that of its own */
    hsm_area own_area;
    int area_fd;
    int event_fd;
    int timer_fd;
    uint32_t fork_generation;
    uint32_t free_count;
    uint64_t tail;        /* of the request ring; only this thread moves it */
    uint64_t published;   /* the tail that workers can see */
    uint64_t head;        /* of the completion ring */
    uint64_t taken_at_ns; /* our own copy: what is in the area others may overwrite */
    bool batching;
    uint8_t *use;         /* by slot: whether it is taken, and how often a dead host had begun it */
    uint32_t *free_slots; /* a stack, so that the slots in use stay few and warm */
};

/* Tell the client that completions wait: at once if `urgent`, else when the oldest of them has waited for the
 * coalescing time. It is the workers that notice that, at their next completion; should they all hang, a timer of the
 * kernel's, set a few times as long, does. Any worker; counts into `record`. */
void hsm_notify(hsm_area *area, int event_fd, int timer_fd, bool urgent, uint64_t now, hsm_worker_record *record);

#endif
