/* Log-linear buckets: the four bits below the leading one choose one of 16 steps in an octave, so that a bucket is at
 * most 1/16 wide at any magnitude. Values below 16 ns have a bucket each. */
#include "hist.h"

#define STEP_BITS 4U
#define STEPS (1U << STEP_BITS)

uint32_t hsm_histogram_bucket(uint64_t ns) {
    if (ns < STEPS) {
        return (uint32_t)ns;
    }
    uint32_t octave = 63U - (uint32_t)__builtin_clzll(ns);
    uint32_t step = (uint32_t)(ns >> (octave - STEP_BITS)) & (STEPS - 1U);
    uint32_t bucket = (octave - STEP_BITS + 1U) * STEPS + step;
    return bucket < HSM_HISTOGRAM_BUCKETS ? bucket : HSM_HISTOGRAM_BUCKETS - 1U;
}

uint64_t hsm_histogram_upper(uint32_t bucket) {
    if (bucket < STEPS) {
        return bucket;
    }
    if (bucket >= HSM_HISTOGRAM_BUCKETS) {
        bucket = HSM_HISTOGRAM_BUCKETS - 1U;
    }
    uint32_t shift = bucket / STEPS - 1U;
    uint64_t lowest = (uint64_t)(STEPS + bucket % STEPS) << shift;
    return lowest + ((uint64_t)1 << shift) - 1U;
}
