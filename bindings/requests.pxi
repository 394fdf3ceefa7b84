# Part of _native.pyx: requests on their way to the workers, and their answers on the way back.

cdef tuple _CACHE_FIGURES = ("hits", "misses", "joined", "evictions", "entries", "in_flight", "bytes")


cdef class Requests:
    """One member's rings, signature cache and futures: the event loop's side of an Engine."""

    cdef hsm_client *_client
    cdef Cache _cache  # None: no cache, and no single-flight
    cdef SlotTable _slots
    cdef uint32_t _generation
    cdef uint64_t _default_timeout
    cdef bint _open
    cdef bint _cache_all
    cdef bint _abandoned  # workers may still write into the area
    cdef bint _leaving  # _cancel_gone is planned
    cdef uint64_t _left_at
    cdef bint _down
    cdef bint _isolated  # the workers are in a host process
    cdef PinnedKeys _keys
    cdef uint32_t _max_message
    cdef object _loop
    cdef object _loop_is_running
    cdef dict _future_keywords
    cdef unsigned long _thread
    cdef object _member
    cdef WaitQueue _queue
    cdef AdmissionControl _admission
    cdef DurableAnswers _durable  # None: nothing is recorded
    cdef object _idle
    cdef DeadlineTimer _deadlines
    cdef object _fds
    cdef object _on_overdue
    cdef readonly uint64_t completed
    cdef readonly uint64_t rejected
    cdef readonly uint64_t abandoned
    cdef readonly uint64_t refused  # by admission control

    def __cinit__(self, *, str member, uint32_t slots, uint32_t max_message, uint32_t max_workers,
                  double coalesce_seconds, double default_timeout, uint64_t cache_size, bint single_flight,
                  bint cache_nondeterministic, bint digests=False):
        cdef hsm_error error
        cdef hsm_client_options options
        options.digests = digests
        options.slots = slots
        options.max_message = max_message
        options.max_workers = max_workers
        options.coalesce_ns = <uint64_t>(coalesce_seconds * NS)
        if hsm_client_new(&options, &self._client, &error) != HSM_OK:
            raise _raised(&error, member)
        self._generation = hsm_fork_generation()
        self._max_message = max_message
        self._default_timeout = <uint64_t>(default_timeout * NS)
        self._cache_all = cache_nondeterministic
        self._member = member
        self._keys = PinnedKeys.__new__(PinnedKeys)
        self._queue = WaitQueue.__new__(WaitQueue)
        self._admission = AdmissionControl.__new__(AdmissionControl)
        self._slots = SlotTable.__new__(SlotTable, hsm_client_slots(self._client))
        if cache_size or single_flight:
            self._cache = Cache.__new__(Cache, cache_size)

    def __dealloc__(self):
        if not self._abandoned:
            hsm_client_free(self._client)


    def attach(self, loop, on_overdue=None):
        """Serve the running `loop`: from now on `submit` works, in this loop only. `on_overdue()` is called when
        requests have passed their deadlines: it is time to `supervise`."""
        cdef int event_fd
        cdef int timer_fd
        if self._client == NULL:
            raise self._failure(HSM_CLOSED)
        hsm_client_wake_fds(self._client, &event_fd, &timer_fd)
        self._loop = loop
        self._on_overdue = on_overdue
        self._loop_is_running = loop.is_running
        self._thread = PyThread_get_thread_ident()
        self._future_keywords = {"loop": loop}
        self._deadlines = DeadlineTimer.__new__(DeadlineTimer, loop, self._sweep)
        self._fds = (event_fd, timer_fd)
        for fd in self._fds:
            loop.add_reader(fd, self._drain)
        self._open = True

    def record_in(self, Journal journal not None):
        """Record every signature from now on, and hand it out once its record is durable. In the event loop, once,
        after `attach`; the engine must have been made with `digests`."""
        self._durable = DurableAnswers.__new__(DurableAnswers, journal, self._member)
        journal._engines.append(self)

    def set_tail(self, uint32_t key, bytes tail):
        """Set the part of this key's records that stays the same: the rest of a JSON object, from a comma to the
        closing brace. Has no effect before `record_in`."""
        if self._durable is not None:
            self._durable.set_tail(key, tail)

    def refuse(self):
        """Take no further requests."""
        self._open = False

    def set_down(self, bint down):
        """While down, requests fail at once: as HOST_LOST, or without a host process as TOKEN_LOST."""
        self._down = down

    def detach(self):
        """Answer every waiter with EngineClosed, and leave the loop."""
        cdef uint32_t i
        cdef _Slot *slot
        self._open = False
        if self._fds is None:
            return
        self._drain()
        for fd in self._fds:
            self._loop.remove_reader(fd)
        self._fds = None
        self._deadlines.cancel()
        for i in range(self._slots.count):
            slot = self._slots.at(i)
            if slot.waiter != NULL:
                self._drop(i, HSM_CLOSED)
            for follower in self._slots.take_followers(slot):
                _refuse_entry(follower, self._failure(HSM_CLOSED))
            self._abandon_entry(slot)
        while self._queue.messages:
            _refuse_entry(self._queue.pop(), self._failure(HSM_CLOSED))
        if self._durable is not None:
            self._refuse_durable(0)
            self._durable.journal._engines.remove(self)
            self._durable = None
        self._deadlines = None

    def idle(self):
        """A future that is done when every waiter has its answer."""
        if self._idle is None or self._idle.done():
            self._idle = self._new_future()
        self._check_idle()
        return self._idle


    def submit(self, message, timeout=None, uint32_t key=0, bytes extra=None):
        """Sign one message: its signature if the cache holds it and nothing is recorded, else a future of it. `extra`
        goes into its record: members of a JSON object, beginning with a comma; b"": write no record. Raises
        HsmError."""
        return self._submit(message, timeout, key, extra, False)

    def submit_with_receipt(self, message, timeout=None, uint32_t key=0, bytes extra=None):
        """Sign one message: a future of (signature, number of its audit record or None, cached). Raises HsmError."""
        return self._submit(message, timeout, key, extra, True)

    cdef object _submit(self, object message, object timeout, uint32_t key, bytes extra, bint with_receipt):
        cdef bytes data
        cdef uint64_t limit
        cdef uint64_t entry = 0
        cdef int found
        self._check(extra)
        limit = self._default_timeout if timeout is None else _timeout_ns(timeout)
        data = self._checked(message)
        self._require_key(key)
        found = self._look_up(data, key, &entry)
        if found == HSM_CACHE_HIT:
            if not with_receipt and (self._durable is None or extra == b""):
                return self._cache.signature()
        elif found != HSM_CACHE_JOINED and self._admission.refuses(self._ahead(), 1, limit):
            if entry:
                hsm_cache_abandon(self._cache._cache, entry)
            raise self._full(limit)
        future = self._new_future()
        waiter = WithReceipt.__new__(WithReceipt, future) if with_receipt else future
        if not self._proceed(found, entry, waiter, 0, data, key, limit, extra):
            self._wait_for_slot(_pending(waiter, 0, data, key, hsm_now_ns() + limit, extra))
        if found == HSM_CACHE_HIT:
            self._flush()
        elif hsm_client_catch_up(self._client):
            self._take()
        return future

    def submit_many(self, messages, timeout=None, bint return_exceptions=False, uint32_t key=0, bytes extra=None):
        """Sign a batch: a future of the list of signatures, in order. `extra` as in `submit`, for each. Raises
        HsmError."""
        cdef Batch batch
        cdef list data
        cdef uint64_t limit
        cdef uint64_t count = 1
        self._check(extra)
        data = [self._checked(message) for message in messages]
        limit = self._default_timeout if timeout is None else _timeout_ns(timeout)
        self._require_key(key)
        # With `return_exceptions` or a cache, a part of the results is of use; else the last one must be in time.
        if not return_exceptions and not self._caches(key):
            count = PyList_GET_SIZE(data)
        if data and self._admission.refuses(self._ahead(), count, limit):
            raise self._full(limit)
        batch = Batch.__new__(Batch)
        batch.deadline = hsm_now_ns() + limit
        batch.messages = data
        batch.remaining = PyList_GET_SIZE(data)
        batch.results = [None] * batch.remaining
        batch.key = key
        batch.return_exceptions = return_exceptions
        batch.extra = extra
        batch.future = future = self._new_future()
        if batch.remaining == 0:
            future.set_result(batch.results)
        elif self._queue.messages or not self._feed(batch):  # a batch does not overtake what waits already
            self._wait_for_slot(batch)
        return future

    def abandon(self, future):
        """The caller of `future`, which is done, has left: cancel its requests, except those that have followers or
        that a worker has begun."""
        self.abandoned += 1
        # One pass over the slots serves all callers that leave within SWEEP_INTERVAL.
        if self._open and not self._leaving and self._generation == hsm_fork_generation():
            self._leaving = True
            recent = hsm_now_ns() - self._left_at < SWEEP_INTERVAL * NS
            self._loop.call_later(SWEEP_INTERVAL if recent else 0, self._cancel_gone)

    def _cancel_gone(self):
        cdef uint32_t i
        cdef _Slot *slot
        self._leaving = False
        self._left_at = hsm_now_ns()
        for i in range(self._slots.count):
            slot = self._slots.at(i)
            if slot.waiter != NULL and slot.followers == NULL and _gone(<object>slot.waiter):
                hsm_client_cancel(self._client, i)

    def clear_cache(self):
        """Wipe all cached signatures."""
        if self._cache is not None:
            self._cache.clear()

    @property
    def in_flight(self):
        """Requests that hold a slot."""
        return self._slots.in_flight

    @property
    def waiting(self):
        """Callers that wait for a slot."""
        return len(self._queue)


    cdef int _check(self, bytes extra) except -1:
        """Raise if no request can be taken now, or its record could not be written."""
        if self._generation != hsm_fork_generation():
            raise self._failure(HSM_FORKED)
        if not self._open:
            if self._loop is None:
                raise NotInitialized("used before initialize()", member=self._member)
            raise self._failure(HSM_CLOSED)
        if self._down:
            raise self._failure(HSM_HOST_LOST if self._isolated else HSM_TOKEN_LOST)
        # The running loop is the only one of its thread. Asking for it by asyncio.get_running_loop costs a getpid
        # system call in Python 3.11.
        if PyThread_get_thread_ident() != self._thread or not self._loop_is_running():
            raise WrongEventLoop("used outside the event loop that initialized it", member=self._member)
        if self._durable is not None and extra != b"":
            self._durable.require_writable()
        return 0

    cdef inline int _require_key(self, uint32_t key) except -1:
        if self._keys.refused(key):
            raise self._failure(HSM_KEY_DEACTIVATED)
        return 0

    cdef inline bytes _checked(self, object message):
        cdef bytes data = _frozen(message)
        cdef Py_ssize_t size = PyBytes_GET_SIZE(data)
        if size == 0:
            raise EmptyMessage("a message must have at least one byte", member=self._member)
        if size > self._max_message:
            raise error_of("MESSAGE_TOO_LARGE", detail=f"{size} bytes; maxMessageBytes is {self._max_message}",
                           member=self._member)
        return data

    cdef object _failure(self, hsm_status status, uint64_t ckr=0, uint64_t call=0):
        return _exception(status, self._member, ckr, hsm_call_name(call))

    cdef inline uint64_t _ahead(self) noexcept:
        """Requests that a new one waits for. A call that hangs is none of them once its waiter has been answered."""
        return self._slots.owed + self._queue.messages

    cdef object _full(self, uint64_t limit):
        self.refused += 1
        return error_of("QUEUE_FULL", detail=self._admission.describe(self._ahead(), limit), member=self._member)


    cdef inline object _new_future(self):
        # With the keywords made beforehand; Future takes its loop by keyword only.
        return PyObject_Call(Future, (), self._future_keywords)

    cdef inline bint _caches(self, uint32_t key) noexcept:
        return self._cache is not None and self._keys.at(key).cacheable

    cdef inline int _look_up(self, bytes data, uint32_t key, uint64_t *entry) except -1:
        """Ask the cache. JOINED puts the leader's slot into `entry`; MISS a new entry, or 0."""
        cdef uint64_t leader = 0
        cdef int found
        if not self._caches(key):
            return HSM_CACHE_MISS
        found = self._cache.look_up(key, self._keys.at(key).algorithm, data, &leader, entry)
        if found == HSM_CACHE_JOINED:
            entry[0] = leader
        elif found == HSM_CACHE_MISS and hsm_client_free_slots(self._client) == 0:
            hsm_cache_abandon(self._cache._cache, entry[0])  # the request waits, and asks again when it gets a slot
            entry[0] = 0
        return found

    cdef inline bint _proceed(self, int found, uint64_t entry, object waiter, Py_ssize_t position, bytes data,
                              uint32_t key, uint64_t limit, bytes extra) except -1:
        """Continue after `_look_up`: answer a hit, follow an identical request, or hand the request to the workers,
        which have `limit` ns. Returns False if there is no free slot."""
        cdef Pending follower
        if found == HSM_CACHE_HIT:
            self._share(waiter, position, self._cache.signature(), key,
                        hsm_now_ns() + limit if self._durable is not None else 0, data, extra, True)
            return True
        if found == HSM_CACHE_JOINED:
            follower = _pending(waiter, position, data, key, hsm_now_ns() + limit, extra)
            self._slots.follow(self._slots.at(<uint32_t>entry), follower)
            self._deadlines.watch(follower.deadline)
            return True
        return self._send(waiter, position, data, key, limit, entry, extra)

    cdef inline bint _start(self, object waiter, Py_ssize_t position, bytes data, uint32_t key, uint64_t limit,
                            bytes extra) except -1:
        """`_look_up` and `_proceed`."""
        cdef uint64_t entry = 0
        cdef int found = self._look_up(data, key, &entry)
        return self._proceed(found, entry, waiter, position, data, key, limit, extra)

    cdef bint _start_pending(self, Pending request, uint64_t now) except -1:
        cdef uint64_t limit = request.deadline - now if request.deadline > now else 1
        return self._start(request.waiter, request.position, request.message, request.key, limit, request.extra)

    cdef int _share(self, object waiter, Py_ssize_t position, bytes signature, uint32_t key, uint64_t deadline,
                    bytes message, bytes extra, bint cached) except -1:
        """Answer with a signature that was made for another request."""
        if self._durable is None or extra == b"":
            return _answer(waiter, position, signature, 0, cached)
        self._durable.shared(waiter, position, signature, key, deadline, message, extra)
        return self._deadlines.watch(deadline)

    cdef bint _send(self, object waiter, Py_ssize_t position, bytes data, uint32_t key, uint64_t limit,
                    uint64_t entry, bytes extra) except -1:
        """Hand a request to the workers. Returns False if there is no free slot."""
        cdef uint32_t i
        cdef uint64_t deadline
        cdef hsm_status status = hsm_client_submit(self._client, key, <const uint8_t *>PyBytes_AS_STRING(data),
                                                   <size_t>PyBytes_GET_SIZE(data), limit, &i, &deadline)
        if status == HSM_QUEUE_FULL:
            return False
        if status != HSM_OK:
            if entry:
                hsm_cache_abandon(self._cache._cache, entry)
            raise self._failure(status)
        if entry:
            hsm_cache_set_leader(self._cache._cache, entry, i)
        self._slots.fill(i, waiter, position, key, deadline, entry, extra)
        self._deadlines.watch(deadline)
        return True

    cdef int _wait_for_slot(self, object entry) except -1:
        self._queue.push(entry)
        return self._deadlines.watch(_deadline_of(entry))

    cdef bint _feed(self, Batch batch) except -1:
        """Send as much of the batch as there are slots for. Returns whether all of it is on its way."""
        cdef Py_ssize_t count = PyList_GET_SIZE(batch.messages)
        cdef uint64_t now = hsm_now_ns()
        cdef uint64_t limit = batch.deadline - now if batch.deadline > now else 1
        cdef bytes data
        hsm_client_batch_begin(self._client)
        try:
            while batch.next < count:
                data = <bytes>PyList_GET_ITEM(batch.messages, batch.next)
                if not self._start(batch, batch.next, data, batch.key, limit, batch.extra):
                    return False
                batch.next += 1
        finally:
            hsm_client_batch_end(self._client)
            self._flush()
        return True


    def _drain(self):
        """Called by the loop when the rings' descriptor is readable."""
        hsm_client_wake_clear(self._client)
        self._take()

    cdef int _take(self) except -1:
        """Take every completion, answer its waiter and followers, give free slots to requests that wait for one."""
        cdef hsm_completion done
        cdef uint64_t taken = 0
        while hsm_client_next(self._client, &done):
            taken += 1
            if done.status == HSM_OK:
                self._complete(&done)
            else:
                self._fail(&done)
        self._flush()
        self._admission.note(hsm_now_ns(), taken, self._queue.messages != 0 or hsm_client_queued(self._client) != 0)
        if self._queue.messages:
            self._refill()
            self._flush()
        self._check_idle()
        return 0

    cdef inline int _complete(self, const hsm_completion *done) except -1:
        cdef _Slot *slot = self._slots.at(done.slot)
        cdef PyObject *waiter = self._slots.complete(slot)
        cdef bytes extra = self._slots.take_extra(slot)
        cdef bytes signature = PyBytes_FromStringAndSize(<const char *>done.signature, done.signature_len)
        cdef Pending follower
        self.completed += 1
        if slot.entry:
            hsm_cache_fill(self._cache._cache, slot.entry, done.signature, done.signature_len,
                           not self._keys.refused(done.key))
            slot.entry = 0
        if self._durable is not None:
            self._durable.completed(done, waiter, slot.position, signature, slot.deadline, extra)
        elif waiter != NULL:
            _answer(<object>waiter, slot.position, signature, 0, False)
        Py_XDECREF(waiter)
        hsm_client_release(self._client, done.slot)
        if slot.followers != NULL:
            for follower in self._slots.take_followers(slot):
                self._share(follower.waiter, follower.position, signature, done.key, follower.deadline,
                            follower.message, follower.extra, False)
        return 0

    cdef int _fail(self, const hsm_completion *done) except -1:
        cdef _Slot *slot = self._slots.at(done.slot)
        cdef PyObject *waiter = self._slots.complete(slot)
        cdef bytes extra = self._slots.take_extra(slot)
        cdef uint64_t now
        cdef Pending follower
        cdef bint alone
        self._abandon_entry(slot)
        if self._durable is not None and waiter != NULL:
            self._durable.failed(done, extra)
        hsm_client_release(self._client, done.slot)
        self.rejected += 1
        if waiter != NULL:
            _refuse(<object>waiter, slot.position, self._failure(done.status, done.ckr, done.call))
            Py_XDECREF(waiter)
        if slot.followers != NULL:
            # What ended the leader alone, its deadline or its caller, does not end its followers.
            alone = done.status == HSM_CANCELLED or done.status == HSM_DEADLINE_EXCEEDED
            for follower in self._slots.take_followers(slot):
                now = hsm_now_ns()
                if not alone:
                    _refuse_entry(follower, self._failure(done.status, done.ckr, done.call))
                elif not self._open:
                    _refuse_entry(follower, self._failure(HSM_CLOSED))
                # The leader's slot is free now: there is one.
                elif follower.deadline <= now or not self._start_pending(follower, now):
                    _refuse_entry(follower, self._failure(HSM_DEADLINE_EXCEEDED))
        return 0

    cdef int _abandon_entry(self, _Slot *slot) except -1:
        if slot.entry:
            hsm_cache_abandon(self._cache._cache, slot.entry)
            slot.entry = 0
        return 0

    cdef int _refill(self) except -1:
        """Give free slots to the requests that wait, in their order."""
        cdef uint64_t now = hsm_now_ns()
        while self._queue.messages and hsm_client_free_slots(self._client) != 0:
            first = self._queue.pop()
            refusal = self._durable.refusal_of(first) if self._durable is not None else None
            if refusal is not None:
                _refuse_entry(first, refusal)
            elif type(first) is Batch:
                if not _gone(first) and not self._feed(<Batch>first):
                    self._queue.put_back(first)
                    return 0
            elif not _gone((<Pending>first).waiter):
                self._start_pending(<Pending>first, now)
        return 0

    cdef int _drop(self, uint32_t i, hsm_status status) except -1:
        """Answer a slot's waiter before its completion. The slot stays taken until that comes."""
        cdef _Slot *slot = self._slots.at(i)
        cdef object waiter = self._slots.take_waiter(slot)
        cdef bytes extra = self._slots.take_extra(slot)
        if self._durable is not None:
            self._durable.dropped(slot.key, status, extra)
            self._flush()
        _refuse(waiter, slot.position, self._failure(status))
        if status != HSM_CLOSED and slot.followers == NULL:
            hsm_client_cancel(self._client, i)
        return 0

    cdef int _flush(self) except -1:
        if self._durable is not None and self._durable.flush():
            self._check_idle()
        return 0

    cdef int _release_durable(self, uint64_t kept) except -1:
        """For the journal: the records up to number `kept` are durable."""
        self._durable.release(kept)
        return self._check_idle()

    cdef int _refuse_durable(self, int failure) except -1:
        """For the journal: it is failing (`failure`: an errno), or is closed (0)."""
        self._durable.refuse(failure)
        return self._check_idle()

    cdef inline int _check_idle(self) except -1:
        if (self._idle is not None and self._slots.owed == 0 and not self._queue.messages and self._slots.followed == 0
                and (self._durable is None or self._durable.idle()) and not self._idle.done()):
            self._idle.set_result(None)
        return 0


    def _sweep(self):
        """Answer every waiter whose deadline has passed, and plan the next look."""
        cdef uint64_t now = hsm_now_ns()
        cdef uint64_t soonest = 0
        cdef uint32_t i
        cdef _Slot *slot
        cdef bint overdue = False
        for i in range(self._slots.count):
            slot = self._slots.at(i)
            if slot.waiter != NULL:
                if slot.deadline <= now:
                    self._drop(i, HSM_DEADLINE_EXCEEDED)
                    overdue = True
                else:
                    soonest = _earlier(slot.deadline, soonest)
            if slot.followers != NULL:
                soonest = self._slots.sweep_followers(slot, now, soonest, self._member)
        for entry in self._queue.take_overdue(now):
            _refuse_entry(entry, self._failure(HSM_DEADLINE_EXCEEDED))
        soonest = _earlier(self._queue.soonest(), soonest)
        if self._durable is not None:
            soonest = self._durable.sweep(now, soonest)
        self._deadlines.watch(soonest)
        self._check_idle()
        if overdue and self._on_overdue is not None:
            self._on_overdue()


    def stats(self):
        """Counters, and histograms of the time in the module, in the queue and in verification: as [(upper bound in ns,
        count)], and by octaves, where item n counts times below 2^n ns and not below 2^(n-1) ns. Any thread."""
        cdef hsm_stats native
        if self._client == NULL:
            raise self._failure(HSM_CLOSED)
        hsm_client_stats(self._client, &native)
        return {**_figures(&native), "refused": self.refused, "in_flight": self.in_flight, "waiting": self.waiting}

    def cache_stats(self):
        """Counters of the signature cache; all 0 when it is switched off."""
        return self._cache.stats() if self._cache is not None else dict.fromkeys(_CACHE_FIGURES, 0)
