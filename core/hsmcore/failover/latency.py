"""Is a member slow by its own standards? From the histograms that the engine keeps anyway, so a signature pays nothing.

A window is what was added to the histogram since the last look. Its median is compared with the median that this
member used to have; a member that is always slow is no outlier.
"""

from __future__ import annotations

from typing import Final

from hsmcore.members.histograms import Rows, added, quantile

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

    def look(self, histogram: Rows) -> bool:
        """Take the histogram as it is now. Returns whether the member has become slow."""
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
        """It has been dealt with; what comes next is judged anew."""
        self._outliers = 0


def _smoothed(usual: int, value: int) -> int:
    return value if usual == 0 else usual + (value - usual) // SMOOTHING
