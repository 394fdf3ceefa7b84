"""What a target is made of: figures of one slice, and the ways in which those of one round become a number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal

from hsmcore_bench.suite.model import Goal, Sample
from hsmcore_bench.suite.stats import Round

Value = Callable[[Round], float | None]  # None: the slice has no such figure, or was too short for it


@dataclass(frozen=True, slots=True)
class Figure:
    """A number of one slice. Called with the name of a contender it is a term of a formula."""

    text: str
    of: Callable[[Sample], float | None]

    def __call__(self, contender: str) -> Term:
        return Term(self, contender)


@dataclass(frozen=True, slots=True)
class Term:
    """A figure of one contender."""

    figure: Figure
    contender: str

    def __str__(self) -> str:
        return f"{self.figure.text}({self.contender})"


@dataclass(frozen=True, slots=True)
class Way:
    """How terms become a number. In `text`, {0} is the first of them."""

    text: str
    of: Callable[..., float]


@dataclass(frozen=True, slots=True)
class Target(Goal):
    """A goal whose value comes from one round, if that has the contenders of these names."""

    needs: tuple[str, ...]
    value: Value


def _latency(name: Literal["p50", "p99", "p999", "mean"], text: str = "") -> Figure:
    def of(sample: Sample) -> float | None:
        return None if sample.latency_ns is None else float(getattr(sample.latency_ns, name)) / 1e3

    return Figure(text or name, of)


def _lag(sample: Sample) -> float | None:
    return None if sample.lag_ns is None else sample.lag_ns.p99 / 1e6


def _per_signature(
    name: Literal["cpu_seconds", "switches", "calls"], scale: float = 1.0
) -> Callable[..., float | None]:
    def of(sample: Sample) -> float | None:
        used = getattr(sample, name)
        return None if used is None or not sample.signatures else used / sample.signatures * scale

    return of


RATE: Final = Figure("rate", lambda s: s.rate)
P50: Final = _latency("p50")  # of latencies, in microseconds
P99: Final = _latency("p99")
P999: Final = _latency("p999", "p99.9")
MEAN: Final = _latency("mean")
LAG: Final = Figure("p99 of lag", _lag)  # milliseconds
CEILING: Final = Figure("ceiling", lambda s: s.ceiling)
CPU: Final = Figure("processor time", _per_signature("cpu_seconds", 1e6))  # microseconds a signature
USED: Final = Figure("processors in use", lambda s: None if s.cpu_seconds is None else s.cpu_seconds / s.seconds)
CLIENT: Final = Figure("client's processor time", lambda s: None if s.parts_ns is None else s.parts_ns["client"] / 1e3)
GATEWAY: Final = Figure(
    "gateway's processor time", lambda s: None if s.parts_ns is None else s.parts_ns["gateway"] / 1e3
)
LOOP: Final = Figure("loop's time", lambda s: None if s.parts_ns is None else s.parts_ns["loop"] / 1e3)
SWITCHES: Final = Figure("switches", _per_signature("switches"))
CALLS: Final = Figure("read and write calls", _per_signature("calls"))

ALONE: Final = Way("{0}", lambda a: a)
PERCENT: Final = Way("{0}", lambda a: 100.0 * a)
RATIO: Final = Way("{0} / {1}", lambda a, b: a / b)
MORE: Final = Way("{0} - {1}", lambda a, b: a - b)
LOST: Final = Way("1 - {0} / {1}", lambda a, b: 100.0 * (1.0 - a / b))
MORE_OVER: Final = Way("({0} - {1}) / {2}", lambda a, b, c: (a - b) / c)
BEYOND_FOUR: Final = Way("{0} - {1} - 4 × {2}", lambda a, b, c: a - b - 4.0 * c)
APART: Final = Way("|{0} / ({1} + {2} + 2 × {3}) - 1|", lambda a, b, c, d: 100.0 * abs(a / (b + c + 2.0 * d) - 1.0))


def queued(in_flight: int) -> Way:
    """A latency in microseconds, and the rate that all who are in flight wait for."""
    return Way(f"{{0}} / ({in_flight} / {{1}})", lambda latency, rate: latency * rate / (in_flight * 1e6))


def answered(interval_ms: int) -> Way:
    """A latency in microseconds, of the interval of a batch and 1.2 times what the device takes for a signature."""
    return Way(
        f"{{0}} / ({interval_ms} ms + 1.2 / {{1}})",
        lambda latency, ceiling: latency / 1e3 / (interval_ms + 1200.0 / ceiling),
    )


def target(
    name: str, what: str, bound: float | None, unit: str, way: Way, *terms: Term, at_least: bool = False
) -> Target:
    def value(r: Round) -> float | None:
        found = [term.figure.of(r[term.contender]) for term in terms]
        return None if None in found else way.of(*found)

    needs = tuple(dict.fromkeys(term.contender for term in terms))
    return Target(name, what, way.text.format(*terms), unit, bound, at_least, needs, value)


most = target
least = partial(target, at_least=True)


def relative(name: str, what: str, bound: float | None, unit: str, ours: str, theirs: str) -> Target:
    """At least so many times as fast as another contender."""
    return least(name, what, bound, unit, RATIO, RATE(ours), RATE(theirs))


def added(name: str, what: str, bound: float, ours: str, theirs: str) -> Target:
    """At most so many microseconds more of processor time for a signature."""
    return most(name, what, bound, "µs", MORE, CPU(ours), CPU(theirs))
