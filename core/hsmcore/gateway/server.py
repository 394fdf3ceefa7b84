"""The wire's face: listening sockets, the connections of all clients, and the end of both."""

from __future__ import annotations

import asyncio
import os
import socket
from struct import Struct
from typing import Final

from hsmcore.base.listening.connections import Connection as Place
from hsmcore.base.listening.connections import ConnectionLimit
from hsmcore.base.listening.door import Acceptor, address_of
from hsmcore.base.log import get_logger
from hsmcore.base.scope import Scope
from hsmcore.errors import PolicyRefused
from hsmcore.gateway.admission import Admission
from hsmcore.gateway.clients import COME_BACK_MS, Directory, KnownClient, ending, refused
from hsmcore.gateway.connection import GatewayConnection
from hsmcore.gateway.intake import FrameIntake
from hsmcore.gateway.jobs import late
from hsmcore.gateway.operations import refusal_of
from hsmcore.gateway.replay import REMEMBER_SECONDS, MemoryBudget, ReplaySession, Sessions
from hsmcore.gateway.tls import Tls, names_in
from hsmcore.gateway.wire import messages as wire
from hsmcore.gateway.wire_requests import ServedRequest

BATCH: Final = 1024
"""Most messages of a SIGN_MANY."""
HELLO_SECONDS: Final = 10.0
"""Seconds from accept() to the end of HELLO."""
HANDSHAKE_SECONDS: Final = 5.0
STALLED_SECONDS: Final = 10
"""Seconds after which a connection is closed whose frame has begun and gets no further."""
CONNECTIONS: Final = 4096
OF_ONE_CLIENT: Final = 256
TICK_SECONDS: Final = 1.0
LAST_SECONDS: Final = 2.0
"""Seconds that clients have to read their last answers."""
_CREDENTIALS: Final = Struct("iII")


class GatewayServer:
    """Belongs to the event loop of the key managers."""

    def __init__(self, desk: Admission, tls: Tls | None = None) -> None:
        self.desk, self._tls = desk, tls
        self.loop = asyncio.get_running_loop()
        self.instance = os.urandom(wire.NONCE_BYTES)
        self.batch = BATCH
        self.now = self.loop.time()
        """Time of the last tick."""
        self.draining = False
        self.bytes_in = self.bytes_out = self.repeated = 0
        self.connections: set[GatewayConnection] = set()
        self._gate = ConnectionLimit(CONNECTIONS)
        self._doors: list[Acceptor] = []
        self._sessions: dict[str, Sessions[ServedRequest]] = {
            client.name: Sessions(MemoryBudget.of(client.rules.in_flight)) for client in desk.directory.clients.values()
        }
        self._intakes: dict[str, FrameIntake] = {}
        self._ticking: asyncio.TimerHandle | None = None
        self._scope = Scope()

    def listen(self, listening: socket.socket, *, tls: bool = False) -> None:
        """Accept connections at a bound socket: of TLS, or a Unix socket."""
        connect = self._connect_tls if tls else self._connect_unix
        self._doors.append(Acceptor(listening, self._gate, HELLO_SECONDS, connect, self._dismissed))
        if self._ticking is None:
            self._tick()

    async def _connect_unix(self, accepted: socket.socket, place: Place) -> None:
        uid, gid = _user_of(accepted)
        peer = f"uid {uid}, gid {gid}"
        client = self.desk.directory.by_peer(uid, gid)
        if client is None:
            self.refused(peer, None, "no client has this uid or gid")
            _say_no(accepted)
            raise ConnectionRefusedError
        await self.loop.connect_accepted_socket(lambda: GatewayConnection(self, place, peer, client), accepted)

    async def _connect_tls(self, accepted: socket.socket, place: Place) -> None:
        assert self._tls is not None  # noqa: S101  # for the type checker
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        peer = str(accepted.getpeername()[0])
        try:
            await self.loop.connect_accepted_socket(
                lambda: GatewayConnection(self, place, peer, None),
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

    def made(self, connection: GatewayConnection) -> None:
        """A connection has begun."""
        self.connections.add(connection)
        if connection.client is None:
            names = names_in(connection.certificate)
            connection.client = self.desk.directory.by_names(names)
            if connection.client is None:
                self.refused(f"{connection.peer} ({', '.join(names)[:128]})", None, "no client has such a name")
                connection.turn_away("no client has a name of this certificate")

    def lost(self, connection: GatewayConnection) -> None:
        """A connection has ended."""
        self.connections.discard(connection)

    def enter(
        self, connection: GatewayConnection, client: KnownClient, hello: wire.Hello
    ) -> ReplaySession[ServedRequest]:
        """Return the session of a connection that has said HELLO. Raises QueueFull."""
        if not self.desk.directory.has(client):
            raise PolicyRefused("the gateway's clients have changed", hint="Connect again.")
        own = sum(one.client is client and one.session is not None for one in self.connections)
        if own >= OF_ONE_CLIENT:
            raise refused(f"client {client.name!r} has {own} connections", COME_BACK_MS)
        get_logger().info("client connected", client=client.name, peer=connection.peer, program=hello.program)
        return self._sessions[client.name].enter(hello.nonce)

    def intake(self, client: KnownClient) -> FrameIntake:
        """Return what takes the frames of a client's connections."""
        return self._intakes.setdefault(client.name, FrameIntake(self.loop))

    def welcome(self, client: KnownClient, keys: tuple[wire.Key, ...]) -> wire.Welcome:
        """Return what a client is told first."""
        counters = self.desk.counters(client)
        return wire.Welcome(
            instance=self.instance,
            credits=client.rules.in_flight,
            message_bytes=min(one.message_bytes for one in counters),
            batch=min(self.batch, client.rules.in_flight),
            remember_ms=int(REMEMBER_SECONDS * 1e3),
            client=client.name,
            slots=tuple(one.name for one in counters),
            keys=keys,
        )

    def remembered(self) -> dict[str, int]:
        """Return how many answers may be asked for again, by client. Any thread."""
        return {name: sessions.remembered for name, sessions in tuple(self._sessions.items())}

    def refused(self, peer: str, client: KnownClient | None, why: str, what: str = "connect") -> None:
        """Record that a connection was refused, or `what` it asked for."""
        self.desk.refused(peer if client is None else f"{client.name} ({peer})", why, what)

    def silent(self, peer: str, why: str) -> None:
        """Record that a connection was closed before it said who it is, unless the gateway ends."""
        if self._doors:
            self.refused(peer, None, why)

    def _dismissed(self, accepted: socket.socket) -> None:
        if accepted.family == socket.AF_UNIX:
            uid, gid = _user_of(accepted)
            self.silent(f"uid {uid}, gid {gid}", "it said nothing")
        else:
            self.silent(address_of(accepted), "it said nothing")

    def keys_changed(self) -> None:
        """The keys may be others: have their numbers read, and send them."""
        self._scope.start(self._learn(), failed="the numbers of new keys were not read")

    async def _learn(self) -> None:
        await self.desk.learn_versions()
        self.tell_keys()

    def tell_keys(self) -> None:
        """Send each client its keys, if they have changed."""
        for connection in self.connections:
            connection.send_keys()

    def _tick(self) -> None:
        self.now = self.loop.time()
        self._ticking = self.loop.call_later(TICK_SECONDS, self._tick)
        for sessions in self._sessions.values():
            sessions.expire(self.now - REMEMBER_SECONDS)
        for connection in tuple(self.connections):
            if connection.stalls() >= STALLED_SECONDS:
                connection.fail("a frame began and did not end")
            connection.refuse_held(late, self.now)
        self.tell_keys()

    async def stop_listening(self) -> None:
        """Accept no more connections."""
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
        self._sessions = {
            name: self._sessions.get(name) or Sessions(MemoryBudget.of(client.rules.in_flight))
            for name, client in directory.clients.items()
        }
        for name, sessions in self._sessions.items():
            sessions.resize(directory.clients[name].rules.in_flight)
        for connection in tuple(self.connections):
            client = connection.client
            if client is None or directory.has(client):
                continue
            if client.name in directory.clients and connection.session is not None:
                connection.leave(seconds, "the rules of this client have changed")
            else:
                self.refused(connection.peer, client, "no longer a client")
                connection.turn_away("this client is none of the gateway any more")

    def _taken(self) -> int:
        """Return how much has come and was taken."""
        return self.bytes_in + sum(connection.frames for connection in self.connections)

    async def close(self) -> None:
        """Close what is left."""
        await self.stop_listening()
        await self._scope.close()
        self.desk.close()
        if self._ticking is not None:
            self._ticking.cancel()
        while self.connections:
            for connection in tuple(self.connections):
                connection.abort()
            await asyncio.sleep(0)


def _user_of(accepted: socket.socket) -> tuple[int, int]:
    sent = accepted.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, uid, gid = _CREDENTIALS.unpack(sent)
    return uid, gid


def _say_no(accepted: socket.socket) -> None:
    error = PolicyRefused("this user is no client of the gateway", hint="")
    try:
        accepted.recv(4096)  # what is unread would reset the connection before the answer is read
        accepted.send(wire.error(0, refusal_of(error)))
    except OSError:
        return
