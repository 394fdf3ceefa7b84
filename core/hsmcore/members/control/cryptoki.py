"""The four C_* calls that python-pkcs11 lacks or couples to something else, through the module's function list.

python-pkcs11 has no C_InitToken and no C_GetSessionInfo, and C_Login only together with C_OpenSession: if the login
fails, the new session stays open without a handle to it. Its C_CreateObject takes the values as Python bytes, which
cannot be wiped. ctypes releases the GIL during each call.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from ctypes import POINTER, Structure, byref, c_ubyte, c_ulong, c_void_p
from typing import Final

from pkcs11.types import Session

from hsmcore._native import Turn, functions_of

_CKU_USER: Final = 1
_RO_USER_FUNCTIONS: Final = 1  # CKS_RO_USER_FUNCTIONS
_RW_USER_FUNCTIONS: Final = 3  # CKS_RW_USER_FUNCTIONS
_LABEL_BYTES: Final = 32

# Positions in CK_FUNCTION_LIST after its CK_VERSION (PKCS#11 v2.40, pkcs11f.h; the order is the same in v3).
_INIT_TOKEN: Final = 9
_GET_SESSION_INFO: Final = 15
_LOGIN: Final = 18
_CREATE_OBJECT: Final = 20
_FUNCTIONS: Final = 68


class _SessionInfo(Structure):
    _fields_ = (("slot", c_ulong), ("state", c_ulong), ("flags", c_ulong), ("device_error", c_ulong))


class _Attribute(Structure):
    _fields_ = (("kind", c_ulong), ("value", c_void_p), ("size", c_ulong))


class _FunctionList(Structure):
    _fields_ = (("major", c_ubyte), ("minor", c_ubyte), ("functions", c_void_p * _FUNCTIONS))


class CkrError(Exception):
    """A call returned something other than CKR_OK."""

    def __init__(self, call: str, ckr: int) -> None:
        super().__init__(f"{call} returned 0x{ckr:x}")
        self.call = call
        self.ckr = ckr


class Cryptoki:
    """A loaded and initialized module, with its quirks' name where the path does not tell. Any thread; a session in the
    arguments belongs to the caller's thread."""

    def __init__(self, path: str, quirks: str | None = None) -> None:
        self._kind = path, quirks
        address = functions_of(path)
        if not address:
            raise CkrError("C_GetFunctionList", 0x190)  # CKR_CRYPTOKI_NOT_INITIALIZED
        functions = _FunctionList.from_address(address).functions
        self._init_token = _prototype(c_ulong, c_void_p, c_ulong, c_void_p)(functions[_INIT_TOKEN])
        self._get_session_info = _prototype(c_ulong, POINTER(_SessionInfo))(functions[_GET_SESSION_INFO])
        self._create = _prototype(c_ulong, c_void_p, c_ulong, POINTER(c_ulong))(functions[_CREATE_OBJECT])
        self._login = _prototype(c_ulong, c_ulong, c_void_p, c_ulong)(functions[_LOGIN])

    def init_token(self, slot: int, so_pin: bytes | bytearray, label: str) -> None:
        """Erase the token in `slot` and give it a new security officer PIN and label (32 bytes at most)."""
        padded = label.encode().ljust(_LABEL_BYTES)
        if len(padded) > _LABEL_BYTES:
            raise ValueError(f"a token label has at most {_LABEL_BYTES} bytes")
        name = ctypes.create_string_buffer(padded, _LABEL_BYTES)
        with _secret(so_pin) as (address, size), Turn(*self._kind):
            _check("C_InitToken", self._init_token(slot, address, size, name))

    def logged_in(self, session: int) -> bool:
        """Whether the token behind a session is logged in as its user; that holds for the whole process."""
        info = _SessionInfo()
        _check("C_GetSessionInfo", self._get_session_info(session, byref(info)))
        return info.state in (_RO_USER_FUNCTIONS, _RW_USER_FUNCTIONS)

    def login(self, session: int, pin: bytes | bytearray) -> None:
        """Log the process in as the token's user, until the last session on the token is closed."""
        with _secret(pin) as (address, size), Turn(*self._kind):
            _check("C_Login", self._login(session, _CKU_USER, address, size))

    def create_object(self, session: int, template: Mapping[int, bytes | tuple[int, int]]) -> int:
        """Make an object and return its handle. A value is bytes, or address and size of the memory that holds it."""
        array = (_Attribute * len(template))()
        kept = []
        for entry, (kind, value) in zip(array, template.items(), strict=True):
            entry.kind = kind
            if isinstance(value, bytes):
                kept.append(ctypes.create_string_buffer(value, len(value)))
                entry.value, entry.size = ctypes.addressof(kept[-1]), len(value)
            else:
                entry.value, entry.size = value
        handle = c_ulong()
        _check("C_CreateObject", self._create(session, array, len(template), byref(handle)))
        return handle.value


def handle_of(session: Session) -> int:
    """The handle of a session of python-pkcs11's."""
    handle: int = session.handle  # type: ignore[attr-defined]  # the implementation has it, its types don't
    return handle


@contextmanager
def _secret(pin: bytes | bytearray) -> Iterator[tuple[int, int]]:
    """Address and length of a copy of a PIN, which is overwritten afterwards."""
    buffer = (c_ubyte * (len(pin) + 1))(*pin)
    try:
        yield ctypes.addressof(buffer), len(buffer) - 1
    finally:
        ctypes.memset(buffer, 0, len(buffer))


def _prototype(*arguments: type) -> type[ctypes._CFunctionType]:
    return ctypes.CFUNCTYPE(c_ulong, *arguments)


def _check(call: str, ckr: int) -> None:
    if ckr != 0:
        raise CkrError(call, ckr)
