# Part of _native.pyx: when the workers are told of new requests: at once, or once for all of one turn of the event loop.


# As its subclass.
@cython.no_gc_clear
cdef class Publisher:
    """The event loop's end of a ring of requests."""

    cdef hsm_client *_client
    cdef bint _open
    cdef object _loop
    cdef object _pump  # called when requests wait for a guest's runners, or None
    cdef bint _gathering

    cdef int _gather(self, uint32_t in_flight) except -1:
        """Tell the workers at the end of this turn. A group of requests that grows large is told before, and so is the
        first one, for which every worker waits."""
        if in_flight and self._pump is None and self._open:
            hsm_client_batch_begin(self._client)  # also if a batch has ended in between
            if not self._gathering:
                self._gathering = True
                self._loop.call_soon(self._publish)
        return 0

    def _publish(self):
        self._gathering = False
        if self._client != NULL:
            hsm_client_batch_end(self._client)
