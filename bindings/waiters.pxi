# Part of _native.pyx: the waiters, by the numbers that the request table gives to requests. A waiter is a future or a
# Batch. A future that is done already, because its caller has left, takes no answer.

# Tags of a request with a future of its own. RECEIPT: the future gets a Receipt. ROUTED: another member may go on with
# it, see Routes; the rest of the tag is the deadline of the whole request, in ns of CLOCK_MONOTONIC. OWN, if it is not
# ROUTED: it is hsmcore's own, and needs no lease. The tag of a batch's request is its position.
cdef uint64_t ROUTED = <uint64_t>1 << 63
cdef uint64_t RECEIPT = <uint64_t>1 << 62
cdef uint64_t OWN = <uint64_t>1 << 61
cdef uint64_t LATEST = RECEIPT - 1

Future = None  # asyncio's, loaded with the first loop: a process that has none begins in two thirds of the time


cdef dict _keywords_of_futures(object loop):
    """What each Future of a loop is made with."""
    global Future
    from asyncio import Future as found
    Future = found
    return {"loop": loop}


cdef object _invalid_state():
    from asyncio import InvalidStateError
    return InvalidStateError


@cython.final
cdef class Batch:
    """The messages of one `submit_many` and their results. The tag of a request is its position."""

    cdef object future
    cdef list results
    cdef Py_ssize_t remaining
    cdef uint64_t *numbers
    """By position: the number of the request; 0: there is none."""
    cdef bint return_exceptions

    def __cinit__(self, future, Py_ssize_t count, bint return_exceptions):
        self.future = future
        self.results = [None] * count
        self.remaining = count
        self.return_exceptions = return_exceptions
        self.numbers = <uint64_t *>PyMem_Calloc(count or 1, sizeof(uint64_t))
        if self.numbers == NULL:
            raise MemoryError()

    def __dealloc__(self):
        PyMem_Free(self.numbers)

    cdef bint put(self, Py_ssize_t position, object result) except -1:
        self.results[position] = result
        self.remaining -= 1
        return self.remaining != 0 or _set_result(self.future, self.results)

    cdef bint fail(self, Py_ssize_t position, object error) except -1:
        if self.return_exceptions:
            return self.put(position, error)
        self.remaining -= 1
        return _set_exception(self.future, of_batch(error, position))


cdef inline bint _set_result(object future, object result) except -1:
    try:
        future.set_result(result)
    except _invalid_state():
        return False
    return True


cdef inline bint _set_exception(object future, object error) except -1:
    try:
        future.set_exception(error)
    except _invalid_state():
        return False
    return True


cdef inline bint _answer(object waiter, uint64_t tag, bytes signature, dict signers, const hsm_answer *answer,
                         uint64_t seq, uint64_t begun) except -1:
    """Give a waiter its signature; returns whether it took it. `seq`: the number of its audit record, or 0."""
    if type(waiter) is Batch:
        return (<Batch>waiter).put(<Py_ssize_t>tag, signature)
    if tag & RECEIPT == 0:
        return _set_result(waiter, signature)
    return _set_result(waiter, _receipt(signature, signers.get(answer.key), answer, seq, begun))


cdef object _receipt(bytes signature, tuple signer, const hsm_answer *answer, uint64_t seq, uint64_t begun):
    """Made without a call of Python's. `signer`: what `signs_as` has said, if it has."""
    if signer is None:
        signer = "", b"", "", ""
    receipt = Receipt.__new__(Receipt)
    PyObject_GenericSetAttr(receipt, "signature", signature)
    PyObject_GenericSetAttr(receipt, "key_id", signer[0])
    PyObject_GenericSetAttr(receipt, "public_key", signer[1])
    PyObject_GenericSetAttr(receipt, "member", signer[2])
    PyObject_GenericSetAttr(receipt, "level", signer[3])
    PyObject_GenericSetAttr(receipt, "cached", bool(answer.cached))
    PyObject_GenericSetAttr(receipt, "latency_ns", hsm_now_ns() - begun)
    PyObject_GenericSetAttr(receipt, "audit_seq", seq or None)
    return receipt


cdef bint _refuse(object waiter, uint64_t tag, object error) except -1:
    """Give a waiter its error; returns whether it took it."""
    return (<Batch>waiter).fail(<Py_ssize_t>tag, error) if type(waiter) is Batch else _set_exception(waiter, error)


cdef inline bint _gone(object waiter):
    """Whether the caller has left or has its answer."""
    return (<Batch>waiter).future.done() if type(waiter) is Batch else waiter.done()


cdef struct _Named:
    PyObject *future  # borrowed from the waiters; NULL: free
    uint64_t number


cdef inline void _replace(list items, Py_ssize_t i, object item) noexcept:
    cdef PyObject *old = PyList_GET_ITEM(items, i)
    Py_INCREF(item)
    PyList_SET_ITEM(items, i, item)
    Py_XDECREF(old)


@cython.final
cdef class Waiters:
    """What belongs to a request, by the lower half of its number, and the numbers of the futures that wait."""

    cdef list waiters
    """A future, a Batch, or None: the waiter has left or was answered."""
    cdef list messages
    """What the request table points to: bytes, or the Digest that holds them."""
    cdef list extras
    cdef list onlys
    """Public keys: whoever goes on with the request uses this key or none; None: any."""
    cdef uint64_t *begun
    """When requests with a receipt came, in ns of CLOCK_MONOTONIC."""
    # A hash table with linear probing, half full at most. Python's own dictionary takes four times as long.
    cdef _Named *_named
    cdef size_t _mask
    cdef size_t _count

    def __cinit__(self):
        self.waiters, self.messages, self.extras, self.onlys = [], [], [], []
        self._rehash(512)

    def __dealloc__(self):
        PyMem_Free(self.begun)
        PyMem_Free(self._named)

    cdef inline int reserve(self, uint32_t count) except -1:
        """Before a request is taken: for `put`, which cannot fail, make places for so many."""
        return self._lengthen(count) if <Py_ssize_t>count > PyList_GET_SIZE(self.extras) else 0

    cdef inline void put(self, uint64_t number, object waiter, bytes message, bytes extra) noexcept:
        cdef Py_ssize_t i = <uint32_t>number
        _replace(self.messages, i, message)
        if waiter is not None:
            _replace(self.waiters, i, waiter)
        if extra is not None:
            _replace(self.extras, i, extra)

    cdef int _lengthen(self, Py_ssize_t count) except -1:
        cdef void *longer = PyMem_Realloc(self.begun, count * sizeof(uint64_t))
        if longer == NULL:
            raise MemoryError()
        self.begun = <uint64_t *>longer
        for of in (self.waiters, self.messages, self.onlys, self.extras):  # the last one has the length of all
            of.extend([None] * (count - PyList_GET_SIZE(of)))
        return 0

    cdef inline int name(self, uint64_t number, object future) except -1:
        """Make a future the waiter, which `number_of` finds until it is taken."""
        if 2 * self._count > self._mask:
            self._rehash(2 * (self._mask + 1))
        _replace(self.waiters, <Py_ssize_t><uint32_t>number, future)
        self._insert(<PyObject *>future, number)
        self._count += 1
        return 0

    cdef inline object take(self, uint64_t number):
        """The waiter, which gets its answer now or has left."""
        cdef Py_ssize_t i = <uint32_t>number
        cdef object waiter = <object>PyList_GET_ITEM(self.waiters, i)
        if waiter is not None:
            _replace(self.waiters, i, None)
            if type(waiter) is not Batch:
                self._remove(<PyObject *>waiter)
        return waiter

    cdef inline void forget(self, uint64_t number):
        """The request is over, its waiter was taken."""
        cdef Py_ssize_t i = <uint32_t>number
        _replace(self.messages, i, None)
        if PyList_GET_ITEM(self.extras, i) != <PyObject *>None:
            _replace(self.extras, i, None)
        if PyList_GET_ITEM(self.onlys, i) != <PyObject *>None:
            _replace(self.onlys, i, None)

    cdef inline size_t _home(self, PyObject *future) noexcept:
        return (<uint64_t>future >> 4) * <uint64_t>0x9e3779b97f4a7c15 >> 32 & self._mask

    cdef inline size_t _find(self, PyObject *future) noexcept:
        cdef size_t at = self._home(future)
        while self._named[at].future != NULL and self._named[at].future != future:
            at = (at + 1) & self._mask
        return at

    cdef uint64_t number_of(self, object future) noexcept:
        """The number of the request that a future waits for; 0: none."""
        return self._named[self._find(<PyObject *>future)].number

    cdef inline void _insert(self, PyObject *future, uint64_t number) noexcept:
        cdef size_t at = self._find(future)
        self._named[at].future = future
        self._named[at].number = number

    cdef inline void _remove(self, PyObject *future) noexcept:
        cdef size_t hole = self._find(future)
        cdef size_t at = hole
        if self._named[hole].future == NULL:
            return
        self._count -= 1
        while True:  # move back what could not have its own place because of this one
            at = (at + 1) & self._mask
            if self._named[at].future == NULL:
                break
            if ((at - self._home(self._named[at].future)) & self._mask) >= ((at - hole) & self._mask):
                self._named[hole] = self._named[at]
                hole = at
        self._named[hole].future = NULL
        self._named[hole].number = 0

    cdef int _rehash(self, size_t capacity) except -1:
        cdef _Named *old = self._named
        cdef size_t count = self._mask + 1 if old != NULL else 0
        cdef size_t i
        cdef _Named *named = <_Named *>PyMem_Calloc(capacity, sizeof(_Named))
        if named == NULL:
            raise MemoryError()
        self._named, self._mask = named, capacity - 1
        for i in range(count):
            if old[i].future != NULL:
                self._insert(old[i].future, old[i].number)
        PyMem_Free(old)
        return 0
