"""Differences and quantiles of an engine's histograms."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

Rows = Iterable[tuple[int, int]]
"""(upper bound in ns, count since the start), ascending: Engine.stats()["hsm_ns"]."""


def added(before: Mapping[int, int], now: Mapping[int, int]) -> list[tuple[int, int]]:
    """Return the rows of the time between two readings. Counts are negative if the engine was restarted."""
    return [(upper, count - before.get(upper, 0)) for upper, count in now.items()]


def quantile(rows: Sequence[tuple[int, int]], permille: int) -> int:
    """Return the upper bound in ns of the quantile's bucket. The sum of counts must not be 0."""
    total, seen = sum(count for _, count in rows), 0
    for upper, count in rows:
        seen += count
        if seen * 1000 >= total * permille:
            return upper
    return rows[-1][0]
