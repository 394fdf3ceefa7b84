# Part of _native.pyx: the audit records of one engine's answers. journal.pxi is the file that they go into.


@cython.final
cdef class Recorder:
    """Records the answers of an engine, which owns it, in the same event loop."""

    cdef Journal journal
    cdef dict _tails  # by key: the part of its records that stays the same

    def __cinit__(self, Journal journal not None):
        self.journal = journal
        self._tails = {}

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

    cdef bint wants(self, const hsm_answer *answer) noexcept:
        """Whether an answer gets a record: a signature always; an error that the request itself met, once; and a second
        one where a round that a recorded signature awaited did not come in time."""
        if answer.seq:
            return answer.round != 0 and answer.status != HSM_OK
        return answer.status == HSM_OK or not answer.last or not (
            answer.shared or answer.told or answer.slot == HSM_NO_SLOT)

    cdef uint64_t put(self, const hsm_answer *answer, object message, bytes extra, bint claimed) except? 0:
        """Append the record of an answer. Returns its number; 0 if it is dropped because the journal is full, with
        `fail_open`. `claimed`: a caller waits for it."""
        cdef hsm_journal_sign sign
        cdef bytes tail = self._tails.get(answer.key, b"}")
        cdef uint64_t seq
        cdef bint prehashed = type(message) is Digest
        cdef bytes data = (<Digest>message).value if prehashed else message
        self.journal._check()
        if self.journal.fail_open and self.journal._full():
            self.journal.dropped += 1
            return 0
        memset(&sign, 0, sizeof(sign))
        if answer.status != HSM_OK:
            sign.result, sign.error = b"error", hsm_status_name(answer.status)
        else:
            sign.result = b"ok" if claimed else b"unclaimed"
            sign.signature, sign.signature_len = answer.signature, answer.signature_len
        sign.message_len = <uint64_t>PyBytes_GET_SIZE(data)
        if answer.last:
            sign.latency_ns = answer.latency_ns
            sign.cached = answer.shared
            sign.digest = answer.digest
            if sign.digest == NULL and (answer.status == HSM_OK or answer.latency_ns):
                sign.message = <const uint8_t *>PyBytes_AS_STRING(data)
        else:  # it has a slot, so it may still be signed
            sign.message = <const uint8_t *>PyBytes_AS_STRING(data)
        if prehashed and (sign.digest != NULL or sign.message != NULL):
            sign.digest = <const uint8_t *>PyBytes_AS_STRING(data)
        if extra is not None:
            tail = extra + tail
        sign.time_ns = self.journal._stamp()
        seq = hsm_journal_put_sign(self.journal._journal, &sign, PyBytes_AS_STRING(tail), <size_t>PyBytes_GET_SIZE(tail))
        if seq == 0:
            raise MemoryError()
        return seq

    cdef bint flush(self, hsm_requests *table) except -1:
        """Start writing the records, without a pause for more if the workers need what the answers of `table` bring.
        Returns whether answers do not wait for the disk now."""
        cdef hsm_journal *journal = self.journal._journal
        self.journal._check()
        hsm_journal_flush(journal, hsm_requests_starving(table, hsm_journal_waiting(journal)))
        return self.journal._hands_out()

    cdef inline bint is_failing(self) noexcept:
        """Whether records cannot be kept at present, and nothing is handed out without."""
        return not self.journal.fail_open and hsm_journal_failure(self.journal._journal) != 0
