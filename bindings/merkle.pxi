# Part of _native.pyx: the audit log's Merkle tree and the scan of its lines.

cdef extern from "hsmcore/audit.h" nogil:
    ctypedef struct hsm_merkle:
        pass

    hsm_merkle *hsm_merkle_new()
    void hsm_merkle_free(hsm_merkle *tree)
    void hsm_merkle_restore(hsm_merkle *tree, uint64_t size, const uint8_t *frontier)
    uint64_t hsm_merkle_size(const hsm_merkle *tree)
    size_t hsm_merkle_frontier(const hsm_merkle *tree, uint8_t *frontier)
    void hsm_merkle_append(hsm_merkle *tree, const uint8_t *leaf)
    void hsm_merkle_root(hsm_merkle *tree, uint8_t *root)
    void hsm_merkle_leaf(hsm_merkle *tree, const void *line, size_t size, uint8_t *hash)
    void hsm_merkle_node(hsm_merkle *tree, const uint8_t *left, const uint8_t *right, uint8_t *hash)
    void hsm_merkle_over(hsm_merkle *tree, const uint8_t *hashes, size_t count, uint8_t *root)

    ctypedef struct hsm_audit_summary:
        uint64_t count
        uint64_t min_time_ns
        uint64_t max_time_ns
        uint64_t operations
        uint64_t keys[4]

    ctypedef enum hsm_audit_stop:
        HSM_AUDIT_END
        HSM_AUDIT_LIMIT
        HSM_AUDIT_TORN
        HSM_AUDIT_FOREIGN
        HSM_AUDIT_ORDER
        HSM_AUDIT_LONG

    hsm_audit_stop hsm_audit_scan(hsm_merkle *tree, const char *text, size_t size, uint64_t next_seq, size_t max_lines,
                                  uint8_t *leaves, hsm_audit_summary *summary, size_t *consumed, size_t *lines)
    uint64_t hsm_audit_fnv1a(const char *text, size_t size)

    ctypedef struct hsm_audit_file:
        const char *path
        const uint8_t *data
        size_t size

    int hsm_audit_store(const hsm_audit_file *files, size_t count, size_t *failed)

cdef extern from "<string.h>" nogil:
    void *memmem(const void *text, size_t size, const void *wanted, size_t wanted_size)

cdef tuple _STOPS = ("end", "limit", "torn", "foreign", "order", "long")


cdef const uint8_t *_hashes(bytes value, Py_ssize_t count) except NULL:
    if PyBytes_GET_SIZE(value) != 32 * count:
        raise BadArgument(f"{32 * count} bytes of hashes are needed, not {len(value)}")
    return <const uint8_t *>PyBytes_AS_STRING(value)


@cython.final
cdef class MerkleTree:
    """An RFC 6962 tree over SHA-256 that keeps its frontier. One thread at a time."""

    cdef hsm_merkle *_tree

    def __cinit__(self, uint64_t size=0, bytes frontier=b""):
        cdef const uint8_t *hashes = _hashes(frontier, int(size).bit_count())
        self._tree = hsm_merkle_new()
        if self._tree == NULL:
            raise MemoryError
        hsm_merkle_restore(self._tree, size, hashes)

    def __dealloc__(self):
        hsm_merkle_free(self._tree)

    @property
    def size(self):
        """Leaves."""
        return hsm_merkle_size(self._tree)

    def frontier(self):
        """One hash for each one-bit of the size, the largest subtree's first."""
        cdef uint8_t hashes[64 * 32]
        cdef size_t count = hsm_merkle_frontier(self._tree, hashes)
        return PyBytes_FromStringAndSize(<char *>hashes, <Py_ssize_t>(32 * count))

    def append(self, bytes leaf):
        """Append a leaf by its hash."""
        hsm_merkle_append(self._tree, _hashes(leaf, 1))

    def root(self):
        """The hash of the whole tree."""
        cdef uint8_t hash[32]
        hsm_merkle_root(self._tree, hash)
        return PyBytes_FromStringAndSize(<char *>hash, 32)

    def leaf(self, bytes line):
        """The hash of a line (without its newline)."""
        cdef uint8_t hash[32]
        hsm_merkle_leaf(self._tree, PyBytes_AS_STRING(line), <size_t>PyBytes_GET_SIZE(line), hash)
        return PyBytes_FromStringAndSize(<char *>hash, 32)

    def node(self, bytes left, bytes right):
        """The hash over two subtrees."""
        cdef uint8_t hash[32]
        hsm_merkle_node(self._tree, _hashes(left, 1), _hashes(right, 1), hash)
        return PyBytes_FromStringAndSize(<char *>hash, 32)

    def over(self, bytes hashes, Py_ssize_t width=0):
        """The root over hashes of one height; with `width`, the roots over each so many. The tree does not change.
        Releases the GIL."""
        cdef Py_ssize_t count = PyBytes_GET_SIZE(hashes) // 32
        cdef Py_ssize_t each = width if width and count else count
        cdef const uint8_t *below = _hashes(hashes, count)
        cdef Py_ssize_t many = count // each if count else 1
        if each < 0 or (count and count % each):
            raise BadArgument("the hashes are no multiple of the width")
        cdef bytes roots = PyBytes_FromStringAndSize(NULL, 32 * many)
        cdef uint8_t *out = <uint8_t *>PyBytes_AS_STRING(roots)
        cdef Py_ssize_t i
        with nogil:
            for i in range(many):
                hsm_merkle_over(self._tree, below + 32 * i * each, <size_t>each, out + 32 * i)
        return roots

    def scan(self, bytes text, Py_ssize_t offset, uint64_t next_seq, Py_ssize_t max_lines):
        """Append the lines of `text` from `offset` on. Returns (why it stopped, bytes, leaf hashes, rows): for each
        1,024 records, counted from record 1, the (bytes, count, min_time_ns, max_time_ns, operations, four words of
        keys) of those that are in the text. Releases the GIL."""
        if not 0 <= offset <= PyBytes_GET_SIZE(text) or max_lines < 0:
            raise BadArgument("outside the text")
        # No line is shorter than its fixed fields, so a small text needs no room for many.
        cdef size_t size = <size_t>(PyBytes_GET_SIZE(text) - offset)
        cdef _Scan scan = _Scan(next_seq, min(<size_t>max_lines, size // 32 + 1))
        cdef const char *begin = PyBytes_AS_STRING(text) + offset
        with nogil:
            scan.take(self._tree, begin, size)
        return scan.result()

    def scan_file(self, int fd, uint64_t offset, uint64_t next_seq, Py_ssize_t max_lines, bytes mark):
        """Append lines of a file from byte `offset` on. Returns what scan does, and the text around
        each line in which `mark` occurs: whole lines, usually none. Releases the GIL. Raises OSError."""
        cdef _Scan scan = _Scan(next_seq, <size_t>max(max_lines, 0))
        cdef const char *wanted = PyBytes_AS_STRING(mark)
        cdef size_t wanted_size = <size_t>PyBytes_GET_SIZE(mark), used
        cdef ssize_t got = 0
        cdef list marked = []
        # Read in parts that stay in the processor's cache until they are hashed.
        cdef char *text = <char *>PyMem_Malloc(<size_t>_PART)
        if text == NULL:
            raise MemoryError
        try:
            with nogil:
                while scan.done != scan.most:
                    got = pread(fd, text, <size_t>_PART, <off_t>(offset + scan.used))
                    if got <= 0:
                        scan.why = HSM_AUDIT_END
                        break
                    used = scan.take(self._tree, text, <size_t>got)
                    if memmem(text, used, wanted, wanted_size) != NULL:
                        with gil:
                            marked.append(text[:used])
                    if scan.why == HSM_AUDIT_TORN and used == 0 and got == _PART:
                        scan.why = HSM_AUDIT_LONG
                    if scan.why not in (HSM_AUDIT_END, HSM_AUDIT_TORN) or got < _PART:
                        break
            if got < 0:
                raise OSError(errno, os.strerror(errno))
        finally:
            PyMem_Free(text)
        return *scan.result(), b"".join(marked)


cdef ssize_t _PART = 1 << 18  # more than the longest line


@cython.final
cdef class _Scan:
    """Lines that are taken into a tree, in parts, and what the index knows of them."""

    cdef uint64_t next_seq
    cdef size_t most, used, done
    cdef hsm_audit_stop why
    cdef bytes leaves
    cdef uint8_t *hashes  # in `leaves`
    cdef hsm_audit_summary *rows
    cdef size_t *lengths

    def __cinit__(self, uint64_t next_seq, size_t most):
        self.next_seq, self.most, self.why = next_seq, most, HSM_AUDIT_LIMIT
        self.leaves = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>(32 * most))
        self.hashes = <uint8_t *>PyBytes_AS_STRING(self.leaves)
        self.rows = <hsm_audit_summary *>PyMem_Calloc(most // 1024 + 2, sizeof(hsm_audit_summary))
        self.lengths = <size_t *>PyMem_Calloc(most // 1024 + 2, sizeof(size_t))
        if self.rows == NULL or self.lengths == NULL:
            raise MemoryError

    def __dealloc__(self):
        PyMem_Free(self.rows)
        PyMem_Free(self.lengths)

    cdef size_t take(self, hsm_merkle *tree, const char *text, size_t size) noexcept nogil:
        """Take what is whole of a text that begins where the one before was left. Returns its bytes."""
        cdef size_t used = 0, consumed, lines, row
        cdef uint64_t before  # records of the log
        while True:
            before = self.next_seq + self.done - 1
            row = before // 1024 - (self.next_seq - 1) // 1024
            self.why = hsm_audit_scan(tree, text + used, size - used, before + 1,
                                      min(self.most - self.done, 1024 - before % 1024), self.hashes + 32 * self.done,
                                      &self.rows[row], &consumed, &lines)
            self.lengths[row] += consumed
            used += consumed
            self.done += lines
            if self.why != HSM_AUDIT_LIMIT or self.done == self.most:
                self.used += used
                return used

    cdef tuple result(self):
        cdef hsm_audit_summary *s = self.rows
        cdef size_t i
        rows = [(self.lengths[i], s[i].count, s[i].min_time_ns, s[i].max_time_ns, s[i].operations,
                 s[i].keys[0], s[i].keys[1], s[i].keys[2], s[i].keys[3])
                for i in range(self.most // 1024 + 2) if s[i].count]
        return _STOPS[<int>self.why], self.used, self.leaves[:32 * self.done], rows


def store_files(list files):
    """Write small files, given as (path, content), whole and flush them: see hsm_audit_store. Releases the GIL. Raises
    OSError; then the call may be repeated."""
    cdef tuple kept = tuple(files)  # another thread may change the list
    cdef size_t failed = 0, i = 0, count = <size_t>len(kept)
    cdef int failure
    cdef bytes path, content
    cdef hsm_audit_file *array = <hsm_audit_file *>PyMem_Calloc(count, sizeof(hsm_audit_file))
    if array == NULL:
        raise MemoryError
    try:
        for path, content in kept:
            array[i].path = path
            array[i].data = <const uint8_t *>PyBytes_AS_STRING(content)
            array[i].size = <size_t>PyBytes_GET_SIZE(content)
            i += 1
        with nogil:
            failure = hsm_audit_store(array, count, &failed)
    finally:
        PyMem_Free(array)
    if failure:
        raise OSError(failure, os.strerror(failure), os.fsdecode(kept[failed][0]))


def fnv1a(bytes text):
    """The 64-bit FNV-1a hash that the audit log's index uses."""
    return hsm_audit_fnv1a(PyBytes_AS_STRING(text), <size_t>PyBytes_GET_SIZE(text))
