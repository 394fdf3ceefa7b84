/* A histogram that one thread adds to and any thread reads; see hist.c for the buckets. */
#ifndef HSM_HIST_H
#define HSM_HIST_H

#include "base.h"

typedef struct hsm_histogram {
    _Atomic uint64_t sum_ns;
    _Atomic uint64_t counts[HSM_HISTOGRAM_BUCKETS];
} hsm_histogram;

/* One writer, so a plain load and store do; a locked instruction would cost more than the rest of this. */
static inline void hsm_add_relaxed(_Atomic uint64_t *counter, uint64_t amount) {
    atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + amount, memory_order_relaxed);
}

static inline void hsm_histogram_add(hsm_histogram *histogram, uint64_t ns) {
    hsm_add_relaxed(&histogram->counts[hsm_histogram_bucket(ns)], 1);
    hsm_add_relaxed(&histogram->sum_ns, ns);
}

/* Add what it holds to plain numbers. */
static inline void hsm_histogram_merge(const hsm_histogram *histogram, uint64_t counts[HSM_HISTOGRAM_BUCKETS],
                                       uint64_t *sum_ns) {
    *sum_ns += atomic_load_explicit(&histogram->sum_ns, memory_order_relaxed);
    for (uint32_t bucket = 0; bucket < HSM_HISTOGRAM_BUCKETS; bucket++) {
        counts[bucket] += atomic_load_explicit(&histogram->counts[bucket], memory_order_relaxed);
    }
}

#endif
