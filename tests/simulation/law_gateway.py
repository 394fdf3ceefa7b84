"""The law of a gateway and its clients."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from tests.simulation.clock import SECOND
from tests.simulation.device import Key, Signed
from tests.simulation.gateway_script import FLOOD_UID, STRANGER_UID, GatewayScript, NetFault, Order
from tests.simulation.law import (
    ENOUGH_NS,
    Answer,
    Facts,
    Rule,
    answered_once,
    genuine,
    honest,
    nothing_left,
    one_key,
    punctual,
    told,
)
from tests.simulation.network import Seen

from hsmcore.errors import EngineClosed, HsmError

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
