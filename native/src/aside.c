/* Requests that were put aside: they fail again and again, their time is not over, and their worker can serve others in
 * the meantime. A queue of the engine's own, beside the request ring; each worker looks at it between two requests. */
#include "engine.h"

#include <string.h>

bool hsm_put_aside(hsm_worker *worker, uint32_t slot) {
    hsm_engine *engine = worker->engine;
    uint32_t places = engine->area->slots;
    (void)pthread_mutex_lock(&engine->aside_lock);
    uint32_t count = atomic_load_explicit(&engine->aside_count, memory_order_relaxed);
    bool room = count < places; /* always, but for a client that misbehaves */
    if (room) {
        hsm_aside *place = &engine->aside[(engine->aside_first + count) % places];
        place->slot = slot;
        place->ladder = worker->ladder;
        atomic_store(&engine->aside_count, count + 1U);
    }
    (void)pthread_mutex_unlock(&engine->aside_lock);
    /* One that sleeps must know when to look again, should this worker hang in its next call. */
    atomic_thread_fence(memory_order_seq_cst);
    hsm_area_unpark(engine->area, 1);
    return room;
}

bool hsm_take_aside(hsm_worker *worker, uint64_t now, uint32_t *slot) {
    hsm_engine *engine = worker->engine;
    /* Every second time, the others' turn comes first. */
    worker->others_first = !worker->others_first && hsm_area_queued(engine->area) != 0;
    if (worker->others_first) {
        return false;
    }
    (void)pthread_mutex_lock(&engine->aside_lock);
    uint32_t count = atomic_load_explicit(&engine->aside_count, memory_order_relaxed);
    hsm_aside *first = &engine->aside[engine->aside_first];
    bool due = count > 0 && first->ladder.due_ns <= now;
    if (due) {
        *slot = first->slot;
        worker->ladder = first->ladder;
        worker->ladder.due_ns = 0;
        engine->aside_first = (engine->aside_first + 1U) % engine->area->slots;
        atomic_store(&engine->aside_count, count - 1U);
    }
    (void)pthread_mutex_unlock(&engine->aside_lock);
    return due;
}

uint64_t hsm_aside_due(hsm_engine *engine) {
    (void)pthread_mutex_lock(&engine->aside_lock);
    bool any = atomic_load_explicit(&engine->aside_count, memory_order_relaxed) != 0;
    uint64_t due = any ? engine->aside[engine->aside_first].ladder.due_ns : 0;
    (void)pthread_mutex_unlock(&engine->aside_lock);
    return due;
}
