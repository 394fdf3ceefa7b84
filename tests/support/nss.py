"""NSS softoken: a database with a token and its keys, made in a child process."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.support.verifiers import is_good

PATHS = ("/usr/lib/x86_64-linux-gnu/libsoftokn3.so", "/usr/lib/aarch64-linux-gnu/libsoftokn3.so")
PATHS += ("/usr/lib64/libsoftokn3.so", "/usr/lib/libsoftokn3.so")
LABEL = "NSS Certificate DB"
KEYS = {"ed25519": "0a01", "ecdsa-p256": "0a02"}

# With ctypes, since python-pkcs11 has no way to hand NSS its parameters.
MAKE = """
import ctypes, json, sys
asked = json.load(sys.stdin)

class Arguments(ctypes.Structure):
    _fields_ = [("mutexes", ctypes.c_void_p * 4), ("flags", ctypes.c_ulong), ("reserved", ctypes.c_char_p)]

class Mechanism(ctypes.Structure):
    _fields_ = [("type", ctypes.c_ulong), ("parameter", ctypes.c_void_p), ("length", ctypes.c_ulong)]

class Attribute(ctypes.Structure):
    _fields_ = [("type", ctypes.c_ulong), ("value", ctypes.c_void_p), ("length", ctypes.c_ulong)]

kept = []

def template(**values):
    names = dict(token=0x1, private=0x2, label=0x3, verify=0x10A, sign=0x108, id=0x102, params=0x180, sensitive=0x103)
    rows = []
    for name, value in values.items():
        buffer = ctypes.create_string_buffer(value, len(value))
        kept.append(buffer)
        rows.append(Attribute(names[name], ctypes.cast(buffer, ctypes.c_void_p), len(value)))
    return (Attribute * len(rows))(*rows), ctypes.c_ulong(len(rows))

listed = ctypes.c_void_p()
ctypes.CDLL(asked["module"]).C_GetFunctionList(ctypes.byref(listed))
functions = (ctypes.c_void_p * 68).from_address(listed.value + 8)
# Places in CK_FUNCTION_LIST.
PLACES = dict(C_Initialize=0, C_Finalize=1, C_GetSlotList=4, C_OpenSession=12, C_Login=18, C_GetAttributeValue=24)
PLACES |= dict(C_GenerateKeyPair=59)

def call(name, *arguments):
    code = ctypes.CFUNCTYPE(ctypes.c_ulong)(functions[PLACES[name]])(*arguments)
    assert code == 0, f"{name}: {code:#x}"

call("C_Initialize", ctypes.byref(Arguments(flags=2, reserved=asked["args"].encode())))
slots, count, session = (ctypes.c_ulong * 8)(), ctypes.c_ulong(8), ctypes.c_ulong()
call("C_GetSlotList", ctypes.c_ubyte(1), slots, ctypes.byref(count))
call("C_OpenSession", ctypes.c_ulong(slots[1]), ctypes.c_ulong(6), None, None, ctypes.byref(session))
pin = asked["pin"].encode()
call("C_Login", session, ctypes.c_ulong(1), pin, ctypes.c_ulong(len(pin)))
made = {}
for name, (identity, mechanism, oid) in asked["keys"].items():
    common = {"token": b"\\1", "id": bytes.fromhex(identity), "label": name.encode()}
    public = template(**common, params=bytes.fromhex(oid), verify=b"\\1")
    private = template(**common, private=b"\\1", sensitive=b"\\1", sign=b"\\1")
    handles = ctypes.c_ulong(), ctypes.c_ulong()
    how = Mechanism(mechanism, None, 0)
    call("C_GenerateKeyPair", session, ctypes.byref(how), *public, *private, *map(ctypes.byref, handles))
    room = ctypes.create_string_buffer(256)
    point = Attribute(0x181, ctypes.cast(room, ctypes.c_void_p), 256)
    call("C_GetAttributeValue", session, handles[0], ctypes.byref(point), ctypes.c_ulong(1))
    made[name] = room.raw[: point.length].hex()
call("C_Finalize", None)
json.dump(made, sys.stdout)
"""
HOW = {"ed25519": (0x1055, "06032b6570"), "ecdsa-p256": (0x1040, "06082a8648ce3d030107")}


@dataclass(frozen=True)
class Nss:
    """A database with a token and its keys."""

    module: str
    args: str
    pin_file: Path
    points: dict[str, bytes]

    def settings(self, key: str) -> dict[str, Any]:
        """Of the provider, but for the module."""
        return {"tokenLabel": LABEL, "keyId": KEYS[key], "pin": {"file": str(self.pin_file)}, "quirks": "nss"}

    def config(self, key: str, **settings: Any) -> dict[str, Any]:
        """A key manager's configuration."""
        config = {"modulePath": self.module, "moduleArgs": self.args, "sessions": 2, **self.settings(key), **settings}
        return {"sequencer": {"keyManager": {"type": "pkcs11", "config": config, "maxCacheSize": 0}}}

    def is_good(self, key: str, message: bytes, signature: bytes) -> bool:
        """By the public key that the child saw."""
        return is_good(key, self.public_key(key), message, signature)

    def public_key(self, key: str) -> bytes:
        """As the child saw it: raw, or an OCTET STRING."""
        return self.points[key][-(32 if key == "ed25519" else 65) :]


def make_nss(folder: Path) -> Nss:
    """A new database in a folder; skips the test where NSS is not installed."""
    module = next((path for path in PATHS if Path(path).is_file()), None)
    if module is None:
        pytest.skip("NSS is not installed")
    pin_file = folder / "pin"
    pin_file.touch(mode=0o600)
    pin_file.write_text(secrets.token_hex(8))
    try:
        made = ["certutil", "-N", "-d", f"sql:{folder}", "-f", str(pin_file)]
        subprocess.run(made, check=True, capture_output=True, timeout=60)
    except FileNotFoundError:
        pytest.skip("certutil is not installed")
    args = f"configdir='sql:{folder}' certPrefix='' keyPrefix='' secmod='secmod.db' flags=noModDB"
    keys = {name: (KEYS[name], *HOW[name]) for name in KEYS}
    asked = {"module": module, "args": args, "pin": pin_file.read_text(), "keys": keys}
    done = subprocess.run(
        [sys.executable, "-c", MAKE], input=json.dumps(asked), capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return Nss(module, args, pin_file, {name: bytes.fromhex(point) for name, point in json.loads(done.stdout).items()})
