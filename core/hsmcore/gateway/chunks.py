"""A batch at the key managers: its messages begin in slices, each in its turn, and are answered together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from hsmcore.errors import HsmError, RequestCancelled
from hsmcore.gateway.clients import OpenWork
from hsmcore.gateway.jobs import Job, Queue

Sign = Callable[[Sequence[bytes], float], Coroutine[Any, Any, Sequence[Any]]]


class Chunk(Job):
    """Messages of a batch, from `at`: those that wait, until they are split off, and those that begin together."""

    __slots__ = ("at", "batch")

    def __init__(self, batch: ChargedBatch, at: int, count: int, timeout: float) -> None:
        super().__init__(batch.queue, batch.account, batch.start, timeout, count)
        self.batch, self.at = batch, at
        self.counts = False
        batch.slices.append(self)

    def answer(self, outcome: Any) -> None:
        self.batch.take(self.at, self.cost, outcome)

    def split(self, count: int) -> Chunk:
        first = Chunk(self.batch, self.at, count, self.timeout)
        first.until = self.until
        self.at += count
        self.cost -= count
        return first


class ChargedBatch:
    """Messages of a client that is charged for them already."""

    def __init__(self, queue: Queue, account: OpenWork, messages: Sequence[bytes], sign: Sign) -> None:
        """`sign(messages, seconds)` has some of them signed; it returns an outcome for each, or raises HsmError."""
        self.account, self.slices = account, list[Chunk]()
        self.failed: HsmError | None = None
        """What `sign` raised, if it did each time."""
        self.queue, self._messages, self._sign = queue, messages, sign
        self._outcomes: list[Any] = [None] * len(messages)
        self._left = len(messages)
        self._begun = self._returned = False
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def signed(self, timeout: float) -> list[Any]:
        """Return an outcome for each message, an HsmError if it is not signed: its `maybe_signed` is true wherever a
        signature may exist."""
        if self._messages:
            self.queue.enter(Chunk(self, 0, len(self._messages), timeout))
            await self._answered()
        return self._outcomes

    async def _answered(self) -> None:
        try:
            await self._done
        except asyncio.CancelledError:
            for one in self.slices:
                self.queue.cancel(one)
            if not self._begun:
                raise RequestCancelled("withdrawn before its turn", maybe_signed=False) from None
            raise

    def start(self, one: Chunk, left: float) -> None:
        """Have a slice signed: for Job."""
        self._begun = True
        one.run(self._sign(self._messages[one.at : one.at + one.cost], left))

    def take(self, at: int, count: int, outcome: Any) -> None:
        """Take the outcomes of a slice, or its error."""
        if not isinstance(outcome, HsmError):
            self._returned, self.failed = True, None
        else:
            self.failed = None if self._returned else self.failed or outcome
            outcome = [outcome] * count
        self._outcomes[at : at + count] = outcome
        self._left -= count
        if not self._left and not self._done.done():
            self._done.set_result(None)
