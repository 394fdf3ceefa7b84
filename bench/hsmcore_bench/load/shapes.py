"""When requests start: shapes of load as stretches in which the rate changes in a straight line."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from hsmcore_bench.load.problems import UsageProblem

SPIKE_BEGINS: Final = 0.4
SPIKE_ENDS: Final = 0.6
"""Shares of the whole time."""
_MASK: Final = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Segment:
    """`seconds` in which the rate (requests per second) goes from `start` to `end`."""

    seconds: float
    start: float
    end: float

    @property
    def requests(self) -> float:
        """How many starts lie in it."""
        return (self.start + self.end) / 2 * self.seconds


@dataclass(frozen=True, slots=True)
class Shape:
    """A kind of load. `seconds` is how long it takes unless one says otherwise."""

    seconds: float
    needs_peak: bool
    about: str


SHAPES: Final = {
    "constant": Shape(10.0, False, "the same rate all the time"),
    "ramp": Shape(30.0, True, "from --rate to --peak in a straight line"),
    "spike": Shape(30.0, True, "--rate, for a fifth of the time in the middle --peak, --rate again"),
    "soak": Shape(600.0, False, "as constant, for ten minutes unless --duration says otherwise"),
}


def shape_of(name: str) -> Shape:
    """Raises UsageProblem for an unknown one."""
    if name not in SHAPES:
        raise UsageProblem(f"--shape {name}: expected one of {', '.join(SHAPES)}")
    return SHAPES[name]


def segments_of(name: str, rate: float, peak: float | None, seconds: float) -> tuple[Segment, ...]:
    """The stretches of a shape. Raises UsageProblem."""
    shape = shape_of(name)
    if shape.needs_peak != (peak is not None):
        raise UsageProblem(f"--shape {name} {'needs' if shape.needs_peak else 'has no'} --peak")
    if peak is None:
        return (Segment(seconds, rate, rate),)
    if name == "ramp":
        return (Segment(seconds, rate, peak),)
    spike = seconds * (SPIKE_ENDS - SPIKE_BEGINS)
    return (
        Segment(seconds * SPIKE_BEGINS, rate, rate),
        Segment(spike, peak, peak),
        Segment(seconds * (1 - SPIKE_ENDS), rate, rate),
    )


def shared(segments: Sequence[Segment], processes: int) -> tuple[Segment, ...]:
    """What each of so many processes has to start."""
    return tuple(Segment(part.seconds, part.start / processes, part.end / processes) for part in segments)


class Random:
    """SplitMix64 (Steele, Lea, Flood 2014): the same numbers as the generator in C has for a seed."""

    __slots__ = ("_state",)

    def __init__(self, seed: int) -> None:
        self._state = seed & _MASK

    def next(self) -> int:
        """64 bits."""
        self._state = z = (self._state + 0x9E3779B97F4A7C15) & _MASK
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        return z ^ (z >> 31)

    def pause(self) -> float:
        """Exponentially distributed with mean 1."""
        return -math.log1p(-(self.next() >> 11) * 2.0**-53)


def starts(segments: Sequence[Segment], *, phase: float = 0.0, poisson: bool = False, seed: int = 0) -> Iterator[int]:
    """The planned starts in nanoseconds from the beginning: the n-th one is where the integral of the rate reaches n +
    `phase`; with `poisson`, where the n-th event of a Poisson process of that rate falls. As
    bench/native/load/plan.c."""
    random = Random(seed)
    target = random.pause() if poisson else phase
    before = began = 0.0
    for segment in segments:
        requests = segment.requests
        slope = (segment.end - segment.start) / segment.seconds
        while (n := target - before) < requests:
            t = 2.0 * n / (segment.start + math.sqrt(segment.start**2 + 2.0 * slope * n)) if n > 0.0 else 0.0
            yield int((began + t) * 1e9)
            target += random.pause() if poisson else 1.0
        before += requests
        began += segment.seconds
