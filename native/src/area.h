/* The shared-memory area between one client and its workers: request ring, completion ring, slots, key table, and a
 * record per worker. It holds no pointer, only offsets and indices, so each side may map it where it likes.
 *
 * Who writes what:
 *   client   free slots' request fields; request ring tail; `in_flight`; `taken_at_ns`; clears `notify` and
 *            `waiting_since_ns`
 *   worker   request ring head (by compare-and-swap); result fields of the slot it claimed; completion ring; its record
 *   engine   key table; `mode`
 * A slot belongs to the client until its index is published in the request ring, then to the worker that claims it,
 * and to the client again once its index is published in the completion ring. Nothing else passes ownership.
 *
 * Every ring has at least as many places as there are slots, so a ring can never be full.
 */
#ifndef HSM_AREA_H
#define HSM_AREA_H

#include "base.h"
#include "hist.h"

#define HSM_AREA_MAGIC UINT64_C(0x68736d636f726531) /* "hsmcore1" */
#define HSM_AREA_VERSION 8U
/* Messages up to this size lie beside the slot; longer ones in a region that is only touched when needed. A Solana
 * transaction is at most 1,232 bytes (one IPv6 MTU less headers). */
#define HSM_INLINE_MESSAGE 1280U
#define HSM_PARKED_WORDS (HSM_MAX_WORKERS / 64)

/* Whether workers may claim. PAUSED is for a host process that is started again: its workers wait for their keys. */
enum hsm_mode { HSM_MODE_RUN, HSM_MODE_PAUSED, HSM_MODE_STOPPING };
/* A request in a slot, until it is answered. The client cancels and a worker begins by compare-and-swap, so that a
 * request that was cancelled is not signed. WITHDRAWN: begun, and no attempt after the current one is owed. */
enum hsm_stage { HSM_STAGE_QUEUED, HSM_STAGE_CANCELLED, HSM_STAGE_BEGUN, HSM_STAGE_WITHDRAWN };
enum hsm_notify { HSM_NOTIFY_IDLE, HSM_NOTIFY_FIRED };

/* One request and its answer. */
typedef struct hsm_slot {
    /* request: written by the client */
    HSM_ALIGNED _Atomic uint64_t submitted_ns; /* atomic: statistics read it at any time */
    uint64_t deadline_ns;
    uint32_t message_len;
    uint32_t key;
    _Atomic uint32_t stage; /* enum hsm_stage */
    uint8_t prehashed;      /* 1: the message is a SHA-256 digest, signed as it is */
    /* answer: written by the worker */
    _Atomic uint8_t failed; /* status of the attempt that failed last; the client may read it before the answer */
    uint16_t call;
    uint64_t ckr;
    uint32_t status;
    uint32_t signature_len;
    uint32_t queue_ns; /* saturates at 4.29 s */
    uint64_t hsm_ns;
    HSM_ALIGNED uint8_t signature[HSM_MAX_SIGNATURE];
    uint8_t digest[32]; /* SHA-256 of the message, or that digest itself, where the client asked for it */
    HSM_ALIGNED uint8_t message[HSM_INLINE_MESSAGE];
} hsm_slot;
_Static_assert(offsetof(hsm_slot, signature) == 64, "all but the bytes of a request lies in one cache line");
_Static_assert(HSM_STATUS_COUNT <= UINT8_MAX, "a status fits into a byte");

/* The place in the key table that belongs to an index. The rest of the index counts the keys that the place has had: a
 * request with the index of a retired key is refused, whichever key has its place now. */
static inline uint32_t hsm_key_place(uint32_t index) {
    return index % HSM_MAX_KEYS;
}

/* In place of an index: any that is free. */
#define HSM_ANY_INDEX UINT32_MAX
enum hsm_key_state { HSM_KEY_ABSENT, HSM_KEY_ACTIVE, HSM_KEY_RETIRED, HSM_KEY_MISMATCHED };

/* A pinned key. Written by the engine before `state` is released as ACTIVE; only `state` changes afterwards, until the
 * key is RETIRED and no worker serves a request for it: then the place may be given to another key. */
typedef struct hsm_key_record {
    _Atomic uint32_t state;
    _Atomic uint32_t index; /* of the key that has or had this place */
    uint32_t algorithm;
    uint32_t public_key_len;
    uint8_t public_key[HSM_MAX_PUBLIC_KEY];
} hsm_key_record;

/* A worker's record. Written by its worker only, but for `park` and `quarantined`; any thread reads it. */
typedef struct hsm_worker_record {
    HSM_ALIGNED _Atomic uint32_t park; /* futex: 1 = go on */
    _Atomic uint32_t running;
    _Atomic uint32_t quarantined;      /* its call overran; it takes no further request and ends with the call */
    _Atomic uint64_t call_started_ns;  /* 0 when outside the module */
    _Atomic uint64_t call_deadline_ns; /* after it, the current call counts as hanging; 0: no call, or no limit */
    _Atomic uint64_t signatures, failures, expired, cancelled, wakes;
    _Atomic uint64_t wrong; /* signatures that did not verify */
    _Atomic uint64_t recoveries[HSM_CLASS_COUNT], failed[HSM_CLASS_COUNT];
    HSM_ALIGNED hsm_histogram hsm;
    hsm_histogram queue, verify;
} hsm_worker_record;

/* What both sides write: at the start of the memory, before rings, slots and worker records. */
typedef struct hsm_shared {
    /* The layout, for the process that maps the memory next. Each side keeps a copy of its own and reads this one never
     * again: the other side may overwrite it. */
    uint64_t magic;
    uint64_t version;
    hsm_client_options options; /* `slots` is rounded up */
    uint64_t size;

    HSM_ALIGNED _Atomic uint64_t request_tail;
    HSM_ALIGNED _Atomic uint64_t request_head;
    HSM_ALIGNED _Atomic uint64_t completion_tail;
    HSM_ALIGNED _Atomic uint32_t notify;    /* enum hsm_notify */
    _Atomic uint64_t waiting_since_ns;      /* of the oldest completion whose wake was deferred; 0: none */
    _Atomic uint64_t alarm_at_ns;           /* when the timer wakes the client by itself */
    _Atomic uint64_t taken_at_ns;           /* when the client last began to take completions */
    HSM_ALIGNED _Atomic uint32_t in_flight; /* slots in use, and held answers; a hint */
    HSM_ALIGNED _Atomic uint32_t spinning;  /* a worker polls the request ring */
    _Atomic uint32_t mode;                  /* enum hsm_mode */
    _Atomic uint32_t down; /* the token does not answer; requests fail or wait, but for a probe now and then */
    _Atomic uint64_t probe_at_ns;
    HSM_ALIGNED _Atomic uint64_t parked[HSM_PARKED_WORDS]; /* one bit for each sleeping worker */

    hsm_key_record keys[HSM_MAX_KEYS];
} hsm_shared;

/* One side's own description of the memory. */
typedef struct hsm_area {
    hsm_shared *shared;
    uint32_t slots; /* a power of two */
    uint32_t max_message;
    uint32_t max_workers;
    bool digests;
    uint64_t coalesce_ns;
    uint64_t size;    /* bytes of the whole memory */
    bool one_process; /* no other process maps the memory */
    _Atomic uint32_t *requests;
    _Atomic uint32_t *completions;
    hsm_slot *slot_table;
    hsm_worker_record *worker_table;
    uint8_t *overflow;
    uint64_t overflow_stride; /* 0 when every message fits inline */
} hsm_area;

/* Map new memory and describe it in `area`. `fd` receives the memory file, which a host process can map too. */
hsm_status hsm_area_create(const hsm_client_options *options, hsm_area *area, int *fd, hsm_error *error);
/* Write the layout for the process that maps the memory next: the one before may have overwritten it. */
void hsm_area_write_header(hsm_area *area);
/* Map the memory of another process and describe it in `area`. */
hsm_status hsm_area_attach(int fd, hsm_area *area);
/* Unmap the memory, if there is any, and close the file, if it is open. */
void hsm_area_destroy(hsm_area *area, int *fd);

static inline hsm_slot *hsm_area_slot(hsm_area *area, uint32_t index) {
    return area->slot_table + index;
}

static inline hsm_worker_record *hsm_area_worker(hsm_area *area, uint32_t index) {
    return area->worker_table + index;
}

/* Where the message of a slot lies; `length` decides which of its two places. */
static inline uint8_t *hsm_area_message(hsm_area *area, uint32_t index, size_t length) {
    if (length <= HSM_INLINE_MESSAGE) {
        return hsm_area_slot(area, index)->message;
    }
    return area->overflow + (uint64_t)index * area->overflow_stride;
}

/* Whether a worker hangs: inside the module for too long, or waiting for one that is. */
static inline bool hsm_worker_overran(const hsm_worker_record *record, uint64_t now) {
    uint64_t deadline = atomic_load_explicit(&record->call_deadline_ns, memory_order_relaxed);
    return deadline != 0 && now >= deadline;
}

/* How many requests lie from `head` on. Load the head first, and with acquire: it can only grow up to a tail that is
 * read later. Were the tail the older of the two, the head could be past it. */
static inline uint64_t hsm_area_queued_from(hsm_area *area, uint64_t head) {
    int64_t count = (int64_t)(atomic_load_explicit(&area->shared->request_tail, memory_order_acquire) - head);
    return count > 0 ? (uint64_t)count : 0;
}

static inline uint64_t hsm_area_queued(hsm_area *area) {
    return hsm_area_queued_from(area, atomic_load_explicit(&area->shared->request_head, memory_order_acquire));
}

/* When the oldest request that is not claimed was submitted, or 0. Any thread. */
uint64_t hsm_area_oldest(hsm_area *area);

/* ---- request ring: one producer, many consumers ---- */

/* Publish a slot to the workers. The client only. */
static inline void hsm_area_publish(hsm_area *area, uint64_t tail, uint32_t slot) {
    atomic_store_explicit(&area->requests[tail & (area->slots - 1U)], slot, memory_order_relaxed);
}

/* Claim the oldest request. Returns false when there is none. Any worker. */
static inline bool hsm_area_claim(hsm_area *area, uint32_t *slot) {
    uint64_t head = atomic_load_explicit(&area->shared->request_head, memory_order_acquire);
    for (;;) {
        if (hsm_area_queued_from(area, head) == 0) {
            return false;
        }
        /* The place cannot be overwritten before the head has passed it: there are no more slots than places. */
        uint32_t candidate = atomic_load_explicit(&area->requests[head & (area->slots - 1U)], memory_order_relaxed);
        if (atomic_compare_exchange_weak_explicit(&area->shared->request_head, &head, head + 1U, memory_order_acq_rel,
                                                  memory_order_acquire)) {
            *slot = candidate;
            return true;
        }
    }
}

/* Whether no further attempt to sign is owed. An attempt that failed has signed nothing. */
static inline bool hsm_area_withdrawn(const hsm_slot *slot) {
    return atomic_load_explicit(&slot->stage, memory_order_relaxed) == HSM_STAGE_WITHDRAWN;
}

/* Whether the waiter of a claimed request may still be answered: HSM_CANCELLED, or HSM_DEADLINE_EXCEEDED. */
static inline hsm_status hsm_area_wanted(const hsm_slot *slot, uint64_t now) {
    if (atomic_load_explicit(&slot->stage, memory_order_relaxed) == HSM_STAGE_CANCELLED) {
        return HSM_CANCELLED;
    }
    return slot->deadline_ns != 0 && now >= slot->deadline_ns ? HSM_DEADLINE_EXCEEDED : HSM_OK;
}

/* Begin a claimed request, or go on with one that was put aside. Returns false if it was cancelled or withdrawn. Its
 * worker only. */
static inline bool hsm_area_begin(hsm_slot *slot) {
    uint32_t queued = HSM_STAGE_QUEUED;
    return atomic_compare_exchange_strong_explicit(&slot->stage, &queued, HSM_STAGE_BEGUN, memory_order_acq_rel,
                                                   memory_order_relaxed) ||
           queued == HSM_STAGE_BEGUN;
}

/* ---- completion ring: many producers, one consumer ---- */

static inline void hsm_area_complete(hsm_area *area, uint32_t slot) {
    /* Acquire and release, so that the client's 0 in the place, one lap ago, cannot come after the store below: the
     * request that the client published after it may be another worker's. */
    uint64_t tail = atomic_fetch_add_explicit(&area->shared->completion_tail, 1U, memory_order_acq_rel);
    /* Slot plus one, so that 0 means "not written yet". */
    atomic_store_explicit(&area->completions[tail & (area->slots - 1U)], slot + 1U, memory_order_release);
}

/* How a claimed request ended, whose signature lies in its slot by then. */
typedef struct hsm_ending {
    hsm_status status;
    uint32_t call;
    uint64_t ckr;
    uint64_t begun_ns, ended_ns; /* the same: it was not begun */
    uint64_t verify_ns;          /* of the time between the two */
} hsm_ending;

static inline void hsm_slot_fill(hsm_slot *slot, const hsm_ending *ending, uint64_t queued) {
    slot->status = ending->status;
    slot->call = (uint16_t)ending->call;
    slot->ckr = ending->ckr;
    slot->signature_len = ending->status == HSM_OK ? HSM_MAX_SIGNATURE : 0;
    slot->queue_ns = queued < UINT32_MAX ? (uint32_t)queued : UINT32_MAX;
    slot->hsm_ns = ending->ended_ns - ending->begun_ns;
}

/* Count a request that its worker has completed. */
static inline void hsm_worker_tally(hsm_worker_record *record, hsm_status status) {
    if (status == HSM_OK) {
        hsm_add_relaxed(&record->signatures, 1);
    } else if (status == HSM_DEADLINE_EXCEEDED) {
        hsm_add_relaxed(&record->expired, 1);
    } else if (status == HSM_CANCELLED) {
        hsm_add_relaxed(&record->cancelled, 1);
    } else {
        hsm_add_relaxed(&record->failures, 1);
        hsm_add_relaxed(&record->failed[hsm_status_class(status)], 1);
    }
}

/* Answer a request that a worker has claimed, and count it in the worker's record. */
static inline void hsm_area_answer(hsm_area *area, uint32_t worker, uint32_t index, const hsm_ending *ending) {
    hsm_slot *slot = hsm_area_slot(area, index);
    hsm_worker_record *record = hsm_area_worker(area, worker);
    uint64_t submitted = atomic_load_explicit(&slot->submitted_ns, memory_order_relaxed);
    uint64_t queued = ending->begun_ns > submitted ? ending->begun_ns - submitted : 0;
    hsm_slot_fill(slot, ending, queued);
    if (slot->hsm_ns != 0) {
        hsm_histogram_add(&record->hsm, slot->hsm_ns - ending->verify_ns);
        hsm_histogram_add(&record->queue, queued);
    }
    hsm_worker_tally(record, ending->status);
    hsm_area_complete(area, index);
}

/* Answer a slot with a failure that no call of the module caused, and that counts for no worker. */
void hsm_area_fail(hsm_area *area, uint32_t slot, hsm_status status);

static inline bool hsm_area_take(hsm_area *area, uint64_t head, uint32_t *slot) {
    _Atomic uint32_t *place = &area->completions[head & (area->slots - 1U)];
    uint32_t value = atomic_load_explicit(place, memory_order_acquire);
    if (value == 0) {
        return false;
    }
    atomic_store_explicit(place, 0, memory_order_relaxed);
    *slot = value - 1U;
    return true;
}

/* A client that took completions less than this ago is not woken for the next one, if more follow within as long. */
static inline uint64_t hsm_area_moment(const hsm_area *area) {
    return area->coalesce_ns / 8U;
}

/* ---- sleeping workers ---- */

/* Wake up to `count` sleeping workers that are not awake already. Any thread. */
void hsm_area_unpark(hsm_area *area, uint64_t count);
/* Wake all of them, so that they see what was stored before. Any thread. */
void hsm_area_unpark_all(hsm_area *area);
/* Let a worker take no further request, and wake it if it sleeps. */
void hsm_area_quarantine(hsm_area *area, uint32_t worker);
/* Sleep until unparked or `timeout_ns` has passed (0: no limit), unless a request may be claimed, the area is
 * stopping or the worker is quarantined. */
void hsm_area_park(hsm_area *area, uint32_t worker, uint64_t timeout_ns);

#endif
