"""The result of a run: everything as JSON-ready data, and what a person wants to read of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from hsmcore_bench.load.beside import Reference
from hsmcore_bench.load.buckets import PERCENTILES
from hsmcore_bench.load.objectives import Objective
from hsmcore_bench.load.run import Outcome, Plan
from hsmcore_bench.load.target import Target

_ALWAYS: Final = ("planned", "started", "signed", "failed", "lost", "twice", "cached", "unstarted")
_LATE_NS: Final = 10e6
"""A generator whose starts are later than this (p99) did not offer what was asked for."""


def result_of(
    plan: Plan,
    target: Target,
    outcome: Outcome,
    objectives: Sequence[Objective],
    settings: Mapping[str, Any],
    environment: Mapping[str, Any],
    reference: Reference | None = None,
) -> dict[str, Any]:
    """Everything. `settings` are those of the command, `environment` that of the machine."""
    counts = {name: outcome.counts[name] for name in _ALWAYS}
    if outcome.verdict is not None:
        counts |= {name: outcome.counts[name] for name in ("wrong", "verified")}
    seconds = plan.seconds if outcome.signal is None else outcome.last_answer
    result: dict[str, Any] = {
        "interrupted": outcome.signal is not None,
        "target": {
            "name": target.name,
            "chaos": bool(target.sockets),
            "configSha256": target.config.sha256(),
            "keys": [{"algorithm": algorithm, "publicKey": key.hex()} for algorithm, key in outcome.keys],
        },
        "settings": {
            **settings,
            "segments": [{"seconds": s.seconds, "from": s.start, "to": s.end} for s in plan.segments],
            "mix": [
                {"name": k.name, "share": k.share, "smallest": k.smallest, "largest": k.largest} for k in plan.kinds
            ],
        },
        "environment": environment,
        "counts": counts,
        "errors": dict(outcome.errors),
        "rates": {
            "planned": plan.requests / plan.seconds,
            "offered": counts["started"] / seconds if seconds else 0.0,
            "rate": counts["signed"] / max(seconds, outcome.last_answer) if seconds else 0.0,
        },
        "seconds": {"planned": plan.seconds, "last_answer": outcome.last_answer},
        "latency_ns": {name: histogram.summary() for name, histogram in outcome.histograms.items()},
        "timeline": outcome.timeline,
        "memory": outcome.memory.summary(),
        "faults": {"told": outcome.told, "struck": outcome.struck},
    }
    if reference is not None:
        result["reference"] = reference.summary()
    result["objectives"] = [objective.judge(result) for objective in objectives]
    result["warnings"] = _warnings(plan, result)
    result["ok"] = not result["interrupted"] and all(verdict["met"] for verdict in result["objectives"])
    return result


def _warnings(plan: Plan, result: Mapping[str, Any]) -> list[str]:
    found = []
    late = result["latency_ns"]["start"]["p99"]
    if plan.path != "raw" and late is not None and late > _LATE_NS:
        other = "--path ring, or more --processes" if plan.path == "facade" else "more --processes"
        found.append(
            f"1 % of the requests started more than {late / 1e6:.0f} ms late: the generator could not keep up, or the "
            f"machine was busy. Try {other}, or a lower rate."
        )
    others = result["environment"].get("others")
    if others is not None and others > 0.05:
        found.append(f"others used {others:.0%} of the machine's processors meanwhile: repeat it when it is quiet.")
    refused = [entry for entry in result["faults"]["told"] if entry.get("refused") or not entry["modules"]]
    if refused:
        found.append(f"{len(refused)} faults reached no module: {refused[0].get('refused') or 'none was running'}.")
    return found


def text_of(result: Mapping[str, Any]) -> str:
    """For a terminal or a pipe."""
    counts, rates = result["counts"], result["rates"]
    lines = [
        f"on       {result['target']['name']}, path {result['settings']['path']}",
        f"rate     {rates['rate']:,.0f}/s signed, {rates['offered']:,.0f}/s started, {rates['planned']:,.0f}/s planned",
        "count    " + ", ".join(f"{value:,} {name}" for name, value in counts.items() if value or name == "lost"),
    ]
    if result["errors"]:
        named = sorted(result["errors"].items(), key=lambda item: -item[1])
        lines.append("errors   " + ", ".join(f"{count:,} {status}" for status, count in named))
    if result["faults"]["told"]:
        struck = ", ".join(f"{count} {action}" for action, count in result["faults"]["struck"].items()) or "none"
        lines.append(f"faults   {len(result['faults']['told'])} told, struck: {struck}")
    memory = result["memory"]
    for title, found in (("memory", memory), ("hosts", memory["hosts"])):
        if found["growth_bytes"] is not None and found["most_bytes"]:
            most, growth = found["most_bytes"] / 2**20, found["growth_bytes"] / 2**20
            lines.append(f"{title:<8} {most:.1f} MiB of memory, grew by {growth:+.1f} MiB")
    lines += ["", *_latencies(result["latency_ns"])]
    if "reference" in result:
        lines += ["", _compared(result["reference"])]
    if result["objectives"]:
        lines.append("")
        lines += [
            f"{'met   ' if verdict['met'] else 'MISSED'}  {verdict['objective']}{_shown(verdict)}"
            for verdict in result["objectives"]
        ]
    lines += [f"\nnote: {warning}" for warning in result["warnings"]]
    if result["interrupted"]:
        lines.append("\ninterrupted: what was started was answered, the rest was not started")
    return "\n".join(lines)


def _compared(reference: Mapping[str, Any]) -> str:
    found = [
        f"{name} {ratio:.2f}x ({min(reference['rounds'][name]):.2f}-{max(reference['rounds'][name]):.2f})"
        for name, ratio in reference["ratios"].items()
        if ratio is not None
    ]
    return "beside raw C at the same rate, in turn, median of the rounds (lowest-highest): " + ", ".join(found)


def _shown(verdict: Mapping[str, Any]) -> str:
    if verdict["met"] or verdict["value"] is None:
        return ""
    return (
        f"   (is {verdict['value'] / 1e6:.3f} ms)"
        if verdict["unit"] == "ns"
        else f"   (is {_number(verdict['value'])})"
    )


def _number(value: float) -> str:
    """Four figures at least, thousands grouped, no exponent."""
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:,.4g}"


def _latencies(series: Mapping[str, Mapping[str, float | None]]) -> list[str]:
    titles = {"corrected": "from planned start", "uncorrected": "from actual start", "start": "start was late by"}
    names = [f"p{percent:g}" for percent in PERCENTILES if percent >= 50] + ["max"]
    rows = [f"{'ms':<8} " + "".join(f"{title:>20}" for title in titles.values())]
    for name in names:
        values = [_told(series[key], name) for key in titles]
        rows.append(f"{name:<8} " + "".join(f"{'-' if v is None else f'{v / 1e6:,.3f}':>20}" for v in values))
    return rows


def _told(summary: Mapping[str, float | None], name: str) -> float | None:
    """A percentile that at least one of the durations is beyond: of 250, p99.999 would only repeat the largest."""
    beyond = 1.0 if name == "max" else (summary["count"] or 0) * (1 - float(name[1:]) / 100)
    return summary[name] if beyond > 0.999 else None
