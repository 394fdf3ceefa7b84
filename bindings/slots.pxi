# Part of _native.pyx: the slots of the rings as the event loop sees them: which waiter and which followers each has.


cdef struct _Slot:
    PyObject *waiter  # a strong reference; NULL: no request, or its waiter is answered
    PyObject *extra  # a strong reference or NULL: what the caller adds to the record
    PyObject *followers  # a strong reference to a list of Pending: identical requests; NULL: none
    Py_ssize_t position  # of the waiter, in its batch
    uint64_t entry  # the cache entry that the request leads; 0: none
    uint64_t deadline
    uint32_t key


@cython.final
cdef class SlotTable:
    """The slots by number, and how many of them are in use."""

    cdef _Slot *_slots
    cdef uint32_t count
    cdef uint32_t in_flight
    """Slots that a request holds."""
    cdef uint32_t owed
    """Slots whose waiter has no answer yet."""
    cdef uint32_t followed
    """Slots with followers."""

    def __cinit__(self, uint32_t count):
        self._slots = <_Slot *>PyMem_Calloc(count, sizeof(_Slot))
        if self._slots == NULL:
            raise MemoryError()
        self.count = count

    def __dealloc__(self):
        cdef uint32_t i
        for i in range(self.count):
            Py_XDECREF(self._slots[i].waiter)
            Py_XDECREF(self._slots[i].extra)
            Py_XDECREF(self._slots[i].followers)
        PyMem_Free(self._slots)

    cdef inline _Slot *at(self, uint32_t i) noexcept:
        return &self._slots[i]

    cdef inline int fill(self, uint32_t i, object waiter, Py_ssize_t position, uint32_t key, uint64_t deadline,
                         uint64_t entry, bytes extra) except -1:
        """A request takes the slot. Its followers, if any, come later."""
        cdef _Slot *slot = &self._slots[i]
        Py_INCREF(waiter)
        slot.waiter = <PyObject *>waiter
        slot.position = position
        slot.entry = entry
        slot.deadline = deadline
        slot.key = key
        if extra is not None:
            Py_INCREF(extra)
            slot.extra = <PyObject *>extra
        self.in_flight += 1
        self.owed += 1
        return 0

    cdef inline PyObject *complete(self, _Slot *slot) noexcept:
        """The slot's request has ended. Returns its waiter, whose reference the caller then has, or NULL."""
        cdef PyObject *waiter = slot.waiter
        slot.waiter = NULL
        self.in_flight -= 1
        self.owed -= waiter != NULL
        return waiter

    cdef object take_waiter(self, _Slot *slot):
        """The waiter, to be answered before its request has ended."""
        cdef object waiter = <object>slot.waiter
        Py_XDECREF(slot.waiter)
        slot.waiter = NULL
        self.owed -= 1
        return waiter

    cdef inline bytes take_extra(self, _Slot *slot):
        cdef bytes extra
        if slot.extra == NULL:
            return None
        extra = <bytes>slot.extra
        Py_XDECREF(slot.extra)
        slot.extra = NULL
        return extra

    cdef int follow(self, _Slot *slot, Pending request) except -1:
        cdef list followers
        if slot.followers == NULL:
            followers = []
            Py_INCREF(followers)
            slot.followers = <PyObject *>followers
            self.followed += 1
        (<list>slot.followers).append(request)
        return 0

    cdef list take_followers(self, _Slot *slot):
        cdef list followers
        if slot.followers == NULL:
            return []
        followers = <list>slot.followers
        Py_XDECREF(slot.followers)
        slot.followers = NULL
        self.followed -= 1
        return followers

    cdef uint64_t sweep_followers(self, _Slot *slot, uint64_t now, uint64_t soonest, object member) except? 0:
        """Fail the followers whose deadline has passed. Returns the earlier of the next deadline and `soonest`."""
        cdef Pending follower
        for follower in self.take_followers(slot):
            if follower.deadline <= now:
                _refuse(follower.waiter, follower.position, _exception(HSM_DEADLINE_EXCEEDED, member))
            else:
                soonest = _earlier(follower.deadline, soonest)
                self.follow(slot, follower)
        return soonest
