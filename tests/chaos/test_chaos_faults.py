"""Faults of single calls: which call a fault strikes, and what each action does to it."""

from __future__ import annotations

import re
import signal
import stat
import threading
import time
from typing import Any

import pytest
from tests.support.pkcs11_client import (
    CKR_CRYPTOKI_NOT_INITIALIZED,
    CKR_DEVICE_ERROR,
    CKR_OK,
    CKR_OPERATION_ACTIVE,
    Module,
)
from tests.support.scenarios import Bench, Control, ready, scenario_schedule, threads_left
from tests.support.verifiers import is_good


def scenario_sign(module: Module, count: int = 4, message: str = "message") -> Any:
    """Sign `count` times, each time from C_SignInit on. Return the outcome of each."""
    _slot, session, key = ready(module)
    publics = {label: module.public_key(session, label) for label in ("k1", "k2")}
    results = []
    for i in range(count):
        text = f"{message} {i}".encode()
        init = module.sign_init(session, key)
        rv, length, buffer = module.sign(session, text) if init == CKR_OK else (None, 0, b"")
        signer = (
            next((k for k, p in publics.items() if is_good("ed25519", p, text, buffer[:64])), None) if rv == 0 else None
        )
        guard = buffer[64:] == b"\xa5" * 64 if buffer else None
        results.append({"init": init, "rv": rv, "length": length, "signer": signer, "guard": guard})
    module("C_Finalize", None)
    return results


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


def test_return_strikes_the_nth_call_only(bench: Bench) -> None:
    fault = {"function": "C_Sign", "nth": 2, "action": "return", "ckr": "CKR_DEVICE_ERROR"}
    results = bench.softhsm(scenario_sign, fault)
    # C_Sign ends the operation whatever it returns, so the next C_SignInit finds none active.
    assert [(r["init"], r["rv"]) for r in results] == [
        (CKR_OK, CKR_DEVICE_ERROR if i == 1 else CKR_OK) for i in range(4)
    ]


def test_buffer_too_small_keeps_the_operation(bench: Bench) -> None:
    fault = {"function": "C_Sign", "nth": 2, "action": "return", "ckr": "CKR_BUFFER_TOO_SMALL"}
    results = bench.softhsm(scenario_sign, fault)
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
    rvs = bench.noop(scenario_schedule, {"count": 9}, faults=[fault])[0::2]
    assert [i for i, rv in enumerate(rvs) if rv == 0x80001234] == struck


def test_the_first_of_two_faults_has_the_call_and_both_count_it(bench: Bench) -> None:
    faults = [
        {"function": "C_SignInit", "every": 2, "action": "return", "ckr": 1},
        {"function": "C_SignInit", "every": 3, "action": "return", "ckr": 2},
    ]
    assert bench.noop(scenario_schedule, {"count": 9}, faults=faults)[0::2] == [0, 1, 2, 1, 0, 1, 0, 1, 2]


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
    results = bench.softhsm(scenario_sign, {"function": "C_Sign", "nth": 2, "action": action})
    assert [(r["rv"], r["signer"], r["length"]) for r in results] == [
        (CKR_OK, "k1", 64), (CKR_OK, signer, length), (CKR_OK, "k1", 64), (CKR_OK, "k1", 64),
    ]  # fmt: skip
    assert all(r["guard"] for r in results), "nothing may be written beyond the caller's buffer"


def test_a_hang_ends_in_time_and_blocks_no_other_session(bench: Bench) -> None:
    result = bench.softhsm(scenario_hang, {"function": "C_Sign", "nth": 1, "action": "hang", "milliseconds": 1500})
    assert result["rv"] == CKR_OK
    assert result["seconds"] >= 1.5
    assert result["other"] == CKR_OK
    assert result["other_seconds"] < 1.0, "it ended while the first one hung"


def test_an_endless_hang_is_released_by_command(bench: Bench) -> None:
    fault = {"function": "C_Sign", "nth": 1, "action": "hang", "forever": True}
    result = bench.softhsm(scenario_hang, fault, socket=str(bench.socket), arguments={"control": str(bench.socket)})
    assert (result["hung"], result["released"], result["ended"], result["rv"]) == (1, 1, True, CKR_OK)


def test_an_endless_hang_is_released_by_finalize(bench: Bench) -> None:
    fault = {"function": "C_Sign", "nth": 1, "action": "hang", "forever": True}
    result = bench.softhsm(scenario_hang, fault, socket=str(bench.socket), arguments={"finalize": True})
    assert result["alive"]
    assert result["ended"]
    assert result["finalize"] == CKR_OK
    assert result["rv"] == CKR_CRYPTOKI_NOT_INITIALIZED
    assert result["threads"] == 0


def test_crash_and_exit(bench: Bench) -> None:
    crash = {"function": "C_Sign", "nth": 1, "action": "crash"}
    assert bench.run(scenario_crash, bench.config(faults=[crash])).code == -signal.SIGSEGV
    for code, fields in ((86, {}), (3, {"code": 3})):
        leave = {"function": "C_Sign", "nth": 1, "action": "exit", **fields}
        assert bench.run(scenario_crash, bench.config(faults=[leave])).code == code


def test_faults_are_logged(bench: Bench) -> None:
    bench.softhsm(scenario_sign, {"function": "C_Sign", "nth": 2, "action": "wrong-signature"}, log=str(bench.log))
    text = bench.log.read_text()
    assert re.search(r"C_Sign call 2 slot \d+: wrong-signature", text)
    assert "finalized" in text
    assert stat.S_IMODE(bench.log.stat().st_mode) == 0o600
