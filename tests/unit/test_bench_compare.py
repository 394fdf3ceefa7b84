"""Two runs: a verdict where there is a difference, none where there is only noise."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from tests.support.size import share

from hsmcore_bench.suite.compare import NO_DIFFERENCE, change_between, compare
from hsmcore_bench.suite.model import Contender, Percentiles, Sample
from hsmcore_bench.suite.result import Result
from hsmcore_bench.suite.stats import LEAST_ROUNDS

RAW = Contender("raw", "raw C loop", "raw", "g", None)
OURS = Contender("ours", "hsmcore", "sign", "g", "raw")


def run(seed: int, *, ours: float = 1.0, machine: float = 1.0, rounds: int = 15, noise: float = 0.02) -> Result:
    """Rates around 18,000/s; the machine's speed changes from round to round, for both contenders alike."""
    dice = random.Random(seed)
    samples = []
    for number in range(rounds):
        speed = 18_000 * machine * dice.gauss(1.0, noise)
        for name, factor in (("raw", 1.0), ("ours", ours)):
            rate = speed * factor * dice.gauss(1.0, noise / 4)
            latency = Percentiles(64e9 / rate, 120e9 / rate, 200e9 / rate, 64e9 / rate)
            samples.append(Sample(name, number, int(rate / 4), 0.25, latency, cpu_seconds=0.2))
    return Result(f"run {seed}", {"processor": "x", "processors": 2}, rounds, 0.25, 200, [RAW, OURS], samples=samples)


def verdicts(comparison, contender="ours"):
    return {line.figure: line.verdict for line in comparison.lines if line.contender == contender}


def test_noise_makes_no_verdicts():
    """A line is wrong in one of a hundred cases: of the ratios of fifty pairs, a few at most."""
    wrong = sum(
        verdicts(compare(run(seed), run(1000 + seed)))["rate ÷ raw"] != NO_DIFFERENCE for seed in range(share(50))
    )
    assert wrong <= share(3)


def test_a_run_against_itself_has_none():
    assert set(verdicts(compare(run(1), run(1))).values()) == {NO_DIFFERENCE}


@pytest.mark.parametrize(("factor", "word"), [(1.1, "faster"), (0.9, "slower")])
def test_a_difference_is_seen_in_both_directions(factor, word):
    found = verdicts(compare(run(1), run(2, ours=factor)))
    assert found["rate ÷ raw"] == found["rate"] == word
    assert found["p50"] == {"faster": "less", "slower": "more"}[word]


def test_a_faster_machine_changes_rates_and_no_ratio():
    found = verdicts(compare(run(1), run(2, machine=1.3)))
    assert (found["rate"], found["rate ÷ raw"]) == ("faster", NO_DIFFERENCE)


def test_rates_of_other_machines_are_not_judged():
    other = run(2, ours=1.2, machine=2.0)
    other.environment["processor"] = "y"
    comparison = compare(run(1), other)
    assert comparison.machine == {"processor": ("x", "y")}
    assert verdicts(comparison) == {
        "rate ÷ raw": "faster", "rate": "other machine", "p50": "other machine", "p99": "other machine",
        "CPU": "other machine",
    }  # fmt: skip


def test_rates_of_a_busy_machine_are_not_judged():
    busy = run(2, ours=1.2)
    busy.samples = [replace(sample, others=0.5) for sample in busy.samples]
    comparison = compare(run(1), busy)
    assert comparison.busy == ["run 2"]
    assert (verdicts(comparison)["rate ÷ raw"], verdicts(comparison)["rate"]) == ("faster", "busy machine")


def test_few_rounds_prove_nothing():
    found = compare(run(1, rounds=LEAST_ROUNDS - 1), run(2, ours=2.0, rounds=LEAST_ROUNDS - 1))
    assert set(verdicts(found).values()) == {"too few rounds"}


def test_a_contender_of_another_load_is_not_the_same():
    other = run(2)
    other.contenders = [RAW, replace(OURS, in_flight=8)]
    assert verdicts(compare(run(1), other)) == {}


def test_contenders_of_only_one_run_are_named():
    less = run(2)
    less.contenders, less.samples = [RAW], [s for s in less.samples if s.contender == "raw"]
    assert compare(run(1), less).only_before == ["ours"]
    assert compare(less, run(1)).only_after == ["ours"]


def test_the_interval_contains_the_change_and_is_the_same_each_time():
    before, after = [100.0, 101.0, 99.0, 100.5, 99.5], [110.0, 111.0, 109.0, 110.5, 109.5]
    low, high = change_between(before, after)
    assert low < 0.1 < high
    assert change_between(before, after) == (low, high)
