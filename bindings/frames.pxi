# Part of _native.pyx: the ordinary frames of hsmcore-wire/1, made from values, and what takes an answer in place
# of a future. What is not ordinary is left to core/hsmcore/gateway/wire, which does all of this in Python.

from contextvars import copy_context

cdef extern from "hsmcore/frames.h" nogil:
    enum:
        HSM_FRAME_SIGN
        HSM_FRAME_SIGNED
        HSM_FRAME_POSITION
        HSM_FRAME_HEAD
        HSM_FRAME_MOST
        HSM_SIGN_HEAD
        HSM_SIGNED_HEAD

    ctypedef struct hsm_frame:
        const uint8_t *body
        uint32_t body_len
        uint8_t type, flags
        uint16_t slot
        uint64_t request

    ctypedef enum hsm_cut:
        HSM_CUT_FRAME
        HSM_CUT_MORE

    ctypedef struct hsm_frame_sign:
        const uint8_t *message
        uint32_t message_len, timeout_ms, version
        uint64_t position
        uint8_t kind

    ctypedef struct hsm_frame_signed:
        const uint8_t *signature
        uint32_t signature_len, version
        uint64_t audit_seq
        uint8_t level

    hsm_cut hsm_frame_cut(const uint8_t *data, size_t *size, const uint8_t *flags, hsm_frame *frame)
    bint hsm_frame_read_sign(const hsm_frame *frame, hsm_frame_sign *sign)
    bint hsm_frame_read_signed(const hsm_frame *frame, hsm_frame_signed *answer)
    void hsm_frame_write_sign(const hsm_frame *frame, const hsm_frame_sign *sign, uint8_t *head)
    void hsm_frame_write_signed(const hsm_frame *frame, const hsm_frame_signed *answer, uint8_t *head)

cdef extern from "Python.h":
    ctypedef struct PyTypeObject:
        object (*tp_alloc)(void *, Py_ssize_t)

    void PyTuple_SET_ITEM(object items, Py_ssize_t i, object item)  # takes a reference
    PyObject *PyDict_GetItemWithError(object of, object key) except? NULL


cdef object _shaped(object shape, tuple items):
    """A named tuple of these items, without a call of Python's."""
    cdef Py_ssize_t i
    cdef object made = (<PyTypeObject *>shape).tp_alloc(<void *>shape, len(items))
    for i in range(len(items)):
        Py_INCREF(items[i])
        PyTuple_SET_ITEM(made, i, items[i])
    return made


cdef bytes _signed_frame(uint64_t request, uint32_t version, uint8_t level, uint64_t audit_seq, bytes signature):
    """SIGNED, as a frame."""
    cdef hsm_frame frame
    cdef hsm_frame_signed answer
    cdef bytes made = PyBytes_FromStringAndSize(NULL, HSM_SIGNED_HEAD + PyBytes_GET_SIZE(signature))
    cdef uint8_t *out = <uint8_t *>PyBytes_AS_STRING(made)
    frame.flags, frame.slot, frame.request = 0, 0, request
    answer.version, answer.level, answer.audit_seq = version, level, audit_seq
    answer.signature_len = <uint32_t>PyBytes_GET_SIZE(signature)
    hsm_frame_write_signed(&frame, &answer, out)
    memcpy(out + <int>HSM_SIGNED_HEAD, PyBytes_AS_STRING(signature), <size_t>PyBytes_GET_SIZE(signature))
    return made


cdef class RequestFields:
    """What a client keeps of a request: core/hsmcore/gateway/client/request.py says what it is."""

    cdef public object type
    cdef public object value
    cdef public object future
    cdef public object asked_id
    cdef public object parent
    cdef public object refusal
    cdef public object instance
    cdef public object key
    cdef public double deadline
    cdef public double not_before
    cdef public double first
    cdef public uint64_t number
    cdef public Py_ssize_t count
    cdef public int64_t expects
    cdef public int64_t timeout_ms
    cdef public Py_ssize_t sent
    cdef public Py_ssize_t revision
    cdef public Py_ssize_t renewals
    cdef public Py_ssize_t refusals
    cdef public bint full

    def __init__(self, type, value, future, double deadline, Py_ssize_t count=1, asked_id=None, bint full=False):
        self.type, self.value, self.future, self.deadline = type, value, future, deadline
        self.count, self.asked_id, self.full = count, asked_id, full
        self.expects, self.instance = -1, b""


def fill_signs(object queue, object signs, dict kinds not None, dict open not None, uint64_t number, double now,
               object session, Py_ssize_t room, Py_ssize_t most):
    """Make frames of the requests at the head of a deque, while their type is `signs`, for whichever key is current, without a
    trace, and sent for the first time; `room` requests and about `most` bytes at most. They go from there to `open`,
    with numbers from `number` on. `kinds`: their numbers. Returns the frames and their bytes."""
    cdef list frames = []
    cdef hsm_frame frame
    cdef hsm_frame_sign sign
    cdef RequestFields request
    cdef Py_ssize_t size = 0, length
    cdef double left
    key = session.current
    instance, revision = session.instance, session.revision
    frame.slot, sign.version = session.slot, key.version if key is not None else 0
    while size < most and PyList_GET_SIZE(frames) < room and queue:
        request = <RequestFields?>queue[0]
        if request.future.done():
            queue.popleft()
            continue
        if request.type is not signs or request.number or request.sent or request.asked_id is not None or (
                request.parent is not None):
            break
        kind, _, position, _, message = request.value
        length = PyBytes_GET_SIZE(<bytes?>message)
        if length > HSM_FRAME_MOST - HSM_SIGN_HEAD:
            break
        frame.flags, frame.request = 0 if position is None else HSM_FRAME_POSITION, number
        sign.kind, sign.position, sign.message_len = kinds[kind], position or 0, <uint32_t>length
        queue.popleft()
        left = (request.deadline - now) * 1000.0
        request.timeout_ms = 1 if left < 1.0 else <int64_t>left if left < 4294967295.0 else 4294967295
        request.instance, request.first, request.key, request.revision = instance, now, key, revision
        request.number, request.sent, request.expects = number, 1, -1 if request.full else sign.version
        sign.timeout_ms = <uint32_t>request.timeout_ms
        made = PyBytes_FromStringAndSize(NULL, HSM_SIGN_HEAD + length)
        hsm_frame_write_sign(&frame, &sign, <uint8_t *>PyBytes_AS_STRING(made))
        memcpy(PyBytes_AS_STRING(made) + <int>HSM_SIGN_HEAD, PyBytes_AS_STRING(message), <size_t>length)
        open[number] = request
        frames.append(made)
        size += HSM_SIGN_HEAD + length
        number += 1
    return frames, size


cdef class Waiter:
    """Takes an answer in place of a future, in the event loop, without a callback of its own: what `AnswerQueue` has
    collected in an iteration of the loop goes on together. A subclass is given to `ask`."""

    _asyncio_future_blocking = False  # for asyncio.isfuture

    cdef AnswerQueue _answers  # None: nothing was begun
    cdef object _result
    cdef list _told
    cdef bint _done

    def begins(self, AnswerQueue answers not None):
        """Wait for an answer; once."""
        self._answers = answers

    def done(self):
        """Whether there is an answer, or it was withdrawn."""
        return self._done

    def cancelled(self):
        """Whether it was withdrawn."""
        return self._done and self._result is CANCELLED

    def cancel(self):
        """Withdraw it. Returns False if there is an answer."""
        return self._settle(CANCELLED)

    def set_result(self, result):
        """As of a future."""
        if not self._settle(result):
            raise _invalid_state()("answered before")

    def set_exception(self, error):
        """As of a future."""
        if not self._settle(error):
            raise _invalid_state()("answered before")

    @property
    def outcome(self):
        """Its result or error, or CANCELLED; None before."""
        return self._result

    def exception(self):
        """The error, or None."""
        return self._result if isinstance(self._result, BaseException) else None

    def result(self):
        """The result. Raises the error."""
        if isinstance(self._result, BaseException):
            raise self._result
        return self._result

    def add_done_callback(self, told, *, context=None):
        """As of a future."""
        self._told = [*(self._told or ()), (told, copy_context() if context is None else context)]

    cdef bint _settle(self, object result) except -1:
        if self._done:
            return False
        self._done, self._result = True, result
        self._answers._collect(self)
        return True


CANCELLED = object()
"""In the place of the result of a Waiter that was withdrawn."""


@cython.final
cdef class AnswerQueue:
    """The answers of an iteration of the event loop, which go on together: when an engine's are drained, else in the
    next iteration."""

    cdef object _call_soon
    cdef bint _draining  # see _take_together
    cdef object _go_on
    cdef object _context
    cdef list _ready

    def __init__(self, loop, go_on, context not None):
        """`go_on(waiters)` is called with those that have an answer, in this context: one may come within a caller's,
        and they are several callers'."""
        self._call_soon, self._go_on, self._context, self._ready = loop.call_soon, go_on, context, []

    cdef int _collect(self, Waiter waiter) except -1:
        self._ready.append(waiter)
        if PyList_GET_SIZE(self._ready) == 1 and not self._draining:
            self._call_soon(self._deliver, context=self._context)
        return 0

    def _deliver(self):
        cdef list ready = self._ready
        if not PyList_GET_SIZE(ready):
            return
        self._ready = []
        for waiter in ready:
            for told, context in (<Waiter>waiter)._told or ():
                self._call_soon(told, waiter, context=context)
        self._go_on(ready)
