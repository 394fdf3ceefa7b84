"""Is a member slow by its own standards? From the histograms that the engine keeps anyway, so a signature pays nothing.

A window is what was added to the histogram since the last look. Its median is compared with the median that this
member used to have; a member that is always slow is no outlier.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

WINDOW_MIN: Final = 20
"""Signatures that a window must have to say anything."""
HISTORY_MIN: Final = 10
"""Windows before the history says anything."""
FACTOR: Final = 8
"""A window whose median is this many times the usual one is an outlier."""
FLOOR_NS: Final = 5_000_000
"""Nothing faster than this is an outlier, whatever the history: it may be the machine and not the member."""
WINDOWS: Final = 3
"""So many outliers in a row make a member slow."""
SMOOTHING: Final = 16
"""The usual value moves by 1/16 of the difference with each window."""

Histogram = Iterable[tuple[int, int]]
"""(upper bound in ns, count since the start), ascending: Engine.stats()["hsm_ns"]."""


class LatencyWatch:
    """The history of one member. Times in nanoseconds."""

    __slots__ = ("_before", "_median", "_outliers", "_windows", "p99")

    def __init__(self) -> None:
        self.p99 = 0
        """The usual 99th percentile; 0: not known yet."""
        self._median = 0
        self._windows = 0
        self._outliers = 0
        self._before: dict[int, int] = {}

    def look(self, histogram: Histogram) -> bool:
        """Take the histogram as it is now. Returns whether the member has become slow."""
        counts = dict(histogram)
        added = [(upper, count - self._before.get(upper, 0)) for upper, count in counts.items()]
        total = sum(count for _, count in added)
        if total < 0:  # the engine was started anew and counts from nought
            self._before = counts
            return False
        if total < WINDOW_MIN:
            return False
        self._before = counts
        median, p99 = _quantile(added, total, 50), _quantile(added, total, 99)
        if self._windows >= HISTORY_MIN and median > max(FLOOR_NS, FACTOR * self._median):
            self._outliers += 1
            return self._outliers >= WINDOWS
        self._outliers = 0
        self._windows += 1
        self._median = _smoothed(self._median, median)
        self.p99 = _smoothed(self.p99, p99)
        return False

    def forget_outliers(self) -> None:
        """It has been dealt with; what comes next is judged anew."""
        self._outliers = 0


def _smoothed(usual: int, value: int) -> int:
    return value if usual == 0 else usual + (value - usual) // SMOOTHING


def _quantile(added: list[tuple[int, int]], total: int, percent: int) -> int:
    rank, seen = (total * percent + 99) // 100, 0
    for upper, count in added:
        seen += count
        if seen >= rank:
            return upper
    return added[-1][0]
