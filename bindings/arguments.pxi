# Part of _native.pyx: the checks on what a caller passes. Every engine and the failover router use these two.


def freeze(message):
    """The message as immutable bytes. Raises InvalidMessageType."""
    return _frozen(message)


def timeout_ns(timeout):
    """A timeout in seconds as nanoseconds, at most 1e8 s. Raises InvalidTimeout if it is not positive and finite."""
    return _timeout_ns(timeout)


cdef bytes _frozen(object message):
    if type(message) is bytes:
        return <bytes>message
    if not PyObject_CheckBuffer(message):
        raise InvalidMessageType(f"a message must be bytes-like, not {type(message).__name__}")
    try:
        return bytes(message)
    except (BufferError, ValueError, TypeError) as error:
        raise InvalidMessageType(f"the message's buffer cannot be read: {error}") from None


cdef uint64_t _timeout_ns(object timeout) except? 0:
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
