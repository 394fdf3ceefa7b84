# Part of _native.pyx: requests that hold no slot.


@cython.final
@cython.freelist(64)
cdef class Pending:
    """A request that holds no slot: it waits for a free one, or follows an identical request that is in flight."""

    cdef object waiter
    cdef Py_ssize_t position
    cdef bytes message
    cdef bytes extra
    cdef uint32_t key
    cdef uint64_t deadline


cdef Pending _pending(object waiter, Py_ssize_t position, bytes message, uint32_t key, uint64_t deadline, bytes extra):
    cdef Pending made = Pending.__new__(Pending)
    made.waiter = waiter
    made.position = position
    made.message = message
    made.key = key
    made.deadline = deadline
    made.extra = extra
    return made


@cython.final
cdef class WaitQueue:
    """Requests that wait for a slot, first come, first served. An entry is a Pending, or a Batch: those of its messages
    that are not sent yet."""

    cdef object _entries
    cdef Py_ssize_t messages
    """Messages that are not sent yet."""
    cdef uint64_t _latest
    cdef bint _ordered  # the deadlines ascend

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
        """Take the first entry."""
        cdef object first = self._entries.popleft()
        self.messages -= _unsent(first)
        return first

    cdef int put_back(self, object entry) except -1:
        """Make an entry the first one again: a batch of which not all could be sent."""
        self._entries.appendleft(entry)
        self.messages += _unsent(entry)
        return 0

    cdef list take_overdue(self, uint64_t now):
        """Take the entries whose deadline has passed. As a rule all callers have the same timeout: then the deadlines
        ascend, and only overdue entries are looked at."""
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
        """The next deadline; 0: the queue is empty."""
        if not self._entries:
            return 0
        if self._ordered:
            return _deadline_of(self._entries[0])
        return min(_deadline_of(entry) for entry in self._entries)

    def __len__(self):
        return len(self._entries)


cdef inline uint64_t _deadline_of(object entry) except? 0:
    return (<Batch>entry).deadline if type(entry) is Batch else (<Pending>entry).deadline


cdef inline Py_ssize_t _unsent(object entry) except -1:
    return PyList_GET_SIZE((<Batch>entry).messages) - (<Batch>entry).next if type(entry) is Batch else 1


cdef int _refuse_entry(object entry, object error) except -1:
    """Give the error to every message of the entry that is not sent yet."""
    cdef Batch batch
    if type(entry) is not Batch:
        return _refuse((<Pending>entry).waiter, (<Pending>entry).position, error)
    batch = <Batch>entry
    while batch.next < PyList_GET_SIZE(batch.messages):
        batch.fail(batch.next, error)
        batch.next += 1
    return 0
