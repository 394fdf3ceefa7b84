"""What a seed means for a fleet: its hosts and its database, what goes wrong, what callers ask for. Data only."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final, Literal

from tests.simulation.chance import Chance
from tests.simulation.clock import SECOND

MS: Final = 1_000_000
HOSTS: Final = ("x", "y", "z")
SECONDS: Final = 60
"""Of a world, in which callers ask."""
CALM: Final = 20
"""Seconds at the end in which nothing goes wrong."""
DOINGS_OF_A_WORLD: Final = (1, 1, 2, 3, 5, 8)
ASKS: Final = 180
HOLDS: Final = 0.25
"""How many worlds have a planned switchover."""
FLOORS: Final = 0.3
"""In how many an operator raises a floor."""
FORGED: Final = 3
"""How often somebody writes past a seal."""
SHARES: Final = (0.2, 0.3, 0.08)
"""How many have `"unordered": "any"`, `prefer`, and a `stateSecret`."""
Payload = Literal["message", "next", "again", "other", "ahead", "far"]
"""What is asked for: a message without a position; a block at the position that follows; one that was signed, again;
another one at a position that is taken; one further on, or far ahead of all."""
What = Literal[
    "kill", "stall", "end", "part", "slow", "cut", "mute", "bounce", "fail over", "lose", "device", "clock", "claim",
    "release", "busy", "alone", "late", "hold", "silence", "copy", "floor", "forge", "steal",
]  # fmt: skip
DOINGS: Final[dict[What, int]] = {
    "kill": 4, "stall": 4, "end": 2, "part": 4, "slow": 2, "cut": 2, "mute": 3, "bounce": 1, "fail over": 1,
    "lose": 2, "device": 2, "clock": 1, "claim": 2, "release": 1, "busy": 2, "alone": 2, "late": 3,
    "silence": 2, "copy": 1,
}  # fmt: skip
"""What goes wrong, with weights. A planned switchover ("hold"), a floor and what a writer of the database forges are
drawn apart from them."""


@dataclass(frozen=True, slots=True)
class Doing:
    """At `at_ns` after the fleet began, for `lasts_ns`. `host`: None for the one that holds the epoch then."""

    at_ns: int
    lasts_ns: int
    what: What
    host: str | None
    dice: int

    def __str__(self) -> str:
        return f"{self.what}, {self.host or 'the holder'}, {self.lasts_ns / SECOND:.3f} s, {self.dice}"


@dataclass(frozen=True, slots=True)
class Ask:
    """One call. `host`: None for the one that holds."""

    number: int
    at_ns: int
    host: str | None
    payload: Payload
    timeout: float
    leaves_ns: int | None = None
    dice: int = 0


@dataclass(frozen=True, slots=True)
class FleetScript:
    PARTS: ClassVar = ("doings", "asks")
    """What may be less in a smaller script."""

    seed: int
    ttl_ms: int
    unordered: str
    single_node: bool
    follows: bool
    """Whether hosts say how far they follow the chain."""
    trip_ns: tuple[int, ...]
    """Of a message from each host to the database, one way."""
    starts_ns: tuple[int, ...]
    doings: tuple[Doing, ...]
    asks: tuple[Ask, ...]
    prefer: tuple[str, ...] = ()
    """The hosts in the order of `fleet.prefer`."""
    sealed: bool = False
    seconds: int = SECONDS

    @property
    def shown(self) -> str:
        said = {"ttlMs": self.ttl_ms, "unordered": self.unordered, "singleNode": self.single_node}
        said |= {"follows": self.follows, "prefer": self.prefer, "sealed": self.sealed}
        return f"{said}, trips {[f'{one / MS:.1f} ms' for one in self.trip_ns]}"

    def without(self, **parts: Any) -> FleetScript:
        return replace(self, **parts)


def fleet_script(seed: int) -> FleetScript:
    """Three hosts for a minute: in forty seconds one to eight things go wrong, in the last twenty nothing does."""
    chance = Chance(seed)
    rng = chance.script
    ttl_ms = rng.choice((2000, 4000, 6000))
    far = rng.choice((200_000, 200_000, 2 * MS, 30 * MS))
    trips = tuple(rng.choice((200_000, far)) for _ in HOSTS)
    starts = tuple(rng.randrange(2 * SECOND) for _ in HOSTS)
    asks = tuple(sorted((_ask(rng, number) for number in range(ASKS)), key=lambda one: one.at_ns))
    strict, modes = rng.random() < 0.3, random.Random(f"kinds {seed}")  # the rest stays what it is for this seed
    anywhere, ordered, sealed = (modes.random() < share for share in SHARES)
    beside = (*_held(seed), *_floors(seed), *(_forged(seed) if sealed else ()))
    return FleetScript(
        seed,
        ttl_ms,
        unordered="any" if anywhere else "strict" if strict else "lease",
        single_node=rng.random() < 0.3,
        follows=rng.random() < 0.6,
        trip_ns=trips,
        starts_ns=starts,
        doings=tuple(sorted((*_doings(chance.faults, ttl_ms * MS), *beside), key=lambda one: one.at_ns)),
        asks=asks,
        prefer=tuple(modes.sample(HOSTS, modes.randint(1, len(HOSTS)))) if ordered else (),
        sealed=sealed,
    )


def _held(seed: int) -> tuple[Doing, ...]:
    rng = random.Random(f"hold {seed}")
    at, lasts = rng.randrange(3 * SECOND, (SECONDS - CALM) * SECOND), rng.randrange(100 * MS, 3 * SECOND)
    return (Doing(at, lasts, "hold", None, rng.randrange(1 << 20)),) if rng.random() < HOLDS else ()


def _floors(seed: int) -> tuple[Doing, ...]:
    rng = random.Random(f"floor {seed}")
    at = rng.randrange(5 * SECOND, (SECONDS - CALM) * SECOND)
    return (Doing(at, 0, "floor", rng.choice(HOSTS), rng.randrange(1 << 20)),) if rng.random() < FLOORS else ()


def _forged(seed: int) -> tuple[Doing, ...]:
    rng = random.Random(f"forge {seed}")
    at = sorted(rng.randrange(5 * SECOND, (SECONDS - CALM) * SECOND) for _ in range(FORGED))
    return tuple(Doing(one, rng.randrange(SECOND, 5 * SECOND), "forge", None, rng.randrange(1 << 20)) for one in at)


def _ask(rng: random.Random, number: int) -> Ask:
    payload: Payload = rng.choice(("message", "message", "next", "next", "next", "again", "other", "ahead"))
    timeout = rng.choice((0.3, 1.0, 3.0))
    leaves = rng.randrange(int(timeout * SECOND)) if rng.random() < 0.05 else None
    host = rng.choice((None, None, *HOSTS))
    return Ask(number, rng.randrange(SECONDS * SECOND), host, payload, timeout, leaves, rng.randrange(1 << 20))


def _doings(rng: random.Random, ttl: int) -> tuple[Doing, ...]:
    found = []
    until = (SECONDS - CALM) * SECOND
    for _ in range(rng.choice(DOINGS_OF_A_WORLD)):
        what = rng.choices([*DOINGS], [*DOINGS.values()])[0]
        at = rng.randrange(3 * SECOND, until)
        lasts = min(int(ttl * rng.choice((0.1, 0.5, 1.0, 3.0)) * (0.5 + rng.random())), until - at)
        host = rng.choice((None, None, *HOSTS))
        found.append(Doing(at, lasts, what, host, rng.randrange(1 << 20)))
    return tuple(sorted(found, key=lambda one: one.at_ns))
