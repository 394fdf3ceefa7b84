"""What documents show beside the main table: what safety costs, and other libraries where the module is not the limit.
A result that lacks the contenders in question has neither."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from hsmcore_bench.harness import svg
from hsmcore_bench.harness.figures import duration
from hsmcore_bench.suite.formulas import added
from hsmcore_bench.suite.model import Contender
from hsmcore_bench.suite.picture import Row, rates
from hsmcore_bench.suite.result import Result
from hsmcore_bench.suite.stats import median, usable
from hsmcore_bench.suite.targets import TARGETS

SAFETIES: Final = (
    *("ours-process-64", "noop-process-256", "failover-64", "failover-noop-256"),
    *("audit-write", "audit-fsync", "audit-5ms-fsync", "audit-noop-fsync", "failover-audit-noop-256"),
    *("stack-64", "stack-256", "stack-noop-256"),
)
"""Each alone, then all together; shown where all together were measured."""
ON_DEVICE: Final = ("device-5ms-raw", "device-5ms-ours-256", "device-5ms-executor", "device-5ms-pykcs11")
ON_NOOP: Final = ("noop-256", "noop-executor", "noop-pykcs11")
PEERS: Final = ("pkcs11-executor", "pkcs11-shared", "pykcs11")


def blocks(result: Result) -> list[str]:
    """Markdown."""
    return [*_safety_table(result), *_peer_table(result)]


def charts(result: Result) -> list[tuple[str, svg.Chart]]:
    """With their headings."""
    made = []
    if safe := _safeties(result):
        about = "what safety leaves: rate ÷ that of the same without it (the stack on network-5ms: ÷ raw C's)"
        made.append((f"{about}; the thick line is the target", rates(safe, bounds(result))))
    if peers := _peers(result):
        made.append(
            ("on a network device, 5 ms a signature, 128 at once: rate ÷ raw C's of the same round", rates(peers))
        )
    return made


def bounds(result: Result) -> dict[str, float]:
    """What a contender's rate must be of its reference's, where a target says so."""
    needs = {target.name: target.needs for target in TARGETS}
    pairs = {(contender.name, contender.reference) for contender in result.contenders}
    rates = [v for v in result.targets if needs.get(v.name) in pairs and "rate(" in v.formula]
    own = [(needs[v.name][0], v.bound, v.unit) for v in rates if v.bound is not None]
    return {name: 1.0 - bound / 100.0 if unit == "%" else bound for name, bound, unit in own}


def measured(result: Result, names: Sequence[str]) -> list[Row]:
    """Those of these contenders that were measured, in this order."""
    summaries = {summary.contender: summary for summary in result.summaries}
    contenders = {contender.name: contender for contender in result.contenders}
    return [(contenders[name], summaries[name]) for name in names if name in contenders and name in summaries]


def _safeties(result: Result) -> list[Row]:
    found = measured(result, SAFETIES)
    return found if any(contender.scenario == "stack" for contender, _ in found) else []


def _safety_table(result: Result) -> list[str]:
    found, least = _safeties(result), bounds(result)
    lines = ["| with | signatures/s | × without | target | processor time added | p50 | p99 |"]
    lines.append("|---|--:|--:|--:|--:|--:|--:|")
    for contender, summary in found:
        bound = f"≥ {least[contender.name]:g}" if contender.name in least else ""
        times = [duration(summary.p50_ns), duration(summary.p99_ns)]
        more = added_by(result, contender)
        lines.append(f"| {contender.title} | {summary.rate.median:,.0f} | {_ratio((contender, summary))} | {bound} | ")
        lines[-1] += f"{'' if more is None else f'{more:.1f} µs'} | "
        lines[-1] += f"{' | '.join(times)} |"
    return ["\n".join(lines)] if found else []


def added_by(result: Result, contender: Contender) -> float | None:
    """Microseconds of a signature more than without it, in the median of the rounds."""
    if contender.reference is None:
        return None
    found = added("", "", 0.0, contender.name, contender.reference)
    values = [value for r in usable(result.by_round().values(), found.needs) if (value := found.value(r)) is not None]
    return median(values) if values else None


def _peers(result: Result) -> list[Row]:
    found = measured(result, ON_DEVICE)
    return found if len(found) == len(ON_DEVICE) else []


def _peer_table(result: Result) -> list[str]:
    found = _peers(result)
    if not found:
        return []
    slower = [1.0 / summary.ratio.median for _, summary in measured(result, PEERS) if summary.ratio is not None]
    lines = ["| | signatures/s | × raw C | p50 | p99 |", "|---|--:|--:|--:|--:|"]
    for contender, summary in (*found, *measured(result, ON_NOOP)):
        where = "no-op module" if contender.device is None else "network-5ms"
        cells = [f"{summary.rate.median:,.0f}", _ratio((contender, summary))]
        cells += [duration(summary.p50_ns), duration(summary.p99_ns)]
        lines.append(f"| {where}: {contender.title} | {' | '.join(cells)} |")
    if not slower:
        return ["\n".join(lines)]
    said = f"raw C itself is only {min(slower):.1f} to {max(slower):.1f} × as fast as other libraries"
    return [f"With SoftHSM on these processors {said}. Where the module is not the limit:", "\n".join(lines)]


def _ratio(row: Row) -> str:
    ratio = row[1].ratio
    return "" if ratio is None else f"{ratio.median:.3f}"
