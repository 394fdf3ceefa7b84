"""The primary of two levels fails under a steady load: requests come at their rate, however long earlier ones take."""

from __future__ import annotations

import asyncio
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter_ns
from typing import Any

import orjson

import hsmcore
from hsmcore import HsmError
from hsmcore_bench.harness.host import kill_host
from hsmcore_bench.suite.child.chaos import tell
from hsmcore_bench.suite.child.ours import configuration, signed
from hsmcore_bench.suite.child.protocol import Job, distinct_messages
from hsmcore_bench.suite.child.recovery import pause_after
from hsmcore_bench.suite.child.tasks import event_loop, loop_name
from hsmcore_bench.suite.failover import DEADLINE_SECONDS, REQUESTS_PER_SECOND

POOL = 512  # messages; the load goes round them
HEAL_SECONDS = 30.0
FLAP_SECONDS = 1.0
INTERVAL_MS = 200  # between probes: it is back soon, and fails again
NS = 1_000_000_000
REMOVED = [
    {"function": name, "every": 1, "action": "return", "ckr": "CKR_DEVICE_REMOVED"}
    for name in ("C_SignInit", "C_OpenSession")
]


@dataclass(slots=True)
class Load:
    """So many requests a second. Ed25519 has one signature per message: each that comes is compared with the one that
    was made and verified beforehand."""

    manager: hsmcore.KeyManager
    expected: Sequence[tuple[bytes, bytes]]
    ended: array[int] = field(default_factory=lambda: array("q"))  # when good signatures came, on perf_counter_ns
    latencies: array[int] = field(default_factory=lambda: array("q"))
    answers: Counter[int] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    asked: int = 0
    wrong: int = 0
    over: bool = False
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def run(self) -> None:
        """Until `over`; then until every request has an answer."""
        begun = perf_counter_ns()
        while not self.over:
            due = (perf_counter_ns() - begun) * REQUESTS_PER_SECOND // NS
            while self.asked < due:
                task = asyncio.ensure_future(self._one(self.asked))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
                self.asked += 1
            await asyncio.sleep(0.5 / REQUESTS_PER_SECOND)
        while self._tasks:
            await asyncio.wait(tuple(self._tasks))

    async def _one(self, number: int) -> None:
        message, expected = self.expected[number % len(self.expected)]
        begun = perf_counter_ns()
        try:
            signature = await self.manager.sign(message)
        except HsmError as error:
            self.errors[error.status] += 1
        else:
            now = perf_counter_ns()
            if signature == expected:
                self.ended.append(now)
                self.latencies.append(now - begun)
            else:
                self.wrong += 1
        self.answers[number] += 1


class Switching:
    """A slice of S seconds is S seconds of load, what befalls the primary, and S seconds more; or, where it comes and
    goes, S seconds of that. Afterwards the primary is brought back, which is not measured."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._runner = asyncio.Runner(loop_factory=event_loop())
        block = {
            "primaryRetryIntervalMs": INTERVAL_MS,
            "secondaryRetryIntervalMs": INTERVAL_MS,
            "failbackRampMs": INTERVAL_MS,
        }
        config = configuration(job)
        config["sequencer"]["keyManager"] |= {"requestTimeoutMs": int(DEADLINE_SECONDS * 1e3)}
        config["sequencer"]["keyManager"]["failover"] |= block
        self._manager = hsmcore.create_key_manager(config)
        self._moved: list[int] = []
        self._runner.run(self._open())

    async def _open(self) -> None:
        await self._manager.initialize()
        self._manager.on("failover", lambda _details: self._moved.append(perf_counter_ns()))
        messages = distinct_messages(POOL, self._job.message_bytes)
        self._expected = list(zip(messages, await signed(self._manager, messages), strict=True))

    def describe(self) -> Mapping[str, Any]:
        return {"loop": loop_name()}

    def run(self, seconds: float) -> Mapping[str, Any]:
        return self._runner.run(self._measured(seconds))

    async def _measured(self, seconds: float) -> dict[str, Any]:
        load = Load(self._manager, self._expected)
        running = asyncio.ensure_future(load.run())
        self._moved.clear()
        struck = 0
        try:
            if self._job.kind == "failover-flapping":
                await self._flap(seconds)
            else:
                await asyncio.sleep(seconds)
                struck = perf_counter_ns()
                await self._strike()
                await asyncio.sleep(seconds)
        finally:
            load.over = True
            await running
            await self._heal()
        again = pause_after(sorted(load.ended), struck, load.ended[-1]) if struck else None
        moved = self._moved[0] if self._moved and again and struck <= self._moved[0] else None
        return {
            **figures(load),
            "pause_seconds": None if again is None else (again - struck) / NS,
            "known_seconds": None if moved is None or again is None else max(0, again - moved) / NS,
            "moves": len(self._moved),
        }

    async def _strike(self) -> None:
        if self._job.kind == "failover-host":
            kill_host(self._manager.members()[0])
        elif self._job.kind == "failover-token":
            await self._remove()
        else:
            await self._tell({"cmd": "fault", "function": "C_Sign", "every": 1, "action": "hang", "forever": True})

    async def _remove(self) -> None:
        """The device is gone, also for a module that is initialized again."""
        self._write(faults=REMOVED)
        for fault in REMOVED:
            await self._tell({"cmd": "fault", **fault})

    async def _restore(self) -> None:
        self._write(faults=[])
        await self._tell({"cmd": "clear"})
        await self._tell({"cmd": "release"})

    def _write(self, *, faults: Sequence[Mapping[str, Any]]) -> None:
        """What the module reads when it is initialized."""
        path = Path(self._job.places[0]["args"].removeprefix("config="))
        whole = path.with_suffix(".new")
        whole.write_bytes(orjson.dumps(orjson.loads(path.read_bytes()) | {"faults": list(faults)}))
        whole.replace(path)

    async def _flap(self, seconds: float) -> None:
        end = perf_counter_ns() + int(seconds * NS)
        while perf_counter_ns() < end:
            await asyncio.sleep(FLAP_SECONDS)
            await self._remove()
            await asyncio.sleep(FLAP_SECONDS)
            await self._restore()

    async def _heal(self) -> None:
        """Bring the primary back as an operator does, without waiting for a back-off."""
        if self._job.kind != "failover-host":
            await self._restore()
        service = self._manager.snapshot().levels
        assert service is not None
        primary = service.endpoints[0]
        await service.health.readmit(primary, "mended")
        deadline = perf_counter_ns() + int(HEAL_SECONDS * NS)
        while not (service.levels.active == 0 and primary.condition == "ready"):
            if perf_counter_ns() > deadline:
                raise RuntimeError(f"the primary did not come back: {primary.condition}, {primary.reason}")
            await asyncio.sleep(0.01)

    async def _tell(self, command: Mapping[str, Any]) -> None:
        """One command to the module before the primary's token."""
        await tell(self._job.places[0]["control"], command)

    def close(self) -> None:
        try:
            self._runner.run(self._manager.close())
        finally:
            self._runner.close()


def figures(load: Load) -> dict[str, Any]:
    """What became of the requests."""
    usual = median(load.latencies) if load.latencies else 0.0
    slow = sum(took > 2 * usual for took in load.latencies)
    return {
        "asked": load.asked,
        "failed": sum(load.errors.values()),
        "errors": dict(load.errors),
        "lost": load.asked - len(load.answers),
        "wrong": load.wrong,
        "twice": sum(count - 1 for count in load.answers.values()),
        "p50_ns": usual,
        "slow_percent": 100.0 * slow / max(load.asked, 1),
    }
