"""The law: what holds in every world, whatever fails, and in whatever order.

Each rule is a function of what happened (`Facts`) that yields what breaks it. Words: a *call* is one call of the key
manager; it *begins* and *ends*, with a signature, an error, or the caller's leaving. A *device* signs; the ledger knows
each signature that exists, also those that no caller got.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from tests.simulation.clock import SECOND
from tests.simulation.device import Fault, Ledger, Signed
from tests.simulation.script import Script, position_of

from hsmcore._native import verify
from hsmcore.base.receipt import Receipt
from hsmcore.errors import DoubleSign, HsmError, PolicyRefused
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


# ---- a fleet ---------------------------------------------------------------------------------------------------------


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
    losses: list[tuple[int, int]] = field(default_factory=list)
    """What the database confirmed in these times, it lost at their end."""
    rows: dict[tuple[str, int], str] = field(default_factory=dict)
    """What is bound at the end."""
    floors: dict[str, int] = field(default_factory=dict)
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
        return int(ttl * 1.1 + ttl / 8 + patience + 20 * max(self.script.trip_ns) + SECOND / 5)

    def over(self, doing: Any) -> int:
        """When what goes wrong has no effect any more, but that another host has to take over: a thread waits so long
        for an answer that does not come."""
        waits = {"mute": 30 * SECOND, "part": 10 * SECOND, "alone": 12 * SECOND, "busy": 12 * SECOND}
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


AT_ONCE_NS: Final = SECOND // 10
"""From the moment at which a process goes on to the answers that were under way."""
ENOUGH_BLOCKS: Final = 3
FLEET_RULES: Final[tuple[Callable[[FleetFacts], Iterator[str]], ...]] = (
    one_digest_of_all,
    bound_in_the_end,
    binds_in_order,
    one_hands_out,
    leases_apart,
    taken_over,
    served_by_holder,
    healed,
)
OF_EACH_HOST: Final = (answered_once, told, genuine, honest, punctual)


def broken_by_fleet(facts: FleetFacts) -> list[str]:
    """As `broken`, of a fleet."""
    alone = [
        f"{rule.__name__}: {what}" for host in facts.hosts.values() for rule in OF_EACH_HOST for what in rule(host)
    ]
    together = [f"{rule.__name__}: {what}" for rule in FLEET_RULES for what in rule(facts)]
    return alone + together + [f"nothing_left: {count} {what} left" for what, count in facts.left.items() if count]


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
