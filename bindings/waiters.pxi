# Part of _native.pyx: who waits for an answer, and how it is given.


cdef class Batch:
    """The messages of one `submit_many`, and what became of them."""

    cdef object future
    cdef list messages
    cdef list results
    cdef Py_ssize_t next
    cdef Py_ssize_t remaining
    cdef uint32_t key
    cdef uint64_t deadline
    cdef bytes extra
    cdef bint return_exceptions

    cdef int put(self, Py_ssize_t position, object result) except -1:
        self.results[position] = result
        self.remaining -= 1
        if self.remaining == 0:
            try:
                self.future.set_result(self.results)
            except InvalidStateError:
                pass
        return 0

    cdef int fail(self, Py_ssize_t position, object error) except -1:
        if self.return_exceptions:
            return self.put(position, error)
        self.remaining -= 1
        try:
            self.future.set_exception(error)
        except InvalidStateError:
            pass
        return 0


cdef int _answer(object waiter, Py_ssize_t position, bytes signature) except -1:
    if type(waiter) is Batch:
        return (<Batch>waiter).put(position, signature)
    if type(waiter) is Traced:
        return _answer_recorded(waiter, position, signature, 0, False)
    try:
        waiter.set_result(signature)
    except InvalidStateError:
        pass  # cancelled meanwhile
    return 0


cdef class Traced:
    """Somebody who wants to know more than the signature: (signature, number of its record or None, cached)."""

    cdef readonly object future

    def __cinit__(self, future):
        self.future = future


cdef int _answer_recorded(object waiter, Py_ssize_t position, bytes signature, uint64_t seq, bint cached) except -1:
    if type(waiter) is Traced:
        waiter = (<Traced>waiter).future
        if not waiter.done():
            waiter.set_result((signature, seq or None, cached))
        return 0
    return _answer(waiter, position, signature)


cdef int _refuse(object waiter, Py_ssize_t position, object error) except -1:
    if type(waiter) is Batch:
        return (<Batch>waiter).fail(position, error)
    if type(waiter) is Traced:
        waiter = (<Traced>waiter).future
    try:
        waiter.set_exception(error)
    except InvalidStateError:
        pass
    return 0


cdef bint _gone(object waiter):
    """Whether nobody waits any more."""
    if type(waiter) is Batch:
        return (<Batch>waiter).future.done()
    return (<Traced>waiter).future.done() if type(waiter) is Traced else waiter.done()


cdef bytes _snapshot(object message):
    """The message as bytes that nobody else can change."""
    if type(message) is bytes:
        return <bytes>message
    if not PyObject_CheckBuffer(message):
        raise InvalidMessageType(f"a message must be bytes-like, not {type(message).__name__}")
    try:
        return bytes(message)
    except (BufferError, ValueError, TypeError) as error:
        raise InvalidMessageType(f"the message's buffer cannot be read: {error}") from None


cdef uint64_t _timeout_ns(object timeout) except? 0:
    """A timeout in seconds as nanoseconds; anything but a positive, finite number is refused."""
    cdef double seconds
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise InvalidTimeout(f"a timeout must be a number of seconds, not {type(timeout).__name__}")
    try:
        seconds = timeout
    except OverflowError:
        raise InvalidTimeout("a timeout must be positive and finite") from None
    if not 0 < seconds < inf:
        raise InvalidTimeout(f"a timeout must be positive and finite, not {timeout}")
    return <uint64_t>(min(seconds, 1e8) * NS) or 1


cdef class _Waiting:
    """A request that waits for a free slot."""

    cdef object waiter
    cdef bytes message
    cdef bytes extra
    cdef uint32_t key
    cdef uint64_t deadline
