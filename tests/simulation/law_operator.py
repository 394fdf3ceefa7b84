"""The law of what operators do: beside that of a week, in law_levels.py."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from tests.simulation.clock import SECOND
from tests.simulation.device import Signed
from tests.simulation.law import Rule, SignedRule, one_digest_at_once
from tests.simulation.law_levels import WEEK_RULES, WeekFacts, heals, obeyed, within_budget
from tests.simulation.script import position_of

FOLLOWS_NS: Final = SECOND
"""An order is looked for each half a second here, and a health monitor's round may be long."""


@dataclass(slots=True)
class Ran:
    """One command."""

    path: str
    words: tuple[str, ...]
    begun_ns: int
    ended_ns: int = 0
    """0: it was killed, or has not ended: what it has done is not known."""
    code: int = -1
    result: Any = None
    what: Any = None
    """What it was to do, in the world's words."""

    @property
    def may_have_acted(self) -> bool:
        return not self.ended_ns or self.code == 0


@dataclass(slots=True)
class OperatorFacts(WeekFacts):
    """What happened in a week with operators."""

    ran: list[Ran] = field(default_factory=list)
    rotations: list[tuple[int, str, bytes]] = field(default_factory=list)
    """At the end: each rotation whose new key has ever signed: its number, its cause, that key."""
    unrecorded: list[str] = field(default_factory=list)
    """Commands that say that they have ended, and that neither the log nor its spool has."""
    unsignable: list[str] = field(default_factory=list)
    """Why a store that was adopted does not sign."""
    forged: list[tuple[int, str]] = field(default_factory=list)
    """When rows of the store were changed by hand, and of which scope."""

    def of(self, *paths: str) -> list[Ran]:
        return [one for one in self.ran if one.path in paths]

    def is_of_caller(self, signed: Signed) -> bool:
        return signed.message.startswith(b"week ") or position_of(signed.message) is not None


def approved(facts: OperatorFacts) -> Iterator[str]:
    """A rotation replaces the key once as many approvers as are asked for have signed its statement, never before."""
    needed = min(one["approvals"] for one in facts.rules)
    for number, cause, _ in facts.rotations:
        given = {one.what[1] for one in facts.of("rotate approve") if one.what[0] == number and one.may_have_acted}
        if cause in ("schedule", "manual") and len(given) < needed:
            yield f"rotation {number} has {len(given)} of {needed} approvals, and its key has signed"


def executed_once(facts: OperatorFacts) -> Iterator[str]:
    """One rotation replaces the key once, with a key that no other one has made."""
    keys = [key for _, cause, key in facts.rotations if cause in ("schedule", "manual")]
    if len({*keys}) < len(keys):
        yield f"two of {len(keys)} rotations have made the same key"


def forged_approves_nothing(facts: OperatorFacts) -> Iterator[str]:
    """A signature by another key, or of another statement, is refused."""
    for one in facts.of("rotate approve"):
        if one.what[2] and one.code == 0:
            yield f"an approval that {one.what[2]} was taken"


def aborted(facts: OperatorFacts) -> Iterator[str]:
    """A rotation that was aborted in time never replaces the key. An order that a writer of the file has removed, in a
    store that an operator has adopted after that, is none."""
    removed = max((at for at, scope in facts.forged if scope == "orders"), default=0)
    stopped = {one.result["rotation"] for one in facts.of("rotate abort") if one.code == 0 and one.ended_ns > removed}
    for number, _, _ in facts.rotations:
        if number in stopped:
            yield f"rotation {number} was aborted, and its key has signed"


def floored(facts: OperatorFacts, signed: Signed) -> Iterator[str]:
    """Nothing at or below a floor is signed for a call that begins after the command has returned."""
    position = position_of(signed.message)
    for one in facts.of("policy floor set") if position is not None else ():
        if one.code == 0 and position <= one.what and one.ended_ns < signed.begun_ns:
            before = [a for a in facts.answers if a.message == signed.message and a.begun_ns < one.ended_ns]
            if not any(a.begun_ns + a.limit_ns >= signed.begun_ns for a in before):
                yield f"{signed.member} has signed position {position}, and the floor was {one.what}"


def forbidden(facts: OperatorFacts, signed: Signed) -> Iterator[str]:
    """The emergency level signs nothing soon after `emergency disable`, until it is enabled again."""
    if not facts.is_of_caller(signed) or signed.member in {one.name for one in facts.script.members}:
        return
    orders = [one for one in facts.of("emergency disable", "emergency enable") if one.may_have_acted]
    sure = [one for one in orders if one.ended_ns and one.path == "emergency disable"]
    last = max((one.ended_ns for one in sure), default=None)
    if last is None or any(one.path == "emergency enable" and (one.ended_ns or 2**63) > last for one in orders):
        return
    late = signed.begun_ns - last - facts.stood_still(last, signed.begun_ns) - FOLLOWS_NS
    if late > 0:
        yield f"an emergency key has signed {(signed.begun_ns - last) / SECOND:.1f} s after it was forbidden"


def within_budgets(facts: OperatorFacts, signed: Signed) -> Iterator[str]:
    """As `within_budget`; each reset, and each adoption of another budget, begins one more."""
    more = 1 + sum(one.may_have_acted for one in facts.of("emergency reset", "state begin", "state restore"))
    more += sum(one.may_have_acted and bool(one.what) for one in facts.of("state seal"))
    if more == 1:
        yield from within_budget(facts, signed)
        return
    if facts.is_of_caller(signed) and signed.member not in {one.name for one in facts.script.members}:
        facts.emergencies.append(signed)
        most = more * max(limit for _, limit in facts.limits)
        if len(facts.emergencies) > most:
            yield f"{len(facts.emergencies)} signatures under emergency keys, of {most} in {more} budgets"


def recorded(facts: OperatorFacts) -> Iterator[str]:
    """A command that has changed something is in the audit log, or waits in its spool."""
    for one in facts.unrecorded:
        yield f"{one} is not recorded"


def adopted(facts: OperatorFacts) -> Iterator[str]:
    """A store that was adopted is believed again."""
    yield from facts.unsignable


def heals_after(facts: OperatorFacts) -> Iterator[str]:
    """As `heals`, but where an adoption of the configured key was cut short: then the chain may obey another one."""
    if all(one.ended_ns for one in facts.of("rotate adopt")):
        yield from heals(facts)


AT_ONCE: Final[tuple[SignedRule, ...]] = (one_digest_at_once, obeyed, floored, forbidden, within_budgets)
OPERATOR_RULES: Final[tuple[Rule, ...]] = (
    *(heals_after if rule is heals else rule for rule in WEEK_RULES),
    approved,
    forged_approves_nothing,
    executed_once,
    aborted,
    recorded,
    adopted,
)
