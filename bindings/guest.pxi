# Part of _native.pyx: requests that Python serves, in place of an engine's workers. members/offload/ has the runners.

cdef dict _STATUS_NUMBERS = {_text(hsm_status_name(<hsm_status>i)): i for i in range(HSM_STATUS_COUNT)}


@cython.no_gc_clear
cdef class Guest(Requests):
    """An engine without workers: its runners, numbered from 0, are the caller's. All methods belong to the event
    loop."""

    cdef hsm_guest *_guest

    def __dealloc__(self):
        hsm_guest_free(self._guest)

    def serve(self, uint32_t runners, uint32_t verify_every, pump):
        """Once, before `attach`. `pump()` is called when requests wait to be begun. Each `verify_every`-th signature is
        verified before it is handed out; 0: none, 1: all."""
        if self._table == NULL:
            raise self._failure(HSM_CLOSED)
        if hsm_guest_new(self._table, runners, verify_every, &self._guest) != HSM_OK:
            raise BadArgument(f"{runners} runners", member=self._member)
        self._pump = pump

    def pin(self, str algorithm not None, bytes public_key not None, max_message=None, str limit="its limit"):
        """Take in a key. `max_message`: the longest message that it signs, in bytes, by the name of that `limit`.
        Returns its index."""
        cdef hsm_key_info info
        cdef hsm_status status
        memset(&info, 0, sizeof(info))
        info.algorithm = hsm_algorithm_of_name(algorithm.encode())
        info.public_key_len = <uint32_t>min(len(public_key), HSM_MAX_PUBLIC_KEY)
        memcpy(info.public_key, PyBytes_AS_STRING(public_key), info.public_key_len)
        status = hsm_guest_add_key(self._guest, &info,
                                   self._cache_all or hsm_algorithm_is_deterministic(info.algorithm) != 0)
        if status != HSM_OK:
            raise self._failure(status)
        self._limits.pop(info.index, None)
        if max_message is not None:
            self._limits[info.index] = min(max_message, self._max_message), limit
        return info.index

    def retire_key(self, uint32_t index):
        """Refuse every further and every queued request for this key, and wipe all cached signatures. Idempotent.
        Raises BadArgument."""
        if self._table == NULL:  # it signs no more
            return
        if hsm_requests_knows(self._table, index) < 0:
            raise BadArgument(f"no key with index {index}", member=self._member)
        hsm_requests_retire(self._table, index)
        self.clear_cache()

    def begin(self, uint32_t runner):
        """The next request for an idle runner: (key, message), or None. After `detach` there is none."""
        cdef uint32_t key
        cdef uint64_t number
        if self._guest == NULL or self._fds is None:
            return None
        number = hsm_guest_begin(self._guest, runner, &key)
        if hsm_requests_catch_up(self._table):  # it completed some that need no runner
            self._loop.call_soon(self._continue)
        return (key, self._waiters.messages[<Py_ssize_t><uint32_t>number]) if number else None

    def end(self, uint32_t runner, result):
        """End the runner's request with a signature or an HsmError. `deliver` hands it out."""
        cdef hsm_status status = HSM_OK
        cdef uint64_t ckr = 0
        cdef bytes signature = b""
        cdef uint32_t slot
        if self._guest == NULL:
            return
        if isinstance(result, HsmError):
            status = <hsm_status><int>_STATUS_NUMBERS.get(result.status, HSM_CKR_UNKNOWN)
            if status == HSM_OK:  # of an InternalError, which no status stands for
                status = HSM_CKR_UNKNOWN
            ckr = result.ckr or 0
        elif type(result) is not bytes or PyBytes_GET_SIZE(result) != HSM_MAX_SIGNATURE:
            status = HSM_SIGNATURE_MALFORMED
        else:
            signature = result
        slot = hsm_guest_end(self._guest, runner, status, ckr, <const uint8_t *>PyBytes_AS_STRING(signature))
        if isinstance(result, HsmError) and slot != HSM_NO_SLOT:
            self._details[slot] = result

    def deliver(self):
        """Hand out the answers of the requests that were ended."""
        self._continue()

    def overran(self, uint32_t runner):
        """Whether the runner's call has outlasted everyone's deadline. From then on the runner counts as stuck."""
        return self._guest != NULL and hsm_guest_overran(self._guest, runner) != 0

    def refuse_queued(self, str status not None):
        """Fail every request that no runner has begun."""
        if self._guest != NULL:
            hsm_guest_refuse(self._guest, <hsm_status><int>_STATUS_NUMBERS[status])
            self._continue()

    def release(self):
        """After `detach`: free rings and cache now; what the runners still end is ignored. Idempotent."""
        hsm_guest_free(self._guest)
        self._guest = NULL
        self._free()
