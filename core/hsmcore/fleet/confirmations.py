"""Rounds of questions that answers await, one for all that are there when it begins: `fleet.unordered` "strict". The
answers themselves stay where they were made (bindings/lease.pxi), so that one costs no object here."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from time import monotonic
from typing import Final

from hsmcore._native import Lease
from hsmcore.base.log import get_logger
from hsmcore.base.scope import Scope
from hsmcore.state import StoreError, StoreUnknown

MOST_PACE: Final = 0.008
"""The longest time between the beginnings of two rounds, in seconds, unless one takes longer: it costs the processor
as much as several signatures."""
_AGAIN_SECONDS: Final = 0.05
"""After a round that did not reach the database."""


class Confirmations:
    """Asks in rounds, one under way at a time. Belongs to one event loop. `ask` asks whether the epoch is this
    process's; `leads` says whether it is as far as is known: then a round that is not good is followed by another one,
    within the deadlines of the answers. A round may wait for those that are about to await it, MOST_PACE, but not until
    the device has none of them left to sign."""

    def __init__(self, lease: Lease, ask: Callable[[], Awaitable[bool]], leads: Callable[[], bool]) -> None:
        self._lease, self._ask, self._leads = lease, ask, leads
        self._scope = Scope()
        self._task: asyncio.Task[None] | None = None
        self._soon = asyncio.Event()
        """Whether the next round is worth what it costs."""
        lease.confirm_each(self._wanted)

    def _wanted(self, hurries: bool) -> None:
        if hurries:
            self._soon.set()
        if self._task is None:
            self._task = self._scope.start(self._run())

    async def _run(self) -> None:
        try:
            while self._lease.awaited:
                begun = monotonic()
                self._soon.clear()
                number = self._lease.begin_round()
                good = await self._good()
                if good or not self._leads():  # then the lease is over, and they are refused
                    self._lease.end_round(number)
                    pause = MOST_PACE - (monotonic() - begun)
                else:
                    pause = _AGAIN_SECONDS
                    self._soon.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._soon.wait()
        finally:
            self._task = None
            self._lease.begin_round()  # the next answer wakes again, also if those before it have all left

    async def _good(self) -> bool:
        try:
            try:
                return await self._ask()
            except StoreUnknown:
                return await self._ask()
        except StoreError:
            return False
        except Exception:  # noqa: BLE001  # rows may hold anything, and those that came since get a round of their own
            get_logger().exception("the epoch was not confirmed")
            return False

    async def close(self) -> None:
        """Refuse what awaits a round. When the epoch was given up."""
        await self._scope.close()
        self._lease.end_round(self._lease.begin_round())
