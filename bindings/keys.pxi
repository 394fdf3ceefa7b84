# Part of _native.pyx: the keys that an engine has pinned.


cdef struct _Key:
    hsm_algorithm algorithm
    uint32_t index  # of the key that has this place now; a request for another index is refused
    bint cacheable
    bint retired


@cython.final
cdef class PinnedKeys:
    """The key table (see hsm_key_info). A key has the place `index` modulo HSM_MAX_KEYS; a retired one gives it up."""

    cdef _Key _keys[HSM_MAX_KEYS]

    def __cinit__(self):
        cdef uint32_t place
        for place in range(<uint32_t>HSM_MAX_KEYS):
            self._keys[place].index = place

    cdef inline _Key *at(self, uint32_t index) noexcept:
        """What has the place of the key of this index."""
        return &self._keys[index % HSM_MAX_KEYS]

    cdef int add(self, const hsm_key_info *info, bint cacheable) except -1:
        cdef _Key *key = self.at(info.index)
        key.algorithm = info.algorithm
        key.index = info.index
        key.cacheable = cacheable
        key.retired = False
        return 0

    cdef inline bint refused(self, uint32_t index) noexcept:
        """Whether the key of this index is retired or has lost its place."""
        cdef _Key *key = self.at(index)
        return key.retired or key.index != index
