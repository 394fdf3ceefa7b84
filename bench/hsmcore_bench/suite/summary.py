"""From samples to one line per contender."""

from __future__ import annotations

from collections.abc import Sequence

from hsmcore_bench.suite.model import Summary
from hsmcore_bench.suite.result import Result
from hsmcore_bench.suite.stats import median, ratios, spread, usable


def summarise(result: Result) -> list[Summary]:
    """Medians over the rounds, in the contenders' order; those without samples are left out."""
    rounds = list(result.by_round().values())
    summaries = []
    for contender in result.contenders:
        samples = [r[contender.name] for r in usable(rounds, {contender.name})]
        rate = spread([sample.rate for sample in samples])
        if rate is None:
            continue
        summaries.append(
            Summary(
                contender=contender.name,
                rate=rate,
                ratio=spread(ratios(rounds, contender.name, contender.reference)) if contender.reference else None,
                p50_ns=_median([s.latency_ns.p50 for s in samples if s.latency_ns is not None]),
                p99_ns=_median([s.latency_ns.p99 for s in samples if s.latency_ns is not None]),
                p999_ns=_median([s.latency_ns.p999 for s in samples if s.latency_ns is not None]),
                lag_p99_ns=_median([s.lag_ns.p99 for s in samples if s.lag_ns is not None]),
                cpu_ns=_median([s.cpu_seconds / s.signatures * 1e9 for s in samples if s.cpu_seconds and s.signatures]),
                of_ceiling=spread([s.rate / s.ceiling for s in samples if s.ceiling is not None]),
            )
        )
    return summaries


def _median(values: Sequence[float]) -> float | None:
    return median(values) if values else None
