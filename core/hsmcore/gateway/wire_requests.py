"""A request of a client's connection: it is held while there is no room for it, and is answered on each that asked,
with others of an iteration of the event loop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextvars import Context
from itertools import groupby
from operator import attrgetter
from typing import Any, ClassVar, Final
from uuid import UUID

from hsmcore._native import SignIntake
from hsmcore.errors import HsmError
from hsmcore.gateway.admission import Admission, ClientKey
from hsmcore.gateway.clients import CameBy, KnownClient, within
from hsmcore.gateway.intake import REFUSAL_COST
from hsmcore.gateway.jobs import Job, outcome_of, unexpected
from hsmcore.gateway.operations import SIGN, Operation
from hsmcore.gateway.replay import REMEMBER_SECONDS, ReplaySession, contents_of
from hsmcore.gateway.wire import messages as wire
from hsmcore.gateway.wire.frames import Flag, Frame, Type, unlabelled, untraced

ENTRY_BYTES: Final = 256
"""Of a request that waits for room, beside its frame."""
AT_ONCE: Final = 16
"""Answers that are sent together, at most: while their client takes them, the next ones are made. With all of a turn in
one write, each side stands still while the other works."""

_queue_of: Final = attrgetter("queue")
_TRACED, _LABELLED = int(Flag.TRACED), int(Flag.LABELLED)
NAMED: Final = _TRACED | _LABELLED
"""Flags of a frame that says more of its request for records."""


class WireFace:
    """What all connections share. Belongs to the event loop of the key managers."""

    def __init__(self, desk: Admission) -> None:
        self.desk = desk
        self.loop = asyncio.get_running_loop()
        self.instance = os.urandom(wire.NONCE_BYTES)
        self.now = self.loop.time()
        """Time of the last tick."""
        self.listening = self.draining = False
        self.bytes_in = self.bytes_out = self.repeated = self.accepted = 0

    def refused(self, peer: str, client: KnownClient | None, why: str, what: str = "connect") -> None:
        """Record that a connection was refused, or `what` it asked for."""
        self.desk.refused(peer if client is None else f"{client.name} ({peer})", why, what)

    def way(self, peer: str, pid: int = 0) -> CameBy:
        """Return that of the next connection."""
        self.accepted += 1
        return CameBy(peer, pid, self.accepted)

    def silent(self, peer: str, why: str) -> None:
        """Record that a connection was closed before it said who it is, unless the gateway ends."""
        if self.listening:
            self.refused(peer, None, why)


class AnswerSender(asyncio.Protocol):
    """Belongs to the event loop of the key managers."""

    counts: ClassVar = True
    """Whether its requests are counted here, and end with a drain."""

    def __init__(self, server: WireFace, client: KnownClient) -> None:
        self.server, self.client = server, client
        self._loop = server.loop
        self._transport: asyncio.Transport | None = None
        self._out: list[bytes] = []

    @property
    def lives(self) -> bool:
        """Whether an answer can still be sent, as far as is known."""
        return self._transport is not None

    def go_on(self, request: ServedRequest) -> None:
        """There is room for a request that was held."""
        raise NotImplementedError

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


def named(frame: Frame, context_of: Callable[[str], Context]) -> tuple[Frame, Context]:
    """Return a request's frame without its trace and its label, and the context that these are said in. `context_of`:
    of the address that it says, or of "". Raises WireError."""
    parent, peer, labels = None, "", dict[str, str]()
    if frame.flags & _TRACED:
        frame, parent = untraced(frame)
    if frame.flags & _LABELLED:
        frame, label = unlabelled(frame)
        peer, labels["request_id"] = label.peer, str(UUID(bytes=label.request_id))
    return frame, within(context_of(peer), parent, **labels)


def intake_of(
    connection: AnswerSender, session: ReplaySession[ServedRequest], counters: tuple[ClientKey, ...], context: Context
) -> SignIntake:
    """Return what takes a connection's ordinary SIGNs."""
    made = SIGN, ServedRequest, Type.SIGN, wire.Sign, wire.KINDS, ENTRY_BYTES, REMEMBER_SECONDS
    return SignIntake(connection, session, counters, context, *made)


def have_turns(signs: SignIntake) -> int:
    """Let what was taken begin, or wait for its turn. Returns how many requests that were."""
    taken, begun, waits = signs.taken()
    for queue, jobs in groupby(begun, _queue_of):
        queue.go_on(jobs, ())
    for queue, jobs in groupby(waits, _queue_of):
        queue.go_on((), jobs)
    return taken


class ServedRequest(Job):
    """A request of a client. `what` is what `operation.decode` returns.

    It goes on when the connection ends; its answer goes to each one that asked and lives."""

    __slots__ = ()

    def __init__(
        self,
        counter: ClientKey,
        operation: Operation,
        what: Any,
        cost: int,
        connection: AnswerSender,
        session: ReplaySession[ServedRequest],
        frame: Frame,
        context: Context,
    ) -> None:
        """`cost`: as how many requests it counts: its messages."""
        # As Job's, in one piece: this is done for each signature that is not ordinary.
        self.counter, self.operation, self.what, self.cost = counter, operation, what, cost
        self.queue, self.start, self.takes_turn = counter.queue, operation.begin, operation.takes_turn
        self.account = counter.managing if operation.manages else counter.account
        self.context, self.connection, self.session = context, connection, session
        self.timeout = min(getattr(what, "timeout_ms", 0) / 1e3, counter.longest) or counter.timeout
        self.number, self.contents = frame.request, contents_of(frame)
        self.others: tuple[AnswerSender, ...] = ()
        """Which have asked for the same."""
        self.size = ENTRY_BYTES + len(frame.body)
        """Bytes of memory, while it waits for room."""
        # `held_until`: deadline of a request that waits for room, or has waited, as the event loop's time.
        self.begins(self.queue.answers)

    def settled(self, future: asyncio.Future[Any]) -> None:
        """It has ended, or was cancelled to withdraw the request."""
        if future.cancelled() and self.operation is SIGN:
            self.counter.manager.abandon(future, self.what.message)  # no effect on what is no answer of `submit`
        self.queue.end(self, outcome_of(future))

    def go_on(self) -> None:
        """There is room for it."""
        self.connection.go_on(self)

    def asked_on(self, connection: AnswerSender) -> None:
        """It was asked for again. Nobody knows which connection is the client's latest: what was sent on one that has
        broken since may be read after what was sent again on the next."""
        lives = (one for one in (self.connection, *self.others) if one is not connection and one.lives)
        self.connection, self.others = connection, tuple(lives)

    def answer(self, outcome: Any) -> None:
        """Send the result or the error, and remember it."""
        connection, session, data = self.connection, self.session, b""
        error = outcome if isinstance(outcome, HsmError) else None
        try:
            data = b"" if error else self.operation.encode(self, outcome)
        except Exception as fault:  # noqa: BLE001  # whatever it is, the client has its answer
            error = unexpected(fault)
        if error is not None:
            data = wire.error(self.number, wire.refusal_of(error))
            self.account.client.intake.charge(REFUSAL_COST)
        if connection.counts:
            self.counter.desk.count(self.account.client, error)
        session.close(self.number, data if self.operation.remembered else None, connection.server.now)
        last = not session.open
        connection.send(data, last=last)
        for one in self.others:
            one.send(data, last=last)
