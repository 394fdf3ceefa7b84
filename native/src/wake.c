/* When a worker wakes the client: for one completion at once, or for several together. */
#include "engine.h"

/* Whether another worker is about to complete a request too, so that one wake serves both. A worker that has been
 * inside for longer than a moment does not count: it hangs, or its module is slow. */
static bool has_company(const hsm_worker *worker, uint64_t now) {
    hsm_area *area = worker->engine->area;
    atomic_thread_fence(memory_order_seq_cst); /* of two that end together, one must see that the other has left */
    for (uint32_t i = 0; i < worker->engine->worker_count; i++) {
        uint64_t since = atomic_load_explicit(&hsm_area_worker(area, i)->call_started_ns, memory_order_relaxed);
        if (i != worker->index && since != 0 && now < since + hsm_area_moment(area)) {
            return true;
        }
    }
    return false;
}

/* Of a slow module completions share a wake only where two are sure to come within a small part of what a signature
 * takes, and only while a quarter of the workers could begin again: until those are busy, the client has time enough to
 * bring more. Its callers wait that part longer. */
#define CROWD 64U
#define SMALL_PART 8U

static bool shares_wake(const hsm_worker *worker, uint64_t took, uint64_t now) {
    hsm_area *area = worker->engine->area;
    uint32_t workers = worker->engine->worker_count;
    if (area->coalesce_ns == 0 || workers < CROWD || hsm_area_queued(area) < workers / 4U) {
        return false;
    }
    uint64_t since = atomic_load_explicit(&area->shared->waiting_since_ns, memory_order_relaxed);
    return since == 0 || now < since + took / SMALL_PART;
}

/* Waiting pays only while more completions follow soon and no worker is about to run out of work: the client needs the
 * time of about one signature to bring more. With little to do, a client that was awake a moment ago is spared the wake
 * if others are about to complete. */
bool hsm_is_urgent(const hsm_worker *worker, uint64_t begun, uint64_t now) {
    hsm_area *area = worker->engine->area;
    uint64_t took = now - begun;
    if (took >= area->coalesce_ns) {
        return !shares_wake(worker, took, now);
    }
    if (hsm_area_queued(area) >= worker->engine->worker_count) {
        return false;
    }
    uint64_t taken = atomic_load_explicit(&area->shared->taken_at_ns, memory_order_relaxed);
    return took >= hsm_area_moment(area) || now >= taken + hsm_area_moment(area) || !has_company(worker, now);
}

static void fire(hsm_area *area, int event_fd, hsm_worker_record *record) {
    if (atomic_exchange(&area->shared->notify, HSM_NOTIFY_FIRED) != HSM_NOTIFY_FIRED) {
        hsm_event_set(event_fd);
        atomic_fetch_add_explicit(&record->wakes, 1, memory_order_relaxed);
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
        hsm_set_alarm(area, timer_fd);
    }
}
