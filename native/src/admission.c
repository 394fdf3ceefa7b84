/* The measurement behind admission control, in windows. */
#include "admission.h"

#include <string.h>

/* A window ends after WINDOW_ANSWERS or WINDOW_LONGEST_NS, but lasts at least WINDOW_SHORTEST_NS. */
#define WINDOW_ANSWERS 16U
#define WINDOW_LONGEST_NS UINT64_C(250000000)
#define WINDOW_SHORTEST_NS UINT64_C(5000000)

static void begin(hsm_admission *admission, uint64_t now, bool loaded) {
    admission->begun_ns = now;
    admission->answers = 0;
    admission->loaded = loaded;
}

/* 0 until every window is known: a first one that holds an outage would refuse what a healthy module serves. */
static uint64_t fastest(const hsm_admission *admission) {
    uint64_t least = admission->windows[0];
    for (uint32_t i = 1; i < HSM_ADMISSION_WINDOWS; i++) {
        least = admission->windows[i] < least ? admission->windows[i] : least;
    }
    return least;
}

void hsm_admission_note(hsm_admission *admission, uint64_t now, uint64_t answers, bool loaded) {
    if (admission->begun_ns == 0) {
        begin(admission, now, loaded);
        return;
    }
    admission->answers += answers;
    admission->loaded = admission->loaded && loaded;
    uint64_t took = now - admission->begun_ns;
    if (took < WINDOW_SHORTEST_NS || admission->answers == 0 ||
        (admission->answers < WINDOW_ANSWERS && took < WINDOW_LONGEST_NS)) {
        return;
    }
    uint64_t sample = took / admission->answers;
    if (admission->loaded) {
        admission->measured_ns = now;
    }
    if (admission->loaded || sample < admission->each_ns) { /* a shorter time is true under any load */
        admission->windows[admission->next++ % HSM_ADMISSION_WINDOWS] = sample;
        admission->each_ns = fastest(admission);
    }
    begin(admission, now, loaded);
}

bool hsm_admission_late(const hsm_admission *admission, uint64_t ahead, uint64_t limit_ns) {
    return admission->each_ns != 0 && (ahead + 1U) * admission->each_ns > limit_ns - limit_ns / 5U;
}

bool hsm_admission_refuses(hsm_admission *admission, uint64_t ahead, uint64_t count, uint64_t limit_ns) {
    if (ahead + count <= admission->servers || !hsm_admission_late(admission, ahead + count - 1U, limit_ns)) {
        return false;
    }
    if (ahead < admission->servers && hsm_now_ns() - admission->measured_ns > limit_ns) {
        admission->each_ns = 0;
        memset(admission->windows, 0, sizeof admission->windows);
        return false;
    }
    return true;
}
