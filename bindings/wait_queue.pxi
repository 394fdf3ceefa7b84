# Part of _native.pyx: callers that wait for a slot.


@cython.final
cdef class WaitQueue:
    """Those who wait for a slot, in their order: _Waiting and Batch, whose rest counts as one entry."""

    cdef object _entries
    cdef Py_ssize_t messages
    """That have not been sent."""
    cdef uint64_t _latest
    cdef bint _ordered  # nobody's deadline is before that of one who came earlier

    def __cinit__(self):
        self._entries = deque()
        self._ordered = True

    cdef int push(self, object entry) except -1:
        cdef uint64_t deadline = _deadline_of(entry)
        if not self._entries:
            self._ordered = True
        elif deadline < self._latest:
            self._ordered = False
        self._latest = deadline
        self._entries.append(entry)
        self.messages += _unsent(entry)
        return 0

    cdef object pop(self):
        """The first one, who is to be served as far as possible."""
        cdef object first = self._entries.popleft()
        self.messages -= _unsent(first)
        return first

    cdef int put_back(self, object entry) except -1:
        """Whose batch could not be sent as a whole."""
        self._entries.appendleft(entry)
        self.messages += _unsent(entry)
        return 0

    cdef list take_overdue(self, uint64_t now):
        """Those whose deadline has passed. As a rule all callers have the same timeout, and nobody else is looked at."""
        cdef list overdue = []
        cdef list kept
        if self._ordered:
            while self._entries and _deadline_of(self._entries[0]) <= now:
                overdue.append(self.pop())
            return overdue
        kept = list(self._entries)
        self._entries.clear()
        self.messages = 0
        for entry in kept:
            if _deadline_of(entry) <= now:
                overdue.append(entry)
            else:
                self.push(entry)
        return overdue

    cdef uint64_t soonest(self) except? 0:
        """The next deadline; 0: nobody waits."""
        if not self._entries:
            return 0
        if self._ordered:
            return _deadline_of(self._entries[0])
        return min(_deadline_of(entry) for entry in self._entries)

    def __len__(self):
        return len(self._entries)


cdef inline uint64_t _deadline_of(object entry) except? 0:
    return (<Batch>entry).deadline if type(entry) is Batch else (<_Waiting>entry).deadline


cdef inline Py_ssize_t _unsent(object entry) except -1:
    return PyList_GET_SIZE((<Batch>entry).messages) - (<Batch>entry).next if type(entry) is Batch else 1


cdef int _refuse_entry(object entry, object error) except -1:
    """Refuse all of it that has not been sent."""
    cdef Batch batch
    if type(entry) is not Batch:
        return _refuse((<_Waiting>entry).waiter, 0, error)
    batch = <Batch>entry
    while batch.next < PyList_GET_SIZE(batch.messages):
        batch.fail(batch.next, error)
        batch.next += 1
    return 0
