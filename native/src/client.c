#include "client.h"

#include <string.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

/* In a batch, workers are shown requests in groups of this size, so that they start while the rest is being copied. */
#define BATCH_GROUP 32U
/* How many coalescing times the timer waits for the workers to wake the client themselves. */
#define ALARM_FACTOR 4U

enum slot_use { USE_FREE, USE_TAKEN, USE_REPLAYED, USE_ANSWERED };

static bool forked(const hsm_client *client) {
    return client->fork_generation != hsm_fork_generation();
}

static void close_fd(int fd) {
    if (fd >= 0) {
        (void)close(fd);
        hsm_count(HSM_RESOURCE_DESCRIPTOR, -1);
    }
}

static hsm_status open_wake_fds(hsm_client *client, hsm_error *error) {
    client->event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (client->event_fd < 0) {
        return hsm_fail_errno(error, "eventfd", "wake-up");
    }
    hsm_count(HSM_RESOURCE_DESCRIPTOR, 1);
    client->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    if (client->timer_fd < 0) {
        return hsm_fail_errno(error, "timerfd_create", "wake-up");
    }
    hsm_count(HSM_RESOURCE_DESCRIPTOR, 1);
    return HSM_OK;
}

static hsm_status check_options(const hsm_client_options *options, hsm_error *error) {
    if (options->slots < 1 || options->slots > HSM_MAX_SLOTS) {
        return hsm_fail(error, HSM_BAD_ARGUMENT, "", "slots: %u is not within 1..%u", options->slots,
                        (unsigned)HSM_MAX_SLOTS);
    }
    if (options->max_message < 1 || options->max_message > HSM_MAX_MESSAGE) {
        return hsm_fail(error, HSM_BAD_ARGUMENT, "", "max_message: %u is not within 1..%u", options->max_message,
                        (unsigned)HSM_MAX_MESSAGE);
    }
    if (options->max_workers < 1 || options->max_workers > HSM_MAX_WORKERS) {
        return hsm_fail(error, HSM_BAD_ARGUMENT, "", "max_workers: %u is not within 1..%u", options->max_workers,
                        (unsigned)HSM_MAX_WORKERS);
    }
    return HSM_OK;
}

hsm_status hsm_client_new(const hsm_client_options *options, hsm_client **out, hsm_error *error) {
    *out = NULL;
    hsm_status status = check_options(options, error);
    if (status != HSM_OK) {
        return status;
    }
    hsm_client *client = hsm_alloc(sizeof *client);
    if (client == NULL) {
        return hsm_fail(error, HSM_OUT_OF_MEMORY, "", "client");
    }
    client->area_fd = client->event_fd = client->timer_fd = -1;
    client->fork_generation = hsm_fork_generation();
    client->area = &client->own_area;
    status = hsm_area_create(options, client->area, &client->area_fd, error);
    if (status == HSM_OK) {
        status = open_wake_fds(client, error);
    }
    if (status == HSM_OK) {
        uint32_t slots = client->area->slots;
        client->free_slots = hsm_alloc(slots * sizeof *client->free_slots);
        client->use = hsm_alloc(slots);
        if (client->free_slots == NULL || client->use == NULL) {
            status = hsm_fail(error, HSM_OUT_OF_MEMORY, "", "free slots");
        } else {
            for (uint32_t i = 0; i < slots; i++) {
                client->free_slots[i] = slots - 1U - i;
            }
            client->free_count = slots;
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
    if (client == NULL) {
        return;
    }
    if (!forked(client)) { /* a child has no mapping of the area, and the descriptors are its parent's to close */
        hsm_area_destroy(client->area, client->area_fd);
        close_fd(client->event_fd);
        close_fd(client->timer_fd);
    }
    hsm_free(client->free_slots);
    hsm_free(client->use);
    hsm_free(client);
}

void hsm_client_wake_fds(const hsm_client *client, int *event_fd, int *timer_fd) {
    *event_fd = client->event_fd;
    *timer_fd = client->timer_fd;
}

/* From here on workers judge by this moment how long the client has been away. */
static void begin_taking(hsm_client *client) {
    hsm_shared *shared = client->area->shared;
    client->taken_at_ns = hsm_now_ns();
    atomic_store_explicit(&shared->taken_at_ns, client->taken_at_ns, memory_order_relaxed);
    atomic_store(&shared->waiting_since_ns, 0);
}

void hsm_client_wake_clear(hsm_client *client) {
    if (forked(client)) {
        return;
    }
    uint64_t count;
    /* Read before IDLE is said: an event that a worker writes after it must not be swallowed, with FIRED left standing. */
    (void)!read(client->event_fd, &count, sizeof count);
    uint32_t was = atomic_exchange(&client->area->shared->notify, HSM_NOTIFY_IDLE);
    begin_taking(client);
    if (was != HSM_NOTIFY_FIRED) {
        (void)!read(client->timer_fd, &count, sizeof count); /* no worker woke us, so the timer did */
    }
    /* A completion published before a worker saw IDLE must be seen by the drain that follows. */
    atomic_thread_fence(memory_order_seq_cst);
}

int hsm_client_catch_up(hsm_client *client) {
    if (forked(client)) {
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

static void fire(hsm_area *area, int event_fd, hsm_worker_record *record) {
    if (atomic_exchange(&area->shared->notify, HSM_NOTIFY_FIRED) != HSM_NOTIFY_FIRED) {
        uint64_t one = 1;
        (void)!write(event_fd, &one, sizeof one);
        atomic_fetch_add_explicit(&record->wakes, 1, memory_order_relaxed);
    }
}

/* Arming a timer costs far more than looking at the time, hence not for each group of completions. */
static void set_alarm(hsm_area *area, int timer_fd) {
    /* The time after the completion was published, not before: a worker that was preempted in between would trust an
     * alarm that has gone off already. */
    uint64_t now = hsm_now_ns();
    uint64_t at = atomic_load_explicit(&area->shared->alarm_at_ns, memory_order_relaxed);
    uint64_t pause = area->coalesce_ns * ALARM_FACTOR;
    if (now >= at && atomic_compare_exchange_strong(&area->shared->alarm_at_ns, &at, now + pause)) {
        struct itimerspec when = {
            .it_value = {.tv_sec = (time_t)(pause / 1000000000U), .tv_nsec = (long)(pause % 1000000000U)}};
        (void)timerfd_settime(timer_fd, 0, &when, NULL);
    }
}

void hsm_notify(hsm_area *area, int event_fd, int timer_fd, bool urgent, uint64_t now, hsm_worker_record *record) {
    atomic_thread_fence(memory_order_seq_cst);
    if (atomic_load_explicit(&area->shared->notify, memory_order_relaxed) == HSM_NOTIFY_FIRED) {
        return;
    }
    uint64_t since = 0;
    if (urgent || (!atomic_compare_exchange_strong(&area->shared->waiting_since_ns, &since, now) && now > since &&
                   now - since >= area->coalesce_ns)) {
        fire(area, event_fd, record);
    } else {
        set_alarm(area, timer_fd);
    }
}

static void note_in_flight(hsm_client *client) {
    atomic_store_explicit(&client->area->shared->in_flight, client->area->slots - client->free_count,
                          memory_order_relaxed);
}

/* Let workers see what was queued, and wake as many as there is work for. */
static void publish(hsm_client *client) {
    hsm_area *area = client->area;
    uint64_t count = client->tail - client->published;
    if (count == 0) {
        return;
    }
    client->published = client->tail;
    atomic_store_explicit(&area->shared->request_tail, client->tail, memory_order_release);
    atomic_thread_fence(memory_order_seq_cst);
    /* A polling worker will find one of them without a system call. */
    count -= atomic_load_explicit(&area->shared->spinning, memory_order_relaxed) != 0 ? 1U : 0U;
    if (count > 0) {
        hsm_area_unpark(area, count);
    }
}

hsm_status hsm_client_submit(hsm_client *client, uint32_t key, const uint8_t *message, size_t message_len,
                             uint64_t timeout_ns, uint32_t *slot_out, uint64_t *deadline_ns) {
    if (forked(client)) {
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
    client->use[index] = USE_TAKEN;
    note_in_flight(client);
    hsm_slot *slot = hsm_area_slot(area, index);
    uint64_t now = hsm_now_ns();
    atomic_store_explicit(&slot->submitted_ns, now, memory_order_relaxed);
    slot->deadline_ns = timeout_ns != 0 && timeout_ns <= UINT64_MAX - now ? now + timeout_ns : 0;
    *deadline_ns = slot->deadline_ns;
    slot->message_len = (uint32_t)message_len;
    slot->key = key;
    atomic_store_explicit(&slot->cancelled, 0, memory_order_relaxed);
    if (message_len > 0) { /* `message` may be NULL then */
        memcpy(hsm_area_message(area, index, message_len), message, message_len);
    }
    hsm_area_publish(area, client->tail++, index);
    if (!client->batching || client->tail - client->published >= BATCH_GROUP) {
        publish(client);
    }
    *slot_out = index;
    return HSM_OK;
}

void hsm_client_batch_begin(hsm_client *client) {
    client->batching = true;
}

void hsm_client_batch_end(hsm_client *client) {
    client->batching = false;
    if (!forked(client)) {
        publish(client);
    }
}

int hsm_client_next(hsm_client *client, hsm_completion *completion) {
    if (forked(client)) {
        return 0;
    }
    hsm_area *area = client->area;
    uint32_t index;
    do {
        if (!hsm_area_take(area, client->head, &index)) {
            return 0;
        }
        client->head++;
        /* The area may be shared with a process that misbehaves: what was not asked for cannot be answered. */
    } while (index >= area->slots || client->use[index] == USE_FREE || client->use[index] == USE_ANSWERED);
    client->use[index] = USE_ANSWERED;
    hsm_slot *slot = hsm_area_slot(area, index);
    completion->slot = index;
    completion->key = slot->key;
    completion->status = (hsm_status)slot->status;
    completion->ckr = slot->ckr;
    completion->call = slot->call;
    completion->worker = slot->worker;
    completion->signature_len = slot->signature_len < HSM_MAX_SIGNATURE ? slot->signature_len : HSM_MAX_SIGNATURE;
    completion->signature = slot->signature;
    completion->digest = slot->digest;
    completion->message_len = slot->message_len;
    completion->queue_ns = slot->queue_ns;
    completion->hsm_ns = slot->hsm_ns;
    return 1;
}

void hsm_client_release(hsm_client *client, uint32_t slot) {
    if (!forked(client) && slot < client->area->slots && client->use[slot] != USE_FREE) {
        client->use[slot] = USE_FREE;
        client->free_slots[client->free_count++] = slot;
        note_in_flight(client);
    }
}

static void answer_lost(hsm_slot *slot) {
    slot->status = HSM_HOST_LOST;
    slot->signature_len = 0;
    slot->ckr = 0;
    slot->call = 0;
    slot->hsm_ns = 0;
}

/* Take what was answered before the end out of a completion ring that may have holes: places that a worker had
 * reserved and not filled. Marks the slots in `seen` and closes the ring up. */
static void close_completions(hsm_client *client, uint8_t *seen) {
    hsm_area *area = client->area;
    _Atomic uint32_t *ring = area->completions;
    uint64_t end = client->head;
    for (uint64_t i = 0; i < area->slots; i++) {
        uint32_t index;
        if (hsm_area_take(area, client->head + i, &index)) {
            index &= area->slots - 1U;
            if (seen[index] == 0 && client->use[index] != USE_FREE && client->use[index] != USE_ANSWERED) {
                seen[index] = 1;
                atomic_store(&ring[end & (area->slots - 1U)], index + 1U);
                end++;
            }
        }
    }
    atomic_store(&area->shared->completion_tail, end);
}

uint32_t hsm_client_recover(hsm_client *client) {
    if (forked(client)) {
        return 0;
    }
    hsm_area *area = client->area;
    uint8_t *seen = hsm_alloc(area->slots);
    if (seen == NULL) {
        return 0; /* their deadlines will answer them */
    }
    atomic_store(&area->shared->mode, HSM_MODE_PAUSED);
    close_completions(client, seen);
    uint64_t head = atomic_load(&area->shared->request_head);
    if (client->published - head > area->slots) {
        head = client->published; /* not what a worker of ours leaves behind */
        atomic_store(&area->shared->request_head, head);
    }
    for (uint64_t i = head; i != client->tail; i++) { /* an open batch included */
        seen[atomic_load(&area->requests[i & (area->slots - 1U)]) & (area->slots - 1U)] = 1;
    }
    atomic_store(&area->shared->spinning, 0);
    atomic_store(&area->shared->down, 0); /* what the host that ended thought of the token is not the next one's */
    atomic_store(&area->shared->notify, HSM_NOTIFY_IDLE);
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
    uint32_t again = 0;
    bool answers = atomic_load(&area->shared->completion_tail) != client->head;
    for (uint32_t index = 0; index < area->slots; index++) {
        if (seen[index] != 0 || client->use[index] == USE_FREE || client->use[index] == USE_ANSWERED) {
            continue;
        }
        hsm_slot *slot = hsm_area_slot(area, index);
        const hsm_key_record *key = &area->shared->keys[hsm_key_place(slot->key)];
        /* Once only: a message that crashes the module must not do so for ever. */
        if (client->use[index] == USE_TAKEN && hsm_algorithm_is_deterministic((hsm_algorithm)key->algorithm)) {
            client->use[index] = USE_REPLAYED;
            hsm_area_publish(area, client->tail++, index);
            again++;
        } else {
            answer_lost(slot);
            hsm_area_complete(area, index);
            answers = true;
        }
    }
    publish(client);
    hsm_free(seen);
    if (answers) {
        uint64_t one = 1;
        atomic_store(&area->shared->notify, HSM_NOTIFY_FIRED);
        (void)!write(client->event_fd, &one, sizeof one);
    }
    return again;
}

void hsm_client_cancel(hsm_client *client, uint32_t slot) {
    if (!forked(client) && slot < client->area->slots) {
        atomic_store_explicit(&hsm_area_slot(client->area, slot)->cancelled, 1, memory_order_relaxed);
    }
}

uint32_t hsm_client_queued(const hsm_client *client) {
    return forked(client) ? 0 : (uint32_t)hsm_area_queued(client->area);
}

uint32_t hsm_client_free_slots(const hsm_client *client) {
    return forked(client) ? 0 : client->free_count;
}

uint32_t hsm_client_slots(const hsm_client *client) {
    return forked(client) ? 0 : client->area->slots;
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
    if (forked(client)) {
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
        for (size_t rung = 0; rung < sizeof stats->recoveries / sizeof stats->recoveries[0]; rung++) {
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
