"""Threads without threads: what product code gives to an executor runs in the world's one thread, when chance says so,
each executor's calls in their order."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from typing import Any, Final

from tests.simulation.loop import Loop

_USUAL_NS: Final = 400_000
_LONG_NS: Final = 30_000_000
_LONG_EVERY: Final = 40

worlds: list[Loop] = []
"""The loop of the world that runs; empty while none does: then calls run at once."""


class no_loop:  # noqa: N801  # as a function of contextlib, which takes longer
    """As in a thread: no loop runs there."""

    __slots__ = ("_loop",)

    def __enter__(self) -> None:
        self._loop = asyncio._get_running_loop()
        asyncio._set_running_loop(None)

    def __exit__(self, *_error: object) -> None:
        asyncio._set_running_loop(self._loop)


class _Answer(Future[Any]):
    """A result that a thread may wait for: the calls before it run then."""

    calls: Calls

    def add_done_callback(self, fn: Callable[[Future[Any]], object]) -> None:
        # From CPython 3.14 on asyncio takes a result at once where its loop runs, and before in the next turn.
        def call(done: Future[Any]) -> None:
            with no_loop():
                fn(done)

        super().add_done_callback(call)

    def result(self, timeout: float | None = None) -> Any:
        while not self.done() and self.calls.waiting:
            self.calls.step()
        return super().result(timeout)


class Calls:
    """The calls of one thread."""

    def __init__(self) -> None:
        self.waiting: deque[tuple[_Answer, Callable[[], Any]]] = deque()
        self.loop: Loop | None = None
        """The loop of the process that it belongs to: of one that was killed, nothing happens any more."""

    def submit(self, work: Callable[[], Any]) -> Future[Any]:
        answer = _Answer()
        answer.calls = self
        self.waiting.append((answer, work))
        self.loop = loop = self.loop or (worlds[0] if worlds else None)
        if loop is not None:
            rng = loop.chance.time
            long = rng.randrange(_LONG_EVERY) == 0
            loop.happens(rng.randrange(_LONG_NS if long else _USUAL_NS), self.step)
        else:
            self.step()
        return answer

    def step(self) -> None:
        """Run the next call."""
        if not self.waiting:
            return
        answer, work = self.waiting.popleft()
        if not answer.set_running_or_notify_cancel():
            return
        try:
            with no_loop():
                result = work()
        except BaseException as error:  # noqa: BLE001  # it is its caller's
            answer.set_exception(error)
        else:
            answer.set_result(result)


class Threads(Executor):
    """In place of ThreadPoolExecutor. One thread is enough: it ends nothing later than several would."""

    def __init__(self, *_arguments: Any, **_options: Any) -> None:
        self._calls = Calls()
        self._shut = False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        if self._shut:
            raise RuntimeError("cannot schedule new futures after shutdown")
        return self._calls.submit(partial(fn, *args, **kwargs))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._shut = True
        while cancel_futures and self._calls.waiting:
            self._calls.waiting.popleft()[0].cancel()
        while wait and self._calls.waiting:
            self._calls.step()


def install() -> None:
    """Replace the threads of executors and of CallThread. Once in a process, before most of hsmcore is imported."""
    concurrent.futures.ThreadPoolExecutor = Threads
    from hsmcore.base.waiting import CallThread

    def of(thread: Any) -> Calls:
        if not isinstance(thread._calls, Calls):
            thread._calls = Calls()
        calls: Calls = thread._calls
        return calls

    def submit(self: Any, work: Callable[[], Any]) -> Future[Any]:
        return of(self).submit(work)

    def leave(self: Any) -> None:
        self._calls = Calls()

    def end(self: Any) -> None:
        """Nothing is to end."""

    def join(self: Any) -> None:
        while of(self).waiting:
            of(self).step()

    CallThread.submit, CallThread.leave, CallThread.end, CallThread.join = submit, leave, end, join
