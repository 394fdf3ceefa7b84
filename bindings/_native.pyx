# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, embedsignature=False
"""The binding: native engine on one side, asyncio futures on the other.

An Engine belongs to one event loop and that loop's thread. Workers never touch Python: they write answers into shared
memory and make a descriptor readable. `_drain` then runs in the loop and resolves the futures of all finished requests.

A *waiter* gets an answer: a future, or one position of a Batch. The native request table knows it by a number. Read
requests.pxi next; README.md has the reading order.
"""
import os
from copy import copy
from hashlib import sha256
from math import inf

from cpython.buffer cimport PyObject_CheckBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.list cimport PyList_GET_SIZE, PyList_SET_ITEM
from cpython.mem cimport PyMem_Calloc, PyMem_Free, PyMem_Malloc, PyMem_Realloc
from cpython.object cimport PyObject, PyObject_Call, PyObject_GenericSetAttr
from cpython.ref cimport Py_INCREF, Py_XDECREF
from cpython.pythread cimport PyThread_get_thread_ident
from libc.errno cimport errno
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memmove, memset
from posix.time cimport CLOCK_REALTIME, clock_gettime, timespec
from posix.types cimport off_t
from posix.unistd cimport pread

cimport cython

from hsmcore cimport *

from hsmcore.base.receipt import Receipt
from hsmcore.errors import (
    BadArgument,
    EmptyMessage,
    HsmError,
    InvalidMessage,
    InvalidMessageType,
    InvalidTimeout,
    MessageTooLarge,
    NotInitialized,
    PolicyRefused,
    WrongEventLoop,
    error_of,
)
from hsmcore.errors.batch import of_batch

cdef extern from "Python.h":
    PyObject *PyList_GET_ITEM(object items, Py_ssize_t i)  # borrowed, and no reference taken

cdef extern from "time.h":
    int CLOCK_BOOTTIME

cdef extern from *:
    int __builtin_clzll(unsigned long long) nogil

cdef double NS = 1e9
# In seconds: a waiter may be answered this long after its deadline, so that deadlines are not looked at too often.
cdef double SWEEP_INTERVAL = 0.005


cdef str _text(const char *text):
    return text.decode("utf-8", "replace")


cdef bytes _encoded(str text):
    return None if text is None else text.encode()


cdef const char *_chars(bytes text) noexcept:
    """NULL for None."""
    return NULL if text is None else PyBytes_AS_STRING(text)


cdef object _exception(hsm_status status, object member, uint64_t ckr=0, const char *call="", const char *detail="",
                       hsm_status failed=HSM_OK):
    """The exception for a status of the native core. `failed`: what the last attempt before a deadline failed with."""
    cdef const char *ckr_name = hsm_ckr_name(ckr) if ckr else NULL
    return error_of(
        _text(hsm_status_name(status)),
        ckr=ckr,
        ckr_name=_text(ckr_name) if ckr_name != NULL else None,
        call=_text(call),
        detail=_text(detail) if failed == HSM_OK else f"the last attempt failed with {_text(hsm_status_name(failed))}",
        member=member,
    )


cdef object _knowing(object error, object maybe_signed):
    """The error, which knows whether a signature may exist; None: its status tells."""
    error.maybe_signed = maybe_signed
    return error


cdef object _raised(const hsm_error *error, object member):
    return _exception(error.status, member, error.ckr, error.call, error.detail)


include "arguments.pxi"
include "histogram.pxi"
include "deadlines.pxi"
include "waiters.pxi"
include "frames.pxi"
include "journal.pxi"
include "records.pxi"
include "lease.pxi"
include "publisher.pxi"
include "requests.pxi"
include "guest.pxi"
include "routes.pxi"


@cython.final
@cython.no_gc_clear
cdef class Engine(Requests):
    """One member's rings, workers, signature cache and futures.

    `start`, `add_key`, `retire_key`, `restart_host`, `token` and `stop` block as long as the module does and release
    the GIL: call them in a thread, one at a time. All other methods belong to the event loop of `attach` and return at
    once.
    """

    cdef hsm_engine *_engine  # the workers in this process,
    cdef hsm_host *_host  # or in a host process; at most one of the two
    cdef uint32_t _verify_every  # on this side of the boundary; 0: none
    cdef bint _starting
    cdef bint _stopped

    def __dealloc__(self):
        with nogil:  # never closed
            hsm_engine_stop(self._engine, 1000000000)
            hsm_host_stop(self._host, 1000000000)

    def start(self, *, str module_path, str module_args=None, str quirks=None, str token_label=None,
              str token_serial=None, int64_t slot_id=-1, bytearray pin=None, uint32_t workers=1,
              double spin_seconds=0.0, double patience_seconds=0.0,
              uint32_t verify_every=0, str host_program=None, list environment=None,
              uint64_t memory_limit=0, double host_timeout=30.0):
        """Load the module, find the token, log in once, start the workers. The caller wipes `pin`. Raises HsmError.

        With `host_program` all of that happens in a child process with this `environment`, a list of b"NAME=value".
        `memory_limit` is in bytes; 0: none."""
        cdef hsm_error error
        cdef hsm_host_options options
        cdef hsm_stats started
        cdef hsm_engine *engine = NULL
        cdef hsm_host *host = NULL
        cdef hsm_status status
        cdef const char **variables
        path, args, names = module_path.encode(), _encoded(module_args), _encoded(quirks)
        label, serial, program = _encoded(token_label), _encoded(token_serial), _encoded(host_program)
        if self._stopped or self._client == NULL:  # it waited for its turn, or for a lock, beyond `stop` and `release`
            raise self._failure(HSM_CLOSED)
        options.engine.module_path = path
        options.engine.module_args = _chars(args)
        options.engine.quirks = _chars(names)
        options.engine.token.label = _chars(label)
        options.engine.token.serial = _chars(serial)
        options.engine.token.slot_id = slot_id
        options.engine.pin = <const uint8_t *><char *>pin if pin is not None else NULL
        options.engine.pin_len = len(pin) if pin is not None else 0
        options.engine.workers = workers
        options.engine.spin_ns = <uint64_t>(spin_seconds * NS)
        options.engine.patience_ns = <uint64_t>(patience_seconds * NS)
        options.engine.verify_every = verify_every
        if program is None:
            self._starting = True
            with nogil:
                status = hsm_engine_start(self._client, &options.engine, &engine, &error)
            self._starting = False
            if self._abandoned:  # by `stop`, while the module hung
                with nogil:
                    hsm_engine_stop(engine, 0)
                self._abandoned = False
                self.release()
                raise self._failure(HSM_CLOSED)
        else:
            options.program = program
            options.memory_limit = memory_limit
            options.timeout_ns = <uint64_t>(host_timeout * NS)
            environment = list(environment or ())
            variables = <const char **>PyMem_Calloc(len(environment) + 1, sizeof(char *))
            if variables == NULL:
                raise MemoryError()
            for i, variable in enumerate(environment):
                variables[i] = <bytes>variable
            options.environment = variables
            status = hsm_host_new(self._client, &options, &host, &error)
            PyMem_Free(variables)
            if status == HSM_OK:
                self._host = host  # from now on kill_host ends the start
                with nogil:
                    status = hsm_host_begin(host, &error)
                if status != HSM_OK:
                    self._host = NULL
                    with nogil:
                        hsm_host_stop(host, 0)
        if status != HSM_OK:
            raise _raised(&error, self._member)
        self._engine = engine
        self._isolated = host != NULL
        # What a host process says of its signatures is not believed: they are verified on this side too.
        self._verify_every = verify_every if host != NULL else 0
        hsm_client_stats(self._client, &started)
        hsm_requests_serve(self._table, started.workers)

    def add_key(self, *, str label=None, bytes id=None, int64_t handle=-1, str algorithm=None, bytes public_key=None):
        """Find, pin and prove a private key. Returns index, label, id, algorithm and public_key. Raises HsmError."""
        cdef hsm_error error
        cdef hsm_key_selector selector
        cdef hsm_key_info info
        cdef hsm_status status
        cdef hsm_engine *engine = self._engine  # `stop` may take them away while this thread waits for the GIL
        cdef hsm_host *host = self._host
        if engine == NULL and host == NULL:
            raise NotInitialized("the engine is not started", member=self._member)
        name = _encoded(label)
        selector.label = _chars(name)
        selector.id = <const uint8_t *>_chars(id)
        selector.id_len = len(id) if id is not None else 0
        selector.handle = handle
        selector.algorithm = hsm_algorithm_of_name(algorithm.encode()) if algorithm is not None else HSM_ALGORITHM_NONE
        selector.public_key = <const uint8_t *>_chars(public_key)
        selector.public_key_len = len(public_key) if public_key is not None else 0
        with nogil:
            if host != NULL:
                status = hsm_host_add_key(host, &selector, &info, &error)
            else:
                status = hsm_engine_add_key(engine, &selector, &info, &error)
        if status != HSM_OK:
            raise _raised(&error, self._member)
        if self._table == NULL:  # `stop` did not wait for this call
            raise self._failure(HSM_CLOSED)
        status = hsm_requests_pin(self._table, &info,
                                  self._cache_all or hsm_algorithm_is_deterministic(info.algorithm) != 0,
                                  self._verify_every)
        if status != HSM_OK:
            raise self._failure(status)
        return {
            "index": info.index,
            "label": _text(info.label),
            "id": PyBytes_FromStringAndSize(<char *>info.id, info.id_len),
            "algorithm": _text(hsm_algorithm_name(info.algorithm)),
            "public_key": PyBytes_FromStringAndSize(<char *>info.public_key, info.public_key_len),
        }

    def retire_key(self, uint32_t index):
        """Refuse every further and every queued request for this key, and wipe all cached signatures. The index is
        never given to another key. Idempotent. Raises BadArgument."""
        cdef hsm_status status
        if self._table == NULL or hsm_requests_knows(self._table, index) == 0:
            return
        if self._host != NULL:
            status = hsm_host_retire_key(self._host, index)
        else:
            status = hsm_engine_retire_key(self._engine, index) if self._engine != NULL else HSM_CLOSED
        if status != HSM_OK:
            raise BadArgument(f"no key with index {index}", member=self._member)
        hsm_requests_retire(self._table, index)
        self.clear_cache()

    def stop(self, double timeout):
        """Stop the workers. Returns how many threads are still inside the module after `timeout` seconds; they free what
        they use when they come out. Idempotent. May be called beside an `add_key` or a `start` in this process that
        hangs."""
        cdef uint32_t left
        cdef hsm_engine *engine = self._engine
        cdef hsm_host *host = self._host
        cdef uint64_t limit = <uint64_t>(timeout * NS)
        self._engine = NULL
        self._host = NULL
        self._stopped = True
        with nogil:
            hsm_host_stop(host, limit)
            left = hsm_engine_stop(engine, limit)
        self._abandoned = self._starting
        return left + self._starting

    @property
    def host_fd(self):
        """A descriptor that becomes readable when the host process has ended; -1 without one."""
        return hsm_host_fd(self._host) if self._host != NULL else -1

    @property
    def host_pid(self):
        """The id of the host process, or None while there is none: kill(-1) and kill(0) would signal other
        processes."""
        cdef int64_t pid = hsm_host_pid(self._host) if self._host != NULL else 0
        return pid if pid > 0 else None

    @property
    def hardening(self):
        """(lacking, Landlock's version): the steps of its hardening that did not take effect in the host process, and
        the kernel's version of Landlock, 0 where it has none. None without a host."""
        cdef int32_t abi = 0
        cdef uint32_t done
        if self._host == NULL:
            return None
        done = hsm_host_hardening(self._host, &abi)
        return _lacking(done), abi

    def kill_host(self):
        """Kill the host process; `host_fd` becomes readable when it has ended."""
        if self._host != NULL:
            hsm_host_kill(self._host)

    def recover(self):
        """After the host process has ended: queue the requests again that it had begun, or answer them with an error.
        Returns how many were queued again."""
        return hsm_requests_replay(self._table) if self._table != NULL else 0

    def restart_host(self, bytearray pin=None):
        """Start the host process again, after `recover`, with another `pin` if one is given, which the caller wipes.
        `host_fd` changes. Returns why a key was not found again while others were, or None. Raises HsmError."""
        cdef hsm_error error
        cdef hsm_status status = HSM_OK
        if self._host == NULL:
            raise NotInitialized("there is no host process", member=self._member)
        error.status = HSM_OK
        if pin is not None:
            status = hsm_host_use_pin(self._host, <const uint8_t *><char *>pin, len(pin), &error)
        if status == HSM_OK:
            with nogil:
                status = hsm_host_restart(self._host, &error)
        if status != HSM_OK:
            raise _raised(&error, self._member)
        return str(_raised(&error, self._member)) if error.status != HSM_OK else None

    def supervise(self):
        """Quarantine workers whose call has overrun, and start others. Returns (stuck, healthy)."""
        cdef uint32_t stuck
        cdef uint32_t healthy = 0
        if self._host != NULL:
            stuck = hsm_host_supervise(self._host, &healthy)
        else:
            stuck = hsm_engine_supervise(self._engine, &healthy)
        return stuck, healthy

    def release(self):
        """After `stop` and `detach`: free rings and cache now. The engine cannot be used afterwards. Idempotent."""
        self._open = False
        if self._engine == NULL and self._host == NULL and self._fds is None and not self._abandoned:
            self._free()

    def token(self):
        """What the token and the module report about themselves. Raises HsmError."""
        cdef hsm_token_info info
        cdef hsm_error error
        cdef hsm_status status = HSM_OK
        cdef hsm_engine *engine = self._engine  # as in add_key
        cdef hsm_host *host = self._host
        if engine == NULL and host == NULL:
            raise NotInitialized("the engine is not started", member=self._member)
        with nogil:
            if host != NULL:
                status = hsm_host_token(host, &info, &error)
            else:
                hsm_engine_token(engine, &info)
        if status != HSM_OK:
            raise _raised(&error, self._member)
        return {"slot_id": info.slot_id, "flags": info.flags, "max_sessions": info.max_sessions,
                "label": _text(info.label), "serial": _text(info.serial), "manufacturer": _text(info.manufacturer),
                "model": _text(info.model), "library": _text(info.library), "quirks": _text(info.quirks)}


include "merkle.pxi"
include "payload.pxi"
include "batch.pxi"
include "replay.pxi"
include "serving.pxi"
include "tables.pxi"
