"""Histograms of durations in the layout of an HdrHistogram: three significant digits, lowest value 1 ns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

SIGNIFICANT_DIGITS: Final = 3
HIGHEST_NS: Final = 3_600_000_000_000
"""An hour. What is longer counts as this."""
_HALF_BITS: Final = 10  # half of 2,048 sub-buckets, which is what three digits need
_SUB_BITS: Final = _HALF_BITS + 1

PERCENTILES: Final = (50.0, 75.0, 90.0, 95.0, 99.0, 99.9, 99.99, 99.999)


def bucket_of(ns: int) -> int:
    """The bucket that a duration falls into."""
    shift = max(0, min(ns, HIGHEST_NS).bit_length() - _SUB_BITS)
    return (shift << _HALF_BITS) + (min(ns, HIGHEST_NS) >> shift)


def bounds_of(bucket: int) -> tuple[int, int]:
    """The lowest and the highest duration of a bucket, in nanoseconds."""
    if bucket < 1 << _SUB_BITS:
        return bucket, bucket
    shift = (bucket >> _HALF_BITS) - 1
    lowest = (bucket - (shift << _HALF_BITS)) << shift
    return lowest, lowest + (1 << shift) - 1


class Histogram:
    """Counts by bucket."""

    __slots__ = ("_counts", "count")

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self.count = 0

    def add(self, ns: int, count: int = 1) -> None:
        """Count a duration."""
        self._add(bucket_of(ns), count)

    def add_pairs(self, pairs: Iterable[int]) -> None:
        """Add what a generator reports: bucket, count, bucket, count, …"""
        numbers = iter(pairs)
        for bucket, count in zip(numbers, numbers, strict=True):
            self._add(bucket, count)

    def add_all(self, other: Histogram) -> None:
        """Add another histogram."""
        for bucket, count in other._counts.items():
            self._add(bucket, count)

    def items(self) -> Iterator[tuple[int, int]]:
        """The highest duration of each bucket, and its count, in ascending order."""
        return ((bounds_of(bucket)[1], self._counts[bucket]) for bucket in sorted(self._counts))

    def percentile(self, percent: float) -> int | None:
        """The duration at or below which `percent` of all lie; None if there are none."""
        if not self.count:
            return None
        # As HdrHistogram has it: at least one, and rounded to the nearest whole one.
        wanted, seen = max(1, int(percent / 100 * self.count + 0.5)), 0
        for value, count in self.items():
            seen += count
            if seen >= wanted:
                return value
        return None

    def mean(self) -> float | None:
        """In nanoseconds, from the middle of each bucket."""
        if not self.count:
            return None
        return sum(sum(bounds_of(bucket)) / 2 * count for bucket, count in self._counts.items()) / self.count

    def summary(self) -> dict[str, float | int | None]:
        """Percentiles, mean and largest value in nanoseconds, by name."""
        named: dict[str, float | int | None] = {f"p{percent:g}": self.percentile(percent) for percent in PERCENTILES}
        return {**named, "mean": self.mean(), "max": self.percentile(100.0), "count": self.count}

    def _add(self, bucket: int, count: int) -> None:
        self._counts[bucket] = self._counts.get(bucket, 0) + count
        self.count += count
