# Part of _native.pyx: functions and classes that need no engine: modules, verification, the core's tables.


@cython.final
cdef class Turn:
    """A context in which no other thread, in any process of this machine, is in one for the same token store
    (hsm_turn_begin). Entering it blocks for a second at most. They nest."""

    cdef bytes _path, _quirks

    def __cinit__(self, str path, str quirks=None):
        self._path = path.encode()
        self._quirks = _encoded(quirks)

    def __enter__(self):
        cdef const char *path = self._path
        cdef const char *quirks = _chars(self._quirks)
        with nogil:
            hsm_turn_begin(quirks, path)

    def __exit__(self, *exc_info):
        hsm_turn_end()


@cython.final
cdef class Module:
    """Keeps a module loaded and initialized, for the control plane. Blocks. Any thread."""

    cdef hsm_module *_module
    cdef readonly str path

    def __cinit__(self, str path, str args=None):
        cdef hsm_error error
        cdef hsm_status status
        encoded, extra = path.encode(), _encoded(args)
        cdef const char *c_path = encoded
        cdef const char *c_args = _chars(extra)
        with nogil:
            status = hsm_module_acquire(c_path, c_args, &self._module, &error)
        if status != HSM_OK:
            raise _raised(&error, None)
        self.path = path

    def enter(self):
        """Begin a series of calls: until `exit` the module is not initialized again. Returns how often it has been;
        when the number changes, sessions opened before are gone."""
        cdef uint64_t count
        cdef hsm_module *module = self._module
        if module == NULL:
            raise BadArgument("the module was given back")
        with nogil:
            count = hsm_module_enter(module)
        return count

    def exit(self):
        """End a series of calls."""
        if self._module != NULL:
            hsm_module_exit(self._module)

    def close(self):
        """Give the module back; the last holder finalizes it. Idempotent."""
        cdef hsm_module *module = self._module
        self._module = NULL
        with nogil:
            hsm_module_release(module)

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()

    def __dealloc__(self):
        hsm_module_release(self._module)


cdef extern from *:
    """
    /* python-pkcs11 asks a library for a function list. This library gives it that of a module which the core has
       initialized: the module itself might give one that is not. */
    static _Thread_local void *lent;
    __attribute__((visibility("default"))) unsigned long C_GetFunctionList(void **list);
    unsigned long C_GetFunctionList(void **list) {
        *list = lent;
        return lent == NULL ? 0x190 /* CKR_CRYPTOKI_NOT_INITIALIZED */ : 0;
    }
    """
    void *lent


def functions_of(str path):
    """The address of the CK_FUNCTION_LIST by which the core has initialized a module; 0 if this process does not hold
    it. From now on C_GetFunctionList of this library gives that list to this thread."""
    global lent
    encoded = path.encode()
    cdef const char *c_path = encoded
    with nogil:
        lent = hsm_module_functions(c_path)
    return <size_t>lent


def verify(str algorithm, bytes public_key, message, bytes signature):
    """Whether `signature` is good for a message, or for a Digest, by libsodium or libcrypto. Releases the GIL. Any
    thread. Raises BadArgument for a bad key."""
    cdef bint prehashed = type(message) is Digest
    cdef bytes data = (<Digest>message).value if prehashed else _frozen(message)
    cdef const uint8_t *data_ptr = <const uint8_t *>PyBytes_AS_STRING(data)
    cdef size_t data_len = <size_t>PyBytes_GET_SIZE(data)
    cdef const uint8_t *key_ptr = <const uint8_t *>PyBytes_AS_STRING(public_key)
    cdef size_t key_len = <size_t>PyBytes_GET_SIZE(public_key)
    cdef const uint8_t *signature_ptr = <const uint8_t *>PyBytes_AS_STRING(signature)
    cdef size_t signature_len = <size_t>PyBytes_GET_SIZE(signature)
    cdef hsm_algorithm number = hsm_algorithm_of_name(algorithm.encode())
    cdef hsm_status status
    with nogil:
        status = hsm_verify(number, key_ptr, key_len, data_ptr, data_len, prehashed, signature_ptr, signature_len)
    if status == HSM_BAD_ARGUMENT:
        raise BadArgument(f"not an {algorithm} public key")
    return status == HSM_OK


def recovery_id(bytes public_key not None, Digest digest not None, bytes signature not None):
    """The recovery id, 0 to 3, of a signature with a secp256k1 key. Takes half a millisecond and releases the GIL. Any
    thread. Raises SignatureInvalid if the signature is not that key's, BadArgument for a bad key."""
    cdef const uint8_t *key_ptr = <const uint8_t *>PyBytes_AS_STRING(public_key)
    cdef const uint8_t *digest_ptr = <const uint8_t *>PyBytes_AS_STRING(digest.value)
    cdef const uint8_t *signature_ptr = <const uint8_t *>PyBytes_AS_STRING(signature)
    cdef uint8_t found = 0
    cdef hsm_status status = HSM_BAD_ARGUMENT
    if PyBytes_GET_SIZE(public_key) == HSM_MAX_PUBLIC_KEY and PyBytes_GET_SIZE(signature) == HSM_MAX_SIGNATURE:
        with nogil:
            status = hsm_recovery_id(key_ptr, digest_ptr, signature_ptr, &found)
    if status != HSM_OK:
        raise _exception(status, None)
    return found


def wipe(bytearray secret):
    """Overwrite a secret in place."""
    if len(secret):
        hsm_wipe(<char *>secret, len(secret))


def _lacking(uint32_t done):
    steps = {"no-core-dumps": HSM_NO_CORE_DUMPS, "not-dumpable": HSM_NOT_DUMPABLE,
             "no-new-privileges": HSM_NO_NEW_PRIVILEGES, "seccomp": HSM_SECCOMP, "landlock": HSM_LANDLOCK}
    return tuple(name for name, bit in steps.items() if not done & bit)


def harden():
    """Have this process give up what a host process does (hsm_harden), for good. Before it has other threads. Returns
    the steps that did not take effect."""
    cdef int32_t abi = 0
    return _lacking(hsm_harden(&abi))


def fork_generation():
    """A number that differs in a forked child."""
    return hsm_fork_generation()


def leaks():
    """Native allocations, threads, sessions and descriptors that exist now; all 0 once everything is closed."""
    cdef hsm_leaks held
    hsm_leaks_read(&held)
    return {"allocations": held.allocations, "threads": held.threads, "sessions": held.sessions,
            "descriptors": held.descriptors}


def statuses():
    """Every status of the native core as (name, class, text), in order."""
    return [(_text(hsm_status_name(<hsm_status>i)), _text(hsm_class_name(hsm_status_class(<hsm_status>i))),
             _text(hsm_status_text(<hsm_status>i))) for i in range(HSM_STATUS_COUNT)]


def ckr_table():
    """Every CKR that the core knows as (number, name, status name)."""
    cdef uint64_t ckr
    cdef const char *name
    cdef hsm_status status
    rows = []
    while hsm_ckr_row(<size_t>len(rows), &ckr, &name, &status):
        rows.append((ckr, _text(name), _text(hsm_status_name(status))))
    return rows


def quirks():
    """The names of the known modules."""
    names = []
    while hsm_quirks_name(<size_t>len(names)) != NULL:
        names.append(_text(hsm_quirks_name(<size_t>len(names))))
    return names


cdef object _queue_full(str member, hsm_requests_counts counts, uint64_t timeout_ns):
    """The refusal of a request that cannot be answered in time."""
    ahead = counts.owed + counts.queued
    return error_of("QUEUE_FULL", member=member,
                    detail=f"{ahead} requests wait, which takes about {ahead * counts.each_ns / NS:.3g} s; the "
                           f"timeout is {timeout_ns / NS:.3g} s")
