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

    def __cinit__(self):
        self.holder = self.reason = ""

    @property
    def is_over(self):
        """Whether nothing may be handed out now."""
        return self.over()

    cdef inline bint over(self) noexcept:
        cdef timespec now
        clock_gettime(CLOCK_BOOTTIME, &now)
        return <uint64_t>now.tv_sec * 1000000000 + <uint64_t>now.tv_nsec >= self.until

    def refusal(self, str member=None):
        """The NotHolder of a request of now."""
        error = error_of("NOT_HOLDER", member=member, detail=self.reason or "its renewal is late")
        error.holder, error.epoch = self.holder, self.epoch
        return error
