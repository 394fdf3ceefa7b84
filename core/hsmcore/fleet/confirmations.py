"""Checks of the epoch that signatures wait for, one for all that wait: `fleet.unordered` "strict"."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Final

from hsmcore.log import get_logger
from hsmcore.state import StoreError
from hsmcore.state.store import StoreUnknown

MOST_PAUSE: Final = 0.002
"""The longest pause between two checks, in seconds."""


class Confirmations:
    """Groups those that wait. Belongs to one event loop. `check`, under `lock`: renew the lease in the database, in a
    transaction that writes, so that its end waits for the synchronous standby: a primary that was cut off answers what
    it is asked, but confirms nothing. Returns whether the epoch is this host's."""

    def __init__(self, lock: asyncio.Lock, check: Callable[[], Awaitable[bool]]) -> None:
        self._lock, self._check = lock, check
        self._waiting: list[asyncio.Future[bool]] = []
        self._task: asyncio.Task[None] | None = None

    async def wait(self) -> bool:
        """Return what a check finds that begins after this call; False also if there is no answer."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[bool] = loop.create_future()
        self._waiting.append(future)
        if self._task is None:
            self._task = loop.create_task(self._run())
        return await future

    async def _run(self) -> None:
        try:
            while self._waiting:
                begun = monotonic()
                async with self._lock:  # those that come until it is free are of the group
                    group, self._waiting = self._waiting, []
                    await self._answer(group)
                if len(group) > 1:  # many sign: leave half of the time to what they ask for
                    await asyncio.sleep(min(monotonic() - begun, MOST_PAUSE))
        finally:
            self._task = None

    async def _answer(self, group: list[asyncio.Future[bool]]) -> None:
        good = False
        try:
            good = await self._good()
        finally:
            for future in group:
                if not future.done():
                    future.set_result(good)

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

    async def close(self) -> None:
        """Answer those that wait."""
        if self._task is not None:
            task = self._task
            task.cancel()
            await asyncio.wait({task})
        for future in self._waiting:
            future.cancel()
