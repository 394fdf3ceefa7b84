"""One client's connection: frames in, requests to the desk, answers out. docs/WIRE.md is the protocol."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context
from functools import partial
from math import inf
from typing import Final

from hsmcore._native import SignIntake
from hsmcore.base.listening.connections import Connection as Place
from hsmcore.base.log import get_logger
from hsmcore.errors import BadArgument, HsmError, PolicyRefused, RequestCancelled
from hsmcore.gateway.admission import ClientKey
from hsmcore.gateway.clients import COME_BACK_MS, CameBy, KnownClient, ending
from hsmcore.gateway.intake import MESSAGE_COST, PLAIN_COST, REFUSAL_COST, SIGN_COST, FrameIntake
from hsmcore.gateway.jobs import late
from hsmcore.gateway.operations import OPERATIONS, Operation
from hsmcore.gateway.replay import REMEMBER_SECONDS, ReplaySession
from hsmcore.gateway.wire import messages as wire
from hsmcore.gateway.wire.frames import (
    CLIENT_TYPES,
    Frame,
    Splitter,
    Type,
    UnknownKind,
    WireError,
)
from hsmcore.gateway.wire.frames import (
    frame as make_frame,
)
from hsmcore.gateway.wire_requests import (
    NAMED,
    AnswerSender,
    ServedRequest,
    WireFace,
    have_turns,
    intake_of,
    named,
)
from hsmcore.manager.policy.callers import full

BATCH: Final = 1024
"""Most messages of a SIGN_MANY."""
OF_ONE_CLIENT: Final = 256
HELLO_BYTES: Final = 512
"""Longest HELLO that has not come in a read: a stranger has no more memory of this process."""
UNREAD_BYTES: Final = 1 << 18
"""Answers that wait for a client that does not read; beyond it, its requests are not read."""
UNREAD_SECONDS: Final = 30.0
"""Seconds after which such a connection is closed. Its answers are remembered."""
LEAST_BYTES: Final = 1024
"""Bytes a second of a frame that has begun, at least: a slow link is no breach of the protocol."""
HELD_BYTES: Final = 1 << 18
"""Requests that wait for room; beyond it, its frames are not read. Until then CANCEL, ACK and PING behind them are."""
_LENGTH: Final = 4


class GatewayConnection(AnswerSender):
    """Belongs to the event loop of the key managers."""

    def __init__(
        self, server: WireFace, open_ones: set[GatewayConnection], place: Place, way: CameBy, client: KnownClient
    ) -> None:
        """`open_ones`: where it stands while it is open. `way`: where it comes from."""
        super().__init__(server, client)
        self._open_ones, self.place, self.way, self.peer = open_ones, place, way, way.peer
        self.session: ReplaySession[ServedRequest] | None = None
        """None before HELLO."""
        self.frames = 0
        """Read so far."""
        self.stalled = self._moved = self._came = 0
        self._splitter = Splitter(CLIENT_TYPES)
        self._overdue: asyncio.TimerHandle | None = None
        self._intake: FrameIntake | None = None
        self._signs: SignIntake | None = None
        self.behind = False
        self._cost = 0
        """Of the frames that are taken now, in microseconds."""
        self._reads = True
        self._leaving = False
        """Whether it takes no new requests."""
        self.revoked = False
        """Whether it is no client's any more."""
        self._ended = False
        """Whether what comes now is ignored."""
        self._held: dict[int, ServedRequest] = {}
        """Requests for which there is no room, by their numbers."""
        self._held_bytes = 0
        self._counters: tuple[ClientKey, ...] = ()
        self._sent_keys: tuple[wire.Key, ...] = ()
        self._handlers: dict[Type, Callable[[Frame], None]] = {
            Type.CANCEL: self._cancel,
            Type.ACK: self._acknowledge,
            Type.PING: self._ping,
            Type.HELLO: self._late_hello,
        }

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # no other one comes
        """Wait for HELLO."""
        self._transport = transport
        transport.set_write_buffer_limits(high=UNREAD_BYTES)
        self.place.give_way = self._give_way
        self.place.idle()
        self._open_ones.add(self)
        self.place.known()

    def connection_lost(self, _error: Exception | None) -> None:
        """Its requests go on."""
        self._stop_waiting()
        self._transport = None
        for request in tuple(self._held.values()):
            self._release(request)
        if self.session is not None:
            self.session.connections -= 1
            self.client.connections -= 1
        self.place.leave()
        self._open_ones.discard(self)

    def pause_writing(self) -> None:
        """The client does not read: read no more requests of it."""
        if self._transport is not None:
            self._overdue = self._loop.call_later(UNREAD_SECONDS, self._transport.abort)
            self._offer()

    def resume_writing(self) -> None:
        """It reads again."""
        self._stop_waiting()
        self._offer()

    def _give_way(self) -> None:
        """For the gate: only a connection without HELLO is idle."""
        self.server.silent(self.peer, "no HELLO in time")
        self.abort()

    def _stop_waiting(self) -> None:
        if self._overdue is not None:
            self._overdue.cancel()
            self._overdue = None

    def data_received(self, data: bytes) -> None:
        """Take what has come."""
        self.server.bytes_in += len(data)
        self._came += len(data)
        self._splitter.push(data)
        if self.session is None:
            try:
                self._hello()
            except WireError as error:
                self.fail(str(error))
                return
        self._offer()

    def take(self, most: int) -> int:
        """Take so many frames at most: for FrameIntake. Returns what they cost, in microseconds."""
        self._cost = 0
        if self._takes:
            try:
                while most > 0 and self._splitter.ready:
                    frames = self._cut(most)
                    most -= len(frames) + self._splitter.settled
                    for frame in frames:
                        if self._ended:
                            break
                        self._take(frame)
            except WireError as error:
                self.fail(str(error))
        takes, ready = self._takes, self._splitter.ready
        self.behind = takes and ready
        if self._reads != (takes and not ready):
            self._read(not self._reads)
        return self._cost

    def _cut(self, most: int) -> list[Frame]:
        """Take ordinary SIGNs, and return what comes behind them."""
        splitter, signs = self._splitter, self._signs
        if signs is None or self._ended or self._leaving or (self.counts and self.server.draining):
            return splitter.cut(most)
        signs.begins(self.server.now)
        frames = splitter.cut(most, signs=signs)
        if splitter.settled:
            taken = have_turns(signs)
            self.frames += taken
            self._cost += taken * SIGN_COST
        return frames

    def _take(self, frame: Frame) -> None:
        self.frames += 1
        operation = OPERATIONS[frame.type]
        if operation is None:
            self._cost += PLAIN_COST
            self._handlers[frame.type](frame)
        else:
            self._cost += operation.cost
            self._ask(frame, operation)

    @property
    def _takes(self) -> bool:
        """Whether more is wanted of the client: it reads its answers, and not too many of its requests wait."""
        lasts = self._transport is not None and not self._transport.is_closing()
        return lasts and self._overdue is None and self._held_bytes < HELD_BYTES

    def _offer(self) -> None:
        """Have what was read taken in the client's turn, and go on reading after that."""
        ready = self._splitter.ready
        if ready and not self.behind and self._intake is not None:
            self.behind = True
            self._intake.offer(self)
            if not self.behind:
                return  # `take` has seen to the rest
        if self._reads != (not ready and self._takes):
            self._read(not self._reads)

    def _read(self, reads: bool) -> None:
        transport = self._transport
        if transport is not None and not transport.is_closing():
            self._reads = reads
            if reads:
                transport.resume_reading()
            else:
                transport.pause_reading()

    def stalls(self) -> int:
        """Return in how many looks, one after the other, less than LEAST_BYTES came of a frame that has begun."""
        moved, came = self._moved, self._came
        self._moved, self._came = self.frames, 0
        slow = moved == self.frames and came < LEAST_BYTES
        self.stalled = self.stalled + 1 if slow and self._reads and self._splitter.pending else 0
        return self.stalled

    def _hello(self) -> None:
        """Take HELLO, if it is whole."""
        for frame in self._splitter.cut(1):
            if frame.type is not Type.HELLO:
                raise WireError(f"{frame.type.name} before HELLO")
            self._enter(wire.read_hello(frame.body))
        if self.session is None and self._splitter.wanted > HELLO_BYTES:
            raise WireError(f"a frame of {self._splitter.wanted} bytes instead of HELLO")

    def _enter(self, hello: wire.Hello) -> None:
        client, desk = self.client, self.server.desk
        if self._transport is None:
            return
        try:
            if not desk.directory.has(client):
                raise PolicyRefused("the gateway's clients have changed", hint="Connect again.")
            if client.connections >= OF_ONE_CLIENT:
                raise full(f"client {client.name!r} has {client.connections} connections", COME_BACK_MS)
            get_logger().info("client connected", client=client.name, peer=self.peer, program=hello.program)
            self.session = client.sessions.enter(hello.nonce)
            self.context = client.by(self.way)
        except HsmError as error:
            self._end_with(error)
            return
        client.connections += 1
        self.place.busy()
        self._intake = client.intake
        counters = self._counters = desk.counters(client)
        keys = self._sent_keys = desk.keys(client)
        self._signs = intake_of(self, self.session, counters, self.context)
        most, size = client.rules.in_flight, min(one.message_bytes for one in counters)
        limits = most, size, min(BATCH, most), int(REMEMBER_SECONDS * 1e3)
        slots = tuple(one.name for one in counters)
        self.send(wire.welcome(wire.Welcome(self.server.instance, *limits, client.name, slots, keys)))

    def _late_hello(self, _frame: Frame) -> None:
        raise WireError("HELLO again")

    # Requests.

    def _ask(self, frame: Frame, operation: Operation) -> None:
        """Take a request."""
        session, number, context = self.session, frame.request, self.context
        assert session is not None  # noqa: S101  # for the type checker
        if frame.flags & NAMED:
            frame, context = named(frame, self._context_of)
        if not number:
            raise WireError("a request without a number")
        try:
            what = operation.decode(frame)
            cost = len(what.messages) if operation.many else 1
            self._cost += (cost - 1) * MESSAGE_COST
            if not 1 <= cost <= BATCH:
                raise BadArgument(f"a batch of {cost}; at most {BATCH}")
            if frame.slot >= len(self._counters):
                self.server.refused(self.peer, self.client, "key not listed", f"number {frame.slot}")
                raise PolicyRefused(f"a client may not use a key manager with the number {frame.slot}", hint="")
            counter = self._counters[frame.slot]
            self._admit(ServedRequest(counter, operation, what, cost, self, session, frame, context))
        except UnknownKind as error:  # of a later release: what else is open here is none of its business
            self._cost += len(frame.body) // _LENGTH * MESSAGE_COST  # as the longest batch that fits
            self._refuse(number, BadArgument(str(error), hint="Update the gateway, or name another kind."))
        except HsmError as error:
            self._refuse(number, error)

    def _context_of(self, _peer: str) -> Context:
        """Return the context of a request that says its address."""
        return self.context

    def _admit(self, request: ServedRequest) -> None:
        """Admit a request, hold it until there is room, or answer it as the first time. Raises HsmError if nothing is
        begun."""
        session, number, account, now = request.session, request.number, request.account, self.server.now
        known = session.find(number, request.contents)
        if known is not None:
            self.server.repeated += 1
            if isinstance(known, bytes):
                self.send(known)
            else:
                known.asked_on(self)
            return
        if (self.counts and self.server.draining) or self._leaving:
            raise ending()
        if request.held_until:
            request.timeout = request.held_until - self._loop.time()
            if request.timeout <= 0:
                raise late()
        elif account.must_hold(request.cost):
            self._hold(request)
            return
        session.require_room(number, now)
        account.begin(request.cost, signs=request.operation.signs)
        session.begin(number, request.contents, request, now)
        request.queue.enter(request)

    def _hold(self, request: ServedRequest) -> None:
        known = self._held.setdefault(request.number, request)
        if known is request:
            request.held_until = self._loop.time() + request.timeout
            self._held_bytes += request.size
            request.account.held[request] = None
        elif known.contents != request.contents:
            text = f"request {request.number} waits, and was another one: each number means one request"
            raise BadArgument(text)

    def _release(self, request: ServedRequest) -> None:
        """A request waits for room no more."""
        del self._held[request.number]
        self._held_bytes -= request.size
        request.account.release(request)

    def go_on(self, request: ServedRequest) -> None:
        """There is room for a request that has waited."""
        self._release(request)
        try:
            self._admit(request)
        except HsmError as error:
            self._refuse(request.number, error)
        self._offer()

    def _cancel(self, frame: Frame) -> None:
        wire.read_bytes(frame.body, 0)
        known = self.session.open.get(frame.request) if self.session is not None else None
        if known is not None:
            known[1].queue.cancel(known[1])
        elif frame.request in self._held:
            self._release(self._held[frame.request])
            self._refuse(frame.request, RequestCancelled("withdrawn before there was room", maybe_signed=False))

    def _acknowledge(self, frame: Frame) -> None:
        wire.read_bytes(frame.body, 0)
        if self.session is not None:
            self.session.acknowledge(frame.request)

    def _ping(self, frame: Frame) -> None:
        self.send(make_frame(Type.PONG, frame.request, wire.read_bytes(frame.body, wire.MOST_PING)))

    def refuse_held(self, why: Callable[[], HsmError], before: float = inf) -> None:
        """Refuse requests that wait for room, with deadlines before this time."""
        for request in [one for one in self._held.values() if one.held_until < before]:
            self._release(request)
            self._refuse(request.number, why())
        self._offer()

    # Answers.

    def _refuse(self, number: int, error: HsmError) -> None:
        """Answer a request of which nothing was begun. That is not remembered."""
        if self.counts:
            self.server.desk.count(self.client, error)
        self.client.intake.charge(REFUSAL_COST)
        self.send(wire.error(number, wire.refusal_of(error)))

    def send_keys(self, keys_of: Callable[[KnownClient], tuple[wire.Key, ...]]) -> None:
        """Send the keys, if they are others than those that were sent."""
        if self.session is not None and not self._leaving:
            keys = keys_of(self.client)
            if keys != self._sent_keys:
                self._sent_keys = keys
                self.send(wire.keys(keys))

    def fail(self, why: str) -> None:
        """The client breaks the protocol: say so, record it, and close."""
        self.server.refused(self.peer, self.client, why)
        self._end_with(BadArgument(why, hint=""))

    def leave(self, seconds: float, reason: str) -> None:
        """Take no new requests, have the client connect again, and close after so many seconds."""
        self._leaving = True
        self.send(wire.goaway(int(seconds * 1e3), reason))
        self.refuse_held(ending)
        self._loop.call_later(seconds, partial(self.turn_away, reason) if self.revoked else self.close)

    def turn_away(self, why: str) -> None:
        """It is nobody's: say so, and close."""
        self._leaving = True
        self._end_with(PolicyRefused(why, hint=""))

    def _end_with(self, error: HsmError) -> None:
        self.send(wire.error(0, wire.refusal_of(error)))
        self.close()

    def close(self) -> None:
        """Send what is to be sent, then close."""
        self._flush()
        self._ended = True
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()


class VaultConnection(GatewayConnection):
    """A front's, for what one client asks by HTTP: the front counts that, and takes no more of it in a drain."""

    counts = False

    def _context_of(self, peer: str) -> Context:
        return self.client.by(CameBy(peer))
