"""What hsmcore must reach, as data: a number, a bound, and how the number comes out of the samples of one round."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from hsmcore.bench.contenders import MEMORY
from hsmcore.bench.model import Memory, Verdict
from hsmcore.bench.stats import Round, spread, usable

Value = Callable[[Round], float | None]  # None: the slice was too short to have it


@dataclass(frozen=True, slots=True)
class Target:
    name: str
    what: str
    formula: str
    unit: str
    bound: float
    at_least: bool
    needs: tuple[str, ...]
    value: Value


def _rate(name: str, per: str) -> Value:
    return lambda r: r[name].rate / r[per].rate


def _in_raw_queues(which: Literal["p50", "p99"], name: str, in_flight: int) -> Value:
    def value(r: Round) -> float | None:
        latency = r[name].latency_ns
        return None if latency is None else getattr(latency, which) / (in_flight / r["raw"].rate * 1e9)

    return value


def _added_us(name: str, to: str) -> Value:
    def value(r: Round) -> float | None:
        ours, theirs = r[name].latency_ns, r[to].latency_ns
        return None if ours is None or theirs is None else (ours.p50 - theirs.p50) / 1e3

    return value


def _lag_ms(name: str) -> Value:
    def value(r: Round) -> float | None:
        lag = r[name].lag_ns
        return None if lag is None else lag.p99 / 1e6

    return value


TARGETS: tuple[Target, ...] = (
    Target(
        "sign-64-rate",
        "`await km.sign`, 64 in flight",
        "rate(sign-64) / rate(raw)",
        "× raw C",
        0.97,
        True,
        ("sign-64", "raw"),
        _rate("sign-64", "raw"),
    ),
    Target(
        "sign-64-p50",
        "the same, p50 latency over 64 ÷ raw rate",
        "p50(sign-64) / (64 / rate(raw))",
        "×",
        1.1,
        False,
        ("sign-64", "raw"),
        _in_raw_queues("p50", "sign-64", 64),
    ),
    Target(
        "sign-64-p99",
        "the same, p99 latency over 64 ÷ raw rate",
        "p99(sign-64) / (64 / rate(raw))",
        "×",
        2.2,
        False,
        ("sign-64", "raw"),
        _in_raw_queues("p99", "sign-64", 64),
    ),
    Target(
        "many-256-rate",
        "`sign_many` of 256",
        "rate(many-256) / rate(raw)",
        "× raw C",
        0.98,
        True,
        ("many-256", "raw"),
        _rate("many-256", "raw"),
    ),
    Target(
        "sign-1-adds",
        "one in flight, over a raw C call",
        "p50(sign-1) - p50(raw-1)",
        "µs",
        35.0,
        False,
        ("sign-1", "raw-1"),
        _added_us("sign-1", "raw-1"),
    ),
    Target(
        "over-executor",
        "against python-pkcs11 through asyncio, locking forced",
        "rate(sign-64) / rate(pkcs11-executor)",
        "×",
        2.2,
        True,
        ("sign-64", "pkcs11-executor"),
        _rate("sign-64", "pkcs11-executor"),
    ),
    Target(
        "over-shipped",
        "against python-pkcs11 as shipped, one session for all threads",
        "rate(sign-64) / rate(pkcs11-shared)",
        "×",
        2.4,
        True,
        ("sign-64", "pkcs11-shared"),
        _rate("sign-64", "pkcs11-shared"),
    ),
    Target(
        "over-pykcs11",
        "against PyKCS11",
        "rate(sign-64) / rate(pykcs11)",
        "×",
        2.4,
        True,
        ("sign-64", "pykcs11"),
        _rate("sign-64", "pykcs11"),
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
        "p99(lag of sign-64)",
        "ms",
        5.0,
        False,
        ("sign-64",),
        _lag_ms("sign-64"),
    ),
)

MEMORY_BOUND_MIB = 1.0


def judge(rounds: Iterable[Round], memory: Memory | None, chosen: Collection[str]) -> list[Verdict]:
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
    if MEMORY not in chosen:
        return verdicts
    growth = [] if memory is None else [memory.growth_bytes / 2**20]
    verdicts.append(
        _verdict(
            "memory",
            "resident memory from the 1st to the 2nd million signatures",
            "rss(after 2nd) - rss(after 1st)",
            "MiB",
            MEMORY_BOUND_MIB,
            False,
            growth,
        )
    )
    return verdicts


def _verdict(
    name: str, what: str, formula: str, unit: str, bound: float, at_least: bool, values: Sequence[float]
) -> Verdict:
    value = spread(values)
    met = None if value is None else (value.median >= bound if at_least else value.median <= bound)
    return Verdict(name, what, formula, unit, bound, at_least, value, met)
