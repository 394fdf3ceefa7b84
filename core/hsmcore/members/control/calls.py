"""The C_* calls that python-pkcs11 lacks or couples to something else, through the module's function list.

python-pkcs11 has no C_InitToken and no C_GetSessionInfo, and C_Login only together with C_OpenSession: if the login
fails, the new session stays open without a handle to it. Its C_CreateObject takes the values as Python bytes, which
cannot be wiped. The doctor must tell calls apart that python-pkcs11 makes as one. ctypes releases the GIL during each
call. Values from the module are untrusted: lengths and counts are bounded, text is cleaned.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from ctypes import Structure, byref, c_char, c_ubyte, c_ulong, c_void_p
from dataclasses import dataclass
from typing import Any, Final

from pkcs11 import Attribute
from pkcs11.types import Session

from hsmcore._native import Turn, functions_of
from hsmcore.base.log import printable
from hsmcore.members.control.records import TokenRecord

# Positions in CK_FUNCTION_LIST after its CK_VERSION (PKCS#11 v2.40, pkcs11f.h; the order is the same in v3).
_PLACES: Final = {
    "C_GetInfo": 2,
    "C_GetSlotList": 4,
    "C_GetSlotInfo": 5,
    "C_GetTokenInfo": 6,
    "C_GetMechanismInfo": 8,
    "C_InitToken": 9,
    "C_OpenSession": 12,
    "C_CloseSession": 13,
    "C_GetSessionInfo": 15,
    "C_Login": 18,
    "C_CreateObject": 20,
    "C_GetAttributeValue": 24,
    "C_FindObjectsInit": 26,
    "C_FindObjects": 27,
    "C_FindObjectsFinal": 28,
}
_FUNCTIONS: Final = 68
_SERIAL: Final = 0x4  # CKF_SERIAL_SESSION
_READ_WRITE: Final = 0x2  # CKF_RW_SESSION
_USER: Final = 1  # CKU_USER
_ALREADY_LOGGED_IN: Final = 0x100  # CKR_USER_ALREADY_LOGGED_IN
_USER_FUNCTIONS: Final = (1, 3)  # CKS_RO_USER_FUNCTIONS, CKS_RW_USER_FUNCTIONS
_UNAVAILABLE: Final = c_ulong(-1).value  # CK_UNAVAILABLE_INFORMATION
_NO_ATTRIBUTE: Final = (0x011, 0x012, 0x150)  # CKR_ATTRIBUTE_SENSITIVE, _TYPE_INVALID, CKR_BUFFER_TOO_SMALL
_NO_MECHANISM: Final = (0x070,)  # CKR_MECHANISM_INVALID
_LABEL_BYTES: Final = 32

MAX_SLOTS: Final = 4096
MAX_OBJECTS: Final = 4096
MAX_ATTRIBUTE: Final = 1024


class _Version(Structure):
    _fields_ = (("major", c_ubyte), ("minor", c_ubyte))


class _Info(Structure):
    _fields_ = (
        ("cryptoki", _Version),
        ("manufacturer", c_char * 32),
        ("flags", c_ulong),
        ("description", c_char * 32),
        ("library", _Version),
    )


class _SlotInfo(Structure):
    _fields_ = (
        ("description", c_char * 64),
        ("manufacturer", c_char * 32),
        ("flags", c_ulong),
        ("hardware", _Version),
        ("firmware", _Version),
    )


class _TokenInfo(Structure):
    _fields_ = (
        ("label", c_char * 32),
        ("manufacturer", c_char * 32),
        ("model", c_char * 16),
        ("serial", c_char * 16),
        ("flags", c_ulong),
        *((name, c_ulong) for name in ("max_sessions", "sessions", "max_rw", "rw", "max_pin", "min_pin")),
        *((name, c_ulong) for name in ("public_total", "public_free", "private_total", "private_free")),
        ("hardware", _Version),
        ("firmware", _Version),
        ("time", c_char * 16),
    )


class _MechanismInfo(Structure):
    _fields_ = (("smallest", c_ulong), ("largest", c_ulong), ("flags", c_ulong))


class _SessionInfo(Structure):
    _fields_ = (("slot", c_ulong), ("state", c_ulong), ("flags", c_ulong), ("device_error", c_ulong))


class _Attribute(Structure):
    _fields_ = (("kind", c_ulong), ("value", c_void_p), ("size", c_ulong))


class CkrError(Exception):
    """A call returned something other than CKR_OK."""

    def __init__(self, call: str, ckr: int) -> None:
        super().__init__(f"{call} returned 0x{ckr:x}")
        self.call = call
        self.ckr = ckr


@dataclass(frozen=True, slots=True)
class ModuleInfo:
    """Fields of CK_INFO."""

    cryptoki: tuple[int, int]
    manufacturer: str
    description: str
    library: tuple[int, int]


@dataclass(frozen=True, slots=True)
class TokenInfo(TokenRecord):
    """CK_TOKEN_INFO and the slot. `max_sessions` 0: no limit. Counts None: the token does not say."""

    flags: int
    max_sessions: int | None
    sessions: int | None
    firmware: tuple[int, int]


def try_load(path: str, announce: Callable[[str], object]) -> None:
    """Load a module in steps, so that a crash is told apart from one in C_Initialize. What is wrong with the file
    otherwise is found when the native core loads it."""
    announce("the library's loading")
    with suppress(OSError, AttributeError):
        get_list = ctypes.CDLL(path).C_GetFunctionList
        announce("C_GetFunctionList")
        get_list(byref(c_void_p()))


class Calls:
    """A module that this process has loaded and initialized, with its quirks' name (`quirks`) where the path does not
    tell. Any thread; a session in the arguments belongs to the caller's thread.

    `announce` is called with the name of each function before the call.
    """

    def __init__(
        self, path: str, quirks: str | None = None, announce: Callable[[str], object] = lambda _: None
    ) -> None:
        self._path = path
        self.quirks = quirks
        self._announce = announce
        listed = functions_of(path)
        if not listed:
            raise CkrError("C_GetFunctionList", 0x190)  # CKR_CRYPTOKI_NOT_INITIALIZED
        # CK_VERSION has two bytes; the pointers after it are aligned.
        self._functions = (c_void_p * _FUNCTIONS).from_address(listed + ctypes.sizeof(c_void_p))

    def _try(self, name: str, *arguments: object) -> int:
        self._announce(name)
        function = ctypes.CFUNCTYPE(c_ulong)(self._functions[_PLACES[name]] or 0)
        return int(function(*arguments))

    def _call(self, name: str, *arguments: object, absent: tuple[int, ...] = ()) -> bool:
        """Make a call. Return False if it returned one of `absent`. Raises CkrError for any other value than CKR_OK."""
        ckr = self._try(name, *arguments)
        if ckr not in (0, *absent):
            raise CkrError(name, ckr)
        return ckr == 0

    def info(self) -> ModuleInfo:
        """Call C_GetInfo."""
        info = _Info()
        self._call("C_GetInfo", byref(info))
        return ModuleInfo(
            (info.cryptoki.major, info.cryptoki.minor),
            _text(info, _Info.manufacturer),
            _text(info, _Info.description),
            (info.library.major, info.library.minor),
        )

    def slots(self) -> list[int]:
        """Return the slots with a token, at most MAX_SLOTS."""
        count = c_ulong()
        self._call("C_GetSlotList", c_ubyte(1), None, byref(count))
        room = min(count.value, MAX_SLOTS) + 1
        slots, filled = (c_ulong * room)(), c_ulong(room)
        self._call("C_GetSlotList", c_ubyte(1), slots, byref(filled))
        return list(slots[: min(filled.value, room)])

    def token(self, slot: int) -> TokenInfo:
        """Call C_GetTokenInfo, and C_GetSlotInfo for the slot's description; "" if the latter fails."""
        info, place = _TokenInfo(), _SlotInfo()
        self._call("C_GetTokenInfo", c_ulong(slot), byref(info))
        described = self._try("C_GetSlotInfo", c_ulong(slot), byref(place)) == 0
        most, used = (None if count == _UNAVAILABLE else int(count) for count in (info.max_sessions, info.sessions))
        return TokenInfo(
            slot_id=slot,
            slot_description=_text(place, _SlotInfo.description) if described else "",
            label=_text(info, _TokenInfo.label),
            manufacturer=_text(info, _TokenInfo.manufacturer),
            model=_text(info, _TokenInfo.model),
            serial=_text(info, _TokenInfo.serial),
            flags=int(info.flags),
            max_sessions=most,
            sessions=used,
            firmware=(info.firmware.major, info.firmware.minor),
        )

    def mechanism_flags(self, slot: int, mechanism: int) -> int | None:
        """Return CK_MECHANISM_INFO.flags; None if the token does not have the mechanism."""
        info = _MechanismInfo()
        arguments = (c_ulong(slot), c_ulong(mechanism), byref(info))
        return int(info.flags) if self._call("C_GetMechanismInfo", *arguments, absent=_NO_MECHANISM) else None

    def init_token(self, slot: int, so_pin: bytes | bytearray, label: str) -> None:
        """Erase the token in `slot` and give it a new security officer PIN and label (32 bytes at most)."""
        padded = label.encode().ljust(_LABEL_BYTES)
        if len(padded) > _LABEL_BYTES:
            raise ValueError(f"a token label has at most {_LABEL_BYTES} bytes")
        name = ctypes.create_string_buffer(padded, _LABEL_BYTES)
        with _secret(so_pin) as (pin, size), Turn(self._path, self.quirks):
            self._call("C_InitToken", c_ulong(slot), pin, size, name)

    def open(self, slot: int, *, read_write: bool = False) -> int:
        """Open a session and return its handle."""
        session = c_ulong()
        flags = _SERIAL | (_READ_WRITE if read_write else 0)
        self._call("C_OpenSession", c_ulong(slot), c_ulong(flags), None, None, byref(session))
        return session.value

    def close(self, session: int) -> None:
        """Close a session. Ignores the result: the session may be gone already."""
        self._try("C_CloseSession", c_ulong(session))

    def logged_in(self, session: int) -> bool:
        """Whether the token behind a session is logged in as its user; that holds for the whole process."""
        info = _SessionInfo()
        self._call("C_GetSessionInfo", c_ulong(session), byref(info))
        return info.state in _USER_FUNCTIONS

    def login(self, session: int, pin: bytes | bytearray) -> bool:
        """Log the process in as the token's user, by one C_Login, until the last session on the token is closed. Return
        False if another thread of this process did so a moment before."""
        with _secret(pin) as (copy, size), Turn(self._path, self.quirks):
            return self._call("C_Login", c_ulong(session), c_ulong(_USER), copy, size, absent=(_ALREADY_LOGGED_IN,))

    def create_object(self, session: int, template: Mapping[int, bytes | tuple[int, int]]) -> int:
        """Make an object and return its handle. A value is bytes, or address and size of the memory that holds it."""
        array, kept = _template(template)
        handle = c_ulong()
        self._call("C_CreateObject", c_ulong(session), array, c_ulong(len(array)), byref(handle))
        del kept
        return handle.value

    def find(self, session: int, class_: int, label: bytes | None = None, identity: bytes | None = None) -> list[int]:
        """Find objects of one class, at most MAX_OBJECTS. The template has no more: see keys.py."""
        wanted = {Attribute.CLASS: bytes(c_ulong(class_)), Attribute.LABEL: label, Attribute.ID: identity}
        array, kept = _template({kind: value for kind, value in wanted.items() if value})
        self._call("C_FindObjectsInit", c_ulong(session), array, c_ulong(len(array)))
        del kept
        found: list[int] = []
        try:
            while len(found) < MAX_OBJECTS:
                some, count = (c_ulong * 64)(), c_ulong()
                self._call("C_FindObjects", c_ulong(session), some, c_ulong(64), byref(count))
                if count.value == 0:
                    break
                found += some[: min(count.value, 64)]
        finally:
            self._try("C_FindObjectsFinal", c_ulong(session))
        return found

    def attribute(self, session: int, item: int, kind: int, size: int = MAX_ATTRIBUTE) -> bytes | None:
        """Read one attribute. Return None if the object does not have it or show it, or if it is longer than `size`.
        For CK_ULONG and CK_BBOOL, `size` must be exact: NSS refuses a larger buffer."""
        room = (c_ubyte * size)()
        asked = _Attribute(kind, ctypes.addressof(room), size)
        arguments = (c_ulong(session), c_ulong(item), byref(asked), c_ulong(1))
        shown = self._call("C_GetAttributeValue", *arguments, absent=_NO_ATTRIBUTE)
        return bytes(room[: asked.size]) if shown and asked.size <= size else None


def handle_of(session: Session) -> int:
    """The handle of a session of python-pkcs11's."""
    handle: int = session.handle  # type: ignore[attr-defined]  # the implementation has it, its types don't
    return handle


@contextmanager
def _secret(pin: bytes | bytearray) -> Iterator[tuple[Any, c_ulong]]:
    """A copy of a PIN, which is overwritten afterwards, and its length."""
    buffer = (c_ubyte * (len(pin) + 1))(*pin)
    try:
        yield buffer, c_ulong(len(pin))
    finally:
        ctypes.memset(buffer, 0, len(buffer))


def _template(values: Mapping[int, bytes | tuple[int, int]]) -> tuple[Any, list[Any]]:
    """An array of CK_ATTRIBUTE, and what must live as long."""
    array, kept = (_Attribute * len(values))(), []
    for entry, (kind, value) in zip(array, values.items(), strict=True):
        entry.kind = kind
        if isinstance(value, bytes):
            kept.append(ctypes.create_string_buffer(value, len(value)))
            entry.value, entry.size = ctypes.addressof(kept[-1]), len(value)
        else:
            entry.value, entry.size = value
    return array, kept


def _text(info: Structure, field: Any) -> str:
    """Decode a padded text field, without reading past its end."""
    start, size = field.offset, field.size
    raw = bytes(info)[start : start + size].rstrip(b" \0")
    return printable(raw.decode("utf-8", "replace"), 64)
