"""A run in turn with the reference: raw C at the same rate on the same token, round after round."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any, Final

from hsmcore_bench.load.buckets import Histogram
from hsmcore_bench.load.problems import UsageProblem
from hsmcore_bench.load.run import Outcome, Plan, Watcher, run
from hsmcore_bench.load.target import Target

COMPARED: Final = ("p50", "p99", "p99.9")
_SHORTEST: Final = 0.5
"""Seconds of a round."""


@dataclass(slots=True)
class Reference:
    """What raw C did, and how many times as long ours took in each round."""

    outcome: Outcome = field(default_factory=Outcome)
    ratios: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in COMPARED})

    def summary(self) -> dict[str, Any]:
        """Its figures, and the median, lowest and highest ratio of the corrected percentiles."""
        return {
            "counts": dict(self.outcome.counts),
            "latency_ns": {name: histogram.summary() for name, histogram in self.outcome.histograms.items()},
            "ratios": {name: median(found) if found else None for name, found in self.ratios.items()},
            "rounds": self.ratios,
        }

    def compare(self, ours: Histogram, theirs: Histogram) -> None:
        """Take in one round."""
        mine, other = ours.summary(), theirs.summary()
        for name, found in self.ratios.items():
            one, two = mine[name], other[name]
            if one is not None and two:
                found.append(one / two)


def run_beside(plan: Plan, target: Target, watch: Watcher, rounds: int) -> tuple[Outcome, Reference]:
    """As run(), in so many parts between which raw C does the same; the first of each pair alternates. Raises
    UsageProblem where a plan can't be divided."""
    if plan.path == "raw" or plan.faults or plan.hdr is not None or len(plan.segments) != 1:
        raise UsageProblem("--beside-raw is for a constant rate without faults and --hdr, on --path facade or ring")
    [segment] = plan.segments
    if segment.start != segment.end or segment.seconds / rounds < _SHORTEST:
        raise UsageProblem(f"--beside-raw is for a constant rate, and {rounds} rounds of at least {_SHORTEST} s")
    part = replace(plan, segments=(replace(segment, seconds=segment.seconds / rounds),))
    total, reference = Outcome(), Reference()
    for number in range(rounds):
        ours = replace(part, seed=plan.seed + number)
        theirs = replace(ours, path="raw", processes=1)
        done = {turn.path: run(turn, target, watch) for turn in ((ours, theirs), (theirs, ours))[number % 2]}
        total.add(done[plan.path])
        reference.outcome.add(done["raw"])
        reference.compare(done[plan.path].histograms["corrected"], done["raw"].histograms["corrected"])
        if total.signal is not None or reference.outcome.signal is not None:
            total.signal = total.signal or reference.outcome.signal
            break
    return total, reference
