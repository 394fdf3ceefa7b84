"""The law: what holds in every world, whatever fails, and in whatever order.

Each rule is a function of what happened (`Facts`) that yields what breaks it. Words: a *call* is one call of the key
manager; it *begins* and *ends*, with a signature, an error, or the caller's leaving. A *device* signs; the ledger knows
each signature that exists, also those that no caller got.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from tests.simulation.clock import SECOND
from tests.simulation.device import Fault, Key, Ledger, Signed
from tests.simulation.gateway_script import FLOOD_UID, STRANGER_UID, GatewayScript, NetFault, Order
from tests.simulation.network import Seen
from tests.simulation.script import Script, position_of

from hsmcore._native import verify
from hsmcore.base.receipt import Receipt
from hsmcore.errors import EngineClosed, HsmError
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


Rule = Callable[[Any], Iterator[str]]
RULES: Final[tuple[Rule, ...]] = (
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


HELLO, SIGN, SIGN_MANY, ERROR, GOAWAY = 1, 2, 3, 134, 137
REQUESTS: Final = (SIGN, SIGN_MANY, 4)
SIGNATURES: Final = (130, 131)
ANSWERS: Final = (*SIGNATURES, 132, ERROR)
"""Types of frames: docs/WIRE.md."""
MAYBE_SIGNED: Final = 2
"""Bit of an ERROR's first byte."""
LONGEST_NS: Final = 5 * SECOND
"""maxTimeoutMs of the simulated gateways."""
PATIENT_NS: Final = 5 * SECOND
BACK_NS: Final = 5 * SECOND // 2
"""So long after trouble, a client is connected again: the longest of its pauses, and what the call needs."""
TOLD_NS: Final = 3 * SECOND // 2
"""A request that waits for room is looked at each second."""
SHARE_NS: Final = SECOND * 3 // 20
WITHDRAWN_NS: Final = SECOND // 50
FOLLOWS_NS: Final = SECOND * 3 // 2
"""An order is looked for each second."""
DRAIN_NS: Final = 17 * SECOND // 4
"""drainMs, and what clients have to read their last answers."""


@dataclass(slots=True)
class GatewayFacts(Facts):
    """What happened in the world of a gateway. A *request* is what a client sends for a call, perhaps on several
    connections; a *network fault* meets all connections of a user."""

    script: GatewayScript
    net: list[NetFault] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    """The connections, as the gateway saw them."""
    stops: list[int] = field(default_factory=list)
    """When a gateway began to drain,"""
    drained_ns: list[int] = field(default_factory=list)
    """when that was over,"""
    drained: list[bool] = field(default_factory=list)
    """whether it had answered everything, as it says,"""
    starts: list[int] = field(default_factory=list)
    """and when it had ended."""
    reloads: list[int] = field(default_factory=list)
    """When the clients were read again."""
    orders: list[tuple[int, Order]] = field(default_factory=list)
    """What the operator has asked for, and when."""

    def well_until(self, end: int) -> bool:
        """Whether no member has failed and the process has not stood still by then."""
        return not any(fault.at_ns < end for fault in self.faults) and not any(at < end for at, _ in self.stalls)

    def uid_of(self, answer: Answer) -> int:
        """Who has made a call."""
        return self.script.processes[answer.intent % len(self.script.processes)].uid

    def answers_on_the_wire(self, below: int = 2**32) -> Iterator[tuple[int, bytes, int, int, bytes]]:
        """Time, nonce, type, number and body of all answers to requests of users below a number, in their order."""
        found = list[tuple[int, bytes, int, int, bytes]]()
        for seen in self.seen:
            nonce = next((body[2:18] for _, kind, _, body in seen.taken if kind == HELLO), b"")
            if seen.uid < below:
                found += [(at, nonce, kind, no, body) for at, kind, no, body in seen.given if kind in ANSWERS and no]
        return iter(sorted(found, key=lambda one: one[0]))

    def surely_for(self, answer: Answer) -> list[Signed]:
        """What a call has sent may be on its way after its end."""
        before = [x for x in self.calls[answer.intent] if x.number < answer.number and x.message == answer.message]
        open_ones = any(one.result is None or getattr(one.result, "maybe_signed", False) for one in before)
        return [] if open_ones else self.signed_for(answer)

    def handed_out(self, mark: Signed, later: Answer) -> bool:
        """The gateway has sent it, or keeps it for a client whose connection broke. That a message is not signed under
        two keys is promised of one call: an answer may be lost."""
        uid, begun = self.uid_of(later), self.calls[later.intent][0].begun_ns
        if any(seen.uid == uid and begun <= seen.ended_ns <= later.begun_ns for seen in self.seen):
            return True
        name = next(name for name, key in self.keys.items() if key == mark.public_key)
        signature = Key.of(name).pair.sign(mark.message)
        return any(signature in body for seen in self.seen for _, _, _, body in seen.given)


def asked_for(facts: GatewayFacts) -> Iterator[str]:
    """The gateway answers on a connection what was asked there, and once."""
    for seen in facts.seen:
        asked = Counter(number for _, kind, number, _ in seen.taken if kind in REQUESTS)
        for _, kind, number, _ in seen.given:
            if kind in ANSWERS and number:
                asked[number] -= 1
                if asked[number] < 0:
                    yield f"connection {seen.number} of {seen.uid} has an answer to {number} that it did not ask for"


def same_answer(facts: GatewayFacts) -> Iterator[str]:
    """A request that is repeated at the same gateway has the answer that it had, or is told that it may be signed."""
    had: dict[tuple[int, bytes, int], bytes] = {}
    for at, nonce, kind, number, body in facts.answers_on_the_wire():
        one = sum(end <= at for end in facts.starts), nonce, number
        if kind in SIGNATURES:
            if had.setdefault(one, body) != body:
                yield f"request {number} of {nonce.hex()[:8]} has two answers"
        elif one in had and not body[0] & MAYBE_SIGNED:
            yield f"request {number} of {nonce.hex()[:8]} was signed, and is told that nothing is"


def answered_on_the_wire(facts: GatewayFacts) -> Iterator[str]:
    """A connection that lives has an answer to each request, soon after its deadline at the latest; in a drain that has
    answered everything, as it says, before its end."""
    for seen in facts.seen:
        if any(fault.uid == seen.uid and fault.kind in ("silent", "slow") for fault in facts.net):
            continue  # one that does not read is not read, either
        given: dict[int, int] = {}
        for at, _, number, _ in seen.given:
            given.setdefault(number, at)
        for at, kind, number, body in seen.taken:
            if kind not in (SIGN, SIGN_MANY):
                continue
            limit = min(int.from_bytes(body[1:5], "little") * 10**6, LONGEST_NS)
            due = at + limit + TOLD_NS + facts.stood_still(at, 2**62)
            for begun, end, all_of_it in zip(facts.stops, facts.drained_ns, facts.drained, strict=True):
                if at < begun:
                    due = min(due, end if all_of_it else 2**62)
                    break
            if (not seen.ended_ns or seen.ended_ns > due) and given.get(number, 2**62) > due:
                yield f"request {number} of connection {seen.number} of {seen.uid} has no answer in time"


def costs_nothing(facts: GatewayFacts) -> Iterator[str]:
    """A connection that breaks, a gateway that is restarted and a neighbour cost no call that has time enough, while
    the members are well."""
    for one in facts.answers:
        late = isinstance(one.result, HsmError) and not isinstance(one.result, EngineClosed)
        if not late or one.limit_ns < PATIENT_NS or not facts.well_until(one.ended_ns):
            continue
        begun, uid = one.begun_ns, facts.uid_of(one)
        trouble = [
            (fault.at_ns, fault.at_ns + fault.lasts_ns)
            for fault in facts.net
            if fault.uid == uid or fault.kind == "slow"
        ]
        trouble += [(stop, end + SECOND) for stop, end in zip(facts.stops, facts.starts, strict=True)]
        over = [end for at, end in (*trouble, *((at, at) for at in facts.reloads)) if at < one.ended_ns]
        if all(end < begun or end + BACK_NS < begun + one.limit_ns for end in over):
            error = one.result
            yield f"call {one.intent}.{one.number} ended with {type(error).__name__}: {str(error)[:100]}"


def within_share(facts: GatewayFacts) -> Iterator[str]:
    """Of what others ask for, no client is refused; and while nothing fails, a client that asks for one signature and
    for nothing else has it soon."""
    for at, _, kind, number, body in facts.answers_on_the_wire(FLOOD_UID):
        if kind == ERROR and b"QUEUE_FULL" in body:
            yield f"request {number} was refused for want of room at {at}"
    if facts.net or facts.script.restarts or facts.faults or facts.stalls or facts.reloads or facts.orders:
        return
    noisy = {one.uid for one in facts.script.neighbours}
    for one in facts.answers:
        took, uid = one.ended_ns - one.begun_ns, facts.uid_of(one)
        if one.result is None or took <= SHARE_NS or uid in noisy:
            continue
        own = (x for x in facts.answers if x is not one and facts.uid_of(x) == uid)
        if not any(x.begun_ns < one.ended_ns and x.ended_ns > one.begun_ns for x in own):
            yield f"call {one.intent}.{one.number} took {took / SECOND:.3f} s beside its neighbours"


def withdrawn(facts: GatewayFacts) -> Iterator[str]:
    """What its caller has left is not begun any more, while nothing fails."""
    if facts.net or facts.script.restarts:
        return
    for one in facts.answers:
        if one.result is None and not one.shared and facts.well_until(one.ended_ns + SECOND):
            late = [mark for mark in facts.signed_for(one) if mark.begun_ns > one.ended_ns + WITHDRAWN_NS]
            if late:
                after = (late[0].begun_ns - one.ended_ns) / SECOND
                yield f"call {one.intent}.{one.number} was left, and {late[0].member} began {after:.3f} s later"


def signs_once(facts: GatewayFacts) -> Iterator[str]:
    """While the members are well and the gateway is not restarted, a call costs one signature at most, how often it
    may be sent."""
    if facts.script.restarts or facts.faults or facts.stalls or facts.orders:
        return
    asked = Counter(one.message for one in facts.answers)
    hurried = {one.message for one in facts.answers if one.limit_ns < ENOUGH_NS}  # another member may be asked
    for message, marks in facts.ledger.signed.items():
        if message in asked and message not in hurried and len(marks) > asked[message]:
            yield f"{message!r} was asked for {asked[message]} times, and signed {len(marks)} times"


def strangers(facts: GatewayFacts) -> Iterator[str]:
    """Without a client's name and HELLO a connection gets nothing but a refusal, and word of the end."""
    for seen in facts.seen:
        hello = min((at for at, kind, _, _ in seen.taken if kind == HELLO), default=2**63)
        for at, kind, number, _ in seen.given:
            known = seen.uid != STRANGER_UID and (at >= hello or kind == GOAWAY)
            if (kind != ERROR or number) and not known:
                yield f"connection {seen.number} of {seen.uid} was given a frame of type {kind}"


def obeyed(facts: GatewayFacts) -> Iterator[str]:
    """A member that is to be drained signs for no caller any more, soon after the order and until it is withdrawn, also
    over restarts."""
    wanted = {one.message for one in facts.answers}
    for at, order in facts.orders:
        if order.kind != "drain" or order.value is None:
            continue
        later = (x for x, one in facts.orders if one.kind == "drain" and one.member == order.member and x > at)
        end = min(later, default=2**63)
        for marks in facts.ledger.signed.values():
            for mark in marks:
                late = mark.begun_ns - at - facts.stood_still(at, mark.begun_ns) - FOLLOWS_NS
                if mark.member == order.member and mark.message in wanted and late > 0 and mark.begun_ns < end:
                    yield f"{mark.member} has signed {late / SECOND:.3f} s after it was to be drained"


def drains(facts: GatewayFacts) -> Iterator[str]:
    """A drain ends in its time."""
    for begun, end in zip(facts.stops, facts.drained_ns, strict=True):
        if end - begun - facts.stood_still(begun, end) > DRAIN_NS:
            yield f"a drain took {(end - begun) / SECOND:.3f} s"


GATEWAY_RULES: Final[tuple[Rule, ...]] = (
    answered_once,
    told,
    genuine,
    honest,
    one_key,
    punctual,
    nothing_left,
    asked_for,
    same_answer,
    answered_on_the_wire,
    costs_nothing,
    within_share,
    withdrawn,
    signs_once,
    strangers,
    obeyed,
    drains,
)


def broken(facts: Facts, rules: tuple[Rule, ...] = RULES) -> list[str]:
    """Return what breaks the law, each with the rule's name."""
    return [f"{rule.__name__}: {what}" for rule in rules for what in rule(facts)]


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
