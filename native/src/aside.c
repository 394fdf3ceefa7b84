/* Requests that were put aside: they fail again and again, their time is not over, and their worker can serve others in
 * the meantime. A queue of the engine's own, beside the request ring; each worker looks at it between two requests. */
#include "engine.h"

#include <string.h>

bool hsm_put_aside(hsm_worker *worker) {
    hsm_engine *engine = worker->engine;
    (void)pthread_mutex_lock(&engine->aside_lock);
    uint32_t count = atomic_load_explicit(&engine->aside_count, memory_order_relaxed);
    bool room = count < engine->area->slots; /* always, but for a client that misbehaves */
    if (room) {
        engine->aside[(engine->aside_first + count) % engine->area->slots] = worker->ladder;
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
    bool due = count > 0 && engine->aside[engine->aside_first].due_ns <= now;
    if (due) {
        worker->ladder = engine->aside[engine->aside_first];
        worker->ladder.due_ns = 0;
        *slot = worker->ladder.slot;
        engine->aside_first = (engine->aside_first + 1U) % engine->area->slots;
        atomic_store(&engine->aside_count, count - 1U);
    }
    (void)pthread_mutex_unlock(&engine->aside_lock);
    return due;
}

uint64_t hsm_aside_due(hsm_engine *engine) {
    (void)pthread_mutex_lock(&engine->aside_lock);
    uint64_t due = atomic_load(&engine->aside_count) != 0 ? engine->aside[engine->aside_first].due_ns : 0;
    (void)pthread_mutex_unlock(&engine->aside_lock);
    return due;
}
