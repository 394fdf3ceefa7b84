# Part of _native.pyx: the messages of one batch, from the first caller to the proofs.

cdef extern from "hsmcore/batch.h" nogil:
    enum:
        HSM_BATCH_PROOF_ROOM

    ctypedef struct hsm_batch_message:
        uint8_t digest[32]
        uint8_t kind

    size_t hsm_merkle_room(size_t count)
    void hsm_merkle_sha256(hsm_merkle *hasher, const void *data, size_t size, uint8_t *hash)
    const uint8_t *hsm_batch_tree(hsm_merkle *hasher, const hsm_batch_message *messages, const uint8_t *blinders,
                                  uint64_t first, size_t count, uint8_t *nodes)
    size_t hsm_batch_proof(const uint8_t *nodes, size_t count, size_t index, uint8_t kind, uint64_t first,
                           const uint8_t *blinder, char *text)

cdef int _require_size(bytes message, Py_ssize_t most, Py_ssize_t index=-1) except -1:
    """`index`: in the list that the caller has; -1: there is none."""
    cdef Py_ssize_t size = PyBytes_GET_SIZE(message)
    if 0 < size <= most:
        return 0
    error = MessageTooLarge(f"the message has {size} bytes; maxMessageBytes is {most}") if size else EmptyMessage()
    raise error if index < 0 else of_batch(error, index)


# The number of a kind in hsmcore-wire/1, by its number here; 0: it is not batched.
cdef uint8_t[12] _WIRE_KINDS = [8, 7, 1, 2, 3, 4, 0, 0, 0, 0, 0, 0]


@cython.final
@cython.no_gc
cdef class BatchedSignature:
    """A message's place in a batch that is signed. It keeps the tree of its batch."""

    cdef Leaves _batch
    cdef Py_ssize_t _at

    @property
    def proof(self):
        """The C2SP tlog-proof. Made at each use."""
        return self._batch._proof(self._at)

    @property
    def index(self):
        """The message's number: each is given once under a domain."""
        return self._batch.first + <uint64_t>self._at

    @property
    def root(self):
        """The root of the batch's tree."""
        return self._batch.root

    @property
    def key_id(self):
        """The id of the key that signed the root."""
        return self._batch.key_id

    @property
    def public_key(self):
        """The public key that signed the root."""
        return self._batch.public_key

    @property
    def audit_seq(self):
        """The number of the root's audit record; None without a log."""
        return self._batch.audit_seq


cdef struct _Request:
    uint64_t deadline
    Py_ssize_t count
    bint listed  # it is answered with a list


@cython.final
cdef class Leaves:
    """The messages of one batch, in the order of the requests that brought them: each has one future, and brought one
    message or a list. Belongs to one event loop, but for `build`."""

    cdef readonly uint64_t first
    cdef readonly bytes root
    cdef readonly bytes note  # the signed checkpoint
    cdef readonly object key_id
    cdef readonly bytes public_key
    cdef readonly object audit_seq
    cdef list _futures
    cdef list _callers  # of the same requests; None: it is not said
    cdef _Request *_requests
    cdef Py_ssize_t _request_room
    cdef hsm_batch_message *_messages
    cdef readonly Py_ssize_t count
    cdef Py_ssize_t _room
    cdef Py_ssize_t _answered  # requests
    cdef Py_ssize_t _answered_leaves
    cdef uint64_t _last  # deadline
    cdef uint64_t _begun
    cdef uint8_t *_nodes
    cdef hsm_merkle *_hasher
    cdef bytes _blinders
    cdef dict _future_keywords
    cdef object _loop_is_running
    cdef unsigned long _thread
    cdef uint32_t _generation
    cdef DeadlineTimer _timer

    def __cinit__(self, loop=None):
        """`loop`: None for a batch that was signed before (`restore`), which takes no messages."""
        self._thread, self._generation = PyThread_get_thread_ident(), hsm_fork_generation()
        self._futures, self._callers = [], []
        self._begun = hsm_now_ns()
        self._hasher = hsm_merkle_new()
        if self._hasher == NULL:
            raise MemoryError
        if loop is not None:
            self._future_keywords, self._loop_is_running = _keywords_of_futures(loop), loop.is_running
            self._timer = DeadlineTimer(loop, self._sweep)

    def __dealloc__(self):
        hsm_merkle_free(self._hasher)
        PyMem_Free(self._requests)
        PyMem_Free(self._messages)
        PyMem_Free(self._nodes)

    def add(self, Gate gate, message, kind, uint64_t timeout, Py_ssize_t most, caller=None):
        """Add a message if the gate passes it as it does in Gate.passes; the future of its BatchedSignature, else None.
        `timeout`: in ns. `most`: bytes of a message. `caller`: who asks. Raises EmptyMessage, MessageTooLarge,
        EngineForked, WrongEventLoop."""
        cdef int payload = gate._passing(message, kind)
        return None if payload < 0 else self._add(<bytes>message, _WIRE_KINDS[payload], timeout, most, caller)

    def add_judged(self, bytes message, str kind, uint64_t timeout, Py_ssize_t most, caller=None):
        """As `add`, for a message that the policy has judged as of this kind."""
        return self._add(message, _WIRE_KINDS[<int>_PAYLOADS.index(kind)], timeout, most, caller)

    cdef object _add(self, bytes message, uint8_t kind, uint64_t timeout, Py_ssize_t most, object caller):
        self._require_place()
        _require_size(message, most)
        self._make_room(1)
        self._hash(self.count, message, kind)
        return self._asked(1, False, timeout, caller)

    def add_many(self, Gate gate, list messages, Py_ssize_t begin, Py_ssize_t end, kind, uint64_t timeout, caller=None,
                 list judged=None):
        """Add messages of a list that `passing` has looked at; or, with the kinds that the policy has judged them to be
        of, `fitting`. Returns the future of a list of their BatchedSignature."""
        cdef int payload
        self._require_place()
        self._make_room(end - begin)
        for i in range(begin, end):
            message = messages[i]
            payload = gate._passing(message, kind) if judged is None else <int>_PAYLOADS.index(judged[i])
            if payload < 0:
                raise BadArgument("a message was not looked at")
            self._hash(self.count + i - begin, <bytes>message, _WIRE_KINDS[payload])
        return self._asked(end - begin, True, timeout, caller)

    @staticmethod
    def passing(Gate gate, list messages, kind, Py_ssize_t most):
        """Whether the gate passes all of these messages, as in `add`. Raises EmptyMessage, MessageTooLarge."""
        for index, message in enumerate(messages):
            if gate._passing(message, kind) < 0:
                return False
            _require_size(<bytes>message, most, index)
        return True

    @staticmethod
    def fitting(list messages, Py_ssize_t most):
        """Raise EmptyMessage or MessageTooLarge for the first message that cannot be added: all are bytes."""
        for index, message in enumerate(messages):
            _require_size(<bytes?>message, most, index)

    cdef int _require_place(self) except -1:
        if self._generation != hsm_fork_generation():
            raise _exception(HSM_FORKED, None)
        if PyThread_get_thread_ident() != self._thread or not self._loop_is_running():
            raise WrongEventLoop("used outside the event loop that initialized it")
        return 0

    cdef int _hash(self, Py_ssize_t at, bytes message, uint8_t kind) except -1:
        cdef hsm_batch_message *one = &self._messages[at]
        hsm_merkle_sha256(self._hasher, PyBytes_AS_STRING(message), <size_t>PyBytes_GET_SIZE(message), one.digest)
        one.kind = kind
        return 0

    cdef object _asked(self, Py_ssize_t count, bint listed, uint64_t timeout, object caller):
        cdef _Request *one = &self._requests[PyList_GET_SIZE(self._futures)]
        future = PyObject_Call(Future, (), self._future_keywords)
        one.count, one.listed, one.deadline = count, listed, hsm_now_ns() + timeout
        self._callers.append(caller)
        self._futures.append(future)
        self.count += count  # as many as the requests have, whatever was raised on the way
        self._last = max(self._last, one.deadline)
        self._timer.watch(one.deadline)
        return future

    cdef int _make_room(self, Py_ssize_t more) except -1:
        """For a request that brings so many messages."""
        cdef Py_ssize_t room
        cdef void *wider
        if self.count + more > self._room:
            room = max(2 * self._room, self.count + more, 64)
            wider = PyMem_Realloc(self._messages, <size_t>room * sizeof(hsm_batch_message))
            if wider == NULL:
                raise MemoryError
            self._messages, self._room = <hsm_batch_message *>wider, room
        if PyList_GET_SIZE(self._futures) == self._request_room:
            room = 2 * self._request_room or 64
            wider = PyMem_Realloc(self._requests, <size_t>room * sizeof(_Request))
            if wider == NULL:
                raise MemoryError
            self._requests, self._request_room = <_Request *>wider, room
        return 0

    def drop_done(self):
        """Take out the messages of requests that have ended: withdrawn, or late. Not after `build`. Returns how many
        messages are left."""
        cdef Py_ssize_t source = 0, left = 0, requests = 0
        cdef _Request one
        futures, callers = [], []
        for i in range(PyList_GET_SIZE(self._futures)):
            one = self._requests[i]
            if not self._futures[i].done():
                memmove(&self._messages[left], &self._messages[source], <size_t>one.count * sizeof(hsm_batch_message))
                self._requests[requests] = one
                futures.append(self._futures[i])
                callers.append(self._callers[i])
                requests += 1
                left += one.count
            source += one.count
        self._futures, self._callers, self.count = futures, callers, left
        return left

    def callers(self):
        """Who asked, in the order of the messages: (caller, messages), where the caller changes. None: it is not
        said."""
        cdef Py_ssize_t count = 0
        found, last = [], None
        for i in range(PyList_GET_SIZE(self._futures)):
            if count and self._callers[i] != last:
                found.append((last, count))
                count = 0
            last = self._callers[i]
            count += self._requests[i].count
        return [*found, (last, count)] if count else found

    def _sweep(self):
        """Fail the callers whose deadlines have passed; their leaves stay."""
        cdef uint64_t now = hsm_now_ns()
        cdef uint64_t ahead = 0
        cdef uint64_t deadline
        for i in range(PyList_GET_SIZE(self._futures)):
            deadline = self._requests[i].deadline
            future = self._futures[i]
            if future.done():
                continue
            if deadline <= now:
                late = b"the batch was not signed in time"
                _set_exception(future, _exception(HSM_DEADLINE_EXCEEDED, None, 0, b"", late))
            elif ahead == 0 or deadline < ahead:
                ahead = deadline
        self._timer.watch(ahead)

    @property
    def age_ns(self):
        """Nanoseconds since the batch was begun, for its first message."""
        return hsm_now_ns() - self._begun

    @property
    def seconds_left(self):
        """Seconds to the last deadline; 0: nobody waits any more."""
        cdef uint64_t now = hsm_now_ns()
        waits = any(not future.done() for future in self._futures)
        return (self._last - now) / NS if waits and self._last > now else 0.0

    def build(self, uint64_t first, bint blind):
        """Number the messages from `first` on and build their tree. Returns the root. In any thread, while nothing is
        added; releases the GIL. May be called again with another number."""
        cdef const uint8_t *blinders = NULL
        cdef const uint8_t *root
        cdef size_t count = <size_t>self.count
        if self._nodes == NULL:
            self._nodes = <uint8_t *>PyMem_Malloc(32 * hsm_merkle_room(count))
            self._blinders = os.urandom(32 * self.count) if blind else self._blinders
        if self._nodes == NULL:
            raise MemoryError
        if self._blinders is not None:
            blinders = <const uint8_t *>PyBytes_AS_STRING(self._blinders)
        with nogil:
            root = hsm_batch_tree(self._hasher, self._messages, blinders, first, count, self._nodes)
        self.first = first
        self.root = PyBytes_FromStringAndSize(<const char *>root, 32)
        return self.root

    def leaves(self):
        """What a leaf has beside its index: kind, digest, and the blinder if there is one; all in a row."""
        rows = []
        for i in range(self.count):
            rows.append(bytes((self._messages[i].kind,)))
            rows.append(PyBytes_FromStringAndSize(<char *>self._messages[i].digest, 32))
            if self._blinders is not None:
                rows.append(self._blinders[32 * i : 32 * i + 32])
        return b"".join(rows)

    def restore(self, bytes leaves, Py_ssize_t count):
        """Take the messages of a batch again from what `leaves` returned; `build` and `signed` go on. Raises
        BadArgument."""
        cdef Py_ssize_t size = PyBytes_GET_SIZE(leaves)
        cdef Py_ssize_t width = size // count if 0 < count <= size else 0
        cdef const uint8_t *row = <const uint8_t *>PyBytes_AS_STRING(leaves)
        if self._loop_is_running is not None or self.count or width not in (33, 65) or width * count != size:
            raise BadArgument("not the leaves of a batch")
        self._make_room(count)
        for i in range(count):
            self._messages[i].kind = row[0]
            memcpy(self._messages[i].digest, row + 1, 32)
            row += width
        self.count = count
        if width == 65:
            self._blinders = b"".join([leaves[at : at + 32] for at in range(33, 65 * count, 65)])

    def proof(self, Py_ssize_t at):
        """The proof of one of its messages, once it is signed."""
        if self.note is None or not 0 <= at < self.count:
            raise BadArgument(f"there is no message {at} in the batch, or it is not signed")
        return self._proof(at)

    def signed(self, bytes note, key_id, bytes public_key, audit_seq):
        """The root is signed: `answer` may begin."""
        self.note, self.key_id, self.public_key, self.audit_seq = note, key_id, public_key, audit_seq

    def answer(self, Py_ssize_t most):
        """Answer the next requests, of `most` messages or one more. Returns whether any are left."""
        cdef Py_ssize_t at = self._answered_leaves
        cdef Py_ssize_t request = self._answered
        cdef Py_ssize_t end = min(at + most, self.count)
        cdef _Request asked
        while at < end:
            asked = self._requests[request]
            future = self._futures[request]
            if not future.done():
                _set_result(future, [self._place(i) for i in range(at, at + asked.count)] if asked.listed
                            else self._place(at))
            at += asked.count
            request += 1
        self._answered_leaves = at
        return self._ended(request)

    cdef BatchedSignature _place(self, Py_ssize_t at):
        cdef BatchedSignature one = BatchedSignature.__new__(BatchedSignature)
        one._batch, one._at = self, at
        return one

    def fail(self, error, Py_ssize_t most):
        """As `answer`, with an error of its own for each request."""
        cdef Py_ssize_t end = min(self._answered + most, PyList_GET_SIZE(self._futures))
        for i in range(self._answered, end):
            future = self._futures[i]
            if not future.done():
                _set_exception(future, copy(error))
        return self._ended(end)

    cdef bint _ended(self, Py_ssize_t end) except -1:
        self._answered = end
        if end < PyList_GET_SIZE(self._futures):
            return True
        self._futures, self._callers = [], []
        self._timer.cancel()
        self._timer = None  # which refers to this batch
        return False

    cdef bytes _proof(self, Py_ssize_t at):
        cdef char text[HSM_BATCH_PROOF_ROOM]
        cdef const uint8_t *blinder = NULL
        cdef size_t size
        if self._blinders is not None:
            blinder = <const uint8_t *>PyBytes_AS_STRING(self._blinders) + 32 * at
        size = hsm_batch_proof(self._nodes, <size_t>self.count, <size_t>at, self._messages[at].kind, self.first,
                               blinder, text)
        return PyBytes_FromStringAndSize(text, <Py_ssize_t>size) + self.note
