# Part of _native.pyx: the signature cache. It also knows the requests in flight, for single-flight.


@cython.final
cdef class Cache:
    """The signature cache of an engine, or one on its own. One thread at a time. `capacity` 0: single-flight only."""

    cdef hsm_cache *_cache
    cdef uint8_t _signature[HSM_MAX_SIGNATURE]
    cdef uint32_t _length

    def __cinit__(self, uint64_t capacity):
        if hsm_cache_new(capacity, &self._cache) != HSM_OK:
            raise BadArgument(f"capacity {capacity}")

    def __dealloc__(self):
        hsm_cache_free(self._cache)

    cdef inline int look_up(self, uint32_t key, hsm_algorithm algorithm, bytes message, uint64_t *leader,
                                         uint64_t *entry) noexcept:
        """HIT: `signature` returns the signature. JOINED: `leader` is the slot of the request in flight. MISS: `entry`
        is a new entry, to be filled or abandoned."""
        return hsm_cache_lookup(self._cache, key, algorithm, <const uint8_t *>PyBytes_AS_STRING(message),
                                <size_t>PyBytes_GET_SIZE(message), self._signature, &self._length, leader, entry)

    cdef inline bytes signature(self):
        """The signature of the last hit."""
        return PyBytes_FromStringAndSize(<char *>self._signature, self._length)

    def put(self, uint32_t key, bytes message not None, bytes signature not None):
        """Look up and, on a miss, store. Returns whether it was stored."""
        cdef uint64_t leader
        cdef uint64_t entry
        if len(signature) > HSM_MAX_SIGNATURE:
            raise BadArgument(f"a signature has at most {HSM_MAX_SIGNATURE} bytes")
        if self.look_up(key, HSM_ED25519, message, &leader, &entry) != HSM_CACHE_MISS:
            return False
        hsm_cache_fill(self._cache, entry, <const uint8_t *><char *>signature, <uint32_t>len(signature), 1)
        return True

    def get(self, uint32_t key, bytes message not None):
        """The signature, or None."""
        cdef uint64_t leader
        cdef uint64_t entry
        cdef int result = self.look_up(key, HSM_ED25519, message, &leader, &entry)
        if result == HSM_CACHE_HIT:
            return self.signature()
        if result == HSM_CACHE_MISS:
            hsm_cache_abandon(self._cache, entry)
        return None

    def time_hits(self, uint32_t key, bytes message not None, uint64_t rounds):
        """Nanoseconds that `rounds` lookups of one held message take in C."""
        cdef uint64_t leader
        cdef uint64_t entry
        cdef uint64_t i
        if self.get(key, message) is None:
            raise BadArgument("the message is not in the cache")
        cdef uint64_t begun = hsm_now_ns()
        for i in range(rounds):
            self.look_up(key, HSM_ED25519, message, &leader, &entry)
        return hsm_now_ns() - begun

    def clear(self):
        """Wipe all signatures."""
        hsm_cache_clear(self._cache)

    def stats(self):
        """Counters, and what is held now."""
        cdef hsm_cache_stats stats
        hsm_cache_stats_read(self._cache, &stats)
        return {"hits": stats.hits, "misses": stats.misses, "joined": stats.joined, "evictions": stats.evictions,
                "entries": stats.entries, "in_flight": stats.in_flight, "bytes": stats.bytes}


cdef dict _cache_stats(Cache cache):
    """As Cache.stats; all 0 where there is no cache."""
    return cache.stats() if cache is not None else dict.fromkeys(
        ("hits", "misses", "joined", "evictions", "entries", "in_flight", "bytes"), 0)
