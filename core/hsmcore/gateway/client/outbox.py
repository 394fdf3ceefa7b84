"""The requests of a client: in line, on connections, and between them. Decides what is sent where; knows no socket."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, Protocol

from hsmcore.errors import EngineClosed, HsmError, MessageTooLarge, NotHolder, QueueFull
from hsmcore.gateway.client.request import ANSWER, ClientRequest, GatewaySession, late, lost
from hsmcore.gateway.wire import batched
from hsmcore.gateway.wire import messages as wire
from hsmcore.gateway.wire.frames import MOST_BYTES, Frame, Type, WireError, frame, native, traced

_GRACE: Final = 0.1
"""Seconds behind the deadline in which the gateway's own answer, which says more, may still come."""
_LEAST_REST: Final = 0.005
_LEAST_DOUBT: Final = 0.02
"""Seconds before a holder is asked again that is not sure to be one."""
_REST: Final = 20
"""Between two looks for what is late lie so many times as long as a look takes."""
_PIECE: Final = 1 << 18
"""Bytes that are handed to a connection at a time: it may then be full."""
AT_ONCE: Final = 16
"""Requests that go out together, at most: the gateway begins with them while the next ones are made."""
_ACK_EVERY: Final = 64
_DRAINING: Final = ("BUSY", "CLOSED")
_NEVER: Final = float("inf")


class Channel(Protocol):
    """A connection, as the outbox needs it."""

    open: dict[int, ClientRequest]
    """What was sent here and is not answered, by its number."""
    withdrawn: list[int]
    """Numbers of requests that are to be cancelled here."""

    @property
    def session(self) -> GatewaySession: ...
    @property
    def ready(self) -> bool:
        """Whether it takes requests now."""

    @property
    def going(self) -> bool:
        """Whether the gateway said GOAWAY."""

    def send(self, data: bytes) -> None: ...
    def refused(self, holder: str) -> bool:
        """Its gateway does not hold the epoch: go to another one, to the holder if it is known by its name. Returns
        whether there are others to go to."""


class RequestOutbox:
    """All requests of a client. Belongs to one event loop. Each future is settled once, by an answer, an error, or its
    deadline; a request that its caller withdraws has a cancelled future."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        most_waiting: int,
        channels: Sequence[Channel],
        learned: Callable[[GatewaySession], None],
    ) -> None:
        """`channels`: live connections, all of them. `learned` is called when a gateway has said which keys there
        are."""
        self._learned = learned
        self._loop = loop
        self._most = most_waiting
        self._channels = channels
        self._waiting: deque[ClientRequest] = deque()
        self._again: deque[ClientRequest] = deque()
        """Sent on connections that broke: they go first."""
        self._held: list[ClientRequest] = []
        """Refused for their key; the gateway has not told the next one yet."""
        self._later: list[ClientRequest] = []
        """Refused for want of room; there may be some at their `not_before`."""
        self._resting: asyncio.TimerHandle | None = None
        self.credits = 0
        self._out = 0
        self._next = 1
        self._scheduled = False
        self._look_at = _NEVER
        self._looking: asyncio.TimerHandle | None = None
        self._answered = 0
        self._notes = batched.Notes()
        self._closed = False
        self._given_up = False
        self.seeking = False
        """Whether a host that does not hold the epoch has refused a request, and no gateway has signed since. Requests
        then go one at a time: each may be refused as well."""
        self.problem = ""
        """Why there is no connection."""

    def submit(self, request: ClientRequest) -> None:
        """Send a request as soon as there is room for it. Raises QueueFull, EngineClosed."""
        if self._closed:
            self.require_open()
        waiting = self._waiting
        if len(waiting) >= self._most and not self._tidy():
            raise QueueFull(f"{self._most} requests wait to be sent to the gateway")
        waiting.append(request)
        if request.deadline < self._look_at:
            self._look_by(request.deadline)
        if len(waiting) >= AT_ONCE and self._out < self.credits:
            self.flush()
        elif not self._scheduled:
            if self._out:
                self.wake()
            else:  # one that is alone waits for no others
                self.flush()

    def require_open(self) -> None:
        """Raise EngineClosed if no more requests are taken."""
        if self._closed:
            raise EngineClosed("the client is closed", hint="Make a new client.")

    def _tidy(self) -> bool:
        """Drop those whose callers have given up. Returns whether there is room then."""
        if self._given_up:
            self._given_up = False
            waiting = [request for request in self._waiting if not request.future.done()]
            self._waiting.clear()
            self._waiting.extend(waiting)
        return len(self._waiting) < self._most

    def withdraw(self, request: ClientRequest) -> None:
        """Its caller does not wait any more."""
        self._given_up = True
        for channel in self._channels:
            if channel.open.get(request.number) is request:
                channel.withdrawn.append(request.number)
                self.wake()

    def wake(self) -> None:
        """Send at the end of this turn of the loop what can be sent."""
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Send what there is room for: the requests of a turn of the loop go out together, AT_ONCE at a time."""
        self._scheduled = False
        for channel in self._channels:
            if channel.withdrawn:
                numbers, channel.withdrawn = channel.withdrawn, []
                channel.send(b"".join(frame(Type.CANCEL, number) for number in numbers if number in channel.open))
        while self._again or self._waiting:
            channels = [channel for channel in self._channels if channel.ready]
            if not channels:
                return
            best = channels[0] if len(channels) == 1 else min(channels, key=lambda one: len(one.open))
            data = self._fill(best)
            if not data:
                return
            if self._answered >= max(_ACK_EVERY, self._out):
                self._answered = 0
                data.append(self.acknowledgement())
            best.send(b"".join(data))

    def _fill(self, channel: Channel) -> list[bytes]:
        """Return frames for this connection, a piece at most."""
        data, size, now, session = list[bytes](), 0, self._loop.time(), channel.session
        room = min(self.credits, 1) if self.seeking else self.credits
        if native is not None and not self._again:
            ready = self._waiting, Type.SIGN, wire.KIND_NUMBERS, channel.open
            data, size = native.fill_signs(*ready, self._next, now, session, room - self._out, _PIECE)
            self._next += len(data)
            self._out += len(data)
        while size < _PIECE and (queue := self._again or self._waiting):
            request = queue[0]
            if request.future.done():
                queue.popleft()
                continue
            # A batch that is larger than all credits goes alone: the gateway may have lowered them since it was cut.
            if self._out + request.count > room and (self._out or not room):
                break
            queue.popleft()
            if not (request.number and request.signs):
                request.number = self._next
                self._next += 1
            try:
                made = request.send_on(session, now)
            except HsmError as error:
                request.future.set_exception(error)
                continue
            if request.parent is not None and session.traces:
                made = traced(made, request.parent)
            if len(made) > MOST_BYTES:
                request.future.set_exception(MessageTooLarge(f"a frame of {len(made)} bytes; at most {MOST_BYTES}"))
                continue
            channel.open[request.number] = request
            self._out += request.count
            data.append(made)
            size += len(made)
        return data

    @property
    def floor(self) -> int:
        """The lowest number that may still be asked for again."""
        numbers = [min(channel.open) for channel in self._channels if channel.open]
        numbers += [one.number for queue in (self._again, self._later) for one in queue if one.number]
        return min(numbers, default=self._next)

    def acknowledgement(self) -> bytes:
        """Return ACK: the gateway may forget what is below `floor`."""
        return frame(Type.ACK, self.floor)

    def answered(self, channel: Channel, answer: Frame) -> None:
        """Settle the request that a frame answers. Raises WireError."""
        request = channel.open.get(answer.request)
        if request is None:
            if answer.request >= self._next:
                raise WireError(f"an answer to request {answer.request}, which was not sent")
            return
        if answer.type is Type.ERROR:
            refusal = wire.read_error(answer.body)
            self._close(channel, request)
            if not request.future.done():
                self._refused(channel, request, refusal)
            return
        if answer.type is not ANSWER[request.type]:
            raise WireError(f"{answer.type.name} answers {request.type.name}")
        if answer.type is Type.BATCHED:
            self._batched(channel, request, batched.read_batched(answer.body))
            return
        result = self._read(channel.session, request, answer)
        self._close(channel, request)
        if request.future.done():
            return
        if answer.type is not Type.SIGNED_MANY or not self._ask_for_rest(channel, request, result):
            request.future.set_result(result)

    def signed(self, count: int) -> None:
        """So many requests of one message are settled with their signatures, and out of their channel's `open`."""
        self._out -= count
        self._answered += count
        self.seeking = False

    def _ask_for_rest(self, channel: Channel, request: ClientRequest, outcomes: list[Any]) -> bool:
        """Have messages of a batch signed that another key has to sign, or another host: as a request of their own.
        Returns whether there are any."""
        unheld = [at for at, one in enumerate(outcomes) if isinstance(one, NotHolder)]
        late = unheld or request.late(outcomes)
        if not late:
            return False
        rest = request.part(late, self._loop.create_future())
        worst = max((outcomes[at] for at in late), key=lambda one: one.maybe_signed)
        if unheld and not self._goes_on(channel, rest, worst):
            return False

        def settle(_: object) -> None:
            if request.future.done() or rest.future.cancelled():
                return
            error = rest.future.exception()
            for at, one in zip(late, [error] * len(late) if error else rest.future.result(), strict=True):
                outcomes[at] = one
            request.future.set_result(outcomes)

        def withdraw(_: object) -> None:
            if rest.future.cancel():
                self.withdraw(rest)

        rest.future.add_done_callback(settle)
        request.future.add_done_callback(withdraw)
        if not unheld:
            rest.renewals += 1
            self._renew(channel, rest)
        return True

    def _goes_on(self, channel: Channel, request: ClientRequest, refusal: HsmError) -> bool:
        """Have a request that was refused by a host without the epoch sent to the next one, or to this one if it is the
        holder and only does not know it now. Returns whether that is possible."""
        if not isinstance(refusal, NotHolder) or not channel.refused(refusal.holder) or not request.moves(refusal):
            return False
        if channel.going:
            self.seeking = True
            self._again.append(request)
        else:
            request.rest(_LEAST_DOUBT, self._loop.time())
            self._later.append(request)
            self._rest()
        self.wake()
        return True

    def _renew(self, channel: Channel, request: ClientRequest) -> None:
        """Send a request again with the key that signs now, as soon as that is known."""
        told = channel.session.revision != request.revision
        request.fresh()
        if told:
            self._waiting.appendleft(request)
        else:
            self._held.append(request)
        self.wake()

    def _batched(self, channel: Channel, request: ClientRequest, answer: batched.Place) -> None:
        self._close(channel, request)
        if request.future.done():
            return
        try:
            found = self._notes.verified(request.value.message, request.value.kind, answer)
        except HsmError as error:  # the connection is as good as another one to this gateway
            request.future.set_exception(error)
        else:
            self.seeking = False
            request.future.set_result(found)

    def _close(self, channel: Channel, request: ClientRequest) -> None:
        del channel.open[request.number]
        self._out -= request.count
        self._answered += 1

    def _read(self, session: GatewaySession, request: ClientRequest, answer: Frame) -> Any:
        wanted = request.key.version if request.key is not None else 0
        if answer.type is Type.SIGNED:
            version, level, seq, signature = wire.read_signed(answer.body)
            if wanted not in (0, version):
                raise WireError(f"signed with version {version} instead of {wanted}")
            self.seeking = False
            return (signature, level, seq, request.key, session.address) if request.full else signature
        if answer.type is Type.SIGNED_MANY:
            version, outcomes = wire.read_signed_many(answer.body)
            if wanted not in (0, version) or len(outcomes) != request.count:
                raise WireError(f"{len(outcomes)} outcomes of version {version} for {request.count} of {wanted}")
            self.seeking = self.seeking and not any(isinstance(one, bytes) for one in outcomes)
            return [one if isinstance(one, bytes) else request.failed(one) for one in outcomes]
        return wire.read_text(answer.body)

    def _refused(self, channel: Channel, request: ClientRequest, refusal: wire.Refusal) -> None:
        if request.renewable(refusal):
            request.renewals += 1
            self._renew(channel, request)
        elif channel.going and refusal.status in _DRAINING and not refusal.maybe_signed:
            # The gateway that ends has not taken it; one before may have.
            if request.sent == 1:
                request.fresh()
            self._again.append(request)
        elif request.waits(refusal, self._loop.time()):
            if request.sent == 1:
                request.fresh()
            self._later.append(request)
            self._rest()
        elif not self._goes_on(channel, request, error := request.failed(refusal)):
            request.future.set_exception(error)
            return
        self.wake()

    def _rest(self) -> None:
        """Send those again in time for which there was no room."""
        if self._later and self._resting is None:
            when = max(min(request.not_before for request in self._later), self._loop.time() + _LEAST_REST)
            self._resting = self._loop.call_at(when, self._rested)

    def _rested(self) -> None:
        self._resting = None
        now = self._loop.time()
        self._again.extend(request for request in self._later if request.not_before <= now)
        self._later = [request for request in self._later if request.not_before > now]
        self._rest()
        self.wake()

    def keys_changed(self, channel: Channel) -> None:
        """Let those go on that wait for the next key."""
        self._learned(channel.session)
        if self._held:
            self._waiting.extendleft(reversed(self._held))
            self._held.clear()
        self.wake()

    def settled(self) -> None:
        """Answers have come: send what waited for the room."""
        if self._waiting or self._again:
            self.wake()

    def left(self, channel: Channel) -> None:
        """A connection has ended: what is open there is sent again on another one."""
        requests, channel.open = channel.open, {}
        for request in requests.values():
            self._out -= request.count
            if not request.future.done():
                self._again.append(request)
        self.wake()

    def _look_by(self, when: float) -> None:
        if self._looking is not None:
            self._looking.cancel()
        self._look_at = when
        self._looking = self._loop.call_at(when, self._look)

    def _look(self) -> None:
        """Fail what is late. All deadlines share one timer, because few are ever reached."""
        now, next_one = self._loop.time(), _NEVER
        for channel in self._channels:
            for request in channel.open.values():
                if not request.future.done():
                    if request.deadline + _GRACE <= now:
                        request.future.set_exception(late(request, ""))
                        channel.withdrawn.append(request.number)
                        self.wake()
                    else:
                        next_one = min(next_one, request.deadline + _GRACE)
        for queue in (self._again, self._waiting, self._held, self._later):
            left = []
            for request in queue:
                if request.future.done():
                    continue
                if request.deadline <= now:
                    request.future.set_exception(late(request, self.problem))
                else:
                    left.append(request)
                    next_one = min(next_one, request.deadline)
            if len(left) < len(queue):
                queue.clear()
                queue.extend(left)
        self._looking, self._look_at = None, _NEVER
        if next_one < _NEVER:
            done = self._loop.time()
            self._look_by(max(next_one, done + max(_LEAST_REST, (done - now) * _REST)))

    def unsettled(self) -> Iterator[asyncio.Future[Any]]:
        """The futures that are not settled."""
        queues: list[Iterable[ClientRequest]] = [self._again, self._waiting, self._held, self._later]
        queues += [channel.open.values() for channel in self._channels]
        return (request.future for queue in queues for request in queue if not request.future.done())

    def refuse(self) -> None:
        """Take no further requests."""
        self._closed = True

    def end(self) -> None:
        """Fail what is left."""
        self._closed = True
        for channel in self._channels:
            self._again.extend(channel.open.values())
        for queue in (self._again, self._waiting, self._held, self._later):
            for request in queue:
                if not request.future.done():
                    sent = request.sent and request.signs
                    error: HsmError = (
                        lost(request, "the client was closed") if sent else EngineClosed("the client closed")
                    )
                    request.future.set_exception(error)
            queue.clear()
        for timer in (self._looking, self._resting):
            if timer is not None:
                timer.cancel()
