"""The few statistics that the benchmark states: percentiles, medians with their lowest and highest value, and between
which values a median lies."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from statistics import median
from typing import Final, TypeVar

from hsmcore_bench.suite.model import Break, Percentiles, Sample, Spread, Switch

__all__ = [
    "DISTURBED",
    "LEAST_ROUNDS",
    "between",
    "interval",
    "median",
    "percentile",
    "percentiles",
    "ratios",
    "redrawn",
    "spread",
    "usable",
    "usable_breaks",
]

B = TypeVar("B", Break, Switch)
Round = Mapping[str, Sample]

DISTURBED = 0.05  # share of the machine that others may use during a slice that counts
ENOUGH_ROUNDS = 3
LEAST_ROUNDS: Final = 5
"""Fewer prove nothing: the interval of a median would be hardly wider than what was measured."""
RESAMPLES: Final = 1_000


def usable(rounds: Iterable[Round], names: Collection[str]) -> list[Round]:
    """The rounds in which all of `names` were measured undisturbed; if these are too few, all that have them.

    A slice is judged by what others did during it, never by its rate.
    """
    present = [r for r in rounds if all(name in r for name in names)]
    quiet = [r for r in present if all(r[name].others <= DISTURBED for name in names)]
    return quiet if len(quiet) >= ENOUGH_ROUNDS else present


def usable_breaks(breaks: Iterable[B], case: str) -> list[B]:
    """The failures of this case during which others left the machine alone; if these are too few, all of them."""
    own = [b for b in breaks if b.case == case]
    quiet = [b for b in own if b.others <= DISTURBED]
    return quiet if len(quiet) >= ENOUGH_ROUNDS else own


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value below which `share` (0..1) of the ascending `ordered` lie, interpolated between neighbours."""
    if not ordered:
        raise ValueError("no values")
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"a share lies between 0 and 1, not {share}")
    position = share * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def percentiles(values: Iterable[float]) -> Percentiles | None:
    """p50, p99, p99.9 and mean of `values`, in their unit; None when there are none."""
    ordered = sorted(values)
    if not ordered:
        return None
    return Percentiles(
        p50=percentile(ordered, 0.5),
        p99=percentile(ordered, 0.99),
        p999=percentile(ordered, 0.999),
        mean=sum(ordered) / len(ordered),
    )


def ratios(rounds: Iterable[Round], name: str, reference: str) -> list[float]:
    """The rate of one over that of the other, round by round."""
    found = usable(rounds, {name, reference})
    return [r[name].rate / r[reference].rate for r in found if r[reference].rate]


def between(values: Sequence[float], confidence: float) -> tuple[float, float] | None:
    """In which interval their median lies; None of too few of them."""
    if len(values) < LEAST_ROUNDS:
        return None
    return interval(partial(redrawn, values), confidence, len(values))


def redrawn(values: Sequence[float], dice: random.Random) -> float:
    """The median of as many of them, drawn with replacement."""
    return median(dice.choices(values, k=len(values)))


def interval(draw: Callable[[random.Random], float], confidence: float, seed: int) -> tuple[float, float]:
    """Between which values a figure lies, as sure as `confidence` (0..1) says: a percentile bootstrap, in which `draw`
    makes the figure from rounds that it draws again. The same for the same seed."""
    dice = random.Random(seed)
    drawn = sorted(draw(dice) for _ in range(RESAMPLES))
    tail = (1.0 - confidence) / 2
    return percentile(drawn, tail), percentile(drawn, 1.0 - tail)


def spread(values: Sequence[float]) -> Spread | None:
    """Median, lowest and highest of `values`; None when there are none."""
    if not values:
        return None
    return Spread(median=median(values), low=min(values), high=max(values))
