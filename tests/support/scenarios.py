"""Scenarios: functions that drive a PKCS#11 module as a client in a process of their own and return JSON.

A process can initialize a module only once at a time, and the faults of the fault-injecting module kill processes. The
child imports neither pytest's fixtures nor hsmcore: it runs `scenario(Module(path), **arguments)` alone.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.support import zygote
from tests.support.paths import CHAOS, NOOP, ROOT
from tests.support.pkcs11_client import CKA_CLASS, CKA_ID, CKO_PRIVATE_KEY, CKR_OK, PIN, Module
from tests.support.softhsm import find_module

SOFTHSM = find_module() or Path("libsofthsm2.so")

_CHILD = "from tests.support.scenarios import main; main()"


def main() -> None:
    """Run the scenario that the command line names and print its result."""
    threads_at_start()
    (file, name), path, arguments = sys.argv[1].split(":"), sys.argv[2], json.loads(sys.argv[3])
    sys.stdout.write(json.dumps(getattr(import_module(file), name)(Module(path), **arguments)))


# ---- for scenarios ---------------------------------------------------------------------------------------------------


def ready(module: Module) -> tuple[int, int, int]:
    """Initialize the module, log a session in and find the key with id 01. Returns slot, session and key."""
    assert module.initialize() == CKR_OK
    slot = module.slots()[0]
    session = module.session(slot)
    assert module.login(session) == CKR_OK
    rv, keys = module.find(session, {CKA_CLASS: CKO_PRIVATE_KEY, CKA_ID: b"\x01"})
    assert (rv, len(keys)) == (CKR_OK, 1)
    return slot, session, keys[0]


class Control:
    """A connection to the control socket of the fault-injecting module."""

    def __init__(self, path: str | Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(10)
        self.socket.connect(str(path))
        self.file = self.socket.makefile("rb")

    def line(self, line: bytes) -> dict[str, Any]:
        """Send one line. Returns the answer."""
        self.socket.sendall(line + b"\n")
        answer: dict[str, Any] = json.loads(self.file.readline())
        return answer

    def __call__(self, cmd: str, **fields: Any) -> dict[str, Any]:
        return self.line(json.dumps({"cmd": cmd, **fields}).encode())

    def closed(self) -> bool:
        """Whether the module has closed the connection."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:  # the module had not accepted it yet
            return True

    def close(self) -> None:
        """Close the connection."""
        self.file.close()
        self.socket.close()


def _thread_count() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


@cache
def threads_at_start() -> int:
    """Threads of the process before it loads the module. A sanitizer adds one when the first thread starts."""
    first = threading.Thread()
    first.start()
    first.join()
    time.sleep(0.01)
    return _thread_count()


def threads() -> int:
    """Threads that the process did not begin with."""
    return _thread_count() - threads_at_start()


def threads_left() -> int:
    """The same once joined threads have left /proc, which takes a moment."""
    until = time.monotonic() + 2
    while threads() > 0 and time.monotonic() < until:
        time.sleep(0.002)
    return threads()


def scenario_initialize(module: Module, flags: int = 2, reserved: str | None = None) -> Any:
    """Initialize twice."""
    rv = module.initialize(flags, reserved.encode() if reserved is not None else None)
    again = module.initialize(flags) if rv == CKR_OK else None
    if rv == CKR_OK:
        module("C_Finalize", None)
    return {"rv": rv, "again": again}


def scenario_schedule(module: Module, count: int) -> Any:
    """The CKRs of `count` signatures: C_SignInit and C_Sign in turn."""
    _slot, session, key = ready(module)
    rvs = []
    for _ in range(count):
        rvs.append(module.sign_init(session, key))
        rvs.append(module.sign(session, b"message")[0])
    module("C_Finalize", None)
    return rvs


# ---- for tests -------------------------------------------------------------------------------------------------------


class Run:
    """A scenario that has ended."""

    def __init__(self, process: subprocess.CompletedProcess[str]) -> None:
        self.code, self.stderr = process.returncode, process.stderr
        self.result = json.loads(process.stdout) if process.returncode == 0 and process.stdout else None

    def checked(self) -> Any:
        """The result of a scenario that ended well."""
        assert self.code == 0, self.stderr
        return self.result


class Bench:
    """A folder and the environment of a SoftHSM token, to run scenarios in."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder, self.environment = folder, environment
        self.socket, self.log = folder / "c.sock", folder / "chaos.log"

    def config(self, module: Any = SOFTHSM, **fields: Any) -> Path:
        """Write a configuration of the fault-injecting module."""
        path = self.folder / "chaos.json"
        path.write_text(json.dumps({"module": str(module) if isinstance(module, Path) else module, **fields}))
        return path

    def run(
        self, scenario: Callable[..., Any], config: Path | None = None, module: Path = CHAOS, **arguments: Any
    ) -> Run:
        """Run a scenario in a child process."""
        environment = dict(self.environment)
        if config is not None:
            environment["HSMCORE_CHAOS_CONFIG"] = str(config)
        name = f"{scenario.__module__}:{scenario.__name__}"
        command = ["-c", _CHILD, name, str(module), json.dumps(arguments)]
        return Run(zygote.run(*command, env=environment, cwd=ROOT, text=True))

    def softhsm(
        self,
        scenario: Callable[..., Any],
        *faults: dict[str, Any],
        arguments: dict[str, Any] | None = None,
        **fields: Any,
    ) -> Any:
        """Run a scenario on SoftHSM with faults."""
        return self.run(scenario, self.config(faults=list(faults), **fields), **(arguments or {})).checked()

    def noop(self, scenario: Callable[..., Any], arguments: dict[str, Any], **fields: Any) -> Any:
        """Run a scenario on the no-op module."""
        return self.run(scenario, self.config(NOOP, **fields), **arguments).checked()


def make_environment(folder: Path) -> dict[str, str]:
    """The environment of a new SoftHSM token with two Ed25519 keys: k1 with id 01, k2 with id 02."""
    for file in (CHAOS, NOOP, SOFTHSM):
        assert file.exists(), f"{file} is missing"
    (folder / "tokens").mkdir()
    (folder / "softhsm2.conf").write_text(f"directories.tokendir = {folder}/tokens\nlog.level = ERROR\n")
    environment = {**os.environ, "SOFTHSM2_CONF": str(folder / "softhsm2.conf")}
    environment.pop("HSMCORE_CHAOS_CONFIG", None)

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


def random_schedule(seed: int, probability: float = 0.1) -> dict[str, Any]:
    """The field `random` of a configuration."""
    actions = [
        {"action": "return", "ckr": "CKR_DEVICE_ERROR"},
        {"action": "return", "ckr": "CKR_FUNCTION_FAILED"},
        "kill-session",
        "wrong-signature",
    ]
    functions = ["C_SignInit", "C_Sign"]
    return {"seed": seed, "probability": probability, "functions": functions, "actions": actions}
