"""What a seed means for a gateway: its clients and what they ask for, its neighbours, and what the network does."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final, Literal

from tests.simulation.chance import Chance
from tests.simulation.clock import SECOND
from tests.simulation.device import Fault
from tests.simulation.script import LASTS_NS, MS, Intent, Member, Script, _intents, faults_of

NET_FAULTS: Final = 5
FIRST_UID: Final = 100
FLOOD_UID: Final = 200
STRANGER_UID: Final = 300
NetKind = Literal["cut", "silent", "refused", "slow"]


@dataclass(frozen=True, slots=True)
class NetFault:
    """From `at_ns` on, for `lasts_ns`, to all connections of a user."""

    at_ns: int
    lasts_ns: int
    uid: int
    kind: NetKind
    way: Literal["up", "down", "both"]
    bytes: int = 0
    """Which a connection that is cut still takes."""

    def __str__(self) -> str:
        return f"{self.kind} {self.way} of {self.uid}, {self.bytes} bytes, {self.lasts_ns / 1e9:.3f} s"


@dataclass(frozen=True, slots=True)
class Entry:
    """A client of the gateway's configuration, with so many processes."""

    name: str
    uid: int
    in_flight: int
    weight: int
    processes: int
    connections: int


@dataclass(frozen=True, slots=True)
class Neighbour:
    """One connection of a program that keeps no rule."""

    at_ns: int
    uid: int
    kind: Literal["flood", "batches", "verify", "garbage", "half", "silent", "stranger"]
    count: int


@dataclass(frozen=True, slots=True)
class Order:
    """What an operator asks of the key manager, as `hsmcore failover` does. `member`: of an order "drain" or "readmit".
    `value`: None withdraws it."""

    at_ns: int
    kind: Literal["drain", "readmit", "force"]
    member: str
    value: str | None


@dataclass(frozen=True, slots=True)
class GatewayScript(Script):
    PARTS: ClassVar = ("faults", "stalls", "intents", "net", "neighbours", "restarts", "leaves", "reloads", "orders")

    entries: tuple[Entry, ...] = ()
    net: tuple[NetFault, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()
    restarts: tuple[tuple[int, int], ...] = ()
    """When the gateway is drained, and after how long the next one begins, in ns."""
    leaves: tuple[tuple[int, int], ...] = ()
    """When a process closes its client and makes a new one: in ns, and the process's number."""
    reloads: tuple[tuple[int, int, int], ...] = ()
    """When the clients are read again, in ns: the entry's place, and its new `inFlight`."""
    orders: tuple[Order, ...] = ()
    edits: tuple[dict[str, Any], ...] = ()
    """What is changed in the block `failover` before each restart."""
    in_flight: int | None = None
    """Of the gateway."""

    @property
    def processes(self) -> tuple[Entry, ...]:
        return tuple(entry for entry in self.entries for _ in range(entry.processes))


def gateway_script(seed: int) -> GatewayScript:
    """A gateway with three to eight clients: some hundred requests within seconds."""
    chance = Chance(seed)
    rng = chance.script
    members = _members(rng)
    failover: dict[str, Any] = {
        "primaryRetryIntervalMs": 200,
        "secondaryRetryIntervalMs": 200,
        "maxPrimaryRetries": rng.choice((1, 3)),
    }
    if len({one.key for one in members}) > 1:
        failover["acceptOtherKeys"] = ["secondary"]
    options: dict[str, Any] = {"maxCacheSize": rng.choice((0, 0, 50)), "singleFlight": rng.random() < 0.7}
    entries = _entries(rng)
    stalls = ((rng.randrange(LASTS_NS), rng.randrange(50 * MS, 1500 * MS)),) if rng.random() < 0.1 else ()
    intents = tuple(_patient(rng, one) for one in _intents(rng))
    faults = faults_of(chance.faults, members) if chance.faults.random() < 0.5 else ()
    net = _net(chance.faults, entries) if chance.faults.random() < 0.7 else ()
    processes = sum(entry.processes for entry in entries)
    script = GatewayScript(
        seed,
        members,
        options,
        failover,
        intents,
        faults,
        stalls,
        entries=entries,
        net=net,
        neighbours=_neighbours(rng, entries) if rng.random() < 0.6 else (),
        restarts=((rng.randrange(LASTS_NS), rng.randrange(SECOND)),) if rng.random() < 0.15 else (),
        leaves=tuple((rng.randrange(LASTS_NS), rng.randrange(processes)) for _ in range(rng.choice((0, 0, 1, 2)))),
        in_flight=rng.choice((None, 1, 4)),
        reloads=tuple(
            (rng.randrange(LASTS_NS), rng.randrange(len(entries)), rng.choice((1, 3, 64)))
            for _ in range(rng.choice((0, 0, 1, 3)))
        ),
    )
    if rng.random() < 0.25:  # nothing fails: what neighbours cost is seen
        disturbed = script.neighbours or _neighbours(rng, entries)
        script = replace(script, faults=(), stalls=(), net=(), restarts=(), reloads=(), neighbours=disturbed)
    elif rng.random() < 0.3:
        script = _with_outage(chance.faults, script)
    return script


def operator_script(seed: int) -> GatewayScript:
    """A gateway whose operator gives orders, and restarts it with another configuration."""
    script = gateway_script(seed)
    rng = random.Random(f"operator/{seed}")
    restarts = tuple(sorted((rng.randrange(LASTS_NS), rng.randrange(SECOND)) for _ in range(rng.choice((0, 1, 1, 2)))))
    edits = tuple(
        {"failbackRampMs": rng.choice((0, 200, 2000)), "maxPrimaryRetries": rng.choice((1, 3)), "hedging": hedges}
        for hedges in (rng.random() < 0.3 for _ in restarts)
    )
    quiet = rng.random() < 0.5
    return replace(
        script,
        faults=() if quiet else script.faults,
        net=() if quiet else script.net,
        orders=_orders(rng, script.members),
        restarts=restarts,
        edits=edits,
    )


def _orders(rng: random.Random, members: tuple[Member, ...]) -> tuple[Order, ...]:
    """The last member of the first key is never drained."""
    found = list[Order]()
    for _ in range(rng.randrange(1, 6)):
        at, kind = rng.randrange(LASTS_NS), rng.choice(("drain", "drain", "readmit", "force"))
        member = rng.choice(members[:-1]).name
        if kind == "drain":
            found.append(Order(at, "drain", member, "yes"))
            if rng.random() < 0.7:
                found.append(Order(at + rng.randrange(2 * SECOND), "drain", member, None))
        elif kind == "readmit":
            found.append(Order(at, "readmit", member, str(at)))
        else:
            found.append(Order(at, "force", "", rng.choice(("primary", "secondary", None))))
    return tuple(sorted(found, key=lambda one: one.at_ns))


def _members(rng: random.Random) -> tuple[Member, ...]:
    usual = rng.choice((300_000, 2 * MS))
    found = [Member("p0", "primary", "first", usual)]
    if rng.random() < 0.5:
        found.append(Member("p1", "primary", "first", usual))
    found.append(Member("s0", "secondary", rng.choice(("first", "second", "second")), 300_000))
    return tuple(found)


def _entries(rng: random.Random) -> tuple[Entry, ...]:
    found, left, uid = list[Entry](), rng.randrange(3, 9), FIRST_UID
    while left > 0:
        processes = min(rng.choice((1, 1, 2, 3)), left)
        in_flight, weight = rng.choice((2, 4, 32, 256)), rng.choice((1, 1, 3))
        found.append(Entry(f"c{uid}", uid, in_flight, weight, processes, rng.choice((1, 1, 2, 3))))
        left, uid = left - processes, uid + 1
    return tuple(found)


def _patient(rng: random.Random, intent: Intent) -> Intent:
    """Some callers have much time: what breaks costs them nothing."""
    if rng.random() < 0.6:
        return intent
    return replace(intent, tries=tuple(replace(one, timeout=5.0) for one in intent.tries))


def _net(rng: random.Random, entries: tuple[Entry, ...]) -> tuple[NetFault, ...]:
    found = list[NetFault]()
    for _ in range(rng.randrange(1, NET_FAULTS + 1)):
        kind: NetKind = rng.choice(("cut", "cut", "cut", "silent", "refused", "slow"))
        lasts = int(rng.choice((0.02, 0.2, 1.0)) * SECOND * (0.5 + rng.random()))
        way: Any = rng.choice(("up", "down", "both"))
        met = list(entries) if rng.random() < 0.2 else [rng.choice(entries)]
        at, size = rng.randrange(LASTS_NS), rng.choice((0, rng.randrange(200), rng.randrange(3000)))
        found += [NetFault(at, lasts, one.uid, kind, way, size) for one in met]
    return tuple(sorted(found, key=lambda one: one.at_ns))


def _with_outage(rng: random.Random, script: GatewayScript) -> GatewayScript:
    """Many ask at a time, connections break, and a little later the first level is gone: answers are lost, and what is
    sent again meets another key."""
    at = rng.randrange(LASTS_NS)
    way = rng.choice(("down", "down", "both"))
    cuts = tuple(NetFault(at, MS, one.uid, "cut", way, rng.choice((0, rng.randrange(120)))) for one in script.entries)
    begins, lasts = at + rng.randrange(25 * MS), rng.randrange(200 * MS, SECOND)
    first = [one for one in script.members if one.level == "primary"]
    gone = tuple(Fault(begins, lasts, one.name, "gone", 1.0) for one in first)
    intents = tuple(
        replace(one, at_ns=max(at + rng.randrange(-3 * MS, 15 * MS), 0)) if one.number % 3 == 0 else one
        for one in script.intents
    )
    by_time = (sorted(found, key=lambda one: one.at_ns) for found in ((*script.net, *cuts), (*script.faults, *gone)))
    net, faults = map(tuple, by_time)
    return replace(script, net=net, faults=faults, intents=intents)


def _neighbours(rng: random.Random, entries: tuple[Entry, ...]) -> tuple[Neighbour, ...]:
    found = list[Neighbour]()
    for _ in range(rng.randrange(1, 5)):
        kind: Any = rng.choice(("flood", "flood", "batches", "verify", "garbage", "half", "silent", "stranger"))
        uid = {"stranger": STRANGER_UID, "garbage": rng.choice(entries).uid}.get(kind, FLOOD_UID)
        found.append(Neighbour(rng.randrange(LASTS_NS), uid, kind, rng.choice((10, 50, 150, 400))))
    return tuple(found)
