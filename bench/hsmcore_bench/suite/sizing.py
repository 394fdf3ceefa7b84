"""How many sessions and members a rate needs, from measured curves.

The model is a queue in front of c sessions. Requests come at random (Poisson). With k sessions busy, signatures leave
at the rate that was measured with k sessions and k in flight, so what sessions cost each other is in it. That is a
birth-and-death chain; its probability to wait and its mean wait are exact where the times of signatures are exponential
(with a rate in proportion to k it is Erlang's C formula), and the wait is multiplied by (1 + cv²) / 2 for times that
vary otherwise (Allen and Cunneen): half of it for a constant time. cv comes from a log-normal distribution through the
measured p50 and p99. A request that has to wait does so for an exponential time. A latency is such a wait and
such a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import exp, log
from statistics import NormalDist, median
from typing import Final

from hsmcore_bench.suite.result import Result
from hsmcore_bench.suite.stats import usable

MOST_MEMBERS: Final = 64
STEPS: Final = 200  # of the numerical integral over the wait
_Z99: Final = NormalDist().inv_cdf(0.99)
_NORMAL: Final = NormalDist()
LOOP: Final = "noop-256"
LOOP_SHARE: Final = 0.7  # of what one event loop signs with nothing else to do
MODEL: Final = (
    "Poisson arrivals; birth-and-death chain with the measured rate of k busy sessions; waits scaled by (1 + cv²)/2 "
    "(Allen-Cunneen); log-normal signing times through the measured p50 and p99"
)


class NotPossibleError(Exception):
    """No size does it; the text says why."""


@dataclass(frozen=True, slots=True)
class Point:
    """Measured with so many sessions, as many in flight."""

    sessions: int
    rate: float  # a second
    p50: float  # seconds
    p99: float


@dataclass(frozen=True, slots=True)
class Curve:
    """One member, by its sessions."""

    device: str
    points: tuple[Point, ...]  # ascending; at least one

    @property
    def most_sessions(self) -> int:
        return self.points[-1].sessions

    def rate(self, busy: int) -> float:
        """With `busy` sessions busy: a straight line between neighbours; never more than was measured with more."""
        below = Point(0, 0.0, 0.0, 0.0)
        for point in self.points:
            if busy <= point.sessions:
                share = (busy - below.sessions) / (point.sessions - below.sessions)
                return below.rate + (point.rate - below.rate) * share
            below = point
        return below.rate

    def at(self, sessions: int) -> Point:
        """The nearest measured point that is not below."""
        return next((point for point in self.points if point.sessions >= sessions), self.points[-1])


@dataclass(frozen=True, slots=True)
class Forecast:
    """Of one member at one rate."""

    utilisation: float  # 0..1: the rate, relative to what its sessions make at most
    waits: float  # 0..1: how many find no session free
    p50: float  # seconds
    p99: float


@dataclass(frozen=True, slots=True)
class Size:
    """What it takes."""

    device: str
    sessions: int  # of each member
    members: int  # the spare ones included
    spare: int
    expected: Forecast  # with all members
    without_spare: Forecast  # when the spare ones are gone
    loops: int  # event loops, that is processes, that feed them


def curves(result: Result) -> dict[str, Curve]:
    """The curves over sessions that a run measured, by device."""
    devices = {scenario.name: scenario.sizes for scenario in result.scenarios if scenario.sizes is not None}
    rounds = list(result.by_round().values())
    points: dict[str, list[Point]] = {}
    for contender in result.contenders:
        device = devices.get(contender.scenario)
        samples = [r[contender.name] for r in usable(rounds, {contender.name})] if device is not None else []
        times = [s.latency_ns for s in samples if s.latency_ns is not None]
        if device is None or not times:
            continue
        rate = median(s.rate for s in samples)
        p50, p99 = median(t.p50 for t in times) / 1e9, median(t.p99 for t in times) / 1e9
        points.setdefault(device, []).append(Point(contender.sessions, rate, p50, p99))
    return {device: Curve(device, tuple(sorted(own, key=lambda p: p.sessions))) for device, own in points.items()}


def loop_rate(result: Result) -> float | None:
    """What one event loop signs a second on a module that takes no time; None where that was not measured."""
    samples = [r[LOOP] for r in usable(list(result.by_round().values()), {LOOP})]
    return median(s.rate for s in samples) if samples else None


def forecast(curve: Curve, sessions: int, rate: float) -> Forecast | None:
    """What requests that come at `rate` a second meet at `sessions` sessions; None when there are too many of them."""
    most = curve.rate(sessions)
    utilisation = rate / most
    if utilisation >= 1.0:
        return None
    weights = [1.0]  # of k requests there, for k up to the number of sessions
    for busy in range(1, sessions + 1):
        weights.append(weights[-1] * rate / curve.rate(busy))
        if weights[-1] > 1e200:
            weights = [weight / 1e200 for weight in weights]
    queued = weights[-1] / (1.0 - utilisation)  # all sessions busy, and any number waiting
    waits = queued / (sum(weights[:-1]) + queued)
    point = curve.at(sessions)
    sigma = max(log(point.p99 / point.p50) / _Z99, 1e-4)
    variation = exp(sigma**2) - 1.0
    mean_wait = (1.0 + variation) / 2 / (most - rate)  # of those who wait

    def beyond(seconds: float) -> float:
        return _beyond(seconds, waits, mean_wait, point.p50, sigma)

    return Forecast(utilisation, waits, _solve(beyond, 0.5), _solve(beyond, 0.01))


def size(
    curve: Curve,
    rate: float,
    p99: float,
    *,
    spare: int = 1,
    utilisation: float = 0.8,
    loop: float | None = None,
) -> Size:
    """The fewest members, then the fewest sessions, that keep `p99` (seconds) and `utilisation` at `rate` a second even
    when `spare` more members are gone. Raises NotPossibleError."""
    alone = min(point.p99 for point in curve.points)
    if alone > p99:
        raise NotPossibleError(
            f"a signature of {curve.device} alone takes {alone * 1e3:.3g} ms at its 99th percentile: no number of "
            f"sessions or members makes that less than {p99 * 1e3:.3g} ms"
        )
    for members in range(1, MOST_MEMBERS + 1):
        for sessions in range(1, curve.most_sessions + 1):
            if rate / members > utilisation * curve.rate(sessions):
                continue
            found = forecast(curve, sessions, rate / members)
            if found is None or found.p99 > p99:
                continue
            expected = forecast(curve, sessions, rate / (members + spare))
            assert expected is not None
            loops = 1 if loop is None else max(1, -int(-rate // (LOOP_SHARE * loop)))
            return Size(curve.device, sessions, members + spare, spare, expected, found, loops)
    raise NotPossibleError(f"{MOST_MEMBERS} members of {curve.device} do not make {rate:,.0f} signatures a second")


def _beyond(seconds: float, waits: float, mean_wait: float, p50: float, sigma: float) -> float:
    """The share of latencies above `seconds`."""

    def signing(above: float) -> float:
        return 1.0 if above <= 0.0 else 1.0 - _NORMAL.cdf(log(above / p50) / sigma)

    total = (1.0 - waits) * signing(seconds)
    if waits <= 0.0:
        return total
    step = 1.0 / STEPS  # quantiles of the wait: equally likely ones
    later = sum(signing(seconds + mean_wait * log(1.0 - (i + 0.5) * step)) for i in range(STEPS))
    return total + waits * later * step


def _solve(beyond: Callable[[float], float], share: float) -> float:
    """Where the falling function `beyond` comes down to `share`."""
    low, high = 0.0, 1e-6
    while beyond(high) > share and high < 1e6:
        low, high = high, high * 2
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if beyond(middle) > share else (low, middle)
    return high
