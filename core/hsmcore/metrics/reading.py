"""The values of all metrics at one moment."""

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
"""Upper bounds of the buckets in seconds, 8.2 µs to 17.2 s, each twice the one before. A bucket of an engine
(native/src/hist.c) lies in exactly one of them, so the counts are exact."""

_AT_A_STRETCH_NS: Final = 2_000_000
_PAUSE_S: Final = 50e-6


@dataclass(frozen=True, slots=True)
class Buckets:
    """A histogram: for each bound, the number of values up to it; the number of all values; their sum in seconds."""

    counts: list[int]
    total: int
    seconds: float

    @classmethod
    def of(cls, octaves: Iterable[int], sum_ns: int) -> Buckets:
        """Return the histogram of an engine's counts by octaves; see Engine.stats."""
        running = list(accumulate(octaves))
        return cls(running[FIRST_OCTAVE : LAST_OCTAVE + 1], running[-1], sum_ns / 1e9)


Value = float | Buckets
Sample = tuple[tuple[str, ...], Value]


class Reading:
    """Samples by metric, in the order of their addition. Each has the values of `labels` before those of its metric's
    own labels."""

    def __init__(self, labels: tuple[str, ...] = ()) -> None:
        self.labels = labels
        self.first: tuple[str, ...] = ()
        """The values of `labels` for what is added next."""
        self.samples: dict[Metric, list[Sample]] = {}

    def add(self, metric: Metric, value: Value, *labels: str) -> None:
        """Add one sample. `labels`: values of the metric's labels."""
        samples = self.samples.get(metric)
        if samples is None:
            samples = self.samples[metric] = []
        samples.append((self.first + labels, value))

    def add_all(self, metric: Metric, rows: Iterable[Sample]) -> None:
        """Add several samples of one metric."""
        self.samples.setdefault(metric, []).extend((self.first + labels, value) for labels, value in rows)


class TimeSlice:
    """Lets other threads run during a scrape: after 2 ms of work it sleeps for 50 µs, in a thread without an event
    loop. In the event loop's own thread it does nothing, since a sleep would only delay the loop."""

    def __init__(self, clock: Callable[[], int] = time.perf_counter_ns) -> None:
        self._clock = clock
        self._since = clock()
        try:
            asyncio.get_running_loop()
            self._yields = False
        except RuntimeError:
            self._yields = True

    def __call__(self) -> None:
        """Sleep if it is time. Call this after every few dozen microseconds of work."""
        if self._yields and self._clock() - self._since > _AT_A_STRETCH_NS:
            time.sleep(_PAUSE_S)
            self._since = self._clock()
