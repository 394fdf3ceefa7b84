"""How much of what a client sends is taken at a time. The rest is not read, and stays in the kernel's buffer: a client
that sends without end delays itself. What is taken costs the event loop time, and is counted as that."""

from __future__ import annotations

import asyncio
from collections import deque
from math import inf
from typing import Final, Protocol

SIGN_COST: Final = 8
"""What a SIGN takes of the event loop until it is answered, in microseconds: measured, as the other costs are."""
PLAIN_COST: Final = 5
"""A frame that is no request."""
REFUSAL_COST: Final = 30
"""An error that is made and sent, and may be recorded, beside the request."""
TASK_COST: Final = 60
"""A request that has a task of its own: VERIFY and MANAGE."""
MESSAGE_COST: Final = 4
"""One more message of a batch."""
AT_ONCE: Final = 240
"""Microseconds of all connections of a client, in a turn of the event loop: the next turn begins with what others have
sent."""
SHARED: Final = 240
"""And in a TICK, while other clients send, too. The keys sign on the same processors: an event loop that is always busy
with what one client sends would leave them, and who waits for them, too little."""
TICK: Final = 0.001
LATELY: Final = 0.05
"""Seconds for which a client counts as one that sends."""


class FrameSource(Protocol):
    """A connection, as its client's intake needs it."""

    behind: bool
    """Whether it has read frames that can be taken, and is here for it."""

    def take(self, most: int) -> int:
        """Take so many frames at most. Returns what they cost, in microseconds."""


class Crowd:
    """Which of a gateway's clients sent frames last, and when, and when another one did."""

    __slots__ = ("last", "last_at", "other_at")

    def __init__(self) -> None:
        self.last: FrameIntake | None = None
        self.last_at = self.other_at = -inf


class FrameIntake:
    """Takes frames of one client's connections, by turns. Belongs to one event loop, of which every client has as
    much."""

    def __init__(self, crowd: Crowd) -> None:
        self.crowd = crowd
        self._left = AT_ONCE
        """Below 0: what was taken cost more than there was, which is owed."""
        self._waiting: deque[FrameSource] = deque()
        self._renewing = False
        self._loop: asyncio.AbstractEventLoop | None = None

    def offer(self, source: FrameSource) -> None:
        """A connection has frames, and is not waiting here."""
        self._waiting.append(source)
        if len(self._waiting) == 1:
            self._serve()

    def charge(self, cost: int) -> None:
        """Count what a client's request has cost beside its frame."""
        self._left -= cost

    def _serve(self) -> None:
        loop, crowd = self._loop, self.crowd
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        now = loop.time()
        if crowd.last is not self:
            crowd.last, crowd.other_at = self, crowd.last_at
        crowd.last_at = now
        while self._waiting and self._left > 0:
            source = self._waiting.popleft()
            self._left -= source.take(-(-self._left // SIGN_COST))
            if source.behind:
                self._waiting.append(source)
        if self._renewing:
            return
        self._renewing = True
        if now - crowd.other_at < LATELY:
            loop.call_later(TICK, self._renew, SHARED)
        else:
            loop.call_soon(self._renew, AT_ONCE)

    def _renew(self, most: int) -> None:
        self._renewing = False
        self._left = min(self._left + most, most)
        if self._waiting:
            self._serve()
