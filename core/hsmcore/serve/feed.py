"""Server-sent events: each watcher has a bounded queue, so a slow reader costs nothing and sees its gaps."""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncIterator
from typing import Any, Final

import orjson

MAX_WATCHERS: Final = 32
MAX_VIEWERS: Final = 28
"""Watchers that are not operators: they take no operator's place."""
MAX_OF_ADDRESS: Final = 16
"""Viewers of one address."""
MAX_QUEUED: Final = 256
KEPT: Final = 500
"""Events kept for watchers that connect or reconnect later."""
BEAT_SECONDS: Final = 15.0
"""Interval of keep-alive messages in seconds, so that both sides notice a lost connection."""


class Full(Exception):
    """As many watch already as may."""


class Watcher:
    """One open page."""

    def __init__(self, viewer: str | None) -> None:
        self.viewer = viewer
        self._queue: deque[bytes] = deque(maxlen=MAX_QUEUED)
        self._shown: dict[str, bytes] = {}
        self._missed = 0
        self._wake = asyncio.Event()
        self._ended = False

    def push(self, message: bytes) -> None:
        """Queue an event. When the queue is full, the oldest event is dropped, and the page is told how many were."""
        if len(self._queue) == MAX_QUEUED:
            self._missed += 1
        self._queue.append(message)
        self._wake.set()

    def show(self, kind: str, message: bytes) -> None:
        """Show the present state, which replaces an unsent older one of the same kind."""
        self._shown[kind] = message
        self._wake.set()

    def end(self) -> None:
        self._ended = True
        self._wake.set()

    async def messages(self) -> AsyncIterator[bytes]:
        """Yield messages to send, until `end`."""
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
        """Part of every event id: a server that is started again counts from 1."""

    def __len__(self) -> int:
        return len(self._watchers)

    def watch(self, after: str = "", viewer: str | None = None) -> Watcher:
        """Return a new watcher. It first gets the events after `after`, the id that it saw last; all kept ones if that
        id is not of this server. `viewer`: the address of a viewer, None for an operator. Raises Full."""
        viewers = [each.viewer for each in self._watchers if each.viewer is not None]
        taken = viewer is not None and (len(viewers) >= MAX_VIEWERS or viewers.count(viewer) >= MAX_OF_ADDRESS)
        if taken or len(self._watchers) >= MAX_WATCHERS:
            raise Full
        watcher = Watcher(viewer)
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
        """Send an event to all watchers."""
        self._number += 1
        text = message(kind, value, f"{self._name}-{self._number}")
        self._kept.append((self._number, text))
        for watcher in self._watchers:
            watcher.push(text)

    def show(self, kind: str, value: dict[str, Any]) -> None:
        """Send the present state to all watchers."""
        if self._watchers:
            text = message(kind, value)
            for watcher in self._watchers:
                watcher.show(kind, text)

    def end(self) -> None:
        """End all streams."""
        for watcher in self._watchers:
            watcher.end()


def message(kind: str, value: dict[str, Any], number: str = "") -> bytes:
    """Return one event in wire format."""
    head = f"id: {number}\n".encode() if number else b""
    return head + b"event: " + kind.encode() + b"\ndata: " + orjson.dumps(value) + b"\n\n"
