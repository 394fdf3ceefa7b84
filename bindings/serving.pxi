# Part of _native.pyx: what is read of a connection of hsmcore-wire/1, a whole read at a time: of a client's, the answers
# settle its requests; of a gateway's, ordinary SIGNs become requests that have their turns at the key manager, whose
# answers become frames. What is not ordinary is left to core/hsmcore/gateway, which does all of this in
# Python. Belongs to one event loop.


cdef class RequestOfClient(Waiter):
    """What a gateway keeps of a request: jobs.py, operations.py and wire_requests.py in core/hsmcore/gateway say what it
    is."""

    cdef public object queue
    cdef public object account
    cdef public object start
    cdef public object context
    cdef public object running
    cdef public object counter
    cdef public object operation
    cdef public object what
    cdef public object connection
    cdef public object session
    cdef public object contents
    cdef public object others
    cdef public uint64_t number
    cdef public double timeout
    cdef public double until
    cdef public double held_until
    cdef public Py_ssize_t cost
    cdef public Py_ssize_t size
    cdef public bint ended
    cdef public bint takes_turn
    cdef bint _ordinary  # SignIntake took it


# A body that is longer is remembered by its digest.
cdef Py_ssize_t _SHORT_BODY = 512


@cython.final
cdef class SignIntake:
    """Takes ordinary SIGNs of a connection: new ones, alone, without a trace, while there is room for them."""

    cdef ReplayTable _session
    cdef tuple _counters
    cdef object _connection
    cdef object _context
    cdef object _operation
    cdef object _request
    cdef object _type
    cdef object _shape
    cdef tuple _kinds
    cdef Py_ssize_t _size
    cdef double _now
    cdef double _forgets
    cdef list _begun
    cdef list _waits
    cdef Py_ssize_t _taken
    cdef bint _full  # the last one found no room
    # Of the key manager that was named last.
    cdef Py_ssize_t _slot
    cdef object _counter
    cdef object _queue
    cdef object _answers
    cdef FairQueue _turns
    cdef Flow _account
    cdef double _timeout
    cdef double _longest

    def __init__(self, connection, ReplayTable session not None, tuple counters not None, context, operation, request,
                 type, shape, tuple kinds not None, Py_ssize_t size, double forgets):
        """`counters`: what the client may do, by slot. `operation`: SIGN, of which requests are made as `request`.
        `type`, `shape`, `kinds`: as of frames. `size`: bytes of a request beside its body. `forgets`: seconds until an
        answer is forgotten."""
        self._connection, self._session, self._counters, self._context = connection, session, counters, context
        self._operation, self._request, self._type, self._shape = operation, request, type, shape
        self._kinds, self._size, self._forgets, self._slot = kinds, size, forgets, -1
        self._begun, self._waits = [], []

    def begins(self, double now):
        """Before frames are cut. `now`: as of ReplayTable."""
        self._now, self._taken = now, 0

    def taken(self):
        """What was taken: how many, which begin now, and which wait for their turn. Once."""
        cdef list begun = self._begun
        cdef list waits = self._waits
        self._begun, self._waits = [], []
        return self._taken, begun, waits

    cdef int _look_up(self, Py_ssize_t slot) except -1:
        counter = self._counters[slot]
        self._counter, self._queue, self._account = counter, counter.queue, counter.account
        self._turns, self._answers = self._queue.turns, self._queue.answers
        self._timeout, self._longest, self._slot = counter.timeout, counter.longest, slot
        return 0

    cdef bint _takes(self, const hsm_frame *frame) except -1:
        """Take a SIGN; returns whether it is an ordinary one."""
        cdef hsm_frame_sign sign
        cdef RequestOfClient request
        cdef double seconds
        self._full = False
        if frame.flags & ~HSM_FRAME_POSITION or not frame.request or frame.slot >= len(self._counters):
            return False
        if frame.body_len > _SHORT_BODY or not hsm_frame_read_sign(frame, &sign) or sign.kind >= len(self._kinds):
            return False
        if frame.slot != self._slot:
            self._look_up(frame.slot)
        self._full = bool(self._account.held) or self._account.open >= self._account.most
        if self._full or self._account.rate is not None:
            return False
        if not self._session._is_new(frame.request, self._now - self._forgets):
            return False
        request = RequestOfClient.__new__(self._request)
        position = sign.position if frame.flags & HSM_FRAME_POSITION else None
        message = PyBytes_FromStringAndSize(<const char *>sign.message, sign.message_len)
        body = PyBytes_FromStringAndSize(<const char *>frame.body, frame.body_len)
        seconds = <double>sign.timeout_ms / 1000.0
        request._answers, request.queue, request.account = self._answers, self._queue, self._account
        request.start, request.context, request.counter = self._operation.begin, self._context, self._counter
        request.operation, request.connection, request.session = self._operation, self._connection, self._session
        request.what = _shaped(self._shape, (self._kinds[sign.kind], sign.timeout_ms, position, sign.version, message))
        request.contents, request.others = (self._type, frame.flags, frame.slot, body), ()
        request.number, request.cost, request.takes_turn, request._ordinary = frame.request, 1, True, True
        request.timeout = min(seconds, self._longest) if seconds else self._timeout
        request.size = self._size + frame.body_len
        self._account.open += 1
        self._session.begin(frame.request, request.contents, request, self._now)
        (self._begun if self._turns.begins(self._account) else self._waits).append(request)
        self._taken += 1
        return True


def cut_frames(bytes data not None, Py_ssize_t at, Py_ssize_t most, bytes flags not None, tuple types not None,
               object shape, dict open=None, SignIntake signs=None):
    """Cut frames from `at` on, `most` at most. `flags` and `types`: by the number of a type, the flags that it may have
    and what it is. `shape`: of a frame, a named tuple. `open`: a client's requests by number; SIGNED settles the future
    of one that says by `expects` which version it has to be, 0 for any; of others that is negative. `signs`: takes ordinary ones
    of a gateway, up to the first other frame; of SIGNs for which there is no room, those behind it are cut, too.
    Returns the other frames, where the rest begins, how many bytes of it are needed, or 0 if what comes there is no
    frame, and how many requests were settled, or taken."""
    cdef const uint8_t *begin = <const uint8_t *>PyBytes_AS_STRING(data)
    cdef Py_ssize_t end = PyBytes_GET_SIZE(data)
    cdef const uint8_t *allowed = <const uint8_t *>PyBytes_AS_STRING(flags)
    cdef list frames = []
    cdef hsm_frame frame
    cdef hsm_cut found
    cdef size_t size = 4
    cdef Py_ssize_t settled = 0
    if at < 0 or at > end or PyBytes_GET_SIZE(flags) != 256 or len(types) != 256:
        raise BadArgument("outside the data")
    while PyList_GET_SIZE(frames) + settled < most:
        size = <size_t>(end - at)
        found = hsm_frame_cut(begin + at, &size, allowed, &frame)
        if found != HSM_CUT_FRAME:
            return frames, at, size if found == HSM_CUT_MORE else 0, settled
        at += <Py_ssize_t>size
        if open is not None and frame.type == HSM_FRAME_SIGNED and _settles(open, &frame):
            settled += 1
            continue
        if signs is not None and frame.type == HSM_FRAME_SIGN and PyList_GET_SIZE(frames) == 0 and signs._takes(&frame):
            settled += 1
            continue
        body = PyBytes_FromStringAndSize(<const char *>frame.body, frame.body_len)
        frames.append(_shaped(shape, (types[frame.type], frame.flags, frame.slot, frame.request, body)))
        if signs is not None and (frame.type != HSM_FRAME_SIGN or not signs._full):
            break
    return frames, at, 4, settled


cdef bint _settles(dict open, const hsm_frame *frame) except -1:
    """Settle the request that a frame answers in the ordinary way; returns whether it does."""
    cdef hsm_frame_signed answer
    cdef object number = frame.request
    cdef PyObject *known = PyDict_GetItemWithError(open, number)
    cdef RequestFields request
    if known == NULL or not hsm_frame_read_signed(frame, &answer) or answer.level > 3:
        return False
    request = <RequestFields?><object>known
    if request.expects < 0 or (request.expects and request.expects != answer.version):
        return False
    del open[number]
    _set_result(request.future, PyBytes_FromStringAndSize(<const char *>answer.signature, answer.signature_len))
    return True


def answer_signs(list requests not None, FairQueue turns not None, dict levels not None, uint64_t no_record):
    """Answer the requests that SignIntake took and that are signed: each connection gets its frames in one call.
    `levels`: their numbers. `no_record`: in place of the number of a record. Returns those that are not answered here,
    and what begins now, as FairQueue.free."""
    cdef list rest = []
    cdef list begun = []
    cdef dict frames = {}
    cdef RequestOfClient request
    cdef Flow account
    cdef ReplayTable session
    for one in requests:
        request = <RequestOfClient?>one
        receipt = request._result
        if not request._ordinary or type(receipt) is not Receipt or request.ended or request.others:
            rest.append(one)
            continue
        try:  # first what may fail: the error is this request's answer, the others have theirs
            seq = receipt.audit_seq
            version = (<tuple>request.what)[3] or request.counter.versions.number(receipt.public_key)
            data = _signed_frame(request.number, version, levels.get(receipt.level, 0),
                                 no_record if seq is None else seq, receipt.signature)
        except Exception as error:
            request._result = error
            rest.append(one)
            continue
        request.ended, request.running = True, None
        account, session = request.account, request.session
        account.open -= 1
        if account.held:
            account._go_on_later()
        if PyList_GET_SIZE(turns._order):
            begun += turns.free(account, 1)
        else:
            turns.under_way -= 1
            account.under_way -= 1
        session.close(request.number, data, request.connection.server.now)
        known = PyDict_GetItemWithError(frames, request.connection)
        if known == NULL:
            frames[request.connection] = [data]
        else:
            (<list><object>known).append(data)
    for connection, of_it in frames.items():
        connection.send_signed(of_it)
    return rest, begun


cdef int _take_together(Requests engine, AnswerQueue answers) except -1:
    """Take an engine's answers, and let those of waiters go on now: the loop has called, and no caller has."""
    if answers is None:
        return engine._take()
    answers._draining = True
    try:
        return engine._take()
    finally:
        answers._draining = False
        answers._context.run(answers._deliver)
