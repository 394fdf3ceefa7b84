"""What was read at one moment, metric by metric."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from hsmcore.metrics.catalog import Metric

FIRST_OCTAVE: Final = 13
LAST_OCTAVE: Final = 34
BOUNDS: Final[tuple[float, ...]] = tuple(((1 << octave) - 1) / 1e9 for octave in range(FIRST_OCTAVE, LAST_OCTAVE + 1))
"""Upper ends of the buckets in seconds: 8.2 µs to 17.2 s, each twice the one before. An engine's bucket lies in one of
them wholly (native/src/hist.c), so their counts are exact."""

_AT_A_STRETCH_NS: Final = 2_000_000
_PAUSE_S: Final = 50e-6


@dataclass(frozen=True, slots=True)
class Buckets:
    """A histogram: how many were at most as long as each bound, how many in all, and their sum in seconds."""

    counts: list[int]
    total: int
    seconds: float

    @classmethod
    def of(cls, octaves: Iterable[int], sum_ns: int) -> Buckets:
        """From an engine's counts by octaves; see Engine.stats."""
        running = list(accumulate(octaves))
        return cls(running[FIRST_OCTAVE : LAST_OCTAVE + 1], running[-1], sum_ns / 1e9)


Value = float | Buckets
Sample = tuple[tuple[str, ...], Value]


class Reading:
    """Samples by metric, in the order in which they were added."""

    def __init__(self) -> None:
        self.samples: dict[Metric, list[Sample]] = {}

    def add(self, metric: Metric, value: Value, *labels: str) -> None:
        """`labels`: values for the metric's labels."""
        samples = self.samples.get(metric)
        if samples is None:
            samples = self.samples[metric] = []
        samples.append((labels, value))

    def add_all(self, metric: Metric, rows: Iterable[Sample]) -> None:
        """Many of one metric."""
        self.samples.setdefault(metric, []).extend(rows)


class TimeSlice:
    """Lets other threads have the interpreter now and then; the event loop itself is not held up by its own scrape
    any longer than that takes."""

    def __init__(self, clock: Callable[[], int] = time.perf_counter_ns) -> None:
        self._clock = clock
        self._since = clock()
        try:
            asyncio.get_running_loop()
            self._polite = False
        except RuntimeError:
            self._polite = True

    def __call__(self) -> None:
        """Called every few dozen microseconds of work."""
        if self._polite and self._clock() - self._since > _AT_A_STRETCH_NS:
            time.sleep(_PAUSE_S)
            self._since = self._clock()
