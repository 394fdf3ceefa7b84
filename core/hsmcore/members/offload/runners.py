"""The runners of an OffloadEngine's requests: one task for each request, or slices of the event loop's time."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, runtime_checkable

from hsmcore.errors import HsmError, InternalError, error_of
from hsmcore.members.offload.requests import Request

STUCK_SECONDS = 0.05
"""Seconds within which a back end must obey a cancellation; after that its call counts as stuck."""
SLICE_NS = 500_000
"""Nanoseconds that an instant back end signs before it yields to the event loop."""

Take = Callable[[], Request | None]
Finish = Callable[[Request, bytes | HsmError], None]


@runtime_checkable
class InstantBackend(Protocol):
    """Signs synchronously in the event loop: for keys in memory."""

    def sign_now(self, key: int, message: bytes) -> bytes:
        """Return the signature, 64 bytes. Raises HsmError."""


class Backend(Protocol):
    """Signs asynchronously."""

    concurrency: int
    """Calls that may be under way at once."""

    def sign(self, key: int, message: bytes) -> Coroutine[Any, Any, bytes]:
        """Return the signature, 64 bytes. Raises HsmError. The call is cancelled when its deadline has passed and at
        the stop, and must then release its resources. `key` is what `add_key` returned."""


class TaskRunner:
    """A task for each request, at most `concurrency` at once. `take` returns the next request or None."""

    def __init__(self, backend: Backend, most: int, member: str, take: Take, finish: Finish) -> None:
        self.workers = min(backend.concurrency, most)
        self._sign = backend.sign
        self._member, self._take, self._finish = member, take, finish
        self._tasks: dict[Request, asyncio.Task[bytes]] = {}
        self._expired: set[Request] = set()
        self.clogged = False
        """Whether calls past their deadlines occupy every worker."""

    @property
    def busy(self) -> int:
        return len(self._tasks)

    @property
    def stuck(self) -> int:
        return len(self._expired)

    def oldest(self) -> int:
        """Return the age of the oldest call in nanoseconds; 0: there is none. Any thread."""
        request = next(iter(self._tasks.copy()), None)
        return 0 if request is None else time.monotonic_ns() - request.begun

    def has(self, request: Request) -> bool:
        return request in self._tasks

    def pump(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin requests while there is a free worker."""
        while len(self._tasks) < self.workers and (request := self._take()) is not None:
            task = self._tasks[request] = loop.create_task(self._sign(request.key, request.message))
            # No coroutine around it: if a task is cancelled before its first step, only its callback runs.
            task.add_done_callback(functools.partial(self._done, request, loop))

    def _done(self, request: Request, loop: asyncio.AbstractEventLoop, task: asyncio.Task[bytes]) -> None:
        del self._tasks[request]
        if request in self._expired:
            self._expired.discard(request)
            self.clogged = False
        self._finish(request, self._outcome(task))
        self.pump(loop)

    def _outcome(self, task: asyncio.Task[bytes]) -> bytes | HsmError:
        if task.cancelled():
            return error_of("CANCELLED", member=self._member)  # by the engine: every waiter has an answer
        error = task.exception()
        if error is None:
            return task.result()
        if isinstance(error, HsmError):
            return error
        # A caller gets an answer whatever the back end raises. The error's text is untrusted.
        return InternalError(f"the back end raised {type(error).__name__}", member=self._member)

    def expire(self, request: Request, loop: asyncio.AbstractEventLoop) -> None:
        """Cancel the task of a request whose last deadline has passed."""
        self._expired.add(request)
        self._tasks[request].cancel()
        loop.call_later(STUCK_SECONDS, self._look_at_expired)

    def _look_at_expired(self) -> None:
        self.clogged = len(self._expired) >= self.workers

    async def stop(self, timeout: float) -> int:
        """Cancel every task. Returns how many did not end within `timeout` seconds."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        return len((await asyncio.wait(tasks, timeout=timeout))[1]) if tasks else 0


class InstantRunner:
    """Signs in the event loop, one time slice after the other."""

    workers = 1
    busy = stuck = 0
    clogged = False

    def __init__(self, backend: InstantBackend, take: Take, finish: Finish) -> None:
        self._sign, self._take, self._finish = backend.sign_now, take, finish
        self._handle: asyncio.Handle | None = None

    def oldest(self) -> int:
        return 0

    def has(self, _request: Request) -> bool:
        return False

    def pump(self, loop: asyncio.AbstractEventLoop) -> None:
        """Schedule a slice: it does not run immediately, so that a caller that submits in a loop starves nothing."""
        if self._handle is None:
            self._handle = loop.call_soon(self._slice, loop)

    def _slice(self, loop: asyncio.AbstractEventLoop) -> None:
        self._handle = None
        until = time.monotonic_ns() + SLICE_NS
        while (request := self._take()) is not None:
            try:
                result: bytes | HsmError = self._sign(request.key, request.message)
            except HsmError as error:
                result = error
            self._finish(request, result)
            if time.monotonic_ns() >= until:
                self.pump(loop)
                break

    def expire(self, request: Request, loop: asyncio.AbstractEventLoop) -> None:
        raise NotImplementedError  # no request is with this runner when the engine sweeps

    async def stop(self, _timeout: float) -> int:
        """Cancel the next slice."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        return 0
