"""Readings of members and their engines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, get_args

from hsmcore.base.version import __version__
from hsmcore.failover.breaker import RULES
from hsmcore.failover.member_state import Condition
from hsmcore.manager.describe import Snapshot
from hsmcore.members.snapshot import MemberSnapshot
from hsmcore.metrics import catalog as names
from hsmcore.metrics.reading import Buckets, Reading

_CONDITIONS: Final[tuple[str, ...]] = get_args(Condition)
_IN_SERVICE: Final = frozenset({"ready", "ramping"})
_STATES: Final = {"closed": 0, "half-open": 1, "open": 2}
_COUNTS: Final = (
    (names.SIGNATURES, "signatures"),
    (names.WRONG, "wrong"),
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


def read_manager(reading: Reading, snapshot: Snapshot, members: Sequence[MemberSnapshot]) -> None:
    """Read the metrics of the key manager as a whole."""
    reading.add(names.BUILD, 1, __version__)
    reading.add(names.OPEN, int(snapshot.open))
    if (key := snapshot.key) is not None:
        reading.add(names.KEY, 1, key.id, key.algorithm, key.public_key.hex())
    for level in dict.fromkeys(member.level for member in members):
        signs = snapshot.open and any(member.signs for member in members if member.level == level)
        reading.add(names.LEVEL, int(signs), level)
    if (failover := snapshot.levels) is not None:
        reading.add(names.UNSIGNED, failover.router.unsigned)
        reading.add(names.HEDGES, failover.router.hedges)
        reading.add(names.EMERGENCY_ALLOWED, int(failover.levels.emergency_permitted))


def read_member(reading: Reading, member: MemberSnapshot) -> None:
    """Read the metrics of one member."""
    labels = (member.name, member.level)
    stats = member.stats()
    reading.add(names.UP, int(member.condition in _IN_SERVICE), *labels)
    reading.add_all(names.CONDITION, [((*labels, name), int(name == member.condition)) for name in _CONDITIONS])
    breakers = member.breakers
    reading.add_all(
        names.BREAKER, [((*labels, kind), _STATES[breakers[kind]] if kind in breakers else 0) for kind in RULES]
    )
    supervisor = getattr(member.member, "supervisor", None)
    refused = "auth" in breakers or (supervisor is not None and supervisor.refusal is not None)
    reading.add(names.REFUSED, int(refused), *labels)
    if stats is None or member.member is None:
        return
    _read_engine(reading, labels, stats)
    cache = member.member.engine.cache_stats()
    for metric, name in _CACHE:
        reading.add(metric, cache[name], *labels)
    if supervisor is not None:
        reading.add(names.RESTARTS, supervisor.restarts, *labels)
    for (operation, outcome), count in getattr(member.member, "requests", {}).items():
        reading.add(names.KMS_REQUESTS, count, *labels, operation, outcome)
    _read_cluster(reading, member)


def _read_engine(reading: Reading, labels: tuple[str, str], stats: Mapping[str, Any]) -> None:
    for metric, name in _COUNTS:
        reading.add(metric, stats[name], *labels)
    reading.add_all(names.FAILURES, [((*labels, name), count) for name, count in stats["failed"].items()])
    for name in ("expired", "cancelled", "refused"):
        reading.add(names.DROPPED, stats[name], *labels, name)
    for metric, name in ((names.QUEUE, "queue"), (names.HSM, "hsm"), (names.VERIFY, "verify")):
        reading.add(metric, Buckets.of(stats[f"{name}_octaves"], stats[f"{name}_sum_ns"]), *labels)
    reading.add(names.QUEUE_OLDEST, stats["oldest_queued_ns"] / 1e9, *labels)
    reading.add(names.CALL_OLDEST, stats["oldest_call_ns"] / 1e9, *labels)
    for rung, count in stats["recoveries"].items():
        reading.add(names.RECOVERIES, count, *labels, rung)


def _read_cluster(reading: Reading, member: MemberSnapshot) -> None:
    health = getattr(member.member, "cluster_health", None)
    if health is None:
        return
    reading.add(names.CLUSTER_OK, int(health.ok), member.name)
    if health.checked_at is not None:
        reading.add(names.CLUSTER_CHECKED, health.checked_at, member.name)
    for zone, states in health.zones.items():
        for state, count in states.items():
            reading.add(names.CLUSTER_HSMS, count, member.name, zone, state)
