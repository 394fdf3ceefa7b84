"""A simulated network at asyncio's seam: the loop's connections, listening sockets and readers, in memory.

Bytes come in pieces, each after a while; buffers are small, so that both sides pause; a connection can break at any
byte, or fall silent. Which end learns of it when is chance. `Tap` keeps what the serving end took and gave.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections import deque
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from struct import Struct
from typing import Any, ClassVar, Final

from tests.simulation.chance import Chance
from tests.simulation.clock import SECOND, Clock
from tests.simulation.loop import Loop, _Numbered

uid: ContextVar[int] = ContextVar("uid", default=0)
"""Who connects: what SO_PEERCRED says of it."""
_CREDENTIALS: Final = Struct("iII")
_SO_PEERGROUPS: Final = 59
_HEAD: Final = Struct("<IBBHQ")
_MS: Final = 1_000_000
_USUAL_NS: Final = 60_000
_LONG_NS: Final = 3 * _MS
_LATE_NS: Final = SECOND


@dataclass(slots=True)
class Seen:
    """One connection, as the serving end saw it: the frames that it took and gave, each with its time."""

    uid: int
    number: int
    taken: list[tuple[int, int, int, bytes]] = field(default_factory=list)
    """Time in ns, type, request number, body."""
    given: list[tuple[int, int, int, bytes]] = field(default_factory=list)
    ended_ns: int = 0
    """0: it is open."""
    _up: bytearray = field(default_factory=bytearray)
    _down: bytearray = field(default_factory=bytearray)

    def take(self, now: int, data: bytes) -> None:
        _cut(self._up, data, now, self.taken)

    def give(self, now: int, data: bytes) -> None:
        _cut(self._down, data, now, self.given)


def _cut(begun: bytearray, data: bytes, now: int, found: list[tuple[int, int, int, bytes]]) -> None:
    begun += data
    while len(begun) >= _HEAD.size:
        length, kind, _, _, request = _HEAD.unpack_from(begun)
        if len(begun) < length + 4 or length > 1 << 20:
            return
        found.append((now, kind, request, bytes(begun[_HEAD.size : length + 4])))
        del begun[: length + 4]


class Way:
    """One direction of a connection."""

    def __init__(self, link: Link, room: int) -> None:
        self.link, self.room = link, room
        self.came = bytearray()
        self.on_its_way: deque[bytes] = deque()
        self.held = 0
        """Bytes between the writer and the reader."""
        self.passed = 0
        self.breaks_at: int | None = None
        """The byte at which the connection breaks."""
        self.over: OSError | bool = False
        """True: the writer has closed; an error: the reader gets it."""
        self.silent_until = 0
        self._last_ns = 0
        self.tell_reader: Callable[[], None] = _nothing
        self.tell_writer: Callable[[], None] = _nothing
        self.failed = False
        """Whether the writer gets an error."""

    def send(self, data: bytes) -> int:
        """Take what there is room for. Raises OSError."""
        if self.failed:
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
        taken = min(len(data), self.room - self.held)
        if taken <= 0:
            raise BlockingIOError
        whole, goes = taken, taken
        if self.breaks_at is not None and self.passed + taken >= self.breaks_at:
            goes = max(self.breaks_at - self.passed, 0)
            self.link.break_()
        self.passed += whole
        self._carry(bytes(data[:goes]))
        return whole

    def _carry(self, data: bytes) -> None:
        rng = self.link.network.rng
        while data:
            size = len(data) if rng.random() < 0.7 else 1 + rng.randrange(len(data))
            piece, data = data[:size], data[size:]
            self.held += len(piece)
            self._put(piece)

    def _put(self, piece: bytes) -> None:
        network = self.link.network
        self.on_its_way.append(piece)
        self._last_ns = max(self._last_ns, network.clock.ns + network.delay())
        network.loop.happens(self._last_ns - network.clock.ns, self._arrive)

    def _arrive(self) -> None:
        wait = self.silent_until - self.link.network.clock.ns
        if wait > 0:
            self.link.network.loop.happens(wait, self._arrive)
        elif self.on_its_way:
            piece = self.on_its_way.popleft()
            self.came += piece
            self.over = self.over or not piece
            self.tell_reader()

    def finish(self) -> None:
        """The writer has closed: after what is on its way the reader finds the end."""
        self._put(b"")

    def reset(self, at_reader: bool) -> None:
        """One end learns that the connection is broken."""
        if at_reader and not isinstance(self.over, OSError):
            self.over = ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
            self.tell_reader()
        elif not at_reader:
            self.failed = True
            self.tell_writer()

    def read(self, most: int, *, peek: bool = False) -> bytes:
        """Raises OSError, BlockingIOError if nothing has come. b"": the end."""
        if self.came:
            data = bytes(self.came[:most])
            if not peek:
                del self.came[:most]
                full, self.held = self.held >= self.room, self.held - len(data)
                if full:
                    self.tell_writer()
            return data
        if isinstance(self.over, OSError):
            raise self.over
        if self.over:
            return b""
        raise BlockingIOError

    @property
    def readable(self) -> bool:
        return bool(self.came or self.over)


def _nothing() -> None:
    """Nobody is to be told."""


class Link:
    """A connection: two ways, and how it ends."""

    def __init__(self, network: Network, whose: int, number: int) -> None:
        self.network, self.uid, self.number = network, whose, number
        room = network.rng.choice((1 << 9, 1 << 12, 1 << 16))
        self.up, self.down = Way(self, room), Way(self, room)
        self.client, self.server = Socket(self, self.down, self.up), Socket(self, self.up, self.down)
        self.broken = False
        self.seen = Seen(whose, number)

    def break_(self) -> None:
        """Both ends learn of it, each in its time; what is on its way may still come."""
        if self.broken:
            return
        self.broken = True
        network, rng = self.network, self.network.rng
        network.tell("net", f"connection {self.number} of {self.uid} BREAKS")
        for inward, outward in ((self.down, self.up), (self.up, self.down)):
            after = rng.randrange(_LATE_NS if rng.random() < 0.15 else _LONG_NS)
            network.loop.happens(after, partial(self._learn, inward, outward))

    def _learn(self, inward: Way, outward: Way) -> None:
        inward.reset(at_reader=True)
        outward.reset(at_reader=False)

    @property
    def ended(self) -> bool:
        return self.client.closed and self.server.closed


class Socket:
    """One end of a connection, as far as the gateway's door asks for a socket."""

    family: ClassVar = socket.AF_UNIX

    def __init__(self, link: Link, inward: Way, outward: Way) -> None:
        self.link, self.inward, self.outward = link, inward, outward
        self.closed = False

    def setblocking(self, blocking: bool) -> None:
        assert not blocking

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        assert level == socket.SOL_SOCKET
        if option == _SO_PEERGROUPS:
            return b""
        assert (option, size) == (socket.SO_PEERCRED, _CREDENTIALS.size)
        return _CREDENTIALS.pack(1, self.link.uid, self.link.uid)

    def recv(self, most: int, flags: int = 0) -> bytes:
        return self.inward.read(most, peek=bool(flags & socket.MSG_PEEK))

    def send(self, data: bytes) -> int:
        if self is self.link.server:
            self.link.seen.give(self.link.network.clock.ns, data)
        return self.outward.send(data)

    def fileno(self) -> int:
        return -1 if self.closed else 1000 + self.link.number

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        if self is self.link.server:
            self.link.seen.ended_ns = self.link.network.clock.ns
        unread = bool(self.inward.came or self.inward.on_its_way)
        self.inward.tell_reader = self.outward.tell_writer = _nothing
        self.inward.failed = True
        self.inward.came.clear()
        if unread:
            self.outward.reset(at_reader=True)
        else:
            self.outward.finish()


class Listener:
    """A listening socket."""

    family: ClassVar = socket.AF_UNIX

    def __init__(self, network: Network) -> None:
        self.network = network
        self.waiting: deque[Socket] = deque()
        self.listens = self.closed = False
        self.tell_reader: Callable[[], None] = _nothing

    def setblocking(self, blocking: bool) -> None:
        assert not blocking

    def listen(self, _backlog: int) -> None:
        self.listens = True

    def accept(self) -> tuple[Socket, str]:
        if not self.waiting:
            raise BlockingIOError
        return self.waiting.popleft(), ""

    def fileno(self) -> int:
        return -1 if self.closed else 999

    def close(self) -> None:
        self.closed, self.listens = True, False
        while self.waiting:
            self.waiting.popleft().close()

    @property
    def readable(self) -> bool:
        return bool(self.waiting)


class Transport(asyncio.Transport):
    """As asyncio's for a socket. Its buffer is said to be full early, so that both sides pause."""

    def __init__(self, loop: NetLoop, end: Socket, protocol: Any, begun: asyncio.Future[None]) -> None:
        super().__init__()
        self._loop, self._socket, self._protocol = loop, end, protocol
        self._buffer = bytearray()
        self._high = self._low = 0
        self.set_write_buffer_limits()
        self._closing = self._lost = self._full = False
        self._reads = True
        end.outward.tell_writer = self._room
        loop.call_soon(self._begin, begun)

    def _begin(self, begun: asyncio.Future[None]) -> None:
        self._protocol.connection_made(self)
        self._watch()
        if not begun.done():
            begun.set_result(None)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def is_closing(self) -> bool:
        return self._closing

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        del low
        self._high = min(1 << 16 if high is None else high, self._loop.network.high)
        self._low = self._high // 4

    def get_write_buffer_size(self) -> int:
        return len(self._buffer)

    # ---- reading ---------------------------------------------------------------------------------------------------

    def pause_reading(self) -> None:
        if not self._closing:
            self._reads = False
            self._loop.remove_reader(self._socket)

    def resume_reading(self) -> None:
        if not self._closing and not self._reads:
            self._reads = True
            self._watch()

    def _watch(self) -> None:
        if self._reads and not self._closing:
            self._loop.add_reader(self._socket, self._read)

    def _read(self) -> None:
        if self._lost or not self._reads:
            return
        rng = self._loop.network.rng
        try:
            data = self._socket.recv(1 << 18 if rng.random() < 0.9 else 1 + rng.randrange(64))
        except BlockingIOError:
            return
        except OSError as error:
            self._end(error)
            return
        if not data:
            if not self._protocol.eof_received():
                self.close()
            return
        if self._socket is self._socket.link.server:
            self._socket.link.seen.take(self._loop.clock.ns, data)
        self._protocol.data_received(data)

    # ---- writing ---------------------------------------------------------------------------------------------------

    def write(self, data: Any) -> None:
        if self._lost or not data:
            return
        link = self._socket.link
        if self._socket is link.server:
            link.seen.give(self._loop.clock.ns, data)
        self._buffer += data
        if len(self._buffer) == len(data):
            self._send()
        if not self._full and len(self._buffer) > self._high:
            self._full = True
            self._protocol.pause_writing()

    def _send(self) -> None:
        try:
            while self._buffer:
                del self._buffer[: self._socket.outward.send(bytes(self._buffer))]
        except BlockingIOError:
            return
        except OSError as error:
            self._end(error)

    def _room(self) -> None:
        self._loop.readable((self._socket, "room"), self._write_on)

    def _write_on(self) -> None:
        if self._lost or not self._buffer:
            return
        self._send()
        if self._lost:
            return
        if self._full and len(self._buffer) <= self._low:
            self._full = False
            self._protocol.resume_writing()
        if not self._buffer and self._closing:
            self._leave(None)

    # ---- the end ---------------------------------------------------------------------------------------------------

    def close(self) -> None:
        if self._closing:
            return
        self._closing = True
        self._loop.remove_reader(self._socket)
        if not self._buffer:
            self._leave(None)

    def abort(self) -> None:
        self._end(None)

    def _end(self, error: Exception | None) -> None:
        if self._lost:
            return
        self._buffer.clear()
        self._closing = True
        self._loop.remove_reader(self._socket)
        self._leave(error)

    def _leave(self, error: Exception | None) -> None:
        if not self._lost:
            self._lost = True
            self._loop.call_soon(self._lose, error)

    def _lose(self, error: Exception | None) -> None:
        self._protocol.connection_lost(error)
        self._socket.close()


class NetLoop(Loop):
    """A loop whose connections go over a network in memory."""

    def __init__(self, chance: Chance, clock: Clock) -> None:
        super().__init__(chance, clock)
        self.network = Network(self, chance)

    def add_reader(self, fd: Any, callback: Callable[..., Any], *args: Any) -> None:
        source = fd.inward if isinstance(fd, Socket) else fd

        def tell() -> None:
            if source.tell_reader is tell and source.readable:
                self.readable(fd, read)

        def read() -> None:
            if source.tell_reader is tell and source.readable:
                callback(*args)
                tell()

        source.tell_reader = tell
        tell()

    def remove_reader(self, fd: Any) -> bool:
        source = fd.inward if isinstance(fd, Socket) else fd
        source.tell_reader = _nothing
        self.unreadable(fd)
        return True

    async def connect_accepted_socket(self, protocol_factory: Any, sock: Any, **_options: Any) -> Any:
        return await self._transport(protocol_factory(), sock)

    async def create_unix_connection(self, protocol_factory: Any, path: Any = None, **_options: Any) -> Any:
        end = await self.network.connect(path)
        return await self._transport(protocol_factory(), end)

    async def _transport(self, protocol: Any, end: Socket) -> tuple[Transport, Any]:
        begun = self.create_future()
        transport = Transport(self, end, protocol, begun)
        try:
            await begun
        except BaseException:
            transport.close()
            raise
        return transport, protocol


class Network:
    """All connections of a world. A listener is found by its file's name alone: worlds' folders have other names."""

    def __init__(self, loop: NetLoop, chance: Chance) -> None:
        self.loop, self.clock, self.rng = loop, loop.clock, chance.time
        self.listeners: dict[str, Listener] = {}
        self.links: list[Link] = []
        self.tell: Callable[[str, str], None] = lambda _who, _what: None
        self.high = self.rng.choice((256, 4096, 1 << 16))
        self.slower = 1
        self.refuses: Callable[[int], bool] = lambda _uid: False

    def delay(self) -> int:
        """Nanoseconds for a piece."""
        usual = self.rng.randrange(_LONG_NS if self.rng.random() < 0.05 else _USUAL_NS)
        return usual * self.slower

    def bind(self, path: str) -> Listener:
        found = self.listeners[Path(path).name] = Listener(self)
        return found

    async def connect(self, path: str) -> Socket:
        """Connect as `uid` says. Raises OSError."""
        whose = uid.get()
        arrived = self.loop.create_future()
        self.loop.happens(self.delay(), lambda: arrived.done() or arrived.set_result(None))
        await arrived
        listener = self.listeners.get(Path(path).name)
        if listener is None or not listener.listens or self.refuses(whose):
            raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
        link = Link(self, whose, len(self.links))
        self.links.append(link)
        self.tell("net", f"connection {link.number} of {whose}")
        listener.waiting.append(link.server)
        listener.tell_reader()
        return link.client

    def open_of(self, whose: int) -> list[Link]:
        """The connections of one user that are not closed at both ends."""
        return [link for link in self.links if link.uid == whose and not link.ended]


def _numbered(kind: Any) -> None:
    """Sets of these have the same order in each run."""

    def number(self: Any) -> int:
        if "_number" not in self.__dict__:
            self._number = next(_Numbered._numbers)
        found: int = self._number
        return found

    kind.__hash__ = number


def install() -> None:
    """Once in a process. Sockets that the gateway binds are of the network of the loop that runs."""
    from hsmcore.base.listening import connections
    from hsmcore.gateway import sockets
    from hsmcore.gateway.clients import OpenWork
    from hsmcore.gateway.connection import GatewayConnection

    def unix(path: str, _mode: int) -> Any:
        Path(path).touch()
        return asyncio.get_running_loop().network.bind(path)  # type: ignore[attr-defined]

    sockets.unix = unix
    connections.spare_descriptors = lambda _folder="": 1000
    for kind in (connections.Connection, OpenWork, GatewayConnection):
        _numbered(kind)
