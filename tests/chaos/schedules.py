"""Seeded random fault schedules: the seed determines the faults and their times; no request may be lost.

    python -m tests.chaos.schedules --seeds 0-9999 --jobs 2

Each schedule opens a key manager on a module that breaks at random, asks for 200 signatures, judges every answer, takes
the faults away, waits until it signs again and closes. The summary is JSON on standard output; the exit code is 1 if
anything was lost, answered twice, wrong, hung, or left behind.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop
from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey
from tests.support.chaos import Chaos, Wrapped, engine_of, wrap, wrap_noop
from tests.support.seeds import added, parse, run_seeds
from tests.support.softhsm import Folder, find_module, make_token

import hsmcore
from hsmcore import _native
from hsmcore.errors import KeyMismatch
from hsmcore.statuses import STATUSES

REQUESTS = 200
CHUNK = 50
"""Schedules that one process takes at a time."""
LATEST = 1.0
"""An answer that comes so many seconds after its deadline counts as a hang; so does a schedule of HANGS seconds."""
HANGS = 30.0
HEALS = 10.0
PAUSE = 0.02
PAUSES = 5
"""How long, and how often in a schedule, callers wait for a member that is down."""

# At a signature any CKR; a refused PIN ends a member for good, which is no matter for a schedule.
SIGN_CKRS = [
    name for _, name, status in _native.ckr_table() if STATUSES[status].class_ not in ("OK", "AUTH_FATAL", "REINIT")
]
# While the token is looked at again: what a device that comes and goes says.
LADDER_CKRS = ["CKR_DEVICE_ERROR", "CKR_DEVICE_REMOVED", "CKR_FUNCTION_FAILED", "CKR_SESSION_HANDLE_INVALID"]
LADDER_CKRS += ["CKR_GENERAL_ERROR", "CKR_SESSION_COUNT", "CKR_TOKEN_NOT_PRESENT", "CKR_CRYPTOKI_NOT_INITIALIZED"]
LOSSES = ["kill-session", "kill-all-sessions", "logout"]
LIES = ["wrong-signature", "other-key-signature", "short-signature", "long-signature"]


@dataclass(frozen=True)
class Plan:
    """What a seed stands for."""

    seed: int
    mode: str
    noop: bool
    sessions: int
    group: int
    timeout: float
    kill_after: float | None
    random: Mapping[str, Any]


def plan(seed: int) -> Plan:
    """The schedule of a seed."""
    dice = random.Random(seed)
    actions: list[Any] = dice.sample([*LOSSES, *LIES], dice.randint(1, 7))
    actions += [{"action": "return", "ckr": name} for name in dice.sample(SIGN_CKRS, dice.randint(1, 6))]
    functions = ["C_SignInit", "C_Sign"]
    if dice.random() < 0.5:
        functions += ["C_OpenSession", "C_Login", "C_FindObjectsInit", "C_FindObjects"]
        actions = [action for action in actions if not isinstance(action, dict)]
        actions += [{"action": "return", "ckr": name} for name in dice.sample(LADDER_CKRS, 3)]
    mode = "process" if seed % 2 else "thread"
    timeout = dice.choice([0.05, 0.1, 0.2, 1.0])
    hangs, killed, noop = dice.random() < 0.5, dice.random() < 0.5, dice.random() < 0.5
    if hangs:
        # Some of them longer than the deadline.
        actions.append({"action": "hang", "milliseconds": dice.choice([1, 5, 20, 60])})
    if mode == "process" and (hangs or killed):
        noop = True  # a process that is killed while SoftHSM logs in leaves no token behind: it rewrites the file
    if mode == "thread" and "logout" in actions:
        noop = True  # SoftHSM 2.6.1 crashes by itself now and then in a C_Logout beside other calls
    return Plan(
        seed=seed,
        mode=mode,
        noop=noop,
        sessions=dice.choice([1, 2, 2, 4, 8]),
        group=dice.choice([1, 8, 32, 64, 200]),
        timeout=timeout,
        kill_after=dice.uniform(0.0, 0.03) if killed else None,
        random={
            "seed": seed,
            "probability": round(10 ** dice.uniform(-2, -1), 4),
            "functions": functions,
            "actions": actions,
        },
    )


class Verdict:
    """What became of one schedule."""

    def __init__(self, plan_: Plan) -> None:
        self.plan = plan_
        self.faults: Counter[str] = Counter()  # what must be 0
        self.answers: Counter[str] = Counter()  # "signed", or the status of the error
        self.recoveries: Counter[str] = Counter()
        self.notes: list[str] = []
        self.caught = 0
        self.attempts = 0
        self.latest = 0.0
        self.healed = 0.0
        self.restarts = 0

    def fault(self, kind: str, note: str, count: int = 1) -> None:
        """Note a fault."""
        if count:
            self.faults[kind] += count
            if self.faults[kind] == count:  # the first of its kind tells enough
                self.notes.append(f"seed {self.plan.seed} ({self.plan.mode}): {kind}: {note}")

    def as_dict(self) -> dict[str, Any]:
        """For the process that adds them up."""
        return {
            "faults": self.faults,
            "answers": self.answers,
            "recoveries": self.recoveries,
            "notes": self.notes,
            "modes": Counter([self.plan.mode]),
            "wrong signatures caught": self.caught,
            "schedules": 1,
            "openings refused": self.attempts - 1,
            "host restarts": self.restarts,
            "latest": self.latest,
            "slowest to heal": self.healed,
        }


async def _ask(manager: hsmcore.KeyManager, plan_: Plan, verdict: Verdict) -> None:
    """All requests of the schedule."""
    key = VerifyKey(manager.public_key)
    engine = engine_of(manager)
    taken = 0

    async def one(number: int) -> None:
        nonlocal taken
        message = f"hsmcore {plan_.seed} {number}".encode()
        begun = time.monotonic()
        try:
            future = engine.submit(message, plan_.timeout, manager._path.key_index)
            taken += 1
            signature = await future
        except hsmcore.HsmError as error:
            verdict.answers[error.status] += 1
            if isinstance(error, KeyMismatch) or error.status in ("OK", "FORKED", "CLOSED", "BAD_ARGUMENT", "SYSTEM"):
                verdict.fault("unfit errors", repr(error))
        else:
            verdict.answers["signed"] += 1
            try:
                key.verify(message, signature)
            except (BadSignatureError, ValueError):
                verdict.fault("wrong", f"request {number}")
        late = time.monotonic() - begun - plan_.timeout
        verdict.latest = max(verdict.latest, late)
        verdict.fault("hangs", f"request {number} was answered {late:.2f} s late", late > LATEST)

    pauses = PAUSES
    if plan_.kill_after is not None:  # only a host process can be killed
        asyncio.get_running_loop().call_later(plan_.kill_after, engine.kill_host)
    for first in range(0, REQUESTS, plan_.group):
        down = verdict.answers["TOKEN_LOST"] + verdict.answers["HOST_LOST"]
        numbers = range(first, min(first + plan_.group, REQUESTS))
        await asyncio.gather(*(one(number) for number in numbers))
        if verdict.answers["TOKEN_LOST"] + verdict.answers["HOST_LOST"] > down and pauses > 0:
            pauses -= 1
            await asyncio.sleep(PAUSE)  # else all that is left would fail at once
    answered = sum(verdict.answers.values())
    verdict.fault("lost", f"{REQUESTS} asked, {answered} answered", REQUESTS - answered)
    # Each request that was taken ends once: as completed or as rejected, though its caller may have gone before that.
    end = time.monotonic() + 5.0
    while engine.in_flight and time.monotonic() < end:  # noqa: ASYNC110  # what is waited for is in native threads
        await asyncio.sleep(0.002)
    ended = engine.completed + engine.rejected
    verdict.fault("lost", f"{taken} were taken, {ended} ended", max(taken - ended, 0))
    verdict.fault("twice", f"{taken} were taken, {ended} ended", max(ended - taken, 0))


async def _heal(manager: hsmcore.KeyManager, chaos: Chaos, verdict: Verdict) -> None:
    """Without faults it must sign again."""
    chaos.write()
    begun = time.monotonic()
    errors: Counter[str] = Counter()
    # A module that is being initialized again, or whose host is, has no socket and reads the new file.
    while verdict.healed < HEALS:
        verdict.healed = time.monotonic() - begun
        try:
            await asyncio.to_thread(chaos.ask, "clear", 2.0)
            await manager.sign(b"hsmcore healed?", 1.0)
        except hsmcore.HsmError as error:
            errors[error.status] += 1
            await asyncio.sleep(0.005)
        except AssertionError:
            errors["no socket"] += 1
        else:
            return
    verdict.fault("not healed", str(dict(errors)))


async def run(plan_: Plan, wrapped: Wrapped, folder: Path) -> Verdict:
    """One schedule, from opening to closing."""
    verdict = Verdict(plan_)
    settings = {"sessions": plan_.sessions, "isolation": plan_.mode, "verifySignatures": "always"}
    chaos = Chaos(folder, wrapped)
    config = chaos.config(settings=settings, queueSize=256, maxMessageBytes=256)
    while True:
        verdict.attempts += 1
        # What strikes while it is opened is reported and that is all; the next series of faults may let it pass.
        chaos.write(random={**plan_.random, "seed": plan_.seed + 1_000_003 * (verdict.attempts - 1)})
        manager = hsmcore.create_key_manager(config)
        try:
            await manager.initialize()
            break
        except hsmcore.HsmError as error:
            if verdict.attempts == 50:
                verdict.fault("never opened", repr(error))
                return verdict
    try:
        await _ask(manager, plan_, verdict)
        await _heal(manager, chaos, verdict)
        [stats] = manager.get_stats().values()
        verdict.recoveries.update(stats["recoveries"])
        verdict.caught += stats["wrong"]
        supervisor = manager._path.member and manager._path.member.supervisor
        verdict.restarts = supervisor.restarts if supervisor else 0
    finally:
        await manager.close()
    return verdict


async def run_timed(plan_: Plan, wrapped: Wrapped, folder: Path) -> Verdict:
    """The same with a limit, and a look at what it left."""
    try:
        verdict = await asyncio.wait_for(run(plan_, wrapped, folder), HANGS)
    except TimeoutError:
        verdict = Verdict(plan_)
        verdict.fault("hangs", f"longer than {HANGS:.0f} s")
    left = {name: count for name, count in _native.leaks().items() if count}
    verdict.fault("leaks", str(left), bool(left))
    return verdict


def run_chunk(seeds: Iterable[int], module: Wrapped) -> dict[str, Any]:
    """Some schedules one after the other, in one event loop."""
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return added(
            runner.run(run_timed(plan_, wrap_noop() if plan_.noop else module, Path(folder))).as_dict()
            for plan_ in map(plan, seeds)
        )


def main(arguments: list[str] | None = None) -> int:
    """Run the schedules of a range of seeds."""
    asked = parse("Seeded random fault schedules.", arguments)
    if asked.chunk:
        seeds, path, settings = json.load(sys.stdin)
        json.dump(run_chunk(seeds, Wrapped(path, settings)), sys.stdout)
        return 0
    softhsm = find_module()
    if softhsm is None:
        raise SystemExit("SoftHSM is not installed")
    folder = Folder()
    try:
        token = make_token(folder, softhsm, [{"name": "ed25519", "kind": "ed25519"}, {"name": "2", "kind": "ed25519"}])
        wrapped = wrap(token)
        return run_seeds(asked, "tests.chaos.schedules", CHUNK, wrapped.module, dict(wrapped.settings))
    finally:
        folder.remove()


if __name__ == "__main__":
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    sys.exit(main())
