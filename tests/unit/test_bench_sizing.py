"""The queueing model: against formulas where there are any, against a simulation where there are not, and against what
was measured of requests that came at random."""

from __future__ import annotations

import heapq
import random
from math import exp, factorial
from pathlib import Path
from statistics import NormalDist

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.size import share

from hsmcore_bench.suite.html import predictions
from hsmcore_bench.suite.results import KEPT, newest, was_idle
from hsmcore_bench.suite.sizing import Curve, NotPossibleError, Point, curves, forecast, loop_rate, size

Z99 = NormalDist().inv_cdf(0.99)
ROOT = Path(__file__).parents[2]


def ideal(sessions: int, *, p50: float = 0.005, sigma: float = 0.001) -> Curve:
    """A device whose sessions do not slow each other down, with log-normal times."""
    mean = p50 * exp(sigma**2 / 2)
    counts = sorted({1, sessions} | {2**k for k in range(10) if 2**k < sessions})
    return Curve("ideal", tuple(Point(k, k / mean, p50, p50 * exp(sigma * Z99)) for k in counts))


def simulated(sessions: int, rate: float, p50: float, sigma: float, requests: int = 60_000) -> tuple[float, float]:
    """p50 and p99 of a first-come-first-served queue."""
    dice, at = random.Random(7), 0.0
    free = [0.0] * sessions
    latencies = []
    for _ in range(requests):
        at += dice.expovariate(rate)
        end = max(at, free[0]) + p50 * exp(sigma * dice.gauss(0.0, 1.0))
        heapq.heapreplace(free, end)
        latencies.append(end - at)
    latencies = sorted(latencies[requests // 10 :])
    return latencies[len(latencies) // 2], latencies[int(len(latencies) * 0.99)]


@pytest.mark.parametrize("sigma", [0.001, 0.25, 0.6])
@pytest.mark.parametrize(("sessions", "busy"), [(1, 0.5), (4, 0.8), (16, 0.5), (16, 0.9), (64, 0.8)])
def test_a_simulated_queue_is_predicted(sessions, busy, sigma):
    curve = ideal(sessions, sigma=sigma)
    rate = busy * curve.rate(sessions)
    found = forecast(curve, sessions, rate)
    p50, p99 = simulated(sessions, rate, 0.005, sigma)
    assert found.utilisation == pytest.approx(busy)
    assert found.p50 == pytest.approx(p50, rel=0.1)
    assert found.p99 == pytest.approx(p99, rel=0.15)


@pytest.mark.parametrize(("sessions", "load"), [(1, 0.5), (2, 1.5), (5, 4.0), (10, 9.5)])
def test_the_chance_to_wait_is_erlangs(sessions, load):
    waiting = load**sessions / factorial(sessions) * sessions / (sessions - load)
    erlang = waiting / (sum(load**k / factorial(k) for k in range(sessions)) + waiting)
    assert forecast(ideal(sessions), sessions, load / 0.005).waits == pytest.approx(erlang, rel=1e-3)


@settings(max_examples=share(25), deadline=None)
@given(st.integers(1, 32), st.floats(0.05, 0.9), st.floats(0.01, 0.8))
def test_more_requests_wait_longer_and_more_sessions_less(sessions, busy, sigma):
    curve = ideal(32, sigma=sigma)
    rate = busy * curve.rate(sessions)
    found, more = forecast(curve, sessions, rate), forecast(curve, sessions, rate * 1.05)
    assert found.p99 <= more.p99 * 1.0001
    assert found.p50 <= found.p99
    if sessions < 32:
        assert forecast(curve, sessions + 1, rate).p99 <= found.p99 * 1.0001


def test_too_much_has_no_forecast():
    assert forecast(ideal(4), 4, 801.0) is None


def test_a_rate_between_two_points_lies_between_them_and_never_beyond_the_last():
    curve = Curve("c", (Point(1, 10.0, 0.1, 0.1), Point(3, 20.0, 0.1, 0.1)))
    assert [curve.rate(k) for k in (1, 2, 3, 9)] == [10.0, 15.0, 20.0, 20.0]


@settings(max_examples=share(15), deadline=None)
@given(st.floats(50.0, 20_000.0), st.floats(0.006, 0.1), st.integers(0, 2))
def test_a_size_meets_the_target_and_a_smaller_one_does_not(rate, p99, spare):
    curve = ideal(32, sigma=0.05)
    found = size(curve, rate, p99, spare=spare)
    left = found.members - spare
    without = forecast(curve, found.sessions, rate / left)
    assert without == found.without_spare
    assert (without.p99, without.utilisation) <= (p99, 0.8)
    assert found.expected.p99 <= without.p99 * 1.0001
    for members, sessions in ((left, found.sessions - 1), (left - 1, 32)):
        if members and sessions:
            less = forecast(curve, sessions, rate / members)
            assert less is None or less.p99 > p99 or less.utilisation > 0.8


def test_an_impossible_size_is_refused_with_its_reason():
    with pytest.raises(NotPossibleError, match=r"alone takes 5\.01 ms"):
        size(ideal(4), 10.0, 0.004)
    with pytest.raises(NotPossibleError, match="64 members"):
        size(ideal(1), 1e6, 0.1)


def test_one_loop_is_not_asked_for_more_than_it_can():
    assert size(ideal(128), 20_000.0, 0.1, loop=10_000.0).loops == 3
    assert size(ideal(128), 2_000.0, 0.1, loop=10_000.0).loops == 1


def test_what_was_measured_was_predicted():
    """The kept result has requests that came at random, and the curve that predicts them. At 90 % of what the device
    can do the tail depends on its last percent, and on a machine that was not idle on what others did: left out."""
    _, result = newest(ROOT / KEPT)
    assert {"network-5ms", "cloudhsm-hsm2m-x2", "token"} <= curves(result).keys()
    assert loop_rate(result) > 0
    compared, idle = 0, was_idle(result)
    for contender, measured, found in predictions(result, result.contenders):
        assert found is not None
        if found.utilisation < 0.85:
            assert found.p50 * 1e9 == pytest.approx(measured.p50, rel=0.25), contender.name
            assert not idle or found.p99 * 1e9 == pytest.approx(measured.p99, rel=0.5), contender.name
            compared += 1
    assert compared >= 2
