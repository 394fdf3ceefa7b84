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

    def over(self, bytes hashes):
        """The root over hashes of one height. The tree does not change."""
        cdef uint8_t hash[32]
        cdef Py_ssize_t count = PyBytes_GET_SIZE(hashes) // 32
        hsm_merkle_over(self._tree, _hashes(hashes, count), <size_t>count, hash)
        return PyBytes_FromStringAndSize(<char *>hash, 32)

    def scan(self, bytes text, Py_ssize_t offset, uint64_t next_seq, Py_ssize_t max_lines):
        """Append the lines of `text` from `offset` on. Returns (why it stopped, bytes, leaf hashes, summary); the
        summary is (count, min_time_ns, max_time_ns, operations, four words of keys). Releases the GIL."""
        if not 0 <= offset <= PyBytes_GET_SIZE(text) or max_lines < 0:
            raise BadArgument("outside the text")
        cdef const char *begin = PyBytes_AS_STRING(text) + offset
        cdef size_t size = <size_t>(PyBytes_GET_SIZE(text) - offset)
        # No line is shorter than its fixed fields, so a small text needs no room for many.
        cdef size_t most = min(<size_t>max_lines, size // 32 + 1)
        cdef bytes leaves = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>(32 * most))
        cdef uint8_t *out = <uint8_t *>PyBytes_AS_STRING(leaves)
        cdef hsm_audit_summary s
        cdef size_t consumed, lines
        cdef hsm_audit_stop why
        s.count = s.min_time_ns = s.max_time_ns = s.operations = 0
        s.keys[0] = s.keys[1] = s.keys[2] = s.keys[3] = 0
        with nogil:
            why = hsm_audit_scan(self._tree, begin, size, next_seq, most, out, &s, &consumed, &lines)
        summary = (s.count, s.min_time_ns, s.max_time_ns, s.operations, s.keys[0], s.keys[1], s.keys[2], s.keys[3])
        return _STOPS[<int>why], consumed, leaves[:32 * lines], summary


def fnv1a(bytes text):
    """The 64-bit FNV-1a hash that the audit log's index uses."""
    return hsm_audit_fnv1a(PyBytes_AS_STRING(text), <size_t>PyBytes_GET_SIZE(text))
