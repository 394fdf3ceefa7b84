/* Keeps a processor awake while requests come one at a time, to a module that is fast.
 *
 * The hypervisor takes an idle virtual processor away, and waking it costs tens of microseconds: more than all else
 * that a lone request costs beside the HSM. Therefore a thread polls while at most one request is open and the last
 * answer is recent; under SCHED_IDLE, so that it runs only where no other thread wants to. Under load, and without
 * requests, it sleeps; and beside a module that takes so long that nobody would notice. */
#include "engine.h"

#include <sched.h>
#include <sys/prctl.h>
#include <unistd.h>

/* Of a call that takes longer, those tens of microseconds are a small part, and polling would cost more processor time
 * than all of the request. */
#define FAST_NS UINT64_C(300000)

bool hsm_warming_pays(uint64_t module_ns, uint32_t open) {
    return module_ns < FAST_NS && open <= 1;
}

/* Workers look at it while the engine starts and stops. */
static uint64_t warm_time(const hsm_engine *engine) {
    return atomic_load_explicit(&engine->warm_ns, memory_order_relaxed);
}

static uint32_t open_requests(const hsm_engine *engine) {
    return atomic_load_explicit(&engine->area->shared->in_flight, memory_order_relaxed);
}

/* The last answer was one for which warming pays, see hsm_warmer_wake. */
static bool wanted(hsm_engine *engine) {
    return hsm_now_ns() - atomic_load_explicit(&engine->last_answer_ns, memory_order_relaxed) < warm_time(engine) &&
           hsm_warming_pays(0, open_requests(engine));
}

static bool stopping(const hsm_engine *engine) {
    /* Sequentially consistent, like the stores of `warm`: else this thread could miss both, and sleep for good. */
    return atomic_load(&engine->area->shared->mode) == HSM_MODE_STOPPING;
}

static void *keep_warm(void *argument) {
    hsm_engine *engine = argument;
    const struct sched_param parameters = {0};
    (void)prctl(PR_SET_NAME, "hsm-warmer");
    if (sched_setscheduler(0, SCHED_IDLE, &parameters) != 0) {
        return NULL; /* at an ordinary priority it would be in the way */
    }
    while (!stopping(engine)) {
        hsm_futex_wait(&engine->warm, 0, 0, true);
        while (!stopping(engine) && wanted(engine)) {
            for (int i = 0; i < 64; i++) {
                hsm_relax();
            }
        }
        atomic_store(&engine->warm, 0);
    }
    return NULL;
}

void hsm_warmer_start(hsm_engine *engine, uint64_t warm_ns) {
    if (warm_ns == 0 || sysconf(_SC_NPROCESSORS_ONLN) < 2) {
        return;
    }
    bool started = hsm_thread_start(&engine->warmer, keep_warm, engine) == 0;
    atomic_store(&engine->warm_ns, started ? warm_ns : 0);
}

void hsm_warmer_stop(hsm_engine *engine) {
    if (warm_time(engine) == 0) {
        return;
    }
    atomic_store(&engine->warm, 1);
    hsm_futex_wake(&engine->warm, 1, true);
    hsm_thread_join(engine->warmer);
    atomic_store(&engine->warm_ns, 0);
}

void hsm_warmer_wake(hsm_engine *engine, uint64_t module_ns, uint64_t now) {
    if (!hsm_warming_pays(module_ns, open_requests(engine))) {
        return;
    }
    atomic_store_explicit(&engine->last_answer_ns, now, memory_order_relaxed);
    if (atomic_load_explicit(&engine->warm, memory_order_relaxed) == 0 && atomic_exchange(&engine->warm, 1) == 0) {
        hsm_futex_wake(&engine->warm, 1, true);
    }
}
