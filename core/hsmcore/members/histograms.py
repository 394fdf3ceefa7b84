"""Reading an engine's histograms: what was added between two looks, and its quantiles."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

Rows = Iterable[tuple[int, int]]
"""(upper bound in ns, count since the start), ascending: Engine.stats()["hsm_ns"]."""


def added(before: Mapping[int, int], now: Mapping[int, int]) -> list[tuple[int, int]]:
    """The rows of the time between two looks. Counts are negative if the engine has started again."""
    return [(upper, count - before.get(upper, 0)) for upper, count in now.items()]


def quantile(rows: Sequence[tuple[int, int]], permille: int) -> int:
    """The upper bound in ns of the bucket that the quantile is in. The rows must have a count."""
    total, seen = sum(count for _, count in rows), 0
    for upper, count in rows:
        seen += count
        if seen * 1000 >= total * permille:
            return upper
    return rows[-1][0]
