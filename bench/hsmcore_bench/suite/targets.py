"""What hsmcore must reach, as data: a number, a bound, and how the number comes out of the samples of one round."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from hsmcore_bench.suite import failover, resilience
from hsmcore_bench.suite.contenders import MEMORY
from hsmcore_bench.suite.formulas import Target, added_us, in_raw_queues, lag_ms, rate
from hsmcore_bench.suite.model import Break, Memory, Switch, Verdict
from hsmcore_bench.suite.stats import Round, spread, usable, usable_breaks

TARGETS: tuple[Target, ...] = (
    Target(
        "sign-64-rate",
        "`await km.sign`, 64 in flight",
        "rate(sign-64) / rate(raw)",
        "× raw C",
        0.97,
        True,
        ("sign-64", "raw"),
        rate("sign-64", "raw"),
    ),
    Target(
        "sign-64-p50",
        "the same, p50 latency over 64 ÷ raw rate",
        "p50(sign-64) / (64 / rate(raw))",
        "×",
        1.1,
        False,
        ("sign-64", "raw"),
        in_raw_queues("p50", "sign-64", 64),
    ),
    Target(
        "sign-64-p99",
        "the same, p99 latency over 64 ÷ raw rate",
        "p99(sign-64) / (64 / rate(raw))",
        "×",
        2.2,
        False,
        ("sign-64", "raw"),
        in_raw_queues("p99", "sign-64", 64),
    ),
    Target(
        "many-256-rate",
        "`sign_many` of 256",
        "rate(many-256) / rate(raw)",
        "× raw C",
        0.98,
        True,
        ("many-256", "raw"),
        rate("many-256", "raw"),
    ),
    Target(
        "sign-1-adds",
        "one in flight, over a raw C call",
        "p50(sign-1) - p50(raw-1)",
        "µs",
        35.0,
        False,
        ("sign-1", "raw-1"),
        added_us("sign-1", "raw-1"),
    ),
    Target(
        "over-executor",
        "against python-pkcs11 through asyncio, locking forced",
        "rate(sign-64) / rate(pkcs11-executor)",
        "×",
        2.2,
        True,
        ("sign-64", "pkcs11-executor"),
        rate("sign-64", "pkcs11-executor"),
    ),
    Target(
        "over-shipped",
        "against python-pkcs11 as shipped, one session for all threads",
        "rate(sign-64) / rate(pkcs11-shared)",
        "×",
        2.4,
        True,
        ("sign-64", "pkcs11-shared"),
        rate("sign-64", "pkcs11-shared"),
    ),
    Target(
        "over-pykcs11",
        "against PyKCS11",
        "rate(sign-64) / rate(pykcs11)",
        "×",
        2.4,
        True,
        ("sign-64", "pykcs11"),
        rate("sign-64", "pykcs11"),
    ),
    Target(
        "noop-sign",
        "no-op module: awaited `sign`, 256 in flight",
        "rate(noop-256)",
        "/s",
        500_000.0,
        True,
        ("noop-256",),
        lambda r: r["noop-256"].rate,
    ),
    Target(
        "noop-many",
        "no-op module: `sign_many` of 1,024",
        "rate(noop-many-1024)",
        "/s",
        3_000_000.0,
        True,
        ("noop-many-1024",),
        lambda r: r["noop-many-1024"].rate,
    ),
    Target(
        "cache-lookup",
        "cache hit: lookup in C, 200-byte message",
        "1 / rate(cache-lookup)",
        "ns",
        250.0,
        False,
        ("cache-lookup",),
        lambda r: 1e9 / r["cache-lookup"].rate,
    ),
    Target(
        "cache-sign",
        "cache hit: awaited `sign`",
        "rate(cache-hit)",
        "/s",
        500_000.0,
        True,
        ("cache-hit",),
        lambda r: r["cache-hit"].rate,
    ),
    Target(
        "loop-lag",
        "event-loop lag while saturated, 64 in flight, p99",
        "p99(lag of sign-64-lag)",
        "ms",
        5.0,
        False,
        ("sign-64-lag",),
        lag_ms("sign-64-lag"),
    ),
    *resilience.TARGETS,
    *failover.TARGETS,
)

MEMORY_BOUND_MIB = 1.0


def judge(
    rounds: Iterable[Round],
    memory: Memory | None,
    chosen: Collection[str],
    breaks: Sequence[Break] = (),
    switches: Sequence[Switch] = (),
) -> list[Verdict]:
    """Work out each target that needs only `chosen` contenders, in every round that has them; the median decides."""
    rounds = list(rounds)
    verdicts = []
    for target in TARGETS:
        if not set(target.needs) <= set(chosen):
            continue
        found = [target.value(r) for r in usable(rounds, target.needs)]
        values = [value for value in found if value is not None]
        verdicts.append(
            _verdict(target.name, target.what, target.formula, target.unit, target.bound, target.at_least, values)
        )
    if MEMORY in chosen:
        verdicts.append(_memory(memory))
    if resilience.RECOVERY in chosen:
        verdicts += _recovery(breaks)
    if failover.FAILOVER in chosen:
        verdicts += _failover(switches)
    return verdicts


def _memory(memory: Memory | None) -> Verdict:
    return _verdict(
        "memory",
        "resident memory from the 1st to the 2nd million signatures",
        "rss(after 2nd) - rss(after 1st)",
        "MiB",
        MEMORY_BOUND_MIB,
        False,
        [] if memory is None else [memory.growth_bytes / 2**20],
    )


def _recovery(breaks: Sequence[Break]) -> list[Verdict]:
    verdicts = []
    for t in resilience.RECOVERY_TARGETS:
        own = usable_breaks(breaks, t.case)
        values = [b.kept if t.at_least else b.again_seconds * 1e3 for b in own]
        verdicts.append(_verdict(t.name, t.what, t.formula, t.unit, t.bound, t.at_least, values, worst_decides=True))
    lost = [float(b.failed + b.wrong) for b in breaks]
    verdicts.append(
        _verdict(
            "recovery-lost",
            "requests that failed, and wrong signatures, in any of these, most",
            "failed + wrong",
            "requests",
            0.0,
            False,
            lost,
            worst_decides=True,
        )
    )
    return verdicts


def _failover(switches: Sequence[Switch]) -> list[Verdict]:
    def worst(name: str, what: str, formula: str, unit: str, bound: float, values: Sequence[float]) -> Verdict:
        return _verdict(f"failover-{name}", what, formula, unit, bound, False, values, worst_decides=True)

    verdicts = []
    for case in failover.CASES:
        quiet = usable_breaks(switches, case.name)
        own = [s.pause_seconds * 1e3 for s in quiet if s.pause_seconds is not None]
        if case.bound_ms is not None:
            what = f"primary: {case.title}: signing again after, slowest"
            verdicts.append(worst(case.name, what, "end of the longest pause - failure", "ms", case.bound_ms, own))
    slow = [s.slow_percent for s in switches if s.case == "flapping"]
    verdicts.append(worst("slow", "primary flaps: requests slower than twice the median", "slow / asked", "%",
                          failover.SLOW_PERCENT, slow))  # fmt: skip
    lost = [float(s.failed + s.lost + s.wrong + s.twice) for s in switches]
    verdicts.append(worst("lost", "requests failed, lost, answered wrongly or twice in any of these, most",
                          "failed + lost + wrong + twice", "requests", 0.0, lost))  # fmt: skip
    return verdicts


def _verdict(
    name: str,
    what: str,
    formula: str,
    unit: str,
    bound: float,
    at_least: bool,
    values: Sequence[float],
    *,
    worst_decides: bool = False,
) -> Verdict:
    verdict = Verdict(name, what, formula, unit, bound, at_least, spread(values), None, worst_decides)
    reached = verdict.reached
    met = None if reached is None else (reached >= bound if at_least else reached <= bound)
    return replace(verdict, met=met)
