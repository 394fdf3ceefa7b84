"""What a front tells the process with the keys: messages of JSON, some with the end of a connection."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter, deque
from typing import Any, Final

import orjson

from hsmcore.gateway.refusals import RefusalLimit

TICK_SECONDS: Final = 0.25
"""Between two reports of counts."""


class FrontReports:
    """Belongs to one event loop."""

    def __init__(self, line: socket.socket) -> None:
        """`line`: a connected socket of type SOCK_SEQPACKET."""
        line.setblocking(False)
        self._line, self._loop = line, asyncio.get_running_loop()
        self._waiting: deque[tuple[bytes, socket.socket | None]] = deque()
        self._blocked = False
        self._counts: Counter[tuple[str, str]] = Counter()
        self._refusals = RefusalLimit(lambda *said: self.tell("refused", *said))

    def tell(self, what: str, *said: Any, connection: socket.socket | None = None) -> None:
        """Send a message. `connection`: goes with it, and is closed here."""
        self._waiting.append((orjson.dumps([what, *said]), connection))
        if not self._blocked:
            self._send()

    def refused(self, peer: str, why: str, what: str) -> None:
        """As Admission.refused."""
        self._refusals.add(peer, why, what)

    def count(self, client: str, outcome: str) -> None:
        """As Admission.count."""
        self._counts[client, outcome] += 1

    def tick(self) -> None:
        """Tell what was only counted. It is a sign of life, too."""
        self._refusals.flush()
        counts, self._counts = self._counts, Counter()
        self.tell("counted", [[*who, count] for who, count in counts.items()])

    def _send(self) -> None:
        while self._waiting:
            data, connection = self._waiting[0]
            try:
                if connection is None:
                    self._line.send(data)
                else:
                    socket.send_fds(self._line, [data], [connection.fileno()])
            except BlockingIOError:
                if not self._blocked:
                    self._blocked = True
                    self._loop.add_writer(self._line, self._send)
                return
            except OSError:  # the process with the keys has ended, and so does this one
                pass
            self._waiting.popleft()
            if connection is not None:
                connection.close()
        if self._blocked:
            self._blocked = False
            self._loop.remove_writer(self._line)
