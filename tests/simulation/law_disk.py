"""The law of a host over several lives, on a disk."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from tests.simulation.clock import SECOND
from tests.simulation.device import Signed
from tests.simulation.law import (
    Answer,
    Facts,
    Rule,
    genuine,
    honest,
    nothing_left,
    punctual,
    told,
)

from hsmcore.base.receipt import Receipt
from hsmcore.errors import AuditUnavailable, HsmError
from hsmcore.state.errors import StoreBehind, StoreError

SAVED_NS: Final = SECOND // 20
"""A binding is in the state store, and a record on the disk, so long after the wait, or the signature, ended."""


class Ended(NamedTuple):
    """The end of a life: "close", "kill", or "cut" (of the power)."""

    at_ns: int
    how: str
    life: int


@dataclass(slots=True)
class LivesFacts(Facts):
    """What happened in several lives of one host."""

    ends: list[Ended] = field(default_factory=list)
    refused: list[tuple[int, HsmError]] = field(default_factory=list)
    """Starts that were refused, by the life's number."""
    records: dict[tuple[bytes, bytes], int] | None = None
    """The signatures in the audit log after the last life, by digest of the message and signature, with their number;
    None: there is no log."""
    unsound: list[tuple[int, str]] = field(default_factory=list)
    """What `audit verify` finds after a life's end, by its number."""

    commands: list[str] = field(default_factory=list)
    """Commands that have acted, by the names of their files;"""
    spooled: set[str] = field(default_factory=set)
    """and those that are in the log after the last life, or wait in its spool."""
    audited: set[int] = field(default_factory=set)
    """The lives with an audit log."""
    behind: list[tuple[int, HsmError | None]] = field(default_factory=list)
    """How starts on the state store of before a life ended, by its number; None: it started."""
    restored: list[int] = field(default_factory=list)
    """When a backup was put in the store's place."""
    conflicts: list[dict[str, object]] = field(default_factory=list)
    """Positions that a restored store and the log have two payloads for."""
    full: list[tuple[int, int]] = field(default_factory=list)
    """When the disk was full: from, to."""
    slow: list[tuple[int, int]] = field(default_factory=list)
    """When records may have waited for a slow disk."""

    lied: dict[int, str] = field(default_factory=dict)
    """Lives in which a sync of one file kept nothing: that file."""

    def lost(self, *files: str) -> bool:
        """Whether the disk has lied about one of these files: what is lost of it is not to be there."""
        return not self.lied.keys().isdisjoint(one.life for one in self.ends if one.how == "cut") and any(
            file in self.lied.values() for file in files
        )

    def has(self, intent: int) -> bool:
        """Whether a caller has got what it wants."""
        return any(isinstance(one.result, (bytes, Receipt)) for one in self.calls.get(intent, ()))

    def end_of(self, moment: int) -> Ended:
        """The end of the life in which something happened."""
        return next(one for one in self.ends if one.at_ns >= moment)


def answered_or_cut_short(facts: LivesFacts) -> Iterator[str]:
    """Each call ends once, or its process ends before."""
    for one in facts.answers:
        if one.ends > 1 or (not one.ends and facts.end_of(one.begun_ns).how == "close"):
            yield f"call {one.intent}.{one.number} ended {one.ends} times"


def one_key_over_lives(facts: LivesFacts) -> Iterator[str]:
    """While a caller has no answer, its message is signed under one key only, also if the process ends in between. A
    process that is killed, or loses power, forgets messages whose wait had not ended some milliseconds before, and
    which the audit log, if there is one, does not have by then. A store that is full is asked again each second. A
    store that was restored forgets what was signed and recorded while its caller gave up: no record says that the
    caller has not got it."""
    for calls in facts.calls.values():
        if calls[0].shared:
            continue
        signed = sorted(facts.ledger.of(calls[0].message), key=lambda one: one.begun_ns)
        for at, first in enumerate(signed):
            for other in signed[at + 1 :]:
                if first.public_key != other.public_key and _is_bound(facts, calls, first, other.begun_ns):
                    yield f"intent {calls[0].intent} was signed under two keys, and the caller had no answer"


def _is_bound(facts: LivesFacts, calls: list[Answer], first: Signed, then_ns: int) -> bool:
    """Whether a message is bound by its first signature when it is signed again."""
    recorded = (hashlib.sha256(first.message).digest(), first.signature) in (facts.records or {})
    if recorded and any(first.at_ns < at < then_ns for at in facts.restored):
        return False
    end_ns, how, life = facts.end_of(first.begun_ns)
    if then_ns <= end_ns or how == "close":
        return True
    over = max((one.ended_ns or 2**63 for one in calls if one.begun_ns <= end_ns), default=2**63)
    if life in facts.audited and not any(at <= end_ns and first.at_ns <= to for at, to in facts.slow):
        over = min(over, first.at_ns)
    over = max([over, *(to + SECOND for at, to in facts.full if at <= end_ns and over <= to)])
    return over + SAVED_NS < end_ns


def recorded(facts: LivesFacts) -> Iterator[str]:
    """A signature that a caller gets has a record, which outlives the process."""
    if facts.lost("segment"):
        return  # the newest lines are known to nothing else before a checkpoint covers them: then `sound` sees it
    for one in facts.answers if facts.records is not None else ():
        if isinstance(one.result, (bytes, Receipt)) and facts.end_of(one.begun_ns).life in facts.audited:
            signature = one.result if isinstance(one.result, bytes) else one.result.signature
            if (hashlib.sha256(one.message).digest(), signature) not in facts.records:
                yield f"call {one.intent}.{one.number} got a signature that the audit log does not have"


def commanded(facts: LivesFacts) -> Iterator[str]:
    """A command that has acted is in the log, or waits to be."""
    for name in () if facts.lost("segment") else facts.commands:
        if name not in facts.spooled:
            yield f"command {name} is not recorded"


def noticed(facts: LivesFacts) -> Iterator[str]:
    """A start on a state store that is older than its audit log is refused."""
    for life, error in facts.behind:
        if not isinstance(error, StoreBehind):
            yield f"the store of before life {life} was taken for the newest: {error!r}"


def reconciled(facts: LivesFacts) -> Iterator[str]:
    """A store that was restored lacks nothing that its log has, and contradicts it in nothing."""
    for one in facts.conflicts:
        yield f"store and log have two payloads: {one}"


def sound(facts: LivesFacts) -> Iterator[str]:
    """After each end the log is what its checkpoints say. That lines are lost which a checkpoint covers is found."""
    for life, what in () if facts.lost("segment") else facts.unsound:
        yield f"after life {life}: {what}"


def starts(facts: LivesFacts) -> Iterator[str]:
    """Each life starts; one after a loss may be refused, by an error that says so."""
    for life, error in facts.refused:
        if facts.lost("segment", "store", "wal") and isinstance(error, (StoreError, AuditUnavailable)):
            continue
        yield f"life {life} did not start: {error!r}"


DISK_RULES: Final[tuple[Rule, ...]] = (
    answered_or_cut_short,
    told,
    genuine,
    honest,
    one_key_over_lives,
    punctual,
    nothing_left,
    recorded,
    commanded,
    noticed,
    reconciled,
    sound,
    starts,
)
