# Part of _native.pyx: the half of an engine that has its signatures recorded.


cdef class Recorder:
    """What is given out waits here until its record is kept. A base of Engine; see Journal."""

    cdef Journal _journal  # None: nothing is recorded
    cdef dict _tails  # by key: the part of its records that stays the same
    cdef dict _extras  # by slot: what the caller adds to the record; b"": there is to be none
    cdef _Held _held

    def __cinit__(self, **_):
        self._tails = {}
        self._extras = {}
        self._held = _Held()

    cdef int _watch(self, uint64_t deadline) except -1:
        """For Engine: see to it that `_sweep_held` is called when this time has come."""
        return 0

    cdef object _late(self):
        """For Engine: the error for somebody whose deadline passed while his record was on its way to the disk."""
        return None

    cdef int _check_idle(self) except -1:
        """For Engine: somebody has got his answer."""
        return 0

    def record_in(self, Journal journal):
        """From now on every signature is recorded, and handed out once its record is kept. In the event loop, after
        `attach`; the engine must have been made with `digests`."""
        self._journal = journal
        journal._engines.append(self)

    def set_tail(self, uint32_t key, bytes tail):
        """What the records of this key say beside each signature: the rest of a JSON object, from a comma to the closing
        brace."""
        self._tails[key] = tail
        if key >= 2 * HSM_MAX_KEYS:  # of two keys before it in its place nobody waits for an answer any more
            self._tails.pop(key - 2 * HSM_MAX_KEYS, None)

    cdef int _require_record(self, bytes extra) except -1:
        """Raise if what is asked for could not be recorded now."""
        cdef int failure
        if self._journal is not None and extra != b"" and not self._journal.fail_open:
            failure = hsm_journal_failure(self._journal._journal)
            if failure:
                raise self._journal._refusal(failure)
        return 0

    cdef int _flush(self) except -1:
        if self._journal is not None:
            hsm_journal_flush(self._journal._journal)
            if self._journal._immediate or (self._journal.fail_open and hsm_journal_failure(self._journal._journal)):
                self._release_kept(<uint64_t>-1)
        return 0

    cdef int _record(self, const hsm_completion *done, PyObject *waiter, Py_ssize_t position, object signature,
                     uint64_t deadline) except -1:
        """The record of a completion; its waiter, if there is one, waits for that."""
        cdef hsm_journal_sign sign
        cdef uint64_t seq
        cdef bytes extra = self._extras.pop(done.slot, None) if self._extras else None
        cdef bytes tail
        cdef bint claimed = waiter != NULL and not _gone(<object>waiter)
        if extra == b"":
            if waiter != NULL and done.status == HSM_OK:
                _answer(<object>waiter, position, <bytes>signature)
            return 0
        tail = self._tail(done.key, extra)
        sign.time_ns = self._journal._stamp()
        sign.latency_ns = done.queue_ns + done.hsm_ns
        sign.message_len = done.message_len
        sign.digest = done.digest if done.hsm_ns else NULL
        sign.message = NULL
        sign.signature = done.signature if done.status == HSM_OK else NULL
        sign.signature_len = done.signature_len
        sign.cached = 0
        sign.result = b"error" if done.status != HSM_OK else b"ok" if claimed else b"unclaimed"
        sign.error = hsm_status_name(done.status) if done.status != HSM_OK else NULL
        seq = hsm_journal_put_sign(self._journal._journal, &sign, PyBytes_AS_STRING(tail), <size_t>PyBytes_GET_SIZE(tail))
        if seq == 0:
            raise MemoryError()
        if claimed:
            self._hold(seq, <object>waiter, position, signature, deadline, False)
        return 0

    cdef int _record_drop(self, uint32_t slot, uint32_t key, hsm_status status) except -1:
        """The record of a request that was given up; what becomes of it later gets another one."""
        cdef hsm_journal_sign sign
        cdef bytes extra = self._extras.pop(slot, None) if self._extras else None
        cdef bytes tail
        if extra == b"":
            return 0
        tail = self._tail(key, extra)
        sign.time_ns = self._journal._stamp()
        sign.latency_ns = 0
        sign.message_len = 0
        sign.digest = sign.message = sign.signature = NULL
        sign.signature_len = 0
        sign.cached = 0
        sign.result = b"error"
        sign.error = hsm_status_name(status)
        if not hsm_journal_put_sign(self._journal._journal, &sign, PyBytes_AS_STRING(tail),
                                    <size_t>PyBytes_GET_SIZE(tail)):
            raise MemoryError()
        return self._flush()

    cdef bytes _tail(self, uint32_t key, bytes extra):
        cdef bytes tail = self._tails.get(key, b"}")
        return tail if extra is None else extra + tail

    cdef int _give(self, object waiter, Py_ssize_t position, bytes signature, uint32_t key, uint64_t deadline,
                   bytes message, bytes extra) except -1:
        """Answer with a signature that was made for somebody else."""
        cdef hsm_journal_sign sign
        cdef uint64_t seq
        cdef bytes tail
        if self._journal is None or extra == b"":
            return _answer(waiter, position, signature)
        tail = self._tail(key, extra)
        sign.time_ns = self._journal._stamp()
        sign.latency_ns = 0
        sign.message_len = <uint64_t>PyBytes_GET_SIZE(message)
        sign.digest = NULL
        sign.message = <const uint8_t *>PyBytes_AS_STRING(message)
        sign.signature = <const uint8_t *>PyBytes_AS_STRING(signature)
        sign.signature_len = <uint32_t>PyBytes_GET_SIZE(signature)
        sign.cached = 1
        sign.result = b"ok"
        sign.error = NULL
        seq = hsm_journal_put_sign(self._journal._journal, &sign, PyBytes_AS_STRING(tail), <size_t>PyBytes_GET_SIZE(tail))
        if seq == 0:
            raise MemoryError()
        return self._hold(seq, waiter, position, signature, deadline, True)

    cdef int _hold(self, uint64_t seq, object waiter, Py_ssize_t position, bytes signature, uint64_t deadline,
                   bint cached) except -1:
        cdef _Entry *entry = self._held.add()
        entry.seq, entry.deadline, entry.position, entry.cached = seq, deadline, position, cached
        Py_INCREF(waiter)
        Py_INCREF(signature)
        entry.waiter = <PyObject *>waiter
        entry.signature = <PyObject *>signature
        self._watch(deadline)
        return 0

    cdef int _release_kept(self, uint64_t kept) except -1:
        """Hand out what waits for records up to `kept`."""
        cdef _Entry entry
        while self._held.head != self._held.tail and self._held.first().seq <= kept:
            entry = self._held.first()[0]
            self._held.head += 1
            if entry.waiter != NULL:
                _answer_recorded(<object>entry.waiter, entry.position, <bytes>entry.signature, entry.seq, entry.cached)
                Py_XDECREF(entry.waiter)
            Py_XDECREF(entry.signature)
        self._check_idle()
        return 0

    cdef int _refuse_held(self, int failure) except -1:
        """No record will be kept for now: nobody gets a signature that he may have waited for in vain."""
        cdef _Entry entry
        while self._held.head != self._held.tail:
            entry = self._held.first()[0]
            self._held.head += 1
            if entry.waiter != NULL:
                _refuse(<object>entry.waiter, entry.position, self._journal._refusal(failure))
                Py_XDECREF(entry.waiter)
            Py_XDECREF(entry.signature)
        self._check_idle()
        return 0

    cdef uint64_t _sweep_held(self, uint64_t now, uint64_t soonest) except? 0:
        cdef size_t at = self._held.head
        cdef _Entry *entry
        while at != self._held.tail:
            entry = &self._held.entries[at & (self._held.capacity - 1)]
            at += 1
            if entry.waiter == NULL:
                continue
            if entry.deadline <= now:
                waiter = <object>entry.waiter
                Py_XDECREF(entry.waiter)
                entry.waiter = NULL
                _refuse(waiter, entry.position, self._late())
            elif soonest == 0 or entry.deadline < soonest:
                soonest = entry.deadline
        return soonest
