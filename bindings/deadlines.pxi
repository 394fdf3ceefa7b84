# Part of _native.pyx: the timer for deadlines. They are monotonic times in ns; 0: none.


@cython.final
cdef class DeadlineTimer:
    """Calls `sweep()` in the event loop once the earliest deadline has passed, at most SWEEP_INTERVAL late."""

    cdef object _loop
    cdef object _sweep
    cdef object _timer
    cdef uint64_t _at  # the deadline that the timer is set for; 0: it is not set

    def __cinit__(self, loop, sweep):
        self._loop, self._sweep = loop, sweep

    cdef inline bint covers(self, uint64_t deadline) noexcept:
        """Whether the timer is set for this deadline or an earlier one."""
        return 0 < self._at <= deadline

    cdef inline int watch(self, uint64_t deadline) except -1:
        """Call `sweep` when this deadline has passed. `sweep` must watch what is still ahead."""
        return 0 if deadline == 0 or 0 < self._at <= deadline else self._set(deadline)

    cdef int _set(self, uint64_t deadline) except -1:
        cdef uint64_t now = hsm_now_ns()
        self.cancel()
        self._at = deadline
        self._timer = self._loop.call_later(
            max(SWEEP_INTERVAL, (deadline - now) / NS) if deadline > now else SWEEP_INTERVAL, self._ring)
        return 0

    def _ring(self):
        self._timer = None
        self._at = 0
        self._sweep()

    cdef int cancel(self) except -1:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._at = 0
        return 0
