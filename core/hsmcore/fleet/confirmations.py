"""Checks of the epoch that signatures wait for, one for all that wait: `fleet.unordered` "strict"."""

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
from hsmcore.base.steady import boottime
from hsmcore.errors import DeadlineExceeded
from hsmcore.fleet import rows
from hsmcore.fleet.machine import Machine
from hsmcore.state import Store, StoreError, StoreUnknown

AT_ONCE: Final = 3
"""Checks that are under way at the same time: none waits for the answer to the one before."""
MOST_PACE: Final = 0.004
"""The longest time between the beginnings of two checks, in seconds, while fewer than AT_ONCE are under way: a check
costs the processor as much as several signatures."""
_Waiter = tuple[float, "asyncio.Future[None]"]


class EpochCheck:
    """Asks whether the epoch is this process's. The question locks the row to share it, which writes, so that the end
    of its transaction waits for the synchronous standby: a primary that was cut off answers what it is asked, but
    confirms nothing. A single node has none to wait for, and is only read. It is asked beside the store's own
    transactions and waits for none of them. Good only while the lease is. `lost`: called when the epoch is another
    process's."""

    def __init__(
        self, store: Store, fleet: str, machine: Machine, lost: Callable[[], None], *, single_node: bool
    ) -> None:
        self._free = [store.asking() for _ in range(AT_ONCE)]
        self._all = tuple(self._free)
        self._question = rows.looking(fleet) if single_node else rows.sharing(fleet)
        self._machine, self._lost = machine, lost

    async def __call__(self) -> bool:
        """Ask; AT_ONCE may do so at the same time. Raises StoreError, StoreUnknown."""
        epoch = self._machine.epoch
        if not epoch:
            return False
        asking = self._free.pop()
        try:
            row = rows.shared(await asking.ask(self._question))
        finally:
            self._free.append(asking)
        if not row.is_held_by(self._machine.instance, epoch):
            self._lost()
            return False
        # An answer that was held up is no proof: since then the lease may have ended and another host have claimed.
        return self._machine.epoch == epoch and self._machine.holds(boottime())

    async def close(self) -> None:
        """Close its connections."""
        for asking in self._all:
            await asking.close()


class Confirmations:
    """Groups those that wait for a check. Belongs to one event loop. `refusal` makes the error of those that have none
    that is good."""

    def __init__(self, check: Callable[[], Awaitable[bool]], refusal: Callable[[], Exception]) -> None:
        self._check, self._refusal = check, refusal
        self._waiting: list[_Waiter] = []
        self._checks: dict[asyncio.Task[None], list[_Waiter]] = {}
        """The checks that are under way, and for whom."""
        self._scope = Scope()
        self._task: asyncio.Task[None] | None = None
        self._soon = asyncio.Event()
        """Whether the next check is worth what it costs."""
        self._due = math.inf
        """When the timer looks for those whose time is over."""
        self._timer: asyncio.TimerHandle | None = None

    def wait(self, until: float, others: int = 0) -> asyncio.Future[None]:
        """Return what ends when a check that began after this call is good. Its errors: that of `refusal`, also if
        there is no answer; DeadlineExceeded at `until`, of the monotonic clock. `others`: how many are about to call
        this. The check may wait for them, MOST_PACE, but not until the device has none of them left to sign."""
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
                check = self._scope.start(self._answer(group))
                self._checks[check] = group
                check.add_done_callback(self._checks.pop)
                self._soon.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(MOST_PACE):
                        await self._soon.wait()
                if len(self._checks) >= AT_ONCE:
                    await asyncio.wait(self._checks, return_when=asyncio.FIRST_COMPLETED)
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
                return await self._check()
            except StoreUnknown:
                return await self._check()
        except StoreError:
            return False
        except Exception:  # noqa: BLE001  # rows may hold anything, and those that came since get a check of their own
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
        for until, future in chain(*self._checks.values(), self._waiting):
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
