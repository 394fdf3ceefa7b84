"""Seeded random fault schedules: the seed determines the faults and their times; no request may be lost.

    python -m tests.chaos.schedules --seeds 0-9999 --jobs 2

Each schedule opens a key manager on a module that breaks at random, asks for 200 signatures, judges every answer, takes
the faults away, waits until it signs again and closes. In many of them the device is slow or away for a moment, the
host process is killed, callers leave, single messages are refused, or a second key is destroyed; in a quarter the
module disobeys (tests/support/disobedient.py). A schedule mostly waits: four jobs for each processor are not too many.
The summary is JSON on standard output; the exit code is 1 if anything was lost, answered twice, wrong, hung, refused
without need (tests/support/liveness.py), or left behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import uvloop
from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey
from tests.support.chaos import Chaos, Wrapped, engine_of, wrap, wrap_noop
from tests.support.disobedient import CORRUPTING, LETHAL, SURVIVED, Disobedient
from tests.support.liveness import Liveness
from tests.support.paths import CHAOS
from tests.support.seeds import added, parse, run_seeds
from tests.support.softhsm import Folder, find_module, make_token
from tests.support.two_keys import FIRST, SECOND, THIRD, TwoKeys

import hsmcore
from hsmcore import _native
from hsmcore.errors import KeyMismatch
from hsmcore.errors.statuses import STATUSES
from hsmcore.members.supervisor import HEARTBEAT_SECONDS

REQUESTS = 200
CHUNK = 50
"""Schedules that one process takes at a time."""
LATEST = 1.0
"""An answer that comes so many seconds after its deadline counts as a hang; so does a schedule of HANGS seconds. While
this process stands still, as one of many on a busy machine, no time passes."""
HANGS = 30.0
TICK = 0.01
HEALS = 10.0
ATTEMPTS = 50
"""How often a start is tried that meets faults."""
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
POISONS = [0x005, 0x006, 0x030, 0x082, 0x0B3, 0x101]
"""CKRs with which a message is refused each time, as if the fault were the token's."""
MOST_STRIKES, MOST_ENDS = 20, 4
"""How often a module disobeys in a schedule, and where that may end its process."""
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
    kills: tuple[float, ...]
    random: Mapping[str, Any]
    slow: Mapping[str, Any]
    """The latency of C_Sign."""
    away: tuple[float, int] | None
    """When the token is removed, in seconds after the first request, and for how many milliseconds."""
    poisoned: float
    """The share of messages that the module refuses."""
    leaving: float
    """The share of callers that leave."""
    second: bool
    """A third of the requests is for a second key."""
    destroyed_at: int | None
    """The request with which the second key is destroyed."""
    disobeys: tuple[str, ...]
    """What the module does that no module may."""
    disobedience: tuple[int, int]
    """How often, in a million calls, and how many times in all."""


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
    timeout = dice.choice([0.05, 0.1, 0.2, 1.0, 2.0])
    hangs, killed, noop = dice.random() < 0.5, dice.random() < 0.5, dice.random() < 0.5
    if hangs:
        # Some of them longer than the deadline.
        actions.append({"action": "hang", "milliseconds": dice.choice([1, 5, 20, 60])})
    if mode == "process" and (hangs or killed):
        noop = True  # a process that is killed while SoftHSM logs in leaves no token behind: it rewrites the file
    if mode == "thread" and "logout" in actions:
        noop = True  # SoftHSM 2.6.1 crashes by itself now and then in a C_Logout beside other calls
    slow, away, second = dice.random() < 0.3, dice.random() < 0.2, dice.random() < 0.5
    if away:
        noop = True  # that is a logout, too
    others = random.Random(f"disobeys {seed}")
    disobeys: list[str] = []
    most = 0
    if others.random() < 0.25:
        disobeys, most = others.sample([*SURVIVED], others.randint(1, 4)), others.randint(1, MOST_STRIKES)
        if mode == "process" and others.random() < 0.5:
            disobeys, most = [*disobeys, others.choice([*LETHAL, *CORRUPTING])], min(most, MOST_ENDS)
            noop = True  # see above
    return Plan(
        seed=seed,
        mode=mode,
        noop=noop,
        sessions=dice.choice([1, 2, 2, 4, 8]),
        group=dice.choice([1, 8, 32, 64, 200]),
        timeout=timeout,
        kills=tuple(dice.uniform(0.0, 0.1) for _ in range(dice.randint(1, 3))) if killed and mode == "process" else (),
        random={
            "seed": seed,
            "probability": round(10 ** dice.uniform(-2, -1), 4),
            "functions": functions,
            "actions": actions,
        },
        slow={"kind": "exponential", "meanMicroseconds": dice.choice([200, 1000, 4000])} if slow else {"kind": "none"},
        away=(dice.uniform(0.0, 0.05), dice.choice([5, 20, 100, 300])) if away else None,
        poisoned=dice.choice([0.0, 0.0, 0.01, 0.05]),
        leaving=dice.choice([0.0, 0.0, 0.05, 0.3]),
        second=second,
        destroyed_at=dice.randrange(REQUESTS) if second and dice.random() < 0.5 else None,
        disobeys=tuple(disobeys),
        disobedience=(int(10 ** others.uniform(3, 5)), most),
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
        self.disobeyed: Counter[str] = Counter()
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
            "disobeyed": self.disobeyed,
            "schedules": 1,
            "openings refused": self.attempts - 1,
            "host restarts": self.restarts,
            "latest": self.latest,
            "slowest to heal": self.healed,
        }


class Asking:
    """All requests of a schedule."""

    def __init__(self, manager: hsmcore.KeyManager, plan_: Plan, verdict: Verdict, site: Site) -> None:
        self.manager, self.plan, self.verdict = manager, plan_, verdict
        self.chaos, self.disobedient = site.chaos, site.disobedient
        self.liveness, self.engine = Liveness(), engine_of(manager)
        self.public_key = VerifyKey(manager.public_key)
        self.keys = [manager._path.key_index]
        self.taken = self.ended = 0
        self.unfit: list[str] = []
        """Errors that no request may end with."""
        self.destroyed = False
        self.kills: list[float] = []
        self._stood, self._tick_at = 0.0, float("inf")

    @property
    def stood(self) -> float:
        """For how long this process has stood still so far, in seconds."""
        return self._stood + max(time.monotonic() - self._tick_at, 0.0)

    async def _tick(self) -> None:
        while True:
            self._tick_at = time.monotonic() + TICK
            await asyncio.sleep(TICK)
            self._stood = self.stood

    async def load_second(self) -> None:
        """Have the engine find the second key, in spite of the faults."""
        if not self.plan.second:
            return
        for _ in range(ATTEMPTS):
            try:
                await self.manager.set_current_key_id(SECOND)
                self.keys.append(self.manager._path.key_index)
                await self.manager.set_current_key_id(FIRST)
            except hsmcore.HsmError as error:
                failure = error
                await asyncio.sleep(PAUSE)  # its host may be starting again
            else:
                return
        self.verdict.fault("never opened", f"second key: {failure!r}")

    async def one(self, number: int) -> None:
        """Make one request and judge its answer."""
        plan_, verdict, dice = self.plan, self.verdict, random.Random(self.plan.seed * REQUESTS + number)
        second = len(self.keys) > 1 and (number % 3 == 0 or number == plan_.destroyed_at)
        poisoned, leaves = dice.random() < plan_.poisoned, dice.random() < plan_.leaving
        message = f"hsmcore {plan_.seed} {number}"
        message += f" poison {dice.choice(POISONS)};" if poisoned else ""
        message += " destroy" if number == plan_.destroyed_at else ""
        self.destroyed = self.destroyed or number == plan_.destroyed_at
        begun, stood = time.monotonic(), self.stood
        asked = self.liveness.ask(second, begun, plan_.timeout, own=poisoned)
        status = "OK"
        try:
            future = self.engine.submit(message.encode(), plan_.timeout, self.keys[second])
            self.taken += 1
            if leaves:
                await asyncio.wait([future], timeout=dice.uniform(0.0, 0.02))
                if future.cancel():
                    self.engine.abandon(future)
            signature = await future
        except asyncio.CancelledError:
            status = "CANCELLED"
        except hsmcore.HsmError as error:
            status = error.status
            mismatch, lied = isinstance(error, KeyMismatch), "changed-attribute" in plan_.disobeys
            asked.own = asked.own or (mismatch and lied)  # it may have said the same lie twice
            if (mismatch and not lied) or error.status in ("OK", "FORKED", "CLOSED", "BAD_ARGUMENT", "SYSTEM"):
                self.unfit.append(repr(error))
        else:
            verdict.fault("wrong", f"request {number} was to be refused", poisoned)
            try:
                self.public_key.verify(message.encode(), signature)
            except (BadSignatureError, ValueError):
                verdict.fault("wrong", f"request {number}")
        now = time.monotonic()
        asked.own = asked.own or (second and self.destroyed)
        self.liveness.end(asked, now, status)
        verdict.answers["signed" if status == "OK" else status] += 1
        late = now - asked.deadline - (self.stood - stood)
        verdict.latest = max(verdict.latest, late)
        verdict.fault("hangs", f"request {number} was answered {late:.2f} s late", late > LATEST)

    async def all(self) -> None:
        """Make them in groups, while the host is killed and the token removed."""
        plan_, verdict, engine = self.plan, self.verdict, self.engine
        loop, begun = asyncio.get_running_loop(), time.monotonic()
        for after in plan_.kills:
            loop.call_later(after, self._kill)
        removing, ticking = asyncio.ensure_future(self._remove_token()), asyncio.ensure_future(self._tick())
        pauses = PAUSES
        for first in range(0, REQUESTS, plan_.group):
            down = verdict.answers["TOKEN_LOST"] + verdict.answers["HOST_LOST"]
            numbers = range(first, min(first + plan_.group, REQUESTS))
            await asyncio.gather(*(self.one(number) for number in numbers))
            if verdict.answers["TOKEN_LOST"] + verdict.answers["HOST_LOST"] > down and pauses > 0:
                pauses -= 1
                await asyncio.sleep(PAUSE)  # else all that is left would fail at once
        await removing
        ticking.cancel()
        await asyncio.sleep(begun + max(plan_.kills, default=0.0) - time.monotonic())
        answered = sum(verdict.answers.values())
        verdict.fault("lost", f"{REQUESTS} asked, {answered} answered", REQUESTS - answered)
        # Each request that was taken ends once: as completed or as rejected, though its caller may have gone before.
        end = time.monotonic() + 5.0
        while engine.in_flight and time.monotonic() < end:  # noqa: ASYNC110  # what is waited for is in native threads
            await asyncio.sleep(0.002)
        self.ended = engine.completed + engine.rejected

    def _kill(self) -> None:
        self.kills.append(time.monotonic())
        self.engine.kill_host()

    async def _remove_token(self) -> None:
        if self.plan.away is not None:
            after, milliseconds = self.plan.away
            await asyncio.sleep(after)
            fault = {"function": "C_SignInit", "nth": 1, "action": "remove-token", "milliseconds": milliseconds}
            with contextlib.suppress(AssertionError, TimeoutError):  # the module is being initialized again
                await asyncio.to_thread(self.chaos.ask, "fault", 0.2, **fault)

    def judge(self) -> None:
        """Judge what the module may have spoiled: the table's count of requests, errors, and requests that were refused
        without need. Each caller's answer is judged in any case."""
        hangs = [action["milliseconds"] for action in self.plan.random["actions"] if "milliseconds" in action]
        to_monotonic = time.monotonic() - time.time()
        struck = []
        for line in self.chaos.log.read_text().splitlines() if hangs else []:
            when, _, what = line.partition(" ")
            if what.endswith(": hang"):
                at = datetime.fromisoformat(when).timestamp() + to_monotonic
                struck.append((at, at + hangs[0] / 1000))
        did = self.disobedient.struck()
        self.verdict.disobeyed.update(what for _, what in did)
        if any(what in CORRUPTING for _, what in did):
            return  # it may have spoiled any request, and its place in the table
        verdict, taken, ended = self.verdict, self.taken, self.ended
        verdict.fault("unfit errors", ", ".join(self.unfit), len(self.unfit))
        verdict.fault("lost", f"{taken} were taken, {ended} ended", max(taken - ended, 0))
        verdict.fault("twice", f"{taken} were taken, {ended} ended", max(ended - taken, 0))
        kills = [*self.kills, *(when for when, what in did if what in LETHAL)]
        ends = sum(what == "end-thread" for _, what in did)
        found = self.liveness.without_need(struck, kills, ends)
        count = sum(map(len, found.values()))
        verdict.fault("refused without need", self.liveness.describe(found), count)


async def _heal(manager: hsmcore.KeyManager, asking: Asking) -> None:
    """Without faults it must sign again."""
    chaos, verdict, liveness = asking.chaos, asking.verdict, asking.liveness
    asking.disobedient.obey()
    chaos.write()
    begun = time.monotonic()
    errors: Counter[str] = Counter()
    # A module that is being initialized again, or whose host is, has no socket and reads the new file.
    while verdict.healed < HEALS:
        verdict.healed = time.monotonic() - begun
        try:
            await asyncio.to_thread(chaos.ask, "clear", 2.0)
            witness = liveness.ask(False, time.monotonic(), 1.0, own=True)
            await manager.sign(b"hsmcore healed?", 1.0)
        except hsmcore.HsmError as error:
            errors[error.status] += 1
            await asyncio.sleep(0.005)
        except AssertionError:
            errors["no socket"] += 1
        else:
            liveness.end(witness, time.monotonic())
            return
    verdict.fault("not healed", str(dict(errors)))


class Site:
    """A module for schedules, one after the other: chaos before two keys of a token, and disobedience before chaos."""

    def __init__(self, wrapped: Wrapped, folder: Path) -> None:
        self.two_keys, self.disobedient = TwoKeys(wrapped.module, folder), Disobedient(str(CHAOS), folder)
        self.chaos = Chaos(folder, replace(wrapped, module=self.two_keys.path))

    def begin(self, plan_: Plan) -> dict[str, Any]:
        """Nothing of the schedule before counts. Returns the configuration."""
        self.two_keys.restore()
        self.disobedient.write(plan_.seed, plan_.disobeys, *plan_.disobedience)
        self.chaos.log.unlink(missing_ok=True)
        self.chaos.module = self.disobedient.path if plan_.disobeys else str(CHAOS)
        settings = {"sessions": plan_.sessions, "isolation": plan_.mode, "verifySignatures": "always"}
        return self.chaos.config(settings=settings, queueSize=256, maxMessageBytes=256)


async def _warm_up(site: Site) -> None:
    """Open a key manager without faults: what is imported then is no schedule's time."""
    config = site.begin(replace(plan(0), disobeys=()))
    site.chaos.write()
    async with hsmcore.create_key_manager(config):
        pass


async def run(plan_: Plan, site: Site) -> Verdict:
    """One schedule, from opening to closing."""
    verdict = Verdict(plan_)
    config, chaos = site.begin(plan_), site.chaos
    while True:
        verdict.attempts += 1
        # What strikes while it is opened is reported and that is all; the next series of faults may let it pass.
        series = {**plan_.random, "seed": plan_.seed + 1_000_003 * (verdict.attempts - 1)}
        chaos.write(random=series, latency={"C_Sign": plan_.slow})
        manager = hsmcore.create_key_manager(config)
        try:
            await manager.initialize()
            break
        except hsmcore.HsmError as error:
            if verdict.attempts == ATTEMPTS:
                verdict.fault("never opened", repr(error))
                return verdict
    try:
        asking = Asking(manager, plan_, verdict, site)
        await asking.load_second()
        await asking.all()
        await _heal(manager, asking)
        asking.judge()
        [stats] = manager.get_stats().values()
        verdict.recoveries.update(stats["recoveries"])
        verdict.caught += stats["wrong"]
        supervisor = manager._path.member and manager._path.member.supervisor
        verdict.restarts = supervisor.restarts if supervisor else 0
    finally:
        await manager.close()
    return verdict


async def run_timed(plan_: Plan, site: Site) -> Verdict:
    """The same with a limit, and a look at what it left."""
    most = HANGS
    if "wake-nobody" in plan_.disobeys:  # answers of such a host are looked for with each beat
        most += HEARTBEAT_SECONDS * REQUESTS / plan_.group
    try:
        verdict = await asyncio.wait_for(run(plan_, site), most)
    except TimeoutError:
        verdict = Verdict(plan_)
        verdict.fault("hangs", f"longer than {most:.0f} s")
    left = {name: count for name, count in _native.leaks().items() if count}
    verdict.fault("leaks", str(left), bool(left))
    return verdict


def run_chunk(seeds: Iterable[int]) -> dict[str, Any]:
    """Some schedules one after the other, in one event loop, on tokens that no other process uses."""
    logging.disable(logging.CRITICAL)
    softhsm = find_module()
    if softhsm is None:
        raise SystemExit("SoftHSM is not installed")
    tokens = Folder()
    try:
        token = make_token(tokens, softhsm, [{"name": name, "kind": "ed25519", "id": name} for name in (FIRST, THIRD)])
        with tempfile.TemporaryDirectory() as name, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            sites = {}
            for noop, wrapped in ((True, wrap_noop()), (False, wrap(token, FIRST))):
                place = Path(name) / wrapped.settings["tokenLabel"]
                place.mkdir()
                sites[noop] = Site(wrapped, place)
            runner.run(_warm_up(sites[True]))
            return added(runner.run(run_timed(plan_, sites[plan_.noop])).as_dict() for plan_ in map(plan, seeds))
    finally:
        tokens.remove()


def main(arguments: list[str] | None = None) -> int:
    """Run the schedules of a range of seeds."""
    asked = parse("Seeded random fault schedules.", arguments)
    if asked.chunk:
        [seeds] = json.load(sys.stdin)
        json.dump(run_chunk(seeds), sys.stdout)
        return 0
    return run_seeds(asked, "tests.chaos.schedules", CHUNK)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    sys.exit(main())
