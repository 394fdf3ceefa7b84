"""The source of the state: a key manager in this process, which Site's thread asks in the manager's event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar, cast

from hsmcore.base.events import EVENTS

if TYPE_CHECKING:
    from hsmcore.config import Config
    from hsmcore.manager.key_manager import KeyManager

T = TypeVar("T")
ANSWER_SECONDS: Final = 2.0
"""Timeout in seconds for an answer of the key manager's event loop."""
RECORD_SECONDS: Final = 15.0
_IN_THE_HISTORY: Final = (
    "member-down", "member-up", "failover", "failback", "outage", "recovered", "emergency-operation",
)  # fmt: skip
TOLD: Final = tuple(name for name in EVENTS if name not in _IN_THE_HISTORY)
"""Events passed on as they come. Those of failover are read from its history, which holds all of them."""
Tell = Callable[[str, Mapping[str, Any]], None]


class Unanswered(Exception):
    """The key manager did not answer; the text says why."""


class Source(Protocol):
    """Interface of a source. Used in the event loop of Site's thread."""

    config: Config
    manager: KeyManager | None
    beside: bool
    """Whether the key manager runs in this process, which is then as alive as the manager."""

    async def describe(self) -> dict[str, Any]:
        """As KeyManager.describe. Raises Unanswered."""

    async def record(self, action: str, result: str, fields: Mapping[str, Any]) -> int | None:
        """Record an operator's action, or its refusal. Raises HsmError, Unanswered."""

    def listen(self, tell: Tell) -> Callable[[], None]:
        """Have `tell` called, in any thread, with each event's name and details. Returns a function that ends it."""


class ManagerSource:
    """A key manager in another thread's event loop."""

    beside = True

    def __init__(self, manager: KeyManager, loop: asyncio.AbstractEventLoop) -> None:
        self.manager: KeyManager | None = manager
        self._manager = manager
        self.config = manager.config
        self._loop = loop

    async def describe(self) -> dict[str, Any]:
        async def describe() -> dict[str, Any]:
            return cast("dict[str, Any]", self._manager.describe())

        return await self._run(describe(), ANSWER_SECONDS)

    async def record(self, action: str, result: str, fields: Mapping[str, Any]) -> int | None:
        return await self._run(self._manager.operator_action(action, result=result, **fields), RECORD_SECONDS)

    async def _run(self, work: Coroutine[Any, Any, T], seconds: float) -> T:
        try:
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError:
            work.close()
            raise Unanswered("the key manager's event loop is closed") from None
        try:
            async with asyncio.timeout(seconds):
                return await asyncio.wrap_future(future)
        except TimeoutError:
            raise Unanswered(f"the key manager's event loop has not answered for {seconds:g} s") from None

    def listen(self, tell: Tell) -> Callable[[], None]:
        stack = contextlib.ExitStack()
        for event in TOLD:

            def told(details: Mapping[str, Any], event: str = event) -> None:
                tell(event, details)

            stack.callback(self._manager.on(event, told))
        return stack.close
