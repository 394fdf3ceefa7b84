"""What the demonstration found, as numbers and as text."""

from __future__ import annotations

import math
import os
import statistics
from typing import Any

from hsmcore_bench.demo.runner import Outcome


def percentile(ordered: list[int], share: float) -> int:
    """The smallest value that a `share` of all does not exceed (nearest rank)."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0


def summary(outcome: Outcome, *, account: str, member: str, sessions: int, in_flight: int) -> dict[str, Any]:
    """Everything, for --json. Rates are signatures a second, latencies milliseconds."""
    latencies = sorted(outcome.latencies_ns)
    signed = len(latencies)
    return {
        "ok": outcome.good,
        "account": account,
        "member": member,
        "sessions": sessions,
        "cores": os.cpu_count(),
        "inFlight": in_flight,
        **outcome.counts(),
        "signingRate": round(signed / outcome.signing_ns * 1e9, 1) if outcome.signing_ns else 0.0,
        "latencyMs": {
            name: round(percentile(latencies, share) / 1e6, 3)
            for name, share in (("p50", 0.5), ("p99", 0.99), ("p999", 0.999))
        },
        "rawRate": round(statistics.median(outcome.raw_rates), 1) if outcome.raw_rates else None,
        "ratioToRaw": round(statistics.median(outcome.ratios), 4) if outcome.ratios else None,
        "tampered": {"refusedAs": outcome.tampered, "intactAccepted": outcome.intact_accepted},
    }


def text(result: dict[str, Any]) -> str:
    """The summary for a person."""
    return _columns([*_transactions(result), *_rates(result), _tampered(result)])


def failover_text(played: dict[str, Any]) -> str:
    """The same of the second act."""
    signed = ", ".join(f"{count:,} by {member}" for member, count in played["signedBy"].items())
    pause = f"{played['longestPauseMs']:.1f} ms without a signature, at {played['ratePerSecond']} transactions/s"
    times = {event["event"]: event["atSeconds"] for event in played["events"]}
    lines = [*_transactions(played), ("signed", signed), ("longest pause", pause)]
    for what, cause, name in (("failover", "pulled", "failover after"), ("failback", "put-back", "failback after")):
        took = f"{times[what] - times[cause]:.3f} s" if {what, cause} <= times.keys() else "IT DID NOT COME"
        lines.append((name, took))
    return _columns(lines)


def fleet_text(played: dict[str, Any]) -> str:
    """The same of the fleet's act."""
    blocks = ", ".join(f"{count:,} by {host}" for host, count in sorted(played["blocksByHost"].items()))
    parts = zip(played["takeovers"], played["takeoversOpening"], strict=True)
    took = ", ".join(f"{all_:.2f} s" + f" ({late:.2f} s to open)" * (late > 0) for all_, late in parts)
    again = sum(played["transactionsRefusedByLedger"].values())
    books = "balance" if played["booksBalance"] else "DO NOT BALANCE"
    return _columns(
        [
            ("blocks", f"{played['blocks']:,}: {blocks}"),
            ("two blocks at a position", f"{played['positionsWithTwoBlocks']}"),
            ("transactions", f"{played['transactionsExecuted']:,} executed, {played['transactionsMissing']} missing"),
            ("executed twice", f"{played['transactionsExecutedTwice']} ({again} handed in again and refused)"),
            ("takeover after", f"{took}, with leases of {played['ttlMs'] / 1e3:.1f} s"),
            ("refused to a former holder", f"{played['blocksRefusedToFormerHolder']} blocks"),
            ("the books", books),
        ]
    )


def rotation_text(played: dict[str, Any]) -> str:
    """The same of the third act."""
    signed = ", ".join(f"{count:,} by key {key[:8]}" for key, count in played["signedBy"].items())
    pause = f"{played['longestPauseMs']:.1f} ms without a signature, at {played['ratePerSecond']} transactions/s"
    old = f"refused by the ledger ({played['oldKeyRefusedAs']})" if played["oldKeyRefusedAs"] else "NOT REFUSED"
    new = "accepted" if played["newKeyAccepted"] else "REFUSED"
    return _columns(
        [
            *_transactions(played),
            ("signed", f"{signed}; {played['rebuilt']:,} built again for the new key"),
            ("longest pause", pause),
            ("old key", f"what it had signed in advance: {old}; the same by the new key: {new}"),
        ]
    )


def _columns(lines: list[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines)


def _transactions(result: dict[str, Any]) -> list[tuple[str, str]]:
    refused, failed = sum(result["refused"].values()), sum(result["failed"].values())
    books = "balance" if result["booksBalance"] else "DO NOT BALANCE"
    counts = f"{result['executed']:,} executed, {refused:,} refused, {failed:,} failed, {result['lost']:,} lost"
    lines = [("transactions", counts), ("ledger", f"LiteSVM verified every signature; the books {books}")]
    for kind in ("refused", "failed"):
        lines += [(kind, f"{count:,} x {reason}") for reason, count in result[kind].items()]
    return lines


def _rates(result: dict[str, Any]) -> list[tuple[str, str]]:
    latency, ratio = result["latencyMs"], result["ratioToRaw"]
    where = f"{result['inFlight']} in flight, {result['sessions']} sessions, {result['cores']} cores"
    raw = "not measured"
    if ratio is not None:
        raw = f"{result['rawRate']:,.0f}/s in turn, with as many threads: ours is {ratio:.2f} of it"
    return [
        ("signing rate", f"{result['signingRate']:,.0f}/s with {where}"),
        ("latency", f"p50 {latency['p50']:.2f} ms, p99 {latency['p99']:.2f} ms, p99.9 {latency['p999']:.2f} ms"),
        ("raw C loop", raw),
    ]


def _tampered(result: dict[str, Any]) -> tuple[str, str]:
    reason = result["tampered"]["refusedAs"]
    if reason is None:
        return "flipped bit", "NOT REFUSED by the ledger"
    intact = "accepted" if result["tampered"]["intactAccepted"] else "REFUSED TOO"
    return "flipped bit", f"refused by the ledger ({reason}); the same transaction with its true signature: {intact}"
