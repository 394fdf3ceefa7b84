"""Server-sent events: each watcher has a queue that is bounded, so one that reads slowly costs nothing but its gaps."""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncIterator
from typing import Any, Final

import orjson

MAX_WATCHERS: Final = 32
MAX_QUEUED: Final = 256
KEPT: Final = 500
"""Happenings that are kept for those who come, or come back, later."""
BEAT_SECONDS: Final = 15.0
"""How often something is sent, so that both sides notice when the other has gone."""


class Full(Exception):
    """MAX_WATCHERS watch already."""


class Watcher:
    """One page that looks."""

    def __init__(self) -> None:
        self._queue: deque[bytes] = deque(maxlen=MAX_QUEUED)
        self._shown: dict[str, bytes] = {}
        self._missed = 0
        self._wake = asyncio.Event()
        self._ended = False

    def push(self, message: bytes) -> None:
        """A happening; when the queue is full, the oldest one is lost, and the page is told how many."""
        if len(self._queue) == MAX_QUEUED:
            self._missed += 1
        self._queue.append(message)
        self._wake.set()

    def show(self, kind: str, message: bytes) -> None:
        """How it is now; what was not sent yet of the same kind is out of date."""
        self._shown[kind] = message
        self._wake.set()

    def end(self) -> None:
        self._ended = True
        self._wake.set()

    async def messages(self) -> AsyncIterator[bytes]:
        """What is to be sent, until `end`."""
        while not self._ended:
            try:
                async with asyncio.timeout(BEAT_SECONDS):
                    await self._wake.wait()
            except TimeoutError:
                yield b": still here\n\n"
                continue
            self._wake.clear()
            parts = []
            if self._missed:
                parts.append(message("missed", {"count": self._missed}))
                self._missed = 0
            parts += self._queue
            self._queue.clear()
            parts += self._shown.values()
            self._shown.clear()
            if parts:
                yield b"".join(parts)


class Feed:
    """All watchers. For the server's event loop."""

    def __init__(self) -> None:
        self._watchers: set[Watcher] = set()
        self._kept: deque[tuple[int, bytes]] = deque(maxlen=KEPT)
        self._number = 0
        self._name = secrets.token_hex(4)
        """In the numbers that go out: a server that is started again begins to count anew."""

    def __len__(self) -> int:
        return len(self._watchers)

    def watch(self, after: str = "") -> Watcher:
        """A new watcher. It first gets the happenings since `after`, the number that it got last; all that are kept
        where that is none of ours. Raises Full."""
        if len(self._watchers) >= MAX_WATCHERS:
            raise Full
        watcher = Watcher()
        self._watchers.add(watcher)
        name, _, count = after.partition("-")
        begin = int(count) if name == self._name and count.isascii() and count.isdigit() and len(count) < 19 else 0
        for number, text in self._kept:
            if number > begin:
                watcher.push(text)
        return watcher

    def forget(self, watcher: Watcher) -> None:
        self._watchers.discard(watcher)

    def tell(self, kind: str, value: dict[str, Any]) -> None:
        """Something happened."""
        self._number += 1
        text = message(kind, value, f"{self._name}-{self._number}")
        self._kept.append((self._number, text))
        for watcher in self._watchers:
            watcher.push(text)

    def show(self, kind: str, value: dict[str, Any]) -> None:
        """How it is now."""
        if self._watchers:
            text = message(kind, value)
            for watcher in self._watchers:
                watcher.show(kind, text)

    def end(self) -> None:
        """Nothing comes any more."""
        for watcher in self._watchers:
            watcher.end()


def message(kind: str, value: dict[str, Any], number: str = "") -> bytes:
    """One event as it goes over the wire."""
    head = f"id: {number}\n".encode() if number else b""
    return head + b"event: " + kind.encode() + b"\ndata: " + orjson.dumps(value) + b"\n\n"
