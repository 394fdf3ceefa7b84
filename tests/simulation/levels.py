"""A host over a week: a real KeyManager with rotation, its restarts, its clocks, and the chain that obeys its key."""

from __future__ import annotations

import asyncio
import fcntl
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, ClassVar, Final

from tests.simulation import requests, threads
from tests.simulation.chance import Chance
from tests.simulation.clock import SECOND, Clock
from tests.simulation.control import name_of
from tests.simulation.device import Device, Key
from tests.simulation.law import Answer, broken
from tests.simulation.law_levels import AT_ONCE, LAST_CALL, WEEK_RULES, WeekFacts, asked_in_peace, destroyed_in_time
from tests.simulation.levels_script import HOUR, LASTS_NS, ChainFault, Moment, Week
from tests.simulation.loop import Loop, Stuck
from tests.simulation.script import Intent, Try
from tests.simulation.world import Broke, Outcome, Watched, World, config_of, prepare

from hsmcore.errors import HsmError
from hsmcore.failover import health
from hsmcore.manager import background
from hsmcore.manager.key_manager import KeyManager
from hsmcore.manager.rotation import service
from hsmcore.manager.rotation.service import RotationService
from hsmcore.manager.rotation.steps import handover
from hsmcore.state import database

_ASK_NS: Final = 40 * SECOND
"""The host asks the chain not as often as it does for its users: a week is long."""
_MOST_AWAITS: Final = 100
_PAUSES: Final = (1, 5, 30, 60)
"""Seconds after which a process that could not start is started again, as a supervisor does it."""


class Killed(Exception):
    """The process has ended here. Raised between two callbacks of the loop."""


class Chain:
    """What obeys a key, and the application's handover to it. It lives on while the host is killed."""

    def __init__(self, world: LevelsWorld) -> None:
        self.world = world
        self.faults: list[ChainFault] = []
        self.pending = 0
        """Transactions that may still be executed."""
        self.asks: list[int] = []
        """When it was asked, within a second."""

    def _trouble(self) -> str:
        now = self.world.clock.ns
        return next((one.kind for one in self.faults if one.at_ns <= now < one.at_ns + one.lasts_ns), "")

    async def _obey(self, key: Any) -> None:
        rng = self.world.chance.time
        await asyncio.sleep(rng.random() * 0.2)
        trouble = self._trouble()
        if trouble == "refuses":
            raise HsmError("the chain refuses")
        if trouble == "late":
            self.pending += 1
            self.world.loop.happens(rng.randrange(20 * SECOND), lambda: self._late(key.public_key))
            raise HsmError("the transaction was not finalized in time")
        self._execute(key.public_key)
        await asyncio.sleep(rng.random() * 0.1)
        if trouble == "loses":
            raise HsmError("the chain's answer was lost")

    def _late(self, key: bytes) -> None:
        self.pending -= 1
        if self.world.chance.time.random() < 0.7:
            self._execute(key)

    def _execute(self, key: bytes) -> None:
        self.world.tell("chain", f"obeys {name_of(key)}")
        self.world.facts.published.append((self.world.clock.ns, key))
        self.world.look_at_obeyed()

    async def handover(self, _old: Any, new: Any, _manager: Any) -> None:
        await self._obey(new)

    async def revert(self, old: Any, _new: Any, _manager: Any) -> None:
        await self._obey(old)

    async def settled(self, old: Any, new: Any) -> str:
        now = self.world.clock.ns
        self.asks = [*(at for at in self.asks if at > now - SECOND), now]
        for what in asked_in_peace(self.asks):
            self.world.breaks(f"asked_in_peace: {what}")
        await asyncio.sleep(self.world.chance.time.random() * 0.05)
        if self._trouble() == "silent" or self.pending:
            return "unknown"
        return {old.public_key: "old", new.public_key: "new"}.get(self.world.facts.obeyed, "unknown")


class LevelsWorld(World):
    """Runs a script once."""

    RULES: ClassVar = WEEK_RULES
    AT_ONCE: ClassVar = AT_ONCE
    FACTS: ClassVar[type[WeekFacts]] = WeekFacts
    LOOK_S: ClassVar = 4.0
    """Seconds between two looks at the store for orders, at its seal and at the key ring, where nothing is due: no
    other process changes them here."""
    script: Any
    facts: Any

    def __init__(self, script: Week) -> None:
        self.script = script
        self.chance = Chance(script.seed)
        self.clock = Clock()
        self.clock.wall_ahead += script.starts_ns
        self.loop = Loop(self.chance, self.clock)
        self.ledger = Watched(self)
        self.begin_ns = self.clock.ns
        self.outcome = Outcome()
        self.devices = {
            one.name: Device(one.name, [Key.of(one.key)], one.usual_ns, self.chance, self.clock, self.ledger)
            for one in script.members
        }
        keys = {one.key: self.devices[one.name].keys[0].public_key for one in script.members}
        self.facts = self.FACTS(script, self.ledger, keys)
        self.facts.published.append((self.clock.ns, keys["first"]))
        self.chain = Chain(self)
        self.manager: KeyManager | None = None
        self.at = 0
        """Of the next moment."""
        self.under_way: dict[int, tuple[Any, int, list[bytes]]] = {}
        """What callers want: the intent, the number of the next call, its messages."""
        self.asked: list[asyncio.Task[None]] = []
        self.points: int | None = None
        """Points of rotations until the process is killed."""
        self.dead: list[Any] = []
        """The databases of processes that were killed."""
        self.locks: dict[int, tuple[int, int]] = {}
        for device in self.devices.values():
            device.tell, device.touched = self.tell, self.facts.touched
            device.destroyed = self._destroyed

    def run(self) -> Outcome:
        prepare(self.chance, self.ledger, self.devices)
        with self._running(), self._hooks():
            self._announce()
            try:
                while not self._live():
                    self._after_kill()
            except Broke:
                pass
            except (Stuck, HsmError) as error:
                self.outcome.broken.append(f"alive: {type(error).__name__}: {error.args[0]}")
            else:
                self._count_what_is_left()
            for one in self.dead:
                one.disconnect()
        if not self.outcome.broken:
            self.outcome.broken = broken(self.facts, self.RULES)
        return self.outcome

    @contextmanager
    def _hooks(self) -> Iterator[None]:
        flock, trace = fcntl.flock, RotationService.trace

        def locked(descriptor: int, operation: int) -> None:
            flock(descriptor, operation)
            found = os.fstat(descriptor)
            self.locks[descriptor] = found.st_dev, found.st_ino

        fcntl.flock, RotationService.trace = locked, staticmethod(self._traced)
        often = health.FOLLOW_S, background._LOOK_SECONDS, service.LOOK_SECONDS, handover.ASK_AGAIN_NS
        health.FOLLOW_S = background._LOOK_SECONDS = service.LOOK_SECONDS = self.LOOK_S
        handover.ASK_AGAIN_NS = _ASK_NS
        try:
            with warnings.catch_warnings():  # what a killed process was about to begin
                warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
                yield
        finally:
            fcntl.flock, RotationService.trace = flock, trace
            health.FOLLOW_S, background._LOOK_SECONDS, service.LOOK_SECONDS, handover.ASK_AGAIN_NS = often

    def _announce(self) -> None:
        for fault in self.script.faults:
            self._strike(replace(fault, at_ns=self.begin_ns + fault.at_ns))
        for one in self.script.troubles:
            fault = replace(one, at_ns=self.begin_ns + one.at_ns)
            self.chain.faults.append(fault)
            self.loop.happens(fault.at_ns - self.clock.ns, lambda fault=fault: self.tell("chain", fault.kind))

    def _destroyed(self, key: Key) -> None:
        for what in destroyed_in_time(self.facts, key.public_key, self.clock.ns):
            self.breaks(f"destroyed_in_time: {what}")
        self.look_at_obeyed()

    def look_at_obeyed(self) -> None:
        """Judge what the devices hold."""
        key = self.facts.obeyed
        if not any(one.public_key == key for device in self.devices.values() for one in device.keys):
            self.breaks("destroyed_in_time: no device has the key that the chain obeys any more")

    # ---- lives -----------------------------------------------------------------------------------------------------

    def _live(self) -> bool:
        """Let a process live. Returns whether the week is over; False: it was killed."""
        try:
            self.loop.run_until_complete(self._life())
        except Killed:
            return False
        return True

    def _kill(self) -> None:
        raise Killed

    def _traced(self, point: str) -> None:
        self.tell("rotation", point)
        if self.points is not None:
            self.points -= 1
            if self.points < 0:
                self.points = None
                self.loop.happens(0, self._kill)

    def _after_kill(self) -> None:
        """Leave of the process what `kill -9` leaves: the files as they were last committed, what devices and the chain
        have begun, and no lock."""
        self.tell("host", "IS KILLED")
        self.facts.kills.append(self.clock.ns)
        old = self.loop
        self.loop = threads.worlds[0] = Loop(self.chance, self.clock)
        self.loop._world, old._world = old._world, []
        self.loop._count = old._count
        for one in requests.made:
            one.loop, one.open, one.stopped = None, False, True
            one.done.clear()
            if hasattr(one, "ring"):
                one.ring.clear()
        requests.made.clear()
        self.dead += database._DATABASES.values()
        database._DATABASES.clear()
        cut = [one for one in self.facts.answers if not one.ends]
        _drop(old)
        for one in cut:
            one.ends, one.ended_ns, one.result, one.cut = 1, self.clock.ns, None, True
        for descriptor, known in self.locks.items():
            with suppress(OSError):
                found = os.fstat(descriptor)
                if (found.st_dev, found.st_ino) == known:
                    os.close(descriptor)
        self.locks.clear()
        self.facts.left["errors that no one took"] = self.facts.left.get("errors that no one took", 0) + len(
            old.failures
        )
        self.manager, self.points = None, None
        self._away(self.script.moments[self.at - 1])

    def _away(self, moment: Moment) -> None:
        """No process runs for a while."""
        self.loop.pass_until(self.clock.ns + moment.down_ns)
        self._step(moment)
        self._edit(moment)
        if moment.boots:
            self.clock.boots += 1
            self.facts.boots.append((self.clock.ns, moment.down_ns))
            self.clock.booted_ns = self.clock.ns - SECOND
            self.tell("host", "has booted")

    def _step(self, moment: Moment) -> None:
        if moment.step_ns:
            self.clock.wall_ahead += moment.step_ns
            self.facts.steps.append((self.clock.ns, moment.step_ns))
            self.tell("host", f"THE CLOCK IS SET by {moment.step_ns / 3600 / SECOND:.0f} h")

    def _edit(self, moment: Moment) -> None:
        if moment.edit:
            limits = {**self.script.failover["emergencyModeRestrictions"], "maxTransactions": moment.edit["limit"]}
            failover = {**self.script.failover, "emergencyModeRestrictions": limits}
            members = tuple(one for one in self.facts.script.members if one.name != moment.edit["leave"])
            failover.pop("acceptOtherKeys", None)
            if len({one.key for one in members}) > 1:
                failover["acceptOtherKeys"] = ["secondary"]
            self.script = replace(self.script, rotation=moment.edit["rotation"], failover=failover, members=members)
            self.facts.left_out.append(moment.edit["leave"])
            self.tell("host", f"is configured otherwise: {moment.edit}")

    async def _life(self) -> None:
        begun = set(self.under_way)
        await self._start()
        self.asked = [asyncio.ensure_future(self._go_on(number)) for number in sorted(begun)]
        while self.at < len(self.script.moments):
            moment = self.script.moments[self.at]
            self._jump(self.begin_ns + moment.at_ns)
            self.at += 1
            await self._moment(moment)
        await self._settle()

    def _jump(self, to: int) -> None:
        """Nothing is asked of the host for a while, and its loop stands still: devices and threads end what they do."""
        if to > self.clock.ns:
            self.facts.stalls.append((self.clock.ns, to))
            self.loop.pass_until(to)

    async def _moment(self, moment: Moment) -> None:
        if moment.end == "on":
            self._step(moment)
        elif moment.end == "kill" and moment.kill_point is not None:
            self.points = moment.kill_point
        elif moment.end == "kill":
            self.loop.happens(moment.kill_ns, self._kill)
        for intent in moment.intents:
            self.under_way[intent.number] = intent, 0, list(intent.messages)
        self.asked += [asyncio.ensure_future(self._go_on(one.number, one.at_ns)) for one in moment.intents]
        if moment.rotates_ns is not None:
            self.asked.append(asyncio.ensure_future(self._rotate(moment.rotates_ns)))
        await asyncio.sleep(LASTS_NS / SECOND)
        if moment.end == "kill":
            self.loop.happens(0, self._kill)  # no rotation has come so far
            await asyncio.sleep(1)
        if moment.end == "close":
            await self._close()
            self._away(moment)
            await self._start()
        else:
            await self._callers()

    async def _callers(self) -> None:
        if self.asked:
            await asyncio.gather(*self.asked)
            self.asked = []

    async def _start(self) -> None:
        for number in range(1000):
            manager = KeyManager(self._config())
            manager.on_rotation(self.chain)
            self.tell("host", "starts")
            limits = self.script.failover["emergencyModeRestrictions"]
            self.facts.limits.append((self.clock.ns, limits["maxTransactions"]))
            self.facts.rules.append(self.script.rotation)
            manager.on("key-changed", self._changed)
            try:
                await manager.initialize()
            except HsmError as error:
                self.tell("host", f"has not started: {type(error).__name__}: {str(error.args[0])[:150]}")
                if self.clock.ns > self._calm_ns:
                    raise
                await asyncio.sleep(_PAUSES[min(number, len(_PAUSES) - 1)])
            else:
                self._signs_with(manager._path.signing()[0].public_key)
                self.manager = manager
                return
        raise Stuck("the host never starts")

    async def _attend(self) -> None:
        """Have an operator look at what waits."""

    def _config(self) -> Any:
        return config_of(self.script)

    def _changed(self, details: Any) -> None:
        key = next(
            one.public_key
            for device in self.devices.values()
            for one in device.keys
            if one.id.hex() == details["key_id"]
        )
        self._signs_with(key)

    def _signs_with(self, key: bytes) -> None:
        known = self.facts.current
        if not known or key != max(known, key=known.__getitem__):  # else a process has begun, or a level is back
            known[key] = self.clock.ns
        self.tell("host", f"signs with {name_of(key)}")

    async def _close(self) -> None:
        manager, self.manager = self.manager, None
        assert manager is not None
        self.tell("host", "closes")
        await manager.close()
        self.tell("host", "is closed")

    @property
    def _calm_ns(self) -> int:
        """When the last fault is over."""
        ends = [one.at_ns + one.lasts_ns for one in (*self.facts.faults, *self.chain.faults)]
        return max([*ends, self.begin_ns])

    async def _settle(self) -> None:
        """All faults are over: what was begun comes to its end."""
        await self._callers()
        self._jump(self._calm_ns + 1)
        off = sum(by for _, by in self.facts.steps)
        if off:
            self._step(Moment(0, step_ns=-off))
        await asyncio.sleep(2)
        for hours in (25, 7):  # the clock is believed again; a rotation that has failed is tried again
            self._jump(self.clock.ns + hours * HOUR)
            await asyncio.sleep(4)
            await self._attend()
        await self._ask_the_ring()
        intent = Intent(LAST_CALL, 0, (b"week last",), (Try("receipt", 2.0),), 0)
        self.under_way[LAST_CALL] = intent, 0, list(intent.messages)
        await self._go_on(LAST_CALL)
        await self._close()

    async def _ask_the_ring(self) -> None:
        assert self.manager is not None
        rotation = self.manager._background.rotation
        assert rotation is not None
        for one in await rotation.rotations.open():
            if one.run.status != "overlap" or one.run.tries:
                self.facts.open.append(f"{one.id} is {one.run.status} at {one.run.step}: {one.error}")
        current = await rotation.keys.current()
        assert current is not None
        self.facts.due_ns = self.clock.wall - rotation.schedule.due_ns(current.counts_from_ns) - 10 * SECOND

    async def _rotate(self, after_ns: int) -> None:
        """An operator asks for a rotation, and is told of its end."""
        await asyncio.sleep(after_ns / SECOND)
        manager = self.manager
        if manager is None:
            return
        self.tell("operator", "asks for a rotation")
        try:
            made = await manager.rotate_key("asked for")
        except HsmError as error:
            self.tell("operator", f"{type(error).__name__}: {str(error.args[0])[:100]}")
        else:
            self.tell("operator", "has the new key")
            if made not in [one.id for one in manager._path.signing()]:
                self.breaks("taken_up: rotate_key has returned, and another key signs")

    # ---- callers ---------------------------------------------------------------------------------------------------

    async def _go_on(self, number: int, after_ns: int = 0) -> None:
        await asyncio.sleep(after_ns / SECOND)
        intent, at, wanted = self.under_way[number]
        while at < len(intent.tries) and wanted:
            while self.manager is None:  # noqa: ASYNC110  # as an application may do it
                await asyncio.sleep(0.5)
            attempt = intent.tries[at]
            now, limit = self.clock.ns, int(attempt.timeout * SECOND)
            answers = [Answer(number, at, one, now, limit, attempt.any_key, intent.shared) for one in wanted]
            self.under_way[number] = intent, at + 1, wanted
            self.facts.answers += answers
            self.facts.calls.setdefault(number, []).extend(answers)
            wanted = await self._try(self.manager, f"call {number}.{at}", attempt, wanted, answers)
            at += 1
            self.under_way[number] = intent, at, wanted
            await asyncio.sleep(intent.pause_ns / SECOND)
        del self.under_way[number]


def _drop(loop: Loop) -> None:
    """End the tasks of a process that was killed: what they would do at their end reaches nothing any more."""
    for task in sorted(asyncio.all_tasks(loop), key=hash):
        task._log_destroy_pending = False
        end(task.get_coro())
    loop._ready.clear()
    loop._scheduled.clear()
    loop.close()


def end(coroutine: Any) -> None:
    """End a coroutine that nothing will run any more, however it cleans up: that must not happen later."""
    for _ in range(_MOST_AWAITS):
        with suppress(Exception):
            coroutine.close()
        if coroutine.cr_frame is None:
            return  # else it awaits something at its end
