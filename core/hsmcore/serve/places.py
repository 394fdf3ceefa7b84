"""How many connections there may be, counted from accept() on (door.py), and which one gives way when there are more.

Descriptors belong to the signer: without one it can begin no file of its audit log, and its modules fail. So the
console leaves a reserve of them alone, whatever its clients do. There is no limit for an address: behind a proxy all
clients have the same one.
"""

from __future__ import annotations

import asyncio
import os
import resource
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Final

MAX_CONNECTIONS: Final = 256
FEW: Final = 8
"""So many beside those that are busy there may always be: a process short of descriptors still answers /healthz."""
RESERVE: Final = 128
"""Descriptors that stay free for the signer; an eighth of those that the process may open, if that is less."""
_LEAVING: Final = 8
"""So many beyond the limit may be open: of those that were told to give way, and are about to."""
_LOOK_SECONDS: Final = 0.1


class ConnectionSlot:
    """What one connection takes, until its descriptor is closed."""

    def __init__(self, gate: Gate, give_way: Callable[[], object]) -> None:
        self._gate = gate
        self._deadline: asyncio.TimerHandle | None = None
        self.give_way = give_way
        """Closes the connection at once, as far as its state allows. For the gate."""

    def idle(self) -> None:
        """It waits for its client: for the first byte, for the handshake, for a request."""
        self._gate.idle(self)

    def busy(self) -> None:
        """It has a whole request, which is being answered."""
        self.disarm()
        self._gate.busy(self)

    def leave(self) -> None:
        """Its descriptor is closed. Doing it twice is no error."""
        self.disarm()
        self.give_way = lambda: None  # no circle: what TLS has of memory goes at once, without the garbage collector
        self._gate.leave(self)

    def arm(self, seconds: float) -> None:
        """Unless it is `busy` by then, it gives way; a time that runs already goes on."""
        if self._deadline is None:
            self._deadline = asyncio.get_running_loop().call_later(seconds, self._gate.dismiss, self)

    def disarm(self) -> None:
        """The time no longer counts."""
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class Gate:
    """The connections of one server, the one that has been idle longest first. For the server's event loop."""

    def __init__(self, most: int = MAX_CONNECTIONS) -> None:
        self._most = most
        self._open: set[ConnectionSlot] = set()
        self._leaving: set[ConnectionSlot] = set()
        self._idle: dict[ConnectionSlot, None] = {}
        self._limit, self._looked = FEW, -_LOOK_SECONDS

    @property
    def crowded(self) -> bool:
        """Whether some that were told to give way have to be closed before another is accepted."""
        return len(self._leaving) >= _LEAVING

    def enter(self, place: ConnectionSlot) -> None:
        """One was accepted. What is too much gives way; that may be itself, if all others are busy."""
        self._open.add(place)
        self._idle[place] = None
        surplus = len(self._open) - len(self._leaving) - self._most_now()
        for oldest in list(islice(self._idle, max(surplus, 0))):
            self.dismiss(oldest)

    def dismiss(self, place: ConnectionSlot) -> None:
        """Have it give way."""
        self._idle.pop(place, None)
        if place in self._open:
            self._leaving.add(place)
            place.give_way()

    def idle(self, place: ConnectionSlot) -> None:
        """See ConnectionSlot."""
        self._idle.pop(place, None)
        if place in self._open and place not in self._leaving:
            self._idle[place] = None

    def busy(self, place: ConnectionSlot) -> None:
        """See ConnectionSlot."""
        self._idle.pop(place, None)

    def leave(self, place: ConnectionSlot) -> None:
        """See ConnectionSlot."""
        self._idle.pop(place, None)
        self._leaving.discard(place)
        self._open.discard(place)

    def _most_now(self) -> int:
        now = time.monotonic()
        if now - self._looked >= _LOOK_SECONDS:
            self._looked = now
            busy = len(self._open) - len(self._idle) - len(self._leaving)
            self._limit = min(self._most, max(FEW + busy, len(self._open) + spare_descriptors()))
        return self._limit


def spare_descriptors(folder: str = "/proc/self/fd") -> int:
    """How many this process may open before it touches the reserve; less than 0: so many are missing from it."""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    try:
        # The size is their number from Linux 6.2 on, and 0 before. A listing shows its own descriptor, too.
        used = Path(folder).stat().st_size or len(os.listdir(folder))  # noqa: PTH208  # several times as fast
    except OSError:  # not even for that is there one
        used = most
    return most - used - min(RESERVE, most // 8)
