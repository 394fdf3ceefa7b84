/* Both rings: a client that fills two slots three times, and two workers. Each request is claimed once, with what the
 * client wrote, and each answer is taken once. */
#include "area_model.h"

#define REQUESTS 3U

static uint32_t served;

static void client(void) {
    uint64_t tail = 0;
    uint64_t head = 0;
    uint32_t slot = 0;
    for (; tail < SLOTS; tail++) {
        slots[tail].key = (uint32_t)tail;
        hsm_area_publish(&area, tail, (uint32_t)tail);
        atomic_store_explicit(&shared.request_tail, tail + 1, memory_order_release);
    }
    while (head < REQUESTS) {
        if (!hsm_area_take(&area, head, &slot)) {
            mm_pause();
            continue;
        }
        head++;
        MM_CHECK(slot < SLOTS);
        MM_CHECK(slots[slot].status == slots[slot].key + 1);
        served |= 1U << slots[slot].key;
        slots[slot].status = 0;
        if (tail < REQUESTS) {
            slots[slot].key = (uint32_t)tail;
            hsm_area_publish(&area, tail++, slot);
            atomic_store_explicit(&shared.request_tail, tail, memory_order_release);
        }
    }
    atomic_store_explicit(&shared.mode, HSM_MODE_STOPPING, memory_order_release);
}

static void worker(void) {
    for (;;) {
        uint32_t slot;
        if (hsm_area_claim(&area, &slot)) {
            MM_CHECK(slot < SLOTS);
            MM_CHECK(slots[slot].status == 0);
            slots[slot].status = slots[slot].key + 1;
            hsm_area_complete(&area, slot);
        } else if (atomic_load_explicit(&shared.mode, memory_order_relaxed) == HSM_MODE_STOPPING) {
            return;
        } else {
            mm_pause();
        }
    }
}

static void reset(void) {
    reset_area(SLOTS);
    served = 0;
}

static void check(void) {
    MM_CHECK(served == (1U << REQUESTS) - 1);
    MM_CHECK(atomic_load(&shared.request_head) == REQUESTS);
    MM_CHECK(atomic_load(&shared.completion_tail) == REQUESTS);
}

const mm_model *mm_choose(int variant) {
    static const mm_model model = {reset, {client, worker, worker}, check, 0};
    (void)variant;
    return &model;
}
