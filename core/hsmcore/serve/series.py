"""Rates and percentiles of each member for each second, kept for some minutes."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any, Final

from hsmcore.members.snapshot import added, quantile

POINTS: Final = 300
"""Seconds that are kept and that the charts show."""
QUANTILES: Final = (("p50", 500), ("p99", 990), ("p999", 999))


class Series:
    """One member. A point is the increase of its counters since the last one."""

    def __init__(self) -> None:
        self.points: deque[dict[str, Any]] = deque(maxlen=POINTS)
        self._at_ns = 0
        self._before: Mapping[str, Any] = {}
        self._counts: dict[int, int] = {}

    def add(self, at_ns: int, stats: Mapping[str, Any] | None) -> dict[str, Any]:
        """Take the present counters; None: the member does not run. Times in the point are in microseconds."""
        if stats is None:
            self._before, self._counts = {}, {}
            return self._keep({"t": at_ns // 1_000_000, "rate": 0.0, "failed": 0.0})
        counts = dict(stats["hsm_ns"])
        signed, failed = stats["signatures"], not_signed(stats)
        seconds = (at_ns - self._at_ns) / 1e9
        point: dict[str, Any] = {"t": at_ns // 1_000_000, "rate": 0.0, "failed": 0.0}
        before = self._before
        # Counters that went back belong to a member that was started again.
        if before and seconds > 0 and signed >= before["signed"] and failed >= before["failed"]:
            point["rate"] = round((signed - before["signed"]) / seconds, 1)
            point["failed"] = round((failed - before["failed"]) / seconds, 2)
            if signed > before["signed"]:  # failures took this time, not signatures
                point |= quantiles(added(self._counts, counts))
        self._at_ns, self._before, self._counts = at_ns, {"signed": signed, "failed": failed}, counts
        return self._keep(point)

    def _keep(self, point: dict[str, Any]) -> dict[str, Any]:
        self.points.append(point)
        return point


def not_signed(stats: Mapping[str, Any]) -> int:
    """Requests that ended without a signature, for the member's fault or the deadline's."""
    return int(stats["failures"] + stats["expired"])


def quantiles(histogram: list[tuple[int, int]]) -> dict[str, float]:
    """p50, p99 and p99.9 in microseconds, the upper bounds of their buckets; none without a count."""
    if sum(count for _, count in histogram) <= 0:
        return {}
    return {name: round(quantile(histogram, permille) / 1e3, 1) for name, permille in QUANTILES}
