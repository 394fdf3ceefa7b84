"""A PKCS#11 client of ctypes: calls a module's functions by name and returns each CKR."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path
from typing import Any

from tests.support.paths import CHAOS_SOURCE

CKR_OK = 0x00
CKR_GENERAL_ERROR = 0x05
CKR_FUNCTION_FAILED = 0x06
CKR_NEED_TO_CREATE_THREADS = 0x09
CKR_ATTRIBUTE_TYPE_INVALID = 0x12
CKR_ATTRIBUTE_VALUE_INVALID = 0x13
CKR_DEVICE_ERROR = 0x30
CKR_DEVICE_MEMORY = 0x31
CKR_DEVICE_REMOVED = 0x32
CKR_FUNCTION_NOT_SUPPORTED = 0x54
CKR_MECHANISM_INVALID = 0x70
CKR_OBJECT_HANDLE_INVALID = 0x82
CKR_OPERATION_ACTIVE = 0x90
CKR_PIN_INCORRECT = 0xA0
CKR_SESSION_COUNT = 0xB1
CKR_SESSION_HANDLE_INVALID = 0xB3
CKR_TEMPLATE_INCONSISTENT = 0xD1
CKR_TOKEN_NOT_PRESENT = 0xE0
CKR_USER_ALREADY_LOGGED_IN = 0x100
CKR_CURVE_NOT_SUPPORTED = 0x140
CKR_BUFFER_TOO_SMALL = 0x150
CKR_CRYPTOKI_NOT_INITIALIZED = 0x190
CKR_CRYPTOKI_ALREADY_INITIALIZED = 0x191
CKR_FUNCTION_REJECTED = 0x200

CKA_CLASS = 0x0
CKA_TOKEN = 0x1
CKA_PRIVATE = 0x2
CKA_LABEL = 0x3
CKA_VALUE = 0x11
CKA_KEY_TYPE = 0x100
CKA_SUBJECT = 0x101
CKA_ID = 0x102
CKA_SENSITIVE = 0x103
CKA_SIGN = 0x108
CKA_VERIFY = 0x10A
CKA_MODIFIABLE = 0x170
CKA_EC_PARAMS = 0x180
CKA_EC_POINT = 0x181

CKO_PUBLIC_KEY = 2
CKO_PRIVATE_KEY = 3

CKM_SHA256 = 0x250
CKM_EC_KEY_PAIR_GEN = 0x1040
CKM_EC_EDWARDS_KEY_PAIR_GEN = 0x1055
CKM_EDDSA = 0x1057
CKM_AES_KEY_WRAP_PAD = 0x210A

PIN = b"1234"
READ_ONLY = 0x4  # CKF_SERIAL_SESSION
READ_WRITE = READ_ONLY | 0x2

# (version, scope, name), in the order of CK_FUNCTION_LIST.
FUNCTIONS = re.findall(
    r"^FUNCTION\((V\d), (\w+), \w+, (C_\w+)",
    (CHAOS_SOURCE / "functions.def").read_text(),
    re.MULTILINE,
)


class Attribute(ctypes.Structure):
    _fields_ = [("type", ctypes.c_ulong), ("value", ctypes.c_void_p), ("length", ctypes.c_ulong)]


class Mechanism(ctypes.Structure):
    _fields_ = [("type", ctypes.c_ulong), ("parameter", ctypes.c_void_p), ("length", ctypes.c_ulong)]


class InitArgs(ctypes.Structure):
    _fields_ = [("mutexes", ctypes.c_void_p * 4), ("flags", ctypes.c_ulong), ("reserved", ctypes.c_char_p)]


class Interface(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("functions", ctypes.c_void_p), ("flags", ctypes.c_ulong)]


def template(attributes: dict[int, int | bytes]) -> tuple[Any, int, list[Any]]:
    values = [v if isinstance(v, bytes) else v.to_bytes(8, "little") for v in attributes.values()]
    kept = [ctypes.create_string_buffer(value, len(value)) for value in values]
    rows = [
        Attribute(kind, ctypes.cast(buffer, ctypes.c_void_p), len(buffer))
        for kind, buffer in zip(attributes, kept, strict=True)
    ]
    return (Attribute * len(rows))(*rows), len(rows), kept


class Module:
    """A module: called with a function's name and arguments, it returns the CKR."""

    def __init__(self, path: str | Path, list_address: int | None = None) -> None:
        self.library = ctypes.CDLL(str(path))
        if list_address is None:
            pointer = ctypes.c_void_p()
            assert self.library.C_GetFunctionList(ctypes.byref(pointer)) == CKR_OK
            list_address = pointer.value
        assert list_address is not None
        self.version = tuple((ctypes.c_ubyte * 2).from_address(list_address))
        names = [name for version, _, name in FUNCTIONS if version == "V2" or self.version[0] == 3]
        pointers = (ctypes.c_void_p * len(names)).from_address(list_address + 8)
        prototype = ctypes.CFUNCTYPE(ctypes.c_ulong)
        self.functions = {name: prototype(pointers[i] or 0) for i, name in enumerate(names)}

    def __call__(self, name: str, *arguments: Any) -> int:
        passed = [ctypes.c_ulong(a) if isinstance(a, int) else a for a in arguments]
        return int(self.functions[name](*passed))

    def initialize(self, flags: int = 2, reserved: bytes | None = None) -> int:
        return self("C_Initialize", ctypes.byref(InitArgs(flags=flags, reserved=reserved)))

    def slots(self, present: bool = True) -> list[int]:
        count = ctypes.c_ulong(64)
        found = (ctypes.c_ulong * 64)()
        assert self("C_GetSlotList", int(present), found, ctypes.byref(count)) == CKR_OK
        return list(found[: count.value])

    def open(self, slot: int) -> tuple[int, int]:
        handle = ctypes.c_ulong()
        rv = self("C_OpenSession", slot, READ_WRITE, None, None, ctypes.byref(handle))
        return rv, handle.value

    def session(self, slot: int) -> int:
        rv, handle = self.open(slot)
        assert rv == CKR_OK, hex(rv)
        return handle

    def login(self, session: int, pin: bytes = PIN) -> int:
        return self("C_Login", session, 1, pin, len(pin))

    def find(self, session: int, attributes: dict[int, int | bytes]) -> tuple[int, list[int]]:
        rows, count, _kept = template(attributes)
        rv = self("C_FindObjectsInit", session, rows, count)
        if rv != CKR_OK:
            return rv, []
        found = (ctypes.c_ulong * 32)()
        number = ctypes.c_ulong()
        rv = self("C_FindObjects", session, found, 32, ctypes.byref(number))
        self("C_FindObjectsFinal", session)
        return rv, list(found[: number.value]) if rv == CKR_OK else []

    def key(self, session: int, label: str, class_: int = CKO_PRIVATE_KEY) -> int:
        rv, found = self.find(session, {CKA_CLASS: class_, CKA_LABEL: label.encode()})
        assert (rv, len(found)) == (CKR_OK, 1)
        return found[0]

    def attribute(self, session: int, key: int, kind: int) -> tuple[int, bytes]:
        buffer = ctypes.create_string_buffer(256)
        row = Attribute(kind, ctypes.cast(buffer, ctypes.c_void_p), 256)
        rv = self("C_GetAttributeValue", session, key, ctypes.byref(row), 1)
        return rv, buffer.raw[: row.length] if rv == CKR_OK else b""

    def public_key(self, session: int, label: str) -> bytes:
        """The bytes of an Ed25519 public key."""
        rv, point = self.attribute(session, self.key(session, label, CKO_PUBLIC_KEY), CKA_EC_POINT)
        assert rv == CKR_OK
        return point[2:]

    def generate(
        self, session: int, mechanism: int, public: dict[int, int | bytes], private: dict[int, int | bytes]
    ) -> tuple[int, int, int]:
        """Generate a key pair. Returns the CKR and the handles of the public and the private key."""
        public_rows, public_count, _kept = template(public)
        private_rows, private_count, _kept_too = template(private)
        handles = ctypes.c_ulong(), ctypes.c_ulong()
        rv = self(
            "C_GenerateKeyPair", session, ctypes.byref(Mechanism(mechanism)), public_rows, public_count,
            private_rows, private_count, *map(ctypes.byref, handles),
        )  # fmt: skip
        return rv, handles[0].value, handles[1].value

    def sign_init(self, session: int, key: int, mechanism: int = CKM_EDDSA) -> int:
        return self("C_SignInit", session, ctypes.byref(Mechanism(mechanism)), key)

    def sign(self, session: int, message: bytes, room: int = 64) -> tuple[int, int, bytes]:
        """The CKR, the length that is reported, and the buffer with 64 guard bytes behind it."""
        buffer = ctypes.create_string_buffer(b"\xa5" * (room + 64), room + 64)
        length = ctypes.c_ulong(room)
        rv = self("C_Sign", session, message, len(message), buffer, ctypes.byref(length))
        return rv, length.value, buffer.raw

    def sign_once(self, session: int, key: int, message: bytes) -> tuple[int, bytes]:
        rv = self.sign_init(session, key)
        if rv != CKR_OK:
            return rv, b""
        rv, length, buffer = self.sign(session, message)
        return rv, buffer[:length] if rv == CKR_OK else b""
