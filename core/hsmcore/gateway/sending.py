"""What a client's connection sends: frames of an iteration of the event loop together."""

from __future__ import annotations

import asyncio
from typing import ClassVar, Final

from hsmcore.gateway.clients import KnownClient
from hsmcore.gateway.wire_requests import WireFace

AT_ONCE: Final = 16
"""Answers that are sent together, at most: while their client takes them, the next ones are made. With all of a turn in
one write, each side stands still while the other works."""


class AnswerSender(asyncio.Protocol):
    """Belongs to the event loop of the key managers."""

    counts: ClassVar = True
    """Whether its requests are counted here, and end with a drain."""

    def __init__(self, server: WireFace, client: KnownClient) -> None:
        self.server, self.client = server, client
        self._loop = server.loop
        self._transport: asyncio.Transport | None = None
        self._out: list[bytes] = []

    def send(self, data: bytes, *, last: bool = False) -> None:
        """Send a frame with others of this turn of the event loop, at most AT_ONCE; at once if it is the `last` one."""
        if self._transport is None:
            return
        self._out.append(data)
        if last or len(self._out) == AT_ONCE:
            self._flush()
        elif len(self._out) == 1:
            self._loop.call_soon(self._flush)

    def send_signed(self, answers: list[bytes]) -> None:
        """Send SIGNED frames of a turn of the event loop, behind what waits to be sent."""
        if self.counts:
            self.server.desk.requests[self.client.name, "OK"] += len(answers)
        if self._transport is not None:
            self._out += answers
            self._flush()

    def _flush(self) -> None:
        data = b"".join(self._out)
        self._out.clear()
        if self._transport is not None and data:
            self.server.bytes_out += len(data)
            self._transport.write(data)
