"""The answers that a client may ask for again: for each nonce, what is open and what was answered lately. Knows no
clock and no connection.

An answer is forgotten when it is old enough or acknowledged, never for want of memory: then new requests are refused.
Only a process that is away may lose its answers to a client's newer processes, and is told so if it asks again.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import Final, Generic, TypeVar

from hsmcore._native import MemoryBudget, ReplayTable
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
_LACKS: Final = {
    "memory": "the answers that are not acknowledged fill this client's memory",
    "gaps": "too many request numbers were passed over, and not acknowledged",
}
_MEANT: Final = ~int(Flag.AGAIN)

T = TypeVar("T")
Contents = tuple[int, int, int, bytes]
"""What a request asks for: equal for equal requests only."""


def contents_of(frame: Frame) -> Contents:
    """Return what a request asks for. A long body is kept as its digest."""
    kind, flags, slot, _, body = frame
    return kind, flags & _MEANT, slot, body if len(body) <= _SHORT else hashlib.sha256(body).digest()


def budget_of(in_flight: int) -> int:
    """Return the bytes of memory for the answers of a client that may have so many messages open."""
    return MEMORY_BYTES + CREDIT_BYTES * in_flight


class ReplaySession(ReplayTable, Generic[T]):
    """What one process of a client asked for, on all its connections. `T`: a request that is open."""

    def __init__(self, room: MemoryBudget) -> None:
        super().__init__(room, Type.VERIFY, _ENTRY_BYTES, _GAP_BYTES)
        self.connections = 0

    @property
    def used(self) -> bool:
        """Whether it must be kept."""
        return bool(self.connections or self.open or self.remembered)

    def require_room(self, number: int, now: float) -> None:
        """Raise QueueFull if a new request cannot be remembered: nothing is forgotten for it."""
        lacks = self.lacks(number, now - REMEMBER_SECONDS)
        if lacks:
            raise full(_LACKS[lacks], _RETRY_MS)

    def end(self) -> None:
        """It is not kept any more."""
        self.acknowledge(1 << 64)


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
        self._room.most = budget_of(in_flight)

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
