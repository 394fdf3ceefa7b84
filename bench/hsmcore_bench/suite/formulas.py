"""What a target is, and the formulas over one round that targets are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from hsmcore_bench.suite.stats import Round

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


def rate(name: str, per: str) -> Value:
    return lambda r: r[name].rate / r[per].rate


def of_ceiling(name: str) -> Value:
    def value(r: Round) -> float | None:
        ceiling = r[name].ceiling
        return None if ceiling is None else r[name].rate / ceiling

    return value


def lost_percent(name: str, without: str) -> Value:
    return lambda r: 100.0 * (1.0 - r[name].rate / r[without].rate)


def in_raw_queues(which: Literal["p50", "p99"], name: str, in_flight: int) -> Value:
    def value(r: Round) -> float | None:
        latency = r[name].latency_ns
        return None if latency is None else getattr(latency, which) / (in_flight / r["raw"].rate * 1e9)

    return value


def added_us(name: str, to: str) -> Value:
    def value(r: Round) -> float | None:
        ours, theirs = r[name].latency_ns, r[to].latency_ns
        return None if ours is None or theirs is None else (ours.p50 - theirs.p50) / 1e3

    return value


def tail(name: str, per: str) -> Value:
    def value(r: Round) -> float | None:
        ours, theirs = r[name].latency_ns, r[per].latency_ns
        return None if ours is None or theirs is None else ours.p999 / theirs.p999

    return value


def lag_ms(name: str) -> Value:
    def value(r: Round) -> float | None:
        lag = r[name].lag_ns
        return None if lag is None else lag.p99 / 1e6

    return value
