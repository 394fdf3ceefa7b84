"""The wire's face: listening sockets, the connections of all clients, and the end of both."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from functools import cache
from struct import Struct
from typing import Final

from hsmcore.base.listening.connections import Connection as Place
from hsmcore.base.listening.connections import ConnectionLimit
from hsmcore.base.listening.door import Acceptor
from hsmcore.base.scope import Scope
from hsmcore.errors import PolicyRefused
from hsmcore.gateway.admission import Admission
from hsmcore.gateway.clients import CameBy, Directory, KnownClient, ending
from hsmcore.gateway.connection import GatewayConnection, VaultConnection
from hsmcore.gateway.front.pumps import CONNECTIONS, HELLO_SECONDS
from hsmcore.gateway.jobs import late
from hsmcore.gateway.replay import REMEMBER_SECONDS
from hsmcore.gateway.wire import messages as wire
from hsmcore.gateway.wire_requests import WireFace

STALLED_SECONDS: Final = 10
"""Seconds after which a connection is closed whose frame has begun and gets no further."""
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

    def __init__(self, desk: Admission) -> None:
        super().__init__(desk)
        self.connections: set[GatewayConnection] = set()
        self.inner: set[GatewayConnection] = set()
        """Those of fronts, for what clients ask by HTTP: they end with the front."""
        self._gate = ConnectionLimit(CONNECTIONS)
        self._doors: list[Acceptor] = []
        self._scope = Scope()
        self.listening = True
        self._scope.every(TICK_SECONDS, self._tick, "the gateway did not look at its connections")

    def listen(self, listening: socket.socket) -> None:
        """Accept connections at a Unix socket."""
        self._doors.append(Acceptor(listening, self._gate, HELLO_SECONDS, self._connect_unix, self._dismissed))

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

    def admit(self, connection: socket.socket, client: KnownClient, peer: str, *, vault: bool) -> GatewayConnection:
        """Serve a client whose connection a front has made. `vault`: what it asks there came by HTTP."""
        connection.setblocking(False)
        place = Place(self._gate, lambda: None)
        place.arm(HELLO_SECONDS)
        self._gate.enter(place)
        if vault:
            made: GatewayConnection = VaultConnection(self, self.inner, place, CameBy(peer), client)
        else:
            made = GatewayConnection(self, self.connections, place, self.way(peer), client)

        async def connect() -> None:
            try:
                await self.loop.connect_accepted_socket(lambda: made, connection)
            except BaseException:
                connection.close()
                place.leave()
                raise

        self._scope.start(connect(), failed="a front's connection was not taken")
        return made

    def vouch_no_more(self, connection: GatewayConnection) -> None:
        """The certificate with which a client came has ended, or lost its authority. Idempotent."""
        if connection in self.connections:
            self._revoke(connection, "the certificate of this connection vouches for no client any more")

    def remembered(self) -> dict[str, int]:
        """Return how many answers may be asked for again, by client. Any thread."""
        return {name: client.sessions.remembered for name, client in self.desk.directory.clients.items()}

    def _dismissed(self, accepted: socket.socket, why: str) -> None:
        _, uid, gid = _process_of(accepted)
        self.silent(f"uid {uid}, gid {gid}", why)

    def keys_changed(self) -> None:
        """The keys may be others: have their numbers read, and send them."""
        self._scope.start(self._learn(), failed="the numbers of new keys were not read")

    async def _learn(self) -> None:
        await self.desk.learn_versions()
        self.tell_keys()

    def tell_keys(self) -> None:
        """Send each client its keys, if they have changed."""
        keys_of = cache(self.desk.keys)
        for connection in (*self.connections, *self.inner):
            connection.send_keys(keys_of)

    async def _tick(self) -> None:
        self.now = self.loop.time()
        for client in self.desk.directory.clients.values():
            client.sessions.expire(self.now - REMEMBER_SECONDS)
        for connection in tuple(self.connections):
            if connection.stalls() >= STALLED_SECONDS:
                connection.fail("a frame began and did not end")
            connection.refuse_held(late, self.now)
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
        connect again, and have `seconds` for what is open on the connection before."""
        self.desk.follow(directory)
        for connection in (*self.connections, *self.inner):
            client = connection.client
            if directory.has(client):
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
        while left := (*self.connections, *self.inner):
            for connection in left:
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
        accepted.send(wire.error(0, wire.refusal_of(error)))
    except OSError:
        return
