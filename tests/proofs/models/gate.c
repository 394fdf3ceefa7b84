/* The gate in front of the module: no worker is inside while another one holds it closed, and each goes on when it is
 * open again. `module` stands for what C_Finalize ends: a data race on it is a call inside. */
#include "area_model.h"

/* For close_gates and open_gate. */
#include "reinit.c"

static hsm_engine engine;
static hsm_worker workers[WORKERS];
static hsm_module shared_module;
static int module;
static uint64_t clocks[MM_MAX_THREADS];

/* Two looks at the clock are QUIESCE_NS. */
uint64_t hsm_now_ns(void) {
    return clocks[mm_self()] += QUIESCE_NS / 2;
}

static void closer(void) {
    if (close_gates(&engine, &workers[1], hsm_now_ns() + QUIESCE_NS)) {
        module++;
    }
    open_gate(&engine);
}

static void worker(void) {
    for (int i = 0; i < 2; i++) {
        hsm_worker_enter(&workers[0], 1);
        MM_CHECK(module >= 0);
        hsm_worker_leave(&workers[0]);
    }
}

static void reset(void) {
    reset_area(SLOTS);
    mm_name(&engine.gate, "gate");
    engine.area = &area;
    engine.module = &shared_module;
    shared_module.first = &engine;
    engine.worker_slots = WORKERS;
    atomic_store(&engine.gate, 0);
    module = 0;
    memset(clocks, 0, sizeof clocks);
    for (uint32_t i = 0; i < WORKERS; i++) {
        workers[i].engine = &engine;
        workers[i].record = &records[i];
        workers[i].index = i;
    }
}

const mm_model *mm_choose(int which) {
    static const mm_model model = {reset, {worker, closer}, NULL, 0};
    (void)which;
    return &model;
}
