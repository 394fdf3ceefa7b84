/* An area in static memory for the models: few slots, every atomic with a name. */
#ifndef HSM_AREA_MODEL_H
#define HSM_AREA_MODEL_H

#include <string.h>

#include "area.h"
#include "explore.h"

#define SLOTS 2U
#define WORKERS 2U

static hsm_shared shared;
static _Atomic uint32_t requests[SLOTS], completions[SLOTS];
static hsm_slot slots[SLOTS];
static hsm_worker_record records[WORKERS];
static hsm_area area;

static void reset_area(uint32_t slot_count) {
    memset(&shared, 0, sizeof shared);
    memset((void *)requests, 0, sizeof requests);
    memset((void *)completions, 0, sizeof completions);
    memset(slots, 0, sizeof slots);
    memset(records, 0, sizeof records);
    area = (hsm_area){.shared = &shared,
                      .slots = slot_count,
                      .max_workers = WORKERS,
                      .requests = requests,
                      .completions = completions,
                      .slot_table = slots,
                      .worker_table = records,
                      .coalesce_ns = 1};
    mm_name(&shared.request_tail, "request_tail");
    mm_name(&shared.request_head, "request_head");
    mm_name(&shared.completion_tail, "completion_tail");
    mm_name(&shared.notify, "notify");
    mm_name(&shared.waiting_since_ns, "waiting_since_ns");
    mm_name(&shared.alarm_at_ns, "alarm_at_ns");
    mm_name(&shared.spinning, "spinning");
    mm_name(&shared.mode, "mode");
    mm_name(&shared.parked[0], "parked");
    for (uint32_t i = 0; i < SLOTS; i++) {
        mm_name(&requests[i], "a place for requests");
        mm_name(&completions[i], "a place for completions");
    }
    for (uint32_t i = 0; i < WORKERS; i++) {
        mm_name(&records[i].park, "park");
        mm_name(&records[i].quarantined, "quarantined");
        mm_name(&records[i].call_started_ns, "call_started_ns");
    }
}

#endif
