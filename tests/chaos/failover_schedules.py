"""Seeded random schedules over levels of members: outages, hangs, lies, killed hosts, drains, forced levels.

    python -m tests.chaos.failover_schedules --seeds 0-999 --jobs 2

Each schedule opens a key manager with two primary members, one or two secondary ones and, mostly, an emergency key;
keeps it under load while things go wrong; then takes all faults away and waits until the primary level signs again.
Every answer is verified, every transition is compared with a reference model, every attempt is watched for a second
key. The summary is JSON on standard output; the exit code is 1 if anything was lost, wrong, over budget or left.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop
from tests.chaos.failover_load import CALLERS, Asking, Verdict
from tests.chaos.failover_site import Modules, watching
from tests.chaos.schedules import LADDER_CKRS, LIES, LOSSES, SIGN_CKRS
from tests.support.chaos import send_signal
from tests.support.seeds import added, judged, parse, quiet, run_seeds

import hsmcore
from hsmcore.failover.levels import EMERGENCY
from hsmcore.members import Pkcs11Member

CHUNK = 6
"""Schedules that one process takes at a time."""
HANGS, HEALS = 40.0, 15.0
"""A schedule, and its healing, that take longer hang."""
MEMBERS = 4
DOWN = ["C_SignInit", "C_OpenSession"]
# Weights: what happens to members, and what people do.
DOINGS = {"down": 6, "up": 6, "hang": 3, "lie": 2, "stumble": 3, "crash": 2, "drain": 2, "resume": 2, "force": 2,
          "release": 2, "forbid": 1, "permit": 2, "readmit": 1}  # fmt: skip


@dataclass(frozen=True)
class Doing:
    """Something that happens `at` seconds after the load began."""

    at: float
    what: str
    member: int
    details: Any = None


@dataclass(frozen=True)
class Plan:
    """What a seed stands for."""

    seed: int
    mode: str
    members: int
    other_key: bool
    emergency: bool
    budget: int
    hedging: bool
    audited: bool
    isolated: frozenset[int]
    timeout: float
    ramp_ms: int
    stumbles: float
    seconds: float
    doings: tuple[Doing, ...]


def plan(seed: int) -> Plan:
    """The schedule of a seed."""
    dice = random.Random(seed)
    members = dice.choice([3, 4])
    seconds = dice.choice([0.3, 0.5, 0.8])
    isolated = frozenset({dice.randrange(members)}) if dice.random() < 0.25 else frozenset()
    doings = []
    for at in sorted(dice.uniform(0.0, seconds) for _ in range(dice.randint(3, 10))):
        what = dice.choices(list(DOINGS), list(DOINGS.values()))[0]
        details: Any = None
        if what == "hang":
            details = {"milliseconds": dice.choice([50, 200, 600]), "every": 1, "count": dice.randint(1, 4)}
        elif what == "lie":
            details = {"action": dice.choice(LIES), "every": dice.randint(1, 3), "count": dice.randint(1, 5)}
        elif what == "stumble":
            details = {"ckr": dice.choice(SIGN_CKRS), "every": 1, "count": dice.randint(1, 12)}
        elif what == "force":
            details = dice.choice(["primary", "secondary"])
        doings.append(Doing(at, what, dice.randrange(members), details))
    if dice.random() < 0.4:  # everything goes at once, else the emergency level is rarely seen
        at = dice.uniform(0.0, seconds / 2)
        doings += [Doing(at, "down", number) for number in range(members)]
    return Plan(
        seed=seed,
        mode="literal" if dice.random() < 0.15 else "smart",
        members=members,
        other_key=dice.random() < 0.25,
        emergency=dice.random() < 0.7,
        budget=dice.choice([5, 20, 60, 1000]),
        hedging=dice.random() < 0.15,
        audited=dice.random() < 0.3,
        isolated=isolated,
        timeout=dice.choice([0.15, 0.3, 0.6, 1.0]),
        ramp_ms=dice.choice([0, 50, 300]),
        stumbles=dice.choice([0.0, 0.0, 0.005, 0.02]),
        seconds=seconds,
        doings=tuple(sorted(doings, key=lambda doing: doing.at)),
    )


class Schedule:
    """One plan, run."""

    def __init__(self, plan_: Plan, modules: Modules, folder: Path) -> None:
        self.plan, self.modules, self.folder = plan_, modules, folder
        self.verdict = Verdict(f"seed {plan_.seed} ({plan_.mode})")

    def config(self) -> dict[str, Any]:
        """Two primary members, the others are secondary."""
        asked = self.plan
        providers = [
            self.modules.provider(
                number,
                key="other" if asked.other_key and number >= 2 else None,
                isolation="process" if number in asked.isolated else "thread",
            )
            for number in range(asked.members)
        ]
        block = {
            "mode": asked.mode,
            "primary": providers[1:2],
            "secondary": providers[2:],
            "primaryRetryIntervalMs": 20,
            "secondaryRetryIntervalMs": 20,
            "maxPrimaryRetries": 2,
            "maxSecondaryRetries": 2,
            "failbackRampMs": asked.ramp_ms,
            "hedging": asked.hedging,
            "acceptOtherKeys": ["secondary"] if asked.other_key else [],
            "emergencyModeEnabled": asked.emergency,
            "emergencyModeRestrictions": {"maxTransactions": asked.budget, "maxTimeSeconds": 3600},
        }
        rules = {"maxCacheSize": 0, "queueSize": 256, "maxMessageBytes": 256}
        if asked.audited:
            rules["auditLogFile"] = str(self.folder / "audit.log")
        manager = {**providers[0], "stateFile": str(self.folder / "state.db"), "failover": block, **rules}
        return {"sequencer": {"keyManager": manager}}

    def faults(self, number: int, *, down: bool = False) -> list[dict[str, Any]]:
        """The faults of a member: an outage, and faults with a probability."""
        faults: list[dict[str, Any]] = []
        if down:
            faults += [{"function": name, "every": 1, "action": "return", "ckr": "CKR_DEVICE_REMOVED"} for name in DOWN]
        if self.plan.stumbles:
            dice = random.Random(self.plan.seed * MEMBERS + number)
            actions: list[dict[str, Any]] = [{"action": name} for name in dice.sample([*LOSSES, *LIES], 3)]
            actions.append({"action": "return", "ckr": dice.choice(LADDER_CKRS)})
            faults += [{"function": "C_Sign", "probability": self.plan.stumbles, **action} for action in actions]
        return faults

    async def _suffer(self, number: int, *, down: bool = False) -> None:
        """From now on, also for a module that is initialized again."""
        faults = self.faults(number, down=down)
        self.modules.members[number].write(faults=faults)
        for fault in faults:
            await self._tell(number, "fault", **fault)

    async def run(self) -> None:
        """From opening to closing."""
        asked, verdict = self.plan, self.verdict
        for number in range(asked.members):
            self.modules.members[number].write()
        with watching(verdict.fault) as (made, attempts):
            manager = hsmcore.create_key_manager(self.config())
            await manager.initialize()
            try:
                keys = {endpoint.key for endpoint in manager._path.endpoints if endpoint.key}
                asking = Asking(manager, asked, verdict, attempts, keys)
                for number in range(asked.members):
                    await self._suffer(number)
                load = [asyncio.ensure_future(asking.caller(number)) for number in range(CALLERS)]
                await self._do_all(manager)
                asking.over = True
                await asyncio.gather(*load)
                await self._heal(manager)
                await asking.judge()
            finally:
                await manager.close()
            [levels] = made
            verdict.levels.update(levels.used)
            verdict.transitions += len(levels.moves)
            verdict.attempts += attempts.count

    # ---- what goes wrong ----

    async def _do_all(self, manager: hsmcore.KeyManager) -> None:
        begun = time.monotonic()
        for doing in self.plan.doings:
            await asyncio.sleep(begun + doing.at - time.monotonic())
            await getattr(self, f"_{doing.what}")(manager, doing.member, doing.details)
            self.verdict.doings[doing.what] += 1
        await asyncio.sleep(begun + self.plan.seconds - time.monotonic())

    async def _tell(self, number: int, cmd: str, **fields: Any) -> None:
        try:
            await asyncio.to_thread(self.modules.members[number].ask, cmd, 0.5, **fields)
        except TimeoutError:
            pass
        except AssertionError as error:
            if "does not answer" not in str(error):  # not initialized just now; the next time it reads its file
                raise

    async def _down(self, _manager: hsmcore.KeyManager, number: int, _details: Any) -> None:
        await self._suffer(number, down=True)

    async def _up(self, _manager: hsmcore.KeyManager, number: int, _details: Any) -> None:
        await self._tell(number, "clear")
        await self._tell(number, "release")
        await self._suffer(number)

    async def _hang(self, _manager: hsmcore.KeyManager, number: int, details: Any) -> None:
        await self._tell(number, "fault", function="C_Sign", action="hang", **details)

    async def _lie(self, _manager: hsmcore.KeyManager, number: int, details: Any) -> None:
        await self._tell(number, "fault", function="C_Sign", **details)

    async def _stumble(self, _manager: hsmcore.KeyManager, number: int, details: Any) -> None:
        await self._tell(number, "fault", function="C_SignInit", action="return", **details)

    async def _crash(self, manager: hsmcore.KeyManager, number: int, _details: Any) -> None:
        for isolated in self.plan.isolated:
            member = manager._path.endpoints[isolated].member
            if isinstance(member, Pkcs11Member) and member.engine.host_pid:
                send_signal(member.engine.host_pid, 9)

    # ---- what people do ----

    async def _wish(self, manager: hsmcore.KeyManager, name: str, value: str | None) -> None:
        monitor = manager._path.health
        await monitor._desired.set(name, value, "a schedule")
        await monitor._follow()

    async def _drain(self, manager: hsmcore.KeyManager, number: int, _details: Any) -> None:
        await self._wish(manager, f"drain:{manager._path.endpoints[number].name}", "yes")

    async def _resume(self, manager: hsmcore.KeyManager, number: int, _details: Any) -> None:
        await self._wish(manager, f"drain:{manager._path.endpoints[number].name}", None)

    async def _force(self, manager: hsmcore.KeyManager, _number: int, level: Any) -> None:
        await self._wish(manager, "force", level)

    async def _release(self, manager: hsmcore.KeyManager, _number: int, _details: Any) -> None:
        await self._wish(manager, "force", None)

    async def _forbid(self, manager: hsmcore.KeyManager, _number: int, _details: Any) -> None:
        await self._wish(manager, "emergency", "disabled")

    async def _permit(self, manager: hsmcore.KeyManager, _number: int, _details: Any) -> None:
        await self._wish(manager, "emergency", None)

    async def _readmit(self, manager: hsmcore.KeyManager, number: int, _details: Any) -> None:
        await self._wish(manager, f"readmit:{manager._path.endpoints[number].name}", str(time.monotonic_ns()))

    # ---- afterwards ----

    async def _heal(self, manager: hsmcore.KeyManager) -> None:
        """Without faults and wishes the primary level signs again, with every member, and no emergency key is left."""
        service = manager._path
        begun = time.monotonic()
        for number in range(self.plan.members):
            self.modules.members[number].write()
            await self._tell(number, "clear")
            await self._tell(number, "release")
            await self._resume(manager, number, None)
        await self._release(manager, 0, None)
        while True:
            for number, endpoint in enumerate(service.endpoints):
                if endpoint.fenced:
                    await self._readmit(manager, number, None)
            waiting = [f"{endpoint.name} {endpoint.condition} {endpoint.reason}" for endpoint in service.endpoints
                       if endpoint.level_name != EMERGENCY and endpoint.condition != "ready"]  # fmt: skip
            waiting += [f"{endpoint.name} still has a key" for endpoint in service.endpoints
                        if endpoint.level_name == EMERGENCY and endpoint.member is not None]  # fmt: skip
            if not waiting and service.levels.active == 0:
                break
            if time.monotonic() - begun > HEALS:
                self.verdict.fault("not healed", f"level {service.levels.active}; {'; '.join(waiting)}")
                break
            await asyncio.sleep(0.01)
        self.verdict.healed = max(self.verdict.healed, time.monotonic() - begun)
        for number in range(CALLERS):
            receipt = await manager.sign_with_receipt(f"hsmcore healed {number}".encode(), 5.0)
            if receipt.level != "primary":
                self.verdict.fault("not healed", f"{receipt.level} signs")


def run_chunk(seeds: Iterable[int]) -> dict[str, Any]:
    """Some schedules one after the other, in one event loop."""
    quiet()
    verdicts = []
    with tempfile.TemporaryDirectory() as folder, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        modules = Modules(Path(folder), MEMBERS)
        for seed in seeds:
            place = Path(folder) / str(seed)
            place.mkdir()
            os.environ["XDG_STATE_HOME"] = str(place / "state-home")  # the keys are those of all schedules
            verdicts.append(runner.run(judged(Schedule(plan(seed), modules, place), HANGS)).as_dict())
    return added(verdicts)


def main(arguments: list[str] | None = None) -> int:
    """Run the schedules of a range of seeds."""
    asked = parse("Seeded random schedules over levels of members.", arguments)
    if asked.chunk:
        [seeds] = json.load(sys.stdin)
        json.dump(run_chunk(seeds), sys.stdout)
        return 0
    return run_seeds(asked, "tests.chaos.failover_schedules", CHUNK)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    sys.exit(main())
