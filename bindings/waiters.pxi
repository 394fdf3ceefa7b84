# Part of _native.pyx: the waiters, and how each gets its answer. A waiter is a future, a WithReceipt or a Batch, the
# last one together with a position. A future that is done already, because its caller has left, takes no answer.


@cython.final
cdef class WithReceipt:
    """The waiter of `submit_with_receipt`: its future gets (signature, number of the audit record or None, cached)."""

    cdef object future

    def __cinit__(self, future):
        self.future = future


@cython.final
cdef class Batch:
    """The messages of one `submit_many` and their results. The messages before `next` are sent or answered."""

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
        return _set_result(self.future, self.results) if self.remaining == 0 else 0

    cdef int fail(self, Py_ssize_t position, object error) except -1:
        if self.return_exceptions:
            return self.put(position, error)
        self.remaining -= 1
        return _set_exception(self.future, error)


cdef inline int _set_result(object future, object result) except -1:
    try:
        future.set_result(result)
    except InvalidStateError:
        pass
    return 0


cdef inline int _set_exception(object future, object error) except -1:
    try:
        future.set_exception(error)
    except InvalidStateError:
        pass
    return 0


cdef inline int _answer(object waiter, Py_ssize_t position, bytes signature, uint64_t seq, bint cached) except -1:
    """Give a waiter its signature. `seq`: the number of its audit record, or 0."""
    if type(waiter) is Batch:
        return (<Batch>waiter).put(position, signature)
    if type(waiter) is WithReceipt:
        return _set_result((<WithReceipt>waiter).future, (signature, seq or None, cached))
    return _set_result(waiter, signature)


cdef int _refuse(object waiter, Py_ssize_t position, object error) except -1:
    """Give a waiter its error."""
    if type(waiter) is Batch:
        return (<Batch>waiter).fail(position, error)
    return _set_exception((<WithReceipt>waiter).future if type(waiter) is WithReceipt else waiter, error)


cdef bint _gone(object waiter):
    """Whether the caller has left or has its answer."""
    if type(waiter) is Batch:
        return (<Batch>waiter).future.done()
    return (<WithReceipt>waiter).future.done() if type(waiter) is WithReceipt else waiter.done()
