"""Two runs side by side: what changed, how sure that is, and when nothing can be said.

Figures of one run are medians over its rounds; the interval of their change comes from drawing rounds again with
replacement (a percentile bootstrap), each run by itself: rounds of two runs do not belong together. A contender's rate
is divided by its reference's of the same round first, which takes the speed of the machine out of it. Rates and times
themselves are judged only where both runs had one and the same machine for themselves.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final, Literal

from hsmcore_bench.suite.model import Contender, Sample
from hsmcore_bench.suite.result import Result
from hsmcore_bench.suite.results import was_idle
from hsmcore_bench.suite.stats import LEAST_ROUNDS, Round, interval, ratios, redrawn, usable

CONFIDENCE: Final = 0.99  # of each line: in a table of a hundred lines, about one in a hundred is wrong
LEAST_CHANGE: Final = 0.01  # slices of one run differ from those of the next by about as much for no reason
NO_DIFFERENCE: Final = "no difference that this run could show"
MACHINE: Final = ("processors", "processor", "kernel", "module")

Call = Literal["better", "worse", "none", "too few rounds", "other machine", "busy machine"]
Figure = Callable[[Sample], float | None]


@dataclass(frozen=True, slots=True)
class Line:
    """One figure of one contender in both runs. `change`, `low` and `high` are relative: 0.1 is 10 % more."""

    contender: str
    title: str
    figure: str  # "rate", "rate ÷ raw", "p50", "p99", "CPU"
    unit: Literal["/s", "×", "ns"]
    before: float
    after: float
    change: float
    low: float | None  # of the interval; None with too few rounds
    high: float | None
    call: Call

    @property
    def verdict(self) -> str:
        if self.call in ("better", "worse"):
            word = {"better": "faster", "worse": "slower"} if self.unit != "ns" else {"better": "less", "worse": "more"}
            return word[self.call]
        if self.call == "none":
            return NO_DIFFERENCE
        return self.call


@dataclass(frozen=True, slots=True)
class Comparison:
    before: str  # when the runs were
    after: str
    machine: dict[str, tuple[object, object]]  # what differs between the machines
    busy: list[str]  # runs during which others used the machine, too
    lines: list[Line]
    only_before: list[str]
    only_after: list[str]


def compare(before: Result, after: Result) -> Comparison:
    """Every contender that both runs measured."""
    machine = {
        key: (before.environment.get(key), after.environment.get(key))
        for key in MACHINE
        if before.environment.get(key) != after.environment.get(key)
    }
    busy = [run.started for run in (before, after) if not was_idle(run)]
    unjudged: Call | None = "other machine" if machine else "busy machine" if busy else None
    known = {contender.name: contender for contender in before.contenders}
    measured = [{sample.contender for sample in run.samples} for run in (before, after)]
    shared = [c for c in after.contenders if c.name in known and c.name in measured[0] & measured[1]]
    lines = [line for c in shared if _same_load(known[c.name], c) for line in _lines(c, before, after, unjudged)]
    return Comparison(
        before.started,
        after.started,
        machine,
        busy,
        lines,
        sorted(measured[0] - measured[1]),
        sorted(measured[1] - measured[0]),
    )


def _same_load(one: Contender, other: Contender) -> bool:
    return (one.in_flight, one.sessions, one.message_bytes) == (other.in_flight, other.sessions, other.message_bytes)


def _lines(contender: Contender, before: Result, after: Result, unjudged: Call | None) -> Iterator[Line]:
    runs = [list(run.by_round().values()) for run in (before, after)]
    reference = contender.reference
    if reference is not None:
        values = [ratios(rounds, contender.name, reference) for rounds in runs]
        if all(values):
            yield line(contender, f"rate ÷ {reference}", "×", values[0], values[1])
    figures: tuple[tuple[str, Literal["/s", "ns"], Figure], ...] = (
        ("rate", "/s", lambda s: s.rate),
        ("p50", "ns", lambda s: None if s.latency_ns is None else s.latency_ns.p50),
        ("p99", "ns", lambda s: None if s.latency_ns is None else s.latency_ns.p99),
        ("CPU", "ns", lambda s: None if s.cpu_seconds is None else s.cpu_seconds / max(s.signatures, 1) * 1e9),
    )
    for name, unit, figure in figures[contender.kind.endswith("-open") :]:  # its rate is the one that was asked for
        values = [_values(rounds, contender.name, figure) for rounds in runs]
        if all(values):
            yield line(contender, name, unit, values[0], values[1], unjudged=unjudged)


def line(
    contender: Contender,
    figure: str,
    unit: Literal["/s", "×", "ns"],
    before: Sequence[float],
    after: Sequence[float],
    *,
    unjudged: Call | None = None,
) -> Line:
    """The medians of two samples, the interval of their change, and what may be said about it."""
    middle = median(before), median(after)
    change = middle[1] / middle[0] - 1.0 if middle[0] else 0.0
    low: float | None = None
    high: float | None = None
    call: Call = "too few rounds"
    if min(len(before), len(after)) >= LEAST_ROUNDS and middle[0]:
        low, high = change_between(before, after)
        call = _call(low, high, change, more_is_better=unit != "ns")
        call = unjudged or call
    return Line(contender.name, contender.title, figure, unit, *middle, change, low, high, call)


def change_between(before: Sequence[float], after: Sequence[float]) -> tuple[float, float]:
    """Between which the relative change of the median lies, as sure as CONFIDENCE says. The same for the same input.
    A draw whose base is 0 says nothing of a change and counts as none."""

    def draw(dice: random.Random) -> float:
        base, changed = redrawn(before, dice), redrawn(after, dice)
        return changed / base - 1.0 if base else 0.0

    return interval(draw, CONFIDENCE, len(before) * 1_000 + len(after))


def _call(low: float, high: float, change: float, *, more_is_better: bool) -> Call:
    if low <= 0.0 <= high or abs(change) < LEAST_CHANGE:
        return "none"
    return "better" if (change > 0.0) == more_is_better else "worse"


def _values(rounds: Sequence[Round], name: str, figure: Figure) -> list[float]:
    found = [figure(r[name]) for r in usable(rounds, {name})]
    return [value for value in found if value is not None]
