"""How much of what a client sends is taken at a time. The rest is not read, and stays in the kernel's buffer: a client
that sends without end delays itself."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final, Protocol

FRAMES: Final = 16
"""Frames of all connections of a client that are taken in a turn of the event loop."""


class FrameSource(Protocol):
    """A connection, as its client's intake needs it."""

    behind: bool
    """Whether it has read frames that can be taken, and is here for it."""

    def take(self, most: int) -> int:
        """Take so many frames at most. Returns what they cost, in frames."""


class FrameIntake:
    """Takes frames of one client's connections, by turns. Belongs to one event loop, in each turn of which every client
    has as much."""

    def __init__(self) -> None:
        self._left = FRAMES
        """Below 0: what was taken cost more than there was, which is owed."""
        self._waiting: deque[FrameSource] = deque()
        self._renewing = False

    def offer(self, source: FrameSource) -> None:
        """A connection has frames, and is not waiting here."""
        self._waiting.append(source)
        if len(self._waiting) == 1:
            self._serve()

    def _serve(self) -> None:
        while self._waiting and self._left > 0:
            source = self._waiting.popleft()
            self._left -= source.take(self._left)
            if source.behind:
                self._waiting.append(source)
        if not self._renewing:
            self._renewing = True
            asyncio.get_running_loop().call_soon(self._renew)

    def _renew(self) -> None:
        self._renewing = False
        self._left = min(self._left + FRAMES, FRAMES)
        if self._waiting:
            self._serve()
