"""Open once and close once, also under concurrent calls and cancellation."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable, Coroutine
from typing import Any, Literal, Protocol

from hsmcore._native import fork_generation
from hsmcore.base.log import prepare
from hsmcore.base.waiting import CallThread, finished
from hsmcore.errors import (
    AccessDenied,
    BadArgument,
    EngineClosed,
    EngineForked,
    HsmError,
    LoginError,
    NotInitialized,
    WrongEventLoop,
)

State = Literal["new", "opening", "open", "closing", "closed"]
Step = Callable[[], Coroutine[Any, Any, None]]


class Closable(Protocol):
    """A part that is closed at the end."""

    async def close(self) -> None:
        """Idempotent."""


class Lifecycle:
    """Runs `open` and `close` of its owner, each in a task of its own; `refuse` is called as soon as closing begins.

    A caller that is cancelled in open() undoes the opening and waits until nothing is left. A caller that is cancelled
    in close() does not stop the closing; the next call to close() waits for its end. `open` must leave nothing behind
    when it fails or is cancelled. `close` may be called again after it has failed. Belongs to the event loop that
    opens.
    """

    def __init__(self, open_: Step, refuse: Callable[[], None], close: Step) -> None:
        self._open_step, self._refuse, self._close_step = open_, refuse, close
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._process = fork_generation()
        self.state: State = "new"

    def __del__(self, warn: Callable[..., None] = warnings.warn) -> None:
        if self.state == "open" and self._process == fork_generation():
            warn(
                "a key manager was not closed: `async with`, or close(), releases its token",
                ResourceWarning,
                source=self,
            )

    async def open(self) -> None:
        """Open. Raises the errors of `open`; BadArgument on a second call; EngineClosed if close() interrupts."""
        self.check_process()
        if self.state in ("opening", "open", "closing"):
            raise BadArgument(f"initialize() was called already; it is {self.state}", hint="Leave the second call out.")
        self._loop = asyncio.get_running_loop()
        self.state = "opening"
        task = self._task = self._loop.create_task(self._open_step())
        can_log = CallThread("hsmcore-log").submit(prepare)  # beside the step, which waits for its module
        try:
            await asyncio.shield(task)
            await asyncio.wrap_future(can_log)
        except asyncio.CancelledError:
            closed = task.cancelled()
            task.cancel()
            await finished(task)
            self.state = "closed"
            if not task.cancelled() and task.exception() is None:  # the cancellation came too late for it
                await finished(self._begin_close())
            if closed:
                raise EngineClosed("closed while it was being initialized") from None
            raise
        except BaseException:
            self.state = "new"
            raise
        self.state = "open"

    async def close(self) -> None:
        """Close, and return when everything is closed. Idempotent, also without open(). Raises the error of a part that
        could not be closed, when all others are; another call closes what is left."""
        self.check_process()
        if self.state in ("new", "closed"):
            return
        self.check_loop()
        if self.state == "opening" and self._task is not None:
            self._task.cancel()
            await finished(self._task)
            return
        if self.state == "open" or self._task is None or self._task.done():
            self._begin_close()
        if self._task is not None:
            await asyncio.shield(self._task)

    def _begin_close(self) -> asyncio.Task[None]:
        self.state = "closing"
        self._refuse()
        task = self._task = asyncio.get_running_loop().create_task(self._close_and_note())
        return task

    async def _close_and_note(self) -> None:
        await self._close_step()
        self.state = "closed"

    def check(self) -> None:
        """Raise unless open, in the process and the event loop that opened."""
        self.check_open()
        self.check_loop()

    def check_open(self) -> None:
        """Raise unless open, in the process that opened."""
        self.check_process()
        if self.state in ("new", "opening"):
            raise NotInitialized("used before initialize()")
        if self.state != "open":
            raise EngineClosed("the key manager is closed")

    def check_process(self) -> None:
        """Raise EngineForked in a forked child."""
        if self._process != fork_generation():
            raise EngineForked("this key manager belongs to the process that was forked")

    def check_loop(self) -> None:
        """Raise WrongEventLoop outside the event loop that opened."""
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is not self._loop:
            raise WrongEventLoop("used outside the event loop that initialized it")


async def ended(part: Closable | None) -> None:
    """Close a part, if there is one."""
    if part is not None:
        await part.close()


def refused(error: BaseException) -> LoginError | None:
    """Return the error with which a start ended, if it is a refused login, which is not repeated."""
    if isinstance(error, LoginError) and not isinstance(error, AccessDenied):
        return error.with_traceback(None)
    return None


def refuse_again(refused: LoginError | None, member: str) -> None:
    """Raise the error of a login that was refused before."""
    if refused is not None:
        raise type(refused)(
            "an earlier initialize() was refused; another attempt could lock the PIN",
            status=refused.status,
            member=member,
            hint=f"{refused.hint} Then make a new key manager.",
        )


async def a_turn(error: HsmError) -> None:
    """Let the event loop run once before an error is raised that may have come without a wait. Recovery runs in that
    loop, and a caller that retries at once would starve it."""
    if not isinstance(error, WrongEventLoop):  # there may be no loop
        await asyncio.sleep(0)
