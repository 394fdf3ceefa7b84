/* The PIN is wiped when the engine stops: by the stopping thread, or by the one that holds the lock at that moment. */
#include <string.h>

#include "engine.h"
#include "explore.h"

static hsm_engine engine;
static uint8_t pin[1];

void hsm_wipe(void *memory, size_t size) {
    memset(memory, 0, size);
}

/* What hsm_engine_stop does when workers are left. */
static void stop(void) {
    atomic_store(&engine.closing, true);
    hsm_engine_wipe_pin(&engine);
}

static void worker(void) {
    hsm_engine_lock(&engine);
    MM_CHECK(atomic_load(&engine.closing) || pin[0] != 0);
    hsm_engine_unlock(&engine);
}

static void reset(void) {
    memset(&engine.control, 0, sizeof engine.control);
    mm_name(&engine.closing, "closing");
    mm_name(&engine.control, "control");
    atomic_store(&engine.closing, false);
    pin[0] = 1;
    engine.pin = pin;
    engine.pin_len = sizeof pin;
}

static void check(void) {
    MM_CHECK(pin[0] == 0);
}

const mm_model *mm_choose(int which) {
    static const mm_model model = {reset, {stop, worker, worker}, check, 0};
    (void)which;
    return &model;
}
