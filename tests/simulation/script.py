"""What a seed means for one host: its members, its faults, what its callers ask for. Data only; it can be shrunk."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Final, Literal

from tests.simulation.chance import Chance
from tests.simulation.clock import SECOND
from tests.simulation.device import FAILURES, KINDS, Fault

MS: Final = 1_000_000
REQUESTS: Final = 200
FAULTS: Final = 6
LASTS_NS: Final = 4 * SECOND
"""For how long callers begin something."""
Kind = Literal["sign", "receipt", "many"]


@dataclass(frozen=True, slots=True)
class Try:
    """One call. `leaves_ns`: the caller cancels it after so long; None: it waits."""

    kind: Kind
    timeout: float
    leaves_ns: int | None = None
    any_key: bool = False


@dataclass(frozen=True, slots=True)
class Intent:
    """What one caller wants signed. It tries until it has an answer, or has no try left."""

    number: int
    at_ns: int
    messages: tuple[bytes, ...]
    tries: tuple[Try, ...]
    pause_ns: int
    shared: bool = False
    """Whether another caller may ask for the same message at the same time."""


@dataclass(frozen=True, slots=True)
class Member:
    name: str
    level: Literal["primary", "secondary"]
    key: str
    usual_ns: int


@dataclass(frozen=True, slots=True)
class Script:
    PARTS: ClassVar = ("faults", "stalls", "intents")
    """What may be less in a smaller script."""

    seed: int
    members: tuple[Member, ...]
    options: dict[str, Any] = field(hash=False)
    """Of the key manager's configuration."""
    failover: dict[str, Any] = field(hash=False)
    intents: tuple[Intent, ...]
    faults: tuple[Fault, ...]
    stalls: tuple[tuple[int, int], ...]
    """When the whole process stops, and for how long, in ns."""
    closes_ns: int | None = None
    """When the host is closed; None: when every caller has ended."""
    days: int = 0
    """How long the world goes on after the last caller."""

    @property
    def shown(self) -> str:
        return f"{len(self.members)} members, {self.options}, {self.failover}"

    def without(self, **parts: Any) -> Script:
        return replace(self, **parts)


def host_script(seed: int) -> Script:
    """One host with levels: some hundred requests within seconds, six faults."""
    chance = Chance(seed)
    rng = chance.script
    members = _members(rng)
    other_keys = len({one.key for one in members}) > 1
    failover: dict[str, Any] = {
        "primaryRetryIntervalMs": 200,
        "secondaryRetryIntervalMs": 200,
        "maxPrimaryRetries": rng.choice((1, 3)),
        "failbackRampMs": rng.choice((0, 200, 2000)),
        "hedging": rng.random() < 0.2,
        "mode": "literal" if rng.random() < 0.1 else "smart",
        "emergencyModeEnabled": rng.random() < 0.3,
    }
    if other_keys:
        failover["acceptOtherKeys"] = ["secondary"]
    options: dict[str, Any] = {"maxCacheSize": rng.choice((0, 0, 50)), "singleFlight": rng.random() < 0.7}
    stalls = tuple(
        (rng.randrange(LASTS_NS), rng.randrange(50 * MS, 1500 * MS)) for _ in range(rng.choice((0, 0, 0, 1)))
    )
    closes = rng.randrange(LASTS_NS) if rng.random() < 0.2 else None
    faults = faults_of(chance.faults, members)
    intents = _intents(rng)
    if rng.random() < 0.25:
        options["policy"] = {"kinds": ["block", "raw"]}
        intents = tuple(_ordered(rng, one) for one in intents)
    return Script(seed, members, options, failover, intents, faults, stalls, closes)


def _members(rng: random.Random) -> tuple[Member, ...]:
    other = rng.choice(("first", "second", "second", "second"))
    found = [
        Member(f"p{at}", "primary", "first", rng.choice((300_000, 2 * MS))) for at in range(rng.choice((1, 2, 2, 3)))
    ]
    found += [
        Member(f"s{at}", "secondary", other, rng.choice((300_000, 5 * MS))) for at in range(rng.choice((1, 1, 2)))
    ]
    return tuple(found)


def faults_of(rng: random.Random, members: tuple[Member, ...], lasts_ns: int = LASTS_NS) -> tuple[Fault, ...]:
    found = []
    for _ in range(rng.randrange(FAULTS + 1)):
        kind = rng.choice(KINDS)
        share = 1.0 if kind in ("gone", "keyless") else rng.choice((0.1, 0.5, 1.0))
        lasts = int(rng.choice((0.05, 0.3, 0.3, 1.0, 3.0)) * SECOND * (0.5 + rng.random()))
        more: dict[str, Any] = {"failure": rng.choice(FAILURES), "factor": rng.choice((10, 100, 1000))}
        struck = rng.choice(members)
        whole = rng.random() < 0.5  # a power cut or a network meets the whole level
        at = rng.randrange(lasts_ns)
        met = [one for one in members if one is struck or (whole and one.level == struck.level)]
        found += [Fault(at, lasts, one.name, kind, share, **more) for one in met]
    return tuple(sorted(found, key=lambda one: one.at_ns))


def _intents(rng: random.Random) -> tuple[Intent, ...]:
    found: list[Intent] = []
    left = REQUESTS
    while left > 0:
        number, size = len(found), rng.choice((1, 1, 1, 1, 1, 1, 3, 20))
        at = rng.randrange(LASTS_NS)
        if found and rng.random() < 0.3:
            at = found[-1].at_ns + rng.randrange(300_000)  # in a burst
        if found and rng.random() < 0.1:  # two callers, one message
            before = found[-1]
            found[-1] = replace(before, shared=True)
            messages, shared, at = before.messages, True, before.at_ns + rng.randrange(5 * MS)
        else:
            messages = tuple(b"message %d/%d %d" % (number, part, rng.randrange(10**6)) for part in range(size))
            shared = False
        tries = tuple(_try(rng, len(messages)) for _ in range(rng.choice((1, 2, 4))))
        found.append(Intent(number, at, messages, tries, rng.choice((0, 1, 50, 300)) * MS, shared))
        left -= len(messages)
    return tuple(found)


def _try(rng: random.Random, size: int) -> Try:
    kind: Kind = "many" if size > 1 else rng.choice(("sign", "sign", "receipt", "many"))
    timeout = rng.choice((0.02, 0.1, 0.5, 0.5, 2.0))
    leaves = None
    if rng.random() < 0.25:
        leaves = rng.choice((0, rng.randrange(2 * MS), rng.randrange(2 * MS), rng.randrange(int(timeout * SECOND))))
    return Try(kind, timeout, leaves, any_key=kind != "many" and rng.random() < 0.1)


HEAD: Final = b"\xffhsmcore\x01\x01\x07default"
"""hsmcore's own form of a block of the chain "default"; its position and a digest follow."""


def position_of(message: bytes) -> int | None:
    """The position of an ordered payload; None: it has none."""
    return int.from_bytes(message[len(HEAD) :][:8]) if message.startswith(HEAD) else None


def _ordered(rng: random.Random, intent: Intent) -> Intent:
    """Half of the callers have a block signed: several a position, and not all of them the same one."""
    if len(intent.messages) > 1 or rng.random() < 0.5:
        return intent
    position = 1 + intent.at_ns // (100 * MS)
    block = HEAD + position.to_bytes(8) + bytes([rng.randrange(3)]) * 32
    return replace(intent, messages=(block,), shared=True)
