"""The answers that a client may ask for again: for each nonce, what is open and what was answered lately. Knows no
clock and no connection."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import Final, Generic, NamedTuple, TypeVar

from hsmcore.errors import BadArgument
from hsmcore.gateway.clients import refused
from hsmcore.gateway.frames import Flag, Frame

REMEMBER_SECONDS: Final = 120.0
NONCES: Final = 256
"""Processes of one client that are remembered at a time."""
_SHORT: Final = 512
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


class Session(Generic[T]):
    """What one process of a client asked for, on all its connections. `T`: a request that is open."""

    def __init__(self, most: int) -> None:
        """`most`: answers that are kept."""
        self._most = most
        self.connections = 0
        self.open: dict[int, tuple[Contents, T]] = {}
        self._answered: OrderedDict[int, _Answered] = OrderedDict()
        self._floor = 0
        """What is not above it, and not known, was answered and is forgotten, or is asked for no more."""

    @property
    def remembered(self) -> int:
        """Answers that may be asked for again."""
        return len(self._answered)

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
        if number <= self._floor:
            error = BadArgument(f"what request {number} was answered is forgotten")
            error.maybe_signed = True
            raise error
        return None

    def close(self, number: int, answer: bytes | None, now: float) -> None:
        """An open request is answered. None: the answer need not be remembered, nothing was done."""
        contents, _ = self.open.pop(number)
        if answer is not None and number > self._floor:
            self._answered[number] = _Answered(contents, answer, now)
            if len(self._answered) > self._most:
                self._forget_first()

    def acknowledge(self, number: int) -> None:
        """Nothing below this number is asked for again."""
        self._floor = max(self._floor, number - 1)
        # The order is that of the answers. One that stands behind a later number goes with that.
        while self._answered and next(iter(self._answered)) < number:
            self._answered.popitem(last=False)

    def expire(self, before: float) -> None:
        """Forget the answers from before this time."""
        while self._answered and next(iter(self._answered.values())).at < before:
            self._forget_first()

    def _forget_first(self) -> None:
        number, _ = self._answered.popitem(last=False)
        self._floor = max(self._floor, number)


def _require_same(number: int, asked: Contents, known: Contents) -> None:
    if asked != known:
        raise BadArgument(f"request {number} was another one before: each number means one request")


class Sessions(Generic[T]):
    """The sessions of one client, by nonce."""

    def __init__(self, most: int) -> None:
        """`most`: answers that are kept for each."""
        self._most = most
        self._sessions: dict[bytes, Session[T]] = {}

    def enter(self, nonce: bytes) -> Session[T]:
        """Return the session of a process, which has a connection more. Raises QueueFull."""
        found = self._sessions.get(nonce)
        if found is None:
            if len(self._sessions) >= NONCES:
                self.expire(0)
            if len(self._sessions) >= NONCES:
                raise refused(f"there are {NONCES} processes of this client", int(REMEMBER_SECONDS * 1e3))
            found = self._sessions[nonce] = Session(self._most)
        found.connections += 1
        return found

    def expire(self, before: float) -> None:
        """Forget the answers from before this time, and the processes of which nothing is left."""
        for nonce, session in list(self._sessions.items()):
            session.expire(before)
            if not session.used:
                del self._sessions[nonce]

    @property
    def remembered(self) -> int:
        """Answers that may be asked for again."""
        return sum(session.remembered for session in list(self._sessions.values()))
