"""The audit log: one JSON line for each operation, appended to `auditLogFile`.

Messages stand in it as SHA-256 digests, never as themselves; secrets never. Records are written in groups, at most
`FLUSH_SECONDS` after the operation, by a thread: the event loop does not wait for the disk. A crash can therefore lose
the records of that time.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from hsmcore.errors import BadArgument, SystemFailure
from hsmcore.log import get_logger

FLUSH_SECONDS = 0.05
_TAIL_BYTES = 1 << 20

Moment = datetime | float | None


class AuditLog:
    """Appends to one file. Belongs to the event loop that calls `open`. Without a path it records nothing."""

    def __init__(self, path: str | None) -> None:
        self._path = None if path is None else Path(path)
        self._pending: list[dict[str, Any]] = []
        self._sequence = 0
        self._file: Any = None
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: ThreadPoolExecutor | None = None

    @property
    def enabled(self) -> bool:
        """Whether anything is recorded."""
        return self._path is not None

    async def open(self) -> None:
        """Open the file, making its folder if need be, and go on counting where it ends. Raises SystemFailure."""
        if self._path is None:
            return
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="hsmcore-audit")
        try:
            await self._loop.run_in_executor(self._thread, self._open_file)
        except OSError as error:
            self._thread.shutdown(wait=False)
            self._thread = None
            raise SystemFailure(f"audit log {self._path}: {error.strerror}", call="open") from None

    def _open_file(self) -> None:
        assert self._path is not None
        self._path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._file = os.fdopen(descriptor, "r+b", buffering=0)
        size = self._file.seek(0, os.SEEK_END)
        self._file.seek(max(0, size - _TAIL_BYTES))
        tail = self._file.read()
        lines = tail.rstrip(b"\n").rsplit(b"\n", 1)
        if tail and not tail.endswith(b"\n"):
            self._file.write(b"\n")  # a line that a crash cut off stays visible and does not swallow the next one
            lines = lines[0].rsplit(b"\n", 1) if len(lines) == 2 else [b""]
        try:
            self._sequence = int(orjson.loads(lines[-1])["seq"]) if lines[-1] else 0
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
            get_logger().warning("the last audit record cannot be read; counting starts anew", file=str(self._path))

    def record(self, operation: str, *, message: bytes | None = None, **fields: Any) -> int | None:
        """Note an operation. Returns its sequence number, or None if nothing is recorded."""
        if self._loop is None:
            return None
        self._sequence += 1
        record = {"seq": self._sequence, "time_ns": time.time_ns(), "operation": operation, **fields}
        if message is not None:
            record["message_sha256"] = hashlib.sha256(message).hexdigest()
            record["message_bytes"] = len(message)
        self._pending.append(record)
        if self._timer is None:
            self._timer = self._loop.call_later(FLUSH_SECONDS, self._flush_soon)
        return self._sequence

    def _flush_soon(self) -> None:
        self._timer = None
        assert self._loop is not None and self._thread is not None
        done = self._loop.run_in_executor(self._thread, self._write, self._take())
        done.add_done_callback(self._report)

    def _report(self, done: asyncio.Future[None]) -> None:
        if not done.cancelled() and (error := done.exception()) is not None:
            get_logger().error("audit records were lost", file=str(self._path), error=str(error))

    def _take(self) -> list[dict[str, Any]]:
        taken, self._pending = self._pending, []
        return taken

    def _write(self, records: list[dict[str, Any]]) -> None:
        if records:
            self._file.write(b"".join(orjson.dumps(record) + b"\n" for record in records))

    async def flush(self) -> None:
        """Have everything recorded so far in the file."""
        if self._loop is not None and self._thread is not None:
            await self._loop.run_in_executor(self._thread, self._write, self._take())

    async def close(self) -> None:
        """Write what is left and close the file. Doing it twice is no error."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._thread is not None and self._loop is not None:
            await self.flush()
            await self._loop.run_in_executor(self._thread, self._file.close)
            self._thread.shutdown(wait=False)
        self._thread = self._loop = None

    async def query(
        self, start: Moment = None, end: Moment = None, match: Mapping[str, Any] | None = None
    ) -> AsyncIterator[dict[str, Any]]:
        """The records from `start` to `end` (aware datetimes or Unix seconds; None: open) whose fields equal `match`,
        oldest first. Raises BadArgument for a naive datetime or when no `auditLogFile` is configured."""
        if self._path is None:
            raise BadArgument("there is no audit log: auditLogFile is not configured")
        first, last = _ns(start, 0), _ns(end, 1 << 63)
        wanted = dict(match or {})
        await self.flush()
        loop = asyncio.get_running_loop()
        with self._path.open("rb") as file:
            while lines := await loop.run_in_executor(None, file.readlines, _TAIL_BYTES):
                for line in lines:
                    try:
                        record = orjson.loads(line)
                    except orjson.JSONDecodeError:
                        continue  # the line that a crash cut off
                    if first <= record.get("time_ns", 0) <= last and wanted.items() <= record.items():
                        yield record


def _ns(moment: Moment, default: int) -> int:
    if moment is None:
        return default
    if isinstance(moment, datetime):
        if moment.tzinfo is None:
            raise BadArgument("a datetime without a time zone says no moment; use datetime.now(timezone.utc)")
        return int(moment.astimezone(UTC).timestamp() * 1e9)
    return int(moment * 1e9)
