"""The limit on connections, which are counted from accept() on (door.py), and the choice of the one that gives way.

The signer needs descriptors: without one it cannot begin a file of its audit log, and its modules fail. So a server
leaves a reserve of them, whatever its clients do. There is no limit for each address: behind a proxy all clients have
the same one.
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
"""Connections that are always allowed in addition to the busy ones: a process short of descriptors still answers
/healthz."""
RESERVE: Final = 128
"""Descriptors kept for the signer; an eighth of the process's limit, if that is less."""
_LEAVING: Final = 8
"""Connections allowed beyond the limit: those that were told to give way and are closing."""
_LOOK_SECONDS: Final = 0.1


class Connection:
    """One accepted connection, until its descriptor is closed."""

    def __init__(self, gate: ConnectionLimit, give_way: Callable[[], object]) -> None:
        self._gate = gate
        self._deadline: asyncio.TimerHandle | None = None
        self.give_way = give_way
        """Close the connection at once, as far as its state allows. For the gate."""
        self.known: Callable[[], object] = _nothing
        """Note that its client has shown who it is. Idempotent."""

    def idle(self) -> None:
        """Note that it waits for its client: for the first byte, the handshake or a request."""
        self._gate.idle(self)

    def busy(self) -> None:
        """Note that it has a whole request, which is being answered."""
        self.disarm()
        self._gate.busy(self)

    def leave(self) -> None:
        """Note that its descriptor is closed. Idempotent."""
        self.disarm()
        # Breaks a reference cycle, so that TLS's memory goes without the garbage collector.
        self.give_way = lambda: None
        self._gate.leave(self)

    def arm(self, seconds: float) -> None:
        """Have it give way after `seconds` unless it is busy by then. A timer that runs already goes on."""
        if self._deadline is None:
            self._deadline = asyncio.get_running_loop().call_later(seconds, self._gate.dismiss, self)

    def disarm(self) -> None:
        """Stop the timer."""
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def _nothing() -> None:
    """For a connection of which there is nothing to note."""


class ConnectionLimit:
    """The connections of one server, the longest idle first. For the server's event loop."""

    def __init__(self, most: int = MAX_CONNECTIONS) -> None:
        self._most = most
        self._open: set[Connection] = set()
        self._leaving: set[Connection] = set()
        self._idle: dict[Connection, None] = {}
        self._limit, self._looked = FEW, -_LOOK_SECONDS

    @property
    def crowded(self) -> bool:
        """Return whether connections that were told to give way must close before another is accepted."""
        return len(self._leaving) >= _LEAVING

    def enter(self, place: Connection) -> None:
        """Count an accepted connection. The longest idle one gives way if there are too many: this one, if all others
        are busy."""
        self._open.add(place)
        self._idle[place] = None
        surplus = len(self._open) - len(self._leaving) - self._most_now()
        for oldest in list(islice(self._idle, max(surplus, 0))):
            self.dismiss(oldest)

    def dismiss(self, place: Connection) -> None:
        """Tell a connection to give way."""
        self._idle.pop(place, None)
        if place in self._open:
            self._leaving.add(place)
            place.give_way()

    def idle(self, place: Connection) -> None:
        """See Connection."""
        self._idle.pop(place, None)
        if place in self._open and place not in self._leaving:
            self._idle[place] = None

    def busy(self, place: Connection) -> None:
        """See Connection."""
        self._idle.pop(place, None)

    def leave(self, place: Connection) -> None:
        """See Connection."""
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
    """Return how many descriptors the process may open before it touches the reserve; negative: as many are missing."""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    try:
        # The size is their number from Linux 6.2 on, and 0 before. A listing also shows its own descriptor.
        used = Path(folder).stat().st_size or len(os.listdir(folder))  # noqa: PTH208  # several times as fast
    except OSError:  # there is no descriptor even for the listing
        used = most
    return most - used - min(RESERVE, most // 8)
