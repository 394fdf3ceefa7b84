"""Something is killed while hsmcore signs as fast as it can: its host process, or all sessions of the token."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle, pairwise
from time import perf_counter_ns
from typing import Any

from hsmcore import HsmError, KeyManager
from hsmcore_bench.harness.host import host_pid, kill_host
from hsmcore_bench.suite.child.chaos import tell
from hsmcore_bench.suite.child.ours import MESSAGES_PER_CALLER, OurSigner, signed
from hsmcore_bench.suite.child.protocol import Job, distinct_messages

AFTER_AN_ERROR_SECONDS = 0.001  # until a caller tries again
STILL_COMING_NS = 25_000_000  # signatures that were ready when it happened come within this time
KILL_ALL = "kill-all-sessions"
KILL_ALL_SESSIONS = {"cmd": "fault", "function": "C_SignInit", "nth": 1, "action": KILL_ALL}


@dataclass(slots=True)
class Load:
    """So many callers, each signing one message after the other. Ed25519 has one signature per message: each that comes
    is compared with the one that was made and verified beforehand."""

    manager: KeyManager
    expected: Mapping[bytes, bytes]
    ended: array[int] = field(default_factory=lambda: array("q"))  # when good signatures came, on perf_counter_ns
    failed: int = 0
    wrong: int = 0
    over: bool = False

    def unexpected(self, _message: bytes, _signature: bytes) -> bool:
        """Whether a signature may be right that differs from the one before."""
        return False

    async def caller(self, own: Sequence[bytes]) -> None:
        record, clock = self.ended.append, perf_counter_ns
        for message in cycle(own):
            try:
                signature = await self.manager.sign(message)
            except HsmError:
                self.failed += 1
                await asyncio.sleep(AFTER_AN_ERROR_SECONDS)
            else:
                if signature == self.expected[message] or self.unexpected(message, signature):
                    record(clock())
                else:
                    self.wrong += 1
            if self.over:
                return


class Recovering(OurSigner):
    """A slice of S seconds is S seconds of signing, the kill, and S seconds more."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        pool = distinct_messages(job.in_flight * MESSAGES_PER_CALLER, job.message_bytes)
        self._own = [pool[i :: job.in_flight] for i in range(job.in_flight)]
        self._expected: Mapping[bytes, bytes] = self._runner.run(self._sign_all(pool))

    async def _sign_all(self, messages: Sequence[bytes]) -> dict[bytes, bytes]:
        signatures = await signed(self._manager, messages, verified=self._job.token != "noop")
        return dict(zip(messages, signatures, strict=True))

    def run(self, seconds: float) -> Mapping[str, Any]:
        return self._runner.run(self._interrupted(seconds))

    async def _interrupted(self, seconds: float) -> dict[str, Any]:
        load = Load(self._manager, self._expected)
        callers = asyncio.gather(*(load.caller(own) for own in self._own))
        try:
            await asyncio.sleep(seconds)
            if self._job.kind == "recovery-host":
                killed = perf_counter_ns()
                before = kill_host(self._manager.members()[0])
                await asyncio.sleep(seconds)
                if host_pid(self._manager.members()[0]) == before:
                    raise RuntimeError("the host process that was killed is still there")
            else:
                struck = await self._struck()
                killed = perf_counter_ns()
                await tell(self._control, KILL_ALL_SESSIONS)
                await asyncio.sleep(seconds)
                if await self._struck() != struck + 1:
                    raise RuntimeError("no session was killed")
        finally:
            load.over = True
            await callers
        return {**figures(load.ended, killed, seconds), "failed": load.failed, "wrong": load.wrong}

    @property
    def _control(self) -> str:
        if self._job.control is None:
            raise RuntimeError("the job names no control socket")
        return self._job.control

    async def _struck(self) -> int:
        return int((await tell(self._control, {"cmd": "stats"}))["faults"].get(KILL_ALL, 0))


def pause_after(ended: Sequence[int], struck: int, end: int) -> int:
    """When the longest pause is over that begins soon after something happened: signatures that were ready then still
    come, so service is not back with the next good one. `ended` ascends."""
    after = [at for at in ended if struck <= at < end]
    pauses = [(later - earlier, later) for earlier, later in pairwise((struck, *after, end))]
    return max(pause for pause in pauses if pause[1] - pause[0] <= struck + STILL_COMING_NS)[1]


def figures(ended: Iterable[int], killed: int, seconds: float) -> dict[str, float]:
    """What the times of the good signatures say about `seconds` before and after the kill."""
    length = int(seconds * 1e9)
    window = sorted(ended)
    before = sum(killed - length <= at < killed for at in window)
    after = [at for at in window if killed <= at < killed + length]
    again = pause_after(window, killed, killed + length)
    return {
        "again_seconds": (again - killed) / 1e9,
        "rate_before": before / seconds,
        "rate_after": len(after) / seconds,
    }
