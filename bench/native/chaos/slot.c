/* Slots: call numbers, tokens that are gone for a while, and the requests that a device serves at once. */
#include <pthread.h>
#include <stdlib.h>

#include "chaos.h"

#define MAX_SLOTS 1024 /* a client that asks for random slot ids must not fill the memory */

/* On the stack of the thread that waits. */
struct chaos_waiter {
    struct chaos_waiter *next;
    pthread_cond_t turn;
    bool served, cancelled;
    int64_t start;
};

static struct chaos_slot none = {.gate = PTHREAD_MUTEX_INITIALIZER};
static struct chaos_slot *_Atomic slots; /* grows at its head; read without a lock */
static pthread_mutex_t growing = PTHREAD_MUTEX_INITIALIZER;
static size_t slot_count;

struct chaos_slot *chaos_slot_none(void) {
    return &none;
}
struct chaos_slot *chaos_slot_first(void) {
    return atomic_load(&slots);
}

static struct chaos_slot *look_up(CK_SLOT_ID id) {
    struct chaos_slot *slot = atomic_load_explicit(&slots, memory_order_acquire);
    while (slot != NULL && slot->id != id) {
        slot = slot->next;
    }
    return slot;
}

struct chaos_slot *chaos_slot_of(CK_SLOT_ID id) {
    struct chaos_slot *slot = look_up(id);
    if (slot != NULL) {
        return slot;
    }
    (void)pthread_mutex_lock(&growing);
    slot = look_up(id);
    if (slot == NULL && slot_count < MAX_SLOTS) {
        slot = calloc(1, sizeof *slot);
        if (slot != NULL) {
            slot->id = id;
            slot->real = true;
            (void)pthread_mutex_init(&slot->gate, NULL);
            slot->next = atomic_load(&slots);
            atomic_store_explicit(&slots, slot, memory_order_release);
            slot_count++;
        }
    }
    (void)pthread_mutex_unlock(&growing);
    return slot != NULL ? slot : &none;
}

bool chaos_slot_absent(struct chaos_slot *slot) {
    int64_t until = atomic_load_explicit(&slot->absent_until, memory_order_acquire);
    return until != 0 && (until == CHAOS_FOREVER || chaos_now() < until);
}

void chaos_slots_return(void) {
    for (struct chaos_slot *slot = atomic_load(&slots); slot != NULL; slot = slot->next) {
        atomic_store(&slot->absent_until, 0);
    }
}

/* ---- servers ---- */

/* First come, first served. A device takes the next request when it has finished the last, not when the host's thread
 * has woken up, so a waiter's service starts at the moment its server became free: the host's lateness costs latency,
 * as it does with a device, but no throughput. */
bool chaos_slot_serve(struct chaos_slot *slot, const struct chaos_capacity *capacity, int64_t *start, CK_RV *rv) {
    bool served = true;
    (void)pthread_mutex_lock(&slot->gate);
    if (slot->busy < capacity->servers && slot->first == NULL) {
        slot->busy++;
        *start = chaos_now();
    } else if (slot->waiting >= capacity->queue) {
        slot->refused++;
        *rv = capacity->overflow;
        served = false;
    } else {
        struct chaos_waiter me = {.next = NULL};
        (void)pthread_cond_init(&me.turn, NULL);
        if (slot->last != NULL) {
            slot->last->next = &me;
        } else {
            slot->first = &me;
        }
        slot->last = &me;
        slot->waiting++;
        slot->waiting_max = slot->waiting > slot->waiting_max ? slot->waiting : slot->waiting_max;
        while (!me.served && !me.cancelled && atomic_load(&chaos_state) == CHAOS_UP) {
            (void)pthread_cond_wait(&me.turn, &slot->gate);
        }
        if (!me.served && !me.cancelled) { /* C_Finalize came between our look at the state and its walk */
            struct chaos_waiter **link = &slot->first;
            struct chaos_waiter *before = NULL;
            while (*link != &me) {
                before = *link;
                link = &(*link)->next;
            }
            *link = me.next;
            slot->last = slot->last == &me ? before : slot->last;
            slot->waiting--;
        }
        served = me.served;
        *start = me.start;
        *rv = CKR_CRYPTOKI_NOT_INITIALIZED;
        (void)pthread_cond_destroy(&me.turn);
    }
    slot->busy_max = slot->busy > slot->busy_max ? slot->busy : slot->busy_max;
    (void)pthread_mutex_unlock(&slot->gate);
    return served;
}

static struct chaos_waiter *pop(struct chaos_slot *slot) {
    struct chaos_waiter *waiter = slot->first;
    slot->first = waiter->next;
    if (slot->first == NULL) {
        slot->last = NULL;
    }
    slot->waiting--;
    return waiter;
}

void chaos_slot_served(struct chaos_slot *slot, const struct chaos_capacity *capacity, int64_t end) {
    (void)pthread_mutex_lock(&slot->gate);
    slot->busy--;
    /* A loop, because a changed setting may have made more servers than one. */
    while (slot->first != NULL && (capacity->servers == 0 || slot->busy < capacity->servers)) {
        struct chaos_waiter *waiter = pop(slot);
        slot->busy++;
        waiter->served = true;
        waiter->start = end;
        (void)pthread_cond_signal(&waiter->turn);
    }
    (void)pthread_mutex_unlock(&slot->gate);
}

void chaos_slots_cancel(void) {
    for (struct chaos_slot *slot = atomic_load(&slots); slot != NULL; slot = slot->next) {
        (void)pthread_mutex_lock(&slot->gate);
        while (slot->first != NULL) {
            struct chaos_waiter *waiter = pop(slot);
            waiter->cancelled = true;
            (void)pthread_cond_signal(&waiter->turn);
        }
        (void)pthread_mutex_unlock(&slot->gate);
    }
}

/* With `free_them` false the memory is left alone: a call may still be in there. */
void chaos_slots_reset(bool free_them) {
    struct chaos_slot *slot = atomic_exchange(&slots, NULL);
    while (free_them && slot != NULL) {
        struct chaos_slot *next = slot->next;
        (void)pthread_mutex_destroy(&slot->gate);
        free(slot);
        slot = next;
    }
    for (int i = 0; i < CHAOS_FUNCTIONS; i++) {
        atomic_store(&none.calls[i], 0);
        atomic_store(&none.turns[i], 0);
    }
    slot_count = 0;
    (void)pthread_mutex_init(&growing, NULL);
    (void)pthread_mutex_init(&none.gate, NULL);
}
