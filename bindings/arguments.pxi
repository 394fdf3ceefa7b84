# Part of _native.pyx: the checks on what a caller passes. Every engine and the failover router use them.

cdef Py_ssize_t DIGEST_BYTES = 32


@cython.final
cdef class Digest:
    """Takes the place of a message: a SHA-256 digest, or another of 32 bytes, which an ECDSA key signs as it is. Never
    equal to a message of the same bytes."""

    cdef readonly bytes value

    def __cinit__(self, value):
        """Raises InvalidMessageType, InvalidMessage."""
        self.value = _frozen(value)
        if PyBytes_GET_SIZE(self.value) != DIGEST_BYTES:
            raise InvalidMessage(f"a digest must have {DIGEST_BYTES} bytes, not {PyBytes_GET_SIZE(self.value)}")

    def __len__(self):
        return DIGEST_BYTES


def freeze(message):
    """The message as immutable bytes; a Digest as it is. Raises InvalidMessageType."""
    return message if type(message) is Digest else _frozen(message)


def digest_of(message):
    """What names a message in records and bindings, and what an ECDSA key signs: its SHA-256, or the value of a Digest.
    So a message and its own digest are one thing here. Raises InvalidMessageType."""
    return (<Digest>message).value if type(message) is Digest else sha256(_frozen(message)).digest()


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
