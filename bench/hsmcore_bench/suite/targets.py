"""What hsmcore must reach, as data: a number, a bound, and how the number comes out of the samples of one round; and
the verdicts: met, missed, or undecided where chance alone could have made either.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import fields, replace
from typing import Final

from hsmcore_bench.suite import failover, resilience
from hsmcore_bench.suite.contenders import MEMORY
from hsmcore_bench.suite.formulas import (
    ALONE,
    APART,
    BEYOND_FOUR,
    CALLS,
    CEILING,
    CLIENT,
    CPU,
    GATEWAY,
    LAG,
    LOOP,
    MEAN,
    MORE,
    MORE_OVER,
    P50,
    P99,
    P999,
    PERCENT,
    RATE,
    RATIO,
    SWITCHES,
    USED,
    Target,
    added,
    answered,
    least,
    most,
    queued,
    relative,
)
from hsmcore_bench.suite.model import Break, Goal, Memory, Switch, Verdict
from hsmcore_bench.suite.stats import Round, between, spread, usable, usable_breaks

CONFIDENCE: Final = 0.95
_AUDIT = "audit log, `fsync`"
_STACK = "the whole stack"
TARGETS: tuple[Target, ...] = (
    relative("sign-64-rate", "`await km.sign`, 64 in flight", None, "× raw C", "sign-64", "raw"),
    least("sign-64-used", "the same, processors in use", 0.98, "× raw C's", RATIO, USED("sign-64"), USED("raw")),
    most(
        *("sign-64-p50", "the same, p50 latency over 64 ÷ raw rate", 1.1, "×", queued(64)),
        *(P50("sign-64"), RATE("raw")),
    ),
    most(
        *("sign-64-p99", "the same, p99 latency over 64 ÷ raw rate", 2.2, "×", queued(64)),
        *(P99("sign-64"), RATE("raw")),
    ),
    relative("many-256-rate", "`sign_many` of 256", None, "× raw C", "many-256", "raw"),
    most(
        *("sign-1-above", "one in flight, over a raw C call", 2.0, "× hand-over", MORE_OVER),
        *(P50("sign-1"), P50("raw-1"), P50("hand-over")),
    ),
    added("sign-1-added", "the same, processor time", 20.0, "sign-1", "raw-1"),
    most(
        "noop-loop", "no-op module, 256 in flight: the event loop's processor time", 1.8, "µs", ALONE, LOOP("noop-256")
    ),
    relative(
        "over-executor", "the same, against python-pkcs11 through asyncio", 15.0, "×", "noop-256", "noop-executor"
    ),
    most("loop-lag", "event-loop lag while saturated, 64 in flight, p99", 3.0, "ms", ALONE, LAG("sign-64-lag")),
    most("idle", "a key manager that nobody asks: processor", 0.05, "%", PERCENT, USED("idle")),
    most("idle-watched", "the same with audit log and console", 0.1, "%", PERCENT, USED("idle-watched")),
    *resilience.TARGETS,
    *failover.TARGETS,
    relative("audit-fsync-64", f"{_AUDIT}, SoftHSM, 64 in flight", None, "× no log", "audit-fsync", "audit-none"),
    added("audit-fsync-64-added", "the same, processor time", 10.0, "audit-fsync", "audit-none"),
    relative(
        "audit-write-64", "audit log, `write`, SoftHSM, 64 in flight", None, "× no log", "audit-write", "audit-none"
    ),
    relative(
        *("audit-5ms", f"{_AUDIT}, network-5ms, 256 in flight", 0.985, "× no log"),
        *("audit-5ms-fsync", "audit-5ms-none"),
    ),
    most(
        *("audit-1", f"{_AUDIT}, one in flight: apart from none, one flush and two hand-overs", 15.0, "%", APART),
        *(P50("audit-1-fsync"), P50("audit-1-none"), P50("flush"), P50("audit-hand-over")),
    ),
    added(
        *("audit-noop-added", f"{_AUDIT}, no-op module, 256 in flight: processor time", 5.0),
        *("audit-noop-fsync", "audit-noop-none"),
    ),
    least(
        *("audit-noop-used", "the same, processors in use", 0.92, "× no log's", RATIO),
        *(USED("audit-noop-fsync"), USED("audit-noop-none")),
    ),
    relative(
        *("failover-audit-noop", "the same with failover, rate", 0.97, "× fsync alone"),
        *("failover-audit-noop-256", "audit-noop-fsync"),
    ),
    relative(
        "policy-blocks-rate", "1 % blocks, SoftHSM, 64 in flight", 0.9, "× no blocks", "policy-blocks", "policy-none"
    ),
    most(
        *("policy-bind", "one block bound to its position, one in flight", 4.0, "× flush", MORE_OVER),
        *(P50("policy-1-blocks"), P50("policy-1-none"), P50("policy-flush")),
    ),
    relative(
        "publish-5ms-rate", "blocks, published, 5 ms device", 0.99, "× not published", "publish-5ms", "publish-5ms-none"
    ),
    relative("publish-rate", "1 % blocks, published, SoftHSM", 0.97, "× not published", "publish", "publish-none"),
    added(
        *("gateway-noop-added", "gateway, no-op module, 256 open: processor time of both ends", 20.0),
        *("gateway-noop-256", "gateway-noop-256-none"),
    ),
    most(
        *("gateway-noop-p99", "the same, p99 latency over its mean", 2.0, "×", RATIO),
        *(P99("gateway-noop-256"), MEAN("gateway-noop-256")),
    ),
    most(
        *("gateway-noop-gateway", "the same, processor time of the gateway over that of one process", 5.0, "µs", MORE),
        *(GATEWAY("gateway-noop-256"), CPU("gateway-noop-256-none")),
    ),
    most("gateway-noop-client", "the same, processor time of the client", 4.0, "µs", ALONE, CLIENT("gateway-noop-256")),
    relative(
        "gateway-64-rate", "gateway, SoftHSM, 64 in flight", None, "× in process", "gateway-64", "gateway-64-none"
    ),
    relative(
        *("gateway-strangers-rate", "the same beside 10,000 idle connections", None, "× without them"),
        *("gateway-64-strangers", "gateway-64"),
    ),
    relative(
        *("gateway-5ms-rate", "gateway, network-5ms, 256 in flight", 0.97, "× in process"),
        *("gateway-5ms-256", "gateway-5ms-256-none"),
    ),
    least(
        *("gateway-vault-rate", "gateway, Vault's API over HTTPS, `batch_input` of 64", 8_000.0, "/s", ALONE),
        RATE("gateway-vault-64"),
    ),
    relative(
        *("gateway-share", "gateway, beside a client that asks for ten times its share", 0.9, "× for its share"),
        *("gateway-share-flood", "gateway-share-even"),
    ),
    most(
        *("gateway-1-adds", "gateway, one in flight, over the same in process and four hand-overs", 40.0, "µs"),
        *(BEYOND_FOUR, P50("gateway-1"), P50("gateway-1-none"), P50("gateway-hand-over")),
    ),
    most("gateway-1-switches", "the same, voluntary switches of the gateway", 2.0, "", ALONE, SWITCHES("gateway-1")),
    most("gateway-1-calls", "the same, read and write calls of the gateway", 4.0, "", ALONE, CALLS("gateway-1")),
    most(
        *("gateway-1-echo", "the same, over an echo between two processes", 1.5, "×", MORE_OVER),
        *(P50("gateway-1"), P50("gateway-1-none"), P50("gateway-echo")),
    ),
    least(
        *("batched-yubihsm2-rate", "`sign_batched`, YubiHSM 2 (8.7 signatures/s)", 100_000.0, "/s", ALONE),
        RATE("batched-yubihsm2"),
    ),
    most(
        *("batched-yubihsm2-p99", "the same, p99 latency over interval and 1.2 × device", 1.0, "×", answered(150)),
        *(P99("batched-yubihsm2"), CEILING("batched-yubihsm2")),
    ),
    most(
        *("batched-softhsm-loop", "`sign_batched`, SoftHSM: the event loop's processor time", 3.5, "µs", ALONE),
        LOOP("batched-softhsm"),
    ),
    least(
        *("batched-many-yubihsm2-rate", "`sign_batched_many`, YubiHSM 2 (8.7/s)", 100_000.0, "/s", ALONE),
        RATE("batched-many-yubihsm2"),
    ),
    least(
        *("batched-many-softhsm-rate", "`sign_batched_many`, SoftHSM", 700_000.0, "/s", ALONE),
        RATE("batched-many-softhsm"),
    ),
    most(
        *("batched-verify", "`verify_batched`, a batch of 10,000: processor time", 1.1, "× one verification", RATIO),
        *(CPU("batched-verify"), CPU("batched-verify-one")),
    ),
    relative("stack-64-rate", f"{_STACK}, SoftHSM, 64 in flight", None, "× bare", "stack-64", "stack-64-bare"),
    added("stack-64-added", "the same, processor time", 16.0, "stack-64", "stack-64-bare"),
    least(
        *("stack-64-used", "the same, processors in use", 0.98, "× bare", RATIO),
        *(USED("stack-64"), USED("stack-64-bare")),
    ),
    added(
        *("stack-noop-added", f"{_STACK}, no-op module, 256 in flight: processor time", 12.0),
        *("stack-noop-256", "stack-noop-bare"),
    ),
    relative("stack-256-rate", f"{_STACK}, network-5ms, 256 in flight", 0.98, "× raw C", "stack-256", "stack-256-raw"),
    most(
        *("stack-256-tail", "the same, p99.9 latency over raw C's", 1.3, "×", RATIO),
        *(P999("stack-256"), P999("stack-256-raw")),
    ),
    added("stack-256-added", "the same, processor time over raw C's with 128", 16.0, "stack-256", "device-5ms-raw"),
    most(
        *(
            "open-80-tail",
            "at random, 80 % of network-5ms with 64 servers: p99.9 latency over raw C's",
            1.5,
            "×",
            RATIO,
        ),
        *(P999("open-80-5ms"), P999("open-80-5ms-raw")),
    ),
)

MEMORY_BOUND_MIB = 1.0


def judge(
    rounds: Iterable[Round],
    memory: Memory | None,
    chosen: Collection[str],
    breaks: Sequence[Break] = (),
    switches: Sequence[Switch] = (),
) -> list[Verdict]:
    """Work out each target that needs only `chosen` contenders, in every round that has them. The median decides, where
    its interval does not contain the bound; the same for the same rounds."""
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
    goal = Goal("memory", what, "rss(after 2nd) - rss(after 1st)", "MiB", MEMORY_BOUND_MIB, False)
    return _verdict(goal, growth, worst_decides=True)


def _recovery(breaks: Sequence[Break]) -> list[Verdict]:
    verdicts = []
    for target in resilience.RECOVERY_TARGETS:
        own = usable_breaks(breaks, target.case)
        values = [b.kept if target.at_least else b.again_seconds * 1e3 for b in own]
        verdicts.append(_verdict(target, values, worst_decides=target.worst))
    what = "requests that failed, and wrong signatures, in any of these, most"
    lost = [float(b.failed + b.wrong) for b in breaks]
    none_lost = Goal("recovery-lost", what, "failed + wrong", "requests", 0.0, False)
    return [*verdicts, _verdict(none_lost, lost, worst_decides=True)]


def _failover(switches: Sequence[Switch]) -> list[Verdict]:
    def verdict(
        name: str, what: str, formula: str, unit: str, bound: float, values: Sequence[float], *, worst: bool = True
    ) -> Verdict:
        return _verdict(Goal(f"failover-{name}", what, formula, unit, bound, False), values, worst_decides=worst)

    verdicts = []
    for case in failover.CASES:
        quiet = usable_breaks(switches, case.name)
        own = [s.pause_seconds * 1e3 for s in quiet if s.pause_seconds is not None]
        what, formula = f"primary: {case.title}: signing again after", "end of the longest pause - failure"
        if case.median_ms is not None:
            name = f"{case.name}-median"
            verdicts.append(verdict(name, f"{what}, median", formula, "ms", case.median_ms, own, worst=False))
        if case.bound_ms is not None:
            verdicts.append(verdict(case.name, f"{what}, slowest", formula, "ms", case.bound_ms, own))
    slow = [s.slow_percent for s in switches if s.case == "flapping"]
    what = "primary flaps: requests slower than twice the median"
    verdicts.append(verdict("slow", what, "slow / asked", "%", failover.SLOW_PERCENT, slow))
    lost = [float(s.failed + s.lost + s.wrong + s.twice) for s in switches]
    what = "requests failed, lost, answered wrongly or twice in any of these, most"
    verdicts.append(verdict("lost", what, "failed + lost + wrong + twice", "requests", 0.0, lost))
    return verdicts


def _verdict(goal: Goal, values: Sequence[float], *, worst_decides: bool = False) -> Verdict:
    """A worst one decides by itself: that it happened is no chance."""
    own = {field.name: getattr(goal, field.name) for field in fields(Goal)}
    verdict = Verdict(**own, value=spread(values), met=None, worst_decides=worst_decides)
    if worst_decides:
        ends = None if verdict.reached is None else (verdict.reached, verdict.reached)
    else:
        ends = between(values, CONFIDENCE)
        verdict = replace(verdict, interval=ends)
    return (
        verdict if ends is None or goal.bound is None else replace(verdict, met=_met(goal.bound, ends, goal.at_least))
    )


def _met(bound: float, ends: tuple[float, float], at_least: bool) -> bool | None:
    """Whether all between the ends is on the good side, or all on the other; None: the bound lies between them."""
    good = [end >= bound if at_least else end <= bound for end in ends]
    return good[0] if good[0] == good[1] else None
