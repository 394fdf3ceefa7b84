"""What a seed means for one host in several lives: how each ends, what the disk does, what callers ask for in each."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Final, Literal

from tests.simulation.chance import Chance
from tests.simulation.clock import SECOND
from tests.simulation.device import Fault
from tests.simulation.script import HEAD, MS, Intent, Member, Try, faults_of
from tests.simulation.upgrades import POSITIONS, SCHEMAS, SEALED

End = Literal["close", "kill", "cut"]
Edit = Literal["", "swapped", "unaudited"]
"""The levels change places; there is no audit log."""
LASTS_NS: Final = 2 * SECOND
_ASKS: Final = 40
_POSITIONS: Final = 12


@dataclass(frozen=True, slots=True)
class Life:
    """One life of the process. It ends `end_ns` after its start, or before that at an operation of the disk."""

    number: int
    end: End
    end_ns: int
    end_op: int | None = None
    pause_ns: int = 0
    """Until the next one."""
    edit: Edit = ""
    """How its configuration differs."""
    goes_back: bool = False
    """Whether, after it, a start is tried on the state store as it was before it."""
    tries_only: bool = False
    """Whether it is such a start: nothing is signed."""
    backs_up: bool = False
    """Whether an operator backs its store up after it."""
    restores: tuple[End, int] | None = None
    """Whether an operator puts the backup in the place of its store after it, and reconciles that: how the first
    attempt ends, at an operation of the disk."""
    schema: int = 0
    """Of the older version that runs it, which leaves its store and its log to this one; 0: this tree runs it."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What one caller wants in a life, unless it has it from an earlier one."""

    life: int
    intent: Intent


@dataclass(frozen=True, slots=True)
class Struck:
    """A fault of a device, by the time since the life's start."""

    life: int
    fault: Fault


@dataclass(frozen=True, slots=True)
class DiskFault:
    """`kind`: "full": nothing is written; "slow": a group of records takes longer by as much as the fault lasts."""

    life: int
    kind: Literal["full", "slow"]
    at_ns: int
    lasts_ns: int


@dataclass(frozen=True, slots=True)
class Lie:
    """From `at_ns` after a life's start a sync of one file keeps nothing of it: of the audit log's newest "segment", of
    its "tiles", of the state "store", or of its "wal". All other syncs keep what they say."""

    life: int
    file: Literal["segment", "tiles", "store", "wal"]
    at_ns: int


@dataclass(frozen=True, slots=True)
class Command:
    """A command of another process that leaves its record in the spool. `lasts_ns`: None: it is killed before its
    end."""

    life: int
    at_ns: int
    lasts_ns: int | None


@dataclass(frozen=True, slots=True)
class DiskScript:
    PARTS: ClassVar = ("lies", "disk_faults", "faults", "commands", "asked", "lives")
    """What may be less in a smaller script."""

    seed: int
    members: tuple[Member, ...]
    options: dict[str, Any] = field(hash=False)
    failover: dict[str, Any] = field(hash=False)
    lives: tuple[Life, ...]
    asked: tuple[Asked, ...]
    faults: tuple[Struck, ...]
    disk_faults: tuple[DiskFault, ...]
    commands: tuple[Command, ...] = ()
    is_sealed: bool = False
    """Whether the state store has a secret."""
    rotation: dict[str, Any] | None = field(default=None, hash=False)
    """Of the configuration; without it there is no key ring."""

    lies: tuple[Lie, ...] = ()

    @property
    def shown(self) -> str:
        lives = ", ".join(
            f"{one.number}: {one.edit or (one.schema and f'of schema {one.schema}') or 'as it is'}, {one.end}"
            for one in self.lives
        )
        return f"{len(self.members)} members, {self.options}, {self.failover}, sealed: {self.is_sealed}, lives {lives}"

    def without(self, **parts: Any) -> DiskScript:
        return replace(self, **parts)


def disk_script(seed: int) -> DiskScript:
    """A host of two levels with a key each, in two to four lives."""
    chance = Chance(seed)
    rng = chance.script
    members = (
        Member("p0", "primary", "first", rng.choice((300_000, 2 * MS))),
        Member("s0", "secondary", "second", rng.choice((300_000, 2 * MS))),
    )
    failover: dict[str, Any] = {
        "primaryRetryIntervalMs": 200,
        "secondaryRetryIntervalMs": 200,
        "maxPrimaryRetries": rng.choice((1, 3)),
        "acceptOtherKeys": ["secondary"],
    }
    options: dict[str, Any] = {"maxCacheSize": 0, "policy": {"kinds": ["block", "raw"]}}
    if rng.random() < 0.7:
        options["audit"] = {
            "checkpointEveryRecords": rng.choice((20, 1000)),
            "checkpointEverySeconds": 1,
            "rotateBytes": 1 << 16,
        }
    lives = tuple(_life(rng, number) for number in range(rng.choice((2, 2, 3, 4))))
    asked = _asked(rng, len(lives))
    faults = tuple(
        Struck(life.number, one) for life in lives for one in faults_of(chance.faults, members, LASTS_NS)[:3]
    )
    disk_faults = tuple(
        DiskFault(life.number, kind, rng.randrange(LASTS_NS), rng.choice((100, 500, 1500)) * MS)
        for life in lives
        for kind in rng.choice(((), (), (), ("full",), ("slow",)))
    )
    return DiskScript(
        seed, members, options, failover, lives, asked, faults, disk_faults, _commands(rng, lives), rng.random() < 0.3
    )


def restores_script(seed: int) -> DiskScript:
    """The same host with an audit log in each life; an operator puts its store back from a backup."""
    script = disk_script(seed)
    rng = random.Random(f"restores/{seed}")
    saved = rng.randrange(len(script.lives) - 1)
    back = rng.randrange(saved, len(script.lives) - 1)
    end: End = rng.choice(("close", "kill", "cut"))
    lives = tuple(
        replace(
            life,
            edit="" if life.edit == "unaudited" else life.edit,
            backs_up=life.number == saved,
            restores=(end, rng.randrange(1, 60)) if life.number == back else None,
        )
        for life in script.lives
    )
    audit = script.options.get("audit", {"checkpointEverySeconds": 1})
    return replace(script, lives=lives, options={**script.options, "audit": audit})


def lies_script(seed: int) -> DiskScript:
    """The same host with an audit log in each life, on a disk that lies about one file before the power is cut."""
    script = disk_script(seed)
    rng = random.Random(f"lies/{seed}")
    lied = rng.randrange(len(script.lives) - 1)
    lives = tuple(
        replace(
            life,
            edit="" if life.edit == "unaudited" else life.edit,
            end="cut" if life.number == lied else life.end,
            goes_back=False,
        )
        for life in script.lives
    )
    lie = Lie(lied, rng.choice(("segment", "tiles", "store", "wal")), rng.choice((0, rng.randrange(LASTS_NS))))
    audit = script.options.get("audit", {"checkpointEverySeconds": 1})
    return replace(script, lives=lives, options={**script.options, "audit": audit}, lies=(lie,))


def upgrades_script(seed: int) -> DiskScript:
    """The same host, whose first life is of an older version."""
    script = disk_script(seed)
    rng = random.Random(f"upgrades/{seed}")
    schema = rng.choice(SCHEMAS)
    first, *rest = script.lives
    # One that knows of no positions, nor of messages that are bound to a key, promises nothing of them.
    knows, ring = schema >= POSITIONS, rng.random() < 0.5
    if ring:  # it has the key that the configuration began with, and demands it
        rest = [replace(one, edit="" if one.edit == "swapped" else one.edit) for one in rest]
    return replace(
        script,
        lives=(replace(first, schema=schema, edit="", goes_back=False), *rest),
        rotation={"intervalDays": 30} if ring else None,
        asked=tuple(one for one in script.asked if knows or one.life),
        is_sealed=script.is_sealed and schema >= SEALED,
    )


def _life(rng: random.Random, number: int) -> Life:
    end: End = rng.choice(("close", "kill", "kill", "cut", "cut"))
    at = rng.choice((None, rng.randrange(1, 40), rng.randrange(20, 90), rng.randrange(20, 250)))
    pause = rng.choice((10 * MS, 300 * MS, 3 * SECOND))
    edit: Edit = rng.choice(("", "", "", "swapped", "unaudited"))
    return Life(number, end, rng.randrange(LASTS_NS), at, pause, edit, goes_back=rng.random() < 0.15)


def _commands(rng: random.Random, lives: tuple[Life, ...]) -> tuple[Command, ...]:
    return tuple(
        Command(life.number, rng.randrange(LASTS_NS), rng.choice((None, rng.randrange(300 * MS))))
        for life in lives
        for _ in range(rng.choice((0, 0, 1)))
    )


def _asked(rng: random.Random, lives: int) -> tuple[Asked, ...]:
    found: list[Asked] = []
    for number in range(_ASKS):
        position = rng.randrange(1, _POSITIONS)
        message = b"message %d %d" % (number, rng.randrange(10**6))
        ordered = rng.random() < 0.5
        if ordered:
            message = HEAD + position.to_bytes(8) + bytes([rng.randrange(3)]) * 32
        at = rng.randrange(LASTS_NS)
        first = rng.randrange(lives)
        for life in range(first, lives):
            leaves = rng.choice((None, None, rng.randrange(3 * MS)))
            timeout = rng.choice((0.02, 0.1, 0.5))
            tries = tuple(Try("sign", timeout, leaves) for _ in range(rng.choice((1, 2))))
            found.append(Asked(life, Intent(number, at, (message,), tries, 20 * MS, ordered)))
            at = rng.randrange(LASTS_NS // 4)
            if rng.random() < 0.5:
                break
    return tuple(found)
