"""The C_* calls of the probe, through the module's function list, each announced before it is made.

python-pkcs11 is not used here: it couples calls that have to be told apart, and nobody could say in which of them a
module hangs. Whatever the module returns is taken as hostile: lengths and counts are bounded, text is cleaned.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import Structure, byref, c_char, c_ubyte, c_ulong, c_void_p
from dataclasses import dataclass
from typing import Final

from hsmcore.control.cryptoki import CkrError
from hsmcore.doctor.report import printable

# Places in CK_FUNCTION_LIST after its CK_VERSION (PKCS#11 v2.40, pkcs11f.h; the order is the same in v3).
_PLACES: Final = {
    "C_GetInfo": 2,
    "C_GetSlotList": 4,
    "C_GetSlotInfo": 5,
    "C_GetTokenInfo": 6,
    "C_GetMechanismInfo": 8,
    "C_OpenSession": 12,
    "C_CloseSession": 13,
    "C_Login": 18,
    "C_GetAttributeValue": 24,
    "C_FindObjectsInit": 26,
    "C_FindObjects": 27,
    "C_FindObjectsFinal": 28,
}
_FUNCTIONS: Final = 68
_SERIAL: Final = 0x4  # CKF_SERIAL_SESSION
_READ_WRITE: Final = 0x2  # CKF_RW_SESSION
_USER: Final = 1  # CKU_USER
_UNAVAILABLE: Final = c_ulong(-1).value  # CK_UNAVAILABLE_INFORMATION; also CK_EFFECTIVELY_INFINITE is 0
_ABSENT: Final = (0x011, 0x012)  # CKR_ATTRIBUTE_SENSITIVE, CKR_ATTRIBUTE_TYPE_INVALID
_MECHANISM_INVALID: Final = 0x070
_CKA_CLASS: Final = 0x000
_CKA_LABEL: Final = 0x003
_CKA_ID: Final = 0x102

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


class _Attribute(Structure):
    _fields_ = (("type", c_ulong), ("value", c_void_p), ("length", c_ulong))


@dataclass(frozen=True, slots=True)
class ModuleInfo:
    """CK_INFO."""

    cryptoki: tuple[int, int]
    manufacturer: str
    description: str
    library: tuple[int, int]


@dataclass(frozen=True, slots=True)
class TokenInfo:
    """CK_TOKEN_INFO. Session counts: None where the token does not say, 0 as the most: no limit."""

    slot: int
    slot_description: str
    label: str
    manufacturer: str
    model: str
    serial: str
    flags: int
    max_sessions: int | None
    sessions: int | None
    firmware: tuple[int, int]


class Calls:
    """The function list of a module that this process has loaded and initialized. For one thread.

    `announce` is called with the name of each function before the call."""

    def __init__(self, path: str, announce: Callable[[str], None]) -> None:
        self._announce = announce
        listed = c_void_p()
        get_list = ctypes.CDLL(path).C_GetFunctionList  # one more reference to what is loaded already
        get_list.restype = c_ulong
        announce("C_GetFunctionList")
        ckr = get_list(byref(listed))
        if ckr != 0 or not listed.value:
            raise CkrError("C_GetFunctionList", ckr or 0x5)
        # CK_VERSION has two bytes; the pointers after it are aligned.
        first = listed.value + ctypes.sizeof(c_void_p)
        self._functions = (c_void_p * _FUNCTIONS).from_address(first)

    def _try(self, name: str, *arguments: object) -> int:
        self._announce(name)
        function = ctypes.CFUNCTYPE(c_ulong)(self._functions[_PLACES[name]] or 0)
        return int(function(*arguments))

    def _call(self, name: str, *arguments: object) -> None:
        ckr = self._try(name, *arguments)
        if ckr != 0:
            raise CkrError(name, ckr)

    def info(self) -> ModuleInfo:
        """C_GetInfo."""
        info = _Info()
        self._call("C_GetInfo", byref(info))
        return ModuleInfo(
            (info.cryptoki.major, info.cryptoki.minor),
            _text(info, _Info.manufacturer),
            _text(info, _Info.description),
            (info.library.major, info.library.minor),
        )

    def slots(self) -> list[int]:
        """Slots in which there is a token, MAX_SLOTS at most."""
        count = c_ulong()
        self._call("C_GetSlotList", c_ubyte(1), None, byref(count))
        room = min(count.value, MAX_SLOTS) + 1
        slots, filled = (c_ulong * room)(), c_ulong(room)
        self._call("C_GetSlotList", c_ubyte(1), slots, byref(filled))
        return list(slots[: min(filled.value, room)])

    def slot_description(self, slot: int) -> str:
        """CK_SLOT_INFO.slotDescription; "" where the module does not say."""
        info = _SlotInfo()
        return _text(info, _SlotInfo.description) if self._try("C_GetSlotInfo", c_ulong(slot), byref(info)) == 0 else ""

    def token(self, slot: int) -> TokenInfo:
        """C_GetTokenInfo, and the slot's description."""
        info = _TokenInfo()
        self._call("C_GetTokenInfo", c_ulong(slot), byref(info))
        most, used = (None if count == _UNAVAILABLE else int(count) for count in (info.max_sessions, info.sessions))
        return TokenInfo(
            slot=slot,
            slot_description=self.slot_description(slot),
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
        """CK_MECHANISM_INFO.flags; None for a mechanism that the token does not have."""
        info = _MechanismInfo()
        ckr = self._try("C_GetMechanismInfo", c_ulong(slot), c_ulong(mechanism), byref(info))
        if ckr == _MECHANISM_INVALID:
            return None
        if ckr != 0:
            raise CkrError("C_GetMechanismInfo", ckr)
        return int(info.flags)

    def open(self, slot: int, *, read_write: bool = False) -> int:
        """A new session."""
        session = c_ulong()
        flags = _SERIAL | (_READ_WRITE if read_write else 0)
        self._call("C_OpenSession", c_ulong(slot), c_ulong(flags), None, None, byref(session))
        return session.value

    def close(self, session: int) -> None:
        """C_CloseSession; that a session is gone already is no error."""
        self._try("C_CloseSession", c_ulong(session))

    def login(self, session: int, pin: bytearray) -> None:
        """C_Login as the token's user, once. The caller wipes `pin`; the copy that the call needs is wiped here."""
        buffer = (c_ubyte * (len(pin) + 1))(*pin)
        try:
            self._call("C_Login", c_ulong(session), c_ulong(_USER), buffer, c_ulong(len(pin)))
        finally:
            ctypes.memset(buffer, 0, len(buffer))

    def find(self, session: int, class_: int, label: bytes | None = None, identity: bytes | None = None) -> list[int]:
        """Objects of one class, MAX_OBJECTS at most. Nothing else is asked for: see control/keys.py."""
        wanted = {_CKA_CLASS: bytes(c_ulong(class_)), _CKA_LABEL: label, _CKA_ID: identity}
        named = [(kind, ctypes.create_string_buffer(value, len(value))) for kind, value in wanted.items() if value]
        template = (_Attribute * len(named))()
        for row, (kind, value) in zip(template, named, strict=True):
            row.type, row.value, row.length = kind, ctypes.addressof(value), ctypes.sizeof(value)
        self._call("C_FindObjectsInit", c_ulong(session), template, c_ulong(len(named)))
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
        """One attribute; None if the object does not have or show it, or one that is longer than `size`. For numbers
        and truth values `size` must be theirs: NSS refuses a larger buffer."""
        room = (c_ubyte * size)()
        asked = _Attribute(kind, ctypes.addressof(room), size)
        ckr = self._try("C_GetAttributeValue", c_ulong(session), c_ulong(item), byref(asked), c_ulong(1))
        if ckr in _ABSENT:
            return None
        if ckr != 0:
            raise CkrError("C_GetAttributeValue", ckr)
        return bytes(room[: asked.length]) if asked.length <= size else None


def _text(info: Structure, field: object) -> str:
    """A padded text field, without reading past its end."""
    place = field
    start, size = place.offset, place.size  # type: ignore[attr-defined]  # a field's descriptor
    raw = bytes(info)[start : start + size].rstrip(b" \0")
    return printable(raw.decode("utf-8", "replace"), 64)
