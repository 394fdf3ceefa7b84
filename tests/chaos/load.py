"""Load on a key manager: callers that sign without a pause, and a count of lost answers."""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from collections import Counter
from typing import Any, Self

from tests.support.chaos import engine_of
from tests.support.liveness import Liveness
from tests.support.verifiers import is_good

import hsmcore


def tell(capsys: Any, text: str) -> None:
    """Show what was measured, whatever becomes of the test."""
    with capsys.disabled():
        sys.stdout.write(f"\n{text}\n")


async def signs(manager: hsmcore.KeyManager, message: bytes, timeout: float | None = None) -> None:
    """Sign with an Ed25519 key, and verify the signature independently."""
    assert is_good("ed25519", manager.public_key, message, await manager.sign(message, timeout))


async def until_it_signs(
    manager: hsmcore.KeyManager, seconds: float = 60.0, timeout: float = 1.0
) -> list[hsmcore.HsmError]:
    """Sign until that succeeds. Returns what failed until then."""
    errors: list[hsmcore.HsmError] = []
    end = time.monotonic() + seconds
    while True:
        try:
            await signs(manager, f"again {len(errors)} {end}".encode(), timeout)
        except hsmcore.HsmError as error:
            errors.append(error)
        else:
            return errors
        assert time.monotonic() < end, Counter(map(str, errors))
        await asyncio.sleep(0.005)


class Load:
    """Callers that sign one message after the other. Every answer is verified; each request has exactly one, and none
    fails without need."""

    def __init__(self, manager: hsmcore.KeyManager, callers: int = 64, timeout: float = 5.0) -> None:
        self.manager, self.callers, self.timeout = manager, callers, timeout
        self.good: list[float] = []  # when
        self.errors: list[hsmcore.HsmError] = []
        self.asked = 0
        self.liveness = Liveness()
        self._going = True
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._caller(number)) for number in range(self.callers)]
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._going = False
        await asyncio.wait_for(asyncio.gather(*self._tasks), self.timeout * 2)
        assert len(self.good) + len(self.errors) == self.asked
        engine = engine_of(self.manager)
        # Requests that admission control rejects never reach a slot.
        assert engine.completed + engine.rejected + engine.refused >= self.asked
        found = self.liveness.without_need()
        assert not found, self.liveness.describe(found)
        assert all(error.retryable for error in self.errors), Counter(map(str, self.errors))

    async def _caller(self, number: int) -> None:
        while self._going:
            message = f"caller {number} message {self.asked}".encode()
            self.asked += 1
            asked = self.liveness.ask(None, time.monotonic(), self.timeout)
            try:
                signature = await self.manager.sign(message, self.timeout)
            except hsmcore.HsmError as error:
                self.liveness.end(asked, time.monotonic(), error.status)
                self.errors.append(error)
                await asyncio.sleep(0.002)
            else:
                assert is_good("ed25519", self.manager.public_key, message, signature)
                self.good.append(time.monotonic())
                self.liveness.end(asked, self.good[-1])

    def between(self, begin: float, end: float) -> int:
        """Signatures in a stretch of time."""
        return sum(begin <= when < end for when in self.good)

    async def until_good(self, count: int, seconds: float = 10.0) -> None:
        """Wait for so many more signatures."""
        wanted, end = len(self.good) + count, time.monotonic() + seconds
        while len(self.good) < wanted:
            assert time.monotonic() < end, Counter(map(str, self.errors))
            await asyncio.sleep(0.002)

    def gap_around(self, when: float) -> float:
        """The longest time without a signature that ended after `when`."""
        later = [good for good in self.good if good > when]
        earlier = [good for good in self.good if good <= when][-1:]
        marks = earlier + later
        return max(b - a for a, b in itertools.pairwise(marks))
