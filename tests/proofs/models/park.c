/* Sleeping workers: no request lies in the ring while all of them sleep, whether it comes before, while or after they
 * go to sleep; nor does one sleep on when the engine stops or a restarted host may claim. */
#include "area_model.h"
#include "client.h"

/* For next_request. */
#include "worker.c"

#define BOUND 2U

enum { ONE, STOP, RESTART, SPINNING, ONE_BY_ONE, TOGETHER, QUARANTINE, LEFT };

static int variant;
static hsm_client client_memory;
static hsm_engine engine;
static hsm_worker workers[WORKERS];
static hsm_quirks quirks;
static _Atomic uint32_t served;

/* What hsm_engine_stop does, and hsm_host_restart. */
static void set_mode(enum hsm_mode mode) {
    atomic_store(&shared.mode, mode);
    hsm_area_unpark_all(&area);
}

static void submit(uint32_t count) {
    for (uint32_t i = 0; i < count; i++) {
        hsm_area_publish(&area, client_memory.tail, (uint32_t)client_memory.tail % SLOTS);
        client_memory.tail++;
    }
    hsm_client_publish(&client_memory);
}

static void submit_one(void) {
    submit(1);
}

static void submit_one_by_one(void) {
    submit(1);
    submit(1);
}

static void submit_two(void) {
    submit(2);
}

static void stop(void) {
    set_mode(HSM_MODE_STOPPING);
}

static void restart(void) {
    set_mode(HSM_MODE_RUN);
}

/* What hsm_engine_supervise does to a worker whose call ends at that moment. */
static void supervise(void) {
    atomic_store(&records[0].quarantined, 1);
}

static void serve_one(void) {
    uint32_t slot;
    bool waited;
    MM_CHECK(next_request(&workers[mm_self() - 1], &slot, &waited) == (variant != STOP));
}

/* The last request ends the engine. */
static void serve_two(void) {
    uint32_t slot;
    bool waited;
    while (next_request(&workers[mm_self() - 1], &slot, &waited)) {
        if (atomic_fetch_add_explicit(&served, 1, memory_order_relaxed) == (variant == QUARANTINE ? 0 : 1)) {
            set_mode(HSM_MODE_STOPPING);
        }
    }
}

static void reset(void) {
    reset_area(SLOTS);
    mm_name(&served, "served");
    atomic_store(&served, 0);
    atomic_store(&shared.mode, variant == RESTART ? HSM_MODE_PAUSED : HSM_MODE_RUN);
    memset(&client_memory, 0, sizeof client_memory);
    client_memory.area = &area;
    client_memory.workers = variant == LEFT ? 16 : 0; /* a request is left to them while none sleeps */
    atomic_store(&shared.request_tail, variant == RESTART ? 1 : 0);
    engine.area = &area;
    engine.quirks = &quirks;
    engine.spin_ns = variant == SPINNING ? 1 : 0;
    for (uint32_t i = 0; i < WORKERS; i++) {
        workers[i] = (hsm_worker){.engine = &engine, .record = &records[i], .index = i};
    }
}

const mm_model *mm_choose(int which) {
    static const mm_model models[] = {
        [ONE] = {reset, {submit_one, serve_one}, NULL, 0},
        [STOP] = {reset, {stop, serve_one}, NULL, 0},
        [RESTART] = {reset, {restart, serve_one}, NULL, 0},
        [SPINNING] = {reset, {submit_one, serve_one}, NULL, 0},
        [ONE_BY_ONE] = {reset, {submit_one_by_one, serve_two, serve_two}, NULL, BOUND},
        [TOGETHER] = {reset, {submit_two, serve_two, serve_two}, NULL, BOUND},
        [LEFT] = {reset, {submit_one, serve_one}, NULL, 0},
        [QUARANTINE] = {reset, {submit_one, serve_two, serve_two, supervise}, NULL, BOUND},
    };
    variant = which;
    return &models[which];
}
