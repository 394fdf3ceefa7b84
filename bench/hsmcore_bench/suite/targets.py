"""What hsmcore must reach, as data: a number, a bound, and how the number comes out of the samples of one round."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import fields, replace

from hsmcore_bench.suite import failover, resilience
from hsmcore_bench.suite.contenders import MEMORY
from hsmcore_bench.suite.formulas import (
    Target,
    above,
    added,
    batched,
    beside,
    fast,
    lag,
    over,
    processor,
    queued,
    relative,
    side,
    tail_ms,
    tailed,
)
from hsmcore_bench.suite.model import Break, Goal, Memory, Switch, Verdict
from hsmcore_bench.suite.stats import Round, spread, usable, usable_breaks

_LOOKUP = "cache-lookup"
TARGETS: tuple[Target, ...] = (
    relative("sign-64-rate", "`await km.sign`, 64 in flight", "× raw C", 0.97, "sign-64", "raw"),
    queued("sign-64-p50", "the same, p50 latency over 64 ÷ raw rate", 1.1, "p50", "sign-64", 64),
    queued("sign-64-p99", "the same, p99 latency over 64 ÷ raw rate", 2.2, "p99", "sign-64", 64),
    relative("many-256-rate", "`sign_many` of 256", "× raw C", 0.98, "many-256", "raw"),
    added("sign-1-adds", "one in flight, over a raw C call", 35.0, "sign-1", "raw-1"),
    above("sign-1-above", "one in flight, over a raw C call and the hand-over", 10.0, "sign-1", "raw-1", "hand-over"),
    *(
        relative(name, f"against {what}", "×", bound, "sign-64", peer)
        for name, what, bound, peer in (
            ("over-executor", "python-pkcs11 through asyncio, locking forced", 2.2, "pkcs11-executor"),
            ("over-shipped", "python-pkcs11 as shipped, one session for all threads", 2.4, "pkcs11-shared"),
            ("over-pykcs11", "PyKCS11", 2.4, "pykcs11"),
        )
    ),
    fast("noop-sign", "no-op module: awaited `sign`, 256 in flight", 500_000.0, "noop-256"),
    fast("noop-many", "no-op module: `sign_many` of 1,024", 3_000_000.0, "noop-many-1024"),
    Target(
        *(_LOOKUP, "cache hit: lookup in C, 200-byte message", f"1 / rate({_LOOKUP})", "ns", 250.0, False, (_LOOKUP,)),
        value=lambda r: 1e9 / r[_LOOKUP].rate,
    ),
    fast("cache-sign", "cache hit: awaited `sign`", 500_000.0, "cache-hit"),
    lag("loop-lag", "event-loop lag while saturated, 64 in flight, p99", "sign-64-lag"),
    *resilience.TARGETS,
    *failover.TARGETS,
    relative("audit-fsync-64", "audit log, `fsync`, 64 in flight", "× no log", 0.95, "audit-fsync", "audit-none"),
    relative("audit-write-64", "audit log, `write`, 64 in flight", "× no log", 0.97, "audit-write", "audit-none"),
    relative(
        *("audit-5ms", "audit log, `fsync`, network-5ms, 256 in flight", "× no log", 0.99),
        *("audit-5ms-fsync", "audit-5ms-none"),
    ),
    beside(
        *("audit-1", "audit log, `fsync`, one in flight: apart from none and one flush", 5.0),
        *("audit-1-fsync", "audit-1-none", "flush"),
    ),
    relative(
        *("audit-noop", "audit log, `fsync`, no-op module, 256 in flight", "× no log", 0.45),
        *("audit-noop-fsync", "audit-noop-none"),
    ),
    processor("audit-noop-cpu", "the same, processor time of a signature", 3.5, "audit-noop-fsync"),
    relative(
        *("failover-audit-noop", "the same with failover", "× fsync alone", 0.97),
        *("failover-audit-noop-256", "audit-noop-fsync"),
    ),
    relative(
        "policy-noop-rate",
        "policy, no-op module, 256 in flight",
        "× no policy",
        0.97,
        "policy-noop",
        "policy-noop-none",
    ),
    relative(
        *("policy-noop-many", "the same, `sign_many` of 256", "× no policy", 0.85),
        *("policy-noop-many", "policy-noop-many-none"),
    ),
    relative(
        *("policy-noop-receipt", "the same, receipts, 256 in flight", "× no policy", 0.97),
        *("policy-noop-receipt", "policy-noop-receipt-none"),
    ),
    relative(
        "policy-blocks-rate", "1 % blocks, SoftHSM, 64 in flight", "× no blocks", 0.9, "policy-blocks", "policy-none"
    ),
    added("policy-bind", "one block bound to its position, one in flight", 2000.0, "policy-1-blocks", "policy-1-none"),
    fast("gateway-noop-rate", "gateway, no-op module, 256 open over 4 connections", 50_000.0, "gateway-noop-256"),
    tail_ms("gateway-noop-p99", "the same, p99 latency", 10.0, "gateway-noop-256"),
    side(
        *("gateway-noop-adds", "the same, processor time that the gateway adds to a signature", 5.0),
        *("gateway-noop-256", "gateway", "gateway-noop-256-none"),
    ),
    side("gateway-noop-client", "the same, processor time of the client", 4.0, "gateway-noop-256", "client"),
    relative(
        "gateway-64-rate", "gateway, SoftHSM, 64 in flight", "× in process", 0.95, "gateway-64", "gateway-64-none"
    ),
    relative(
        *("gateway-strangers-rate", "the same beside 10,000 idle connections", "× without them", 0.98),
        *("gateway-64-strangers", "gateway-64"),
    ),
    fast("gateway-vault-rate", "gateway, Vault's API over HTTPS, `batch_input` of 64", 5_000.0, "gateway-vault-64"),
    relative(
        *("gateway-share", "gateway, beside a client that asks for ten times its share", "× for its share", 0.9),
        *("gateway-share-flood", "gateway-share-even"),
    ),
    added("gateway-1-adds", "gateway, one in flight, over the same in process", 120.0, "gateway-1", "gateway-1-none"),
    over(
        *("gateway-1-echo", "the same, over an echo between two processes", 1.5),
        *("gateway-1", "gateway-1-none", "gateway-echo"),
    ),
    fast("batched-yubihsm2-rate", "`sign_batched`, YubiHSM 2 (8.7 signatures/s)", 100_000.0, "batched-yubihsm2"),
    batched("batched-yubihsm2-p99", "the same, p99 latency over interval and 1.2 × device", "batched-yubihsm2", 150),
    fast("batched-softhsm-rate", "`sign_batched`, SoftHSM", 300_000.0, "batched-softhsm"),
    fast("batched-many-yubihsm2-rate", "`sign_batched_many`, YubiHSM 2 (8.7/s)", 100_000.0, "batched-many-yubihsm2"),
    fast("batched-many-softhsm-rate", "`sign_batched_many`, SoftHSM", 300_000.0, "batched-many-softhsm"),
    Target(
        *("batched-verify", "`verify_batched`, a batch of 10,000", "1 / rate(batched-verify)", "µs", 100.0, False),
        needs=("batched-verify",),
        value=lambda r: 1e6 / r["batched-verify"].rate,
    ),
    relative("stack-64-rate", "the whole stack, SoftHSM, 64 in flight", "× bare", 0.93, "stack-64", "stack-64-bare"),
    relative(
        *("stack-256-rate", "the whole stack, network-5ms, 256 in flight", "× raw C", 0.97),
        *("stack-256", "stack-256-raw"),
    ),
    tailed("stack-256-tail", "the same, p99.9 latency over raw C's", "stack-256", "stack-256-raw"),
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
        verdicts.append(_verdict(target, values))
    if MEMORY in chosen:
        verdicts.append(_memory(memory))
    if resilience.RECOVERY in chosen:
        verdicts += _recovery(breaks)
    if failover.FAILOVER in chosen:
        verdicts += _failover(switches)
    return verdicts


def _memory(memory: Memory | None) -> Verdict:
    what = "resident memory from the 1st to the 2nd million signatures"
    growth = [] if memory is None else [memory.growth_bytes / 2**20]
    return _verdict(Goal("memory", what, "rss(after 2nd) - rss(after 1st)", "MiB", MEMORY_BOUND_MIB, False), growth)


def _recovery(breaks: Sequence[Break]) -> list[Verdict]:
    verdicts = []
    for target in resilience.RECOVERY_TARGETS:
        own = usable_breaks(breaks, target.case)
        values = [b.kept if target.at_least else b.again_seconds * 1e3 for b in own]
        verdicts.append(_verdict(target, values, worst_decides=True))
    what = "requests that failed, and wrong signatures, in any of these, most"
    lost = [float(b.failed + b.wrong) for b in breaks]
    none_lost = Goal("recovery-lost", what, "failed + wrong", "requests", 0.0, False)
    return [*verdicts, _verdict(none_lost, lost, worst_decides=True)]


def _failover(switches: Sequence[Switch]) -> list[Verdict]:
    def worst(name: str, what: str, formula: str, unit: str, bound: float, values: Sequence[float]) -> Verdict:
        return _verdict(Goal(f"failover-{name}", what, formula, unit, bound, False), values, worst_decides=True)

    verdicts = []
    for case in failover.CASES:
        quiet = usable_breaks(switches, case.name)
        own = [s.pause_seconds * 1e3 for s in quiet if s.pause_seconds is not None]
        if case.bound_ms is not None:
            what = f"primary: {case.title}: signing again after, slowest"
            verdicts.append(worst(case.name, what, "end of the longest pause - failure", "ms", case.bound_ms, own))
    slow = [s.slow_percent for s in switches if s.case == "flapping"]
    verdicts.append(
        worst(
            "slow",
            "primary flaps: requests slower than twice the median",
            "slow / asked",
            "%",
            failover.SLOW_PERCENT,
            slow,
        )
    )
    lost = [float(s.failed + s.lost + s.wrong + s.twice) for s in switches]
    verdicts.append(
        worst(
            "lost",
            "requests failed, lost, answered wrongly or twice in any of these, most",
            "failed + lost + wrong + twice",
            "requests",
            0.0,
            lost,
        )
    )
    return verdicts


def _verdict(goal: Goal, values: Sequence[float], *, worst_decides: bool = False) -> Verdict:
    own = {field.name: getattr(goal, field.name) for field in fields(Goal)}
    verdict = Verdict(**own, value=spread(values), met=None, worst_decides=worst_decides)
    reached = verdict.reached
    met = None if reached is None else (reached >= goal.bound if goal.at_least else reached <= goal.bound)
    return replace(verdict, met=met)
