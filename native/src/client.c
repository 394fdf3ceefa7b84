/* The client: takes requests into slots, publishes them, collects completions. The worker's side is worker.c. */
#include "client.h"

#include <string.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>

/* A batch is published in groups of this size, so that workers start while the rest is being copied. */
#define BATCH_GROUP 32U

/* Coalescing times after which the timer wakes the client if the workers have not. */
#define ALARM_FACTOR 4U

/* Requests wait for workers that are about to end rather than wake others, for this part of what a signature takes. */
#define A_PART 16U

/* A suspect that has been with a worker for so long is no longer awaited: it hangs, or was put aside. */
#define TRIAL_NS UINT64_C(1000000000)

static hsm_status check_range(const char *name, uint32_t value, uint32_t most, hsm_error *error) {
    return value >= 1 && value <= most
               ? HSM_OK
               : hsm_fail(error, HSM_BAD_ARGUMENT, "", "%s: %u is not within 1..%u", name, value, most);
}

hsm_status hsm_client_new(const hsm_client_options *options, hsm_client **out, hsm_error *error) {
    *out = NULL;
    hsm_status status = check_range("slots", options->slots, HSM_MAX_SLOTS, error);
    HSM_THEN(status, check_range("max_message", options->max_message, HSM_MAX_MESSAGE, error));
    HSM_THEN(status, check_range("max_workers", options->max_workers, HSM_MAX_WORKERS, error));
    if (status != HSM_OK) {
        return status;
    }
    hsm_client *client = hsm_alloc(sizeof *client);
    if (client == NULL) {
        return hsm_fail(error, HSM_OUT_OF_MEMORY, "", "client");
    }
    client->area_fd = client->event_fd = client->timer_fd = -1;
    client->fork_generation = hsm_fork_generation();
    atomic_store(&client->users, 1);
    client->area = &client->own_area;
    status = hsm_area_create(options, client->area, &client->area_fd, error);
    if (status == HSM_OK) {
        client->event_fd = hsm_counted(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
        client->timer_fd =
            client->event_fd < 0 ? -1 : hsm_counted(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC));
        if (client->timer_fd < 0) {
            status = hsm_fail_errno(error, client->event_fd < 0 ? "eventfd" : "timerfd_create", "wake-up");
        }
    }
    if (status == HSM_OK) {
        client->free_slots = hsm_alloc(client->area->slots * sizeof *client->free_slots);
        client->use = hsm_alloc(client->area->slots * sizeof *client->use);
        client->seen = hsm_alloc(client->area->slots);
        if (client->free_slots == NULL || client->use == NULL || client->seen == NULL) {
            status = hsm_fail(error, HSM_OUT_OF_MEMORY, "", "free slots");
        } else {
            for (; client->free_count < client->area->slots; client->free_count++) {
                client->free_slots[client->free_count] = client->area->slots - 1U - client->free_count;
            }
        }
    }
    if (status != HSM_OK) {
        hsm_client_free(client);
        return status;
    }
    *out = client;
    return HSM_OK;
}

void hsm_client_free(hsm_client *client) {
    if (client == NULL || (!hsm_client_forked(client) && atomic_fetch_sub(&client->users, 1) != 1)) {
        return;
    }
    /* A forked child has no mapping of the area, and the descriptors are its parent's to close. */
    if (!hsm_client_forked(client)) {
        hsm_area_destroy(client->area, &client->area_fd);
        hsm_close(&client->event_fd);
        hsm_close(&client->timer_fd);
    }
    hsm_free(client->free_slots);
    hsm_free(client->use);
    hsm_free(client->seen);
    hsm_free(client);
}

void hsm_client_wake_fds(const hsm_client *client, int *event_fd, int *timer_fd) {
    *event_fd = client->event_fd;
    *timer_fd = client->timer_fd;
}

void hsm_set_alarm(hsm_area *area, int timer_fd) {
    /* Read the clock after what waits was published: a thread that was preempted in between would otherwise trust an
     * alarm that has gone off already. */
    uint64_t now = hsm_now_ns();
    uint64_t at = atomic_load_explicit(&area->shared->alarm_at_ns, memory_order_relaxed);
    uint64_t pause = area->coalesce_ns * ALARM_FACTOR;
    if (now >= at && atomic_compare_exchange_strong(&area->shared->alarm_at_ns, &at, now + pause)) {
        struct itimerspec when = {.it_value = hsm_timespec(pause)};
        (void)timerfd_settime(timer_fd, 0, &when, NULL);
    }
}

/* Note when the client began to take completions: workers judge by it whether a wake is worth it. */
static void begin_taking(hsm_client *client) {
    hsm_shared *shared = client->area->shared;
    client->taken_at_ns = hsm_now_ns();
    atomic_store_explicit(&shared->taken_at_ns, client->taken_at_ns, memory_order_relaxed);
    atomic_store(&shared->waiting_since_ns, 0);
}

void hsm_client_wake_clear(hsm_client *client) {
    if (hsm_client_forked(client)) {
        return;
    }
    /* Clear first: an event that a worker sets after IDLE must not be swallowed, with FIRED left standing. */
    hsm_event_clear(client->event_fd);
    uint32_t was = atomic_exchange(&client->area->shared->notify, HSM_NOTIFY_IDLE);
    begin_taking(client);
    if (was != HSM_NOTIFY_FIRED) {
        /* No worker woke us, so the timer did. Disarmed and not read: the host has the descriptor too, and could make a
         * read block. The next one to need it arms it again. */
        const struct itimerspec never = {.it_value = {0}};
        (void)timerfd_settime(client->timer_fd, 0, &never, NULL);
        atomic_store(&client->area->shared->alarm_at_ns, 0);
    }
    /* A completion published before a worker saw IDLE, or trusted an alarm, must be seen by the drain that follows. */
    atomic_thread_fence(memory_order_seq_cst);
    if (was != HSM_NOTIFY_FIRED) { /* no worker came for what was left to the next one */
        hsm_area_unpark(client->area, hsm_area_queued(client->area));
    }
}

int hsm_client_catch_up(hsm_client *client) {
    if (hsm_client_forked(client)) {
        return 0;
    }
    hsm_area *area = client->area;
    if (atomic_load_explicit(&area->completions[client->head & (area->slots - 1U)], memory_order_relaxed) == 0 ||
        hsm_now_ns() - client->taken_at_ns < hsm_area_moment(area) / 4U) {
        return 0;
    }
    begin_taking(client);
    atomic_thread_fence(memory_order_seq_cst); /* as above */
    return 1;
}

/* Let workers see how many requests are open: so many more, modulo 2^32. */
static inline void note_open(hsm_client *client, uint32_t change) {
    client->open += change;
    atomic_store_explicit(&client->area->shared->in_flight, client->open, memory_order_relaxed);
}

void hsm_client_note_held(hsm_client *client, uint32_t held) {
    uint32_t change = held - client->held;
    client->held = held;
    note_open(client, change);
}

/* Of the `count` requests published last, those that are left to workers that do not sleep: of so many one ends after the
 * other, takes what it finds, and need not sleep first. Should none end, the alarm has the client wake another. */
static uint64_t left_to_busy(const hsm_client *client, uint64_t count) {
    hsm_area *area = client->area;
    uint64_t busy = client->workers;
    if (busy < A_PART || area->coalesce_ns == 0) {
        return 0;
    }
    for (uint32_t word = 0; word * 64U < area->max_workers; word++) {
        uint64_t sleeping = atomic_load_explicit(&area->shared->parked[word], memory_order_relaxed);
        busy -= (uint64_t)__builtin_popcountll(sleeping);
    }
    uint64_t queued = hsm_area_queued(area);
    uint64_t ahead = queued > count ? queued - count : 0;
    uint64_t left = busy <= client->workers ? busy / A_PART : 0; /* the area may be shared with a process that lies */
    left = left > ahead ? left - ahead : 0;
    if (left != 0) {
        hsm_set_alarm(area, client->timer_fd);
    }
    return left < count ? left : count;
}

void hsm_client_publish(hsm_client *client) {
    hsm_area *area = client->area;
    uint64_t count = client->tail - client->published;
    if (count == 0 || client->suspects != 0) {
        return;
    }
    client->published = client->tail;
    atomic_store_explicit(&area->shared->request_tail, client->tail, memory_order_release);
    atomic_thread_fence(memory_order_seq_cst);
    /* A polling worker will find one of them without a system call. */
    count -= atomic_load_explicit(&area->shared->spinning, memory_order_relaxed) != 0 ? 1U : 0U;
    count -= left_to_busy(client, count);
    if (count > 0) {
        hsm_area_unpark(area, count);
    }
}

void hsm_client_try(hsm_client *client, uint64_t head) {
    hsm_area *area = client->area;
    client->tried = atomic_load(&area->requests[head & (area->slots - 1U)]) & (area->slots - 1U);
    client->alone_ns = 0;
    client->published = head + 1U;
    atomic_store(&area->shared->request_tail, client->published);
    atomic_thread_fence(memory_order_seq_cst);
    hsm_area_unpark(area, 1);
}

/* The suspect that was tried has its answer: show the workers the next one, or what waits behind the last one. */
static void acquit(hsm_client *client) {
    if (--client->suspects != 0) {
        hsm_client_try(client, client->published);
    } else {
        hsm_client_publish(client);
    }
}

void hsm_client_look(hsm_client *client, uint64_t now) {
    if (client->suspects == 0 || hsm_area_queued(client->area) != 0) {
        client->alone_ns = 0;
    } else if (client->alone_ns == 0) {
        client->alone_ns = now;
    } else if (now - client->alone_ns >= TRIAL_NS) {
        client->suspects = 0;
        hsm_client_publish(client);
    }
}

static inline void fill(hsm_client *client, uint32_t index, uint32_t key, const uint8_t *message, size_t message_len,
                        bool prehashed, uint64_t deadline_ns) {
    hsm_slot *slot = hsm_area_slot(client->area, index);
    slot->deadline_ns = deadline_ns;
    slot->message_len = (uint32_t)message_len;
    slot->key = key;
    slot->prehashed = prehashed;
    atomic_store_explicit(&slot->failed, HSM_OK, memory_order_relaxed);
    if (message_len > 0) { /* `message` may be NULL then */
        memcpy(hsm_area_message(client->area, index, message_len), message, message_len);
    }
}

static inline hsm_status put(hsm_client *client, uint32_t key, const uint8_t *message, size_t message_len,
                             bool prehashed, uint64_t now, uint64_t deadline_ns, uint32_t *slot_out) {
    if (hsm_client_forked(client)) {
        return HSM_FORKED;
    }
    hsm_area *area = client->area;
    if (message_len > area->max_message) {
        return HSM_MESSAGE_TOO_LARGE;
    }
    if (client->free_count == 0) {
        return HSM_QUEUE_FULL;
    }
    uint32_t index = client->free_slots[--client->free_count];
    /* Release: what the caller has noted of the request before, a thread that takes its completion can see. */
    atomic_store_explicit(&client->use[index], HSM_USE_TAKEN, memory_order_release);
    note_open(client, 1);
    hsm_slot *slot = hsm_area_slot(area, index);
    atomic_store_explicit(&slot->submitted_ns, now, memory_order_relaxed);
    atomic_store_explicit(&slot->stage, HSM_STAGE_QUEUED, memory_order_relaxed);
    fill(client, index, key, message, message_len, prehashed, deadline_ns);
    hsm_area_publish(area, client->tail++, index);
    if (!client->batching || client->tail - client->published >= BATCH_GROUP) {
        hsm_client_publish(client);
    }
    *slot_out = index;
    return HSM_OK;
}

hsm_status hsm_client_write(hsm_client *client, uint32_t key, const uint8_t *message, size_t message_len,
                            bool prehashed, uint64_t now, uint64_t deadline_ns, uint32_t *slot) {
    return put(client, key, message, message_len, prehashed, now, deadline_ns, slot);
}

hsm_status hsm_client_submit(hsm_client *client, uint32_t key, const uint8_t *message, size_t message_len,
                             uint64_t timeout_ns, uint32_t *slot, uint64_t *deadline_ns) {
    uint64_t now = hsm_now_ns();
    *deadline_ns = timeout_ns != 0 && timeout_ns <= UINT64_MAX - now ? now + timeout_ns : 0;
    return put(client, key, message, message_len, false, now, *deadline_ns, slot);
}

void hsm_client_restore(hsm_client *client, uint32_t slot, uint32_t key, const uint8_t *message, size_t message_len,
                        bool prehashed, uint64_t deadline_ns, bool again) {
    fill(client, slot, key, message, message_len, prehashed, deadline_ns);
    if (!again && (client->use[slot] == HSM_USE_TAKEN || client->use[slot] == HSM_USE_REPLAYED)) {
        client->use[slot] = HSM_USE_ONCE;
    }
}

void hsm_client_batch_begin(hsm_client *client) {
    client->batching = true;
}

void hsm_client_batch_end(hsm_client *client) {
    client->batching = false;
    if (!hsm_client_forked(client)) {
        hsm_client_publish(client);
    }
}

int hsm_client_next(hsm_client *client, hsm_completion *completion) {
    if (hsm_client_forked(client)) {
        return 0;
    }
    hsm_area *area = client->area;
    uint32_t index;
    uint8_t use = HSM_USE_FREE;
    do {
        if (!hsm_area_take(area, client->head, &index)) {
            return 0;
        }
        client->head++;
        /* The area may be shared with a process that misbehaves: skip answers to no request. */
        use = index < area->slots ? atomic_load_explicit(&client->use[index], memory_order_acquire) : HSM_USE_FREE;
    } while (use == HSM_USE_FREE || use == HSM_USE_ANSWERED);
    atomic_store_explicit(&client->use[index], HSM_USE_ANSWERED, memory_order_relaxed);
    hsm_slot *slot = hsm_area_slot(area, index);
    completion->slot = index;
    completion->key = slot->key;
    completion->status = (hsm_status)slot->status;
    completion->ckr = slot->ckr;
    completion->call = slot->call;
    completion->signature_len = slot->signature_len < HSM_MAX_SIGNATURE ? slot->signature_len : HSM_MAX_SIGNATURE;
    completion->signature = slot->signature;
    completion->digest = slot->digest;
    completion->queue_ns = slot->queue_ns;
    completion->hsm_ns = slot->hsm_ns;
    return 1;
}

void hsm_client_release(hsm_client *client, uint32_t slot) {
    if (!hsm_client_forked(client) && slot < client->area->slots &&
        atomic_load_explicit(&client->use[slot], memory_order_relaxed) != HSM_USE_FREE) {
        atomic_store_explicit(&client->use[slot], HSM_USE_FREE, memory_order_relaxed);
        client->free_slots[client->free_count++] = slot;
        note_open(client, UINT32_MAX);
        if (client->suspects != 0 && slot == client->tried) {
            acquit(client); /* here, and not where its completion is taken: that may be the verifying thread's work */
        }
    }
}

int hsm_client_cancel(hsm_client *client, uint32_t slot) {
    if (hsm_client_forked(client) || slot >= client->area->slots) {
        return 0;
    }
    _Atomic uint32_t *stage = &hsm_area_slot(client->area, slot)->stage;
    uint32_t queued = HSM_STAGE_QUEUED;
    uint32_t begun = HSM_STAGE_BEGUN;
    if (atomic_compare_exchange_strong(stage, &queued, HSM_STAGE_CANCELLED) || queued == HSM_STAGE_CANCELLED) {
        return 1;
    }
    (void)atomic_compare_exchange_strong(stage, &begun, HSM_STAGE_WITHDRAWN);
    return 0;
}

int hsm_client_begun(const hsm_client *client, uint32_t slot) {
    if (hsm_client_forked(client) || slot >= client->area->slots) {
        return 1;
    }
    uint32_t stage = atomic_load(&hsm_area_slot(client->area, slot)->stage);
    return stage == HSM_STAGE_BEGUN || stage == HSM_STAGE_WITHDRAWN;
}

hsm_status hsm_client_failed(const hsm_client *client, uint32_t slot) {
    if (hsm_client_forked(client)) { /* the area is not mapped there */
        return HSM_OK;
    }
    uint32_t failed = atomic_load_explicit(&hsm_area_slot(client->area, slot)->failed, memory_order_relaxed);
    return failed < HSM_STATUS_COUNT ? (hsm_status)failed : HSM_CKR_UNKNOWN;
}

uint32_t hsm_client_queued(const hsm_client *client) {
    return hsm_client_forked(client) ? 0 : (uint32_t)hsm_area_queued(client->area);
}

uint32_t hsm_client_free_slots(const hsm_client *client) {
    return hsm_client_forked(client) ? 0 : client->free_count;
}

uint32_t hsm_client_slots(const hsm_client *client) {
    return hsm_client_forked(client) ? 0 : client->area->slots;
}

/* Whether a worker's histograms may have anything in them. */
static bool has_served(const hsm_worker_record *record) {
    return atomic_load_explicit(&record->running, memory_order_relaxed) != 0 ||
           (atomic_load_explicit(&record->signatures, memory_order_relaxed) |
            atomic_load_explicit(&record->failures, memory_order_relaxed) |
            atomic_load_explicit(&record->expired, memory_order_relaxed)) != 0;
}

void hsm_client_stats(const hsm_client *client, hsm_stats *stats) {
    memset(stats, 0, sizeof *stats);
    if (hsm_client_forked(client)) {
        return;
    }
    hsm_area *area = client->area;
    uint64_t now = hsm_now_ns();
    for (uint32_t i = 0; i < area->max_workers; i++) {
        hsm_worker_record *record = hsm_area_worker(area, i);
#define ADD(field) stats->field += atomic_load_explicit(&record->field, memory_order_relaxed)
        ADD(signatures);
        ADD(failures);
        ADD(expired);
        ADD(cancelled);
        ADD(wrong);
        ADD(wakes);
        for (size_t rung = 0; rung < HSM_CLASS_COUNT; rung++) {
            ADD(recoveries[rung]);
            ADD(failed[rung]);
        }
#undef ADD
        stats->workers += atomic_load_explicit(&record->running, memory_order_relaxed);
        uint64_t since = atomic_load_explicit(&record->call_started_ns, memory_order_relaxed);
        stats->busy += since != 0 ? 1U : 0U;
        if (since != 0 && since < now && now - since > stats->oldest_call_ns) {
            stats->oldest_call_ns = now - since;
        }
        stats->stuck += atomic_load_explicit(&record->quarantined, memory_order_relaxed);
        if (!has_served(record)) {
            continue; /* most of the places that there are for workers */
        }
        hsm_histogram_merge(&record->hsm, stats->hsm_ns, &stats->hsm_sum_ns);
        hsm_histogram_merge(&record->queue, stats->queue_ns, &stats->queue_sum_ns);
        hsm_histogram_merge(&record->verify, stats->verify_ns, &stats->verify_sum_ns);
    }
    uint64_t oldest = hsm_area_oldest(area);
    stats->oldest_queued_ns = oldest != 0 && oldest < now ? now - oldest : 0;
    stats->queued = (uint32_t)hsm_area_queued(area);
    stats->down = atomic_load_explicit(&area->shared->down, memory_order_relaxed);
}
