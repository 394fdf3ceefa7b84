/* The buckets, for every time and every number of a bucket. */
#include "hist.h"

uint64_t nondet_u64(void);
uint32_t nondet_u32(void);

#define LAST (HSM_HISTOGRAM_BUCKETS - 1U)

void prove_bucket(void) {
    uint64_t ns = nondet_u64();
    uint32_t bucket = hsm_histogram_bucket(ns);
    __CPROVER_assert(bucket < HSM_HISTOGRAM_BUCKETS, "it is one of the buckets");
    uint64_t upper = hsm_histogram_upper(bucket);
    __CPROVER_assert(bucket == LAST || upper >= ns, "a bucket's upper limit is not below what is in it");
    __CPROVER_assert(bucket == LAST || upper - ns <= ns / 16, "nor more than 1/16 above");
    __CPROVER_assert(bucket == 0 || ns > hsm_histogram_upper(bucket - 1), "a time is above the bucket before");
    uint64_t more = nondet_u64();
    __CPROVER_assert(more < ns || hsm_histogram_bucket(more) >= bucket, "a longer time has no earlier bucket");
}

void prove_upper(void) {
    uint32_t bucket = nondet_u32();
    uint64_t upper = hsm_histogram_upper(bucket);
    __CPROVER_assert(hsm_histogram_bucket(upper) == (bucket < LAST ? bucket : LAST), "it lies in its bucket");
}
