"""The requests of an OffloadEngine, and the checks of arguments: the native Engine's rules, in Python."""

from __future__ import annotations

import asyncio
import copy
from typing import Any

from hsmcore._native import freeze
from hsmcore.errors import EmptyMessage, HsmError, error_of

NS = 1_000_000_000


def checked_message(message: object, most: int, limit: str, member: str) -> bytes:
    """Return the message as bytes. `limit` names the limit `most` (bytes). Raises InvalidMessage, MessageTooLarge."""
    data = freeze(message)
    if not data:
        raise EmptyMessage("a message must have at least one byte", member=member)
    if len(data) > most:
        raise error_of("MESSAGE_TOO_LARGE", detail=f"{len(data)} bytes; {limit} is {most}", member=member)
    return data


class Waiter:
    """The receiver of one answer: the future of a `submit`."""

    __slots__ = ("deadline", "future", "request")

    def __init__(self, future: asyncio.Future[Any], deadline: int) -> None:
        self.future = future
        self.deadline = deadline
        self.request: Request | None = None

    @property
    def answered(self) -> bool:
        """Whether any request of the same batch has an answer."""
        return False

    @property
    def gone(self) -> bool:
        """Whether the caller has given up or has its answer."""
        return self.future.done()

    def answer(self, signature: bytes) -> None:
        if not self.future.done():
            self.future.set_result(signature)

    def refuse(self, error: HsmError) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class Batch:
    """The answers of one `submit_many`, as they arrive."""

    __slots__ = ("future", "remaining", "results", "return_exceptions")

    def __init__(self, future: asyncio.Future[list[Any]], count: int, return_exceptions: bool) -> None:
        self.future = future
        self.results: list[Any] = [None] * count
        self.remaining = count
        self.return_exceptions = return_exceptions

    def put(self, position: int, result: bytes | HsmError) -> None:
        self.results[position] = result
        self.remaining -= 1
        if self.remaining == 0 and not self.future.done():
            self.future.set_result(self.results)

    def fail(self, position: int, error: HsmError) -> None:
        if self.return_exceptions:
            self.put(position, error)
        elif not self.future.done():
            self.future.set_exception(error)


class BatchItem(Waiter):
    """One position of a Batch."""

    __slots__ = ("batch", "position")

    def __init__(self, batch: Batch, position: int, deadline: int) -> None:
        super().__init__(batch.future, deadline)
        self.batch = batch
        self.position = position

    @property
    def answered(self) -> bool:
        return self.batch.remaining < len(self.batch.results)

    def answer(self, signature: bytes) -> None:
        self.batch.put(self.position, signature)

    def refuse(self, error: HsmError) -> None:
        self.batch.fail(self.position, error)


class Request:
    """One call to the back end, and its waiters.

    `deadline` is the latest of its waiters' deadlines; `generation` is the cache's at the start. Times are those of
    time.monotonic_ns.
    """

    __slots__ = ("begun", "deadline", "generation", "key", "message", "submitted", "waiters")

    def __init__(self, key: int, message: bytes, submitted: int, generation: int) -> None:
        self.key = key
        self.message = message
        self.submitted = submitted
        self.generation = generation
        self.begun = 0
        self.deadline = 0
        self.waiters: list[Waiter] = []

    def add(self, waiter: Waiter) -> None:
        waiter.request = self
        self.waiters.append(waiter)
        self.deadline = max(self.deadline, waiter.deadline)

    @property
    def gone(self) -> bool:
        """Whether no waiter is left."""
        return all(waiter.gone for waiter in self.waiters)

    def take_overdue(self, now: int) -> list[Waiter]:
        """Remove and return the waiters whose deadline has passed."""
        overdue = [waiter for waiter in self.waiters if waiter.deadline <= now]
        if overdue:
            self.waiters = [waiter for waiter in self.waiters if waiter.deadline > now]
        return overdue

    def settle(self, result: bytes | HsmError) -> list[asyncio.Future[Any]]:
        """Give every waiter the result. Returns their futures; a batch's future may still wait for other positions."""
        waiters, self.waiters = self.waiters, []
        for position, waiter in enumerate(waiters):
            if isinstance(result, bytes):
                waiter.answer(result)
            else:
                # One exception raised in several tasks would collect the tracebacks of all of them.
                waiter.refuse(copy.copy(result) if position else result)
        return [waiter.future for waiter in waiters]
