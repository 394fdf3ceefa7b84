# Part of _native.pyx: whether a request that comes now can be answered in time.

# A window of a measurement has so many answers, or lasts so long; and never less than this.
cdef uint64_t WINDOW_ANSWERS = 16
cdef uint64_t WINDOW_LONGEST_NS = 250000000
cdef uint64_t WINDOW_SHORTEST_NS = 5000000


@cython.final
cdef class AdmissionControl:
    """How fast requests are answered while others wait. One thread's.

    A module that stands still for a while is not taken for one that has become slow, so that its pause costs nobody an
    answer: a window counts at most twice what was known, and one without an answer not at all.
    """

    cdef readonly uint64_t each_ns
    """Nanoseconds from one answer to the next; 0: not known yet."""
    cdef public uint64_t servers
    """How many requests are served at the same time."""
    cdef uint64_t _begun
    cdef uint64_t _measured
    """When it was last seen how fast requests are answered while others wait."""
    cdef uint64_t _answers
    cdef bint _loaded

    cpdef note(self, uint64_t now, uint64_t answers, bint loaded):
        """There were so many answers until `now` (monotonic ns) since the last call. `loaded`: more requests wait."""
        cdef uint64_t took
        cdef uint64_t sample
        if self._begun == 0:
            self._start(now, loaded)
            return
        self._answers += answers
        self._loaded = self._loaded and loaded
        took = now - self._begun
        if took < WINDOW_SHORTEST_NS or self._answers == 0 or (self._answers < WINDOW_ANSWERS and took < WINDOW_LONGEST_NS):
            return
        sample = took // self._answers
        if self._loaded:
            self._measured = now
        if self._loaded and self.each_ns == 0:
            self.each_ns = sample
        elif sample < self.each_ns:  # true whether or not there was always something to do
            self.each_ns -= (self.each_ns - sample) // 4
        elif self._loaded:
            self.each_ns += (min(sample, 2 * self.each_ns) - self.each_ns) // 4
        self._start(now, loaded)

    cdef void _start(self, uint64_t now, bint loaded) noexcept:
        self._begun = now
        self._answers = 0
        self._loaded = loaded

    def describe(self, uint64_t ahead, uint64_t limit_ns):
        """Why a request is refused, in words."""
        return (f"{ahead} requests wait, which takes about {ahead * self.each_ns / NS:.3g} s; the timeout is "
                f"{limit_ns / NS:.3g} s")

    cpdef bint refuses(self, uint64_t ahead, uint64_t count, uint64_t limit_ns) except -1:
        """Whether `count` requests with `ahead` others before them are to be refused, since the last one would be late.

        Never while a server has nothing to do for each of them: without an answer there is no newer measurement. For the
        same reason a measurement older than `limit_ns` does not count while any server has nothing to do."""
        if ahead + count <= self.servers or not self.is_late(ahead + count - 1, limit_ns):
            return False
        if ahead < self.servers and hsm_now_ns() - self._measured > limit_ns:
            self.each_ns = 0
            return False
        return True

    cpdef bint is_late(self, uint64_t ahead, uint64_t limit_ns) noexcept:
        """Whether a request with so many others before it would wait for more than four fifths of `limit_ns`: the rest is
        for what the measurement cannot know."""
        return self.each_ns != 0 and (ahead + 1) * self.each_ns > limit_ns - limit_ns // 5
