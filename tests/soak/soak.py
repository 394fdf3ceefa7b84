"""Sign for a while in every way there is; nothing may be lost or wrong, and nothing may be left.

    python -m tests.soak.soak --seconds 600 --isolation process --chaos

Prints a summary as JSON; the exit code is 1 if anything was wrong. Every few seconds the key manager is closed and
another one opened, in a new event loop of the other kind and with another configuration.

On the module that does nothing, memory is measured too: SoftHSM itself keeps some 64 bytes of each Ed25519 signature.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import gc
import json
import logging
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.soak.work import Tally, Target, Work
from tests.support.leaks import holdings, surplus_since
from tests.support.loops import FACTORIES, warm_up
from tests.support.softhsm import Folder, find_module, make_token

import hsmcore
from hsmcore import _native

BIN = Path(hsmcore.__file__).with_name("_bin")
CHAOS, NOOP = BIN / "libhsmcore_chaos.so", BIN / "libhsmcore_noop.so"

CALLERS = 24
ROUND_SECONDS = 10.0
OPEN_ATTEMPTS = 50
"""How often a manager may fail to open on a module that fails at random."""
WARM_ROUNDS = 5
"""Rounds before memory is measured: each kind of event loop and of configuration has had its turn."""
GROWTH_KIB = 4096
BYTES_PER_SIGNATURE = 1
"""How much more private memory than after those rounds a process may have at the end. A real leak is larger by far:
the smallest piece that is ever allocated has 16 bytes."""
M_ARENA_MAX = -8
KEYS = tuple(
    {"name": name, "kind": kind}
    for name, kind in (("one", "ed25519"), ("two", "ed25519"), ("three", "ed25519"), ("four", "ecdsa-p256"))
)
CKRS = ("CKR_DEVICE_ERROR", "CKR_SESSION_HANDLE_INVALID", "CKR_CRYPTOKI_NOT_INITIALIZED", "CKR_FUNCTION_FAILED")


def chaos_fields(module: str, seed: int, isolation: str) -> dict[str, Any]:
    """What goes wrong: a little of everything that is mended. A process is killed only where it is a host."""
    actions: list[Any] = ["kill-session", "logout", {"action": "hang", "milliseconds": 150}]
    actions += [{"action": "return", "ckr": ckr} for ckr in CKRS]
    faults = [{"function": "C_Sign", "probability": 0.001, "action": "wrong-signature"}]
    if isolation == "process":
        faults += [{"function": "C_Sign", "probability": 0.0002, "action": action} for action in ("crash", "exit")]
    random = {"seed": seed, "probability": 0.001, "functions": ["C_SignInit", "C_Sign"], "actions": actions}
    return {"module": module, "seed": seed, "faults": faults, "random": random}


@contextmanager
def target_of(options: argparse.Namespace, folder: Path) -> Iterator[Target]:
    """The token to sign on."""
    if options.module == "noop":
        pin = folder / "pin"
        pin.touch(mode=0o600)
        pin.write_text("1234")
        names = {"tokenLabel": "noop", "keyLabel": "noop-key"}
        settings = {"modulePath": str(NOOP), "pin": {"file": str(pin)}, **names}
        yield Target(settings, (), honest=False, faulty=options.chaos)
        return
    module = find_module()
    if module is None:
        raise SystemExit("SoftHSM is not installed")
    tokens = Folder()
    try:
        token = make_token(tokens, module, KEYS)
        settings = token.config("one")["sequencer"]["keyManager"]["config"]
        yield Target(settings, tuple(token.keys.values()), honest=True, faulty=options.chaos)
    finally:
        tokens.remove()


def configuration(target: Target, options: argparse.Namespace, number: int, folder: Path) -> dict[str, Any]:
    """The configuration of one round."""
    sessions = (2, 4, 8)[number % 3]
    settings = {**target.settings, "isolation": options.isolation, "sessions": sessions, "quirks": "softhsm"}
    if options.chaos:
        path = folder / "chaos.json"
        fields = chaos_fields(settings["modulePath"], options.seed * 1000 + number, options.isolation)
        path.write_text(json.dumps(fields))
        settings |= {"modulePath": str(CHAOS), "moduleArgs": f"config={path}", "verifySignatures": "always"}
    elif target.honest:
        settings["verifySignatures"] = ("never", "sample")[number % 2]
    manager: dict[str, Any] = {"type": "pkcs11", "config": settings, "queueSize": (256, 16)[number % 2]}
    manager["maxCacheSize"] = (0, 1000)[number // 2 % 2]
    if number % 5 == 4:
        manager["auditLogFile"] = str(folder / "audit.log")
    return {"keyManager": manager}


async def opened(config: dict[str, Any], target: Target, tally: Tally) -> hsmcore.KeyManager:
    """A manager that is open; on a module that fails at random that may take some attempts."""
    manager = hsmcore.create_key_manager(config)
    for attempt in range(OPEN_ATTEMPTS):
        try:
            await manager.initialize()
        except hsmcore.HsmError as error:
            if not target.faulty or not error.retryable or attempt == OPEN_ATTEMPTS - 1:
                raise
            tally.errors[f"opening: {error.status}"] += 1
            await asyncio.sleep(0.02)
        else:
            break
    return manager


async def one_round(
    config: dict[str, Any], target: Target, tally: Tally, seconds: float, seed: int, recoveries: Counter[str]
) -> int:
    """Open, work, close. Returns how much private memory a host process gained in the second half, in KiB."""
    manager = await opened(config, target, tally)
    try:
        engine = manager._path.member.engine  # type: ignore[union-attr]  # it is open
        loop = asyncio.get_running_loop()
        begun = loop.time()
        work = asyncio.ensure_future(Work(manager, target, tally, begun + seconds).run(CALLERS, seed))
        await asyncio.sleep(seconds / 2)
        pid, middle = engine.host_pid, private_kib(engine.host_pid)
        await asyncio.sleep(seconds * 0.45)
        growth = private_kib(engine.host_pid) - middle if engine.host_pid == pid else 0
        await work
        [stats] = manager.get_stats().values()
        recoveries.update(stats["recoveries"])
        recoveries["host restarts"] += manager._path.member.supervisor.restarts  # type: ignore[union-attr]  # it is open
    finally:
        await manager.close()
    return growth


def private_kib(pid: int | None) -> int:
    """Resident memory of a process that no file and no other process shares; 0 without a process."""
    if pid is None:
        return 0
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:  # it has just ended
        return 0
    return next((int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")), 0)


def own_kib() -> int:
    """This process's private memory once everything that can be given back has been."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return private_kib(int(Path("/proc/self").readlink().name))


def soak(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All rounds, then the reckoning."""
    tally, recoveries = Tally(), Counter[str]()
    measured = options.module == "noop" and not options.chaos
    with target_of(options, folder) as target:
        warm_up()
        gc.collect()
        before = holdings()
        begun = time.monotonic()
        length = min(ROUND_SECONDS, options.seconds / (WARM_ROUNDS + 3))
        number = memory = signed = host_growth = 0
        while number < WARM_ROUNDS + 2 or time.monotonic() - begun < options.seconds:
            if number == WARM_ROUNDS:
                memory, signed = own_kib(), sum(tally.done.values())
            factory = list(FACTORIES.values())[number % len(FACTORIES)]
            config = configuration(target, options, number, folder)
            with asyncio.Runner(loop_factory=factory) as runner:
                runner.get_loop().set_exception_handler(lambda _loop, context: tally.fault(f"event loop: {context}"))
                seed = options.seed * 1000 + number
                growth = runner.run(one_round(config, target, tally, length, seed, recoveries))
            if number >= WARM_ROUNDS:
                host_growth = max(host_growth, growth)
            number += 1
        grown, signed = own_kib() - memory, sum(tally.done.values()) - signed
        for line in surplus_since(before):
            tally.fault(f"left behind: {line}")
        for name, count in _native.leaks().items():
            if count:
                tally.fault(f"left behind: {count} {name}")
    allowed = GROWTH_KIB + signed * BYTES_PER_SIGNATURE // 1024
    for name, kib in (("this process", grown), ("the host process", host_growth)):
        if measured and kib > allowed:
            tally.fault(f"{name} grew by {kib} KiB")
    if not tally.done["verified"]:
        tally.fault("no signature was verified")
    return {
        "ok": not tally.faults,
        "module": options.module,
        "isolation": options.isolation,
        "chaos": options.chaos,
        "seed": options.seed,
        "seconds": round(time.monotonic() - begun, 1),
        "rounds": number,
        "done": dict(tally.done),
        "errors": dict(tally.errors),
        "recoveries": dict(recoveries),
        "grownKiB": grown,
        "hostGrownKiB": host_growth,
        "faults": tally.faults,
    }


def main(arguments: list[str]) -> int:
    """Parse, soak, report."""
    # One heap for all threads: how full the heaps of threads that have ended are says nothing about leaks.
    ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)
    parser = argparse.ArgumentParser(prog="python -m tests.soak.soak", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--isolation", choices=("thread", "process"), default="thread")
    parser.add_argument("--module", choices=("softhsm", "noop"), default="softhsm")
    parser.add_argument("--chaos", action="store_true", help="faults at random, from the seed")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    logging.getLogger("hsmcore").setLevel(logging.CRITICAL if options.chaos else logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="hsmcore-soak-") as folder:
        summary = soak(options, Path(folder))
    print(json.dumps(summary, indent=2))  # noqa: T201  # it is a program
    return 0 if summary["ok"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
