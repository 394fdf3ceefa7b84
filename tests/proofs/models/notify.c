/* The client's wake: it sleeps on its two descriptors until both completions are taken, and none is left lying. Time
 * stands still but for the kernel's timer, so that a wake which is put off must come from it. */
#include "area_model.h"
#include "client.h"

/* For hsm_notify. */
#include "wake.c"

enum { URGENT, DEFERRED, MIXED, AWAKE };
enum { EVENT, TIMER };

static int variant;
static hsm_client client_memory;
static uint8_t use[SLOTS];
static _Atomic uint64_t time_ns, timer_at_ns;
static _Atomic uint32_t done;

uint64_t hsm_now_ns(void) {
    return atomic_fetch_add_explicit(&time_ns, 0, memory_order_relaxed); /* never an old value */
}

uint32_t hsm_fork_generation(void) {
    return 0;
}

int timerfd_settime(int fd, int flags, const struct itimerspec *when, struct itimerspec *before) {
    (void)flags, (void)before;
    uint64_t pause = (uint64_t)when->it_value.tv_nsec;
    hsm_event_clear(fd); /* whatever it was set to before has not come yet */
    (void)atomic_exchange(&timer_at_ns, pause != 0 ? hsm_now_ns() + pause : 0);
    return 0;
}

static void kernel(void) {
    for (;;) {
        uint64_t at = atomic_load(&timer_at_ns);
        if (at != 0 && atomic_compare_exchange_strong(&timer_at_ns, &at, 0)) {
            uint64_t now = hsm_now_ns();
            (void)atomic_fetch_add(&time_ns, at > now ? at - now : 0);
            hsm_event_set(TIMER);
        } else if (atomic_load_explicit(&done, memory_order_relaxed) != 0) {
            return;
        } else {
            mm_pause();
        }
    }
}

static void client(void) {
    hsm_completion completion;
    uint32_t taken = 0;
    while (taken < SLOTS) {
        mm_wait_readable(EVENT, TIMER);
        hsm_client_wake_clear(&client_memory);
        while (hsm_client_next(&client_memory, &completion) != 0) {
            taken++;
        }
    }
    atomic_store_explicit(&done, 1, memory_order_relaxed);
}

static void worker(void) {
    uint32_t index = (uint32_t)mm_self() - 2;
    uint64_t now = hsm_now_ns();
    bool urgent = variant == URGENT || variant == AWAKE || (variant == MIXED && index == 0);
    hsm_area_complete(&area, index);
    hsm_notify(&area, EVENT, TIMER, urgent, now, &records[index]);
}

static void reset(void) {
    reset_area(SLOTS);
    area.coalesce_ns = 1000;
    mm_name(&time_ns, "the time");
    mm_name(&timer_at_ns, "the timer");
    atomic_store(&time_ns, 1000000);
    atomic_store(&timer_at_ns, 0);
    atomic_store(&done, 0);
    memset(use, HSM_USE_TAKEN, sizeof use);
    memset(&client_memory, 0, sizeof client_memory);
    client_memory.area = &area;
    client_memory.use = use;
    client_memory.event_fd = EVENT;
    client_memory.timer_fd = TIMER;
    if (variant == AWAKE) { /* by a completion that it took before the wake */
        atomic_store(&shared.notify, HSM_NOTIFY_FIRED);
        hsm_event_set(EVENT);
    }
}

const mm_model *mm_choose(int which) {
    static const mm_model model = {reset, {client, kernel, worker, worker}, NULL, 3};
    variant = which;
    return &model;
}
