"""Waits for work in other threads: those that a cancellation does not cut short, because it would not end the work; and
a thread whose work may never end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

T = TypeVar("T")
_Queue = SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]


async def finished(task: asyncio.Future[Any]) -> None:
    """Wait for the end of a task; a cancellation does not end the wait."""
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            continue


def _heard(task: asyncio.Future[Any]) -> None:
    if not task.cancelled():
        task.exception()  # or the loop would report an exception that was never retrieved


async def shielded(work: Awaitable[T]) -> T:
    """Wait for the result. A cancellation ends the wait and not the work, whose result then is lost, or its error."""
    task = asyncio.ensure_future(work)
    task.add_done_callback(_heard)
    return await asyncio.shield(task)


async def whole(work: Awaitable[T]) -> T:
    """As `shielded`, but a cancellation is raised when the work has ended."""
    task = asyncio.ensure_future(work)
    try:
        return await shielded(task)
    except asyncio.CancelledError:
        await finished(task)
        raise


class CallThread:
    """A thread for calls that may block for ever, such as those into a vendor's module: one after the other. It ends
    with the interpreter, which joins the threads of a ThreadPoolExecutor and then never ends itself."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._thread: Thread | None = None
        self._calls: _Queue = SimpleQueue()

    def __del__(self) -> None:
        self.end()

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Have the thread call `work` after all before it. Any thread."""
        if self._thread is None:
            self._thread = Thread(target=_serve, args=(self._calls,), name=self._name, daemon=True)
            self._thread.start()
        future: Future[T] = Future()
        self._calls.put((future, work))
        return future

    async def run(self, work: Callable[[], T]) -> T:
        """As `submit`, and wait. A cancellation ends the wait, and the work only if it has not begun."""
        return await asyncio.wrap_future(self.submit(work))

    def leave(self) -> None:
        """Leave the thread to the call that is under way, with which it ends; later calls are made in another one."""
        self._calls.put(None)
        self._thread, self._calls = None, SimpleQueue()

    def end(self) -> None:
        """End the thread after the calls that it was given; do not wait for it."""
        self._calls.put(None)

    def join(self) -> None:
        """After `end`, wait for the thread."""
        if self._thread is not None:
            self._thread.join()


def _serve(calls: _Queue) -> None:
    while (call := calls.get()) is not None:
        future, work = call
        if not future.set_running_or_notify_cancel():
            continue
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001  # it is its caller's
            future.set_exception(error)
        else:
            future.set_result(result)
            del result
        del call, future, work  # a thread that waits holds nothing of its last call
