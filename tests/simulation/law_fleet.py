"""The law of a fleet."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from tests.simulation.clock import SECOND
from tests.simulation.fleet_script import HOSTS
from tests.simulation.law import Answer, Facts, Rule, answered_once, broken, genuine, honest, punctual, told

from hsmcore.errors import DoubleSign, PolicyRefused


@dataclass(slots=True)
class HostAnswer(Answer):
    """One message that was asked of one host of a fleet."""

    host: str = ""
    process: str = ""
    position: int | None = None
    epoch: int = 0
    """That the host held when the call ended, or when it began."""
    state: str = ""
    """Of the host in its fleet, when the call began."""
    killed: bool = False
    """Whether its process was gone before it ended."""

    @property
    def released(self) -> bool:
        return isinstance(self.result, bytes)


@dataclass(slots=True)
class FleetFacts:
    """What happened in a fleet."""

    script: Any
    hosts: dict[str, Facts]
    """Of each host alone, by its name. Their answers are HostAnswers."""
    bound: list[Any]
    """What was bound, in the order of commits: server.Bound."""
    claimed: list[Any]
    """Which epoch was claimed by which process, in the order of commits: server.Claimed."""
    doings: list[Any] = field(default_factory=list)
    """What went wrong, by the world's clock and the host that it met: fleet_script.Doing."""
    kills: list[tuple[int, str, bool]] = field(default_factory=list)
    """When which host was killed, and whether it held the epoch."""
    forced: set[int] = field(default_factory=set)
    """The epochs that were claimed by force."""
    leased: list[tuple[int, int, str, str, int]] = field(default_factory=list)
    """Leases that went on when a later epoch was claimed: when, which one, by which host; whose lease, and for how many
    nanoseconds."""
    copied: list[tuple[int, str]] = field(default_factory=list)
    """When a copy of which process has renewed its epoch."""
    opened: list[tuple[int, str]] = field(default_factory=list)
    """When which process was open."""
    raised: list[tuple[int, int]] = field(default_factory=list)
    """From when on nothing is signed at or below which position."""
    losses: list[tuple[int, int]] = field(default_factory=list)
    """What the database confirmed in these times, it lost at their end."""
    rows: dict[tuple[str, int], str] = field(default_factory=dict)
    """What is bound at the end."""
    floors: dict[str, int] = field(default_factory=dict)
    begin_ns: int = 0
    closing_ns: int = 2**63
    left: dict[str, int] = field(default_factory=dict)

    @property
    def answers(self) -> list[HostAnswer]:
        return [one for facts in self.hosts.values() for one in facts.answers if isinstance(one, HostAnswer)]

    @property
    def releases(self) -> list[HostAnswer]:
        """Signatures that callers got, in their order."""
        return sorted((one for one in self.answers if one.released), key=lambda one: one.ended_ns)

    def lost_between(self, earlier: int, later: int) -> bool:
        return any(earlier < ended and begun < later for begun, ended in self.losses)

    @property
    def takeover_ns(self) -> int:
        """The longest that a takeover takes when nothing else goes wrong."""
        ttl = self.script.ttl_ms * 1_000_000
        patience = 2 * ttl if self.script.follows else 0
        return int(ttl * 1.1 + ttl / 4 + patience + 20 * max(self.script.trip_ns) + SECOND / 5)

    def over(self, doing: Any) -> int:
        """When what goes wrong has no effect any more, but that another host has to take over: a thread waits so long
        for an answer that does not come."""
        waits = {
            "mute": 30 * SECOND,
            "part": 10 * SECOND,
            "alone": 12 * SECOND,
            "busy": 12 * SECOND,
            "hold": 20 * SECOND,
        }
        waits |= {"silence": 10 * SECOND, "copy": 4 * self.script.ttl_ms * 1_000_000, "forge": 10 * SECOND}
        return int(doing.at_ns + doing.lasts_ns + waits.get(doing.what, 3 * SECOND))

    def is_calm(self, begin: int, end: int, but: int = -1) -> bool:
        """Whether nothing goes wrong in a time. `but`: what goes wrong at that moment."""
        return all(one.at_ns == but or one.at_ns > end or self.over(one) < begin for one in self.doings)


def one_digest_of_all(facts: FleetFacts) -> Iterator[str]:
    """At each position, signatures of one payload at most are released, whoever holds and whatever is lost."""
    released: dict[int, HostAnswer] = {}
    for one in facts.releases:
        if one.position is not None and released.setdefault(one.position, one).message != one.message:
            first = released[one.position]
            yield f"{one.process} released another payload at {one.position} than {first.process} did"


def bound_in_the_end(facts: FleetFacts) -> Iterator[str]:
    """Each payload with a position that was released is bound there in the end, or stands at or below a floor: what
    the database has lost was put back."""
    for one in facts.releases:
        if one.position is None or one.position <= facts.floors.get("default/block", -1):
            continue
        found = facts.rows.get(("default/block", one.position))
        if found != hashlib.sha256(one.message).hexdigest():
            yield f"{one.process} released a payload at {one.position}, where the database has {found}"


def binds_in_order(facts: FleetFacts) -> Iterator[str]:
    """What is bound under an epoch is bound by one host, and before all that is bound under a later one: a bind is
    before a claim or behind it, never across. Only a database that forgets a claim counts to its epoch again."""
    latest: Any = None
    holders: dict[int, Any] = {}
    for one in facts.bound:
        by, _, text = one.holder.rpartition("#")
        epoch = int(text)
        first = holders.setdefault(epoch, one)
        if first.holder != one.holder and not facts.lost_between(first.at_ns, one.at_ns):
            yield f"{one.holder} has bound {one.position} under the epoch of {first.holder}"
        if latest is not None and epoch < latest[0] and not facts.lost_between(latest[1], one.at_ns):
            yield f"{by} has bound {one.position} under epoch {epoch} after one under {latest[0]}"
        latest = epoch, one.at_ns
        holders[epoch] = one


def one_hands_out(facts: FleetFacts) -> Iterator[str]:
    """Nothing without a position is handed out under an epoch once another process has claimed a later one: the lease
    was over before. By force, a claim waits for no lease; a process that stands still looks at its lease before it
    stops; a database that forgets a claim lets the one before go on, once the forgotten lease is over."""
    for one in facts.releases:
        if one.position is not None or not one.epoch:
            continue
        stalls = facts.hosts[one.host].stalls
        if any(one.begun_ns < to and at < one.ended_ns < to + AT_ONCE_NS for at, to in stalls):
            continue
        for claim in facts.claimed:
            later = claim.epoch > one.epoch and claim.at_ns < one.ended_ns
            if later and claim.epoch not in facts.forced and not facts.lost_between(claim.at_ns, one.ended_ns):
                late = (one.ended_ns - claim.at_ns) / SECOND
                yield f"{one.process} handed out under {one.epoch}, {late:.3f} s after {claim.epoch} was claimed"
                break


def leases_apart(facts: FleetFacts) -> Iterator[str]:
    """No other process has a lease when an epoch is claimed, whether it runs or stands still; but by force."""
    for at, epoch, host, other, left in facts.leased:
        if epoch not in facts.forced and not facts.lost_between(at - left, at + left):
            yield f"{host} has claimed epoch {epoch} while {other} had a lease for {left / SECOND:.3f} s"


def copies_stop(facts: FleetFacts) -> Iterator[str]:
    """A process of which there is a copy, which renews the same epoch, hands nothing out once its lease is over, and
    binds nothing from its next renewal on."""
    for at, process in facts.copied:
        until = at + facts.script.ttl_ms * 1_000_000
        for one in facts.releases:
            stalls = facts.hosts[one.host].stalls
            stalled = any(begun < until and to > until for begun, to in stalls)
            if one.process == process and one.ended_ns > until and not stalled and not facts.lost_between(at, until):
                yield f"{process} released {one.intent}, {(one.ended_ns - at) / SECOND:.3f} s after its copy renewed"


def taken_over(facts: FleetFacts) -> Iterator[str]:
    """When the holder is killed and nothing else goes wrong, another process claims the epoch after `ttlMs` and the
    margin, and one look; hosts that are behind leave it to others for two `ttlMs` more."""
    for at, host, held in facts.kills:
        limit = facts.takeover_ns
        if not held or not facts.is_calm(at - limit, at + limit, but=at) or at + limit > facts.closing_ns:
            continue
        if not any(at < claim.at_ns <= at + limit for claim in facts.claimed):
            yield f"{host} was killed, and no host has claimed its epoch in {limit / SECOND:.3f} s"


def served_by_holder(facts: FleetFacts) -> Iterator[str]:
    """While nothing goes wrong, a holder signs what it is asked in time enough."""
    for one in facts.answers:
        asked = one.state == "holder" and one.limit_ns >= SECOND and not one.killed
        if not asked or one.released or one.result is None or one.ended_ns > facts.closing_ns:
            continue
        if isinstance(one.result, (DoubleSign, PolicyRefused)):
            continue
        if facts.is_calm(one.begun_ns - facts.takeover_ns, one.ended_ns):
            yield f"call {one.intent} of {one.process}, which held, ended with {type(one.result).__name__}"


def healed(facts: FleetFacts) -> Iterator[str]:
    """Some time after all that goes wrong, a host holds the epoch, and signs the next block."""
    ready = max((facts.over(one) for one in facts.doings), default=0) + 2 * facts.takeover_ns
    asked = [one for one in facts.answers if ready < one.begun_ns < facts.closing_ns - 3 * SECOND]
    blocks = [one for one in asked if one.position is not None and one.limit_ns >= SECOND]
    if len(blocks) > ENOUGH_BLOCKS and not any(one.released for one in blocks):
        yield f"none of {len(blocks)} blocks was signed in the end: {blocks[-1].result!r}"


def claimed_before(facts: FleetFacts) -> Iterator[str]:
    """Whatever the mode, and whoever writes the database past a seal: a host binds and hands out under an epoch that it
    has claimed, and under no other one."""
    claims = {(claim.epoch, claim.host): claim.at_ns for claim in reversed(facts.claimed)}
    for one in facts.bound:
        by, _, epoch = one.holder.rpartition("#")
        if claims.get((int(epoch), by.partition(":")[0]), 2**63) > one.at_ns:
            yield f"{by} has bound {one.position} under epoch {epoch}, which it has not claimed"
    for one in facts.releases:
        if one.epoch and claims.get((one.epoch, one.host), 2**63) > one.ended_ns:
            yield f"{one.process} released {one.intent} under epoch {one.epoch}, which it has not claimed"


def signed_anywhere(facts: FleetFacts) -> Iterator[str]:
    """Under "any", each host that is well signs what has no position, whatever becomes of epoch, database and other
    hosts."""
    for one in facts.answers if facts.script.unordered == "any" else ():
        if one.position is not None or one.released or one.killed or one.result is None or one.limit_ns < SECOND:
            continue
        meets = ("device", "stall", "end", "kill", "copy")
        near = [of for of in facts.doings if of.host == one.host and of.what in meets]
        calm = all(of.at_ns > one.ended_ns or facts.over(of) < one.begun_ns for of in near)
        if calm and one.ended_ns < facts.closing_ns:
            yield f"message {one.intent} of {one.process} ended with {type(one.result).__name__}"


def left_to_the_preferred(facts: FleetFacts) -> Iterator[str]:
    """The first epoch is left to each host that `prefer` has before the one that claims it, for half a `ttlMs` of 2000
    at most."""
    first, order = next(iter(facts.claimed), None), facts.script.prefer
    if first is None or not order or first.epoch in facts.forced:
        return
    place = order.index(first.host) if first.host in order else len(order)
    begun = facts.script.starts_ns[HOSTS.index(first.host)]
    left = first.at_ns - facts.begin_ns - begun
    if left < place * min(facts.script.ttl_ms, 2000) * 500_000:
        yield f"{first.host} has claimed the first epoch {left / SECOND:.3f} s after its start"


def nothing_below_floors(facts: FleetFacts) -> Iterator[str]:
    """What is asked for once an operator has raised a floor is not signed at or below it."""
    for at, floor in facts.raised:
        for one in facts.releases:
            below = one.position is not None and one.position <= floor and one.begun_ns > at
            if below and not facts.lost_between(at, one.ended_ns):
                yield f"{one.process} released {one.position}, and the floor is {floor} since {at / SECOND:.3f} s"


AT_ONCE_NS: Final = SECOND // 10
"""From the moment at which a process goes on to the answers that were under way."""
ENOUGH_BLOCKS: Final = 3
FLEET_RULES: Final[tuple[Rule, ...]] = (
    one_digest_of_all,
    bound_in_the_end,
    binds_in_order,
    one_hands_out,
    leases_apart,
    copies_stop,
    taken_over,
    served_by_holder,
    healed,
    claimed_before,
    signed_anywhere,
    left_to_the_preferred,
    nothing_below_floors,
)
OF_EACH_HOST: Final = (answered_once, told, genuine, honest, punctual)


def broken_by_fleet(facts: FleetFacts) -> list[str]:
    """As `broken`, of a fleet."""
    alone = [what for host in facts.hosts.values() for what in broken(host, OF_EACH_HOST)]
    left = [f"nothing_left: {count} {what} left" for what, count in facts.left.items() if count]
    return alone + [f"{rule.__name__}: {what}" for rule in FLEET_RULES for what in rule(facts)] + left
