"""A program that floods a gateway until its standard input ends: python -m tests.support.flood SOCKET KIND CONNECTIONS
[UID]. It reads all answers, and heeds no credits."""

from __future__ import annotations

import os
import selectors
import socket
import sys
from collections.abc import Callable
from contextlib import suppress

from hsmcore.gateway.wire import messages as wire
from hsmcore.gateway.wire.frames import Type, frame

_FRAMES = 4096
KINDS: dict[str, Callable[[int], bytes]] = {
    "refused": lambda number: wire.sign(number, wire.Sign("", 0, None, 0, b"")),
    "counters": lambda number: wire.manage(number, wire.Manage("cache-stats", "")),
    "verify": lambda number: wire.verify(number, wire.Verify("", bytes(64), b"m")),
    "beyond": lambda number: wire.sign(number, wire.Sign("", 0, None, 0, b"%d" % number)),
    "ping": lambda number: frame(Type.PING, number, b"m"),
}


class Connection:
    """One of them."""

    def __init__(self, path: str, kind: str, uid: int) -> None:
        self._make, self._number = KINDS[kind], 1
        self._left = wire.hello(os.urandom(16), "flood")
        self._socket = socket.socket(socket.AF_UNIX)
        before = os.geteuid()
        os.seteuid(uid)  # the gateway sees who connects
        self._socket.connect(path)
        os.seteuid(before)
        self._socket.setblocking(False)

    def go_on(self) -> None:
        """Read what there is, and send as much as the kernel takes."""
        with suppress(BlockingIOError):
            while self._socket.recv(1 << 18):
                pass
        with suppress(BlockingIOError):
            while True:
                if not self._left:
                    numbers = range(self._number, self._number + _FRAMES)
                    self._left = frame(Type.ACK, self._number) + b"".join(map(self._make, numbers))
                    self._number += _FRAMES
                self._left = self._left[self._socket.send(self._left) :]


def main(path: str, kind: str, count: str, uid: str = str(os.geteuid())) -> None:
    """Flood."""
    connections = [Connection(path, kind, int(uid)) for _ in range(int(count))]
    with selectors.DefaultSelector() as ended, suppress(ConnectionError):
        ended.register(sys.stdin, selectors.EVENT_READ)
        while not ended.select(0):
            for connection in connections:
                connection.go_on()


if __name__ == "__main__":
    main(*sys.argv[1:])
