# Part of _native.pyx: the lease of a fleet's holder, under which answers are handed out. core/hsmcore/fleet/ renews it.


@cython.final
cdef class Lease:
    """Until when this host may hand out signatures. The event loop sets it; a clock that goes on while the process is
    stopped, and while the machine sleeps, ends it."""

    cdef public uint64_t until
    """In ns of CLOCK_BOOTTIME; 0: it is over."""
    cdef public str holder
    """Who holds the epoch, as far as is known; "": nobody."""
    cdef public uint64_t epoch
    cdef public str reason
    """Why it is over; "": it was not renewed."""
    cdef object _wake  # None: an answer awaits nothing
    cdef list _tables  # of Requests, that answer under it
    cdef readonly uint64_t round
    """The number of the last round that has begun."""
    cdef uint64_t _next  # answers that await the next round
    cdef bint _told, _hurries  # what `wake` was told of the next round

    def __cinit__(self):
        self.holder = self.reason = ""
        self._tables = []

    def confirm_each(self, wake):
        """From now on each answer awaits the end of a round that begins after it is there. `wake(hurries)` is called,
        in the loop, when one does; and with True once no more are being signed than await the next round."""
        self._wake = wake

    @property
    def awaited(self):
        """Count of answers that await the end of a round."""
        return sum([(<Requests>table)._counts().awaiting for table in self._tables])

    def begin_round(self):
        """Begin a round. Returns its number."""
        self.round += 1
        self._next, self._told, self._hurries = 0, False, False
        return self.round

    def end_round(self, uint64_t round):
        """Hand out what was there when a round began, or refuse it if the lease is over."""
        for table in list(self._tables):
            hsm_requests_confirm((<Requests>table)._table, round)
            (<Requests>table)._take()

    cdef inline bint confirms(self) noexcept:
        return self._wake is not None

    cdef bint keeps(self, Requests requests, const hsm_answer *answer) except -1:
        """Whether an answer awaits a round from now on. It does once, after its record is durable."""
        cdef object waiter = requests._waiters.waiters[<uint32_t>answer.request]
        if self._wake is None or answer.status != HSM_OK or answer.round or not answer.claimed:
            return False
        if answer.tag & (ROUTED | OWN) == OWN or waiter is None or _gone(waiter):
            return False
        hsm_requests_hold(requests._table, answer.request, 0, self.round + 1)
        self._next += 1
        return True

    cdef int look(self, hsm_requests_counts counts) except -1:
        """Call `wake` if it is to be: after answers were taken, of which `counts` says what is left."""
        cdef bint hurries = counts.owed + counts.queued + counts.held <= self._next
        if self._next and (not self._told or (hurries and not self._hurries)):
            self._told, self._hurries = True, hurries
            self._wake(hurries)
        return 0

    @property
    def is_over(self):
        """Whether nothing may be handed out now."""
        return self.over()

    cdef inline bint over(self) noexcept:
        cdef timespec now
        clock_gettime(CLOCK_BOOTTIME, &now)
        return <uint64_t>now.tv_sec * 1000000000 + <uint64_t>now.tv_nsec >= self.until

    cdef inline bint is_late(self, uint64_t tag) noexcept:
        """Whether nothing may be handed out now of a request that is the caller's."""
        return tag & (ROUTED | OWN) != OWN and self.over()

    def refusal(self, str member=None):
        """The NotHolder of a request of now."""
        error = error_of("NOT_HOLDER", member=member, detail=self.reason or "its renewal is late")
        error.holder, error.epoch = self.holder, self.epoch
        return error
