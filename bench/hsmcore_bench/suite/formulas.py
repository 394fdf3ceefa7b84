"""What a target is, and the formulas over one round that targets are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from hsmcore_bench.suite.model import Goal
from hsmcore_bench.suite.stats import Round

Value = Callable[[Round], float | None]  # None: the slice was too short to have it


@dataclass(frozen=True, slots=True)
class Target(Goal):
    """A goal whose value comes from one round, if that has the contenders of these names."""

    needs: tuple[str, ...]
    value: Value


def relative(name: str, what: str, unit: str, bound: float, ours: str, theirs: str, formula: str = "") -> Target:
    """At least so many times as fast as another contender."""
    formula = formula or f"rate({ours}) / rate({theirs})"
    return Target(name, what, formula, unit, bound, True, (ours, theirs), lambda r: r[ours].rate / r[theirs].rate)


def fast(name: str, what: str, bound: float, ours: str) -> Target:
    """At least so many signatures a second."""
    return Target(name, what, f"rate({ours})", "/s", bound, True, (ours,), lambda r: r[ours].rate)


def tail_ms(name: str, what: str, bound: float, ours: str) -> Target:
    """At most so many milliseconds for 99 of a hundred calls."""

    def value(r: Round) -> float | None:
        latency = r[ours].latency_ns
        return None if latency is None else latency.p99 / 1e6

    return Target(name, what, f"p99({ours})", "ms", bound, False, (ours,), value)


def cost(name: str, what: str, bound: float, ours: str, bare: str) -> Target:
    """At most so many percent slower than without it."""
    formula = f"1 - rate({ours}) / rate({bare})"
    return Target(
        name, what, formula, "%", bound, False, (ours, bare), lambda r: 100.0 * (1.0 - r[ours].rate / r[bare].rate)
    )


def lag(name: str, what: str, ours: str) -> Target:
    """The event loop is late by at most 5 ms."""
    return Target(name, what, f"p99(lag of {ours})", "ms", 5.0, False, (ours,), lag_ms(ours))


def of_ceiling(name: str) -> Value:
    def value(r: Round) -> float | None:
        ceiling = r[name].ceiling
        return None if ceiling is None else r[name].rate / ceiling

    return value


def queued(name: str, what: str, bound: float, which: Literal["p50", "p99"], ours: str, in_flight: int) -> Target:
    """A latency, at most so many times as long as raw C would need for all that are in flight."""

    def value(r: Round) -> float | None:
        latency = r[ours].latency_ns
        return None if latency is None else getattr(latency, which) / (in_flight / r["raw"].rate * 1e9)

    formula = f"{which}({ours}) / ({in_flight} / rate(raw))"
    return Target(name, what, formula, "×", bound, False, (ours, "raw"), value)


def added(name: str, what: str, bound: float, ours: str, to: str) -> Target:
    """At most so many microseconds more, in the median."""

    def value(r: Round) -> float | None:
        mine, theirs = r[ours].latency_ns, r[to].latency_ns
        return None if mine is None or theirs is None else (mine.p50 - theirs.p50) / 1e3

    return Target(name, what, f"p50({ours}) - p50({to})", "µs", bound, False, (ours, to), value)


def above(name: str, what: str, bound: float, ours: str, to: str, floor: str) -> Target:
    """At most so many microseconds more than another contender and a floor that nothing can be below, in the median."""

    def value(r: Round) -> float | None:
        times = [r[contender].latency_ns for contender in (ours, to, floor)]
        mine, theirs, least = (None if t is None else t.p50 for t in times)
        return None if mine is None or theirs is None or least is None else (mine - theirs - least) / 1e3

    formula = f"p50({ours}) - p50({to}) - p50({floor})"
    return Target(name, what, formula, "µs", bound, False, (ours, to, floor), value)


def batched(name: str, what: str, ours: str, interval_ms: int) -> Target:
    """A p99 of at most the interval and 1.2 times what the device takes for a signature."""

    def value(r: Round) -> float | None:
        latency, ceiling = r[ours].latency_ns, r[ours].ceiling
        return None if latency is None or ceiling is None else latency.p99 / 1e6 / (interval_ms + 1200 / ceiling)

    formula = f"p99({ours}) / ({interval_ms} ms + 1.2 / ceiling)"
    return Target(name, what, formula, "×", 1.0, False, (ours,), value)


def beside(name: str, what: str, bound: float, ours: str, bare: str, extra: str) -> Target:
    """As long as the bare contender and the extra together, in the median; at most so many percent more or less."""

    def value(r: Round) -> float | None:
        times = [r[contender].latency_ns for contender in (ours, bare, extra)]
        mine, theirs, more = (None if t is None else t.p50 for t in times)
        return None if mine is None or theirs is None or more is None else 100.0 * abs(mine / (theirs + more) - 1.0)

    formula = f"|p50({ours}) / (p50({bare}) + p50({extra})) - 1|"
    return Target(name, what, formula, "%", bound, False, (ours, bare, extra), value)


def processor(name: str, what: str, bound: float, ours: str) -> Target:
    """At most so many microseconds of processor time a signature."""

    def value(r: Round) -> float | None:
        used = r[ours].cpu_seconds
        return None if used is None else used / r[ours].signatures * 1e6

    return Target(name, what, f"processor time({ours}) / signatures", "µs", bound, False, (ours,), value)


def side(name: str, what: str, bound: float, ours: str, which: Literal["client", "gateway"], less: str = "") -> Target:
    """At most so many microseconds of processor time a signature on this side of a gateway; `less`: more than there."""

    def value(r: Round) -> float | None:
        parts, bare = r[ours].parts_ns, r[less].cpu_seconds if less else 0.0
        if parts is None or bare is None:
            return None
        return parts[which] / 1e3 - (bare / r[less].signatures * 1e6 if less else 0.0)

    formula = f"processor time of the {which}({ours}) / signatures"
    needs = (ours, less) if less else (ours,)
    return Target(name, what, f"{formula} - the same of {less}" if less else formula, "µs", bound, False, needs, value)


def over(name: str, what: str, bound: float, ours: str, to: str, echo: str) -> Target:
    """What is added to another contender, at most so many times as long as an echo, in the median."""

    def value(r: Round) -> float | None:
        times = [r[contender].latency_ns for contender in (ours, to, echo)]
        mine, theirs, least = (None if t is None else t.p50 for t in times)
        return None if mine is None or theirs is None or least is None else (mine - theirs) / least

    formula = f"(p50({ours}) - p50({to})) / p50({echo})"
    return Target(name, what, formula, "×", bound, False, (ours, to, echo), value)


def tailed(name: str, what: str, ours: str, raw: str) -> Target:
    """A p99.9 at most half longer than raw C's."""
    return Target(name, what, f"p999({ours}) / p999({raw})", "×", 1.5, False, (ours, raw), tail(ours, raw))


def tail(name: str, per: str) -> Value:
    def value(r: Round) -> float | None:
        ours, theirs = r[name].latency_ns, r[per].latency_ns
        return None if ours is None or theirs is None else ours.p999 / theirs.p999

    return value


def lag_ms(name: str) -> Value:
    def value(r: Round) -> float | None:
        lag = r[name].lag_ns
        return None if lag is None else lag.p99 / 1e6

    return value
