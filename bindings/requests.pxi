# Part of _native.pyx: requests on their way to the workers, and their answers on the way back. The request table
# (native/include/hsmcore/requests.h) has the rules; here numbers become futures and answers become results.

# The loop gets its turn after so many ns of answers.
cdef uint64_t SLICE_NS = 2000000


# Who holds an engine may call it while a cycle that both are in is taken apart.
@cython.no_gc_clear
cdef class Requests(Publisher):
    """One member's rings, signature cache and futures: the event loop's side of an Engine or a Guest."""

    cdef hsm_requests *_table
    cdef hsm_cache *_cache  # NULL: no cache, and no single-flight
    cdef Waiters _waiters
    cdef dict _batches  # by future
    cdef dict _missed  # of Routes: (key, message) by a future whose caller left before its answer came; see asked_for
    cdef dict _details  # by slot, until its answer is taken: an error that says more than its status
    cdef object _detail  # of the request whose answer was taken last: its followers have their answers next; or None
    cdef uint32_t _generation
    cdef uint64_t _default_timeout
    cdef bint _cache_all
    cdef bint _takes_digests
    cdef bint _abandoned  # by `stop`, during a start, which still uses the client
    cdef bint _isolated  # the workers are in a host process
    cdef object _down  # the status of requests while the member is down, or None
    cdef uint32_t _max_message
    cdef object _loop_is_running
    cdef dict _future_keywords
    cdef unsigned long _thread
    cdef object _member
    cdef Recorder _recorder  # None: nothing is recorded
    cdef int _journal_failure
    cdef Lease _lease  # None: what callers get needs none
    cdef object _idle
    cdef DeadlineTimer _deadlines
    cdef object _fds
    cdef object _on_overdue
    cdef dict _limits  # by key: most bytes of a message, and the limit's name
    cdef public object place  # what the engine is to whoever routes requests to it: see Routes
    cdef AnswerQueue _answers  # of the last waiter that is one; None: there was none
    cdef dict _signers  # of receipts, by key: (its id, public key, member, level)
    cdef object _fall_back  # of Routes
    cdef readonly uint64_t completed
    cdef readonly uint64_t rejected
    cdef readonly uint64_t abandoned
    cdef readonly uint64_t refused  # by admission control

    def __cinit__(self, *, str member, uint32_t slots, uint32_t max_message, uint32_t max_workers,
                  double coalesce_seconds, double default_timeout, uint64_t cache_size, bint single_flight,
                  bint cache_nondeterministic, bint digests=False, bint takes_digests=False):
        cdef hsm_error error
        cdef hsm_client_options options
        options.digests = digests
        options.slots = slots
        options.max_message = max_message
        options.max_workers = max_workers
        options.coalesce_ns = <uint64_t>(coalesce_seconds * NS)
        self._generation = hsm_fork_generation()
        self._max_message = max_message
        self._default_timeout = <uint64_t>(default_timeout * NS)
        self._cache_all = cache_nondeterministic
        self._takes_digests, self._member = takes_digests, member
        self._waiters = Waiters.__new__(Waiters)
        self._batches, self._missed, self._details, self._limits, self._signers = {}, {}, {}, {}, {}
        if (cache_size or single_flight) and hsm_cache_new(cache_size, &self._cache) != HSM_OK:
            raise BadArgument(f"capacity {cache_size}")
        if hsm_client_new(&options, &self._client, &error) != HSM_OK:
            raise _raised(&error, member)
        if hsm_requests_new(self._client, self._cache, &self._table) != HSM_OK:
            raise MemoryError()

    def __dealloc__(self):
        self._free()

    def attach(self, loop, on_overdue=None):
        """Serve the running `loop`: from now on `submit` works, in this loop only. `on_overdue()` is called when
        requests have passed their deadlines: it is time to `supervise`."""
        cdef int event_fd, timer_fd
        if self._client == NULL:
            raise self._failure(HSM_CLOSED)
        hsm_requests_wake_fds(self._table, &event_fd, &timer_fd)
        self._loop = loop
        self._on_overdue = on_overdue
        self._loop_is_running = loop.is_running
        self._thread = PyThread_get_thread_ident()
        self._future_keywords = _keywords_of_futures(loop)
        self._deadlines = DeadlineTimer.__new__(DeadlineTimer, loop, self._sweep)
        self._fds = [fd for fd in [event_fd, timer_fd] if fd >= 0]
        for fd in self._fds:
            loop.add_reader(fd, self._drain)
        self._open = True

    def record_in(self, Journal journal not None):
        """Record every signature from now on, and hand it out once its record is durable. Once, after `attach`."""
        if journal._journal == NULL or self._fds is None:
            raise self._failure(HSM_CLOSED)
        self._recorder = Recorder.__new__(Recorder, journal)
        journal._engines.append(self)

    def hand_out_under(self, Lease lease):
        """Refuse the requests of callers with NotHolder while `lease` is over, and their answers that come then."""
        self._lease = lease
        if lease is not None:
            lease._tables.append(self)

    def set_tail(self, uint32_t key, bytes tail):
        """Set the part of this key's records that stays the same: the rest of a JSON object, from a comma to the
        closing brace. Has no effect before `record_in`."""
        if self._recorder is not None:
            self._recorder.set_tail(key, tail)

    def signs_as(self, uint32_t key, version, str member, str level):
        """Say what receipts of this key tell."""
        self._signers[key] = version.id, version.public_key, member, level

    def refuse(self):
        """Take no further requests."""
        self._open = False

    def set_down(self, bint down, str status=None):
        """While down, requests fail at once: with this status; None: HOST_LOST, without a host process TOKEN_LOST."""
        self._down = None if not down else status or ("HOST_LOST" if self._isolated else "TOKEN_LOST")

    def detach(self):
        """Answer every waiter with EngineClosed, and leave the loop."""
        self._open = False
        if self._fds is None:
            return
        for fd in self._fds:
            self._loop.remove_reader(fd)
        self._fds = None  # from now on, every answer is taken at once
        hsm_requests_settle(self._table)
        self._drain()
        self._deadlines.cancel()
        self._refuse_durable(0)
        hsm_requests_fail(self._table, HSM_ALL, HSM_CLOSED)
        self._take()
        if self._recorder is not None:
            self._recorder.journal._engines.remove(self)
            self._recorder = None
        if self._lease is not None:
            self._lease._tables.remove(self)
        self._deadlines = None

    cdef void _free(self) noexcept:
        self._open = False
        hsm_requests_free(self._table)
        hsm_client_free(self._client)
        hsm_cache_free(self._cache)
        self._table = NULL
        self._client = NULL
        self._cache = NULL

    def idle(self):
        """A future that is done when every waiter has its answer."""
        if self._idle is None or self._idle.done():
            self._idle = self._new_future()
        self._check_idle()
        return self._idle

    def submit(self, message, timeout=None, uint32_t key=0, bytes extra=None, bint own=False):
        """Sign one message, or a Digest: its signature if the cache holds it and nothing is recorded, else a future of
        it. `extra` goes into its record: members of a JSON object, beginning with a comma; b"": write no record. `own`:
        hsmcore itself has it signed, which needs no lease. Raises HsmError."""
        return self._ask(message, self._timeout_ns(timeout), key, extra, OWN if own else 0, None)

    def ask(self, message, timeout=None, uint32_t key=0, bytes extra=None, bint gather=False, Waiter waiter=None):
        """Sign one message: a future of its Receipt, or `waiter`, which takes it. `gather`: the workers are told at the
        end of this iteration of the loop: a fast module may sign sooner than the next message comes. Raises HsmError."""
        if gather:
            self._gather(self._counts().slots)
        return self._ask(message, self._timeout_ns(timeout), key, extra, RECEIPT, None, waiter)

    cdef inline uint64_t _timeout_ns(self, object timeout) except? 0:
        return self._default_timeout if timeout is None else _timeout_ns(timeout)

    cdef object _ask(self, object message, uint64_t timeout_ns, uint32_t key, bytes extra, uint64_t tag, bytes only,
                     Waiter waiter=None):
        cdef hsm_ask ask
        cdef hsm_answer answer
        cdef bytes data
        cdef bint prehashed = type(message) is Digest
        cdef uint64_t begun = hsm_now_ns() if tag & RECEIPT else 0
        self._check(extra, tag)
        if prehashed and not self._takes_digests:
            raise PolicyRefused("this key signs no digest as it is", member=self._member)
        data = self._checked((<Digest>message).value if prehashed else message, key)
        self._fill(&ask, timeout_ns, key, tag & RECEIPT or (self._recorder is not None and extra != b""))
        ask.tag = tag
        ask.prehashed = prehashed
        self._start(&ask, &answer, data, None, extra)
        if prehashed and answer.request:
            _replace(self._waiters.messages, <Py_ssize_t><uint32_t>answer.request, message)
        if answer.request == 0:
            return PyBytes_FromStringAndSize(<const char *>answer.signature, answer.signature_len)
        if tag & RECEIPT:
            self._waiters.begun[<uint32_t>answer.request] = begun
            if only is not None:
                _replace(self._waiters.onlys, <Py_ssize_t><uint32_t>answer.request, only)
        try:
            future = self._new_future() if waiter is None else waiter
            if waiter is not None:
                self._answers = waiter._answers
            self._waiters.name(answer.request, future)
        except BaseException:
            self._cancel(answer.request)
            raise
        if self._pump is not None:
            self._pump()
        if answer.cached or hsm_requests_catch_up(self._table):
            self._take()
        return future

    def submit_many(self, messages, timeout=None, bint return_exceptions=False, uint32_t key=0, bytes extra=None):
        """Sign a batch: a future of its signatures, in order. `extra` as in `submit`, for each. Raises HsmError."""
        cdef hsm_ask ask
        cdef hsm_answer answer
        cdef Batch batch
        cdef list data
        cdef Py_ssize_t i
        cdef uint64_t count
        self._check(extra, 0)
        data = []
        try:
            for message in messages:
                data.append(self._checked(message, key))
        except HsmError as error:
            raise of_batch(error, len(data))
        self._fill(&ask, self._timeout_ns(timeout), key, self._recorder is not None and extra != b"")
        # With `return_exceptions` or a cache, a part of the results is of use; else the last one must be in time.
        count = 1 if return_exceptions or hsm_requests_cacheable(self._table, key) else len(data)
        if data and hsm_requests_refuses(self._table, count, ask.timeout_ns):
            raise self._refusal(HSM_QUEUE_FULL, ask.timeout_ns)
        future = self._new_future()
        batch = Batch.__new__(Batch, future, len(data), return_exceptions)
        if not data:
            future.set_result([])
            return future
        ask.admitted = 1
        self._batches[future] = batch
        hsm_client_batch_begin(self._client)
        try:
            for i in range(len(data)):
                ask.tag = <uint64_t>i
                self._start(&ask, &answer, <bytes>data[i], batch, extra)
                if answer.request == 0:
                    batch.put(i, PyBytes_FromStringAndSize(<const char *>answer.signature, answer.signature_len))
                batch.numbers[i] = answer.request
        except BaseException:
            self._cancel_batch(future, batch)
            raise
        finally:
            hsm_client_batch_end(self._client)
        self._take()
        if future.done():
            self._batches.pop(future, None)
        return future

    def abandon(self, future):
        """The caller of `future` has left: cancel its requests, except those that have followers or that a worker has
        begun. Returns whether a signature of one was or will be made."""
        cdef uint64_t number
        cdef int begun = 1
        self.abandoned += 1
        if not self._open or self._generation != hsm_fork_generation():
            return True
        number = self._waiters.number_of(future)
        if number:
            begun = self._cancel(number)
        elif future in self._batches:
            begun = self._cancel_batch(future, self._batches[future])
        self._check_idle()
        return begun != 0

    cdef bint _cancel(self, uint64_t number) except -1:
        """Returns whether a signature was or will be made."""
        cdef int begun
        self._waiters.take(number)
        if hsm_requests_cancel(self._table, number, &begun):
            self._waiters.forget(number)
        return begun != 0

    cdef bint _cancel_batch(self, future, Batch batch) except -1:
        cdef Py_ssize_t i
        cdef bint begun = False
        self._batches.pop(future, None)
        for i in range(PyList_GET_SIZE(batch.results)):
            result = batch.results[i]
            begun = begun or type(result) is bytes or (result is not None and result.maybe_signed)
            if batch.numbers[i]:
                begun = self._cancel(batch.numbers[i]) or begun
                batch.numbers[i] = 0
        return begun

    def asked_for(self, future):
        """(index of the key, message) of the request that a future of `submit` waits for, or that was answered after
        the future was cancelled; None: neither, or this was asked before."""
        cdef uint64_t number = self._waiters.number_of(future) if self._table != NULL else 0
        if number == 0:
            return self._missed.pop(future, None)
        return hsm_requests_key(self._table, number), self._waiters.messages[<Py_ssize_t><uint32_t>number]

    def move(self, str status="DEADLINE_EXCEEDED"):
        """Answer each caller whose message is not signed with this status: others than this member may sign it."""
        if self._table != NULL:
            hsm_requests_fail(self._table, HSM_UNSIGNED_ONES, <hsm_status><int>_STATUS_NUMBERS[status])
            self._take()

    def signs_with(self, uint32_t index):
        """Whether a key was added under this index and not retired."""
        return self._table != NULL and hsm_requests_knows(self._table, index) == 1

    def clear_cache(self):
        """Wipe all cached signatures."""
        hsm_cache_clear(self._cache)

    @property
    def in_flight(self):
        """Requests that hold a slot."""
        return self._counts().slots

    @property
    def waiting(self):
        """Requests that wait for a slot."""
        return self._counts().queued

    cdef int _check(self, bytes extra, uint64_t tag) except -1:
        """Raise if no request can be taken now, or its record could not be written."""
        if self._generation != hsm_fork_generation():
            raise self._failure(HSM_FORKED)
        if not self._open:
            if self._loop is None:
                raise NotInitialized("used before initialize()", member=self._member)
            raise self._failure(HSM_CLOSED)
        if self._down is not None:
            raise _knowing(error_of(self._down, member=self._member), False)
        # The running loop is the only one of its thread; in Python 3.11 get_running_loop is a system call.
        if PyThread_get_thread_ident() != self._thread or not self._loop_is_running():
            raise WrongEventLoop("used outside the event loop that initialized it", member=self._member)
        if self._lease is not None and self._lease.is_late(tag):
            raise self._lease.refusal(self._member)
        if self._recorder is not None and extra != b"":
            self._recorder.require_writable()
        return 0

    cdef inline bytes _checked(self, object message, uint32_t key):
        cdef bytes data = _frozen(message)
        cdef Py_ssize_t size = PyBytes_GET_SIZE(data)
        if size == 0:
            raise EmptyMessage(member=self._member)
        if size > self._max_message or self._limits:
            self._check_size(size, key)
        return data

    cdef int _check_size(self, Py_ssize_t size, uint32_t key) except -1:
        most, name = self._limits.get(key) or (self._max_message, "maxMessageBytes")
        if size > <Py_ssize_t>most:
            raise error_of("MESSAGE_TOO_LARGE", detail=f"{size} bytes; {name} is {most}", member=self._member)
        return 0

    cdef inline int _fill(self, hsm_ask *ask, uint64_t timeout_ns, uint32_t key, bint held) except -1:
        """What all requests of one call have in common. Raises if the key is not good."""
        ask.timeout_ns = timeout_ns
        ask.key = key
        ask.held = held or (self._lease is not None and self._lease.confirms())
        ask.admitted = 0
        ask.prehashed = 0
        if hsm_requests_knows(self._table, key) == 0:
            raise self._failure(HSM_KEY_DEACTIVATED)
        return 0

    cdef inline int _start(self, hsm_ask *ask, hsm_answer *answer, bytes data, Batch batch, bytes extra) except -1:
        """Put a request into the table, and what belongs to it beside it. Its future, if it needs one, comes later."""
        cdef hsm_status status
        ask.message = <const uint8_t *>PyBytes_AS_STRING(data)
        ask.message_len = <uint32_t>PyBytes_GET_SIZE(data)
        self._waiters.reserve(hsm_requests_room(self._table))
        status = hsm_requests_submit(self._table, ask, answer)
        if status != HSM_OK:
            raise self._refusal(status, ask.timeout_ns)
        if answer.request:
            self._waiters.put(answer.request, batch, data, extra)
            if not self._deadlines.covers(answer.deadline_ns):
                self._deadlines.watch(hsm_requests_sweep_at(self._table))
        return 0

    cdef inline object _new_future(self):
        # With the keywords made beforehand; Future takes its loop by keyword only.
        return PyObject_Call(Future, (), self._future_keywords)

    cdef object _refusal(self, hsm_status status, uint64_t timeout_ns):
        if status != HSM_QUEUE_FULL:
            return self._failure(status)
        self.refused += 1
        return _queue_full(self._member, self._counts(), timeout_ns)

    cdef object _failure(self, hsm_status status, uint64_t ckr=0, uint64_t call=0, hsm_status failed=HSM_OK):
        return _exception(status, self._member, ckr, hsm_call_name(call), "", failed)

    cdef inline hsm_requests_counts _counts(self) noexcept:
        cdef hsm_requests_counts counts
        if self._table != NULL:
            hsm_requests_count(self._table, &counts)
        else:
            memset(&counts, 0, sizeof(counts))
        return counts

    def _drain(self):
        """Called by the loop when the rings' descriptor is readable."""
        if self._client != NULL:
            hsm_requests_wake_clear(self._table)
            _take_together(self, self._answers if self._fds is not None else None)

    cdef int _take(self) except -1:
        """Take every answer and give it to its waiter."""
        cdef hsm_answer answer
        cdef uint64_t begun = 0
        cdef uint32_t taken = 0
        cdef bint more = False
        cdef bint hands_out
        if self._recorder is not None and self._counts().queued and self._recorder.journal._unwritable() is not None:
            # Requests that wait would grow what the disk cannot take.
            self._journal_failure = hsm_journal_failure(self._recorder.journal._journal)
            hsm_requests_fail(self._table, HSM_QUEUED_ONES, HSM_SYSTEM)
        while not more:
            while hsm_requests_next(self._table, &answer):
                self._answered(&answer)
                taken += 1
                if taken % 64 == 0:
                    begun = begun or hsm_now_ns()
                    if hsm_now_ns() - begun > SLICE_NS and self._fds is not None:
                        self._loop.call_soon(self._continue)
                        more = True
                        break
            if self._recorder is None:
                break
            hands_out = self._recorder.flush(self._table)
            if self._counts().held == 0:
                break
            if hands_out:
                hsm_requests_release(self._table, <uint64_t>-1)
            elif self._recorder.is_failing():
                # The journal says once that it begins to fail: this answer came after that.
                self._journal_failure = hsm_journal_failure(self._recorder.journal._journal)
                hsm_requests_fail(self._table, HSM_HELD_ONES, HSM_SYSTEM)
            else:
                break
        if self._fds is not None and (self._recorder is not None or self._lease is not None):
            self._deadlines.watch(hsm_requests_sweep_at(self._table))  # a held answer may be late already
            if self._lease is not None and self._lease._next:
                self._lease.look(self._counts())
        if self._pump is not None and hsm_client_queued(self._client):
            self._pump()
        return self._check_idle()

    def _continue(self):
        if self._fds is not None:
            self._take()

    cdef int _answered(self, const hsm_answer *answer) except -1:
        cdef Py_ssize_t i = <uint32_t>answer.request
        cdef object waiter
        cdef object message = None
        cdef object extra = None
        cdef object only = None
        cdef object error = None
        cdef uint64_t begun
        cdef bint taken
        cdef hsm_answer late
        cdef uint64_t seq = answer.seq
        if answer.slot != HSM_NO_SLOT and not answer.shared:
            self._detail = self._details.pop(answer.slot, None) if self._details else None
            if answer.status == HSM_OK:
                self.completed += 1
            else:
                self.rejected += 1
        if self._lease is not None and answer.status == HSM_OK and answer.claimed and self._lease.is_late(answer.tag):
            late = answer[0]  # also one that was in time when it was recorded
            late.status, late.signature_len = HSM_NOT_HOLDER, 0
            answer = &late
        if self._recorder is not None and PyList_GET_ITEM(self._waiters.extras, i) != <PyObject *>b"" and (
                answer == &late or self._recorder.wants(answer)):
            try:
                seq = self._record(answer)
            except BaseException as unrecorded:  # a signature without a record is not handed out
                error = unrecorded
            else:
                if seq == <uint64_t>-1:
                    return 0
        if self._lease is not None and error is None and self._lease.keeps(self, answer):
            return 0
        waiter = self._waiters.take(answer.request) if answer.claimed else None
        begun = self._waiters.begun[i]
        if answer.tag & ROUTED:
            message, extra, only = self._waiters.messages[i], self._waiters.extras[i], self._waiters.onlys[i]
        if answer.last:
            self._waiters.forget(answer.request)
            hsm_requests_end(self._table, answer.request)
        if waiter is None:
            if error is not None:
                self._loop.call_exception_handler({"message": "an audit record was lost", "exception": error})
            return 0
        if answer.status == HSM_OK and error is None:
            taken = _answer(waiter, answer.tag, PyBytes_FromStringAndSize(<const char *>answer.signature,
                                                                          answer.signature_len),
                            self._signers, answer, seq, begun)
        else:
            error = self._error(answer) if error is None else error
            taken = not answer.tag & ROUTED or not waiter.done()
            if answer.tag & ROUTED and taken:
                self._fall_back(waiter, self.place, answer.key, answer.tag & LATEST, message, error, extra, only,
                                begun if answer.tag & RECEIPT else 0)
            elif taken:
                taken = _refuse(waiter, answer.tag, error)
        if answer.tag & ROUTED and not taken:
            # Its caller's task was cancelled in this turn of the loop, and asks in the next which key may have signed.
            self._missed[waiter] = answer.key, message
        if type(waiter) is Batch:
            self._batch_answered(<Batch>waiter, answer)
        return 0

    cdef uint64_t _record(self, const hsm_answer *answer) except? 0:
        """Record an answer. Returns its record's number; 0: it has none, -1: the answer is held until it is durable."""
        cdef Py_ssize_t i = <uint32_t>answer.request
        cdef object waiter = self._waiters.waiters[i]
        cdef bint claimed = answer.claimed and waiter is not None and not _gone(waiter)
        cdef uint64_t seq = self._recorder.put(answer, self._waiters.messages[i], self._waiters.extras[i], claimed)
        if answer.status == HSM_OK and claimed and seq:
            hsm_requests_hold(self._table, answer.request, seq, 0)
            return <uint64_t>-1
        return seq

    cdef int _batch_answered(self, Batch batch, const hsm_answer *answer) except -1:
        batch.numbers[answer.tag] = 0
        # Spare the HSM what a batch that has failed would still ask of it.
        if batch.future.done() and self._batches.get(batch.future) is batch:
            if self._cancel_batch(batch.future, batch) and not batch.future.cancelled():
                if batch.future.exception() is not None:
                    _knowing(batch.future.exception(), True)  # of its messages, another one
        return 0

    cdef object _error(self, const hsm_answer *answer):
        detailed = self._detail if answer.slot != HSM_NO_SLOT else None
        if answer.status == HSM_NOT_HOLDER:  # it was withheld
            return _knowing(self._lease.refusal(self._member), True)
        if answer.status == HSM_SYSTEM and answer.slot == HSM_NO_SLOT and self._recorder is not None:
            return _knowing(self._recorder.journal._refusal(self._journal_failure), bool(answer.begun or answer.seq))
        if detailed is not None:
            return copy(detailed)  # one exception raised in several tasks would collect the tracebacks of all of them
        if answer.round and answer.status == HSM_DEADLINE_EXCEEDED:
            late = b"the fleet's database did not confirm the epoch in time"
            return _knowing(_exception(answer.status, self._member, 0, b"", late), True)
        known = None if answer.begun and answer.status != HSM_CLOSED else bool(answer.begun)
        return _knowing(self._failure(answer.status, answer.ckr, answer.call, answer.failed), known)

    cdef int _release_durable(self, uint64_t kept) except -1:
        """For the journal: the records up to number `kept` are durable."""
        hsm_requests_release(self._table, kept)
        return self._take()

    cdef int _refuse_durable(self, int failure) except -1:
        """For the journal: it is failing (`failure`: an errno), or is about to be closed (0)."""
        self._journal_failure = failure
        hsm_requests_fail(self._table, HSM_HELD_ONES, HSM_SYSTEM)
        return self._take()

    cdef inline int _check_idle(self) except -1:
        if self._idle is not None and self._counts().open == 0 and not self._idle.done():
            self._idle.set_result(None)
        return 0

    def _sweep(self):
        """Answer every waiter whose deadline has passed, and plan the next look."""
        cdef uint32_t overdue = hsm_requests_sweep(self._table, hsm_now_ns()) if self._table != NULL else 0
        self._continue()
        if self._deadlines is not None:
            self._deadlines.watch(hsm_requests_sweep_at(self._table))
        if overdue and self._on_overdue is not None:
            self._on_overdue()

    def stats(self):
        """Counters, and histograms of the time in the module, in the queue and in verification: as [(upper bound in ns,
        count)], and by octaves, where item n counts times below 2^n ns and not below 2^(n-1) ns. Any thread."""
        cdef hsm_stats native
        cdef hsm_requests_counts counts = self._counts()
        if self._client == NULL:
            raise self._failure(HSM_CLOSED)
        hsm_client_stats(self._client, &native)
        native.wrong += counts.wrong
        return {**_figures(&native), "refused": self.refused, "in_flight": counts.slots, "waiting": counts.queued}

    def cache_stats(self):
        """Counters of the signature cache; all 0 when it is switched off."""
        cdef hsm_cache_stats stats
        hsm_cache_stats_read(self._cache, &stats)
        return {"hits": stats.hits, "misses": stats.misses, "joined": stats.joined, "evictions": stats.evictions,
                "entries": stats.entries, "in_flight": stats.in_flight, "bytes": stats.bytes}
