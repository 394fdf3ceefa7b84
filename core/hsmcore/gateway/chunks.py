"""A batch at the key managers: its messages begin in slices, each in its turn, and are answered together."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextvars import copy_context
from typing import Any

from hsmcore.errors import HsmError, RequestCancelled
from hsmcore.gateway.admission import ClientKey
from hsmcore.gateway.jobs import Job


class Chunk(Job):
    """Messages of a batch, from `at`: those that wait, until they are split off, and those that begin together."""

    __slots__ = ("at", "batch")

    counts = False

    def __init__(self, batch: ChargedBatch, at: int, count: int, timeout: float) -> None:
        super().__init__(batch.counter.queue, batch.counter.account, batch.start, timeout, count)
        self.batch, self.at, self.context = batch, at, batch.context
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

    def __init__(self, counter: ClientKey, messages: Sequence[bytes], key_id: str | None) -> None:
        """`key_id`: None: that of the key that signs when the first slice begins."""
        self.counter, self.key_id, self.slices = counter, key_id, list[Chunk]()
        self.context = copy_context()
        """That of the request, in which each slice is signed."""
        self.failed: HsmError | None = None
        """What the key manager raised, if it did for each slice."""
        self._messages = messages
        self._outcomes: list[Any] = [None] * len(messages)
        self._left = len(messages)
        self._begun = self._returned = False
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def signed(self, timeout: float) -> list[Any]:
        """Return an outcome for each message, an HsmError if it is not signed: its `maybe_signed` is true wherever a
        signature may exist."""
        if self._messages:
            self.counter.queue.enter(Chunk(self, 0, len(self._messages), timeout))
            await self._answered()
        return self._outcomes

    async def _answered(self) -> None:
        try:
            await self._done
        except asyncio.CancelledError:
            for one in self.slices:
                self.counter.queue.cancel(one)
            self._throw_away(0, len(self._messages))
            if not self._begun:
                raise RequestCancelled("withdrawn before its turn", maybe_signed=False) from None
            raise

    def start(self, one: Chunk, left: float) -> None:
        """Have a slice signed: for Job."""
        self._begun = True
        one.run(self._sign(self._messages[one.at : one.at + one.cost], left))

    async def _sign(self, some: Sequence[bytes], left: float) -> list[bytes | HsmError]:
        manager = self.counter.manager
        self.key_id = self.key_id or await manager.get_current_key_id()
        return await manager.sign_many(some, left, return_exceptions=True, key_id=self.key_id)

    def take(self, at: int, count: int, outcome: Any) -> None:
        """Take the outcomes of a slice, or its error."""
        if not isinstance(outcome, HsmError):
            self._returned, self.failed = True, None
        else:
            self.failed = None if self._returned else self.failed or outcome
            outcome = [outcome] * count
        self._outcomes[at : at + count] = outcome
        self._left -= count
        if self._done.cancelled():
            self._throw_away(at, count)
        if not self._left and not self._done.done():
            self._done.set_result(None)

    def _throw_away(self, at: int, count: int) -> None:
        """The client gets no answer: no other key may sign what is signed."""
        for place in range(at, at + count):
            if isinstance(self._outcomes[place], bytes):
                signed: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
                signed.set_result(self._outcomes[place])
                self.counter.manager.abandon(signed, self._messages[place])
