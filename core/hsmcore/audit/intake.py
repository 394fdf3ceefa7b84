"""Records what commands left in the spool, while the log is open."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from hsmcore.audit import spool
from hsmcore.audit.layout import Layout
from hsmcore.base.scope import Scope
from hsmcore.base.waiting import shielded

WATCH_SECONDS: Final = 1.0
END_SECONDS: Final = 2.0
"""How long the end waits for what is recorded and not yet durable."""

Record = Callable[[str, Mapping[str, object], Mapping[str, object]], int | None]


class Intake:
    """For one event loop. After a crash between a command's record and the removal of its file, the command is recorded
    a second time, with the same `file`."""

    def __init__(self, layout: Layout, record: Record, durable: Callable[[int], Awaitable[None]]) -> None:
        self._layout, self._record, self._durable = layout, record, durable
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="hsmcore-audit-spool")
        self._scope, self._recorded = Scope(), Scope()

    async def begin(self) -> None:
        """Record the spooled commands, then poll for new ones every WATCH_SECONDS. Raises AuditUnavailable, OSError."""
        await self._take()
        self._scope.every(WATCH_SECONDS, self._take, "records of commands were not taken in", at_once=False)

    async def _take(self) -> None:
        loop = asyncio.get_running_loop()
        for command in await loop.run_in_executor(self._thread, spool.spooled, self._layout):
            seq = self._record(spool.OPERATION, command.fields, command.origin)
            if seq is not None:
                await shielded(self._recorded.start(self._remove(command, seq)))

    async def _remove(self, command: spool.Spooled, seq: int) -> None:
        await self._durable(seq)
        await asyncio.get_running_loop().run_in_executor(self._thread, command.done)

    async def end(self) -> None:
        """Stop polling. What has been recorded leaves the spool first, or else the next start would record it again."""
        await self._scope.close()
        await self._recorded.finish(END_SECONDS)
        self._thread.shutdown(wait=False)
