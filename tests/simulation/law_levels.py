"""The law of a host with rotation, restarts and clocks, over a week."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final

from tests.simulation.clock import SECOND
from tests.simulation.device import Signed
from tests.simulation.law import (
    Answer,
    Facts,
    Rule,
    SignedRule,
    answered_once,
    genuine,
    honest,
    nothing_left,
    one_digest_at_once,
    one_key,
    punctual,
    told,
)

from hsmcore.base.receipt import Receipt
from hsmcore.failover.bindings import BINDING_NS

DAY: Final = 86_400 * SECOND
HOUR: Final = 3_600 * SECOND
ROUTED_NS: Final = 5 * SECOND
"""What was routed to a key before it was replaced is answered with it so long after."""
MOST_ASKS: Final = 8
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


AT_ONCE: Final[tuple[SignedRule, ...]] = (one_digest_at_once, obeyed, within_budget)


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


def asked_in_peace(within_a_second: list[int]) -> Iterator[str]:
    """A chain that does not answer is not asked in a loop. (Judged as it is asked: a handover asks before and after,
    and a failed one once more.)"""
    if len(within_a_second) > MOST_ASKS:
        yield f"the chain was asked {len(within_a_second)} times in a second"


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
WEEK_RULES: Final[tuple[Rule, ...]] = (
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
