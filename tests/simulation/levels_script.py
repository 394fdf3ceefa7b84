"""What a seed means for a host over a week: levels, an emergency key, rotation, restarts, clocks. Data only."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Final, Literal

from tests.simulation.chance import Chance
from tests.simulation.clock import SECOND, WALL_NS
from tests.simulation.device import FAILURES, KINDS, Fault
from tests.simulation.script import MS, Intent, Kind, Member, Try

HOUR: Final = 3600 * SECOND
DAY: Final = 24 * HOUR
DAYS: Final = 7
LASTS_NS: Final = SECOND
End = Literal["on", "close", "kill"]
Trouble = Literal["refuses", "loses", "late", "silent"]


@dataclass(frozen=True, slots=True)
class Moment:
    """Some seconds of the week in which the host is looked at, and how they end. Between two of them nothing is asked
    of it, and its clock jumps."""

    at_ns: int
    intents: tuple[Intent, ...] = ()
    """Their times count from the moment's."""
    end: End = "on"
    kill_point: int | None = None
    """With "kill": at which point of the rotation under way, counted from the moment's begin;"""
    kill_ns: int = LASTS_NS
    """or so long after it."""
    down_ns: int = 0
    """How long no process runs then."""
    boots: bool = False
    """Whether the machine was booted meanwhile."""
    step_ns: int = 0
    """How far the wall clock is set forward (or back) at the moment's begin or, if the process ends, while it is
    away."""
    rotates_ns: int | None = None
    """When an operator asks for a rotation; None: never."""
    edit: dict[str, Any] = field(default_factory=dict, hash=False)
    """What the configuration says from the next start on: `rotation`, the `limit` of the emergency budget, and the
    member to `leave` out."""


@dataclass(frozen=True, slots=True)
class ChainFault:
    """From `at_ns` of the world's clock, for `lasts_ns`: the chain "refuses" a transaction, "loses" its answer,
    executes it "late", or is "silent" when it is asked."""

    at_ns: int
    lasts_ns: int
    kind: Trouble


@dataclass(frozen=True, slots=True)
class Week:
    PARTS: ClassVar = ("faults", "troubles", "moments")

    seed: int
    members: tuple[Member, ...]
    options: dict[str, Any] = field(hash=False)
    failover: dict[str, Any] = field(hash=False)
    rotation: dict[str, Any] = field(hash=False)
    moments: tuple[Moment, ...] = ()
    faults: tuple[Fault, ...] = ()
    troubles: tuple[ChainFault, ...] = ()
    starts_ns: int = 0
    """When it begins, after the world's usual date."""

    @property
    def shown(self) -> str:
        return f"{len(self.members)} members, {self.options}, {self.failover}, {self.rotation}"

    def without(self, **parts: Any) -> Week:
        return replace(self, **parts)


def levels_script(seed: int) -> Week:
    """A week of one host: about twenty moments, some of them when a rotation is due."""
    chance = Chance(seed)
    rng = chance.script
    members = _members(rng)
    other_keys = len({one.key for one in members}) > 1
    failover: dict[str, Any] = {
        "primaryRetryIntervalMs": 500,
        "secondaryRetryIntervalMs": 500,
        "maxPrimaryRetries": 2,
        "failbackRampMs": rng.choice((0, 500)),
        "emergencyModeEnabled": rng.random() < 0.6,
        "emergencyModeRestrictions": {
            "maxTransactions": rng.choice((3, 20, 40)),
            "maxTimeSeconds": rng.choice((2, 600, 90_000)),
        },
    }
    if other_keys:
        failover["acceptOtherKeys"] = ["secondary"]
    starts = rng.choice((0, 0, 11 * DAY))  # then the clocks of Europe change within the week
    interval = rng.choice((1, 1, 1, 2))
    rotation: dict[str, Any] = {
        "intervalDays": interval,
        "overlapDays": rng.choice((0, 0, 1, interval)),
        "rotationTime": rng.choice(("00:00:00", "02:30:00", "23:59:59")),
        "timeZone": rng.choice(("UTC", "Europe/Zurich")),
    }
    if rng.random() < 0.8:
        rotation["destroyAfterDays"] = rng.choice((0, 0, 1, 2))
    moments = _moments(rng, rotation, rotation_slots(rotation, starts), steps=rng.random() < 0.3)
    faults = _faults(chance.faults, members, moments)
    if failover["emergencyModeEnabled"]:
        faults += _outages(chance.faults, members, moments)
    troubles = tuple(
        ChainFault(
            one.at_ns + rng.randrange(LASTS_NS),
            rng.choice((SECOND // 4, 3 * SECOND, 2 * HOUR)),
            rng.choice(("refuses", "loses", "late", "silent")),
        )
        for one in moments
        if rng.random() < 0.15
    )
    options = {"maxCacheSize": 0, "singleFlight": rng.random() < 0.5, "requestTimeoutMs": 1000}
    return Week(seed, members, options, failover, rotation, moments, faults, troubles, starts)


def _members(rng: random.Random) -> tuple[Member, ...]:
    found = [Member(f"p{at}", "primary", "first", 300_000) for at in range(rng.choice((1, 1, 2)))]
    if rng.random() < 0.6:
        found.append(Member("s0", "secondary", rng.choice(("first", "second", "second")), 2 * MS))
    return tuple(found)


def rotation_slots(rotation: dict[str, Any], starts_ns: int) -> list[int]:
    """When a rotation may be due, by the world's clock: each day once."""
    import datetime
    import zoneinfo

    zone = zoneinfo.ZoneInfo(rotation["timeZone"])
    begin = WALL_NS + starts_ns
    first = datetime.datetime.fromtimestamp(begin // SECOND, zone).date()
    time = datetime.time.fromisoformat(rotation["rotationTime"])
    days = (datetime.datetime.combine(first + datetime.timedelta(day), time, zone) for day in range(DAYS + 1))
    found = [int(one.timestamp()) * SECOND - begin for one in days]
    return [one for one in found if 0 < one < DAYS * DAY]


def _moments(rng: random.Random, rotation: dict[str, Any], slots: list[int], *, steps: bool) -> tuple[Moment, ...]:
    times = [slot - rng.randrange(-SECOND, LASTS_NS) for slot in slots if rng.random() < 0.8]
    times += [one + rng.randrange(2 * SECOND, 200 * SECOND) for one in times if rng.random() < 0.4]
    times += [rng.randrange(DAYS * DAY) for _ in range(5)] + [0]
    found, number, ahead = [], 0, 0
    for at in sorted(times):
        intents = tuple(_intent(rng, number + one) for one in range(rng.choice((2, 4, 6))))
        number += len(intents)
        due = any(slot - LASTS_NS <= at <= slot + SECOND for slot in slots)
        end: End = rng.choices(("on", "close", "kill"), (3, 1, 4) if due else (6, 2, 1))[0]
        step = 0
        if steps and rng.random() < 0.2:
            step = -ahead if ahead else int(rng.choice((-1, 1)) * rng.choice((1, 5, 30, 400 * 24)) * HOUR)
            ahead += step
        found.append(
            Moment(
                at,
                intents,
                end,
                rng.randrange(45) if due else None,
                rng.randrange(LASTS_NS),
                rng.choice((0, 0, SECOND, 10 * SECOND, 2 * HOUR)),
                boots=rng.random() < 0.3,
                step_ns=step,
                rotates_ns=rng.randrange(LASTS_NS) if rng.random() < 0.2 else None,
                edit=_edit(rng, rotation) if rng.random() < 0.2 else {},
            )
        )
    return tuple(found)


def _edit(rng: random.Random, rotation: dict[str, Any]) -> dict[str, Any]:
    interval = rng.choice((1, 2, 3))
    return {
        "rotation": {**rotation, "intervalDays": interval, "overlapDays": min(rotation["overlapDays"], interval)},
        "limit": rng.choice((2, 10, 100)),
        "leave": rng.choice(("", "", "s0", "p1")),
    }


def _intent(rng: random.Random, number: int) -> Intent:
    size = rng.choice((1, 1, 1, 1, 3))
    messages = tuple(b"week %d/%d %d" % (number, part, rng.randrange(10**6)) for part in range(size))
    tries = tuple(_try(rng, size) for _ in range(rng.choice((1, 2, 4))))
    return Intent(number, rng.randrange(LASTS_NS), messages, tries, rng.choice((0, 1, 300, 2000)) * MS)


def _try(rng: random.Random, size: int) -> Try:
    kind: Kind = "many" if size > 1 else rng.choice(("sign", "receipt", "receipt"))
    timeout = rng.choice((0.02, 0.5, 0.5, 2.0))
    leaves = rng.choice((0, rng.randrange(2 * MS), rng.randrange(20 * MS))) if rng.random() < 0.2 else None
    return Try(kind, timeout, leaves)


def _faults(rng: random.Random, members: tuple[Member, ...], moments: tuple[Moment, ...]) -> tuple[Fault, ...]:
    found = []
    for _ in range(rng.choice((0, 2, 4, 6))):
        moment = rng.choice(moments)
        kind = rng.choice((*KINDS, "gone", "gone"))
        share = 1.0 if kind in ("gone", "keyless") else rng.choice((0.1, 0.5, 1.0))
        lasts = int(rng.choice((0.3, 1.0, 3.0, 3.0, 60.0, 7200.0)) * SECOND * (0.5 + rng.random()))
        if kind in ("hang", "slow"):
            lasts = min(lasts, 3 * SECOND)
        more: dict[str, Any] = {"failure": rng.choice(FAILURES), "factor": rng.choice((10, 100, 1000))}
        struck, whole = rng.choice(members), rng.random() < 0.4
        at = max(moment.at_ns + rng.randrange(-SECOND, LASTS_NS), 0)
        found += [Fault(at, lasts, one.name, kind, share, **more) for one in members if one is struck or whole]
    return tuple(sorted(found, key=lambda one: one.at_ns))


def _outages(rng: random.Random, members: tuple[Member, ...], moments: tuple[Moment, ...]) -> tuple[Fault, ...]:
    """All members are gone, so that the emergency key signs."""
    times = [one.at_ns + rng.randrange(LASTS_NS // 2) for one in moments if rng.random() < 0.2]
    return tuple(Fault(at, rng.choice((SECOND, 2 * SECOND)), one.name, "gone", 1.0) for at in times for one in members)
