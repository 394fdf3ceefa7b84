"""Seeded schedules of callers that give up while their messages are being signed, and ask again after a failover.

    python -m tests.chaos.binding_schedules --seeds 0-999 --jobs 2

Each schedule opens a key manager whose secondary level has another key, slows the primary members down, has callers ask
in every way and give up in every way, moves to the other level, mostly restarts in between, and asks again for every
signature that no caller has got. The primary level is one or two members on the no-op module, or a key in AWS KMS that
loses answers. No message may have signatures of two keys: by the attempts that were made, by what KMS signed, and by
the audit log. The summary is JSON on standard output; the exit code is 1 if anything was wrong or left.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvloop
from tests.chaos.failover_load import Verdict
from tests.chaos.failover_site import Attempts, Modules, watching
from tests.chaos.schedules import LIES, LOSSES
from tests.support.kms import KmsServer, set_credentials
from tests.support.kms import config as kms_config
from tests.support.levels import QUICK
from tests.support.managers import start, until
from tests.support.seeds import added, judged, parse, quiet, run_seeds

import hsmcore
from hsmcore import _native
from hsmcore.errors import HsmError

CHUNK = 10
"""Schedules that one process takes at a time."""
HANGS = 30.0
"""A schedule that takes longer hangs."""
BATCH = 18
"""Enough for a batch to be shared out over two members."""
PATIENCE, AGAIN = 5.0, 0.1
"""Timeouts in seconds: of a request that is to be given up, and of one that asks again."""
ASKING = ("sign", "sign_many", "sign_with_receipt")
GIVING_UP = ("timeout", "wait_for", "TaskGroup", "cancel", "deadline", "not at all")


@dataclass(frozen=True)
class Caller:
    """One that asks in a way, and gives up in a way `after` seconds."""

    asks: str
    gives_up: str
    after: float


@dataclass(frozen=True)
class Plan:
    """What a seed stands for."""

    seed: int
    kms: bool
    members: int
    hedging: bool
    audited: bool
    single_flight: bool
    slow_ms: int
    slow_calls: int
    stumble: str
    moves_early: bool
    restarts: str
    callers: tuple[Caller, ...]


def plan(seed: int) -> Plan:
    """The schedule of a seed."""
    dice = random.Random(seed)
    callers = tuple(
        Caller(dice.choice(ASKING), dice.choice(GIVING_UP), dice.uniform(0.0, 0.06)) for _ in range(dice.randint(3, 8))
    )
    return Plan(
        seed=seed,
        kms=dice.random() < 0.3,
        members=dice.choice([1, 2]),
        hedging=dice.random() < 0.3,
        audited=dice.random() < 0.4,
        single_flight=dice.random() < 0.3,
        slow_ms=dice.choice([10, 40, 120]),
        slow_calls=dice.randint(1, 12),
        stumble=dice.choice(["", "", *LOSSES, *LIES]),
        moves_early=dice.random() < 0.4,
        restarts=dice.choice(["not at all", "before the failover", "after it"]),
        callers=callers,
    )


class Schedule:
    """One plan, run."""

    def __init__(self, plan_: Plan, modules: Modules, kms: KmsServer, folder: Path) -> None:
        self.plan, self.modules, self.kms, self.folder = plan_, modules, kms, folder
        self.verdict = Verdict(f"seed {plan_.seed}")
        self.key = kms.store.make()
        self.messages: list[bytes] = []
        self.answers: defaultdict[bytes, set[bytes]] = defaultdict(set)
        """Public keys of the signatures that callers got, by message."""

    def config(self) -> dict[str, Any]:
        """The last member is the secondary level."""
        asked = self.plan
        own = self.modules.provider(0)
        block = {**QUICK, "acceptOtherKeys": ["secondary"], "hedging": asked.hedging, "primaryRetryIntervalMs": 20}
        block["secondary"] = [self.modules.provider(2, key="other")]
        if asked.kms:
            own = kms_config(self.kms, self.key)["keyManager"]
        elif asked.members == 2:
            block["primary"] = [self.modules.provider(1)]
        rules = {"maxCacheSize": 0, "singleFlight": asked.single_flight, "stateFile": str(self.folder / "state.db")}
        if asked.audited:
            rules["auditLogFile"] = str(self.folder / "audit.log")
        return {"sequencer": {"keyManager": {**own, **rules, "failover": block}}}

    async def run(self) -> None:
        """From opening to closing."""
        asked, verdict = self.plan, self.verdict
        for member in self.modules.members:
            member.write()
        with watching(verdict.fault) as (_, attempts):
            manager = await self._opened()
            try:
                await self._slow_down()
                asking = [start(self._ask_and_give_up(manager, caller)) for caller in asked.callers]
                if asked.moves_early:
                    await asyncio.sleep(0.03)
                    await self._fail_over(manager)
                await asyncio.gather(*asking)
                if asked.restarts == "before the failover":
                    manager = await self._restarted(manager)
                await self._fail_over(manager)
                if asked.restarts == "after it":
                    manager = await self._restarted(manager)
                    await self._fail_over(manager)
                await self._speed_up()
                await self._ask_again(manager)
                await self._fail_back(manager)
                await self._ask_again(manager)
                await self._judge(manager, attempts)
            finally:
                await manager.close()
            verdict.attempts += attempts.count

    async def _opened(self) -> hsmcore.KeyManager:
        manager = hsmcore.create_key_manager(self.config())
        await manager.initialize()
        return manager

    async def _restarted(self, manager: hsmcore.KeyManager) -> hsmcore.KeyManager:
        await self._speed_up()  # closing would wait for what hangs
        await manager.close()
        self.verdict.doings["restart"] += 1
        return await self._opened()

    # ---- what goes wrong ----

    async def _slow_down(self) -> None:
        asked = self.plan
        if asked.kms:
            self.kms.faults.latency = asked.slow_ms / 1e3
            if asked.stumble:
                self.kms.faults.add("drop", times=4 * asked.slow_calls)
            return
        for number in range(asked.members):
            tell = self.modules.members[number].fault
            await asyncio.to_thread(tell, "C_Sign", "hang", milliseconds=asked.slow_ms, every=1, count=asked.slow_calls)
            if asked.stumble:
                await asyncio.to_thread(tell, "C_Sign", asked.stumble, every=2, count=4)

    async def _speed_up(self) -> None:
        self.kms.faults.latency = 0.0
        self.kms.faults.queue.clear()
        for member in self.modules.members[: 0 if self.plan.kms else self.plan.members]:
            member.write()
            with suppress(AssertionError):  # it is not initialized just now
                await asyncio.to_thread(member.ask, "clear", 0.5)
                await asyncio.to_thread(member.ask, "release", 0.5)

    async def _wish(self, manager: hsmcore.KeyManager, value: str | None) -> None:
        monitor = manager._path.health
        for endpoint in manager._path.endpoints:
            if endpoint.level_name == "primary":
                await monitor._desired.set(f"drain:{endpoint.name}", value, "a schedule")
        await monitor._follow()

    async def _fail_over(self, manager: hsmcore.KeyManager) -> None:
        await self._wish(manager, "yes")
        await until(lambda: manager._path.levels.active == 1)
        self.verdict.doings["failover"] += 1

    async def _fail_back(self, manager: hsmcore.KeyManager) -> None:
        await self._wish(manager, None)
        for endpoint in manager._path.endpoints:
            if endpoint.fenced:
                await manager._path.health.readmit(endpoint, "a schedule")
        await until(lambda: manager._path.levels.active == 0)

    # ---- callers ----

    async def _ask(self, manager: hsmcore.KeyManager, way: str, messages: list[bytes], timeout: float) -> None:
        """Ask, and note by which key each answer was made."""
        keys = [version.public_key for version in manager.keys()]  # noqa: SIM118  # no dict
        try:
            if way == "sign_many":
                results = await manager.sign_many(messages, timeout, return_exceptions=True)
                signed = [(m, result) for m, result in zip(messages, results, strict=True) if isinstance(result, bytes)]
            elif way == "sign":
                signed = [(messages[0], await manager.sign(messages[0], timeout))]
            else:
                receipt = await manager.sign_with_receipt(messages[0], timeout)
                self.answers[messages[0]].add(receipt.public_key)
                signed = [(messages[0], receipt.signature)]
        except HsmError as error:
            self.verdict.answers[error.status] += 1
            return
        for message, signature in signed:
            by = next((key for key in keys if _native.verify("ed25519", key, message, signature)), None)
            if by is None:
                self.verdict.fault("wrong", f"{message!r}")
            else:
                self.answers[message].add(by)
                self.verdict.answers["signed"] += 1

    async def _ask_and_give_up(self, manager: hsmcore.KeyManager, caller: Caller) -> None:
        count = BATCH if caller.asks == "sign_many" else 1
        messages = [f"hsmcore {self.plan.seed} {len(self.messages) + n}".encode() for n in range(count)]
        self.messages += messages
        self.verdict.doings[caller.gives_up] += 1
        timeout = max(caller.after, 0.001) if caller.gives_up == "deadline" else PATIENCE
        asked = self._ask(manager, caller.asks, messages, timeout)
        if caller.gives_up == "timeout":
            with suppress(TimeoutError):
                async with asyncio.timeout(caller.after):
                    await asked
        elif caller.gives_up == "wait_for":
            with suppress(TimeoutError):
                await asyncio.wait_for(asked, caller.after)
        elif caller.gives_up == "TaskGroup":
            with suppress(ExceptionGroup):
                async with asyncio.TaskGroup() as group:
                    group.create_task(asked)
                    group.create_task(_fails(caller.after))
        elif caller.gives_up == "cancel":
            task = start(asked)
            await asyncio.sleep(caller.after)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        else:
            await asked

    async def _ask_again(self, manager: hsmcore.KeyManager) -> None:
        """For every signature that no caller has got; another key may sign what a caller has."""
        dice = random.Random(self.plan.seed)
        left = [message for message in self.messages if message not in self.answers]
        asking = []
        while left:
            way = dice.choice(ASKING)
            some = [left.pop() for _ in range(min(BATCH if way == "sign_many" else 1, len(left)))]
            asking.append(self._ask(manager, way, some, AGAIN))
        await asyncio.gather(*asking)

    # ---- judging ----

    async def _judge(self, manager: hsmcore.KeyManager, attempts: Attempts) -> None:
        """`attempts` has judged each attempt that may have led to a second key."""
        verdict = self.verdict
        made: defaultdict[bytes, set[bytes]] = defaultdict(set)
        for message, keys in self.answers.items():
            made[message] |= keys
        for key, message in self.kms.store.signed:
            if message in made:
                made[message].add(self.kms.store.keys[key].raw_public)
        for message, keys in made.items():
            verdict.fault("second key", f"{message!r} has signatures of {len(keys)} keys", len(keys) - 1)
        verdict.doings["bound"] += sum(attempts.is_bound(message) for message in self.messages)
        if self.plan.audited:
            by_digest: defaultdict[str, set[str]] = defaultdict(set)
            async for record in manager.audit.query(match={"operation": "sign"}):
                if "signature" in record:
                    verdict.records += 1
                    by_digest[record["message_sha256"]].add(record["public_key"])
            for digest, keys_ in by_digest.items():
                verdict.fault("second key", f"{digest} is in the log under two keys", len(keys_) - 1)


async def _fails(after: float) -> None:
    await asyncio.sleep(after)
    raise LookupError("another task of the group fails")


def run_chunk(seeds: Iterable[int]) -> dict[str, Any]:
    """Some schedules one after the other, in one event loop."""
    quiet()
    verdicts = []
    with (
        tempfile.TemporaryDirectory() as folder,
        pytest.MonkeyPatch.context() as patch,
        KmsServer() as kms,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        set_credentials(patch)
        modules = Modules(Path(folder), 3)
        for seed in seeds:
            place = Path(folder) / str(seed)
            place.mkdir()
            os.environ["XDG_STATE_HOME"] = str(place / "state-home")  # the keys are those of all schedules
            kms.store.signed.clear()
            verdicts.append(runner.run(judged(Schedule(plan(seed), modules, kms, place), HANGS)).as_dict())
    return added(verdicts)


def main(arguments: list[str] | None = None) -> int:
    """Run the schedules of a range of seeds."""
    asked = parse("Seeded schedules of callers that give up and ask again.", arguments)
    if asked.chunk:
        [seeds] = json.load(sys.stdin)
        json.dump(run_chunk(seeds), sys.stdout)
        return 0
    return run_seeds(asked, "tests.chaos.binding_schedules", CHUNK)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    sys.exit(main())
