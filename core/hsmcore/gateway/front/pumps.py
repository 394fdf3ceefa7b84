"""hsmcore-wire over TLS: the handshake and the client's name are found here, and its bytes go on to the process with
the keys as they are. Who does not read is not read."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Sequence
from itertools import count
from math import inf
from typing import Final, cast

from hsmcore.base.listening.connections import Connection as Place
from hsmcore.base.listening.connections import ConnectionLimit
from hsmcore.base.listening.door import Acceptor, address_of
from hsmcore.errors import PolicyRefused
from hsmcore.gateway.front.core import Core
from hsmcore.gateway.tls import Tls, names_in
from hsmcore.gateway.wire import messages as wire

HELLO_SECONDS: Final = 10.0
"""Seconds from accept() to the end of the handshake, and from there to the end of HELLO."""
HANDSHAKE_SECONDS: Final = 5.0
CONNECTIONS: Final = 4096
_LAST_SECONDS: Final = 1.5
"""Seconds that clients have to read their last answers when the process with the keys has ended."""


class Pumps:
    """Listens, and connects each client with the process with the keys. Belongs to one event loop."""

    def __init__(self, core: Core, listening: Sequence[socket.socket], tls: Tls) -> None:
        self._core, self._tls = core, tls
        self._loop = asyncio.get_running_loop()
        self._halves: set[Half] = set()
        gate = ConnectionLimit(CONNECTIONS)
        self._numbers = count(1)
        self._doors = [
            Acceptor(one, gate, HELLO_SECONDS, self._connect, self._dismissed, core.handshakes) for one in listening
        ]

    async def _connect(self, accepted: socket.socket, place: Place) -> None:
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        peer, refused = address_of(accepted), self._core.reports.refused
        half = Half(self._halves, place)
        try:
            await self._loop.connect_accepted_socket(
                lambda: half,
                accepted,
                ssl=self._tls.context,
                ssl_handshake_timeout=HANDSHAKE_SECONDS,
            )
        except asyncio.CancelledError:
            refused(peer, "the TLS handshake was not done in time", "connect")
            raise
        except OSError as error:
            refused(peer, f"the TLS handshake failed: {error.strerror or error}", "connect")
            raise
        half.shown = half.transport.get_extra_info("ssl_object")
        half.until = self._tls.ends(half.shown)
        names = names_in(half.transport.get_extra_info("peercert"))
        client = self._core.clients.by_names(names)
        if client is None:
            refused(f"{peer} ({', '.join(names)[:128]})", "no client has such a name", "connect")
            refusal = wire.refusal_of(PolicyRefused("no client has a name of this certificate", hint=""))
            half.transport.write(wire.error(0, refusal))
            half.transport.close()
            return
        place.known()
        half.number = next(self._numbers)
        own = self._core.connection("wire", client, peer, half.number)
        inner = Half(self._halves)
        await self._loop.connect_accepted_socket(lambda: inner, own)
        place.busy()
        inner.join(half)

    def _dismissed(self, accepted: socket.socket, why: str) -> None:
        self._core.reports.refused(address_of(accepted), why, "connect")

    def reread(self) -> None:
        """The files of TLS were looked at: authorities may have been taken away."""
        for half in self._halves:
            half.until = self._tls.ends(half.shown)

    def tick(self) -> None:
        """Tell which clients' certificates vouch for them no more, until their connections have ended."""
        now = time.time()
        if ended := [half.number for half in self._halves if half.number and half.until <= now]:
            self._core.reports.tell("ended", ended)

    async def stop_listening(self) -> None:
        """Accept no more connections."""
        doors, self._doors = self._doors, []
        for door in doors:
            await door.close()

    async def close(self) -> None:
        """Accept no more, and end what is open, when its clients have read what is left. The other process has said
        its last word."""
        await self.stop_listening()
        until = self._loop.time() + _LAST_SECONDS
        while self._halves and self._loop.time() < until:  # noqa: ASYNC110  # each ends by itself, and tells nobody
            await asyncio.sleep(0.01)
        for half in tuple(self._halves):
            half.transport.abort()


class Half(asyncio.Protocol):
    """One of two connections, of which each gets what the other one has read. `place`: of the client's."""

    transport: asyncio.Transport

    def __init__(self, open_ones: set[Half], place: Place | None = None) -> None:
        self._open_ones, self._place = open_ones, place
        self._other: Half | None = None
        self.shown: ssl.SSLObject | None = None
        """With which the client has shown its certificate."""
        self.until = inf
        """When what was shown vouches for the client no more, in seconds since 1970."""
        self.number = 0
        """As of Core.connection."""
        self.lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Nothing is read before there is another one."""
        self.transport = cast("asyncio.Transport", transport)
        self._open_ones.add(self)
        self.transport.pause_reading()
        if self._place is not None:
            self._place.give_way = self.transport.abort
            self._place.idle()

    def join(self, other: Half) -> None:
        """Begin to pass bytes on, both ways."""
        self._other, other._other = other, self
        for one, far in ((self, other), (other, self)):
            if far.lost:
                one.transport.close()
            elif not one.lost:
                one.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        """Pass it on."""
        if self._other is not None:
            self._other.transport.write(data)

    def pause_writing(self) -> None:
        """What is to be written here waits: read no more of it."""
        if self._other is not None and not self._other.transport.is_closing():
            self._other.transport.pause_reading()

    def resume_writing(self) -> None:
        """There is room again."""
        if self._other is not None and not self._other.transport.is_closing():
            self._other.transport.resume_reading()

    def connection_lost(self, _error: Exception | None) -> None:
        """The other one ends, too, when it has sent what came here."""
        self.lost = True
        self._open_ones.discard(self)
        if self._place is not None:
            self._place.leave()
        if self._other is not None:
            self._other.transport.close()
