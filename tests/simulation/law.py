"""The law: what holds in every world, whatever fails, and in whatever order.

Each rule is a function of what happened (`Facts`) that yields what breaks it. Words: a *call* is one call of the key
manager; it *begins* and *ends*, with a signature, an error, or the caller's leaving. A *device* signs; the ledger knows
each signature that exists, also those that no caller got.
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


AT_ANSWER: Final[tuple[Callable[[Facts], Iterator[str]], ...]] = (told, genuine, honest, punctual)
"""Rules that are judged at each answer, too: the story ends where the law broke."""


def broken_by(facts: Facts, answers: list[Answer]) -> list[str]:
    """Return what these answers break, which have just come."""
    part = replace(facts, answers=answers)
    return [f"{rule.__name__}: {what}" for rule in AT_ANSWER for what in rule(part)]


# ---- a week ----------------------------------------------------------------------------------------------------------


DAY: Final = 86_400 * SECOND
HOUR: Final = 3_600 * SECOND
ROUTED_NS: Final = 5 * SECOND
"""What was routed to a key before it was replaced is answered with it so long after."""
SOON_NS: Final = SECOND
"""A binding that is so old is in the store."""


@dataclass(slots=True)
class WeekFacts(Facts):
    """What happened to a host with rotation, restarts and clocks. Its script is a Week."""

    published: list[tuple[int, bytes]] = field(default_factory=list)
    """The keys that the chain has obeyed, and from when on."""
    current: dict[bytes, int] = field(default_factory=dict)
    """The keys with which a host has signed as with its current one, and from when on."""
    kills: list[int] = field(default_factory=list)
    """When a process was killed,"""
    boots: list[tuple[int, int]] = field(default_factory=list)
    """when the machine was booted, and how long no process had run then,"""
    steps: list[tuple[int, int]] = field(default_factory=list)
    """and when the wall clock was set, and by how much."""
    limits: list[tuple[int, int]] = field(default_factory=list)
    """The emergency budgets that processes have started with."""
    emergencies: list[Signed] = field(default_factory=list)
    """Signatures of callers' messages under emergency keys."""
    rules: list[dict[str, Any]] = field(default_factory=list)
    """The settings of rotation that processes have started with."""
    left_out: list[str] = field(default_factory=list)
    """Members that edited configurations have left out; "": none."""
    open: list[str] = field(default_factory=list)
    """Rotations that had not ended long after the last fault."""
    due_ns: int | None = None
    """How long a rotation was overdue then."""

    @property
    def obeyed(self) -> bytes:
        """The key that the chain obeys now."""
        return self.published[-1][1]

    def replaced_ns(self, key: bytes) -> int | None:
        """When the chain began to obey another key in the place of this one."""
        last = max((at for at, (_, one) in enumerate(self.published) if one == key), default=len(self.published))
        return self.published[last + 1][0] if last + 1 < len(self.published) else None

    def trusts_wrong_clock(self, now: int) -> bool:
        """Whether the wall clock was wrong for a day: then its time is believed; or at a boot: then, up to a day."""
        off, since = 0, 0
        for at, by in [*self.steps, (now, 0)]:
            if off and (at - since >= DAY - HOUR or any(since <= boot <= at for boot, _ in self.boots)):
                return True
            off, since = off + by, at
        return False

    def is_of_caller(self, signed: Signed) -> bool:
        return signed.message.startswith(b"week ")


def obeyed(facts: WeekFacts, signed: Signed) -> Iterator[str]:
    """A caller's message is signed with the key that the chain obeys, or with one that it has obeyed before: then the
    host has replaced it while the call was under way, or the message was bound. Keys of other levels aside."""
    names = {one.name for one in facts.script.members}
    other = facts.keys.get("second")
    if not facts.is_of_caller(signed) or signed.member not in names or signed.public_key == other:
        return
    if not any(key == signed.public_key for _, key in facts.published):
        yield f"{signed.member} has signed under a key that the chain has never obeyed"
    since = facts.current.get(signed.public_key, signed.begun_ns)
    newer = [at for key, at in facts.current.items() if key != signed.public_key and at > since]
    if newer and signed.begun_ns > min(newer) + ROUTED_NS + BINDING_NS:
        ago = (signed.begun_ns - min(newer)) / SECOND
        yield f"{signed.member} has signed under a key that was replaced {ago:.0f} s before"


def within_budget(facts: WeekFacts, signed: Signed) -> Iterator[str]:
    """The emergency budget is never exceeded, in signatures or in time, whatever is restarted, booted or set."""
    if not facts.is_of_caller(signed) or signed.member in {one.name for one in facts.script.members}:
        return
    facts.emergencies.append(signed)
    used, first = len(facts.emergencies), facts.emergencies[0].begun_ns
    most = min(facts.limits[-1][1], max(limit for at, limit in facts.limits if at <= first))
    if used > most:
        yield f"{used} signatures under emergency keys, of {most}"
    lasts = facts.script.failover["emergencyModeRestrictions"]["maxTimeSeconds"] * SECOND
    lost = sum(down + HOUR for at, down in facts.boots if at > first)  # the clock may go on from its last mark
    late = signed.begun_ns - first - lasts - lost
    if late > SECOND and not facts.trusts_wrong_clock(signed.begun_ns):
        yield f"a signature under an emergency key {late / SECOND:.0f} s after its time"


AT_ONCE: Final[tuple[Callable[[WeekFacts, Signed], Iterator[str]], ...]] = (obeyed, within_budget)
"""Rules of a signature, judged as it is made."""


def destroyed_in_time(facts: WeekFacts, key: bytes, now: int) -> Iterator[str]:
    """A key that has signed is destroyed only if that is configured, and not before its overlap and the days after it
    are over. (Judged as a device destroys it.)"""
    if key not in facts.current:
        return
    if key == facts.obeyed:
        yield "the key that the chain obeys was destroyed"
    days = min(one.get("destroyAfterDays", 10**6) + one["overlapDays"] for one in facts.rules)
    since = min((at for other, at in facts.current.items() if other != key and at > facts.current[key]), default=now)
    early = since + days * DAY - now
    if early > HOUR + SECOND and not facts.trusts_wrong_clock(now):
        yield f"a key was destroyed {early / HOUR:.1f} h too early"


def one_key_for_a_week(facts: WeekFacts) -> Iterator[str]:
    """As `one_key`. A kill takes along what was not bound for SOON_NS, without an audit log that knows it; a process
    whose members have one key keeps no bindings, and the next one may have rotated it."""
    kept: list[Answer] = []
    lasting = facts.script.failover["emergencyModeEnabled"] or (len(facts.keys) > 1 and "s0" not in facts.left_out)
    for one in facts.answers:
        ended = one.ended_ns
        if one.cut or any(ended <= at < ended + SOON_NS for at in facts.kills):
            continue
        kept.append(one)
    if lasting:
        yield from one_key(replace(facts, answers=kept))


def taken_up(facts: WeekFacts) -> Iterator[str]:
    """Each rotation ends, or is taken up again after a restart: some time after the last fault none is under way, and
    none is overdue."""
    for one in facts.open:
        yield f"a rotation has not ended: {one}"
    if facts.due_ns is not None and facts.due_ns > 0:
        yield f"a rotation is overdue by {facts.due_ns / HOUR:.1f} h"


def heals(facts: WeekFacts) -> Iterator[str]:
    """Some time after the last fault, each call is answered with a signature of the primary level. A member without the
    key is out of service until an operator says otherwise."""
    if any(fault.kind == "keyless" for fault in facts.faults):
        return
    for one in facts.calls.get(LAST_CALL, []):
        if not isinstance(one.result, Receipt):
            yield f"after the last fault, a call ends with {one.result!r}"
        elif one.result.level != "primary":
            yield f"long after the last fault, the level {one.result.level} signs"
        elif one.result.public_key != facts.obeyed:
            yield "in the end another key signs than the chain obeys"


LAST_CALL: Final = -1
"""The intent of calls that are made at the end."""
WEEK_RULES: Final[tuple[Callable[[Any], Iterator[str]], ...]] = (
    answered_once,
    told,
    genuine,
    honest,
    one_key_for_a_week,
    punctual,
    taken_up,
    heals,
    nothing_left,
)


def broken_week(facts: WeekFacts) -> list[str]:
    """As `broken`, of a week."""
    return [f"{rule.__name__}: {what}" for rule in WEEK_RULES for what in rule(facts)]
