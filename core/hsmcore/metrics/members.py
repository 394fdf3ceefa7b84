"""What members and their engines count."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, get_args

import hsmcore
from hsmcore.errors import HsmError
from hsmcore.failover.breaker import RULES
from hsmcore.failover.member_state import Condition
from hsmcore.members import Member
from hsmcore.metrics import catalog as names
from hsmcore.metrics.reading import Buckets, Reading
from hsmcore.parts import Parts

_CONDITIONS: Final[tuple[str, ...]] = get_args(Condition)
_STATES: Final = {"closed": 0, "half-open": 1, "open": 2}
_GAUGES: Final = (
    (names.IN_FLIGHT, "in_flight"),
    (names.QUEUED, "queued"),
    (names.WAITING, "waiting"),
    (names.SESSIONS, "workers"),
    (names.BUSY, "busy"),
    (names.QUARANTINED, "stuck"),
)
_CACHE: Final = (
    (names.CACHE_HITS, "hits"),
    (names.CACHE_MISSES, "misses"),
    (names.CACHE_JOINED, "joined"),
    (names.CACHE_EVICTIONS, "evictions"),
    (names.CACHE_ENTRIES, "entries"),
    (names.CACHE_BYTES, "bytes"),
)


@dataclass(frozen=True, slots=True)
class MemberReading:
    """A member and how it stands."""

    name: str
    level: str
    member: Member | None
    condition: str
    up: bool | None
    """None: as its engine says."""
    breakers: Mapping[str, str]


def seats_of(parts: Parts) -> Iterator[MemberReading]:
    """Every member, those that do not run, too."""
    if parts.failover is not None:
        for seat in parts.failover.seats:
            breakers: dict[str, str] = {kind: breaker.state for kind, breaker in list(seat.breakers.items())}
            yield MemberReading(seat.name, seat.level_name, seat.member, seat.condition, seat.trusted, breakers)
    elif parts.member is not None:
        yield MemberReading(parts.member.name, parts.member.level, parts.member, "", None, {})


def read_manager(reading: Reading, parts: Parts) -> None:
    """The key manager as a whole."""
    reading.add(names.BUILD, 1, hsmcore.__version__)
    reading.add(names.OPEN, int(parts.open))
    if parts.key is not None:
        reading.add(names.KEY, 1, parts.key.id, parts.key.algorithm, parts.key.public_key.hex())
    if parts.failover is None:
        if parts.member is not None:
            reading.add(names.LEVEL, int(parts.open), parts.member.level)
        return
    levels, router = parts.failover.levels, parts.failover.router
    for index, level in enumerate(levels.levels):
        reading.add(names.LEVEL, int(index == levels.active), level.name)
    reading.add(names.UNSIGNED, router.unsigned)
    reading.add(names.HEDGES, router.hedges)
    reading.add(names.EMERGENCY_ALLOWED, int(levels.emergency_permitted))


def read_member(reading: Reading, place: MemberReading) -> None:
    """One member."""
    labels = (place.name, place.level)
    stats = None if place.member is None else _stats(place.member)
    up = place.up if place.up is not None else stats is not None and not stats["down"]
    reading.add(names.UP, int(up), *labels)
    condition = place.condition or ("ready" if up else "open")
    reading.add_all(names.CONDITION, [((*labels, name), int(name == condition)) for name in _CONDITIONS])
    breakers = place.breakers
    reading.add_all(
        names.BREAKER, [((*labels, kind), _STATES[breakers[kind]] if kind in breakers else 0) for kind in RULES]
    )
    warden = getattr(place.member, "warden", None)
    refused = place.breakers.get("auth", "closed") != "closed" or (warden is not None and warden.refusal is not None)
    reading.add(names.REFUSED, int(refused), *labels)
    if stats is None or place.member is None:
        return
    _read_engine(reading, labels, stats)
    cache = place.member.engine.cache_stats()
    for metric, name in _CACHE:
        reading.add(metric, cache[name], *labels)
    if warden is not None:
        reading.add(names.RESTARTS, warden.restarts, *labels)
    _read_cluster(reading, place)


def _stats(member: Member) -> dict[str, Any] | None:
    try:
        return member.engine.stats()
    except HsmError:
        return None  # it is being closed


def _read_engine(reading: Reading, labels: tuple[str, str], stats: Mapping[str, Any]) -> None:
    reading.add(names.SIGNATURES, stats["signatures"], *labels)
    reading.add_all(names.FAILURES, [((*labels, name), count) for name, count in stats["failed"].items()])
    for name in ("expired", "cancelled", "refused"):
        reading.add(names.DROPPED, stats[name], *labels, name)
    reading.add(names.WRONG, stats["wrong"], *labels)
    for metric, name in ((names.QUEUE, "queue"), (names.HSM, "hsm"), (names.VERIFY, "verify")):
        reading.add(metric, Buckets.of(stats[f"{name}_octaves"], stats[f"{name}_sum_ns"]), *labels)
    for metric, name in _GAUGES:
        reading.add(metric, stats[name], *labels)
    reading.add(names.QUEUE_OLDEST, stats["oldest_queued_ns"] / 1e9, *labels)
    reading.add(names.CALL_OLDEST, stats["oldest_call_ns"] / 1e9, *labels)
    for rung, count in stats["recoveries"].items():
        reading.add(names.RECOVERIES, count, *labels, rung)


def _read_cluster(reading: Reading, place: MemberReading) -> None:
    health = getattr(place.member, "cluster_health", None)
    if health is None:
        return
    reading.add(names.CLUSTER_OK, int(health.ok), place.name)
    if health.checked_at is not None:
        reading.add(names.CLUSTER_CHECKED, health.checked_at, place.name)
    for zone, states in health.zones.items():
        for state, count in states.items():
            reading.add(names.CLUSTER_HSMS, count, place.name, zone, state)
