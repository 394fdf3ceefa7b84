"""More rounds for what is undecided: of whom, until when, and within the budget. Nothing is signed here."""

from __future__ import annotations

from contextlib import ExitStack, nullcontext
from types import SimpleNamespace

import pytest

from hsmcore_bench.suite import runner
from hsmcore_bench.suite.model import Options, Sample

DEVICE = ("device-5ms-raw", "device-5ms-ours-256")  # what device-5ms-256-rate needs: at least 0.995
SPARE = ("verify-spare-never", "verify-spare-always")  # verify-spare-cost: at most 2 %, in a block of its own


@pytest.fixture
def measured(monkeypatch):
    """Run with slices that take a second of a clock of our own and have a rate that `rates` gives for each round; the
    rounds that each contender got."""

    def run(rates, budget, rounds=5, only=(*DEVICE, *SPARE)):
        clock = SimpleNamespace(now=0.0)

        def slice_of(one, contender, number):
            clock.now += 1.0
            rate = 10_000 * rates.get(contender.name, lambda _: 1.0)(number)
            one.result.samples.append(Sample(contender.name, number, int(rate), 1.0, None))

        monkeypatch.setattr(runner._Run, "_ready", lambda *_: nullcontext())
        monkeypatch.setattr(runner._Run, "_open_token", lambda _: None)
        monkeypatch.setattr(runner._Run, "_slice", slice_of)
        monkeypatch.setattr(runner, "time", SimpleNamespace(monotonic=lambda: clock.now))
        options = Options(rounds=rounds, only=",".join(only), budget=budget, noop_module="none")
        with ExitStack() as stack:
            result = runner._Run(options, lambda _: None, stack).measure()
        counts = {name: sum(sample.contender == name for sample in result.samples) for name in only}
        calls = {verdict.name: verdict.call for verdict in result.targets}
        return counts, calls, result

    return run


def about(bound: float):
    """Rates on both sides of the bound."""
    return lambda number: bound + (0.004 if number % 2 else -0.004)


def test_what_is_decided_gets_no_more_rounds(measured):
    counts, calls, _ = measured({}, budget=1000.0)
    assert set(counts.values()) == {5}
    assert (calls["device-5ms-256-rate"], calls["verify-spare-cost"]) == ("met", "met")


def test_what_is_undecided_gets_half_as_many_again_until_it_is_not(measured):
    rates = {"device-5ms-ours-256": lambda number: about(0.995)(number) if number < 5 else 1.0}
    counts, calls, result = measured(rates, budget=1000.0)
    assert calls["device-5ms-256-rate"] == "met"
    assert counts["device-5ms-raw"] == counts["device-5ms-ours-256"] > 5
    assert counts["device-5ms-raw"] in (7, 10, 15, 22), "it looks seldom, so that it does not wait for a lucky round"
    assert counts["verify-spare-always"] == 5, "of others there are as many as before"
    assert [r.keys() >= set(DEVICE) for r in result.by_round().values()] == [True] * len(result.by_round())


def test_the_budget_is_shared_and_then_over(measured):
    rates = {"device-5ms-ours-256": about(0.995), "verify-spare-always": about(0.98)}
    counts, calls, _ = measured(rates, budget=100.0)
    assert (calls["device-5ms-256-rate"], calls["verify-spare-cost"]) == ("undecided", "undecided")
    assert counts["device-5ms-raw"] == counts["verify-spare-never"] == 5 + 25, "50 s each, of rounds of 2 s"


@pytest.mark.parametrize(("budget", "more"), [(0.0, 0), (None, 2)])
def test_without_a_budget_there_are_none_and_by_default_a_quarter(measured, budget, more):
    counts, _, _ = measured({"verify-spare-always": about(0.98)}, budget, only=SPARE)
    assert counts["verify-spare-always"] == 5 + more, "of two times five slices of a second: 2.5 s"
