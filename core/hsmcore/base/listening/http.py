"""HTTP/1.1 with limits: number of connections, time for a request to arrive, size of its head, and time to read it.

An idle connection costs a descriptor, not a thread. When too many are open, the longest idle one gives way
(connections.py), so idle connections, however many, lock no client out.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from email.utils import formatdate
from functools import lru_cache
from socket import socket
from typing import Any, Final

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from hsmcore.base.listening.connections import Connection, ConnectionLimit
from hsmcore.base.listening.door import Acceptor, address_of
from hsmcore.base.listening.rates import AddressBuckets

MAX_HEAD_BYTES: Final = 16_384
MAX_HEAD_LINES: Final = 100
PIECE_BYTES: Final = 64
"""Least bytes of a body's chunk, on the average."""
FREE_PIECES: Final = 16
"""Chunks of a body whose size does not matter."""
REQUEST_SECONDS: Final = 10.0
"""Seconds from accept(), or from the beginning of a request, to the end of its body."""
KEEP_ALIVE_SECONDS: Final = 30
HANDSHAKE_SECONDS: Final = 5.0
SHUTDOWN_SECONDS: Final = 2


class LimitedReader(h11.Connection):
    """Refuses what takes h11 far longer to read than its size lets expect: a head of a few thousand lines takes 5 ms, a
    packet of chunks of one byte 200 ms, and all that time no other thread has the interpreter."""

    def __init__(self) -> None:
        super().__init__(h11.SERVER, MAX_HEAD_BYTES)
        self._paid = 0

    def next_event(self) -> Any:
        """As h11's."""
        if self.their_state is h11.IDLE:
            head, _, _ = self.trailing_data[0].partition(b"\r\n\r\n")
            if head.count(b"\n") > MAX_HEAD_LINES:
                raise h11.RemoteProtocolError("the head has too many lines", 431)
            self._paid = FREE_PIECES * PIECE_BYTES
        event = super().next_event()
        if isinstance(event, h11.Request) and {b"content-length", b"transfer-encoding"} <= {
            n for n, _ in event.headers
        }:
            # What stands before it may have taken the other length (RFC 9112, 6.1): answered with an end.
            raise h11.RemoteProtocolError("the request says two lengths")
        if isinstance(event, h11.Data):
            self._paid += len(event.data) - PIECE_BYTES
            if self._paid < 0:
                raise h11.RemoteProtocolError("the chunks of the body are too small")
        return event


class LimitedProtocol(H11Protocol):
    """HTTP on one connection, after its handshake. The time limit runs from accept()."""

    def __init__(
        self,
        place: Connection,
        config: uvicorn.Config,
        server_state: ServerState,
        refused: Callable[[str, str], object],
    ) -> None:
        super().__init__(config, server_state, app_state={"connection": place})
        self.conn = LimitedReader()
        self._place, self._refused = place, refused
        self._counted: object = None
        """The request that the place is busy with."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in the base class
        super().connection_made(transport)
        self.app_state["tls"] = transport.get_extra_info("ssl_object")  # an application finds it in scope["state"]
        self._place.give_way = transport.abort
        self._place.idle()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unset_keepalive_if_required()
        self._place.leave()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        self.server_state.default_headers = _dated(int(time.time()))
        super().handle_events()
        if self.transport.is_closing():
            return
        if self.conn.their_state in (h11.DONE, h11.MUST_CLOSE, h11.CLOSED):
            if self._counted is not self.cycle:  # else it is data of the next one, and the place may be idle again
                self._counted = self.cycle
                self._place.busy()
        else:
            self._place.arm(REQUEST_SECONDS)

    def send_400_response(self, msg: str) -> None:
        self._refused(self.client[0] if self.client else "", "not HTTP")
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            if self.cycle is not None:
                self.cycle.disconnected = True  # a request whose body is not valid is answered by this alone
            super().send_400_response(msg)
        else:  # it was answered before its end
            self.transport.close()

    def on_response_complete(self) -> None:
        # A closing connection too: a client that reads nothing can delay the end for ever.
        self._place.idle()
        super().on_response_complete()


@lru_cache(1)
def _dated(second: int) -> list[tuple[bytes, bytes]]:
    """The headers of every answer within a second of Unix time."""
    return [(b"date", formatdate(second, usegmt=True).encode())]


class HttpServer(uvicorn.Server):
    """Serve on sockets that are bound already. `ready` is called when it listens."""

    def __init__(
        self,
        app: Any,
        sockets: list[socket],
        tls: Callable[[], ssl.SSLContext] | None,
        ready: Callable[[], None],
        *,
        drain_seconds: int = SHUTDOWN_SECONDS,
        refused: Callable[[str, str], object] = lambda _peer, _why: None,
        handshakes: AddressBuckets | None = None,
    ) -> None:
        """`tls` gives the context for each new connection. `drain_seconds`: how long the end waits for answers.
        `refused` is told the address of a client whose TLS or HTTP is not valid, and why. `handshakes`: as of
        Acceptor."""
        super().__init__(
            uvicorn.Config(
                app,
                http=LimitedProtocol,
                ws="none",
                lifespan="off",
                log_config=None,
                log_level=logging.CRITICAL,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=drain_seconds,
            )
        )
        self._sockets, self._tls, self._ready, self._refused = sockets, tls, ready, refused
        self._handshakes = handshakes
        self._ending = asyncio.Event()

    def end(self, *, at_once: bool = False) -> None:
        """Have `serve` return: once the open requests are answered, unless it is to be `at_once`."""
        self.should_exit, self.force_exit = True, at_once
        self._ending.set()

    async def main_loop(self) -> None:
        """Wait for `end`. uvicorn's own wakes ten times a second, to see whether it is to end and to write the date."""
        await self._ending.wait()

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave them to the program, whose event loop this may be."""
        yield

    async def startup(self, sockets: list[socket] | None = None) -> None:
        """As uvicorn's, but with Door for accepting."""
        del sockets
        gate = ConnectionLimit()
        self._doors = [
            Acceptor(each, gate, REQUEST_SECONDS, self._connect, self._dismissed, self._handshakes)
            for each in self._sockets
        ]
        self.servers = []
        self.started = True
        self._ready()

    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        for door in self._doors:
            await door.close()
        await super().shutdown(sockets)

    def _dismissed(self, accepted: socket, why: str) -> None:
        self._refused(address_of(accepted), why)

    async def _connect(self, accepted: socket, place: Connection) -> None:
        peer = address_of(accepted)
        tls = self._tls is not None
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: LimitedProtocol(place, self.config, self.server_state, self._refused),
                accepted,
                ssl=None if self._tls is None else self._tls(),
                ssl_handshake_timeout=HANDSHAKE_SECONDS if tls else None,
                ssl_shutdown_timeout=SHUTDOWN_SECONDS if tls else None,
            )
        except ssl.SSLError as error:
            self._refused(peer, str(error.reason or "not TLS"))
            raise
