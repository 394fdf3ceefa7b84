"""The runners of an OffloadEngine's requests: one task for each request, or slices of the event loop's time."""

from __future__ import annotations

import asyncio
import functools
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, runtime_checkable

from hsmcore._native import Digest, Guest, digest_of
from hsmcore.errors import HsmError, InternalError, error_of

STUCK_SECONDS = 0.05
"""Seconds within which a back end must obey a cancellation; after that its call counts as stuck."""
SETTLE_SECONDS = 0.25
"""Seconds that a stop waits for calls whose callers have left: what they signed gets its record."""
UNSIGNED_MOST = 10_000
"""Calls without a signature that are remembered for those who ask at once."""
SLICE_NS = 500_000
"""Nanoseconds that an instant back end signs before it yields to the event loop."""


@runtime_checkable
class InstantBackend(Protocol):
    """Signs synchronously in the event loop: for keys in memory."""

    def sign_now(self, key: int, message: bytes) -> bytes:
        """Return the signature, 64 bytes. Raises HsmError."""


class Backend(Protocol):
    """Signs asynchronously."""

    concurrency: int
    """Calls that may be under way at once."""

    def sign(self, key: int, message: bytes | Digest) -> Coroutine[Any, Any, bytes]:
        """Return the signature, 64 bytes. Raises HsmError. The call is cancelled when its deadline has passed and at
        the stop, and must then release its resources. `key` is what `add_key` returned. A Digest, which is not bytes,
        comes for an ECDSA key where the policy lists "prehashed": its `value` is signed as it is.

        A back end may have `unsigned(call)`: whether a call of `sign`, by its task, has certainly made no signature,
        and makes none once it is cancelled."""


class TaskRunner:
    """A task for each request, at most `count` at once. `changed()` is called when `clogged` changes."""

    def __init__(self, engine: Guest, backend: Backend, count: int, member: str, changed: Callable[[], None]) -> None:
        self._engine, self._sign, self._count, self._member = engine, backend.sign, count, member
        self._changed = changed
        self._idle = list(range(count))
        self._tasks: dict[int, asyncio.Task[bytes]] = {}
        self._expired: set[int] = set()
        self._stopping = False
        self._is_unsigned: Callable[[asyncio.Task[bytes]], bool] = getattr(backend, "unsigned", lambda _call: False)
        self._unsigned: OrderedDict[tuple[int, bytes], None] = OrderedDict()
        """The last calls that ended at their deadline, by key and digest, if they have certainly made no signature."""
        self._begun: dict[int, tuple[int, bytes | Digest]] = {}
        self.clogged = False
        """Whether calls past their deadlines occupy every runner."""

    def pump(self) -> None:
        """Begin requests while a runner is idle."""
        loop = asyncio.get_running_loop()
        while self._idle and not self._stopping and (request := self._engine.begin(self._idle[-1])) is not None:
            runner = self._idle.pop()
            self._begun[runner] = request
            if self._unsigned:
                self._unsigned.pop((request[0], digest_of(request[1])), None)
            task = self._tasks[runner] = loop.create_task(self._sign(*request))
            # No coroutine around it: if a task is cancelled before its first step, only its callback runs.
            task.add_done_callback(functools.partial(self._done, runner))

    def _done(self, runner: int, task: asyncio.Task[bytes]) -> None:
        del self._tasks[runner]
        self._idle.append(runner)
        self._engine.end(runner, self._outcome(runner, task))
        self._expired.discard(runner)
        if self.clogged:
            self.clogged = False
            self._changed()
        self._engine.deliver()
        self.pump()

    def _outcome(self, runner: int, task: asyncio.Task[bytes]) -> bytes | HsmError:
        if task.cancelled():  # by this runner: every waiter has an answer
            status = "DEADLINE_EXCEEDED" if runner in self._expired else "CLOSED" if self._stopping else "CANCELLED"
            return error_of(status, member=self._member)
        error = task.exception()
        if error is None:
            return task.result()
        if isinstance(error, HsmError):
            return error
        # A caller gets an answer whatever the back end raises. The error's text is untrusted.
        raised = f"the back end raised {type(error).__name__}"
        return InternalError(raised, member=self._member, maybe_signed=True)

    def expire(self) -> None:
        """Cancel the tasks whose last deadline has passed."""
        for runner, task in list(self._tasks.items()):
            if runner not in self._expired and self._engine.overran(runner):
                self._expired.add(runner)
                if self._is_unsigned(task):
                    key, message = self._begun[runner]
                    self._unsigned[key, digest_of(message)] = None
                    if len(self._unsigned) > UNSIGNED_MOST:
                        self._unsigned.popitem(last=False)
                task.cancel()  # so nothing more is sent, before anything else runs
        if self._expired:
            asyncio.get_running_loop().call_later(STUCK_SECONDS, self._look_at_expired)

    def unsigned(self, key: int, message: bytes | Digest) -> bool:
        """Whether the last call for this message ended at its deadline and has certainly made no signature."""
        return (key, digest_of(message)) in self._unsigned

    def _look_at_expired(self) -> None:
        if len(self._expired) >= self._count:
            self.clogged = True
            self._changed()

    async def stop(self, timeout: float, idle: Callable[[], bool]) -> int:
        """Begin nothing more, and cancel every task; before that, wait SETTLE_SECONDS if no caller waits (`idle`).
        Returns how many did not end within `timeout` seconds."""
        self._stopping = True
        if self._tasks and idle():
            await asyncio.wait(list(self._tasks.values()), timeout=SETTLE_SECONDS)
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        return len((await asyncio.wait(tasks, timeout=timeout))[1]) if tasks else 0


class InstantRunner:
    """Signs in the event loop, one time slice after the other."""

    clogged = False

    def __init__(self, engine: Guest, backend: InstantBackend) -> None:
        self._engine, self._sign = engine, backend.sign_now
        self._handle: asyncio.Handle | None = None

    def pump(self) -> None:
        """Schedule a slice: it does not run immediately, so that a caller that submits in a loop starves nothing."""
        if self._handle is None:
            self._handle = asyncio.get_running_loop().call_soon(self._slice)

    def _slice(self) -> None:
        self._handle = None
        until = time.monotonic_ns() + SLICE_NS
        while (request := self._engine.begin(0)) is not None:
            try:
                result: bytes | HsmError = self._sign(*request)
            except HsmError as error:
                result = error
            self._engine.end(0, result)
            if time.monotonic_ns() >= until:
                self.pump()
                break
        self._engine.deliver()

    def expire(self) -> None:
        """Do nothing: no call lasts beyond its slice."""

    def unsigned(self, _key: int, _message: bytes | Digest) -> bool:
        return False

    async def stop(self, _timeout: float, _idle: Callable[[], bool]) -> int:
        """Cancel the next slice."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        return 0
