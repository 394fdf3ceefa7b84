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
from datetime import datetime
from io import FileIO
from pathlib import Path
from typing import Any

import orjson

from hsmcore.errors import BadArgument, SystemFailure
from hsmcore.log import get_logger

FLUSH_SECONDS = 0.05
_CHUNK_BYTES = 1 << 20

Moment = datetime | float | None
Record = dict[str, Any]


class AuditLog:
    """Appends to one file. Belongs to the event loop that calls `open`. Without a path it records nothing."""

    def __init__(self, path: str | None) -> None:
        self._path = None if path is None else Path(path)
        self._sink: _Sink | None = None

    @property
    def enabled(self) -> bool:
        """Whether anything is recorded."""
        return self._path is not None

    async def open(self) -> None:
        """Open the file, making its folder if need be, and go on counting where it ends. Raises SystemFailure."""
        if self._path is None:
            return
        sink = _Sink(self._path, asyncio.get_running_loop())
        try:
            await sink.open()
        except OSError as error:
            raise SystemFailure(f"audit log {self._path}: {error.strerror}", call="open") from None
        self._sink = sink

    def record(self, operation: str, *, message: bytes | None = None, **fields: Any) -> int | None:
        """Note an operation. Returns its sequence number, or None if nothing is recorded."""
        if self._sink is None:
            return None
        if message is not None:
            fields["message_sha256"] = hashlib.sha256(message).hexdigest()
            fields["message_bytes"] = len(message)
        return self._sink.add({"operation": operation, **fields})

    async def flush(self) -> None:
        """Have everything recorded so far in the file."""
        if self._sink is not None:
            await self._sink.flush()

    async def close(self) -> None:
        """Write what is left and close the file. Doing it twice is no error."""
        sink, self._sink = self._sink, None
        if sink is not None:
            await sink.close()

    async def query(
        self, start: Moment = None, end: Moment = None, match: Mapping[str, Any] | None = None
    ) -> AsyncIterator[Record]:
        """The records from `start` to `end` (aware datetimes or Unix seconds; None: open) whose fields equal `match`,
        oldest first. Raises BadArgument for a naive datetime or when no `auditLogFile` is configured."""
        if self._path is None:
            raise BadArgument("there is no audit log: auditLogFile is not configured")
        first, last = _ns(start, 0), _ns(end, 1 << 63)
        wanted = dict(match or {})
        await self.flush()
        loop = asyncio.get_running_loop()
        file = await loop.run_in_executor(None, self._path.open, "rb")
        with file:
            while lines := await loop.run_in_executor(None, file.readlines, _CHUNK_BYTES):
                for line in lines:
                    record = _parsed(line)
                    if record and first <= record["time_ns"] <= last and wanted.items() <= record.items():
                        yield record


class _Sink:
    """The open file, and the records that are on their way into it."""

    def __init__(self, path: Path, loop: asyncio.AbstractEventLoop) -> None:
        self._path = path
        self._loop = loop
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="hsmcore-audit")
        self._pending: list[Record] = []
        self._timer: asyncio.TimerHandle | None = None
        self._sequence = 0

    async def open(self) -> None:
        try:
            self._file, self._sequence = await self._loop.run_in_executor(self._thread, _open, self._path)
        except BaseException:
            self._thread.shutdown(wait=False)
            raise

    def add(self, record: Record) -> int:
        self._sequence += 1
        self._pending.append({"seq": self._sequence, "time_ns": time.time_ns(), **record})
        if self._timer is None:
            self._timer = self._loop.call_later(FLUSH_SECONDS, self._flush_soon)
        return self._sequence

    def _flush_soon(self) -> None:
        self._timer = None
        self._submit().add_done_callback(self._report)

    def _submit(self) -> asyncio.Future[None]:
        taken, self._pending = self._pending, []
        return self._loop.run_in_executor(self._thread, self._write, taken)

    def _write(self, records: list[Record]) -> None:
        if records:
            self._file.write(b"".join(orjson.dumps(record) + b"\n" for record in records))

    def _report(self, done: asyncio.Future[None]) -> None:
        if not done.cancelled() and (error := done.exception()) is not None:
            get_logger().error("audit records were lost", file=str(self._path), error=str(error))

    async def flush(self) -> None:
        await self._submit()

    async def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        try:
            await self.flush()
        finally:
            await self._loop.run_in_executor(self._thread, self._file.close)
            self._thread.shutdown(wait=False)


def _open(path: Path) -> tuple[FileIO, int]:
    """The file, ready to be appended to, and the last sequence number in it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    file = FileIO(descriptor, "r+b")
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _CHUNK_BYTES))
    tail = file.read()
    if tail and not tail.endswith(b"\n"):
        file.write(b"\n")  # a line that a crash cut off stays visible and does not swallow the next one
    for line in reversed(tail.splitlines()):
        if record := _parsed(line):
            return file, record["seq"]
    if size:
        get_logger().warning("no audit record at the end of the file; counting starts anew", file=str(path))
    return file, 0


def _parsed(line: bytes) -> Record | None:
    """The record in a line, or None if there is none, as in a line that a crash cut off."""
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    whole = isinstance(record, dict) and type(record.get("seq")) is int and type(record.get("time_ns")) is int
    return record if whole else None


def _ns(moment: Moment, default: int) -> int:
    if moment is None:
        return default
    if isinstance(moment, datetime):
        if moment.tzinfo is None:
            raise BadArgument("a datetime without a time zone says no moment; use datetime.now(timezone.utc)")
        return int(moment.timestamp() * 1e9)
    return int(moment * 1e9)
