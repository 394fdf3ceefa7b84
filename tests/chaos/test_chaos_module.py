"""libhsmcore_chaos.so, driven through its C ABI as any PKCS#11 client would.

A process can initialise a module only once at a time and the faults kill processes, so every scenario runs in a child
process: this file, called with the name of a `scenario_` function, prints what the scenario returns as JSON.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import signal
import socket
import stat
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(os.environ.get("HSMCORE_BUILD_DIR") or ROOT / "core" / "hsmcore" / "_bin")
CHAOS = BIN / "libhsmcore_chaos.so"
NOOP = BIN / "libhsmcore_noop.so"
SOFTHSM = Path("/usr/lib/softhsm/libsofthsm2.so")
NSS = Path("/usr/lib/x86_64-linux-gnu/libsoftokn3.so")
PROFILES = ROOT / "bench" / "native" / "chaos" / "profiles"
PIN = b"1234"

CKR_OK = 0x00
CKR_GENERAL_ERROR = 0x05
CKR_FUNCTION_FAILED = 0x06
CKR_NEED_TO_CREATE_THREADS = 0x09
CKR_DEVICE_ERROR = 0x30
CKR_DEVICE_REMOVED = 0x32
CKR_FUNCTION_NOT_SUPPORTED = 0x54
CKR_OBJECT_HANDLE_INVALID = 0x82
CKR_OPERATION_ACTIVE = 0x90
CKR_OPERATION_NOT_INITIALIZED = 0x91
CKR_SESSION_HANDLE_INVALID = 0xB3
CKR_TOKEN_NOT_PRESENT = 0xE0
CKR_USER_ALREADY_LOGGED_IN = 0x100
CKR_USER_NOT_LOGGED_IN = 0x101
CKR_CRYPTOKI_NOT_INITIALIZED = 0x190
CKR_CRYPTOKI_ALREADY_INITIALIZED = 0x191

CKA_CLASS, CKA_LABEL, CKA_ID, CKA_KEY_TYPE, CKA_EC_POINT = 0x0, 0x3, 0x102, 0x100, 0x181
CKO_PUBLIC_KEY, CKO_PRIVATE_KEY = 2, 3
CKM_EDDSA = 0x1057
SESSION_FLAGS = 0x4 | 0x2

FUNCTIONS = re.findall(
    r"^FUNCTION\((V\d), (\w+), \w+, (C_\w+)", (ROOT / "bench/native/chaos/functions.def").read_text(), re.MULTILINE
)


# ---- a PKCS#11 client of ctypes --------------------------------------------------------------------------------------


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
    """Calls a module's functions by name; every call returns the CKR."""

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
        count = ctypes.c_ulong(16)
        found = (ctypes.c_ulong * 16)()
        assert self("C_GetSlotList", int(present), found, ctypes.byref(count)) == CKR_OK
        return list(found[: count.value])

    def open(self, slot: int) -> tuple[int, int]:
        handle = ctypes.c_ulong()
        rv = self("C_OpenSession", slot, SESSION_FLAGS, None, None, ctypes.byref(handle))
        return rv, handle.value

    def session(self, slot: int) -> int:
        rv, handle = self.open(slot)
        assert rv == CKR_OK, hex(rv)
        return handle

    def login(self, session: int) -> int:
        return self("C_Login", session, 1, PIN, len(PIN))

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


def ready(module: Module, slot: int | None = None) -> tuple[int, int, int]:
    """A module that is initialised, with a session that is logged in: slot, session, key."""
    assert module.initialize() == CKR_OK
    slot = module.slots()[0] if slot is None else slot
    session = module.session(slot)
    assert module.login(session) == CKR_OK
    label = "noop-key" if "C_SignInit" in os.environ.get("CHAOS_TEST_NOOP", "") else "k1"
    return slot, session, module.key(session, label)


def public_key(module: Module, session: int, label: str) -> bytes:
    rv, point = module.attribute(session, module.key(session, label, CKO_PUBLIC_KEY), CKA_EC_POINT)
    assert rv == CKR_OK
    return point[2:]


def verifies(public: bytes, message: bytes, signature: bytes) -> bool:
    sodium = ctypes.CDLL("libsodium.so.23")
    return bool(sodium.crypto_sign_verify_detached(signature, message, ctypes.c_ulonglong(len(message)), public) == 0)


class Control:
    def __init__(self, path: str | Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(10)
        self.socket.connect(str(path))
        self.file = self.socket.makefile("rb")

    def line(self, line: bytes) -> dict[str, Any]:
        self.socket.sendall(line + b"\n")
        answer: dict[str, Any] = json.loads(self.file.readline())
        return answer

    def __call__(self, cmd: str, **fields: Any) -> dict[str, Any]:
        return self.line(json.dumps({"cmd": cmd, **fields}).encode())

    def closed(self) -> bool:
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:  # it was still waiting to be accepted
            return True

    def close(self) -> None:
        self.file.close()
        self.socket.close()


def thread_count() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


# A sanitizer starts a thread of its own beside the first one.
_first = threading.Thread()
_first.start()
_first.join()
time.sleep(0.01)
THREADS_AT_START = thread_count()


def threads() -> int:
    """Threads beyond those that the process began with."""
    return thread_count() - THREADS_AT_START


def threads_left() -> int:
    """What is left of them; one that was joined is listed for a moment longer."""
    eventually(lambda: threads() <= 0, 2)
    return threads()


def eventually(condition: Callable[[], bool], seconds: float = 5) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True


# ---- scenarios: run in a child process -------------------------------------------------------------------------------


def scenario_initialize(module: Module, flags: int = 2, reserved: str | None = None) -> Any:
    rv = module.initialize(flags, reserved.encode() if reserved is not None else None)
    again = module.initialize(flags) if rv == CKR_OK else None
    if rv == CKR_OK:
        module("C_Finalize", None)
    return {"rv": rv, "again": again}


def scenario_conformance(module: Module) -> Any:
    """One call of everything, right and wrong, with what came back; handles get numbers of ours."""
    trace: list[Any] = []
    names: dict[int, str] = {}

    def name(handle: int) -> str:
        return names.setdefault(handle, f"h{len(names)}")

    def note(what: str, rv: int, *rest: Any) -> None:
        trace.append([what, hex(rv), *rest])

    note("version", 0, list(module.version))
    info = ctypes.create_string_buffer(512)
    note("before", module("C_GetInfo", info))
    note("bad-args", module.initialize(0, b"x" if module.version == (9, 9) else None))
    note("twice", module.initialize())
    note("info", module("C_GetInfo", info), info.raw[:80].hex())
    note("info-null", module("C_GetInfo", None))
    count = ctypes.c_ulong()
    note("slots-null", module("C_GetSlotList", 1, None, None))
    note("slots-count", module("C_GetSlotList", 0, None, ctypes.byref(count)), count.value)
    short = ctypes.c_ulong(0)
    note("slots-short", module("C_GetSlotList", 0, ctypes.create_string_buffer(8), ctypes.byref(short)), short.value)
    slot = module.slots()[0]
    for function in ("C_GetSlotInfo", "C_GetTokenInfo"):
        note(function, module(function, slot, info), info.raw[:64].hex())
        note(function, module(function, 987654321, info))
    note("mechanisms-count", module("C_GetMechanismList", slot, None, ctypes.byref(count)), count.value)
    mechanisms = (ctypes.c_ulong * count.value)()
    note("mechanisms", module("C_GetMechanismList", slot, mechanisms, ctypes.byref(count)), list(mechanisms))
    for mechanism in [*mechanisms, 0xDEAD]:
        rv = module("C_GetMechanismInfo", slot, mechanism, info)
        note("mechanism", rv, info.raw[:24].hex() if rv == 0 else "")
    note("open-parallel", module("C_OpenSession", slot, 0, None, None, ctypes.byref(count)))
    note("open-nowhere", module("C_OpenSession", 987654321, SESSION_FLAGS, None, None, ctypes.byref(count)))
    sessions = [module.session(slot) for _ in range(3)]
    trace.append([name(s) for s in sessions])
    note("session-info", module("C_GetSessionInfo", sessions[0], info), info.raw[8:32].hex())
    note("session-info-bad", module("C_GetSessionInfo", 0xBADBAD, info))
    note("pin-bad", module("C_Login", sessions[0], 1, b"9999", 4))
    note("logout-early", module("C_Logout", sessions[0]))
    note("login", module.login(sessions[0]))
    note("login-again", module.login(sessions[1]))
    rv, found = module.find(sessions[1], {CKA_CLASS: CKO_PRIVATE_KEY})
    labels = sorted((module.attribute(sessions[1], k, CKA_LABEL)[1].decode(), k) for k in found)
    note("find", rv, [label for label, _ in labels])
    key = module.key(sessions[0], "k1")
    note("find-none", *module.find(sessions[0], {CKA_LABEL: b"nothing"}))
    note("find-idle", module("C_FindObjects", sessions[0], info, 1, ctypes.byref(count)))
    for kind in (CKA_LABEL, CKA_ID, CKA_KEY_TYPE, CKA_CLASS, 0x11, 0x40000999):
        rv, value = module.attribute(sessions[0], key, kind)
        note("attribute", rv, value.hex())
    message = b"conformance"
    note("sign-idle", module.sign(sessions[0], message)[0])
    note("sign-init-bad-key", module.sign_init(sessions[0], 0xBADBAD))
    note("sign-init-bad-mechanism", module.sign_init(sessions[0], key, 0xDEAD))
    note("sign-init-null", module("C_SignInit", sessions[0], None, key))
    note("sign-init", module.sign_init(sessions[0], key))
    note("sign-init-twice", module.sign_init(sessions[0], key))
    length = ctypes.c_ulong()
    note("sign-size", module("C_Sign", sessions[0], message, len(message), None, ctypes.byref(length)), length.value)
    rv, reported, buffer = module.sign(sessions[0], message, room=10)
    note("sign-small", rv, reported)
    rv, reported, buffer = module.sign(sessions[0], message)
    note("sign", rv, reported, buffer[:64].hex())
    note("verify-init", module("C_VerifyInit", sessions[0], ctypes.byref(Mechanism(CKM_EDDSA)), key))
    public = module.key(sessions[0], "k1", CKO_PUBLIC_KEY)
    note("verify-init", module("C_VerifyInit", sessions[0], ctypes.byref(Mechanism(CKM_EDDSA)), public))
    note("verify", module("C_Verify", sessions[0], message, len(message), buffer[:64], 64))
    note("verify-init", module("C_VerifyInit", sessions[0], ctypes.byref(Mechanism(CKM_EDDSA)), public))
    note("verify-wrong", module("C_Verify", sessions[0], message, len(message), bytes(64), 64))
    note("digest-init", module("C_DigestInit", sessions[1], ctypes.byref(Mechanism(0x250))))
    length = ctypes.c_ulong(64)
    note(
        "digest",
        module("C_Digest", sessions[1], message, len(message), info, ctypes.byref(length)),
        info.raw[:32].hex(),
    )
    note("random", module("C_GenerateRandom", sessions[1], info, 32))
    note("seed", module("C_SeedRandom", sessions[1], message, len(message)))
    note("data-object", *make_data_object(module, sessions[1]))
    # Whatever is not meant for this session, with arguments that must be refused.
    for _version, scope, function in [row for row in FUNCTIONS if row[2] in module.functions]:
        if scope == "SESSION":
            note(function, module(function, 0xBADBAD, *[None] * 9))
    note("close", module("C_CloseSession", sessions[0]))
    note("close-again", module("C_CloseSession", sessions[0]))
    note("use-closed", module.sign_init(sessions[0], key))
    note("logout", module("C_Logout", sessions[1]))
    note("use-logged-out", module.sign_init(sessions[1], key))
    note("close-all", module("C_CloseAllSessions", slot))
    note("close-all-nowhere", module("C_CloseAllSessions", 987654321))
    note("use-closed", module.sign_init(sessions[1], key))
    note("finalize-bad", module("C_Finalize", b"x"))
    note("finalize", module("C_Finalize", None))
    note("finalize-again", module("C_Finalize", None))
    note("after", module("C_OpenSession", slot, SESSION_FLAGS, None, None, ctypes.byref(count)))
    note("again", module.initialize())
    note("open", module.open(slot)[0])
    note("finalize", module("C_Finalize", None))
    return trace


def make_data_object(module: Module, session: int) -> tuple[int, str, list[int]]:
    rows, count, _kept = template({CKA_CLASS: 0, CKA_LABEL: b"data", 0x11: b"value", 0x1: b"\0", 0x2: b"\0"})
    handle, size = ctypes.c_ulong(), ctypes.c_ulong()
    rv = module("C_CreateObject", session, rows, count, ctypes.byref(handle))
    value = module.attribute(session, handle.value, 0x11)[1].decode()
    more = [module("C_GetObjectSize", session, handle.value, ctypes.byref(size))]
    rows, count, _kept = template({CKA_LABEL: b"data2"})
    more.append(module("C_SetAttributeValue", session, handle.value, rows, count))
    more.append(module("C_DestroyObject", session, handle.value))
    more.append(module("C_DestroyObject", session, handle.value))
    return rv, value, more


def scenario_interfaces(module: Module, wrapped: str) -> Any:
    """The interface lists of the wrapper and of what it wraps, in one process, so that pointers can be compared."""

    def listed(library: ctypes.CDLL) -> list[Interface]:
        count = ctypes.c_ulong()
        assert library.C_GetInterfaceList(None, ctypes.byref(count)) == CKR_OK
        rows = (Interface * count.value)()
        assert library.C_GetInterfaceList(rows, ctypes.byref(count)) == CKR_OK
        return list(rows)

    def shape(row: Interface) -> list[Any]:
        return [row.name.decode(), list((ctypes.c_ubyte * 2).from_address(row.functions)), row.flags]

    def asked(library: ctypes.CDLL) -> list[Any]:
        answers: list[Any] = []
        for name in (None, b"PKCS 11", b"Vendor NSS Module Interface", b"nonsense"):
            for version in (None, (2, 40), (3, 0), (3, 9)):
                found = ctypes.POINTER(Interface)()
                wanted = ctypes.byref((ctypes.c_ubyte * 2)(*version)) if version else None
                rv = library.C_GetInterface(name, wanted, ctypes.byref(found), ctypes.c_ulong(0))
                answers.append([rv, shape(found.contents) if rv == CKR_OK else None])
        return answers

    other = ctypes.CDLL(wrapped)
    ours, theirs = listed(module.library), listed(other)
    v3 = [row.functions for row in ours if row.name == b"PKCS 11" and shape(row)[1][0] == 3]
    used = None
    if v3 and "noop" in wrapped:
        through = Module(CHAOS, v3[0])
        _slot, session, key = ready(through)
        used = [through.sign_once(session, key, b"x")[0], through("C_SessionCancel", session, 0)]
        through("C_Finalize", None)
    return {
        "ours": [shape(row) for row in ours],
        "theirs": [shape(row) for row in theirs],
        "same": [a.functions == b.functions for a, b in zip(ours, theirs, strict=True) if a.name != b"PKCS 11"],
        "different": [a.functions != b.functions for a, b in zip(ours, theirs, strict=True) if a.name == b"PKCS 11"],
        "asked": [asked(module.library), asked(other)],
        "used": used,
    }


def scenario_only_interface(module: Module) -> Any:
    count, found = ctypes.c_ulong(), ctypes.c_void_p()
    assert module.library.C_GetInterfaceList(None, ctypes.byref(count)) == CKR_OK
    get, flags = module.library.C_GetInterface, ctypes.c_ulong(0)
    default = get(None, None, ctypes.byref(found), flags)
    return [count.value, default, get(b"PKCS 11", bytes([3, 0]), ctypes.byref(found), flags)]


def scenario_sign(module: Module, count: int = 4, message: str = "message") -> Any:
    """Signs `count` times, each time from C_SignInit on, and says how each went."""
    _slot, session, key = ready(module)
    publics = {label: public_key(module, session, label) for label in ("k1", "k2")}
    results = []
    for i in range(count):
        text = f"{message} {i}".encode()
        init = module.sign_init(session, key)
        rv, length, buffer = module.sign(session, text) if init == CKR_OK else (None, 0, b"")
        signer = next((k for k, p in publics.items() if verifies(p, text, buffer[:64])), None) if rv == 0 else None
        guard = buffer[64:] == b"\xa5" * 64 if buffer else None
        results.append({"init": init, "rv": rv, "length": length, "signer": signer, "guard": guard})
    module("C_Finalize", None)
    return results


def scenario_kill(module: Module) -> Any:
    """The 2nd C_SignInit of the first session is struck; three sessions look on."""
    slot, first, key = ready(module)
    others = [module.session(slot) for _ in range(2)]
    before = module.sign_init(first, key)
    module.sign(first, b"x")
    struck = module.sign_init(first, key)
    after = [module("C_GetSessionInfo", s, ctypes.create_string_buffer(64)) for s in (first, *others)]
    closing = module("C_CloseSession", first)
    rv, fresh = module.open(slot)
    login = module.login(fresh)
    signed = module.sign_once(fresh, module.key(fresh, "k1"), b"x")[0]
    module("C_Finalize", None)
    return {
        "before": before, "struck": struck, "after": after, "closing": closing,
        "reopen": rv, "login": login, "signed": signed,
    }  # fmt: skip


def scenario_kill_under_load(module: Module, control: str) -> Any:
    """All sessions die while threads are inside; nobody crashes, and all recover by opening again."""
    slot, main_session, _key = ready(module)
    public = public_key(module, main_session, "k1")
    stop = time.monotonic() + 1.0
    outcomes: list[int] = []
    wrong: list[bytes] = []

    def work(number: int) -> None:
        session = key = None
        count = 0
        while time.monotonic() < stop:
            if session is None:
                rv, handle = module.open(slot)
                if rv != CKR_OK:
                    outcomes.append(rv)
                    continue
                module.login(handle)
                rv, found = module.find(handle, {CKA_CLASS: CKO_PRIVATE_KEY, CKA_LABEL: b"k1"})
                if rv != CKR_OK or not found:
                    outcomes.append(rv)
                    module("C_CloseSession", handle)
                    continue
                session, key = handle, found[0]
            count += 1
            message = b"%d %d" % (number, count)
            assert key is not None
            rv, signature = module.sign_once(session, key, message)
            outcomes.append(rv)
            if rv != CKR_OK:
                module("C_CloseSession", session)
                session = None
            elif not verifies(public, message, signature):
                wrong.append(signature)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    stats = Control(control)("stats")
    rv = module("C_Finalize", None)
    return {
        "signed": outcomes.count(CKR_OK), "codes": sorted({hex(o) for o in outcomes}), "wrong": len(wrong),
        "faults": stats["faults"], "inside": stats["inside"], "finalize": rv,
    }  # fmt: skip


def scenario_remove(module: Module) -> Any:
    slot, session, key = ready(module)
    other = module.session(slot)
    info = ctypes.create_string_buffer(512)
    struck = module.sign_init(session, key)
    started = time.monotonic()
    gone = {
        "session": module("C_GetSessionInfo", other, info),
        "open": module.open(slot)[0],
        "token": module("C_GetTokenInfo", slot, info),
        "slot_info": module("C_GetSlotInfo", slot, info),
        "slot_present": bool(int.from_bytes(info.raw[96:104], "little") & 1),
        "with_token": slot in module.slots(True),
        "listed": slot in module.slots(False),
    }
    while (rv := module.open(slot))[0] == CKR_TOKEN_NOT_PRESENT:
        time.sleep(0.005)
    away = time.monotonic() - started
    fresh = rv[1]
    back = {
        "open": rv[0],
        "old_session": module("C_GetSessionInfo", other, info),
        "find_logged_out": module.find(fresh, {CKA_CLASS: CKO_PRIVATE_KEY})[1],
        "login": module.login(fresh),
        "sign": module.sign_once(fresh, module.key(fresh, "k1"), b"x")[0],
        "with_token": slot in module.slots(True),
    }
    module("C_Finalize", None)
    return {"struck": struck, "gone": gone, "away": away, "back": back}


def scenario_logout(module: Module) -> Any:
    _slot, session, key = ready(module)
    rvs = [module.sign_init(session, key)]
    login = module.login(session)
    signed = module.sign_once(session, module.key(session, "k1"), b"x")[0]
    module("C_Finalize", None)
    return {"struck": rvs[0], "login": login, "signed": signed}


def scenario_recycle(module: Module) -> Any:
    """Signs with one handle throughout, then finds the key again."""
    _slot, session, key = ready(module)
    publics = {label: public_key(module, session, label) for label in ("k1", "k2")}

    def signer(handle: int) -> str | None:
        rv, signature = module.sign_once(session, handle, b"who")
        assert rv == CKR_OK
        return next((k for k, p in publics.items() if verifies(p, b"who", signature)), None)

    signers = [signer(key) for _ in range(4)]
    label_of_old = module.attribute(session, key, CKA_LABEL)[1].decode()
    again = module.key(session, "k1")
    found = {"again_differs": again != key, "signer": signer(again), "other": signer(module.key(session, "k2"))}
    found["label"] = module.attribute(session, again, CKA_LABEL)[1].decode()
    module("C_Finalize", None)
    return {"signers": signers, "label_of_old": label_of_old, "found": found}


def scenario_hang(module: Module, control: str | None = None, finalize: bool = False) -> Any:
    """The first C_Sign of one thread hangs; another session goes on. It ends by time, by release or by C_Finalize."""
    slot, session, key = ready(module)
    other = module.session(slot)
    outcome: dict[str, Any] = {}

    def hang() -> None:
        started = time.monotonic()
        outcome["rv"] = module.sign_once(session, key, b"x")[0]
        outcome["seconds"] = time.monotonic() - started

    worker = threading.Thread(target=hang)
    worker.start()
    time.sleep(0.1)
    started = time.monotonic()
    result: dict[str, Any] = {"other": module.sign_once(other, key, b"y")[0]}
    result["other_seconds"] = time.monotonic() - started
    if control is not None:
        connection = Control(control)
        result["hung"] = connection("stats")["hung"]
        result["released"] = connection("release")["released"]
        connection.close()
    if finalize:
        result["alive"] = worker.is_alive()
        result["finalize"] = module("C_Finalize", None)
    worker.join(5)
    result["ended"] = not worker.is_alive()
    if not finalize:
        module("C_Finalize", None)
    result["threads"] = threads_left()
    return result | outcome


def scenario_crash(module: Module) -> Any:
    _slot, session, key = ready(module)
    module.sign_once(session, key, b"x")
    return "survived"


def scenario_latency(module: Module, count: int, sizes: list[int] | None = None) -> Any:
    """Milliseconds of each C_Sign."""
    _slot, session, key = ready(module)
    times = []
    for i in range(count):
        message = bytes(sizes[i % len(sizes)]) if sizes else b"message"
        started = time.perf_counter()
        assert module.sign(session, message)[0] == CKR_OK
        times.append((time.perf_counter() - started) * 1e3)
    started = time.perf_counter()
    for _ in range(100):
        module.sign_init(session, key)
    others = (time.perf_counter() - started) * 1e3 / 100
    length = ctypes.c_ulong()
    started = time.perf_counter()
    module("C_Sign", session, b"x", 1, None, ctypes.byref(length))
    query = (time.perf_counter() - started) * 1e3
    module("C_Finalize", None)
    return {"times": times, "others": others, "query": query}


def scenario_capacity(module: Module, control: str, workers: int, each: int) -> Any:
    slot, main_session, _key = ready(module)
    sessions = [module.session(slot) for _ in range(workers)]
    rvs: list[int] = []

    def work(session: int) -> None:
        rvs.extend(module.sign(session, b"message")[0] for _ in range(each))

    pool = [threading.Thread(target=work, args=(s,)) for s in sessions]
    started = time.monotonic()
    for thread in pool:
        thread.start()
    for thread in pool:
        thread.join()
    seconds = time.monotonic() - started
    stats = Control(control)("stats")
    module("C_CloseSession", main_session)
    module("C_Finalize", None)
    return {"seconds": seconds, "rvs": rvs, "slot": stats["slots"][0], "sessions": stats["sessions"]}


def scenario_schedule(module: Module, count: int) -> Any:
    """The CKRs of `count` signatures with whatever schedule the configuration has."""
    _slot, session, key = ready(module)
    rvs = []
    for _ in range(count):
        rvs.append(module.sign_init(session, key))
        rvs.append(module.sign(session, b"message")[0])
    module("C_Finalize", None)
    return rvs


def scenario_control(module: Module, control: str) -> Any:
    _slot, session, key = ready(module)
    before = threads()
    mode = stat.S_IMODE(Path(control).stat().st_mode)
    talk = Control(control)
    result: dict[str, Any] = {"mode": mode}
    fault = {"function": "C_Sign", "nth": 2, "action": "return", "ckr": "CKR_DEVICE_ERROR"}
    result["fault"] = talk("fault", **fault)
    result["struck"] = [module.sign_once(session, key, b"x")[0] for _ in range(3)]
    result["every"] = talk("fault", function="C_SignInit", every=1, action="return", ckr=0x80000001)
    result["vendor"] = module.sign_init(session, key)
    result["clear"] = talk("clear")
    result["cleared"] = module.sign_once(session, key, b"x")[0]
    result["latency"] = talk("latency", function="C_SignInit", kind="constant", microseconds=30000)
    started = time.monotonic()
    module.sign_init(session, key)
    result["slow"] = time.monotonic() - started
    module.sign(session, b"x")
    result["profile"] = talk("profile", name="network-5ms")
    started = time.monotonic()
    result["profiled"] = [module.sign_once(session, key, b"x")[0]]
    result["profiled_seconds"] = time.monotonic() - started
    result["no_profile"] = talk("profile", name="nothing")
    result["off"] = talk("latency", function="C_Sign", kind="none")
    result["capacity"] = talk("capacity", servers=1, queue=0)
    result["bad"] = [
        talk.line(line)
        for line in (
            b"{", b"[]", b'{"cmd": 1}', b'{"cmd": "nothing"}', b'{"cmd": "stats", "more": 1}', b"{}",
            b'{"cmd": "fault", "function": "C_Sign", "nth": 1, "action": "return", "ckr": "CKR_NO_SUCH"}',
            b'{"cmd": "fault", "function": "C_Nothing", "nth": 1, "action": "hang", "milliseconds": 1}',
            b'{"cmd": "latency", "function": "C_Sign", "kind": "constant"}',
            b'{"cmd": "capacity", "servers": 0}', b'{"cmd": "stats", "cmd": "stats"}',
        )
    ]  # fmt: skip
    talk.socket.sendall(b'{"cmd": "stats"}\n{"cmd": "stats"}\n')
    result["two"] = [json.loads(talk.file.readline())["ok"] for _ in range(2)]
    result["stats"] = talk("stats")
    long = Control(control)
    result["long"] = [long.line(b"x" * 200_000), long("stats")["ok"]]
    silent = [Control(control) for _ in range(3)]
    result["finalize"] = module("C_Finalize", None)
    result["file_left"] = Path(control).exists()
    result["threads"] = [before, threads_left()]
    result["closed"] = [c.closed() for c in silent]
    return result


def scenario_fork(module: Module, control: str) -> Any:
    _slot, session, key = ready(module)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        rvs = [module.sign_once(session, key, b"x")[0] for _ in range(3)]
        again = module.initialize()
        finalized = module("C_Finalize", None)
        os.write(
            writing, json.dumps({"rvs": rvs, "again": again, "finalize": finalized, "threads": threads()}).encode()
        )
        os._exit(0)
    os.waitpid(child, 0)
    answer = json.loads(os.read(reading, 4096))
    here = [module.sign_once(session, key, b"x")[0] for _ in range(2)]
    stats = Control(control)("stats")
    module("C_Finalize", None)
    return {"child": answer, "here": here, "calls": stats["calls"]["C_Sign"]}


def scenario_repeat(module: Module, control: str, count: int) -> Any:
    """C_Initialize to C_Finalize again and again: nothing is left over."""
    left = []
    for _ in range(count):
        slot, session, key = ready(module)
        assert module.sign_once(session, key, b"x")[0] == CKR_OK
        assert Control(control)("stats")["calls"]["C_Sign"] == 1
        for _ in range(5):
            module.session(slot)
        module("C_Finalize", None)
        left.append([threads_left(), len(list(Path("/proc/self/fd").iterdir())), Path(control).exists()])
    return left


def scenario_busy_socket(module: Module, control: str) -> Any:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(control)
    listener.listen()
    busy = module.initialize()
    listener.close()  # leaves the file behind, as a process that dies does
    stale = module.initialize()
    module("C_Finalize", None)
    Path(control).write_text("")
    file = module.initialize()
    return {"busy": busy, "stale": stale, "file": file}


def scenario_noop(module: Module) -> Any:
    assert module.initialize() == CKR_OK
    session = module.session(module.slots()[0])
    hidden = module.find(session, {CKA_CLASS: CKO_PRIVATE_KEY})[1]
    module.login(session)
    key = module.key(session, "noop-key")
    public = public_key(module, session, "noop-key")
    proof = module.sign_once(session, key, b"hsmcore proof")[1]
    constant = [module.sign_once(session, key, m)[1] for m in (b"other", b"hsmcore" + bytes(58))]
    small = module.sign(session, b"m", room=63)[:2]
    unsupported = module("C_GenerateRandom", session, None, 0)
    many = [module.open(0)[0] for _ in range(3000)]
    rv = module("C_Finalize", None)
    return {
        "hidden": hidden, "proof": verifies(public, b"hsmcore proof", proof), "constant": len(set(constant)),
        "false": verifies(public, b"other", constant[0]), "small": small, "unsupported": unsupported,
        "opened": set(many) == {0}, "finalize": rv,
    }  # fmt: skip


# ---- running scenarios -----------------------------------------------------------------------------------------------


class Run:
    def __init__(self, process: subprocess.CompletedProcess[str]) -> None:
        self.code, self.stderr = process.returncode, process.stderr
        self.result = json.loads(process.stdout) if process.returncode == 0 and process.stdout else None

    def checked(self) -> Any:
        assert self.code == 0, self.stderr
        return self.result


class Bench:
    """A folder with a token, and the means to run scenarios on it."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder, self.environment = folder, environment
        self.socket, self.log = folder / "c.sock", folder / "chaos.log"

    def config(self, module: Any = SOFTHSM, **fields: Any) -> Path:
        path = self.folder / "chaos.json"
        path.write_text(json.dumps({"module": str(module) if isinstance(module, Path) else module, **fields}))
        return path

    def run(self, scenario: str, config: Path | None = None, module: Path = CHAOS, **arguments: Any) -> Run:
        environment = dict(self.environment)
        if config is not None:
            environment["HSMCORE_CHAOS_CONFIG"] = str(config)
            if "noop" in str(json.loads(config.read_text()).get("module")):
                environment["CHAOS_TEST_NOOP"] = "C_SignInit"
        command = [sys.executable, __file__, scenario, str(module), json.dumps(arguments)]
        return Run(subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False))

    def softhsm(
        self, scenario: str, *faults: dict[str, Any], arguments: dict[str, Any] | None = None, **fields: Any
    ) -> Any:
        return self.run(scenario, self.config(faults=list(faults), **fields), **(arguments or {})).checked()

    def noop(self, scenario: str, arguments: dict[str, Any], **fields: Any) -> Any:
        return self.run(scenario, self.config(NOOP, **fields), **arguments).checked()


@pytest.fixture(scope="session")
def token(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a SoftHSM token with two Ed25519 keys, k1 and k2."""
    for file in (CHAOS, NOOP, SOFTHSM):
        assert file.exists(), f"{file} is missing"
    folder = tmp_path_factory.mktemp("token")
    (folder / "tokens").mkdir()
    (folder / "softhsm2.conf").write_text(f"directories.tokendir = {folder}/tokens\nlog.level = ERROR\n")
    environment = {**os.environ, "SOFTHSM2_CONF": str(folder / "softhsm2.conf")}
    for name in ("HSMCORE_CHAOS_CONFIG", "CHAOS_TEST_NOOP"):
        environment.pop(name, None)

    def tool(*command: str) -> None:
        subprocess.run(command, env=environment, check=True, capture_output=True)

    pin = PIN.decode()
    tool("softhsm2-util", "--init-token", "--free", "--label", "chaos", "--pin", pin, "--so-pin", pin)
    for number, label in enumerate(("k1", "k2"), 1):
        tool(
            "pkcs11-tool", "--module", str(SOFTHSM), "--login", "--pin", pin, "--keypairgen",
            "--key-type", "EC:edwards25519", "--label", label, "--id", f"0{number}",
        )  # fmt: skip
    return environment


@pytest.fixture
def bench(token: dict[str, str], tmp_path: Path) -> Bench:
    return Bench(tmp_path, token)


# ---- transparency ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [["--test"], ["-O"], ["-M"], ["-L"], ["-I"]], ids=lambda o: o[0])
def test_pkcs11_tool_says_the_same_with_and_without(bench: Bench, options: list[str]) -> None:
    outputs = []
    for module, extra in ((SOFTHSM, {}), (CHAOS, {"HSMCORE_CHAOS_CONFIG": str(bench.config())})):
        command = ["pkcs11-tool", "--module", str(module), "--login", "--pin", PIN.decode(), *options]
        done = subprocess.run(
            command, env=bench.environment | extra, capture_output=True, text=True, timeout=60, check=False
        )
        outputs.append((done.returncode, done.stdout, done.stderr))
    assert outputs[0] == outputs[1]
    assert outputs[0][1], "or there was nothing to compare"


@pytest.mark.parametrize("fields", [{}, {"socket": True, "log": True, "seed": 4}], ids=["bare", "with-control"])
def test_a_conformance_run_gives_the_same_results(bench: Bench, fields: dict[str, Any]) -> None:
    fields = {k: {"socket": str(bench.socket), "log": str(bench.log)}.get(k, v) for k, v in fields.items()}
    direct = bench.run("conformance", module=SOFTHSM).checked()
    wrapped = bench.run("conformance", bench.config(**fields)).checked()
    assert wrapped == direct
    assert len(direct) > 150


@pytest.mark.parametrize("wrapped", [NOOP, NSS], ids=["noop", "nss"])
def test_interface_lists_are_those_of_the_wrapped_module(bench: Bench, wrapped: Path) -> None:
    if not wrapped.exists():
        pytest.skip(f"{wrapped} is not installed")
    result = bench.run("interfaces", bench.config(wrapped), wrapped=str(wrapped)).checked()
    assert result["ours"] == result["theirs"]
    assert all(result["same"])
    assert all(result["different"])
    assert result["different"]
    assert result["asked"][0] == result["asked"][1]
    if wrapped == NOOP:
        assert result["used"] == [CKR_OK, CKR_FUNCTION_NOT_SUPPORTED]
    else:
        assert result["same"], "NSS has interfaces of its own, which must be passed through"


def test_a_module_without_interfaces_gets_one(bench: Bench) -> None:
    assert bench.run("only_interface", bench.config()).checked() == [1, CKR_OK, CKR_FUNCTION_FAILED]


def test_nss_gets_its_own_arguments_through_p_reserved(bench: Bench) -> None:
    if not NSS.exists():
        pytest.skip("NSS is not installed")
    config = bench.config(NSS)
    nss = f"configdir='sql:{bench.folder}' certPrefix='' keyPrefix='' secmod='secmod.db' flags=noCertDB,noModDB"
    with_both = bench.run("initialize", reserved=f"config={config} args={nss}").checked()
    from_environment = bench.run("initialize", config, reserved=nss).checked()
    assert with_both["rv"] == from_environment["rv"] == CKR_OK


def test_softhsm_refuses_arguments_as_it_does_without(bench: Bench) -> None:
    direct = bench.run("initialize", module=SOFTHSM, reserved="something").checked()
    wrapped = bench.run("initialize", bench.config(), reserved="something").checked()
    assert direct == wrapped
    assert direct["rv"] != CKR_OK
    assert bench.run("initialize", reserved=f"config={bench.config()}").checked() == {
        "rv": CKR_OK,
        "again": CKR_CRYPTOKI_ALREADY_INITIALIZED,
    }


# ---- faults ----------------------------------------------------------------------------------------------------------


def test_return_strikes_the_nth_call_only(bench: Bench) -> None:
    fault = {"function": "C_Sign", "nth": 2, "action": "return", "ckr": "CKR_DEVICE_ERROR"}
    results = bench.softhsm("sign", fault)
    # C_Sign ends the operation whatever it returns, so the next C_SignInit finds none active.
    assert [(r["init"], r["rv"]) for r in results] == [
        (CKR_OK, CKR_DEVICE_ERROR if i == 1 else CKR_OK) for i in range(4)
    ]


def test_buffer_too_small_keeps_the_operation(bench: Bench) -> None:
    fault = {"function": "C_Sign", "nth": 2, "action": "return", "ckr": "CKR_BUFFER_TOO_SMALL"}
    results = bench.softhsm("sign", fault)
    assert [r["init"] for r in results] == [CKR_OK, CKR_OK, CKR_OPERATION_ACTIVE, CKR_OPERATION_ACTIVE]


@pytest.mark.parametrize(
    ("when", "struck"),
    [
        ({"every": 3}, [2, 5, 8]),
        ({"every": 3, "count": 2}, [2, 5]),
        ({"nth": 4}, [3]),
        ({"probability": 1}, list(range(9))),
        ({"probability": 1, "count": 1}, [0]),
        ({"probability": 0}, []),
        ({"nth": 1, "slot": 0}, [0]),
        ({"nth": 1, "slot": 7}, []),
    ],
)
def test_when_a_fault_strikes(bench: Bench, when: dict[str, Any], struck: list[int]) -> None:
    fault = {"function": "C_SignInit", "action": "return", "ckr": 0x80001234, **when}
    rvs = bench.noop("schedule", {"count": 9}, faults=[fault])[0::2]
    assert [i for i, rv in enumerate(rvs) if rv == 0x80001234] == struck


def test_the_first_of_two_faults_has_the_call_and_both_count_it(bench: Bench) -> None:
    faults = [
        {"function": "C_SignInit", "every": 2, "action": "return", "ckr": 1},
        {"function": "C_SignInit", "every": 3, "action": "return", "ckr": 2},
    ]
    assert bench.noop("schedule", {"count": 9}, faults=faults)[0::2] == [0, 1, 2, 1, 0, 1, 0, 1, 2]


def test_kill_session(bench: Bench) -> None:
    result = bench.softhsm("kill", {"function": "C_SignInit", "nth": 2, "action": "kill-session"})
    assert result == {
        "before": CKR_OK, "struck": CKR_SESSION_HANDLE_INVALID, "after": [CKR_SESSION_HANDLE_INVALID, CKR_OK, CKR_OK],
        "closing": CKR_SESSION_HANDLE_INVALID, "reopen": CKR_OK, "login": CKR_USER_ALREADY_LOGGED_IN, "signed": CKR_OK,
    }  # fmt: skip


def test_kill_all_sessions(bench: Bench) -> None:
    result = bench.softhsm("kill", {"function": "C_SignInit", "nth": 2, "action": "kill-all-sessions"})
    assert result == {
        "before": CKR_OK, "struck": CKR_SESSION_HANDLE_INVALID, "after": [CKR_SESSION_HANDLE_INVALID] * 3,
        "closing": CKR_SESSION_HANDLE_INVALID, "reopen": CKR_OK, "login": CKR_OK, "signed": CKR_OK,
    }  # fmt: skip


@pytest.mark.parametrize("action", ["kill-session", "kill-all-sessions", "remove-token"])
def test_sessions_die_under_load_without_a_crash(bench: Bench, action: str) -> None:
    fault: dict[str, Any] = {"function": "C_Sign", "every": 97, "action": action}
    if action == "remove-token":
        fault |= {"milliseconds": 3, "every": 301}
    result = bench.softhsm("kill_under_load", fault, socket=str(bench.socket), arguments={"control": str(bench.socket)})
    assert result["wrong"] == 0
    assert result["finalize"] == CKR_OK
    assert result["inside"] == 0
    assert result["signed"] > 200
    assert result["faults"][action] >= 2
    assert hex(CKR_SESSION_HANDLE_INVALID) in result["codes"] or hex(CKR_DEVICE_REMOVED) in result["codes"]


def test_logout(bench: Bench) -> None:
    result = bench.softhsm("logout", {"function": "C_SignInit", "nth": 1, "action": "logout"})
    # What SoftHSM itself says of a private key's handle after C_Logout.
    assert result == {"struck": CKR_OBJECT_HANDLE_INVALID, "login": CKR_OK, "signed": CKR_OK}


def test_remove_token(bench: Bench) -> None:
    result = bench.softhsm(
        "remove", {"function": "C_SignInit", "nth": 1, "action": "remove-token", "milliseconds": 300}
    )
    assert result["struck"] == CKR_DEVICE_REMOVED
    assert result["gone"] == {
        "session": CKR_DEVICE_REMOVED, "open": CKR_TOKEN_NOT_PRESENT, "token": CKR_TOKEN_NOT_PRESENT,
        "slot_info": CKR_OK, "slot_present": False, "with_token": False, "listed": True,
    }  # fmt: skip
    assert 0.2 < result["away"] < 2
    assert result["back"] == {
        "open": CKR_OK, "old_session": CKR_SESSION_HANDLE_INVALID, "find_logged_out": [], "login": CKR_OK,
        "sign": CKR_OK, "with_token": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("action", "signer", "length"),
    [
        ("wrong-signature", None, 64),
        ("other-key-signature", "k2", 64),
        ("long-signature", "k1", 80),
        ("short-signature", "k1", 32),
    ],
)
def test_signature_faults(bench: Bench, action: str, signer: str | None, length: int) -> None:
    results = bench.softhsm("sign", {"function": "C_Sign", "nth": 2, "action": action})
    assert [(r["rv"], r["signer"], r["length"]) for r in results] == [
        (CKR_OK, "k1", 64), (CKR_OK, signer, length), (CKR_OK, "k1", 64), (CKR_OK, "k1", 64),
    ]  # fmt: skip
    assert all(r["guard"] for r in results), "nothing may be written beyond the caller's buffer"


@pytest.mark.parametrize(
    ("fault", "signers"),
    [
        ({"function": "C_SignInit", "nth": 2}, ["k1", "k2", "k2", "k2"]),
        ({"function": "C_Sign", "nth": 2}, ["k1", "k1", "k2", "k2"]),
        # ready() finds once; the public keys are found by the 2nd and 3rd call
        ({"function": "C_FindObjects", "nth": 1}, ["k2", "k2", "k2", "k2"]),
    ],
    ids=lambda f: f["function"] if isinstance(f, dict) else "",
)
def test_recycle_handle(bench: Bench, fault: dict[str, Any], signers: list[str]) -> None:
    result = bench.softhsm("recycle", {**fault, "action": "recycle-handle"})
    assert result["signers"] == signers
    assert result["label_of_old"] == "k2"
    assert result["found"] == {"again_differs": True, "signer": "k1", "other": "k2", "label": "k1"}


def test_a_hang_ends_in_time_and_holds_nobody_else_up(bench: Bench) -> None:
    result = bench.softhsm("hang", {"function": "C_Sign", "nth": 1, "action": "hang", "milliseconds": 500})
    assert result["rv"] == CKR_OK
    assert 0.5 <= result["seconds"] < 1.5
    assert result["other"] == CKR_OK
    assert result["other_seconds"] < 0.35


def test_a_hang_for_ever_is_released_by_command(bench: Bench) -> None:
    fault = {"function": "C_Sign", "nth": 1, "action": "hang", "forever": True}
    result = bench.softhsm("hang", fault, socket=str(bench.socket), arguments={"control": str(bench.socket)})
    assert (result["hung"], result["released"], result["ended"], result["rv"]) == (1, 1, True, CKR_OK)


def test_a_hang_for_ever_is_released_by_finalize(bench: Bench) -> None:
    fault = {"function": "C_Sign", "nth": 1, "action": "hang", "forever": True}
    result = bench.softhsm("hang", fault, socket=str(bench.socket), arguments={"finalize": True})
    assert result["alive"]
    assert result["ended"]
    assert result["finalize"] == CKR_OK
    assert result["rv"] == CKR_CRYPTOKI_NOT_INITIALIZED
    assert result["threads"] == 0


def test_crash_and_exit(bench: Bench) -> None:
    crash = {"function": "C_Sign", "nth": 1, "action": "crash"}
    assert bench.run("crash", bench.config(faults=[crash])).code == -signal.SIGSEGV
    for code, fields in ((86, {}), (3, {"code": 3})):
        leave = {"function": "C_Sign", "nth": 1, "action": "exit", **fields}
        assert bench.run("crash", bench.config(faults=[leave])).code == code


def test_faults_are_logged(bench: Bench) -> None:
    bench.softhsm("sign", {"function": "C_Sign", "nth": 2, "action": "wrong-signature"}, log=str(bench.log))
    text = bench.log.read_text()
    assert re.search(r"C_Sign call 2 slot \d+: wrong-signature", text)
    assert "finalized" in text
    assert stat.S_IMODE(bench.log.stat().st_mode) == 0o600


# ---- random schedules ------------------------------------------------------------------------------------------------


def random_schedule(seed: int, probability: float = 0.1) -> dict[str, Any]:
    actions = [
        {"action": "return", "ckr": "CKR_DEVICE_ERROR"},
        {"action": "return", "ckr": "CKR_FUNCTION_FAILED"},
        "kill-session",
        "wrong-signature",
    ]
    functions = ["C_SignInit", "C_Sign"]
    return {"seed": seed, "probability": probability, "functions": functions, "actions": actions}


def test_a_seed_gives_the_same_faults_each_time(bench: Bench) -> None:
    only_returns = random_schedule(7) | {"actions": random_schedule(7)["actions"][:2]}
    runs = [bench.noop("schedule", {"count": 1000}, random=only_returns) for _ in range(2)]
    other = bench.noop("schedule", {"count": 1000}, random=only_returns | {"seed": 8})
    assert runs[0] == runs[1] != other
    struck = [rv for rv in runs[0] if rv != CKR_OK]
    assert 140 <= len(struck) <= 260, "2,000 calls at 10 %"
    assert set(struck) == {CKR_DEVICE_ERROR, CKR_FUNCTION_FAILED}
    assert 0.3 < struck.count(CKR_DEVICE_ERROR) / len(struck) < 0.7


def test_probability_is_seeded_too(bench: Bench) -> None:
    fault = {"function": "C_Sign", "probability": 0.2, "action": "return", "ckr": "CKR_DEVICE_ERROR"}
    first, second = (bench.noop("schedule", {"count": 500}, faults=[fault], seed=3) for _ in range(2))
    third = bench.noop("schedule", {"count": 500}, faults=[fault], seed=4)
    assert first == second != third
    assert 70 <= first.count(CKR_DEVICE_ERROR) <= 130


def test_actions_are_drawn_from_those_that_fit_the_function(bench: Bench) -> None:
    rvs = bench.noop("schedule", {"count": 300}, random=random_schedule(1, 1.0) | {"actions": ["kill-session"]})
    assert set(rvs) == {CKR_SESSION_HANDLE_INVALID}
    rvs = bench.noop("schedule", {"count": 50}, random=random_schedule(1, 1.0) | {"actions": ["wrong-signature"]})
    assert set(rvs) == {CKR_OK}


# ---- latency and capacity --------------------------------------------------------------------------------------------


def test_constant_latency_is_kept_and_costs_others_nothing(bench: Bench) -> None:
    latency = {"C_Sign": {"kind": "constant", "microseconds": 5000}}
    result = bench.noop("latency", {"count": 40}, latency=latency)
    assert min(result["times"]) >= 5.0
    assert statistics.median(result["times"]) < 7.0
    assert result["others"] < 1
    assert result["query"] < 4


@pytest.mark.parametrize(
    ("latency", "low", "high", "mean"),
    [
        ({"kind": "uniform", "minMicroseconds": 1000, "maxMicroseconds": 3000}, 1.0, 3.0, 2.0),
        (
            {"kind": "exponential", "offsetMicroseconds": 1000, "meanMicroseconds": 1000, "capMicroseconds": 5000},
            1,
            5,
            1.98,
        ),
        ({"kind": "lognormal", "meanMicroseconds": 2000, "sigma": 0.25}, 0.8, 5.0, 2.0),
        ({"kind": "lognormal", "medianMicroseconds": 2000, "sigma": 0.5}, 0.3, 12.0, 2.27),
    ],
    ids=lambda v: v["kind"] if isinstance(v, dict) else "",
)
def test_distributions(bench: Bench, latency: dict[str, Any], low: float, high: float, mean: float) -> None:
    times = bench.noop("latency", {"count": 300}, latency={"C_Sign": latency})["times"]
    assert min(times) >= low
    # A sleeping thread wakes a little late: 0.06 ms when idle, more when others want the processor.
    assert statistics.quantiles(times, n=20)[-1] < high + 2.0
    assert mean * 0.85 < statistics.mean(times) < mean * 1.15 + 1.0


def test_latency_per_byte(bench: Bench) -> None:
    latency = {"kind": "constant", "microseconds": 1000, "perByteMicroseconds": 100, "freeBytes": 64}
    times = bench.noop("latency", {"count": 30, "sizes": [10, 64, 114]}, latency={"C_Sign": latency})["times"]
    assert statistics.median(times[0::3]) < 3
    assert statistics.median(times[1::3]) < 3
    assert 6 <= statistics.median(times[2::3]) < 8


def test_capacity_bounds_what_is_served_at_once(bench: Bench) -> None:
    latency = {"C_Sign": {"kind": "constant", "microseconds": 20000}}
    arguments = {"control": str(bench.socket), "workers": 8, "each": 6}
    result = bench.noop("capacity", arguments, latency=latency, capacity={"servers": 3}, socket=str(bench.socket))
    assert result["slot"]["servingMax"] == 3
    assert result["slot"]["waitingMax"] == 5
    assert result["slot"]["serving"] == result["slot"]["waiting"] == result["slot"]["refused"] == 0
    assert set(result["rvs"]) == {CKR_OK}
    assert result["sessions"] == 9
    # 48 requests, 3 at a time, 20 ms each: 320 ms whatever the host's threads do.
    assert 0.319 <= result["seconds"] < 0.6


def test_a_full_queue_overflows(bench: Bench) -> None:
    latency = {"C_Sign": {"kind": "constant", "microseconds": 50000}}
    capacity = {"servers": 2, "queue": 1, "overflow": "CKR_DEVICE_MEMORY"}
    arguments = {"control": str(bench.socket), "workers": 8, "each": 1}
    result = bench.noop("capacity", arguments, latency=latency, capacity=capacity, socket=str(bench.socket))
    assert sorted(result["rvs"]) == [CKR_OK] * 3 + [0x31] * 5
    assert result["slot"]["refused"] == 5
    assert result["slot"]["waitingMax"] == 1


def test_profiles_do_what_their_names_say(bench: Bench) -> None:
    expected = {"cloudhsm-hsm2m-x2": 3000, "cloudhsm-hsm2m-x3": 4500, "cloudhsm-hsm2m-x6": 7000, "network-5ms": 25600}
    assert {p.stem for p in PROFILES.glob("*.json")} == {*expected, "yubihsm2", "cloudhsm"}
    for name, rate in expected.items():
        profile = json.loads((PROFILES / f"{name}.json").read_text())
        latency = profile["latency"]["C_Sign"]
        mean = latency.get("meanMicroseconds") or latency["microseconds"]
        assert abs(profile["capacity"]["servers"] / mean * 1e6 / rate - 1) < 0.01
    result = bench.noop("latency", {"count": 6}, profile="yubihsm2", profileDir=str(PROFILES))
    assert min(result["times"]) >= 105
    assert statistics.median(result["times"]) < 150


def test_a_profile_sets_the_rate_of_the_device(bench: Bench) -> None:
    arguments = {"control": str(bench.socket), "workers": 16, "each": 40}
    fields = {"profile": "cloudhsm-hsm2m-x2", "profileDir": str(PROFILES), "socket": str(bench.socket)}
    result = bench.noop("capacity", arguments, **fields)
    assert result["slot"]["servingMax"] == 12
    assert set(result["rvs"]) == {CKR_OK}
    assert 0.6 < 640 / result["seconds"] / 3000 < 1.1


def test_profiles_lie_next_to_the_module(bench: Bench) -> None:
    shutil.copy(CHAOS, bench.folder)
    shutil.copytree(PROFILES, bench.folder / "profiles")
    config = bench.config(NOOP, profile="network-5ms")
    assert bench.run("initialize", config, module=bench.folder / CHAOS.name).checked()["rv"] == CKR_OK
    own = bench.config(NOOP, profile="network-5ms", latency={"C_Sign": {"kind": "none"}})
    result = bench.run("latency", own, module=bench.folder / CHAOS.name, count=20).checked()
    assert statistics.median(result["times"]) < 3, "the file's own fields come after the profile's"


# ---- the control socket, forks, leftovers ----------------------------------------------------------------------------


def test_control_socket(bench: Bench) -> None:
    fields = {"socket": str(bench.socket), "profileDir": str(PROFILES)}
    result = bench.softhsm("control", arguments={"control": str(bench.socket)}, **fields)
    assert result["mode"] == 0o600
    assert result["fault"] == result["clear"] == result["latency"] == result["profile"] == {"ok": True}
    assert result["struck"][:2] == [CKR_OK, CKR_DEVICE_ERROR]
    assert result["vendor"] == 0x80000001
    assert result["every"] == {"ok": True}
    assert 0.03 <= result["slow"] < 0.3
    assert 0.005 <= result["profiled_seconds"] < 0.25
    assert "no profile" in result["no_profile"]["error"]
    assert "yubihsm2" in result["no_profile"]["error"]
    assert [b["ok"] for b in result["bad"]] == [False] * len(result["bad"])
    errors = [b["error"] for b in result["bad"]]
    for part, error in zip(
        [
            "column",
            "$: ",
            "$.cmd",
            "$.cmd",
            "$.more",
            "$.cmd",
            "$.ckr",
            "$.function",
            "$.microseconds",
            "$.servers",
            "column",
        ],
        errors,
        strict=True,
    ):
        assert error.startswith(part), errors
    assert result["two"] == [True, True]
    stats = result["stats"]
    assert stats["faults"] == {"return": 2}
    assert stats["hung"] == 0
    assert stats["sessions"] == 1
    assert stats["calls"]["C_OpenSession"] == 1
    assert stats["calls"]["C_Sign"] >= 4
    assert "too long" in result["long"][0]["error"]
    assert result["long"][1]
    assert result["finalize"] == CKR_OK
    assert not result["file_left"]
    assert result["closed"] == [True] * 3
    assert result["threads"] == [1, 0]


def test_the_child_of_a_fork_goes_straight_to_the_wrapped_module(bench: Bench) -> None:
    fault = {"function": "C_Sign", "nth": 2, "action": "return", "ckr": "CKR_DEVICE_ERROR"}
    result = bench.softhsm("fork", fault, socket=str(bench.socket), arguments={"control": str(bench.socket)})
    assert result["child"]["rvs"] == [CKR_OK] * 3, "SoftHSM's sessions work in a child, and no fault strikes there"
    assert result["child"]["again"] == CKR_CRYPTOKI_ALREADY_INITIALIZED
    assert result["child"]["finalize"] == CKR_OK
    assert result["child"]["threads"] <= 0
    assert result["here"] == [CKR_OK, CKR_DEVICE_ERROR]
    assert result["calls"] == 2


def test_nothing_is_left_over(bench: Bench) -> None:
    left = bench.softhsm("repeat", socket=str(bench.socket), log=str(bench.log), arguments={
        "control": str(bench.socket), "count": 10,
    })  # fmt: skip
    assert left[-1] == left[1]
    assert left[-1][0] == 0
    assert not left[-1][2]


def test_a_socket_in_use_is_refused_and_a_stale_one_replaced(bench: Bench) -> None:
    run = bench.run("busy_socket", bench.config(socket=str(bench.socket)), control=str(bench.socket))
    assert run.checked() == {"busy": CKR_GENERAL_ERROR, "stale": CKR_OK, "file": CKR_GENERAL_ERROR}
    assert "in use by another process" in run.stderr
    assert "is no socket" in run.stderr


def test_the_process_id_in_a_name(bench: Bench) -> None:
    log = str(bench.folder / "log.%p")
    assert bench.run("initialize", bench.config(log=log, socket=str(bench.folder / "s.%p"))).checked()["rv"] == CKR_OK
    assert len(list(bench.folder.glob("log.*"))) == 1
    assert not list(bench.folder.glob("*%p*"))


def test_a_client_that_forbids_threads_gets_no_socket(bench: Bench) -> None:
    run = bench.run("initialize", bench.config(socket=str(bench.socket)), flags=1 | 2)
    assert run.checked()["rv"] == CKR_NEED_TO_CREATE_THREADS
    assert "$.socket" in run.stderr


# ---- bad input -------------------------------------------------------------------------------------------------------

GOOD_FAULT = {"function": "C_Sign", "nth": 1, "action": "return", "ckr": "CKR_DEVICE_ERROR"}


def faulty(**changes: Any) -> dict[str, Any]:
    return {"faults": [GOOD_FAULT, {k: v for k, v in {**GOOD_FAULT, **changes}.items() if v is not None}]}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"modul": "x"}, "$.modul: unknown field"),
        ({"module": None}, "$.module: must be a string, not null"),
        ({"module": 3}, "$.module: must be a string, not an integer"),
        ({"module": ""}, "$.module: is empty"),
        ({"module": "/no/such.so"}, "$.module: can't load /no/such.so"),
        ({"module": "libsodium.so.23"}, "is no PKCS #11 module"),
        ({"module": str(CHAOS)}, "is this module itself"),
        ({"seed": -1}, "$.seed: must be 0 to"),
        ({"seed": "1"}, "$.seed: must be an integer, not a string"),
        ({"profile": "nothing"}, '$.profile: no profile "nothing"'),
        ({"profile": "../x"}, "is not a profile's name"),
        ({"socket": "/" + "x" * 200}, "$.socket: is longer than 107 bytes"),
        ({"socket": "/no/such/folder/s"}, "$.socket: can't bind"),
        ({"log": "/no/such/folder/l"}, "$.log: can't open"),
        ({"log": 1}, "$.log: must be a string"),
        ({"faults": {}}, "$.faults: must be an array"),
        ({"faults": [1]}, "$.faults[0]: must be an object"),
        (faulty(function="C_Nothing"), '$.faults[1].function: unknown function "C_Nothing"'),
        (faulty(function=None), "$.faults[1].function: is missing"),
        (faulty(function="C_Initialize"), "$.faults[1].function: C_Initialize can't be struck"),
        (faulty(action="explode"), '$.faults[1].action: unknown action "explode"'),
        (faulty(ckr="CKR_NOTHING"), '$.faults[1].ckr: unknown CKR "CKR_NOTHING"'),
        (faulty(ckr=-1), "$.faults[1].ckr: must be 0 to"),
        (faulty(ckr=None), "$.faults[1].ckr: is missing"),
        (faulty(often=2), "$.faults[1].often: unknown field"),
        (faulty(milliseconds=2), "$.faults[1].milliseconds: unknown field"),
        (faulty(nth=0), "$.faults[1].nth: must be 1 to"),
        (faulty(nth=1.5), "$.faults[1].nth: must be an integer, not a number"),
        (faulty(nth=None), '$.faults[1]: needs one of "nth", "every" and "probability"'),
        (faulty(every=2), '$.faults[1]: needs one of "nth"'),
        (faulty(count=2), '$.faults[1].count: has no meaning with "nth"'),
        (faulty(nth=None, probability=1.5), "$.faults[1].probability: must be 0 to 1"),
        (faulty(slot="0"), "$.faults[1].slot: must be an integer"),
        (faulty(function="C_GetInfo", slot=0), "$.faults[1].slot: C_GetInfo has no slot"),
        (faulty(action="hang", ckr=None), '$.faults[1]: hang needs either "milliseconds" or "forever"'),
        (faulty(action="hang", ckr=None, milliseconds=1, forever=True), "$.faults[1]: hang needs either"),
        (faulty(action="hang", ckr=None, milliseconds="1"), "$.faults[1].milliseconds: must be a number"),
        (faulty(action="hang", ckr=None, forever=False), "$.faults[1].forever: must be true"),
        (faulty(action="exit", ckr=None, code=256), "$.faults[1].code: must be 0 to 255"),
        (faulty(action="wrong-signature", ckr=None, function="C_Login"), "wrong-signature can't strike C_Login"),
        (faulty(action="kill-session", ckr=None, function="C_GetTokenInfo"), "kill-session can't strike"),
        ({"latency": []}, "$.latency: must be an object of functions"),
        ({"latency": {"C_Nothing": {}}}, '$.latency.C_Nothing: unknown function "C_Nothing"'),
        ({"latency": {"C_Sign": 5}}, "$.latency.C_Sign: must be an object"),
        ({"latency": {"C_Sign": {"kind": "gamma"}}}, '$.latency.C_Sign.kind: unknown kind "gamma"'),
        ({"latency": {"C_Sign": {"kind": "constant"}}}, "$.latency.C_Sign.microseconds: is missing"),
        ({"latency": {"C_Sign": {"kind": "constant", "microseconds": -1}}}, "$.latency.C_Sign.microseconds: must be"),
        ({"latency": {"C_Sign": {"kind": "none", "microseconds": 1}}}, "$.latency.C_Sign.microseconds: unknown field"),
        ({"latency": {"C_Sign": {"kind": "uniform", "minMicroseconds": 2, "maxMicroseconds": 1}}}, "maxMicrose"),
        ({"latency": {"C_Sign": {"kind": "lognormal", "sigma": 1}}}, "needs one of"),
        (
            {"latency": {"C_Login": {"kind": "constant", "microseconds": 1, "perByteMicroseconds": 1}}},
            "$.latency.C_Login.perByteMicroseconds: only C_Sign",
        ),
        ({"capacity": {}}, "$.capacity.servers: is missing"),
        ({"capacity": {"servers": 0}}, "$.capacity.servers: must be 1 to"),
        ({"capacity": {"servers": 1, "overflow": "X"}}, '$.capacity.overflow: unknown CKR "X"'),
        ({"capacity": {"servers": 1, "functions": ["C_X"]}}, '$.capacity.functions[0]: unknown function "C_X"'),
        ({"random": {"probability": 1}}, "$.random.functions: is missing"),
        ({"random": random_schedule(1) | {"functions": []}}, "$.random.functions: must be a non-empty array"),
        ({"random": random_schedule(1) | {"actions": ["hang"]}}, "$.random.actions[0]: hang needs either"),
        ({"random": random_schedule(1) | {"actions": ["x"]}}, '$.random.actions[0].action: unknown action "x"'),
        ({"random": random_schedule(1) | {"functions": ["C_Login"], "actions": ["crash", "long-signature"]}},
         "$.random.actions[1]: long-signature can't strike any"),
        ({"random": random_schedule(1) | {"seed": 1.5}}, "$.random.seed: must be an integer"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)  # fmt: skip
def test_bad_configuration_is_refused_with_its_place(bench: Bench, fields: dict[str, Any], reason: str) -> None:
    config = bench.config(**{"log": str(bench.log), "profileDir": str(PROFILES), **fields})
    run = bench.run("initialize", config)
    assert run.checked() == {"rv": CKR_GENERAL_ERROR, "again": None}
    assert reason in run.stderr
    assert str(config) in run.stderr
    if "log" not in fields:
        assert reason in bench.log.read_text()


def test_no_configuration_at_all(bench: Bench) -> None:
    run = bench.run("initialize")
    assert run.checked()["rv"] == CKR_GENERAL_ERROR
    assert "HSMCORE_CHAOS_CONFIG" in run.stderr
    run = bench.run("initialize", reserved="config=/no/such/file.json")
    assert run.checked()["rv"] == CKR_GENERAL_ERROR
    assert "/no/such/file.json" in run.stderr


@pytest.mark.parametrize("text", ["", "{", '{"module": "a", "module": "b"}', "[]", "\x00", '{"module": "\\ud800"}'])
def test_files_that_are_no_configuration(bench: Bench, text: str) -> None:
    path = bench.folder / "bad.json"
    path.write_text(text)
    run = bench.run("initialize", reserved=f"config={path}")
    assert run.checked()["rv"] == CKR_GENERAL_ERROR
    assert str(path) in run.stderr


# ---- the no-op module ------------------------------------------------------------------------------------------------


def test_noop_module(bench: Bench) -> None:
    result = bench.run("noop", module=NOOP).checked()
    assert result == {
        "hidden": [], "proof": True, "constant": 1, "false": False, "small": [0x150, 64],
        "unsupported": CKR_FUNCTION_NOT_SUPPORTED, "opened": True, "finalize": CKR_OK,
    }  # fmt: skip


if __name__ == "__main__":
    sys.stdout.write(json.dumps(globals()[f"scenario_{sys.argv[1]}"](Module(sys.argv[2]), **json.loads(sys.argv[3]))))
