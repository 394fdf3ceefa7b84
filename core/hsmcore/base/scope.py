"""Background work and its end: tasks, work that is repeated, and what must be closed.

A service is a Scope and what it does. The scope owns every task; closing it ends them and closes the rest, the last
first.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, suppress
from contextvars import Context
from inspect import isawaitable
from typing import Any, Final, TypeVar

from hsmcore.base.log import get_logger
from hsmcore.errors import HsmError

T = TypeVar("T")

_SPREAD: Final = 0.1
"""The part by which a pause after a failure varies, so that many processes do not ask at once."""


class Scope:
    """Belongs to one event loop. `every` and `start` may be called until it is closed."""

    def __init__(self) -> None:
        self._rest = AsyncExitStack()
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def is_open(self) -> bool:
        """Whether a task of it runs."""
        return any(not task.done() for task in self._tasks)

    def start(
        self, work: Coroutine[Any, Any, T], *, failed: str = "", context: Context | None = None
    ) -> asyncio.Task[T]:
        """Run work to its end, or until the scope is closed. `failed`: how its error is logged; "": its caller asks for
        it. `context`: None for the caller's."""
        task = asyncio.get_running_loop().create_task(work, context=context)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if failed:
            task.add_done_callback(lambda task: _log(task, failed))
        return task

    def every(
        self,
        seconds: float,
        work: Callable[[], Awaitable[float | None]],
        failed: str,
        *,
        wake: asyncio.Event | None = None,
        at_once: bool = True,
        retry_seconds: float | None = None,
        most_seconds: float = 0.0,
    ) -> asyncio.Event:
        """Do `work` now, or else first after `seconds`, and again `seconds` after its end, or as many as it returned.
        A pause of `seconds`, if these are up to one, is up to half of it shorter or longer, so that works share a wake
        of the loop; one that the work returned is as long as it says.
        Setting `wake`, or the event that is returned, ends a pause. After an error the pause is `retry_seconds` (None:
        `seconds`), and doubles with each further one, up to `most_seconds` or `seconds`. The error is logged as
        `failed` once, and once when it is over. Nothing but the end of the scope ends it. Its context is empty: no
        caller's."""
        wake = asyncio.Event() if wake is None else wake
        pauses = (seconds, retry_seconds or seconds, max(most_seconds, seconds))
        self.start(_again_and_again(wake, pauses, work, failed, at_once=at_once), context=Context()).set_name(failed)
        return wake

    def defer(self, close: Callable[[], object]) -> None:
        """Call `close`, and await what it returns, when the scope ends: after the tasks, the last one first."""

        async def closing() -> None:
            ended = close()
            if isawaitable(ended):
                await ended

        self._rest.push_async_callback(closing)

    async def finish(self, seconds: float | None = None) -> int:
        """As `close`, but first let the tasks come to their own end, for at most `seconds`; None: however long they
        take. Returns how many did not. Not for `every`, which has no end of its own."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._tasks:
                    await asyncio.wait(self._tasks)
        late = sum(not task.done() for task in self._tasks)
        await self.close()
        return late

    async def close(self) -> None:
        """End the tasks and wait for them, then close the rest; the error of one keeps no other one open, and is raised
        at the end. Idempotent."""
        try:
            while self._tasks:
                for task in self._tasks:
                    task.cancel()
                await asyncio.wait(self._tasks)
        finally:
            await self._rest.aclose()


async def _again_and_again(
    wake: asyncio.Event,
    pauses: tuple[float, float, float],
    work: Callable[[], Awaitable[float | None]],
    failed: str,
    *,
    at_once: bool,
) -> None:
    loop = asyncio.get_running_loop()
    seconds, retry, most = pauses
    failures, said = 0, ""
    pause: float | None = 0.0 if at_once else None
    while True:
        now = loop.time()
        end = end_of_pause(now, seconds) if pause is None else now + pause
        timer = None if math.isinf(end) else loop.call_at(end, wake.set)
        try:
            await wake.wait()
        finally:
            if timer is not None:
                timer.cancel()
        wake.clear()
        try:
            pause = await work()
        except Exception as error:  # noqa: BLE001  # rows and records may hold anything; the next look may find them mended
            failures += 1
            pause = min(retry * 2 ** min(failures - 1, 30), most) * random.uniform(1 - _SPREAD, 1 + _SPREAD)  # noqa: S311
            if str(error) != said:
                log_failure(error, failed)
            said = str(error)
        else:
            if failures:
                get_logger().info(f"over: {failed}", failures=failures)
            failures, said = 0, ""


def end_of_pause(now: float, length: float) -> float:
    """When a pause that begins now ends: of one of up to a second, at the multiple of its length that is next to that.
    So pauses whose lengths divide each other end together, and their works share a wake of the loop."""
    return now + length if length > 1.0 or not length else round((now + length) / length) * length


def _log(task: asyncio.Task[Any], failed: str) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log_failure(error, failed)


def log_failure(error: BaseException, failed: str) -> None:
    """Log an error; with its traceback if it is a mistake of ours."""
    ours = None if isinstance(error, (HsmError, OSError)) else error
    get_logger().error(failed, error=str(error), exc_info=ours)
