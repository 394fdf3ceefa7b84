"""The law: what holds in every world, whatever fails, and in whatever order.

Each rule is a function of what happened (`Facts`) that yields what breaks it. Words: a *call* is one call of the key
manager; it *begins* and *ends*, with a signature, an error, or the caller's leaving. A *device* signs; the ledger knows
each signature that exists, also those that no caller got.

Rules of worlds of one kind: law_levels.py, law_fleet.py, law_disk.py, law_gateway.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final

from tests.simulation.clock import SECOND
from tests.simulation.device import Fault, Ledger, Signed
from tests.simulation.script import Script, position_of

from hsmcore._native import verify
from hsmcore.base.receipt import Receipt
from hsmcore.errors import HsmError
from hsmcore.failover.bindings import BINDING_NS
from hsmcore.failover.errors import AllLevelsLate

GRACE_NS: Final = SECOND // 4
"""A call may end so long after its deadline: the deadline timer, and the turns before its caller's."""
SHUT_NS: Final = SECOND // 100
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
    cut: bool = False
    """Whether the process was killed before its end."""


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
    positions: dict[int, bytes] = field(default_factory=dict)
    """The first payload that a device has signed at each position."""
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

    def surely_for(self, answer: Answer) -> list[Signed]:
        """As `signed_for`, but none that may come of an earlier call."""
        return self.signed_for(answer)

    def handed_out(self, mark: Signed, later: Answer) -> bool:
        """Whether a signature was on its way to its caller, which has asked again in a `later` call."""
        del mark, later
        return False

    def tried_with(self, intent: int) -> set[bytes]:
        """The keys with which a device was asked to sign a message of an intent: a batch that its caller leaves is
        bound as a whole."""
        return set[bytes]().union(*(self.touched.get(one.message, ()) for one in self.calls[intent]))

    def stood_still(self, begin: int, end: int) -> int:
        """Nanoseconds within a time."""
        return sum(max(0, min(end, to) - max(begin, at)) for at, to in self.stalls)


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
        signed = facts.ledger.of(one.message)
        if any(it.signature == signature and (receipt is None or it.public_key == receipt.public_key) for it in signed):
            continue  # which it really is: Ed25519 makes the same bytes each time
        made = {it.public_key for it in signed}
        keys = made if receipt is None else {receipt.public_key}
        if not any(verify("ed25519", key, one.message, signature) for key in keys):
            yield f"call {one.intent}.{one.number} got a signature that is not one of its message"
        elif not keys & made:
            yield f"call {one.intent}.{one.number} has a receipt of a key that has not signed its message"


def honest(facts: Facts) -> Iterator[str]:
    """If a device began to make a signature because of a call, and it ends with an error, that says `maybe_signed`."""
    for one in facts.answers:
        if isinstance(one.result, HsmError) and not one.shared and not one.result.maybe_signed:
            for signed in facts.surely_for(one):
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
        unanswered: dict[bytes, tuple[Signed, int]] = {}
        for one in calls:
            signed = facts.signed_for(one)
            for mark in signed:
                for key, (first, number) in unanswered.items():
                    two = key != mark.public_key and mark.begun_ns < first.at_ns + BINDING_NS
                    if two and not (number < one.number and facts.handed_out(first, one)):
                        yield f"call {one.intent}.{one.number}: signed under two keys, and the caller had no answer"
                unanswered.setdefault(mark.public_key, (mark, one.number))
            if isinstance(one.result, (bytes, Receipt)):
                unanswered = {}


def one_digest_at_once(facts: Facts, signed: Signed) -> Iterator[str]:
    """No position has two payloads that any device has signed. (Judged as it is signed.)"""
    position = position_of(signed.message)
    if position is not None and facts.positions.setdefault(position, signed.message) != signed.message:
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


Rule = Callable[[Any], Iterator[str]]
SignedRule = Callable[[Any, Signed], Iterator[str]]
"""A rule of a signature, judged as it is made."""
RULES: Final[tuple[Rule, ...]] = (
    answered_once,
    told,
    genuine,
    honest,
    one_key,
    punctual,
    served,
    closed,
    nothing_left,
)


def broken(facts: Facts, rules: tuple[Rule, ...] = RULES) -> list[str]:
    """Return what breaks the law, each with the rule's name."""
    return [f"{rule.__name__}: {what}" for rule in rules for what in rule(facts)]


AT_ANSWER: Final[tuple[Rule, ...]] = (answered_once, told, genuine, honest, punctual)
"""Rules that are judged at each answer, too: the story ends where the law broke."""


def broken_by(facts: Facts, answers: list[Answer]) -> list[str]:
    """Return what these answers break, which have just come."""
    return broken(replace(facts, answers=answers), AT_ANSWER)
