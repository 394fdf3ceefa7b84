# Part of _native.pyx: the audit log's writer. records.pxi is what an engine puts into it.


cdef uint64_t _real_time_ns():
    cdef timespec now
    clock_gettime(CLOCK_REALTIME, &now)
    return <uint64_t>now.tv_sec * 1000000000 + <uint64_t>now.tv_nsec


@cython.final
cdef class Journal:
    """Appends lines to an audit log and has a native thread write them in groups; see native/include/hsmcore/journal.h.

    Belongs to one event loop. The constructor and `close` block: call them in a thread. `durability` is "fsync",
    "write" or "interval". A line is *kept* once it is as durable as that says. Lines are numbered without a gap. The
    journal is *full* at `max_pending` bytes of lines that are not written, and *late* if it is full or the oldest of
    them has waited for longer than `wait_seconds`: then the disk hangs, or is slower than the lines come.
    """

    cdef hsm_journal *_journal
    cdef object _loop
    cdef object _changed
    cdef object _refusal
    cdef object _clock_stepped
    cdef bint _immediate  # answers do not wait for a disk that works
    cdef uint64_t _wait_ns  # the age of the oldest pending line at which the disk counts as hanging
    cdef uint64_t _max_pending
    cdef uint64_t _last_time
    cdef list _engines
    cdef int _fd
    cdef uint32_t _generation
    cdef readonly bint fail_open
    cdef public uint64_t dropped
    """Records that were not appended because the journal was full, with `fail_open`."""

    def __cinit__(self, *, str path, str archive, uint64_t first_seq, uint64_t next_seq, uint64_t rotate_bytes,
                  double interval_seconds, str durability, bint fail_open,
                  double wait_seconds, uint64_t max_pending, uint64_t last_time_ns=0):
        cdef hsm_error error
        cdef hsm_journal_options options
        cdef hsm_status status
        self._fd = -1
        self._engines = []
        self._generation = hsm_fork_generation()
        self.fail_open = fail_open
        self._last_time = last_time_ns
        self._immediate = durability == "interval"
        # A line that waits for its turn does not wait for the disk.
        self._wait_ns = <uint64_t>(wait_seconds * NS) + (
            <uint64_t>(interval_seconds * NS) if self._immediate else HSM_JOURNAL_PACE_NS)
        self._max_pending = max_pending
        file, folder = os.fsencode(path), os.fsencode(archive)
        options.path = file
        options.archive = folder
        options.first_seq = first_seq
        options.next_seq = next_seq
        options.rotate_bytes = rotate_bytes
        options.interval_ns = <uint64_t>(interval_seconds * NS)
        options.durability = {"fsync": HSM_DURABLE_FSYNC, "write": HSM_DURABLE_WRITE,
                              "interval": HSM_DURABLE_INTERVAL}[durability]
        with nogil:
            status = hsm_journal_open(&options, &self._journal, &error)
        if status != HSM_OK:
            raise _raised(&error, None)

    def __dealloc__(self):
        if self._journal != NULL and self._generation == hsm_fork_generation():
            with nogil:
                hsm_journal_close(self._journal)

    def attach(self, loop, changed, refusal, clock_stepped):
        """Serve the running `loop`. `changed(written, failure)` is called when more lines are in the file, and when
        writing begins to fail (an errno) or to succeed again (0). `refusal(failure)` makes the exception for waiters of
        lines that cannot be kept; failure 0: the disk takes too long. `clock_stepped(before, now)` is called before a
        line that is dated before its predecessor; times in ns since 1970."""
        self._loop, self._changed, self._refusal, self._clock_stepped = loop, changed, refusal, clock_stepped
        self._fd = hsm_journal_fd(self._journal)
        loop.add_reader(self._fd, self._ready)

    def detach(self):
        """Leave the loop. An engine that still records here is closed: it answers every waiter with an error."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            self._fd = -1
        for engine in self._engines:
            self._leave(engine)
        self._engines.clear()

    cdef int _leave(self, Requests engine) except -1:
        """What cannot be recorded any more is not handed out."""
        engine._open = False
        engine._refuse_durable(0)
        hsm_requests_fail(engine._table, HSM_ALL, HSM_CLOSED)
        engine._take()
        engine._recorder = None
        return 0

    def close(self):
        """Write the pending lines and end. Returns how many lines could not be written. Blocks."""
        cdef hsm_journal *journal = self._journal
        cdef uint64_t lost
        self._journal = NULL
        with nogil:
            lost = hsm_journal_close(journal)
        return lost

    def condemn(self):
        """Write no more: lines in the file were changed. `failure` is ESTALE from now on."""
        self._check()
        hsm_journal_condemn(self._journal)

    cdef uint64_t _stamp(self) except? 0:
        """The time for the next line."""
        cdef uint64_t now = _real_time_ns()
        cdef uint64_t before = self._last_time
        self._last_time = now
        if now < before:
            self._clock_stepped(before, now)
        return now

    def stamp(self):
        """The time for the next line, in nanoseconds since 1970."""
        return self._stamp()

    def put(self, bytes line):
        """Append a line, newline included, that bears the number `next`, and start writing. Raises EngineForked,
        MemoryError."""
        self._check()
        if self._generation != hsm_fork_generation():
            raise _exception(HSM_FORKED, None)
        if not hsm_journal_put(self._journal, PyBytes_AS_STRING(line), <size_t>PyBytes_GET_SIZE(line)):
            raise MemoryError()
        hsm_journal_flush(self._journal, 0)

    @property
    def next(self):
        """The number of the next line."""
        self._check()
        return hsm_journal_next(self._journal)

    @property
    def kept(self):
        """The number of the last line that is kept."""
        self._check()
        return hsm_journal_kept(self._journal)

    @property
    def written(self):
        """The number of the last line that is in the file."""
        self._check()
        return hsm_journal_written(self._journal)

    @property
    def failure(self):
        """The errno for which writing fails now; 0: it succeeds."""
        self._check()
        return hsm_journal_failure(self._journal)

    @property
    def pending(self):
        """Bytes that are appended but not written."""
        self._check()
        return hsm_journal_pending(self._journal)

    @property
    def full(self):
        """Whether as many bytes are pending as may be."""
        self._check()
        return self._full()

    @property
    def late(self):
        """Whether the journal is full, or its oldest pending line has waited for too long."""
        self._check()
        return self._late()

    def stats(self):
        """How long lines take until they are kept: commit_octaves of groups (see Engine.stats), commit_sum_ns, and
        oldest_ns of the oldest pending line. Any thread."""
        cdef hsm_journal_stats stats
        self._check()
        hsm_journal_stats_read(self._journal, &stats)
        return {"oldest_ns": stats.oldest_ns, "commit_sum_ns": stats.commit_sum_ns,
                "commit_octaves": _octaves(stats.commit_ns)}

    cdef inline bint _full(self) noexcept:
        return hsm_journal_pending(self._journal) >= self._max_pending

    cdef inline bint _late(self) noexcept:
        return self._full() or hsm_journal_oldest_ns(self._journal) > self._wait_ns

    cdef object _unwritable(self):
        """The exception for a request whose record could not be kept at present; None: it could, or `fail_open`."""
        cdef int failure
        self._check()
        if self.fail_open:
            return None
        failure = hsm_journal_failure(self._journal)
        return self._refusal(failure) if failure or self._late() else None

    cdef bint _hands_out(self) noexcept:
        """Whether answers do not wait for the disk at present."""
        if self.fail_open:
            return self._immediate or hsm_journal_failure(self._journal) != 0 or self._late()
        return self._immediate and hsm_journal_failure(self._journal) == 0 and not self._late()

    cdef int _check(self) except -1:
        if self._journal == NULL:
            raise ValueError("the journal is closed")
        return 0

    def _ready(self):
        cdef uint64_t kept
        cdef int failure
        hsm_journal_clear(self._journal)
        kept = <uint64_t>-1 if self._hands_out() else hsm_journal_written(self._journal)
        failure = hsm_journal_failure(self._journal)
        for engine in self._engines:
            (<Requests>engine)._release_durable(kept)
            if failure and not self.fail_open:
                (<Requests>engine)._refuse_durable(failure)
        self._changed(hsm_journal_written(self._journal), failure)
