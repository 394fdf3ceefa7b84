"""Objectives: what a run must achieve, such as "p99 < 10ms" or "lost = 0"."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from hsmcore_bench.load.problems import UsageProblem
from hsmcore_bench.load.units import BYTES_OF_UNIT, SECONDS_OF_UNIT

_LATENCIES: Final = ("p50", "p75", "p90", "p95", "p99", "p99.9", "p99.99", "p99.999", "mean", "max")
_SERIES: Final = {"": "corrected", "uncorrected ": "uncorrected", "start ": "start"}
_COUNTS: Final = ("lost", "wrong", "twice", "failed", "unstarted", "signed", "cached")
_RATES: Final = ("rate", "offered")
_MEMORY: Final = "memory-growth"
_HOST_MEMORY: Final = "host-memory-growth"
_NS: Final = {unit: seconds * 1e9 for unit, seconds in SECONDS_OF_UNIT.items() if unit not in ("m", "h")}

Compare = Callable[[Any, Any], bool]
_COMPARISONS: Final[dict[str, Compare]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
    "==": operator.eq,
    "=": operator.eq,
}


def _metrics() -> dict[str, tuple[tuple[str, ...], Mapping[str, float]]]:
    """Name -> where its value stands in a result, and its units; no units: a bare number."""
    found: dict[str, tuple[tuple[str, ...], Mapping[str, float]]] = {
        prefix + name: (("latency_ns", series, name), _NS) for prefix, series in _SERIES.items() for name in _LATENCIES
    }
    found |= {name: (("counts", name), {}) for name in _COUNTS}
    found |= {name: (("rates", name), {"/s": 1}) for name in _RATES}
    found |= {f"ratio {name}": (("reference", "ratios", name), {"x": 1}) for name in ("p50", "p99", "p99.9")}
    sizes = {unit: float(size) for unit, size in BYTES_OF_UNIT.items()}
    found[_MEMORY] = (("memory", "growth_bytes"), sizes)
    found[_HOST_MEMORY] = (("memory", "hosts", "growth_bytes"), sizes)
    return found


METRICS: Final = _metrics()


@dataclass(frozen=True, slots=True)
class Objective:
    """A figure that must keep to a limit."""

    text: str
    metric: str
    comparison: str
    limit: float
    """In the unit of the result: nanoseconds, bytes, requests per second, or a number. A share of all requests (0..1)
    if `share`."""
    share: bool = False

    def judge(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """The verdict on a result. A figure that isn't there misses every objective."""
        value: Any = result
        for step in METRICS[self.metric][0]:
            value = value.get(step)
            if value is None:
                return {"objective": self.text, "met": False, "value": None, "unit": self.unit}
        if self.share:
            value = value / max(1, result["counts"]["planned"])
        met = bool(_COMPARISONS[self.comparison](value, self.limit))
        return {"objective": self.text, "met": met, "value": value, "unit": self.unit}

    @property
    def unit(self) -> str:
        """Of the value in a verdict; "" for numbers and shares."""
        return next(iter(METRICS[self.metric][1]), "")


def objective_of(text: str) -> Objective:
    """Parse one. Raises UsageProblem: for an unknown figure, and for a figure that needs a unit and has none."""
    match = re.fullmatch(r"\s*([a-z][a-z0-9. -]*?)\s*(<=|>=|==|=|<|>)\s*(\d+(?:\.\d+)?)\s*([%/A-Za-zµ]*)\s*", text)
    if match is None:
        raise UsageProblem(f"--objective {text!r}: expected a figure, a comparison and a limit, such as 'p99 < 10ms'")
    metric, comparison, number, unit = " ".join(match[1].split()), match[2], float(match[3]), match[4]
    if metric not in METRICS:
        raise UsageProblem(f"--objective {text!r}: no figure is named {metric!r}; {_known()}")
    units = METRICS[metric][1]
    if metric in _COUNTS:
        if unit == "%":
            return Objective(text, metric, comparison, number / 100, share=True)
        if unit:
            raise UsageProblem(f"--objective {text!r}: {metric} is a number of requests, or a share in %")
        return Objective(text, metric, comparison, number)
    if unit not in units:
        wrong = f"has no unit {unit!r}" if unit else "needs a unit"
        raise UsageProblem(f"--objective {text!r}: {metric} {wrong}: {', '.join(units)}")
    return Objective(text, metric, comparison, number * units[unit])


def _known() -> str:
    return (
        f"known are {', '.join(_LATENCIES)} (latency from the planned start), the same after 'uncorrected' or 'start', "
        f"'ratio p99.9' (p50, p99) with --beside-raw, {', '.join((*_COUNTS, *_RATES, _MEMORY, _HOST_MEMORY))}"
    )
