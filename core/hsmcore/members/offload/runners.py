"""How an OffloadEngine's requests are run: as tasks that wait for something, or at once in slices of the event loop."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, runtime_checkable

from hsmcore.errors import HsmError, InternalError, error_of
from hsmcore.members.offload.requests import Request

STUCK_SECONDS = 0.05
"""How long a back end has to heed a cancellation before its call counts as stuck for good."""
SLICE_NS = 500_000
"""How long an instant back end signs before the event loop gets its turn."""

Take = Callable[[], Request | None]
Finish = Callable[[Request, bytes | HsmError], None]


@runtime_checkable
class InstantBackend(Protocol):
    """Signs at once, in the event loop: for keys in memory."""

    def sign_now(self, key: int, message: bytes) -> bytes:
        """The signature, 64 bytes. Raises HsmError."""


class Backend(Protocol):
    """Signs by waiting for something else."""

    concurrency: int
    """How many calls it takes at once."""

    def sign(self, key: int, message: bytes) -> Coroutine[Any, Any, bytes]:
        """The signature, 64 bytes. Raises HsmError. It is cancelled when the deadline has passed and at the stop, and
        must then let go of what it was waiting for. `key` is what `add_key` returned."""


class TaskRunner:
    """A task for each request, `concurrency` of them at most. `take` gives the next request, or None; `finish` takes
    each one's result."""

    def __init__(self, backend: Backend, most: int, member: str, take: Take, finish: Finish) -> None:
        self.workers = min(backend.concurrency, most)
        self._sign = backend.sign
        self._member, self._take, self._finish = member, take, finish
        self._tasks: dict[Request, asyncio.Task[bytes]] = {}
        self._expired: set[Request] = set()
        self.clogged = False
        """Whether calls that do not end, past every deadline, are all that there is room for."""

    @property
    def busy(self) -> int:
        return len(self._tasks)

    @property
    def stuck(self) -> int:
        return len(self._expired)

    def oldest(self) -> int:
        """Nanoseconds that the oldest call has lasted; 0: there is none. From any thread."""
        request = next(iter(self._tasks.copy()), None)
        return 0 if request is None else time.monotonic_ns() - request.begun

    def has(self, request: Request) -> bool:
        return request in self._tasks

    def pump(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin what there is room for."""
        while len(self._tasks) < self.workers and (request := self._take()) is not None:
            task = self._tasks[request] = loop.create_task(self._sign(request.key, request.message))
            # Not a coroutine around it: of a task that is cancelled before its first step nothing runs but this.
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
            return error_of("CANCELLED", member=self._member)  # by ourselves: whoever waited has an answer
        error = task.exception()
        if error is None:
            return task.result()
        if isinstance(error, HsmError):
            return error
        # A caller must get an answer whatever a back end raises; its text may say anything.
        return InternalError(f"the back end raised {type(error).__name__}", member=self._member)

    def expire(self, request: Request, loop: asyncio.AbstractEventLoop) -> None:
        """Nobody waits for the request any more and its time is up: end its task."""
        self._expired.add(request)
        self._tasks[request].cancel()
        loop.call_later(STUCK_SECONDS, self._look_at_expired)

    def _look_at_expired(self) -> None:
        self.clogged = len(self._expired) >= self.workers

    async def stop(self, timeout: float) -> int:
        """End every task. Returns how many did not end within `timeout` seconds."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        return len((await asyncio.wait(tasks, timeout=timeout))[1]) if tasks else 0


class InstantRunner:
    """Signs in the event loop, a slice of its time after the other."""

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
        """Sign what waits: later, so that a caller in a loop of its own does not keep the event loop to itself."""
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
        raise NotImplementedError  # it has no request when anybody looks

    async def stop(self, _timeout: float) -> int:
        """Sign nothing more."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        return 0
