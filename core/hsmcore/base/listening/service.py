"""The service manager (systemd) is told when this process is ready, that its event loop turns, and when it stops.

The protocol of sd_notify(3) is a datagram to the socket at NOTIFY_SOCKET. Without that variable nothing is sent.
"""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import suppress
from typing import Final, Self

_TIMES_A_LIMIT: Final = 3
"""Signs of life within WatchdogSec: one that is late ends no process."""


class Reports:
    """READY=1 at the beginning of the block, WATCHDOG=1 from the running event loop as often as the service manager
    asks (WATCHDOG_USEC), STOPPING=1 when `stopping` is called, or at the end of the block. For the event loop's thread.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._seconds = _watchdog_seconds() / _TIMES_A_LIMIT
        self._ticking: asyncio.TimerHandle | None = None
        self._stops = False

    def __enter__(self) -> Self:
        tell("READY=1")
        if self._seconds > 0:
            self._tick()
        return self

    def __exit__(self, *_error: object) -> None:
        self.stopping()
        if self._ticking is not None:
            self._ticking.cancel()

    def stopping(self) -> None:
        """Say that the end has begun; signs of life go on until the block ends. Idempotent."""
        if not self._stops:
            self._stops = True
            tell("STOPPING=1")

    def _tick(self) -> None:
        tell("WATCHDOG=1")
        self._ticking = self._loop.call_later(self._seconds, self._tick)


def tell(state: str) -> None:
    """Send one state, such as "READY=1". Does not wait: a service manager that does not read gets nothing."""
    where = os.environ.get("NOTIFY_SOCKET", "")
    if where[:1] not in ("/", "@"):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as told, suppress(OSError):
        told.connect("\0" + where[1:] if where[0] == "@" else where)
        told.send(state.encode())


def _watchdog_seconds() -> float:
    """WatchdogSec of the unit, if it is meant for this process; else 0."""
    micros, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    meant = micros.isdecimal() and pid in ("", str(os.getpid()))
    return int(micros) / 1e6 if meant else 0.0
