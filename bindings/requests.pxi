# Part of _native.pyx: requests on their way to the workers, and their answers on the way back.

include "merkle.pxi"


cdef inline uint32_t _place(uint32_t index) noexcept:
    """Where a key with this index is in the key table (see hsm_key_info)."""
    return index % HSM_MAX_KEYS


cdef class Requests(Recorder):
    """One member's rings, signature cache and futures: the event loop's side of an Engine."""

    cdef hsm_client *_client
    cdef hsm_cache *_cache
    cdef PyObject **_waiters  # by slot; a strong reference, or NULL
    cdef Py_ssize_t *_positions
    cdef uint64_t *_entries  # the cache entry that the slot leads; 0: none
    cdef uint64_t *_deadlines
    cdef uint32_t *_keys
    cdef uint32_t _slots
    cdef uint32_t _in_flight
    cdef uint32_t _owed  # slots whose waiter has no answer yet
    cdef uint32_t _generation
    cdef uint64_t _default_timeout
    cdef uint64_t _sweep_at
    cdef bint _open
    cdef bint _cache_all
    cdef bint _abandoned
    cdef bint _leaving  # callers have left since the slots were last looked through for that
    cdef uint64_t _left_at
    cdef bint _down
    cdef bint _isolated  # the workers are in a host process
    # By place in the key table:
    cdef uint8_t _cacheable[64]
    cdef uint8_t _retired[64]
    cdef hsm_algorithm _algorithms[64]
    cdef uint32_t _indices[64]  # of the key that has the place; another one there is refused
    cdef uint32_t _max_message
    cdef object _loop
    cdef object _loop_is_running
    cdef dict _future_keywords
    cdef long _thread
    cdef object _member
    cdef WaitQueue _queue
    cdef AdmissionControl _admission
    cdef dict _followers  # slot -> [(waiter, position, message, deadline)]
    cdef object _idle
    cdef object _timer
    cdef object _fds
    cdef object _on_overdue
    cdef readonly uint64_t completed
    cdef readonly uint64_t rejected
    cdef readonly uint64_t abandoned
    cdef readonly uint64_t refused  # because they would have waited for too long

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
        for place in range(HSM_MAX_KEYS):
            self._indices[place] = place
        self._slots = hsm_client_slots(self._client)
        self._generation = hsm_fork_generation()
        self._max_message = max_message
        self._default_timeout = <uint64_t>(default_timeout * NS)
        self._cache_all = cache_nondeterministic
        self._member = member
        self._queue = WaitQueue.__new__(WaitQueue)
        self._admission = AdmissionControl.__new__(AdmissionControl)
        self._followers = {}
        self._waiters = <PyObject **>PyMem_Calloc(self._slots, sizeof(PyObject *))
        self._positions = <Py_ssize_t *>PyMem_Calloc(self._slots, sizeof(Py_ssize_t))
        self._entries = <uint64_t *>PyMem_Calloc(self._slots, sizeof(uint64_t))
        self._deadlines = <uint64_t *>PyMem_Calloc(self._slots, sizeof(uint64_t))
        self._keys = <uint32_t *>PyMem_Calloc(self._slots, sizeof(uint32_t))
        if not (self._waiters and self._positions and self._entries and self._deadlines and self._keys):
            raise MemoryError()
        if (cache_size or single_flight) and hsm_cache_new(cache_size, &self._cache) != HSM_OK:
            raise MemoryError()

    def __dealloc__(self):
        cdef uint32_t slot
        if self._waiters != NULL:
            for slot in range(self._slots):
                Py_XDECREF(self._waiters[slot])
        PyMem_Free(self._waiters)
        PyMem_Free(self._positions)
        PyMem_Free(self._entries)
        PyMem_Free(self._deadlines)
        PyMem_Free(self._keys)
        hsm_cache_free(self._cache)
        if not self._abandoned:
            hsm_client_free(self._client)

    # ---- the event loop's side ----

    def attach(self, loop, on_overdue=None):
        """Serve the running `loop`: from now on `submit` works, there only. `on_overdue()` is called when requests have
        passed their deadlines: it is time to `tend`."""
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
        self._fds = (event_fd, timer_fd)
        for fd in self._fds:
            loop.add_reader(fd, self._drain)
        self._open = True

    def refuse(self):
        """Take no further requests."""
        self._open = False

    def set_down(self, bint down):
        """While down, requests fail at once: as HOST_LOST, or without a host process as TOKEN_LOST."""
        self._down = down

    def detach(self):
        """Answer whoever still waits with EngineClosed, and leave the loop."""
        cdef uint32_t slot
        self._open = False
        if self._fds is None:
            return
        self._drain()
        for fd in self._fds:
            self._loop.remove_reader(fd)
        self._fds = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for slot in range(self._slots):
            if self._waiters[slot] != NULL:
                self._drop(slot, HSM_CLOSED)
            if self._entries[slot]:
                hsm_cache_abandon(self._cache, self._entries[slot])
                self._entries[slot] = 0
        for followers in self._followers.values():  # of leaders that were answered at their deadline
            for follower in followers:
                _refuse(follower[0], follower[1], self._failure(HSM_CLOSED))
        self._followers.clear()
        self._refuse_queue(HSM_CLOSED)
        if self._journal is not None:
            self._refuse_held(0)
            self._journal._engines.remove(self)
            self._journal = None

    def idle(self):
        """A future that is done when every caller has its answer."""
        if self._idle is None or self._idle.done():
            self._idle = self._new_future()
        self._check_idle()
        return self._idle

    def submit(self, message, timeout=None, uint32_t key=0, bytes extra=None):
        """Sign one message: its signature if the cache holds it and nothing is recorded, else a future of it. `extra`
        goes into its record: members of a JSON object, beginning with a comma; b"": there is to be no record."""
        return self._submit(message, timeout, key, extra, False)

    def submit_traced(self, message, timeout=None, uint32_t key=0, bytes extra=None):
        """Sign one message: a future of (signature, number of its audit record or None, whether it was cached)."""
        return self._submit(message, timeout, key, extra, True)

    cdef inline bint _refused(self, uint32_t key):
        """Whether nothing may be signed with the key of this index any more."""
        cdef uint32_t place = _place(key)
        return self._retired[place] or self._indices[place] != key

    cdef object _submit(self, object message, object timeout, uint32_t key, bytes extra, bint traced):
        cdef bytes data
        cdef uint64_t limit
        cdef uint64_t entry = 0
        cdef uint32_t slot
        cdef int found
        cdef _Waiting queued
        cdef bytes signature
        cdef bint unrecorded
        self._check()
        self._require_record(extra)
        limit = self._default_timeout if timeout is None else _timeout_ns(timeout)
        data = self._checked(message)
        if self._refused(key):
            raise self._failure(HSM_KEY_DEACTIVATED)
        future = None
        if self._cache != NULL and self._cacheable[_place(key)]:
            found = self._look_up(data, key, &entry)
            if found == HSM_CACHE_HIT:
                signature = PyBytes_FromStringAndSize(<char *>self._found, self._found_len)
                unrecorded = self._journal is None or extra == b""
                if unrecorded and not traced:
                    return signature
                future = self._new_future()
                if unrecorded:
                    future.set_result((signature, None, True))
                    return future
                self._give(Traced.__new__(Traced, future) if traced else future, 0, signature, key,
                           hsm_now_ns() + limit, data, extra)
                self._flush()
                return future
            if found == HSM_CACHE_JOINED:
                future = self._new_future()
                self._follow(<uint32_t>entry, Traced.__new__(Traced, future) if traced else future, 0, data,
                             hsm_now_ns() + limit, extra)
                return future
        if self._admission.refuses(self._ahead(), 1, limit):
            if entry:
                hsm_cache_abandon(self._cache, entry)
            raise self._full(limit)
        future = self._new_future()
        waiter = Traced.__new__(Traced, future) if traced else future
        if self._send(waiter, 0, data, key, limit, entry, extra) != 0:
            queued = _Waiting.__new__(_Waiting)
            queued.waiter = waiter
            queued.message = data
            queued.key = key
            queued.deadline = hsm_now_ns() + limit
            queued.extra = extra
            self._queue.push(queued)
            self._watch(queued.deadline)
        if hsm_client_catch_up(self._client):
            self._take()
        return future

    def submit_many(self, messages, timeout=None, bint return_exceptions=False, uint32_t key=0, bytes extra=None):
        """Sign a batch: a future of the list of signatures, in order. `extra` as in `submit`, for each of them."""
        cdef Batch batch
        cdef list data
        cdef uint64_t limit
        cdef uint64_t count = 1
        self._check()
        self._require_record(extra)
        data = [self._checked(message) for message in messages]
        limit = self._default_timeout if timeout is None else _timeout_ns(timeout)
        if self._refused(key):
            raise self._failure(HSM_KEY_DEACTIVATED)
        # A caller that takes what there is in time gets that; else the last one must be in time.
        if not return_exceptions and not (self._cache != NULL and self._cacheable[_place(key)]):
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
        elif self._queue.messages or not self._feed(batch):  # others wait already: no overtaking
            self._queue.push(batch)
            self._watch(batch.deadline)
        return future

    def abandon(self, future):
        """No caller waits for `future`, which is done: drop its requests, unless others follow or a worker has begun."""
        self.abandoned += 1
        if self._open and not self._leaving and self._generation == hsm_fork_generation():
            self._leaving = True  # one look for all that leave meanwhile: it costs a look at each slot
            self._loop.call_later(SWEEP_INTERVAL if hsm_now_ns() - self._left_at < SWEEP_INTERVAL * NS else 0, self._drop_gone)

    def _drop_gone(self):
        cdef uint32_t slot
        self._leaving = False
        self._left_at = hsm_now_ns()
        for slot in range(self._slots):
            if self._waiters[slot] != NULL and slot not in self._followers and _gone(<object>self._waiters[slot]):
                hsm_client_cancel(self._client, slot)

    def clear_cache(self):
        """Wipe all cached signatures."""
        if self._cache != NULL:
            hsm_cache_clear(self._cache)

    @property
    def in_flight(self):
        """Requests that hold a slot."""
        return self._in_flight

    @property
    def waiting(self):
        """Callers that wait for a slot."""
        return len(self._queue)

    # ---- the inside ----

    cdef uint8_t _found[64]
    cdef uint32_t _found_len

    cdef int _check(self) except -1:
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
        return 0

    cdef inline object _new_future(self):
        # With the keywords made beforehand; Future takes its loop by keyword only.
        return PyObject_Call(Future, (), self._future_keywords)

    cdef bytes _checked(self, object message):
        cdef bytes data = _snapshot(message)
        cdef Py_ssize_t size = PyBytes_GET_SIZE(data)
        if size == 0:
            raise EmptyMessage("a message must have at least one byte", member=self._member)
        if size > self._max_message:
            raise error_of("MESSAGE_TOO_LARGE", detail=f"{size} bytes; maxMessageBytes is {self._max_message}",
                           member=self._member)
        return data

    cdef object _failure(self, hsm_status status, uint64_t ckr=0, uint64_t call=0):
        cdef hsm_error error
        cdef const char *name = hsm_ckr_name(ckr) if ckr else NULL
        return error_of(
            _text(hsm_status_name(status)),
            ckr=ckr,
            ckr_name=_text(name) if name != NULL else None,
            call=_text(hsm_call_name(call)),
            member=self._member,
        )

    cdef inline uint64_t _ahead(self):
        """Requests that a new one would have to wait for. A call that hangs is none once its caller has been answered."""
        return self._owed + self._queue.messages

    cdef object _full(self, uint64_t limit):
        self.refused += 1
        return error_of("QUEUE_FULL", detail=self._admission.describe(self._ahead(), limit),
                        member=self._member)

    cdef object _late(self):
        return self._failure(HSM_DEADLINE_EXCEEDED)

    cdef int _look_up(self, bytes data, uint32_t key, uint64_t *entry) except -1:
        """Ask the cache. HIT fills _found; JOINED puts the leader's slot into `entry`; MISS a new entry, or 0."""
        cdef uint64_t leader = 0
        cdef int found = hsm_cache_lookup(self._cache, key, self._algorithms[_place(key)],
                                          <const uint8_t *>PyBytes_AS_STRING(data), <size_t>PyBytes_GET_SIZE(data),
                                          self._found, &self._found_len, &leader, entry)
        if found == HSM_CACHE_JOINED:
            entry[0] = leader
        elif found == HSM_CACHE_MISS and hsm_client_free_slots(self._client) == 0:
            hsm_cache_abandon(self._cache, entry[0])  # it will wait, and ask again when it gets a slot
            entry[0] = 0
        return found

    cdef int _follow(self, uint32_t slot, object waiter, Py_ssize_t position, bytes data, uint64_t deadline,
                     bytes extra) except -1:
        self._followers.setdefault(slot, []).append((waiter, position, data, deadline, extra))
        self._watch(deadline)
        return 0

    cdef int _send(self, object waiter, Py_ssize_t position, bytes data, uint32_t key, uint64_t limit,
                   uint64_t entry, bytes extra) except -1:
        """Hand a request to the workers. Returns 0, or 1 if there is no free slot."""
        cdef uint32_t slot
        cdef uint64_t deadline
        cdef hsm_status status = hsm_client_submit(self._client, key, <const uint8_t *>PyBytes_AS_STRING(data),
                                                   <size_t>PyBytes_GET_SIZE(data), limit, &slot, &deadline)
        if status == HSM_QUEUE_FULL:
            return 1
        if status != HSM_OK:
            if entry:
                hsm_cache_abandon(self._cache, entry)
            raise self._failure(status)
        if entry:
            hsm_cache_set_leader(self._cache, entry, slot)
        Py_INCREF(waiter)
        self._waiters[slot] = <PyObject *>waiter
        self._positions[slot] = position
        self._entries[slot] = entry
        self._deadlines[slot] = deadline
        self._keys[slot] = key
        if extra is not None:
            self._extras[slot] = extra
        elif self._extras:
            self._extras.pop(slot, None)  # whatever was left there is not this request's
        self._in_flight += 1
        self._owed += 1
        if deadline < self._sweep_at or self._sweep_at == 0:
            self._watch(deadline)
        return 0

    cdef bint _feed(self, Batch batch) except -1:
        """Send as much of the batch as there are slots for. Returns whether all of it is on its way."""
        cdef Py_ssize_t count = PyList_GET_SIZE(batch.messages)
        cdef uint64_t now = hsm_now_ns()
        cdef uint64_t limit = batch.deadline - now if batch.deadline > now else 1
        cdef bint cached = self._cache != NULL and self._cacheable[_place(batch.key)] != 0
        cdef uint64_t entry
        cdef int found
        cdef bytes data
        hsm_client_batch_begin(self._client)
        try:
            while batch.next < count:
                data = <bytes>PyList_GET_ITEM(batch.messages, batch.next)
                entry = 0
                if cached:
                    found = self._look_up(data, batch.key, &entry)
                    if found == HSM_CACHE_HIT:
                        self._give(batch, batch.next, PyBytes_FromStringAndSize(<char *>self._found, self._found_len),
                                   batch.key, batch.deadline, data, batch.extra)
                        batch.next += 1
                        continue
                    if found == HSM_CACHE_JOINED:
                        self._follow(<uint32_t>entry, batch, batch.next, data, batch.deadline, batch.extra)
                        batch.next += 1
                        continue
                if self._send(batch, batch.next, data, batch.key, limit, entry, batch.extra) != 0:
                    return False
                batch.next += 1
        finally:
            hsm_client_batch_end(self._client)
            self._flush()
        return True

    def _drain(self):
        """The loop was woken for completions."""
        hsm_client_wake_clear(self._client)
        self._take()

    cdef int _take(self) except -1:
        """Take every completion, resolve its waiters, give its slot to whoever waits for one."""
        cdef hsm_completion done
        cdef bytes signature
        cdef uint32_t slot
        cdef PyObject *held
        cdef uint64_t taken = 0
        while hsm_client_next(self._client, &done):
            taken += 1
            slot = done.slot
            held = self._waiters[slot]
            self._waiters[slot] = NULL
            self._in_flight -= 1
            self._owed -= held != NULL
            if done.status == HSM_OK:
                self.completed += 1
                signature = PyBytes_FromStringAndSize(<char *>done.signature, done.signature_len)
                if self._entries[slot]:
                    hsm_cache_fill(self._cache, self._entries[slot], done.signature, done.signature_len,
                                   not self._refused(done.key))
                    self._entries[slot] = 0
                if self._journal is not None:
                    self._record(&done, held, self._positions[slot], signature, self._deadlines[slot])
                elif held != NULL:
                    _answer(<object>held, self._positions[slot], signature)
                Py_XDECREF(held)
                hsm_client_release(self._client, slot)
                if self._followers and slot in self._followers:
                    for follower in self._followers.pop(slot):
                        self._give(follower[0], follower[1], signature, done.key, follower[3], follower[2], follower[4])
            else:
                self._settle_failure(&done, held)
        self._flush()
        self._admission.note(hsm_now_ns(), taken, self._queue.messages != 0 or hsm_client_queued(self._client) != 0)
        if self._queue.messages:
            self._refill()
            self._flush()
        if self._idle is not None:
            self._check_idle()

    cdef int _settle_failure(self, const hsm_completion *done, PyObject *held) except -1:
        cdef uint32_t slot = done.slot
        cdef object waiter
        if self._entries[slot]:
            hsm_cache_abandon(self._cache, self._entries[slot])
            self._entries[slot] = 0
        if self._journal is not None and held != NULL:
            self._record(done, NULL, 0, None, 0)
        hsm_client_release(self._client, slot)
        self.rejected += 1
        if held != NULL:
            waiter = <object>held
            Py_XDECREF(held)
            _refuse(waiter, self._positions[slot], self._failure(done.status, done.ckr, done.call))
        followers = self._followers.pop(slot, None)
        if followers:
            # What ended the leader alone, its deadline or its caller, must not end those who followed it.
            renew = done.status == HSM_CANCELLED or done.status == HSM_DEADLINE_EXCEEDED
            for follower in followers:
                if not renew:
                    _refuse(follower[0], follower[1], self._failure(done.status, done.ckr, done.call))
                elif not self._resubmit(done.key, follower):
                    # Its own deadline has passed, or there is no more signing: not what ended the leader.
                    _refuse(follower[0], follower[1], self._failure(HSM_DEADLINE_EXCEEDED if self._open else HSM_CLOSED))
        return 0

    cdef bint _resubmit(self, uint32_t key, tuple follower) except -1:
        cdef uint64_t deadline = follower[3]
        cdef uint64_t now = hsm_now_ns()
        cdef uint64_t entry = 0
        cdef bytes data = follower[2]
        cdef int found
        if deadline <= now or not self._open:
            return False
        found = self._look_up(data, key, &entry)
        if found == HSM_CACHE_HIT:
            self._give(follower[0], follower[1], PyBytes_FromStringAndSize(<char *>self._found, self._found_len), key,
                       deadline, data, follower[4])
            return True
        if found == HSM_CACHE_JOINED:
            self._follow(<uint32_t>entry, follower[0], follower[1], data, deadline, follower[4])
            return True
        # The leader's slot has just been released, so there is one.
        return self._send(follower[0], follower[1], data, key, deadline - now, entry, follower[4]) == 0

    cdef int _refill(self) except -1:
        """Give free slots to those who wait, in their order."""
        cdef _Waiting queued
        cdef uint64_t entry
        cdef uint64_t now = hsm_now_ns()
        cdef int found
        while self._queue.messages and hsm_client_free_slots(self._client) != 0:
            first = self._queue.pop()
            if type(first) is Batch:
                if not _gone(first) and not self._feed(<Batch>first):
                    self._queue.put_back(first)
                    return 0
                continue
            queued = <_Waiting>first
            if _gone(queued.waiter):
                continue
            entry = 0
            if self._cache != NULL and self._cacheable[_place(queued.key)]:
                found = self._look_up(queued.message, queued.key, &entry)
                if found == HSM_CACHE_HIT:
                    self._give(queued.waiter, 0, PyBytes_FromStringAndSize(<char *>self._found, self._found_len),
                               queued.key, queued.deadline, queued.message, queued.extra)
                    continue
                if found == HSM_CACHE_JOINED:
                    self._follow(<uint32_t>entry, queued.waiter, 0, queued.message, queued.deadline, queued.extra)
                    continue
            self._send(queued.waiter, 0, queued.message, queued.key,
                       queued.deadline - now if queued.deadline > now else 1, entry, queued.extra)
        return 0

    cdef int _drop(self, uint32_t slot, hsm_status status) except -1:
        """Answer a slot's waiter without its completion. The slot stays taken until that comes."""
        cdef object waiter = <object>self._waiters[slot]
        Py_XDECREF(self._waiters[slot])
        self._waiters[slot] = NULL
        self._owed -= 1
        if self._journal is not None:
            self._record_drop(slot, self._keys[slot], status)
        _refuse(waiter, self._positions[slot], self._failure(status))
        if status == HSM_CLOSED:
            for follower in self._followers.pop(slot, ()):
                _refuse(follower[0], follower[1], self._failure(status))
        elif slot not in self._followers:
            hsm_client_cancel(self._client, slot)
        return 0

    cdef int _refuse_queue(self, hsm_status status) except -1:
        while self._queue.messages:
            _refuse_entry(self._queue.pop(), self._failure(status))
        return 0

    cdef int _check_idle(self) except -1:
        if (self._owed == 0 and not self._queue.messages and not self._followers and self._held.head == self._held.tail
                and self._idle is not None
                and not self._idle.done()):
            self._idle.set_result(None)
        return 0

    # ---- deadlines ----

    cdef int _watch(self, uint64_t deadline) except -1:
        """Make sure that deadlines are looked at when this one passes."""
        cdef uint64_t now
        if deadline == 0 or (self._sweep_at != 0 and self._sweep_at <= deadline):
            return 0
        now = hsm_now_ns()
        if self._timer is not None:
            self._timer.cancel()
        self._sweep_at = deadline
        self._timer = self._loop.call_later(
            max(SWEEP_INTERVAL, (deadline - now) / NS) if deadline > now else SWEEP_INTERVAL, self._sweep)
        return 0

    def _sweep(self):
        """Answer every waiter whose deadline has passed, and plan the next look."""
        cdef uint64_t now = hsm_now_ns()
        cdef uint64_t soonest = 0
        cdef uint32_t slot
        cdef bint overdue = False
        self._timer = None
        self._sweep_at = 0
        for slot in range(self._slots):
            if self._waiters[slot] == NULL:
                continue
            if self._deadlines[slot] <= now:
                self._drop(slot, HSM_DEADLINE_EXCEEDED)
                overdue = True
            elif soonest == 0 or self._deadlines[slot] < soonest:
                soonest = self._deadlines[slot]
        soonest = self._sweep_followers(now, soonest)
        soonest = self._sweep_queue(now, soonest)
        soonest = self._sweep_held(now, soonest)
        if soonest:
            self._watch(soonest)
        self._check_idle()
        if overdue and self._on_overdue is not None:
            self._on_overdue()

    cdef uint64_t _sweep_followers(self, uint64_t now, uint64_t soonest) except? 0:
        cdef uint64_t deadline
        for slot in list(self._followers):
            kept = []
            for follower in self._followers[slot]:
                deadline = follower[3]
                if deadline <= now:
                    _refuse(follower[0], follower[1], self._failure(HSM_DEADLINE_EXCEEDED))
                else:
                    kept.append(follower)
                    soonest = deadline if soonest == 0 or deadline < soonest else soonest
            if kept:
                self._followers[slot] = kept
            else:
                del self._followers[slot]
        return soonest

    cdef uint64_t _sweep_queue(self, uint64_t now, uint64_t soonest) except? 0:
        cdef uint64_t next_one
        for entry in self._queue.take_overdue(now):
            _refuse_entry(entry, self._failure(HSM_DEADLINE_EXCEEDED))
        next_one = self._queue.soonest()
        return next_one if soonest == 0 or 0 < next_one < soonest else soonest

    # ---- what it has done ----

    def stats(self):
        """Counters, and the histograms of time inside the module, in the queue and verifying as [(upper bound in ns,
        count)], and once more by octaves: place n counts what is below 2^n ns and not below 2^(n-1). Any thread."""
        cdef hsm_stats native
        cdef uint32_t i
        if self._client == NULL:
            raise self._failure(HSM_CLOSED)
        hsm_client_stats(self._client, &native)
        return {
            "signatures": native.signatures,
            "failures": native.failures,
            "expired": native.expired,
            "cancelled": native.cancelled,
            "refused": self.refused,
            "wrong": native.wrong,
            "wakes": native.wakes,
            "recoveries": {_text(hsm_class_name(<hsm_class>i)): native.recoveries[i]
                           for i in range(HSM_CLASS_COUNT) if native.recoveries[i]},
            "failed": {_text(hsm_class_name(<hsm_class>i)): native.failed[i] for i in range(1, HSM_CLASS_COUNT)},
            "workers": native.workers,
            "busy": native.busy,
            "stuck": native.stuck,
            "down": native.down != 0,
            "queued": native.queued,
            "in_flight": self._in_flight,
            "waiting": len(self._queue),
            "oldest_queued_ns": native.oldest_queued_ns,
            "oldest_call_ns": native.oldest_call_ns,
            "hsm_sum_ns": native.hsm_sum_ns,
            "queue_sum_ns": native.queue_sum_ns,
            "verify_sum_ns": native.verify_sum_ns,
            "hsm_ns": _buckets(native.hsm_ns),
            "queue_ns": _buckets(native.queue_ns),
            "verify_ns": _buckets(native.verify_ns),
            "hsm_octaves": _octaves(native.hsm_ns),
            "queue_octaves": _octaves(native.queue_ns),
            "verify_octaves": _octaves(native.verify_ns),
        }

    def cache_stats(self):
        """Counters of the signature cache; all 0 when it is switched off."""
        cdef hsm_cache_stats stats
        if self._cache == NULL:
            return dict.fromkeys(("hits", "misses", "joined", "evictions", "entries", "in_flight", "bytes"), 0)
        hsm_cache_stats_read(self._cache, &stats)
        return {"hits": stats.hits, "misses": stats.misses, "joined": stats.joined, "evictions": stats.evictions,
                "entries": stats.entries, "in_flight": stats.in_flight, "bytes": stats.bytes}
