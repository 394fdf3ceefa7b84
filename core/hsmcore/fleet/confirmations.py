"""Questions that signatures wait for, one for all that wait: `fleet.unordered` "strict"."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import chain
from time import monotonic
from typing import Final

from hsmcore.base.log import get_logger
from hsmcore.base.scope import Scope
from hsmcore.errors import DeadlineExceeded
from hsmcore.state import StoreError, StoreUnknown

MOST_PACE: Final = 0.008
"""The longest time between the beginnings of two renewals, in seconds, unless one takes longer: it costs the processor
as much as several signatures."""
_Waiter = tuple[float, "asyncio.Future[None]"]


class Confirmations:
    """Groups those that wait for a renewal. Belongs to one event loop. `renew` renews, and returns whether that was
    good; `refusal` makes the error of those that have none that is."""

    def __init__(self, renew: Callable[[], Awaitable[bool]], refusal: Callable[[], Exception]) -> None:
        self._renew, self._refusal = renew, refusal
        self._waiting: list[_Waiter] = []
        self._under_way: list[_Waiter] = []
        """For whom the present renewal is."""
        self._scope = Scope()
        self._task: asyncio.Task[None] | None = None
        self._soon = asyncio.Event()
        """Whether the next renewal is worth what it costs."""
        self._due = math.inf
        """When the timer looks for those whose time is over."""
        self._timer: asyncio.TimerHandle | None = None

    def wait(self, until: float = math.inf, others: int = 0) -> asyncio.Future[None]:
        """Return what ends when a renewal that began after this call is good. Its errors: that of `refusal`, also if
        there is no answer; DeadlineExceeded at `until`, of the monotonic clock. `others`: how many are about to call
        this. The renewal may wait for them, MOST_PACE, but not until the device has none of them left to sign."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((until, future))
        if others <= len(self._waiting):
            self._soon.set()
        if until < self._due:
            self._watch(until)
        if self._task is None:
            self._task = self._scope.start(self._run())
        return future

    async def _run(self) -> None:
        try:
            while self._waiting:
                group, self._waiting = self._waiting, []
                begun = monotonic()
                self._under_way = group
                self._soon.clear()
                await self._answer(group)
                with suppress(TimeoutError):
                    async with asyncio.timeout(MOST_PACE - (monotonic() - begun)):
                        await self._soon.wait()
        finally:
            self._task = None

    async def _answer(self, group: list[_Waiter]) -> None:
        good = False
        try:
            good = await self._good()
        finally:
            for _, future in group:
                if future.done():
                    continue
                if good:
                    future.set_result(None)
                else:
                    future.set_exception(self._refusal())

    async def _good(self) -> bool:
        try:
            try:
                return await self._renew()
            except StoreUnknown:
                return await self._renew()
        except StoreError:
            return False
        except Exception:  # noqa: BLE001  # rows may hold anything, and those that came since get a renewal of their own
            get_logger().exception("the epoch was not confirmed")
            return False

    def _watch(self, until: float) -> None:
        """Set the timer: one for all, since nearly every signature is confirmed long before its time is over."""
        if self._timer is not None:
            self._timer.cancel()
        self._due, self._timer = until, None
        if until < math.inf:
            self._timer = asyncio.get_running_loop().call_later(max(until - monotonic(), 0), self._sweep)

    def _sweep(self) -> None:
        now, rest = monotonic(), math.inf
        for until, future in chain(self._under_way, self._waiting):
            if future.done():
                continue
            if until <= now:
                future.set_exception(DeadlineExceeded("the fleet's database did not confirm the epoch in time"))
            else:
                rest = min(rest, until)
        self._watch(rest)

    async def close(self) -> None:
        """Answer those that wait."""
        await self._scope.close()
        self._watch(math.inf)
        for _, future in self._waiting:
            future.cancel()
