# Part of _native.pyx: the way of a request to one of several members while all is well. Who shares the requests, and
# what happens after a failure, is decided in core/hsmcore/failover/.


@cython.final
@cython.no_gc_clear
cdef class Routes:
    """The members that share the requests of callers now. Belongs to one event loop.

    `submit` costs what the member's own submit costs, and picks the member before: a ramping one in its turn, else the
    one with the fewest requests. It takes the long way, which is a coroutine, while no member may take a request at
    once, and for the messages that `decide` names. An attempt that fails goes on by `fall_back`, which gives the future
    its answer in the end."""

    cdef object _long_way
    cdef object _long_way_with_receipt
    cdef object _fall_back
    cdef object _decide
    cdef list _engines
    cdef hsm_route *_shares
    cdef uint32_t _ramping  # the first so many
    cdef uint64_t _round  # a ramping member has its turn when its weights add up to this
    cdef bint _halve

    def __cinit__(self, long_way, long_way_with_receipt, fall_back):
        """Coroutine functions of (message, timeout, extra), the second one also of `only`; and a function of (future,
        place of the member, index of the key, deadline of the whole request in ns of CLOCK_MONOTONIC, message, error,
        extra, the only public key or None, when the request came if its answer is to be a Receipt, else 0). The future
        is None if the member did not take the request; a new one is returned then, or the error raised."""
        self._long_way, self._long_way_with_receipt = long_way, long_way_with_receipt
        self._fall_back = fall_back
        self._engines = []

    def __dealloc__(self):
        PyMem_Free(self._shares)

    def aim(self, ramping, steady, *, uint64_t round=1, bint halve=False, decide=None):
        """Send requests to these members from now on: (engine, index of its key, weight) each. `round`: the sum of
        weights at which a ramping member has its turn. `halve`: an attempt gets half of a request's time, since another
        member could sign afterwards. `decide(message)`: whether a message takes the long way; None: none does; True:
        each one does."""
        cdef Py_ssize_t i
        cdef list members = [*ramping, *steady]
        cdef list engines = [<Requests?>engine for engine, _, _ in members]
        cdef dict turns = {self._engines[i]: self._shares[i].turn for i in range(self._ramping)}
        cdef hsm_route *shares = <hsm_route *>PyMem_Calloc(len(members) or 1, sizeof(hsm_route))
        if shares == NULL:
            raise MemoryError()
        for i, (engine, key, weight) in enumerate(members):
            (<Requests>engine)._fall_back = self._fall_back
            shares[i] = hsm_route(&(<Requests>engine)._table, key, weight, turns.get(engine, 0))
        PyMem_Free(self._shares)
        self._shares, self._engines = shares, engines
        self._ramping = len(ramping)
        self._round, self._halve, self._decide = round, halve, decide or None

    cdef inline Py_ssize_t _pick(self) noexcept:
        """The place in the table of the member that takes the next request; -1: there is none."""
        cdef uint32_t i = hsm_routes_pick(self._shares, self._ramping, <uint32_t>PyList_GET_SIZE(self._engines),
                                          self._round)
        return -1 if i == HSM_NO_ROUTE else <Py_ssize_t>i

    def pick(self):
        """The place of the member that takes the next request; None: there is none."""
        cdef Py_ssize_t i = self._pick()
        return None if i < 0 else (<Requests>self._engines[i]).place

    def submit(self, message, timeout=None, uint32_t _key=0, bytes extra=None):
        """Sign one message: its signature, or an awaitable of it. As Requests.submit; each member has a key of its own.
        Raises HsmError."""
        cdef Py_ssize_t i = self._place_for(message)
        return self._long_way(message, timeout, extra) if i < 0 else self._attempt(i, message, timeout, extra, 0, None)

    def ask(self, message, timeout=None, uint32_t _key=0, bytes extra=None, bint gather=False, bytes only=None,
            Waiter waiter=None):
        """Sign one message: a future of its Receipt, or the coroutine of the long way. `only`: the public key that
        signs it, if the first attempt fails; that one's is the caller's care. `gather`, `waiter` as in Requests.ask.
        Raises HsmError."""
        cdef Requests engine
        cdef Py_ssize_t i = self._place_for(message)
        if i < 0:
            return self._long_way_with_receipt(message, timeout, extra, only)
        if gather:
            engine = <Requests>self._engines[i]
            engine._gather(engine._counts().slots)
        return self._attempt(i, message, timeout, extra, RECEIPT, only, waiter)

    cdef inline Py_ssize_t _place_for(self, object message) except -2:
        if self._decide is not None and (self._decide is True or self._decide(message)):
            return -1
        return self._pick()

    cdef object _attempt(self, Py_ssize_t i, object message, object timeout, bytes extra, uint64_t tag, bytes only,
                         Waiter waiter=None):
        cdef Requests engine = <Requests>self._engines[i]
        cdef uint64_t timeout_ns = engine._timeout_ns(timeout)
        cdef uint64_t deadline = hsm_now_ns() + timeout_ns
        cdef uint32_t key = self._shares[i].key
        cdef object data = freeze(message)
        try:
            return engine._ask(data, timeout_ns - timeout_ns // 2 if self._halve else timeout_ns, key, extra,
                               tag | ROUTED | deadline, only, waiter)
        except HsmError as error:
            return self._fall_back(None, engine.place, key, deadline, data, error, extra, only,
                                   deadline - timeout_ns if tag & RECEIPT else 0)
