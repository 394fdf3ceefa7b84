"""The journal of a log, as the log opens it, and the operations that wait until their records are durable."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

from hsmcore._native import Journal
from hsmcore.audit.layout import Layout
from hsmcore.audit.recover import Opened
from hsmcore.audit.segment import first_seq
from hsmcore.config.audit import AuditSettings
from hsmcore.errors import AuditUnavailable

MAX_PENDING: Final = 56 << 20
"""Most bytes of records that may wait for the disk; those of requests that an HSM has begun by then come on top."""


def open_journal(layout: Layout, rules: AuditSettings, opened: Opened) -> Journal:
    """Return the writer of the lines that follow those of a log. Blocks. Raises SystemFailure."""
    log, following = layout.log, opened.sealer.size + 1
    return Journal(
        path=str(log),
        archive=str(layout.segments),
        first_seq=first_seq(log) if log.exists() and log.stat().st_size else following,
        next_seq=following,
        rotate_bytes=rules.rotate_bytes,
        interval_seconds=rules.flush_interval_ms / 1e3,
        durability=rules.durability,
        fail_open=rules.on_failure == "open",
        wait_seconds=rules.wait_ms / 1e3,
        max_pending=MAX_PENDING,
        last_time_ns=opened.last_time_ns,
    )


class RecordWaiters:
    """The operations that wait for a record. Belongs to one event loop."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    def add(self, seq: int) -> asyncio.Future[None]:
        """Return what is done once record `seq` is durable."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((seq, future))
        return future

    def release(self, seq: int) -> None:
        """The records up to `seq` are durable."""
        waiting = self._waiting
        # The queue is in order of arrival, so an early record that is waited for late may be released with a later one.
        while waiting and waiting[0][0] <= seq:
            future = waiting.popleft()[1]
            if not future.done():
                future.set_result(None)

    def fail(self, error: Callable[[], AuditUnavailable]) -> None:
        """None of them can be: raise an error of its own for each."""
        for _, future in self._waiting:
            if not future.done():
                future.set_exception(error())
        self._waiting.clear()
