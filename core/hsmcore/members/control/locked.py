"""Secret keys in memory that does not reach the disk, a core dump, a forked child or a Python object."""

from __future__ import annotations

import ctypes
import importlib
import mmap
import os
import resource
import weakref
from typing import Any, Final

from hsmcore.errors import EngineClosed, KeyUnusable, OutOfMemory, SystemFailure

# PyNaCl's own classes take the seed as Python bytes, which cannot be wiped and may be copied anywhere. Through its
# binding of libsodium the key pair is made by libsodium right inside the memory that is protected.
_sodium: Final[Any] = importlib.import_module("nacl._sodium")
_ffi: Final[Any] = _sodium.ffi
_lib: Final[Any] = _sodium.lib
_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_libc.mlock.argtypes = _libc.munlock.argtypes = (ctypes.c_void_p, ctypes.c_size_t)

MADV_DONTDUMP: Final = 16  # madvise(2)
MADV_WIPEONFORK: Final = 18  # madvise(2), Linux 4.14
PUBLIC_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
SEED_BYTES: Final = 32
SEAL_BYTES: Final = 48
"""Bytes that a seal adds (libsodium, crypto_box_SEALBYTES)."""
_MEMORY_HINT: Final = (
    "Allow locked memory: `ulimit -l`, LimitMEMLOCK= in the service's unit, or --ulimit memlock= for a container; "
    f"each ephemeral key takes a page of {mmap.PAGESIZE} bytes."
)


class _Locked:
    """One page of locked memory. Not usable in a forked child, where it reads as zeros.

    Raises OutOfMemory where the memory cannot be locked.
    """

    def __init__(self, member: str) -> None:
        self._member = member
        self._process = os.getpid()
        self._memory = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._buffer = _ffi.from_buffer(self._memory)
        self.address = int(_ffi.cast("uintptr_t", self._buffer))
        # Without a call of `wipe` too: at the end of the last reference or of the interpreter.
        self._finalizer = weakref.finalize(self, _wipe, self._memory, self._buffer, self._process)
        self._secret = _ffi.cast("unsigned char *", self._buffer)
        try:
            self._protect()
        except BaseException:
            self.wipe()
            raise

    def _protect(self) -> None:
        size = mmap.PAGESIZE
        if _libc.mlock(self.address, size) != 0:
            number = ctypes.get_errno()
            limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
            raise OutOfMemory(
                f"member {self._member!r}: the key's memory cannot be locked ({os.strerror(number)}; RLIMIT_MEMLOCK is "
                f"{limit} bytes)",
                member=self._member,
                hint=_MEMORY_HINT,
            )
        for advice, name in ((MADV_DONTDUMP, "MADV_DONTDUMP"), (MADV_WIPEONFORK, "MADV_WIPEONFORK")):
            if _libc.madvise(self.address, size, advice) != 0:
                number = ctypes.get_errno()
                raise SystemFailure(
                    f"member {self._member!r}: {name} is refused ({os.strerror(number)})",
                    member=self._member,
                    hint="Use a Linux kernel of version 4.14 or newer.",
                )

    @property
    def alive(self) -> bool:
        """Whether the key is not wiped."""
        return self._finalizer.alive

    def wipe(self) -> None:
        """Overwrite the key for good. Idempotent."""
        self._finalizer()


class TransportKey(_Locked):
    """An X25519 key pair: a key that was sealed to `public_key` (32 bytes) can be opened here, and nowhere else."""

    def __init__(self, member: str) -> None:
        super().__init__(member)
        public = _ffi.new("unsigned char[]", PUBLIC_BYTES)
        if _lib.crypto_box_keypair(public, self._secret) != 0:
            self.wipe()
            raise SystemFailure("libsodium could not make a key pair", member=member)
        self.public_key = bytes(_ffi.buffer(public, PUBLIC_BYTES))

    @property
    def secret(self) -> Any:
        """The private half, for libsodium; valid until `wipe`."""
        if not self.alive or os.getpid() != self._process:
            raise EngineClosed("the transport key is gone", member=self._member)
        return self._secret


class LockedKey(_Locked):
    """An Ed25519 key pair: a new one, or one that was sealed to a recovery key (an X25519 private key, 32 bytes) or a
    transport key."""

    def __init__(self, member: str, sealed: tuple[bytes, bytearray | TransportKey] | None = None) -> None:
        super().__init__(member)
        try:
            self.public_key = self._generate() if sealed is None else self._unseal(*sealed)
        except BaseException:
            self.wipe()
            raise

    def seal(self, recovery_key: bytes) -> bytes:
        """The key's seed, sealed to an X25519 public key (libsodium's crypto_box_seal): 80 bytes. The seed itself never
        leaves the locked memory."""
        sealed = _ffi.new("unsigned char[]", SEED_BYTES + SEAL_BYTES)
        if _lib.crypto_box_seal(sealed, self._secret, SEED_BYTES, recovery_key) != 0:
            raise SystemFailure("libsodium could not seal the key", member=self._member)
        return bytes(_ffi.buffer(sealed, SEED_BYTES + SEAL_BYTES))

    def _unseal(self, sealed: bytes, recovery: bytearray | TransportKey) -> bytes:
        """Open a sealed key into the locked memory."""
        public = _ffi.new("unsigned char[]", 32)
        what = "transport" if isinstance(recovery, TransportKey) else "recovery"
        secret = recovery.secret if isinstance(recovery, TransportKey) else _ffi.from_buffer(recovery)
        seed = self._secret + 2 * SEED_BYTES  # after the place of the key: the whole page is locked
        if (
            len(sealed) != SEED_BYTES + SEAL_BYTES
            or (isinstance(recovery, bytearray) and len(recovery) != 32)
            or _lib.crypto_scalarmult_base(public, secret) != 0
            or _lib.crypto_box_seal_open(seed, sealed, len(sealed), public, secret) != 0
        ):
            raise KeyUnusable(f"the sealed key cannot be opened with this {what} key", member=self._member)
        made = _ffi.new("unsigned char[]", PUBLIC_BYTES)
        _lib.crypto_sign_seed_keypair(made, self._secret, seed)
        return bytes(_ffi.buffer(made, PUBLIC_BYTES))

    def _generate(self) -> bytes:
        public = _ffi.new("unsigned char[]", PUBLIC_BYTES)
        if _lib.crypto_sign_keypair(public, self._secret) != 0:
            raise SystemFailure("libsodium could not make a key pair", member=self._member)
        return bytes(_ffi.buffer(public, PUBLIC_BYTES))

    def sign(self, message: bytes) -> bytes:
        """64 bytes (RFC 8032, Ed25519). Raises EngineClosed when the key was wiped or belongs to another process."""
        if not self._finalizer.alive or os.getpid() != self._process:
            raise EngineClosed("the ephemeral key is gone", member=self._member)
        signed = _ffi.new("unsigned char[]", SIGNATURE_BYTES + len(message))
        if _lib.crypto_sign(signed, _ffi.new("unsigned long long *"), message, len(message), self._secret) != 0:
            raise SystemFailure("libsodium could not sign", member=self._member)
        return bytes(_ffi.buffer(signed, SIGNATURE_BYTES))  # the message follows it


def _wipe(memory: mmap.mmap, buffer: Any, process: int) -> None:
    _lib.sodium_memzero(buffer, mmap.PAGESIZE)
    if os.getpid() == process:
        _libc.munlock(int(_ffi.cast("uintptr_t", buffer)), mmap.PAGESIZE)
    _ffi.release(buffer)
    memory.close()
