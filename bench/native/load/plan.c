/* Planned starts: the n-th one is where the integral of the rate reaches n (or the n-th of a Poisson process of that
 * rate). */
#include "load.h"

#include <math.h>

uint64_t load_random(uint64_t *state) {
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

/* Exponentially distributed with mean 1. */
static double pause_of(uint64_t *random) {
    double uniform = (double)(load_random(random) >> 11) * 0x1p-53;
    return -log1p(-uniform);
}

void load_plan_begin(load_plan *plan, const load_settings *settings) {
    *plan = (load_plan){.settings = settings, .random = settings->seed};
    plan->target = settings->poisson ? pause_of(&plan->random) : settings->phase;
}

bool load_plan_next(load_plan *plan, uint64_t *offset_ns) {
    const load_settings *settings = plan->settings;
    for (; plan->segment < settings->segment_count; plan->segment++) {
        const load_segment *segment = &settings->segments[plan->segment];
        double starts = (segment->from + segment->to) / 2.0 * segment->seconds;
        double n = plan->target - plan->before;
        if (n < starts) {
            /* from t + (to - from) t^2 / 2 seconds = n, solved in a form that holds for equal rates too. */
            double slope = (segment->to - segment->from) / segment->seconds;
            double root = sqrt(segment->from * segment->from + 2.0 * slope * n);
            double t = n > 0.0 ? 2.0 * n / (segment->from + root) : 0.0;
            *offset_ns = (uint64_t)((plan->began + t) * 1e9);
            plan->target += settings->poisson ? pause_of(&plan->random) : 1.0;
            return true;
        }
        plan->before += starts;
        plan->began += segment->seconds;
    }
    return false;
}
