"""Histograms of durations: HdrHistograms of three significant digits, from a nanosecond to an hour."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from hdrh.histogram import HdrHistogram

SIGNIFICANT_DIGITS: Final = 3
HIGHEST_NS: Final = 3_600_000_000_000
"""An hour. What is longer counts as this."""

PERCENTILES: Final = (50.0, 75.0, 90.0, 95.0, 99.0, 99.9, 99.99, 99.999)


class Histogram:
    """One HdrHistogram, in nanoseconds."""

    __slots__ = ("_counts",)

    def __init__(self) -> None:
        self._counts: Any = HdrHistogram(1, HIGHEST_NS, SIGNIFICANT_DIGITS)

    @property
    def count(self) -> int:
        return int(self._counts.get_total_count())

    def add(self, ns: int, count: int = 1) -> None:
        """Count a duration."""
        self._counts.record_value(min(ns, HIGHEST_NS), count)

    def add_pairs(self, pairs: Iterable[int]) -> None:
        """Add what a generator reports: place in the array of counts, count, place, count, …"""
        numbers = iter(pairs)
        for place, count in zip(numbers, numbers, strict=True):
            self.add(self._counts.get_value_from_index(place), count)

    def add_all(self, other: Histogram) -> None:
        """Add another histogram."""
        self._counts.add(other._counts)

    def percentile(self, percent: float) -> int | None:
        """The duration at or below which `percent` of all lie; None if there are none."""
        return int(self._counts.get_value_at_percentile(percent)) if self.count else None

    def mean(self) -> float | None:
        """In nanoseconds, from the middle of each bucket."""
        return float(self._counts.get_mean_value()) if self.count else None

    def summary(self) -> dict[str, float | int | None]:
        """Percentiles, mean and largest value in nanoseconds, by name."""
        found = self._counts.get_percentile_to_value_dict([*PERCENTILES, 100.0]) if self.count else {}
        named = {f"p{percent:g}": found.get(percent) for percent in PERCENTILES}
        return {**named, "mean": self.mean(), "max": found.get(100.0), "count": self.count}

    def encoded(self) -> str:
        """As HdrHistogram's logs have it: V2, compressed, in base 64."""
        text: str = self._counts.encode().decode("ascii")
        return text
