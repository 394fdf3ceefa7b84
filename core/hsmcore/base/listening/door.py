"""The accept loop: the gate counts a connection when it is accepted, before TLS has cost anything.

asyncio's own server accepts every waiting connection at each turn and reports none before its TLS handshake ends. Here
a connection is a bare socket until its client sends a byte. Such a socket can be closed at once; a transport closes its
own one or two iterations of the loop later, so no connection is accepted while several are still closing.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final

from hsmcore.base.listening.connections import Connection, ConnectionLimit
from hsmcore.base.listening.rates import AddressBuckets
from hsmcore.base.scope import Scope

HANDSHAKE_WAIT: Final = 5.0
"""The most seconds that a connection waits for its turn."""
BACKLOG: Final = 1024
"""Length of the kernel's accept queue. A client in it holds no descriptor of this process."""
_AT_A_TURN: Final = 16
_PAUSE_SECONDS: Final = 0.002


class Acceptor:
    """The accept loop of one listening socket. For the server's event loop."""

    def __init__(
        self,
        listening: socket.socket,
        gate: ConnectionLimit,
        seconds: float,
        connect: Callable[[socket.socket, Connection], Coroutine[Any, Any, object]],
        dismissed: Callable[[socket.socket, str], object],
        handshakes: AddressBuckets | None = None,
    ) -> None:
        """`seconds`: from accept() to the end of the first request. `connect` makes a transport and a protocol for a
        socket; the protocol replaces the connection's `give_way`, and calls `leave` when it ends. `dismissed` is told
        of a socket that is about to be closed, and why: nothing came in time, or too much. `handshakes`: what each
        address may begin before its clients have shown who they are."""
        self._loop = asyncio.get_running_loop()
        self._listening, self._gate, self._seconds, self._connect = listening, gate, seconds, connect
        self._dismissed, self._handshakes = dismissed, handshakes
        self._paused: asyncio.TimerHandle | None = None
        self._connecting = Scope()
        self._strangers: set[Connection] = set()
        listening.setblocking(False)
        listening.listen(BACKLOG)
        self._loop.add_reader(listening, self._accept)

    async def close(self) -> None:
        """Stop accepting, and close each socket that has no transport yet."""
        if self._paused is not None:
            self._paused.cancel()
        else:
            self._loop.remove_reader(self._listening)
        self._listening.close()
        for place in tuple(self._strangers):
            self._gate.dismiss(place)
        await self._connecting.finish()

    def _accept(self) -> None:
        for _ in range(_AT_A_TURN):
            if self._gate.crowded:
                self._pause()
                return
            try:
                accepted, _ = self._listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError:  # out of descriptors or memory
                self._pause()
                return
            self._admit(accepted)

    def _pause(self) -> None:
        self._loop.remove_reader(self._listening)
        self._paused = self._loop.call_later(_PAUSE_SECONDS, self._go_on)

    def _go_on(self) -> None:
        self._paused = None
        self._loop.add_reader(self._listening, self._accept)

    def _admit(self, accepted: socket.socket) -> None:
        accepted.setblocking(False)
        place = Connection(self._gate, lambda: self._dismiss(accepted, place))
        self._strangers.add(place)
        self._loop.add_reader(accepted, self._spoke, accepted, place)
        place.arm(self._seconds)
        self._gate.enter(place)

    def _dismiss(self, accepted: socket.socket, place: Connection) -> None:
        if self._listening.fileno() >= 0:  # else it is the server that ends
            self._dismissed(accepted, "it said nothing")
        self._shut(accepted, place)

    def _shut(self, accepted: socket.socket, place: Connection) -> None:
        self._loop.remove_reader(accepted)
        accepted.close()
        self._strangers.discard(place)
        place.leave()

    def _spoke(self, accepted: socket.socket, place: Connection) -> None:
        try:
            said = accepted.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return
        except OSError:
            said = b""
        if not said:  # the client sent nothing before it closed
            self._shut(accepted, place)
            return
        self._loop.remove_reader(accepted)
        rates = self._handshakes
        if rates is None or accepted.family == socket.AF_UNIX:  # which has no address
            self._make(accepted, place)
            return
        peer = address_of(accepted)
        wait = rates.turn(peer, HANDSHAKE_WAIT)
        if wait is None:
            self._dismissed(accepted, "too many connections of its address have not shown who they are")
            self._shut(accepted, place)
            return
        place.known = partial(self._give_back, place, peer, rates)
        if wait:
            self._loop.call_later(wait, self._make, accepted, place)
        else:
            self._make(accepted, place)

    def _give_back(self, place: Connection, peer: str, rates: AddressBuckets) -> None:
        place.known = lambda: None
        rates.take(peer, -1)

    def _make(self, accepted: socket.socket, place: Connection) -> None:
        if accepted.fileno() < 0:  # it was dismissed while it waited
            return
        task = self._connecting.start(self._connect(accepted, place))
        place.give_way = task.cancel
        place.idle()
        task.add_done_callback(lambda task: self._connected(accepted, place, task))

    def _connected(self, accepted: socket.socket, place: Connection, task: asyncio.Task[object]) -> None:
        self._strangers.discard(place)
        if task.cancelled():
            self._let_go(accepted, place)
        elif (error := task.exception()) is not None:
            self._let_go(accepted, place)
            if not isinstance(error, OSError):  # not a fault of the client
                self._loop.call_exception_handler({"message": "a connection was not made", "exception": error})

    def _let_go(self, accepted: socket.socket, place: Connection, turns: int = 10) -> None:
        """Release the connection when its transport has closed it, one or two iterations of the loop from now."""
        if accepted.fileno() >= 0 and turns:
            self._loop.call_soon(self._let_go, accepted, place, turns - 1)
            return
        accepted.close()
        place.leave()


def address_of(accepted: socket.socket) -> str:
    """Return the address of the other end; "" if it has none, or is gone."""
    try:
        found = accepted.getpeername()
    except OSError:
        return ""
    return str(found[0]) if isinstance(found, tuple) else ""
