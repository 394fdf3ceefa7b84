"""Is a member slower than usual? From the histograms that the engine keeps anyway, so a signature pays nothing.

A window is the difference of the histogram since the last look. Its median is compared with the member's usual median;
a member that is always slow is no outlier.
"""

from __future__ import annotations

from typing import Final

from hsmcore.members.snapshot import Rows, added, quantile

WINDOW_MIN: Final = 20
"""Signatures that a window needs to count."""
HISTORY_MIN: Final = 10
"""Windows that the history needs to count."""
FACTOR: Final = 8
"""A window whose median is this many times the usual one is an outlier."""
FLOOR_NS: Final = 5_000_000
"""A faster median is never an outlier: the cause may be the machine and not the member."""
WINDOWS: Final = 3
"""Outliers in a row that make a member slow."""
SMOOTHING: Final = 16
"""The usual value moves by 1/16 of the difference with each window."""


class LatencyWatch:
    """The history of one member. Times in nanoseconds."""

    __slots__ = ("_before", "_median", "_outliers", "_windows", "p99")

    def __init__(self) -> None:
        self.p99 = 0
        """The usual 99th percentile; 0: unknown."""
        self._median = 0
        self._windows = 0
        self._outliers = 0
        self._before: dict[int, int] = {}

    def look(self, histogram: Rows) -> bool:
        """Add the present histogram. Returns whether the member has become slow."""
        counts = dict(histogram)
        window = added(self._before, counts)
        total = sum(count for _, count in window)
        if total < 0:  # the engine has started again and counts from 0
            self._before = counts
            return False
        if total < WINDOW_MIN:
            return False
        self._before = counts
        median, p99 = quantile(window, 500), quantile(window, 990)
        if self._windows >= HISTORY_MIN and median > max(FLOOR_NS, FACTOR * self._median):
            self._outliers += 1
            return self._outliers >= WINDOWS
        self._outliers = 0
        self._windows += 1
        self._median = _smoothed(self._median, median)
        self.p99 = _smoothed(self.p99, p99)
        return False

    def forget_outliers(self) -> None:
        """Reset the count of outliers."""
        self._outliers = 0


def _smoothed(usual: int, value: int) -> int:
    return value if usual == 0 else usual + (value - usual) // SMOOTHING
