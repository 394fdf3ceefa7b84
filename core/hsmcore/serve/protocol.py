"""HTTP/1.1 with limits: connections, the time that a request may take to arrive, and the size of its head.

A connection that sends nothing costs a place, not a thread; when all places are taken, the one that has been silent
longest gives way. So idle connections, however many, keep nobody out.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from socket import socket
from typing import Any, Final

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_CONNECTIONS: Final = 256
MAX_HEAD_BYTES: Final = 16_384
REQUEST_SECONDS: Final = 10.0
"""From a connection's or a request's beginning to the end of its body."""
KEEP_ALIVE_SECONDS: Final = 30
HANDSHAKE_SECONDS: Final = 5.0
SHUTDOWN_SECONDS: Final = 2
_BACKLOG: Final = 1024


class Gate:
    """The connections of one server, the one that has been idle longest first."""

    def __init__(self, most: int = MAX_CONNECTIONS) -> None:
        self._most = most
        self._open = 0
        self._idle: dict[LimitedProtocol, None] = {}

    def enter(self, connection: LimitedProtocol) -> bool:
        """Whether there is a place; another one may have lost its own."""
        self._open += 1
        self._idle[connection] = None
        if self._open <= self._most:
            return True
        oldest = next(iter(self._idle))
        oldest.give_way()
        return oldest is not connection

    def leave(self, connection: LimitedProtocol) -> None:
        self._open -= 1
        self._idle.pop(connection, None)

    def busy(self, connection: LimitedProtocol) -> None:
        """It has a whole request, which is being answered."""
        self._idle.pop(connection, None)

    def idle(self, connection: LimitedProtocol) -> None:
        """It waits for the next one."""
        self._idle[connection] = None


class LimitedProtocol(H11Protocol):
    """One connection."""

    gate: Gate

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in the base class
        self._deadline: asyncio.TimerHandle | None = None
        super().connection_made(transport)
        if self.gate.enter(self):
            self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        self._unset_keepalive_if_required()
        self.gate.leave(self)
        super().connection_lost(exc)

    def give_way(self) -> None:
        """Close at once: somebody else needs the place, or the time is over."""
        self.transport.abort()

    def handle_events(self) -> None:
        super().handle_events()
        if self.transport.is_closing():
            return
        if self.conn.their_state in (h11.DONE, h11.MUST_CLOSE, h11.CLOSED):
            self._disarm()
            self.gate.busy(self)
        elif self._deadline is None:
            self._arm()

    def on_response_complete(self) -> None:
        if not self.transport.is_closing():
            self.gate.idle(self)
        super().on_response_complete()

    def _arm(self) -> None:
        self._deadline = self.loop.call_later(REQUEST_SECONDS, self.give_way)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class Server(uvicorn.Server):
    """Listens at sockets that are bound already. `ready` is called when it does."""

    def __init__(self, app: Any, sockets: list[socket], tls: ssl.SSLContext | None, ready: Callable[[], None]) -> None:
        protocol = type("Protocol", (LimitedProtocol,), {"gate": Gate()})
        super().__init__(
            uvicorn.Config(
                app,
                http=protocol,
                ws="none",
                lifespan="off",
                log_config=None,
                log_level=logging.CRITICAL,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                h11_max_incomplete_event_size=MAX_HEAD_BYTES,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=SHUTDOWN_SECONDS,
            )
        )
        self._protocol = protocol
        self._sockets, self._tls, self._ready = sockets, tls, ready

    async def startup(self, sockets: list[socket] | None = None) -> None:
        """As uvicorn's, but with time limits for TLS, which it does not have."""
        del sockets
        loop, state = asyncio.get_running_loop(), self.server_state
        self.servers = [
            await loop.create_server(
                lambda: self._protocol(config=self.config, server_state=state, app_state={}),
                sock=each,
                ssl=self._tls,
                backlog=_BACKLOG,
                ssl_handshake_timeout=HANDSHAKE_SECONDS if self._tls is not None else None,
                ssl_shutdown_timeout=SHUTDOWN_SECONDS if self._tls is not None else None,
            )
            for each in self._sockets
        ]
        self.started = True
        self._ready()
