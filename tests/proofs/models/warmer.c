/* The thread that keeps a processor awake: it ends when the engine stops, whatever a worker's note does meanwhile. */
#include "area_model.h"

/* For keep_warm. */
#include "warm.c"

static hsm_engine engine;

int prctl(int option, ...) {
    (void)option;
    return 0;
}

int sched_setscheduler(pid_t pid, int policy, const struct sched_param *parameters) {
    (void)pid, (void)policy, (void)parameters;
    return 0;
}

/* What hsm_engine_stop does. */
static void stop(void) {
    atomic_store(&shared.mode, HSM_MODE_STOPPING);
    hsm_warmer_stop(&engine);
}

static void warmer(void) {
    (void)keep_warm(&engine);
}

static void worker(void) {
    hsm_warmer_note(&engine, 0, 1);
}

static void reset(void) {
    reset_area(SLOTS);
    mm_name(&engine.warm, "warm");
    mm_name(&engine.last_answer_ns, "last_answer_ns");
    engine.area = &area;
    atomic_store(&engine.warm_ns, 3);
    engine.warmer = 1;
    atomic_store(&engine.warm, 0);
    atomic_store(&engine.last_answer_ns, 0);
}

const mm_model *mm_choose(int which) {
    static const mm_model model = {reset, {stop, warmer, worker}, NULL, 0};
    (void)which;
    return &model;
}
