"""Records what commands left in the spool, while the log is open."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from hsmcore.audit import spool
from hsmcore.audit.layout import Layout
from hsmcore.base.log import get_logger
from hsmcore.errors import AuditUnavailable

WATCH_SECONDS: Final = 0.5

Record = Callable[[str, Mapping[str, object], Mapping[str, object]], int | None]


class Intake:
    """For one event loop. After a crash between a command's record and the removal of its file, the command is recorded
    a second time, with the same `file`."""

    def __init__(self, layout: Layout, record: Record, durable: Callable[[int], Awaitable[None]]) -> None:
        self._layout, self._record, self._durable = layout, record, durable
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="hsmcore-audit-spool")
        self._task: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        """Record the spooled commands, then poll for new ones every WATCH_SECONDS. Raises AuditUnavailable, OSError."""
        await self._take()
        self._task = asyncio.get_running_loop().create_task(self._watch())

    async def _take(self) -> None:
        loop = asyncio.get_running_loop()
        for command in await loop.run_in_executor(self._thread, spool.spooled, self._layout):
            seq = self._record(spool.OPERATION, command.fields, command.origin)
            if seq is not None:
                await self._durable(seq)
                await loop.run_in_executor(self._thread, command.done)

    async def _watch(self) -> None:
        problem: str | None = None
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            try:
                await self._take()
            except (OSError, AuditUnavailable) as error:
                if str(error) != problem:
                    get_logger().error("records of commands were not taken in", error=str(error))
                problem = str(error)
            else:
                problem = None

    async def end(self) -> None:
        """Stop polling."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        self._thread.shutdown(wait=False)
