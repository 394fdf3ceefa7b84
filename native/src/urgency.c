/* When a worker wakes the client: for each completion at once, or for several together. */
#include "engine.h"

/* Whether another worker is about to complete a request as well, so that one wake will do for both. One that hangs, or whose
 * module is slow, is not waited for: it has been inside for too long. */
static bool has_company(const hsm_worker *worker, uint64_t now) {
    hsm_area *area = worker->engine->area;
    atomic_thread_fence(memory_order_seq_cst); /* of two that end together one must see that the other has left */
    for (uint32_t i = 0; i < worker->engine->worker_count; i++) {
        uint64_t since = atomic_load_explicit(&hsm_area_worker(area, i)->call_started_ns, memory_order_relaxed);
        if (i != worker->index && since != 0 && now < since + hsm_area_moment(area)) {
            return true;
        }
    }
    return false;
}

/* Whether the client should be woken at once. Waiting pays only while more completions follow soon and nobody is about to
 * run out of work: the client needs the time of about one signature to come round with more. If there is little to do, it
 * may still be spared a wake where it has just been awake and others are about to complete. */
bool hsm_is_urgent(const hsm_worker *worker, uint64_t begun, uint64_t now) {
    hsm_area *area = worker->engine->area;
    uint64_t took = now - begun;
    if (took >= area->coalesce_ns) {
        return true;
    }
    if (hsm_area_queued(area) >= worker->engine->worker_count) {
        return false;
    }
    uint64_t taken = atomic_load_explicit(&area->shared->taken_at_ns, memory_order_relaxed);
    return took >= hsm_area_moment(area) || now >= taken + hsm_area_moment(area) || !has_company(worker, now);
}
