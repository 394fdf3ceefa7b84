# Part of _native.pyx: the audit records of one engine's answers, and the answers that wait until those are durable.
# journal.pxi is the file that the records go into.


cdef struct _HeldAnswer:
    uint64_t seq
    uint64_t deadline
    PyObject *waiter  # a strong reference; NULL: it has been answered
    PyObject *signature  # a strong reference
    Py_ssize_t position
    bint cached


cdef inline void _describe(hsm_journal_sign *sign, const hsm_completion *done) noexcept:
    memset(sign, 0, sizeof(hsm_journal_sign))
    sign.latency_ns = done.queue_ns + done.hsm_ns
    sign.message_len = done.message_len
    sign.digest = done.digest if done.hsm_ns else NULL


@cython.final
cdef class DurableAnswers:
    """Records each answer of an engine, and holds a signature back until its record is durable.

    Requests owns it and lives in the same event loop. Where a method takes `extra`, b"" means: write no record.
    """

    cdef Journal journal
    cdef object _member
    cdef dict _tails  # by key: the part of its records that stays the same
    # A queue in the order of the records, in one block of memory.
    cdef _HeldAnswer *_held
    cdef size_t _capacity  # a power of two, or 0
    cdef size_t _head
    cdef size_t _tail

    def __cinit__(self, Journal journal not None, member):
        self.journal = journal
        self._member = member
        self._tails = {}

    def __dealloc__(self):
        cdef _HeldAnswer *answer
        while self._head != self._tail:
            answer = self._at(self._head)
            Py_XDECREF(answer.waiter)
            Py_XDECREF(answer.signature)
            self._head += 1
        PyMem_Free(self._held)

    cdef inline _HeldAnswer *_at(self, size_t place):
        return &self._held[place & (self._capacity - 1)]

    cdef inline bint idle(self):
        """Whether no answer is held."""
        return self._head == self._tail

    cdef int set_tail(self, uint32_t key, bytes tail) except -1:
        self._tails[key] = tail
        # The key that had this place in the key table two keys ago has no request left.
        if key >= 2 * HSM_MAX_KEYS:
            self._tails.pop(key - 2 * HSM_MAX_KEYS, None)
        return 0

    cdef int require_writable(self) except -1:
        """Raise the journal's error if a record could not be kept at present and `fail_open` is off."""
        refusal = self.journal._unwritable()
        if refusal is not None:
            raise refusal
        return 0

    cdef object refusal_of(self, entry):
        """The journal's error if no record of this Batch or Pending could be kept at present; else None."""
        cdef bytes extra = (<Batch>entry).extra if type(entry) is Batch else (<Pending>entry).extra
        return self.journal._unwritable() if extra != b"" else None

    cdef int completed(self, const hsm_completion *done, PyObject *waiter, Py_ssize_t position, bytes signature,
                       uint64_t deadline, bytes extra) except -1:
        """Record a completion and hold the signature for its waiter, if there is one."""
        cdef hsm_journal_sign sign
        cdef uint64_t seq
        cdef bint claimed = waiter != NULL and not _gone(<object>waiter)
        if extra == b"":
            return _answer(<object>waiter, position, signature, 0, False) if waiter != NULL else 0
        _describe(&sign, done)
        sign.signature = done.signature
        sign.signature_len = done.signature_len
        sign.result = b"ok" if claimed else b"unclaimed"
        seq = self._put(&sign, done.key, extra)
        return self._hold(seq, <object>waiter, position, signature, deadline, False) if claimed else 0

    cdef int failed(self, const hsm_completion *done, bytes extra) except -1:
        """Record a completion that is an error."""
        cdef hsm_journal_sign sign
        if extra == b"":
            return 0
        _describe(&sign, done)
        sign.result = b"error"
        sign.error = hsm_status_name(done.status)
        self._put(&sign, done.key, extra)
        return 0

    cdef int dropped(self, uint32_t key, hsm_status status, bytes extra) except -1:
        """Record a request that was answered before its completion. The completion gets a record of its own."""
        cdef hsm_journal_sign sign
        if extra == b"":
            return 0
        memset(&sign, 0, sizeof(sign))
        sign.result = b"error"
        sign.error = hsm_status_name(status)
        self._put(&sign, key, extra)
        return 0

    cdef int shared(self, object waiter, Py_ssize_t position, bytes signature, uint32_t key, uint64_t deadline,
                    bytes message, bytes extra) except -1:
        """Record and hold a signature that was made for another request. `extra` is not b""."""
        cdef hsm_journal_sign sign
        memset(&sign, 0, sizeof(sign))
        sign.message_len = <uint64_t>PyBytes_GET_SIZE(message)
        sign.message = <const uint8_t *>PyBytes_AS_STRING(message)
        sign.signature = <const uint8_t *>PyBytes_AS_STRING(signature)
        sign.signature_len = <uint32_t>PyBytes_GET_SIZE(signature)
        sign.cached = 1
        sign.result = b"ok"
        return self._hold(self._put(&sign, key, extra), waiter, position, signature, deadline, True)

    cdef uint64_t _put(self, hsm_journal_sign *sign, uint32_t key, bytes extra) except? 0:
        """Append a record. Returns its number; 0 if it is dropped because the journal is full, with `fail_open`."""
        cdef bytes tail = self._tails.get(key, b"}")
        cdef uint64_t seq
        if self.journal.fail_open and self.journal._full():
            self.journal.dropped += 1
            return 0
        if extra is not None:
            tail = extra + tail
        sign.time_ns = self.journal._stamp()
        seq = hsm_journal_put_sign(self.journal._journal, sign, PyBytes_AS_STRING(tail), <size_t>PyBytes_GET_SIZE(tail))
        if seq == 0:
            raise MemoryError()
        return seq

    cdef bint flush(self) except -1:
        """Start writing the records. Returns whether that gave answers: where they do not wait for the disk."""
        hsm_journal_flush(self.journal._journal)
        if self.journal._hands_out():
            self.release(<uint64_t>-1)
            return True
        return False


    cdef int _hold(self, uint64_t seq, object waiter, Py_ssize_t position, bytes signature, uint64_t deadline,
                   bint cached) except -1:
        cdef _HeldAnswer *answer
        if self._tail - self._head == self._capacity:
            self._grow()
        answer = self._at(self._tail)
        self._tail += 1
        answer.seq, answer.deadline, answer.position, answer.cached = seq, deadline, position, cached
        Py_INCREF(waiter)
        Py_INCREF(signature)
        answer.waiter = <PyObject *>waiter
        answer.signature = <PyObject *>signature
        return 0

    cdef int _grow(self) except -1:
        cdef size_t count = self._tail - self._head
        cdef size_t capacity = self._capacity * 2 if self._capacity else 256
        cdef size_t i
        cdef _HeldAnswer *moved = <_HeldAnswer *>PyMem_Calloc(capacity, sizeof(_HeldAnswer))
        if moved == NULL:
            raise MemoryError()
        for i in range(count):
            moved[i] = self._at(self._head + i)[0]
        PyMem_Free(self._held)
        self._held, self._capacity, self._head, self._tail = moved, capacity, 0, count
        return 0

    cdef int release(self, uint64_t kept) except -1:
        """Give the answers whose records, up to number `kept`, are durable."""
        cdef _HeldAnswer answer
        while self._head != self._tail and self._at(self._head).seq <= kept:
            answer = self._at(self._head)[0]
            self._head += 1
            if answer.waiter != NULL:
                _answer(<object>answer.waiter, answer.position, <bytes>answer.signature, answer.seq, answer.cached)
                Py_XDECREF(answer.waiter)
            Py_XDECREF(answer.signature)
        return 0

    cdef int refuse(self, int failure) except -1:
        """The journal is failing (`failure`: an errno), or is closed (0): fail every held answer."""
        cdef _HeldAnswer answer
        while self._head != self._tail:
            answer = self._at(self._head)[0]
            self._head += 1
            if answer.waiter != NULL:
                _refuse(<object>answer.waiter, answer.position, self.journal._refusal(failure))
                Py_XDECREF(answer.waiter)
            Py_XDECREF(answer.signature)
        return 0

    cdef uint64_t sweep(self, uint64_t now, uint64_t soonest) except? 0:
        """Fail the held answers whose deadline has passed. Returns the earlier of the next deadline and `soonest`."""
        cdef size_t place = self._head
        cdef _HeldAnswer *answer
        while place != self._tail:
            answer = self._at(place)
            place += 1
            if answer.waiter == NULL:
                continue
            if answer.deadline <= now:
                waiter = <object>answer.waiter
                Py_XDECREF(answer.waiter)
                answer.waiter = NULL
                _refuse(waiter, answer.position, _exception(HSM_DEADLINE_EXCEEDED, self._member))
            else:
                soonest = _earlier(answer.deadline, soonest)
        return soonest
