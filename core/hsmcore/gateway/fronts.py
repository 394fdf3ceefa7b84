"""The fronts of a gateway, seen from the process with the keys: their start, what they are told, what they hand over,
and their end. front_process.py is the other half.

TLS and HTTP have processes of their own: who floods one disturbs no client of the other.

A front says which client is at the other end of a connection, and is believed: it has been started here, and nobody
else has the other end of its line. It speaks for no client that is known on a Unix socket only.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from typing import Any, Final
from weakref import WeakValueDictionary

import orjson

from hsmcore.base.log import get_logger, printable
from hsmcore.base.scope import Scope
from hsmcore.config import Gateway
from hsmcore.errors import HsmError
from hsmcore.gateway.connection import GatewayConnection
from hsmcore.gateway.server import GatewayServer
from hsmcore.gateway.tls import TlsFiles
from hsmcore.manager.key_manager import KeyManager
from hsmcore.members.control.process import CLOSE_SECONDS, Popen, child_environment, ended, started

START_SECONDS: Final = 30.0
LOST_SECONDS: Final = 30.0
"""A front that says nothing for so long is killed, and started again."""
FIRST_WAIT, LONGEST_WAIT = 0.1, 10.0
"""Seconds before a front that has ended is started again, at first, and after many ends: doubled each time."""
SOUND_SECONDS: Final = 60.0
"""A front that has lived for so long makes the wait the first one again."""
STATE_SECONDS: Final = 0.25
NICE: Final[Mapping[str, int]] = {"tls": 2, "https": 5}
"""How far a front yields to the signer where there is no processor for both: strangers can keep it busy. Over TLS each
frame of a client waits for it."""
_MAIN: Final = "hsmcore.gateway.front_process"
_MESSAGE_BYTES: Final = 1 << 16
_AT_ONCE: Final = 16
"""Messages of a front that are taken in a turn of the event loop."""
_MOST_TEXT: Final = 300
_SERVING: Final = ("ready", "ramping")


class Fronts:
    """All fronts of a gateway. Belongs to the event loop of the key managers."""

    def __init__(self, server: GatewayServer, settings: Gateway, sockets: Mapping[str, list[socket.socket]]) -> None:
        """`sockets`: bound ones of each face."""
        assert settings.tls is not None  # noqa: S101  # for the type checker: the configuration requires it
        self.server, self._settings, self._sockets = server, settings, sockets
        self._files = TlsFiles.of(settings.tls)
        self._scope = Scope()
        self._running: set[FrontProcess] = set()
        self._generation = 1
        self._state: Mapping[str, Any] = {}
        self._stopping = False
        self._changed = asyncio.Event()
        self.restarts = 0

    async def start(self) -> None:
        """Start them, and return when they listen. Raises HsmError."""
        self._state = state_of(self.server.desk.managers)
        faces = list(self._sockets) * self._settings.fronts
        begun = await asyncio.gather(*map(self._started, faces), return_exceptions=True)
        for front in begun:
            if isinstance(front, BaseException):
                raise front
            self._scope.start(self._keep(front), failed="a front is not kept")
        self._changed = self._scope.every(STATE_SECONDS, self._tell_state, "fronts were not told how the keys are")

    def keys_changed(self) -> None:
        """The keys may be others: tell it now."""
        self._changed.set()

    async def _started(self, face: str) -> FrontProcess:
        front = FrontProcess(self, face)
        opening = {"face": face, "tls": self._files._asdict(), "drainSeconds": -(-self._settings.drain_ms // 1000)}
        try:
            await front.start(opening, self._sockets[face], ("clients", self._clients), ("state", self._state))
        except BaseException:
            await front.close()
            raise
        self._running.add(front)
        for order in (("clients", self._clients), ("state", self._state)):
            front.order(*order)  # they may be others by now
        return front

    @property
    def _clients(self) -> tuple[int, Mapping[str, Any]]:
        return self._generation, self.server.desk.directory.told()

    async def _keep(self, front: FrontProcess) -> None:
        """Have a front run, another one after its end."""
        loop, wait = asyncio.get_running_loop(), FIRST_WAIT
        while True:
            begun = loop.time()
            await front.ended
            self._running.discard(front)
            await front.close()
            if self._stopping:
                return
            wait = FIRST_WAIT if loop.time() - begun > SOUND_SECONDS else min(2 * wait, LONGEST_WAIT)
            self.restarts += 1
            get_logger().error("a front ended, and is started again", face=front.face, error=front.problem)
            await asyncio.sleep(wait)
            front = await self._restarted(front.face)

    async def _restarted(self, face: str) -> FrontProcess:
        """Start one, and if it does not start, return it as one that has ended."""
        try:
            return await self._started(face)
        except (HsmError, OSError) as error:
            front = FrontProcess(self, face)
            front.fail(str(error))
            return front

    async def _tell_state(self) -> None:
        now = asyncio.get_running_loop().time()
        for front in tuple(self._running):
            if now - front.heard > LOST_SECONDS:
                front.fail("it said nothing for long, and was killed")
        state = state_of(self.server.desk.managers)
        if state != self._state:
            self._state = state
            for front in self._running:
                front.order("state", state)

    async def follow(self) -> None:
        """Tell them who the clients are now, and return when they know."""
        self._generation += 1
        for front in self._running:
            front.order("clients", self._clients)
        told = [front.wait_for(self._generation) for front in self._running]
        if told:
            await asyncio.wait(told, timeout=LOST_SECONDS)

    def hand_over(
        self, face: str, generation: int, name: str, peer: str, connection: socket.socket
    ) -> GatewayConnection | None:
        """A front has found out who is at the other end. Returns None if that is no client any more."""
        directory = self.server.desk.directory
        client = directory.clients.get(name) if name in directory.fronted(face) else None
        if client is None or generation != self._generation or self._stopping:
            connection.close()
            return None
        return self.server.admit(connection, client, peer, vault=face == "vault")

    async def drain(self, seconds: float) -> bool:
        """Have them accept no more connections, and answer open requests of HTTP within so many seconds. Returns
        whether all were answered."""
        self._stopping = True
        for one in chain.from_iterable(self._sockets.values()):
            one.close()
        for front in self._running:
            front.order("drain", seconds)
        drained = [front.drained for front in self._running]
        if drained:
            await asyncio.wait(drained, timeout=seconds)
        return all(one.done() for one in drained)

    async def close(self) -> None:
        """End them. Idempotent."""
        self._stopping = True
        await asyncio.gather(*(front.close() for front in tuple(self._running)))
        await self._scope.close()


class FrontProcess:
    """One front's process, from its start to its end; the next one is another FrontProcess."""

    def __init__(self, fronts: Fronts, face: str) -> None:
        loop = asyncio.get_running_loop()
        self._fronts, self.face, self._loop = fronts, face, loop
        self._process: Popen | None = None
        self._orders: asyncio.WriteTransport | None = None
        self._line: socket.socket | None = None
        self.ready: asyncio.Future[None] = loop.create_future()
        self.drained: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[None] = loop.create_future()
        self.problem = "it ended"
        self.heard = loop.time()
        """When it said something last, as the event loop's time."""
        self._handed = WeakValueDictionary[int, GatewayConnection]()
        """Connections by the front's numbers."""
        self._followed: dict[int, asyncio.Future[None]] = {}

    async def start(
        self, opening: dict[str, Any], listening: Sequence[socket.socket], *orders: tuple[str, Any]
    ) -> None:
        """Start it, and return when it listens. Raises HsmError."""
        self._line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            sockets = [one.fileno() for one in listening]
            environment = child_environment(frozenset(), frozenset())
            descriptors = [theirs.fileno(), *sockets]
            self._process = await asyncio.to_thread(started, environment, _MAIN, descriptors)
            told = {**opening, "reports": theirs.fileno(), "sockets": sockets}
        with suppress(OSError):  # a sandbox may forbid it
            os.setpriority(os.PRIO_PROCESS, self._process.pid, os.getpriority(os.PRIO_PROCESS, 0) + NICE[self.face])
        self._orders, _ = await self._loop.connect_write_pipe(asyncio.Protocol, self._process.stdin)
        self._line.setblocking(False)
        self._loop.add_reader(self._line, self._read)
        self._write(told)
        for order in orders:
            self.order(*order)
        with suppress(TimeoutError):
            async with asyncio.timeout(START_SECONDS):
                await asyncio.wait([self.ready, self.ended], return_when=asyncio.FIRST_COMPLETED)
        if not self.ready.done() or self.ended.done():
            raise HsmError(f"a front of the gateway did not start: {self.problem}", status="SYSTEM", hint="")

    def order(self, order: str, said: Any) -> None:
        """Have it do something."""
        self._write([order, said])

    def _write(self, said: Any) -> None:
        if self._orders is not None and not self._orders.is_closing():
            self._orders.write(orjson.dumps(said, option=orjson.OPT_APPEND_NEWLINE))

    def wait_for(self, generation: int) -> asyncio.Future[None]:
        """Return what is done when it knows the clients of this generation, or has ended."""
        return self._followed.setdefault(generation, self._loop.create_future())

    def _read(self) -> None:
        for _ in range(_AT_ONCE):
            assert self._line is not None  # noqa: S101  # for the type checker
            try:
                data, fds, _, _ = socket.recv_fds(self._line, _MESSAGE_BYTES, 1, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                return
            except OSError:
                data, fds = b"", []
            if not data:
                self._end()
                return
            self.heard = self._loop.time()
            try:
                self._take(*orjson.loads(data), fds=fds)
            except (TypeError, ValueError, OSError):
                self.fail("it said nonsense, and was killed")
                return
            finally:
                for fd in fds:
                    os.close(fd)

    def _take(self, what: str, *said: Any, fds: Iterable[int]) -> None:
        """Raises ValueError and others for what no front says."""
        fronts, desk = self._fronts, self._fronts.server.desk
        match what, *said:
            case "wire" | "vault" as face, int(generation), str(name), str(peer), int(number):
                connection = _connection_of(*fds)
                made = fronts.hand_over(face, generation, name, printable(peer, _MOST_TEXT), connection)
                if made is not None:
                    self._handed[number] = made
            case "ended", [*numbers]:
                for one in filter(None, map(self._handed.get, numbers)):
                    fronts.server.vouch_no_more(one)
            case "refused", int(count), str(peer), str(why), str(asked) if count > 0:
                who, why, asked = (printable(text, _MOST_TEXT) for text in (peer, why, asked))
                desk.refused(who, why, asked, count)
            case "counted", [*counts]:
                for name, outcome, count in counts:
                    desk.count_more(name, outcome, count)
            case "followed", int(generation):
                _settle(self.wait_for(generation))
            case ["ready"]:
                _settle(self.ready)
            case ["drained"]:
                _settle(self.drained)
            case "failed", str(why):
                self.fail(printable(why, 1000))
            case _:
                raise ValueError(what)

    def fail(self, why: str) -> None:
        """Kill it."""
        self.problem = why
        if self._process is not None:
            self._process.kill()
        self._end()

    def _end(self) -> None:
        if self._line is not None:
            self._loop.remove_reader(self._line)
            self._line.close()
            self._line = None
        for one in (self.ended, self.drained, *self._followed.values()):
            _settle(one)

    async def close(self) -> None:
        """Have it end, when its clients have read what is left; kill it if it does not. Idempotent."""
        process, self._process = self._process, None
        if self._orders is not None:
            self._orders.close()
        if process is not None:
            await asyncio.to_thread(ended, process, CLOSE_SECONDS)
        self._end()


def _connection_of(fd: int) -> socket.socket:
    """Raises ValueError for another descriptor than of a connection."""
    connection = socket.socket(fileno=os.dup(fd))
    if (connection.family, connection.type) != (socket.AF_UNIX, socket.SOCK_STREAM):
        connection.close()
        raise ValueError("no connection")
    return connection


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def state_of(managers: Mapping[str, KeyManager]) -> dict[str, Any]:
    """Return what fronts tell strangers. `sealed`: a key cannot sign; `standby`: another host of a fleet does;
    `holder`: whether this one holds the epoch, None without a fleet; `keySets`: each key's newest set, and all."""
    fleets = [manager.fleet for manager in managers.values() if manager.fleet is not None]
    return {
        "sealed": not all(map(_can_sign, managers.values())),
        "standby": any(fleet.state != "holder" and fleet.unordered != "any" for fleet in fleets),
        "holder": all(fleet.state == "holder" for fleet in fleets) if fleets else None,
        "keySets": {name: (one.key_set().decode(), one.key_set(-1).decode()) for name, one in managers.items()},
    }


def _can_sign(manager: KeyManager) -> bool:
    snapshot = manager.snapshot()
    return snapshot.open and any(member.condition in _SERVING for member in manager.members())
