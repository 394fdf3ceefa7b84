"""What a client has asked for, until it is answered; when it may be sent again; and errors from the wire."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from hsmcore.base.traceparent import TraceParent
from hsmcore.errors import (
    EXCEPTION_OF_STATUS,
    DeadlineExceeded,
    HsmError,
    KeyNotCurrent,
    KeyNotFound,
    MemberDown,
    NotHolder,
)
from hsmcore.errors.batch import of_batch
from hsmcore.errors.statuses import RETRYABLE_CLASSES, STATUSES
from hsmcore.gateway.wire import batched
from hsmcore.gateway.wire import messages as wire
from hsmcore.gateway.wire.frames import Type, frame, native

ANSWER: Final[Mapping[Type, Type]] = {
    Type.SIGN: Type.SIGNED,
    Type.SIGN_MANY: Type.SIGNED_MANY,
    Type.MANAGE: Type.DONE,
    Type.SIGN_BATCHED: Type.BATCHED,
}
"""What answers a request, unless it is ERROR."""
_SIGNING: Final = (Type.SIGN, Type.SIGN_MANY, Type.SIGN_BATCHED)
_HARMLESS: Final = ("cache-stats", "export", "unfinished")
"""The operations that may be done twice."""
_MOST_RENEWALS: Final = 3
_MOST_DOUBLINGS: Final = 3
_FORGETS_EARLIER: Final = 0.8
"""Of `remember_ms`, the part that is relied on."""


@dataclass(slots=True)
class GatewaySession:
    """What a gateway process has said of itself and of one key manager. `address`: where it is."""

    instance: bytes
    slot: int
    remembers: float
    """Seconds for which answers are remembered."""
    message_bytes: int
    batch: int
    client: str = ""
    """As which client the gateway knows this one."""
    slots: tuple[str, ...] = ()
    """The key managers that the client may use."""
    keys: tuple[wire.Key, ...] = ()
    current: wire.Key | None = None
    by_public_key: dict[bytes, wire.Key] = field(default_factory=dict)
    revision: int = 0
    """How often it has said which keys there are."""
    batches: bool = False
    """Whether it signs batches."""
    traces: bool = False
    """Whether it takes traces."""
    address: str = ""

    def learn(self, listed: tuple[wire.Key, ...]) -> None:
        """Take the versions of all keys that the client may use."""
        self.revision += 1
        self.keys = tuple(key for key in listed if key.slot == self.slot)
        self.current = next((key for key in self.keys if key.current), None)
        self.by_public_key = {key.public_key: key for key in self.keys}
        self.batches = any(key.batches for key in self.keys)
        self.traces = any(key.traces for key in self.keys)

    def for_verification(self) -> list[wire.Key]:
        """As KeyRing."""
        return sorted(self.keys, key=lambda key: not key.current)

    def by_id(self, key_id: str) -> wire.Key:
        """Return a version. Raises KeyNotFound."""
        for key in self.keys:
            if key.id == key_id:
                return key
        known = ", ".join(key.id for key in self.keys) or "none"
        raise KeyNotFound(f"the gateway has no key with id {key_id!r:.200} (known: {known})")


class GatewayMember(NamedTuple):
    """A gateway, as the one member that its client has. `condition`: "ready", or "open": no connection to it."""

    name: str
    condition: str
    signs: bool
    public_key: bytes | None
    key_id: str


class _Fields:
    """As hsmcore._native.RequestFields."""

    timeout_ms = number = sent = revision = renewals = refusals = 0
    first = not_before = 0.0
    instance = b""
    key: wire.Key | None = None
    parent: TraceParent | None = None
    refusal: HsmError | None = None
    expects = -1

    def __init__(
        self,
        type: Type,  # noqa: A002
        value: Any,
        future: asyncio.Future[Any],
        deadline: float,
        count: int = 1,
        asked_id: str | None = None,
        full: bool = False,
    ) -> None:
        self.type, self.value, self.future, self.deadline = type, value, future, deadline
        self.count, self.asked_id, self.full = count, asked_id, full


if TYPE_CHECKING or native is None:  # noqa: SIM108  # a base must be no expression
    Fields = _Fields
else:
    Fields = native.RequestFields


class ClientRequest(Fields):
    """One request. `value` is what `wire` makes a frame of, with the version left open.

    It is sent with the version of the key that was current at the first time, and only with that one, for as long as
    the gateway may have received it before.

    `full`: the answer is all that SIGNED says, and its key, not only the signature. `parent`: the caller's span.
    `renewals`: how often it was refused for its key, and sent under another one. `refusals`: how often there was no
    room for it, or a holder that was not sure to be one. `refusal`: the last one by a host that does not hold the
    epoch. `not_before`: when there may be room, as the event loop's time. `expects`: the version that SIGNED settles
    it with, 0: any; -1: Python looks at its answer.
    """

    def fresh(self) -> None:
        """Make it as if it had never been sent."""
        self.number = self.sent = self.timeout_ms = self.revision = 0
        self.first = 0.0
        self.instance = b""
        self.key = None

    @property
    def signs(self) -> bool:
        """Whether a signature may come of it."""
        return self.type in _SIGNING

    def send_on(self, session: GatewaySession, now: float) -> bytes:
        """Return the frame to be sent. Raises the error that the request ends with if it must not be sent again."""
        again = self.sent > 0
        if self.type not in _SIGNING:
            if again and self.value.operation not in _HARMLESS:
                raise lost(self, "the connection broke; it may have been done")
            self.sent += 1
            return wire.manage(self.number, self.value, slot=session.slot)
        if not again:
            self.instance, self.first = session.instance, now
            if self.type is not Type.SIGN_BATCHED:  # whose key is the one that signs when the batch closes
                self.key = session.by_id(self.asked_id) if self.asked_id is not None else session.current
            elif not session.batches:
                raise batched.unknown()
            self.timeout_ms = self._left(now)
        elif session.instance != self.instance or now - self.first > session.remembers * _FORGETS_EARLIER:
            self._move(session, now)
        self.sent += 1
        self.revision = session.revision
        if self.type is Type.SIGN_BATCHED:
            value = self.value._replace(timeout_ms=self.timeout_ms)
            return batched.sign_batched(self.number, value, slot=session.slot, again=again)
        version = self.key.version if self.key is not None else 0
        if self.type is Type.SIGN:
            self.expects = -1 if self.full else version
            return wire.sign_as(self.number, self.value, session.slot, version, self.timeout_ms, again)
        value = self.value._replace(version=version, timeout_ms=self.timeout_ms)
        return wire.sign_many(self.number, value, slot=session.slot, again=again)

    def _move(self, session: GatewaySession, now: float) -> None:
        """Prepare for a gateway that remembers nothing of it."""
        key = self.key
        if self.type is Type.SIGN_BATCHED:
            raise lost(self, "the gateway that it was sent to is gone, and the next one would give it another place")
        if key is None or key.algorithm != "ed25519":
            raise lost(self, "the gateway that it was sent to is gone, and another signature would differ from its own")
        known = session.by_public_key.get(key.public_key)
        if known is None:
            raise lost(self, "the gateway that it was sent to is gone, and the next one does not have its key")
        self.key, self.instance, self.first = known, session.instance, now
        self.timeout_ms = self._left(now)

    def _left(self, now: float) -> int:
        left = int((self.deadline - now) * 1000)
        return left if 0 < left < 2**32 else 1 if left <= 0 else 2**32 - 1

    def renewable(self, refusal: wire.Refusal) -> bool:
        """Whether it may be signed under another key, after this refusal: only if it cannot have been signed."""
        if refusal.status != "KEY_NOT_CURRENT" or refusal.maybe_signed:
            return False
        return self.sent == 1 and self.renewals < _MOST_RENEWALS and self.asked_id is None

    def waits(self, refusal: wire.Refusal, now: float) -> bool:
        """Whether it is sent again after a refusal, at `not_before`: the gateway has no room for it, and says when it
        may have, which is before the deadline. Each time it waits longer: many requests may have been told the same."""
        if refusal.status != "QUEUE_FULL" or not refusal.retryable or refusal.maybe_signed:
            return False
        return 0 < self.rest(refusal.retry_after_ms / 1e3, now) < self.deadline - now

    def rest(self, seconds: float, now: float) -> float:
        """Be sent again after so long or longer. Returns the seconds."""
        seconds *= random.uniform(1, 1.5) * (1 << self.refusals)  # noqa: S311
        self.refusals = min(self.refusals + 1, _MOST_DOUBLINGS)
        self.not_before = now + seconds
        return seconds

    def moves(self, refusal: HsmError) -> bool:
        """Make it ready for another gateway, after one that does not hold the epoch has refused it. Returns whether
        that is possible: what may have been signed goes only where `_move` lets it."""
        if self.type not in _SIGNING:
            return False
        if not refusal.maybe_signed:
            self.fresh()
        elif self.type is Type.SIGN_BATCHED or self.key is None or self.key.algorithm != "ed25519":
            return False
        else:  # the same number would get the same answer from the same gateway
            self.number, self.instance = 0, b""
        self.refusal = refusal
        return True

    def late(self, outcomes: Sequence[bytes | HsmError]) -> list[int]:
        """The places of a batch's messages that may be signed under another key, which became the current one before
        they had begun."""
        if self.asked_id is not None or self.renewals >= _MOST_RENEWALS:
            return []
        errors = ((at, one) for at, one in enumerate(outcomes) if isinstance(one, KeyNotCurrent))
        return [at for at, one in errors if not one.maybe_signed]

    def part(self, places: Sequence[int], future: asyncio.Future[Any]) -> ClientRequest:
        """Return a request for some messages of a batch."""
        value = self.value._replace(messages=[self.value.messages[at] for at in places])
        rest = ClientRequest(self.type, value, future, self.deadline, len(places), self.asked_id)
        rest.renewals, rest.revision, rest.sent, rest.key = self.renewals, self.revision, self.sent, self.key
        rest.parent = self.parent
        return rest

    def failed(self, refusal: wire.Refusal) -> HsmError:
        """Return the error of a refusal."""
        error = error_of_refusal(refusal)
        error.request = self.number
        # Not even the same gateway surely remembers the first time: it keeps so many answers and no more.
        if self.signs and self.sent > 1:
            error.maybe_signed = True
        return error

    def cut(self, frame_type: Type) -> bytes:
        """Return a frame about this request: CANCEL."""
        return frame(frame_type, self.number)


def error_of_refusal(refusal: wire.Refusal) -> HsmError:
    """Return the exception of an error from the wire. A status of another release is told by its class."""
    status = refusal.status
    if status not in EXCEPTION_OF_STATUS or status == "OK":
        retry = RETRYABLE_CLASSES.get(refusal.error_class, refusal.retryable)
        text = f"{refusal.text or 'refused by the gateway'} ({status:.64})"
        error: HsmError = HsmError(text, status="HOST_LOST" if retry else "REQUEST_REJECTED", hint="")
    else:
        row = STATUSES[status]
        error = EXCEPTION_OF_STATUS[status](refusal.text or f"{row.text}.", status=status, hint="")
    if isinstance(error, NotHolder):
        error.holder = refusal.holder
    error.told_retryable = refusal.retryable
    error.maybe_signed = refusal.maybe_signed
    error.retry_after_ms = refusal.retry_after_ms
    return error


def lost(request: ClientRequest, why: str) -> MemberDown:
    """Return the error of a request that was sent and will not be answered."""
    error = MemberDown(why, status="HOST_LOST")
    error.maybe_signed = request.signs
    return error


def late(request: ClientRequest, why: str) -> HsmError:
    """Return the error of a request that was not answered in time: that of the last host that does not hold the epoch,
    if one has refused it."""
    text = f"no answer of the gateway in time{f' ({why})' if why else ''}"
    error = request.refusal or DeadlineExceeded(text)
    error.maybe_signed = request.signs and request.sent > 0
    return error


async def outcomes_of(request: ClientRequest, return_exceptions: bool, first: int) -> list[bytes | HsmError]:
    """Return those of a batch. `first`: the place in the batch of the request's first message."""
    try:
        found: list[bytes | HsmError] = await request.future
    except HsmError as error:
        if not return_exceptions:
            raise
        return [error] * request.count
    if not return_exceptions:
        for index, one in enumerate(found, first):
            if isinstance(one, HsmError):
                raise of_batch(one, index)
    return found
