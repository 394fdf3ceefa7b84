# Part of _native.pyx: the messages of one batch, from the first caller to the proofs.

cdef extern from "hsmcore/batch.h" nogil:
    enum:
        HSM_BATCH_PROOF_ROOM

    ctypedef struct hsm_batch_message:
        uint8_t digest[32]
        uint64_t deadline
        uint8_t kind

    size_t hsm_merkle_room(size_t count)
    void hsm_merkle_sha256(hsm_merkle *hasher, const void *data, size_t size, uint8_t *hash)
    const uint8_t *hsm_batch_tree(hsm_merkle *hasher, const hsm_batch_message *messages, const uint8_t *blinders,
                                  uint64_t first, size_t count, uint8_t *nodes)
    size_t hsm_batch_proof(const uint8_t *nodes, size_t count, size_t index, uint8_t kind, uint64_t first,
                           const uint8_t *blinder, char *text)

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


@cython.final
cdef class Leaves:
    """The messages of one batch. Belongs to one event loop, but for `build`."""

    cdef readonly uint64_t first
    cdef readonly bytes root
    cdef readonly bytes note  # the signed checkpoint
    cdef readonly object key_id
    cdef readonly bytes public_key
    cdef readonly object audit_seq
    cdef list _futures
    cdef hsm_batch_message *_messages
    cdef readonly Py_ssize_t count
    cdef Py_ssize_t _room
    cdef Py_ssize_t _answered
    cdef uint64_t _last  # deadline
    cdef uint8_t *_nodes
    cdef hsm_merkle *_hasher
    cdef bytes _blinders
    cdef dict _future_keywords
    cdef object _loop_is_running
    cdef unsigned long _thread
    cdef uint32_t _generation
    cdef DeadlineTimer _timer

    def __cinit__(self, loop):
        self._future_keywords, self._loop_is_running = {"loop": loop}, loop.is_running
        self._thread, self._generation = PyThread_get_thread_ident(), hsm_fork_generation()
        self._futures = []
        self._hasher = hsm_merkle_new()
        if self._hasher == NULL:
            raise MemoryError
        self._timer = DeadlineTimer(loop, self._sweep)

    def __dealloc__(self):
        hsm_merkle_free(self._hasher)
        PyMem_Free(self._messages)
        PyMem_Free(self._nodes)

    def add(self, Gate gate, message, kind, uint64_t timeout, Py_ssize_t most):
        """Add a message if the gate passes it as it does in Gate.passes; the future of its BatchedSignature, else None.
        `timeout`: in ns. `most`: bytes of a message. Raises EmptyMessage, MessageTooLarge, EngineForked,
        WrongEventLoop."""
        cdef int payload = gate._passing(message, kind)
        return None if payload < 0 else self._add(<bytes>message, _WIRE_KINDS[payload], timeout, most)

    def add_judged(self, bytes message, str kind, uint64_t timeout, Py_ssize_t most):
        """As `add`, for a message that the policy has judged as of this kind."""
        return self._add(message, _WIRE_KINDS[<int>_PAYLOADS.index(kind)], timeout, most)

    cdef object _add(self, bytes message, uint8_t kind, uint64_t timeout, Py_ssize_t most):
        cdef hsm_batch_message *one
        cdef Py_ssize_t size = PyBytes_GET_SIZE(message)
        if self._generation != hsm_fork_generation():
            raise _exception(HSM_FORKED, None)
        if PyThread_get_thread_ident() != self._thread or not self._loop_is_running():
            raise WrongEventLoop("used outside the event loop that initialized it")
        if size == 0:
            raise EmptyMessage("a message must not be empty")
        if size > most:
            raise MessageTooLarge(f"the message has {size} bytes; maxMessageBytes is {most}")
        if self.count == self._room:
            self._grow()
        future = PyObject_Call(Future, (), self._future_keywords)
        one = &self._messages[self.count]
        hsm_merkle_sha256(self._hasher, PyBytes_AS_STRING(message), <size_t>size, one.digest)
        one.kind = kind
        one.deadline = hsm_now_ns() + timeout
        self._futures.append(future)
        self.count += 1
        self._last = max(self._last, one.deadline)
        self._timer.watch(one.deadline)
        return future

    cdef int _grow(self) except -1:
        cdef Py_ssize_t room = 2 * self._room or 64
        cdef void *wider = PyMem_Realloc(self._messages, <size_t>room * sizeof(hsm_batch_message))
        if wider == NULL:
            raise MemoryError
        self._messages, self._room = <hsm_batch_message *>wider, room
        return 0

    def _sweep(self):
        """Fail the callers whose deadlines have passed; their leaves stay."""
        cdef uint64_t now = hsm_now_ns()
        cdef uint64_t ahead = 0
        cdef uint64_t deadline
        for i in range(PyList_GET_SIZE(self._futures)):
            deadline = self._messages[i].deadline
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
            self._blinders = os.urandom(32 * self.count) if blind else None
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

    def signed(self, bytes note, key_id, bytes public_key, audit_seq):
        """The root is signed: `answer` may begin."""
        self.note, self.key_id, self.public_key, self.audit_seq = note, key_id, public_key, audit_seq

    def answer(self, Py_ssize_t most):
        """Answer the next callers, `most` of them. Returns whether any are left."""
        cdef BatchedSignature one
        cdef Py_ssize_t begin = self._answered
        cdef Py_ssize_t end = min(begin + most, self.count)
        for i in range(begin, end):
            one = BatchedSignature.__new__(BatchedSignature)
            one._batch, one._at = self, i
            _set_result(self._futures[i], one)
        return self._ended(end)

    def fail(self, error, Py_ssize_t most):
        """As `answer`, with an error of its own for each."""
        cdef Py_ssize_t begin = self._answered
        cdef Py_ssize_t end = min(begin + most, self.count)
        for i in range(begin, end):
            future = self._futures[i]
            if not future.done():
                _set_exception(future, copy(error))
        return self._ended(end)

    cdef bint _ended(self, Py_ssize_t end) except -1:
        self._answered = end
        if end < self.count:
            return True
        self._futures = []
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
