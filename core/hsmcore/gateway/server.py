"""The wire's face: listening sockets, the connections of all clients, and the end of both."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Sequence
from functools import cache
from math import inf
from struct import Struct
from typing import Final

from hsmcore.base.listening.connections import Connection as Place
from hsmcore.base.listening.connections import ConnectionLimit
from hsmcore.base.listening.door import Acceptor, address_of
from hsmcore.base.scope import Scope
from hsmcore.errors import PolicyRefused
from hsmcore.gateway.admission import Admission
from hsmcore.gateway.clients import Directory, ending
from hsmcore.gateway.connection import GatewayConnection
from hsmcore.gateway.jobs import late
from hsmcore.gateway.operations import refusal_of
from hsmcore.gateway.replay import REMEMBER_SECONDS
from hsmcore.gateway.tls import Tls
from hsmcore.gateway.wire import messages as wire
from hsmcore.gateway.wire_requests import WireFace

HELLO_SECONDS: Final = 10.0
"""Seconds from accept() to the end of HELLO."""
HANDSHAKE_SECONDS: Final = 5.0
STALLED_SECONDS: Final = 10
"""Seconds after which a connection is closed whose frame has begun and gets no further."""
CONNECTIONS: Final = 4096
TICK_SECONDS: Final = 1.0
REVOKED_SECONDS: Final = 1.0
"""For the answers of what a client has open that is none any more."""
LAST_SECONDS: Final = 2.0
"""Seconds that clients have to read their last answers."""
_CREDENTIALS: Final = Struct("iII")
_SO_PEERGROUPS: Final = 59
"""Of Linux (asm-generic/socket.h), for which Python has no name."""
_MOST_GROUPS: Final = 1024
"""Bytes: Python's getsockopt gives no more, which are 256 groups."""


class GatewayServer(WireFace):
    """Listens, and ends. Belongs to the event loop of the key managers."""

    def __init__(self, desk: Admission, tls: Tls | None = None) -> None:
        super().__init__(desk)
        self._tls = tls
        self.connections: set[GatewayConnection] = set()
        self._gate = ConnectionLimit(CONNECTIONS)
        self._doors: list[Acceptor] = []
        self._scope = Scope()

    def listen(self, listening: socket.socket, *, tls: bool = False) -> None:
        """Accept connections at a bound socket: of TLS, or a Unix socket."""
        connect = self._connect_tls if tls else self._connect_unix
        self.listening = True
        if not self._doors:
            self._scope.every(TICK_SECONDS, self._tick, "the gateway did not look at its connections")
        rates = self.desk.handshakes
        self._doors.append(Acceptor(listening, self._gate, HELLO_SECONDS, connect, self._dismissed, rates))

    async def _connect_unix(self, accepted: socket.socket, place: Place) -> None:
        pid, uid, gid = _process_of(accepted)
        peer = f"uid {uid}, gid {gid}"
        client = self.desk.directory.by_peer(uid, gid, _groups_of(accepted))
        if client is None:
            self.refused(peer, None, "no client has this uid or gid")
            _say_no(accepted)
            raise ConnectionRefusedError
        way = self.way(peer, pid)
        await self.loop.connect_accepted_socket(
            lambda: GatewayConnection(self, self.connections, place, way, client), accepted
        )

    async def _connect_tls(self, accepted: socket.socket, place: Place) -> None:
        assert self._tls is not None  # noqa: S101  # for the type checker
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        peer = str(accepted.getpeername()[0])
        way = self.way(peer)
        try:
            await self.loop.connect_accepted_socket(
                lambda: GatewayConnection(self, self.connections, place, way, None),
                accepted,
                ssl=self._tls.context,
                ssl_handshake_timeout=HANDSHAKE_SECONDS,
            )
        except asyncio.CancelledError:
            self.silent(peer, "the TLS handshake was not done in time")
            raise
        except OSError as error:
            self.refused(peer, None, f"the TLS handshake failed: {error.strerror or error}")
            raise

    def until(self, shown: ssl.SSLObject | None) -> float:
        """Return until when what was shown in a handshake vouches for a client, in seconds since 1970."""
        return inf if self._tls is None else self._tls.ends(shown)

    def remembered(self) -> dict[str, int]:
        """Return how many answers may be asked for again, by client. Any thread."""
        return {name: client.sessions.remembered for name, client in self.desk.directory.clients.items()}

    def _dismissed(self, accepted: socket.socket, why: str) -> None:
        if accepted.family == socket.AF_UNIX:
            _, uid, gid = _process_of(accepted)
            self.silent(f"uid {uid}, gid {gid}", why)
        else:
            self.silent(address_of(accepted), why)

    def keys_changed(self) -> None:
        """The keys may be others: have their numbers read, and send them."""
        self._scope.start(self._learn(), failed="the numbers of new keys were not read")

    async def _learn(self) -> None:
        await self.desk.learn_versions()
        self.tell_keys()

    def tell_keys(self) -> None:
        """Send each client its keys, if they have changed."""
        keys_of = cache(self.desk.keys)
        for connection in self.connections:
            connection.send_keys(keys_of)

    async def _tick(self) -> None:
        self.now = self.loop.time()
        for client in self.desk.directory.clients.values():
            client.sessions.expire(self.now - REMEMBER_SECONDS)
        moment = time.time()
        for connection in tuple(self.connections):
            if connection.stalls() >= STALLED_SECONDS:
                connection.fail("a frame began and did not end")
            connection.refuse_held(late, self.now)
            if connection.until <= moment:
                self._revoke(connection, "the certificate of this connection vouches for no client any more")
        self.tell_keys()

    async def stop_listening(self) -> None:
        """Accept no more connections."""
        self.listening = False
        doors, self._doors = self._doors, []
        for door in doors:
            await door.close()

    async def drain(self, seconds: float, reason: str) -> bool:
        """Accept no more connections and requests, answer what is open, and close. Returns whether all was answered in
        time."""
        await self.stop_listening()
        self.draining = True
        for connection in self.connections:
            connection.send(wire.goaway(int(seconds * 1e3), reason))
            connection.refuse_held(ending)
        until, taken = self.loop.time() + seconds, -1
        # What clients had sent by then is taken and answered, too.
        while (self.desk.open or taken != self._taken()) and self.loop.time() < until:
            taken = self._taken()
            for manager in self.desk.managers.values():
                manager.hurry_batches()
            await asyncio.sleep(0.01)
        done = not self.desk.open
        for connection in tuple(self.connections):
            connection.close()
        until = self.loop.time() + LAST_SECONDS
        while self.connections and self.loop.time() < until:  # noqa: ASYNC110  # as above
            await asyncio.sleep(0.01)
        return done

    def follow(self, directory: Directory, seconds: float) -> None:
        """Serve these clients from now on. Connections of those that are gone are closed; those with other rules
        connect again, and have `seconds` for what is open on the connection before. The next tick closes those whose
        certificates count no more."""
        self.desk.follow(directory)
        if self._tls is not None:
            self._tls.reread()
        for connection in tuple(self.connections):
            connection.until = self.until(connection.shown)
            client = connection.client
            if client is None or directory.has(client):
                continue
            if client.name in directory.clients and connection.session is not None:
                connection.leave(seconds, "the rules of this client have changed")
            else:
                self._revoke(connection, "this client is none of the gateway any more")

    def _revoke(self, connection: GatewayConnection, why: str) -> None:
        """It is no client's any more: say so, and close it soon. Idempotent."""
        if connection.revoked:
            return
        connection.revoked = True
        self.refused(connection.peer, connection.client, why)
        if connection.session is None:
            connection.turn_away(why)
        else:
            connection.leave(REVOKED_SECONDS, why)

    def _taken(self) -> int:
        """Return how much has come and was taken."""
        return self.bytes_in + sum(connection.frames for connection in self.connections)

    async def close(self) -> None:
        """Close what is left."""
        await self.stop_listening()
        self.desk.close()
        while self.connections:
            for connection in tuple(self.connections):
                connection.abort()
            await asyncio.sleep(0)
        await self._scope.close()


def _process_of(accepted: socket.socket) -> tuple[int, int, int]:
    """The process that connected, 0 if it is none that this one sees, its user and its primary group."""
    sent = accepted.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, gid = _CREDENTIALS.unpack(sent)
    return pid, uid, gid


def _groups_of(accepted: socket.socket) -> Sequence[int]:
    """The supplementary groups of the process that connected, at that time."""
    try:
        return memoryview(accepted.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _MOST_GROUPS)).cast("I")
    except OSError:  # more of them than Python reads, or a kernel before 4.13: the primary one counts
        return ()


def _say_no(accepted: socket.socket) -> None:
    error = PolicyRefused("this user is no client of the gateway", hint="")
    try:
        accepted.recv(4096)  # what is unread would reset the connection before the answer is read
        accepted.send(wire.error(0, refusal_of(error)))
    except OSError:
        return
