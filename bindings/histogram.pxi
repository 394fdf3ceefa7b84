# Part of _native.pyx: times as histograms. native/src/hist.c has the buckets; nothing else computes them.

# hist.c's last bucket ends below 2^43 ns.
cdef uint32_t OCTAVES = 44


cdef list _buckets(const uint64_t *counts):
    """[(upper bound in ns, count)], ascending, without the empty buckets."""
    cdef uint32_t i
    return [(hsm_histogram_upper(i), counts[i]) for i in range(<uint32_t>HSM_HISTOGRAM_BUCKETS) if counts[i]]


cdef list _octaves(const uint64_t *counts):
    """The counts by the bit length of the time: item n counts times below 2^n ns and not below 2^(n-1) ns."""
    cdef uint64_t found[65]
    cdef uint32_t i
    memset(found, 0, sizeof(found))
    for i in range(<uint32_t>HSM_HISTOGRAM_BUCKETS):
        if counts[i]:
            found[64 - __builtin_clzll(hsm_histogram_upper(i)) if i else 0] += counts[i]
    return [found[i] for i in range(OCTAVES)]


@cython.final
cdef class Histogram:
    """Times in nanoseconds that Python measures, in the native core's buckets. One writer; readers in any thread."""

    cdef uint64_t _counts[HSM_HISTOGRAM_BUCKETS]
    cdef readonly uint64_t sum
    """Of all times, in ns."""

    def add(self, uint64_t ns):
        self.sum += ns
        self._counts[hsm_histogram_bucket(ns)] += 1

    def rows(self):
        """[(upper bound in ns, count)], ascending, without the empty buckets."""
        return _buckets(self._counts)

    def octaves(self):
        """The counts by octaves; see Engine.stats."""
        return _octaves(self._counts)


cdef dict _figures(const hsm_stats *native):
    """The part of Engine.stats that the native core counts."""
    cdef uint32_t i
    return {
        "signatures": native.signatures,
        "failures": native.failures,
        "expired": native.expired,
        "cancelled": native.cancelled,
        "wrong": native.wrong,
        "wakes": native.wakes,
        "recoveries": {_text(hsm_class_name(<hsm_class>i)): native.recoveries[i]
                       for i in range(<uint32_t>HSM_CLASS_COUNT) if native.recoveries[i]},
        "failed": {_text(hsm_class_name(<hsm_class>i)): native.failed[i] for i in range(1, <uint32_t>HSM_CLASS_COUNT)},
        "workers": native.workers,
        "busy": native.busy,
        "stuck": native.stuck,
        "down": native.down != 0,
        "queued": native.queued,
        "oldest_queued_ns": native.oldest_queued_ns,
        "oldest_call_ns": native.oldest_call_ns,
        "hsm_sum_ns": native.hsm_sum_ns,
        "queue_sum_ns": native.queue_sum_ns,
        "verify_sum_ns": native.verify_sum_ns,
        "hsm_ns": _buckets(native.hsm_ns),
        "queue_ns": _buckets(native.queue_ns),
        "verify_ns": _buckets(native.verify_ns),
        "hsm_octaves": _octaves(native.hsm_ns),
        "queue_octaves": _octaves(native.queue_ns),
        "verify_octaves": _octaves(native.verify_ns),
    }
