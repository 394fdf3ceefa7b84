"""Puts lines into the current segment: one thread, one write and one flush to the disk for all that wait."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Final, Literal

from hsmcore.audit.files import sync, write_all
from hsmcore.audit.layout import Layout
from hsmcore.audit.segment import first_seq

Durability = Literal["fsync", "write", "interval"]
RETRY_SECONDS: Final = 0.5
_GROUP_LINES: Final = 4096
_FLAGS: Final = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


class Writer:
    """Owns the current segment. `put` may be called by one thread; the callbacks run in the writer's own."""

    def __init__(
        self,
        layout: Layout,
        next_seq: int,
        *,
        durability: Durability,
        interval: float,
        rotate_bytes: int,
        on_durable: Callable[[int], None],
        on_failure: Callable[[OSError | None], None],
    ) -> None:
        """`next_seq` is the sequence number of the next line. `on_durable(seq)`: all up to it is kept as `durability`
        says. `on_failure(error)`: nothing is written for now; None: it is again. Raises OSError."""
        self._layout = layout
        self._durability, self._interval, self._rotate = durability, interval, rotate_bytes
        self._on_durable, self._on_failure = on_durable, on_failure
        self._lines: list[bytes] = []
        self._next = next_seq  # of the first line that is not written
        self._file = os.open(layout.log, _FLAGS, 0o600)
        self._size = os.fstat(self._file).st_size  # of what is written whole
        self._first = first_seq(layout.log) if self._size else next_seq
        sync(layout.log.parent)
        self._torn = False
        self._failed = False
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hsmcore-audit", daemon=True)
        self._thread.start()

    @property
    def pending(self) -> int:
        """Lines that wait to be written."""
        return len(self._lines)

    def put(self, line: bytes) -> None:
        """Queue a line. Never blocks."""
        self._lines.append(line)
        if not self._wake.is_set():  # it is cleared before the lines are looked at, so none is missed
            self._wake.set()

    def close(self) -> int:
        """Write what is left, unless that fails now, and end the thread. Returns how many lines were not written."""
        self._closing.set()
        self._wake.set()
        self._thread.join()
        os.close(self._file)
        return len(self._lines)

    def _run(self) -> None:
        while True:
            self._wake.wait()
            if self._durability == "interval":
                self._closing.wait(self._interval)  # more lines come into the group meanwhile
            self._wake.clear()
            closing = self._closing.is_set()
            while self._lines:
                if self._write_group():
                    continue
                if closing or self._closing.wait(RETRY_SECONDS):
                    if closing:
                        return
                    closing = True
            if closing:
                return

    def _write_group(self) -> bool:
        group = self._lines[:_GROUP_LINES]
        text = b"".join(group)
        try:
            if self._torn:
                os.ftruncate(self._file, self._size)
                self._torn = False
            if self._size and self._size + len(text) > self._rotate:
                self._start_segment()
            self._torn = True
            write_all(self._file, text)
            if self._durability != "write":
                os.fdatasync(self._file)
            self._torn = False
        except OSError as error:
            if not self._failed:
                self._failed = True
                self._on_failure(error)
            return False
        self._size += len(text)
        del self._lines[: len(group)]
        self._next += len(group)
        if self._failed:
            self._failed = False
            self._on_failure(None)
        self._on_durable(self._next - 1)
        return True

    def _start_segment(self) -> None:
        """Put the full one aside and begin another. Whatever fails, trying again goes on from there."""
        os.fsync(self._file)
        if self._layout.log.exists():
            self._layout.log.rename(self._layout.archived(self._first, compressed=False))
        file = os.open(self._layout.log, _FLAGS | os.O_EXCL, 0o600)
        os.close(self._file)
        self._file, self._size, self._first = file, 0, self._next
        sync(self._layout.segments)
        sync(self._layout.log.parent)
