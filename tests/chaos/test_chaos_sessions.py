"""Faults of what calls depend on: sessions, logins, the token, and the handles of objects."""

from __future__ import annotations

import ctypes
import threading
import time
from typing import Any

import pytest
from tests.support.pkcs11_client import (
    CKA_CLASS,
    CKA_LABEL,
    CKO_PRIVATE_KEY,
    CKR_DEVICE_REMOVED,
    CKR_OBJECT_HANDLE_INVALID,
    CKR_OK,
    CKR_SESSION_HANDLE_INVALID,
    CKR_TOKEN_NOT_PRESENT,
    CKR_USER_ALREADY_LOGGED_IN,
    Module,
)
from tests.support.scenarios import Bench, Control, ready
from tests.support.verifiers import is_good


def scenario_kill(module: Module) -> Any:
    """The 2nd C_SignInit of the first session is struck; three sessions are checked."""
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
    """All sessions die while threads are inside; no thread crashes, and all recover by opening again."""
    slot, main_session, _key = ready(module)
    public = module.public_key(main_session, "k1")
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
            elif not is_good("ed25519", public, message, signature):
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
    """Sign with one handle throughout, then find the key again."""
    _slot, session, key = ready(module)
    publics = {label: module.public_key(session, label) for label in ("k1", "k2")}

    def signer(handle: int) -> str | None:
        rv, signature = module.sign_once(session, handle, b"who")
        assert rv == CKR_OK
        return next((k for k, p in publics.items() if is_good("ed25519", p, b"who", signature)), None)

    signers = [signer(key) for _ in range(4)]
    label_of_old = module.attribute(session, key, CKA_LABEL)[1].decode()
    again = module.key(session, "k1")
    found = {"again_differs": again != key, "signer": signer(again), "other": signer(module.key(session, "k2"))}
    found["label"] = module.attribute(session, again, CKA_LABEL)[1].decode()
    module("C_Finalize", None)
    return {"signers": signers, "label_of_old": label_of_old, "found": found}


def test_kill_session(bench: Bench) -> None:
    result = bench.softhsm(scenario_kill, {"function": "C_SignInit", "nth": 2, "action": "kill-session"})
    assert result == {
        "before": CKR_OK, "struck": CKR_SESSION_HANDLE_INVALID, "after": [CKR_SESSION_HANDLE_INVALID, CKR_OK, CKR_OK],
        "closing": CKR_SESSION_HANDLE_INVALID, "reopen": CKR_OK, "login": CKR_USER_ALREADY_LOGGED_IN, "signed": CKR_OK,
    }  # fmt: skip


def test_kill_all_sessions(bench: Bench) -> None:
    result = bench.softhsm(scenario_kill, {"function": "C_SignInit", "nth": 2, "action": "kill-all-sessions"})
    assert result == {
        "before": CKR_OK, "struck": CKR_SESSION_HANDLE_INVALID, "after": [CKR_SESSION_HANDLE_INVALID] * 3,
        "closing": CKR_SESSION_HANDLE_INVALID, "reopen": CKR_OK, "login": CKR_OK, "signed": CKR_OK,
    }  # fmt: skip


@pytest.mark.parametrize("action", ["kill-session", "kill-all-sessions", "remove-token"])
def test_sessions_die_under_load_without_a_crash(bench: Bench, action: str) -> None:
    fault: dict[str, Any] = {"function": "C_Sign", "every": 97, "action": action}
    if action == "remove-token":
        fault |= {"milliseconds": 3, "every": 301}
    result = bench.softhsm(
        scenario_kill_under_load, fault, socket=str(bench.socket), arguments={"control": str(bench.socket)}
    )
    assert result["wrong"] == 0
    assert result["finalize"] == CKR_OK
    assert result["inside"] == 0
    assert result["signed"] > 200
    assert result["faults"][action] >= 2
    assert hex(CKR_SESSION_HANDLE_INVALID) in result["codes"] or hex(CKR_DEVICE_REMOVED) in result["codes"]


def test_logout(bench: Bench) -> None:
    result = bench.softhsm(scenario_logout, {"function": "C_SignInit", "nth": 1, "action": "logout"})
    # What SoftHSM itself says of a private key's handle after C_Logout.
    assert result == {"struck": CKR_OBJECT_HANDLE_INVALID, "login": CKR_OK, "signed": CKR_OK}


def test_remove_token(bench: Bench) -> None:
    result = bench.softhsm(
        scenario_remove, {"function": "C_SignInit", "nth": 1, "action": "remove-token", "milliseconds": 300}
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
    result = bench.softhsm(scenario_recycle, {**fault, "action": "recycle-handle"})
    assert result["signers"] == signers
    assert result["label_of_old"] == "k2"
    assert result["found"] == {"again_differs": True, "signer": "k1", "other": "k2", "label": "k1"}
