"""The control socket, the child of a fork, and what C_Finalize leaves."""

from __future__ import annotations

import json
import os
import socket
import stat
import time
from pathlib import Path
from typing import Any

from tests.support.paths import PROFILES
from tests.support.pkcs11_client import (
    CKR_CRYPTOKI_ALREADY_INITIALIZED,
    CKR_DEVICE_ERROR,
    CKR_GENERAL_ERROR,
    CKR_NEED_TO_CREATE_THREADS,
    CKR_OK,
    Module,
)
from tests.support.scenarios import Bench, Control, ready, scenario_initialize, threads, threads_left


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


def test_control_socket(bench: Bench) -> None:
    fields = {"socket": str(bench.socket), "profileDir": str(PROFILES)}
    result = bench.softhsm(scenario_control, arguments={"control": str(bench.socket)}, **fields)
    assert result["mode"] == 0o600
    assert result["fault"] == result["clear"] == result["latency"] == result["profile"] == {"ok": True}
    assert result["struck"][:2] == [CKR_OK, CKR_DEVICE_ERROR]
    assert result["vendor"] == 0x80000001
    assert result["every"] == {"ok": True}
    assert result["slow"] >= 0.03
    assert result["profiled_seconds"] >= 0.005
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
    result = bench.softhsm(scenario_fork, fault, socket=str(bench.socket), arguments={"control": str(bench.socket)})
    assert result["child"]["rvs"] == [CKR_OK] * 3, "SoftHSM's sessions work in a child, and no fault strikes there"
    assert result["child"]["again"] == CKR_CRYPTOKI_ALREADY_INITIALIZED
    assert result["child"]["finalize"] == CKR_OK
    assert result["child"]["threads"] <= 0
    assert result["here"] == [CKR_OK, CKR_DEVICE_ERROR]
    assert result["calls"] == 2


def test_nothing_is_left_over(bench: Bench) -> None:
    left = bench.softhsm(scenario_repeat, socket=str(bench.socket), log=str(bench.log), arguments={
        "control": str(bench.socket), "count": 10,
    })  # fmt: skip
    assert left[-1] == left[1]
    assert left[-1][0] == 0
    assert not left[-1][2]


def test_a_socket_in_use_is_refused_and_a_stale_one_replaced(bench: Bench) -> None:
    run = bench.run(scenario_busy_socket, bench.config(socket=str(bench.socket)), control=str(bench.socket))
    assert run.checked() == {"busy": CKR_GENERAL_ERROR, "stale": CKR_OK, "file": CKR_GENERAL_ERROR}
    assert "in use by another process" in run.stderr
    assert "is no socket" in run.stderr


def test_the_process_id_in_a_name(bench: Bench) -> None:
    log = str(bench.folder / "log.%p")
    assert (
        bench.run(scenario_initialize, bench.config(log=log, socket=str(bench.folder / "s.%p"))).checked()["rv"]
        == CKR_OK
    )
    assert len(list(bench.folder.glob("log.*"))) == 1
    assert not list(bench.folder.glob("*%p*"))


def test_a_client_that_forbids_threads_gets_no_socket(bench: Bench) -> None:
    run = bench.run(scenario_initialize, bench.config(socket=str(bench.socket)), flags=1 | 2)
    assert run.checked()["rv"] == CKR_NEED_TO_CREATE_THREADS
    assert "$.socket" in run.stderr
