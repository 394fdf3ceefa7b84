"""The fault-injecting module left alone: results, interfaces and arguments are those of the wrapped module."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.support.nss import find_nss
from tests.support.paths import CHAOS, NOOP
from tests.support.pkcs11_client import (
    CKA_CLASS,
    CKA_ID,
    CKA_KEY_TYPE,
    CKA_LABEL,
    CKA_PRIVATE,
    CKA_TOKEN,
    CKA_VALUE,
    CKM_AES_KEY_WRAP_PAD,
    CKM_EDDSA,
    CKM_SHA256,
    CKO_PRIVATE_KEY,
    CKO_PUBLIC_KEY,
    CKR_CRYPTOKI_ALREADY_INITIALIZED,
    CKR_FUNCTION_FAILED,
    CKR_FUNCTION_NOT_SUPPORTED,
    CKR_OK,
    FUNCTIONS,
    PIN,
    READ_WRITE,
    Interface,
    Mechanism,
    Module,
    template,
)
from tests.support.scenarios import SOFTHSM, Bench, ready, scenario_initialize

NSS = find_nss() or Path("libsoftokn3.so")


def scenario_conformance(module: Module) -> Any:
    """Call every function, rightly and wrongly, and return the answers; handles get numbers of ours."""
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
    note("open-nowhere", module("C_OpenSession", 987654321, READ_WRITE, None, None, ctypes.byref(count)))
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
    for kind in (CKA_LABEL, CKA_ID, CKA_KEY_TYPE, CKA_CLASS, CKA_VALUE, 0x40000999):
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
    note("digest-init", module("C_DigestInit", sessions[1], ctypes.byref(Mechanism(CKM_SHA256))))
    length = ctypes.c_ulong(64)
    note(
        "digest",
        module("C_Digest", sessions[1], message, len(message), info, ctypes.byref(length)),
        info.raw[:32].hex(),
    )
    note("random", module("C_GenerateRandom", sessions[1], info, 32))
    note("seed", module("C_SeedRandom", sessions[1], message, len(message)))
    note("data-object", *make_data_object(module, sessions[1]))
    # Every session function, with arguments that must be refused.
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
    note("after", module("C_OpenSession", slot, READ_WRITE, None, None, ctypes.byref(count)))
    note("again", module.initialize())
    note("open", module.open(slot)[0])
    note("finalize", module("C_Finalize", None))
    return trace


def make_data_object(module: Module, session: int) -> tuple[int, str, list[int]]:
    rows, count, _kept = template(
        {CKA_CLASS: 0, CKA_LABEL: b"data", CKA_VALUE: b"value", CKA_TOKEN: b"\0", CKA_PRIVATE: b"\0"}
    )
    handle, size = ctypes.c_ulong(), ctypes.c_ulong()
    rv = module("C_CreateObject", session, rows, count, ctypes.byref(handle))
    value = module.attribute(session, handle.value, CKA_VALUE)[1].decode()
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


def scenario_large_count(module: Module) -> Any:
    """The answers to a template of one row that claims to have 2**32, where something else is wrong as well."""
    _slot, session, _key = ready(module)
    rows, _count, _kept = template({CKA_LABEL: b"one"})
    mechanism, handle = ctypes.byref(Mechanism(CKM_AES_KEY_WRAP_PAD)), ctypes.byref(ctypes.c_ulong())
    calls: dict[str, tuple[Any, ...]] = {
        "C_CopyObject": (0xBADBAD, rows, 1 << 32, handle),
        "C_GenerateKey": (ctypes.byref(Mechanism(0xDEAD)), rows, 1 << 32, handle),
        "C_GenerateKeyPair": (ctypes.byref(Mechanism(0xDEAD)), rows, 1 << 32, rows, 1 << 32, handle, handle),
        "C_UnwrapKey": (mechanism, 0xBADBAD, b"wrapped!" * 3, 24, rows, 1 << 32, handle),
        "C_DeriveKey": (mechanism, 0xBADBAD, rows, 1 << 32, handle),
    }
    return {name: hex(module(name, session, *arguments)) for name, arguments in calls.items()}


def scenario_only_interface(module: Module) -> Any:
    count, found = ctypes.c_ulong(), ctypes.c_void_p()
    assert module.library.C_GetInterfaceList(None, ctypes.byref(count)) == CKR_OK
    get, flags = module.library.C_GetInterface, ctypes.c_ulong(0)
    default = get(None, None, ctypes.byref(found), flags)
    return [count.value, default, get(b"PKCS 11", bytes([3, 0]), ctypes.byref(found), flags)]


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
    direct = bench.run(scenario_conformance, module=SOFTHSM).checked()
    wrapped = bench.run(scenario_conformance, bench.config(**fields)).checked()
    assert wrapped == direct
    assert len(direct) > 150


def test_the_count_of_a_template_is_the_wrapped_modules_to_judge(bench: Bench) -> None:
    direct = bench.run(scenario_large_count, module=SOFTHSM).checked()
    assert bench.run(scenario_large_count, bench.config()).checked() == direct
    assert hex(CKR_OK) not in direct.values()


@pytest.mark.parametrize("wrapped", [NOOP, NSS], ids=["noop", "nss"])
def test_interface_lists_are_those_of_the_wrapped_module(bench: Bench, wrapped: Path) -> None:
    if not wrapped.exists():
        pytest.skip(f"{wrapped} is not installed")
    result = bench.run(scenario_interfaces, bench.config(wrapped), wrapped=str(wrapped)).checked()
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
    assert bench.run(scenario_only_interface, bench.config()).checked() == [1, CKR_OK, CKR_FUNCTION_FAILED]


def test_nss_gets_its_own_arguments_through_p_reserved(bench: Bench) -> None:
    if not NSS.exists():
        pytest.skip("NSS is not installed")
    config = bench.config(NSS)
    nss = f"configdir='sql:{bench.folder}' certPrefix='' keyPrefix='' secmod='secmod.db' flags=noCertDB,noModDB"
    with_both = bench.run(scenario_initialize, reserved=f"config={config} args={nss}").checked()
    from_environment = bench.run(scenario_initialize, config, reserved=nss).checked()
    assert with_both["rv"] == from_environment["rv"] == CKR_OK


def test_softhsm_refuses_arguments_as_it_does_without(bench: Bench) -> None:
    direct = bench.run(scenario_initialize, module=SOFTHSM, reserved="something").checked()
    wrapped = bench.run(scenario_initialize, bench.config(), reserved="something").checked()
    assert direct == wrapped
    assert direct["rv"] != CKR_OK
    assert bench.run(scenario_initialize, reserved=f"config={bench.config()}").checked() == {
        "rv": CKR_OK,
        "again": CKR_CRYPTOKI_ALREADY_INITIALIZED,
    }
