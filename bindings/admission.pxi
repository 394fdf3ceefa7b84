# Part of _native.pyx: admission control. A request that cannot meet its deadline at the measured service rate is
# refused at once.

# A window of the measurement ends after WINDOW_ANSWERS or WINDOW_LONGEST_NS, but lasts at least WINDOW_SHORTEST_NS.
cdef uint64_t WINDOW_ANSWERS = 16
cdef uint64_t WINDOW_LONGEST_NS = 250000000
cdef uint64_t WINDOW_SHORTEST_NS = 5000000


@cython.final
cdef class AdmissionControl:
    """Measures how fast requests are answered while others wait. One thread at a time. Times are monotonic, in ns.

    A module that pauses must not count as slow, or the pause would cost further requests: a window counts at most twice
    the measured time, and a window without an answer does not count.
    """

    cdef readonly uint64_t each_ns
    """From one answer to the next, in ns; 0: not measured yet."""
    cdef public uint64_t servers
    """Requests that are served at the same time."""
    cdef uint64_t _begun
    cdef uint64_t _measured
    """The end of the last window in which requests always waited."""
    cdef uint64_t _answers
    cdef bint _loaded

    cpdef note(self, uint64_t now, uint64_t answers, bint loaded):
        """Count the `answers` between the last call and `now`. `loaded`: more requests wait."""
        cdef uint64_t took
        cdef uint64_t sample
        if self._begun == 0:
            self._start(now, loaded)
            return
        self._answers += answers
        self._loaded = self._loaded and loaded
        took = now - self._begun
        if took < WINDOW_SHORTEST_NS or self._answers == 0:
            return
        if self._answers < WINDOW_ANSWERS and took < WINDOW_LONGEST_NS:
            return
        sample = took // self._answers
        if self._loaded:
            self._measured = now
        if self._loaded and self.each_ns == 0:
            self.each_ns = sample
        elif sample < self.each_ns:  # a shorter time is true under any load
            self.each_ns -= (self.each_ns - sample) // 4
        elif self._loaded:
            self.each_ns += (min(sample, 2 * self.each_ns) - self.each_ns) // 4
        self._start(now, loaded)

    cdef void _start(self, uint64_t now, bint loaded) noexcept:
        self._begun = now
        self._answers = 0
        self._loaded = loaded

    def describe(self, uint64_t ahead, uint64_t limit_ns):
        """Why a request is refused, as a sentence."""
        return (f"{ahead} requests wait, which takes about {ahead * self.each_ns / NS:.3g} s; the timeout is "
                f"{limit_ns / NS:.3g} s")

    cpdef bint refuses(self, uint64_t ahead, uint64_t count, uint64_t limit_ns) except -1:
        """Whether to refuse `count` requests behind `ahead` others because the last one would be late.

        Only answers renew the measurement, so two rules keep requests flowing: nothing is refused while there is an
        idle server for each request, and while any server is idle a measurement older than `limit_ns` is forgotten."""
        if ahead + count <= self.servers or not self.is_late(ahead + count - 1, limit_ns):
            return False
        if ahead < self.servers and hsm_now_ns() - self._measured > limit_ns:
            self.each_ns = 0
            return False
        return True

    cpdef bint is_late(self, uint64_t ahead, uint64_t limit_ns) noexcept:
        """Whether a request behind `ahead` others would wait for more than four fifths of `limit_ns`. The last fifth is
        a reserve for the measurement's error."""
        return self.each_ns != 0 and (ahead + 1) * self.each_ns > limit_ns - limit_ns // 5
