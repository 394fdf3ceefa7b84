"""The answers that a client may ask for again: for each nonce, what is open and what was answered lately. Knows no
clock and no connection.

An answer is forgotten when it is old enough or acknowledged, never for want of memory: then new requests are refused.
Only a process that is away may lose its answers to a client's newer processes, and is told so if it asks again.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import Final, Generic, NamedTuple, TypeVar

from hsmcore.errors import BadArgument
from hsmcore.gateway.seen import SeenIds
from hsmcore.gateway.wire.frames import Flag, Frame, Type
from hsmcore.manager.policy.callers import full

REMEMBER_SECONDS: Final = 120.0
NONCES: Final = 1024
"""Of one client, that are remembered at a time: four for each connection that it may have."""
FORGOTTEN: Final = 1 << 16
"""Nonces of one client whose answers were forgotten before their time, that are known as that."""
MEMORY_BYTES: Final = 1 << 26
"""Of the answers of one client, beside CREDIT_BYTES for each message that it may have open."""
CREDIT_BYTES: Final = 1 << 13
"""So much have a client's open requests between two acknowledgements, proofs of batches included."""
_SHORT: Final = 512
_ENTRY_BYTES: Final = 400
"""Of an answer, beside itself and what was asked."""
_GAP_BYTES: Final = 128
_RETRY_MS: Final = 1000
_MEANT: Final = ~int(Flag.AGAIN)

T = TypeVar("T")
Contents = tuple[int, int, int, bytes]
"""What a request asks for: equal for equal requests only."""


def contents_of(frame: Frame) -> Contents:
    """Return what a request asks for. A long body is kept as its digest."""
    kind, flags, slot, _, body = frame
    return kind, flags & _MEANT, slot, body if len(body) <= _SHORT else hashlib.sha256(body).digest()


class _Answered(NamedTuple):
    contents: Contents
    answer: bytes
    at: float
    size: int


class MemoryBudget:
    """The memory of one client's answers."""

    def __init__(self, most: int) -> None:
        """`most`: bytes."""
        self.most, self.used = most, 0

    @classmethod
    def of(cls, in_flight: int) -> MemoryBudget:
        """Return that of a client that may have so many messages open."""
        return cls(MEMORY_BYTES + CREDIT_BYTES * in_flight)


class ReplaySession(Generic[T]):
    """What one process of a client asked for, on all its connections. `T`: a request that is open."""

    def __init__(self, room: MemoryBudget) -> None:
        self._room = room
        self.connections = 0
        self.open: dict[int, tuple[Contents, T]] = {}
        self._answered: OrderedDict[int, _Answered] = OrderedDict()
        self._taken = SeenIds()
        """What is in it, and not known, was answered and is forgotten, or is asked for no more."""
        self._floor = 1
        """The lowest number that may be asked for again, by the client's word."""
        self._gaps = 0
        """Those of `_taken` that `_room` counts."""

    @property
    def remembered(self) -> int:
        """Answers that may be asked for again."""
        return len(self._answered)

    @property
    def last(self) -> tuple[float, int]:
        """When the newest answer was made, and the highest number that was taken. There are answers."""
        return next(reversed(self._answered.values())).at, self._taken.newest

    @property
    def used(self) -> bool:
        """Whether it must be kept."""
        return bool(self.connections or self.open or self._answered)

    def find(self, number: int, contents: Contents) -> T | bytes | None:
        """Return the open request of this number, or its answer; None: it is new. Raises BadArgument for other contents
        than before, and for a number whose answer is forgotten."""
        known = self.open.get(number)
        if known is not None:
            _require_same(number, contents, known[0])
            return known[1]
        answered = self._answered.get(number)
        if answered is not None:
            _require_same(number, contents, answered.contents)
            return answered.answer
        if number <= self._taken.newest and number in self._taken and contents[0] != Type.VERIFY:  # it may be repeated
            error = BadArgument(f"what request {number} was answered is forgotten")
            error.maybe_signed = True
            raise error
        return None

    def require_room(self, number: int, now: float) -> None:
        """Raise QueueFull if a new request cannot be remembered: nothing is forgotten for it."""
        if self._room.used >= self._room.most:
            raise full("the answers that are not acknowledged fill this client's memory", _RETRY_MS)
        if number == self._taken.newest + 1:
            return
        found = self._taken.has_room(number, now - REMEMBER_SECONDS)
        self._count_gaps()
        if not found:
            raise full("too many request numbers were passed over, and not acknowledged", _RETRY_MS)

    def begin(self, number: int, contents: Contents, request: T, now: float) -> None:
        """A new request is open from now on. There is room for it."""
        self.open[number] = contents, request
        if self._taken.take(number, now):
            self._count_gaps()

    def close(self, number: int, answer: bytes | None, now: float) -> None:
        """An open request is answered. None: the answer need not be remembered, nothing was done."""
        contents, _ = self.open.pop(number)
        if answer is not None and number >= self._floor:
            size = _ENTRY_BYTES + len(answer) + len(contents[3])
            self._answered[number] = _Answered(contents, answer, now, size)
            self._room.used += size

    def acknowledge(self, number: int) -> None:
        """Nothing below this number is asked for again."""
        self._floor = max(self._floor, number)
        self._taken.take_below(number)
        self._count_gaps()
        # The order is that of the answers. One that stands behind a later number goes with that.
        while self._answered and next(iter(self._answered)) < number:
            self._forget_first()

    def expire(self, before: float) -> None:
        """Forget the answers from before this time."""
        while self._answered and next(iter(self._answered.values())).at < before:
            self._forget_first()

    def end(self) -> None:
        """It is not kept any more."""
        self.acknowledge(1 << 64)

    def _count_gaps(self) -> None:
        gaps = self._taken.gaps
        self._room.used += _GAP_BYTES * (gaps - self._gaps)
        self._gaps = gaps

    def _forget_first(self) -> None:
        _, known = self._answered.popitem(last=False)
        self._room.used -= known.size


def _require_same(number: int, asked: Contents, known: Contents) -> None:
    if asked != known:
        raise BadArgument(f"request {number} was another one before: each number means one request")


class Sessions(Generic[T]):
    """The sessions of one client, by nonce."""

    def __init__(self, room: MemoryBudget) -> None:
        self._room = room
        self._sessions: dict[bytes, ReplaySession[T]] = {}
        self._forgotten: OrderedDict[bytes, tuple[float, int]] = OrderedDict()
        """ReplaySession.last of those whose answers were forgotten for others."""

    def enter(self, nonce: bytes) -> ReplaySession[T]:
        """Return the session of a process, which has a connection more. Raises QueueFull."""
        found = self._sessions.get(nonce)
        if found is None:
            if len(self._sessions) >= NONCES:
                self.expire(0)
                self._forget_one()
            if len(self._sessions) >= NONCES:
                raise full(f"this client has {NONCES} nonces", int(REMEMBER_SECONDS * 1e3))
            found = self._sessions[nonce] = ReplaySession(self._room)
            if nonce in self._forgotten:
                found.acknowledge(self._forgotten[nonce][1] + 1)
        found.connections += 1
        return found

    def _forget_one(self) -> None:
        """Have room for a process: that of which nothing is open or connected, and was for longest, loses its answers.

        Which numbers it used stays known for as long as its answers would have been. So a repetition is refused as
        something that may be signed, whatever its algorithm and version. To let it be signed as a new request would
        not be safe, not even for Ed25519: after a rotation it would be refused for its key, as if it had never been
        signed, and its client would have it signed under the next one.
        """
        away = [nonce for nonce, one in self._sessions.items() if not one.connections and not one.open]
        if away and len(self._forgotten) < FORGOTTEN:
            nonce = min(away, key=lambda one: self._sessions[one].last)
            session = self._sessions.pop(nonce)
            self._forgotten[nonce] = session.last
            session.end()

    def resize(self, in_flight: int) -> None:
        """Have the memory of a client that may have so many messages open."""
        self._room.most = MemoryBudget.of(in_flight).most

    def expire(self, before: float) -> None:
        """Forget the answers from before this time, and the processes of which nothing is left."""
        for nonce, session in list(self._sessions.items()):
            session.expire(before)
            if not session.used:
                session.end()
                del self._sessions[nonce]
        while self._forgotten and next(iter(self._forgotten.values()))[0] < before:
            self._forgotten.popitem(last=False)

    @property
    def remembered(self) -> int:
        """Answers that may be asked for again."""
        return sum(session.remembered for session in list(self._sessions.values()))
