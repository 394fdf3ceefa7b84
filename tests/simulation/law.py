"""The law: what holds in every world, whatever fails, and in whatever order.

Each rule is a function of what happened (`Facts`) that yields what breaks it. Words: a *call* is one call of the key
manager; it *begins* and *ends*, with a signature, an error, or the caller's leaving. A *device* signs; the ledger knows
each signature that exists, also those that no caller got.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from tests.simulation.clock import SECOND
from tests.simulation.device import Fault, Ledger, Signed
from tests.simulation.script import Script, position_of

from hsmcore._native import verify
from hsmcore.base.receipt import Receipt
from hsmcore.errors import HsmError
from hsmcore.failover.bindings import BINDING_NS
from hsmcore.failover.errors import AllLevelsLate
from hsmcore.state.errors import StoreBehind

GRACE_NS: Final = SECOND // 4
"""A call may end so long after its deadline: the deadline timer, and the turns before its caller's."""
SHUT_NS: Final = SECOND // 100
SAVED_NS: Final = SECOND // 20
"""A binding is in the state store, and a record on the disk, so long after the wait, or the signature, ended."""
ENOUGH_NS: Final = SECOND // 2
"""A call with so much time reaches every member, one after the other."""


@dataclass(slots=True)
class Answer:
    """One message of one call."""

    intent: int
    number: int
    """Of the call, among those of its intent."""
    message: bytes
    begun_ns: int
    limit_ns: int
    any_key: bool
    shared: bool
    ended_ns: int = 0
    result: bytes | Receipt | Exception | None = None
    """None: the caller left."""
    ends: int = 0


@dataclass(slots=True)
class Facts:
    """What happened in a world."""

    script: Script
    ledger: Ledger
    keys: dict[str, bytes]
    """Public keys of the devices, by the name of the key."""
    answers: list[Answer] = field(default_factory=list)
    calls: dict[int, list[Answer]] = field(default_factory=dict)
    """As `answers`, by intent."""
    faults: list[Fault] = field(default_factory=list)
    """Those of the script, by the world's clock."""
    stalls: list[tuple[int, int]] = field(default_factory=list)
    """When the whole process stood still: from, to."""
    closed_ns: int = 2**63
    """When the host began to close,"""
    shut_ns: int = 2**63
    """and when it was closed."""
    touched: dict[bytes, set[bytes]] = field(default_factory=dict)
    """The keys with which a device was ever asked to sign a message."""
    left: dict[str, int] = field(default_factory=dict)
    """What was not given back at the end, by what it is."""

    def signed_for(self, answer: Answer) -> list[Signed]:
        """The signatures that devices began to make because of a call: from its begin to that of the next call for the
        same message, by the same caller."""
        found = self.ledger.of(answer.message)
        if not found:
            return []
        later = (one.begun_ns for one in self.calls[answer.intent] if one.number > answer.number)
        end = min(later, default=2**63)
        return [one for one in found if answer.begun_ns <= one.begun_ns < end]

    def tried_with(self, intent: int) -> set[bytes]:
        """The keys with which a device was asked to sign a message of an intent: a batch that its caller leaves is
        bound as a whole."""
        return set[bytes]().union(*(self.touched.get(one.message, ()) for one in self.calls[intent]))

    def stood_still(self, begin: int, end: int) -> int:
        """Nanoseconds within a time."""
        return sum(max(0, min(end, to) - max(begin, at)) for at, to in self.stalls)


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
    full: list[tuple[int, int]] = field(default_factory=list)
    """When the disk was full: from, to."""
    slow: list[tuple[int, int]] = field(default_factory=list)
    """When records may have waited for a slow disk."""

    def has(self, intent: int) -> bool:
        """Whether a caller has got what it wants."""
        return any(isinstance(one.result, (bytes, Receipt)) for one in self.calls.get(intent, ()))

    def end_of(self, moment: int) -> Ended:
        """The end of the life in which something happened."""
        return next(one for one in self.ends if one.at_ns >= moment)


def answered_once(facts: Facts) -> Iterator[str]:
    """Each call ends, and ends once."""
    for one in facts.answers:
        if one.ends != 1:
            yield f"call {one.intent}.{one.number} ended {one.ends} times"


def told(facts: Facts) -> Iterator[str]:
    """Each error is an HsmError."""
    for one in facts.answers:
        if isinstance(one.result, Exception) and not isinstance(one.result, HsmError):
            yield f"call {one.intent}.{one.number} raised {one.result!r}"


def genuine(facts: Facts) -> Iterator[str]:
    """A signature that a caller gets is one of its message, made by a device or an emergency key, under the key that
    the receipt names."""
    for one in facts.answers:
        if one.result is None or isinstance(one.result, Exception):
            continue
        receipt = one.result if isinstance(one.result, Receipt) else None
        signature = one.result if receipt is None else receipt.signature
        made = {signed.public_key for signed in facts.ledger.of(one.message)}
        keys = made if receipt is None else {receipt.public_key}
        if not any(verify("ed25519", key, one.message, signature) for key in keys):
            yield f"call {one.intent}.{one.number} got a signature that is not one of its message"
        elif not keys & made:
            yield f"call {one.intent}.{one.number} has a receipt of a key that has not signed its message"


def honest(facts: Facts) -> Iterator[str]:
    """If a device began to make a signature because of a call, and it ends with an error, that says `maybe_signed`."""
    for one in facts.answers:
        if isinstance(one.result, HsmError) and not one.shared and not one.result.maybe_signed:
            for signed in facts.signed_for(one):
                yield (
                    f"call {one.intent}.{one.number} ended with {type(one.result).__name__}, which says that "
                    f"nothing is signed, and {signed.member} has signed"
                )
                break


def one_key(facts: Facts) -> Iterator[str]:
    """While a caller has no answer, its message is signed under one key only, unless it allows others."""
    by_message: dict[tuple[int, bytes], list[Answer]] = {}
    for one in facts.answers:
        if not one.shared and not one.any_key:
            by_message.setdefault((one.intent, one.message), []).append(one)
    for calls in by_message.values():
        unanswered: dict[bytes, int] = {}
        for one in calls:
            signed = facts.signed_for(one)
            for mark in signed:
                for key, at in unanswered.items():
                    if key != mark.public_key and mark.begun_ns < at + BINDING_NS:
                        yield f"call {one.intent}.{one.number}: signed under two keys, and the caller had no answer"
                unanswered.setdefault(mark.public_key, mark.at_ns)
            if isinstance(one.result, (bytes, Receipt)):
                unanswered = {}


def one_digest(facts: Facts) -> Iterator[str]:
    """No position has two payloads that any device has signed."""
    signed: dict[int, bytes] = {}
    for message in facts.ledger.signed:
        position = position_of(message)
        if position is not None and signed.setdefault(position, message) != message:
            yield f"two payloads were signed at position {position}"


def punctual(facts: Facts) -> Iterator[str]:
    """A call ends at its deadline, with some grace; a process that stands still may be later by as long."""
    for one in facts.answers:
        due = one.begun_ns + one.limit_ns
        late = one.ended_ns - due - facts.stood_still(one.begun_ns, one.ended_ns)
        if late > GRACE_NS:
            yield f"call {one.intent}.{one.number} ended {late / SECOND:.3f} s after its deadline"


def served(facts: Facts) -> Iterator[str]:
    """No call with time enough ends with an error while a member could sign: one that has had no fault since the world
    began, whose key is the only one with which the message, or one of its batch, was ever tried, in a process that has
    not stood still. A request that waits behind calls which hang is moved to members with the same key only: another
    one's deadline may pass there."""
    script = facts.script
    current = facts.keys[script.members[0].key]
    if script.failover.get("mode") == "literal":
        return  # it retries where it failed, to the letter of the settings
    for one in facts.answers:
        if not isinstance(one.result, HsmError) or one.limit_ns < ENOUGH_NS or one.shared:
            continue
        if one.result.status == "MESSAGE_REJECTED" or one.ended_ns > facts.closed_ns:
            continue  # a device has judged the message; the host was closed
        if any(at < one.ended_ns for at, _ in facts.stalls):
            continue
        for member in script.members:
            key = facts.keys[member.key]
            well = all(fault.member != member.name or fault.at_ns > one.ended_ns for fault in facts.faults)
            late = isinstance(one.result, AllLevelsLate) and key != current
            if well and not late and facts.tried_with(one.intent) <= {key}:
                yield (
                    f"call {one.intent}.{one.number} ended with {type(one.result).__name__} while {member.name} was "
                    f"well: {one.result.args[0]}"
                )
                break


def closed(facts: Facts) -> Iterator[str]:
    """When `close` returns, each call has ended."""
    for one in facts.answers:
        if one.begun_ns < facts.closed_ns and one.ended_ns > facts.shut_ns + SHUT_NS:
            yield f"call {one.intent}.{one.number} ended {(one.ended_ns - facts.shut_ns) / SECOND:.3f} s after the end"


def nothing_left(facts: Facts) -> Iterator[str]:
    """Everything ends at zero: tasks, slots, queued requests, calls of threads, errors that no one took."""
    for what, count in facts.left.items():
        if count:
            yield f"{count} {what} left"


RULES: Final[tuple[Callable[[Facts], Iterator[str]], ...]] = (
    answered_once,
    told,
    genuine,
    honest,
    one_key,
    one_digest,
    punctual,
    served,
    closed,
    nothing_left,
)


def broken(facts: Facts) -> list[str]:
    """Return what breaks the law, each with the rule's name."""
    return [f"{rule.__name__}: {what}" for rule in RULES for what in rule(facts)]


def answered_or_cut_short(facts: LivesFacts) -> Iterator[str]:
    """Each call ends once, or its process ends before."""
    for one in facts.answers:
        if one.ends > 1 or (not one.ends and facts.end_of(one.begun_ns).how == "close"):
            yield f"call {one.intent}.{one.number} ended {one.ends} times"


def one_key_over_lives(facts: LivesFacts) -> Iterator[str]:
    """While a caller has no answer, its message is signed under one key only, also if the process ends in between. A
    process that is killed, or loses power, forgets messages whose wait had not ended some milliseconds before, and
    which the audit log, if there is one, does not have by then. A store that is full is asked again each second."""
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
    for one in facts.answers if facts.records is not None else ():
        if isinstance(one.result, (bytes, Receipt)) and facts.end_of(one.begun_ns).life in facts.audited:
            signature = one.result if isinstance(one.result, bytes) else one.result.signature
            if (hashlib.sha256(one.message).digest(), signature) not in facts.records:
                yield f"call {one.intent}.{one.number} got a signature that the audit log does not have"


def commanded(facts: LivesFacts) -> Iterator[str]:
    """A command that has acted is in the log, or waits to be."""
    for name in facts.commands:
        if name not in facts.spooled:
            yield f"command {name} is not recorded"


def noticed(facts: LivesFacts) -> Iterator[str]:
    """A start on a state store that is older than its audit log is refused."""
    for life, error in facts.behind:
        if not isinstance(error, StoreBehind):
            yield f"the store of before life {life} was taken for the newest: {error!r}"


def sound(facts: LivesFacts) -> Iterator[str]:
    """After each end the log is what its checkpoints say."""
    for life, what in facts.unsound:
        yield f"after life {life}: {what}"


def starts(facts: LivesFacts) -> Iterator[str]:
    """Each life starts."""
    for life, error in facts.refused:
        yield f"life {life} did not start: {error!r}"


OVER_LIVES: Final[tuple[Callable[[Any], Iterator[str]], ...]] = (
    answered_or_cut_short,
    told,
    genuine,
    honest,
    one_key_over_lives,
    one_digest,
    punctual,
    nothing_left,
    recorded,
    commanded,
    noticed,
    sound,
    starts,
)


def broken_over_lives(facts: LivesFacts) -> list[str]:
    """As `broken`, for several lives."""
    return [f"{rule.__name__}: {what}" for rule in OVER_LIVES for what in rule(facts)]
