"""Random schedules of a fleet: a few of them here, hundreds by the command line of schedules.py."""

from __future__ import annotations

from collections import Counter

import pytest
from tests.fleet import schedules
from tests.fleet.nodes import needs_postgres
from tests.support.seeds import run_command

SEED = 22205
"""One whose plan has ten kinds of faults."""
SEEDS = (SEED, 6, 919, 1031, 1868, 9408)
"""Some whose plans have every kind between them, and each choice, but `lose`, which test_promotions.py does."""
PLAYED = set(schedules.NEMESES) - {"lose"}

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.slow("hosts and databases under faults"),
    needs_postgres,
]


def test_the_schedules_are_of_every_kind():
    plans = [schedules.plan(seed) for seed in range(1000)]
    assert plans[7] == schedules.plan(7)
    counts = Counter(doing.what for plan in plans for doing in plan.doings)
    assert set(counts) == set(schedules.NEMESES)
    assert min(counts.values()) > 100
    for choice in ("unordered", "pooled", "faults"):
        assert min(Counter(getattr(plan, choice) for plan in plans).values()) > 200, choice


def test_a_longer_schedule_is_as_dense():
    for seed in range(200):
        short, long = schedules.plan(seed), schedules.plan(seed, 4 * schedules.SECONDS)
        counts = [
            Counter("change" if doing.what in schedules.CHANGES else doing.what in schedules.DOINGS for doing in one)
            for one in (short.doings, long.doings)
        ]
        assert counts[1][True] == 4 * counts[0][True]
        assert counts[1]["change"] <= 4
        assert all(doing.at < long.seconds - 1.0 for doing in long.doings)
    assert Counter(doing.what in schedules.CHANGES for doing in schedules.plan(0, 400.0).doings)[True] > 20


def test_a_schedule_of_one_thing():
    for what in schedules.NEMESES:
        made = schedules.plan_of_one(3, 12.0, what)
        assert {doing.what for doing in made.doings} == {what}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seeds", [(SEED,), pytest.param(SEEDS, marks=pytest.mark.deep)], ids=["one", "all"])
def test_no_position_is_signed_twice_whatever_happens(seeds):
    plans = [schedules.plan(seed) for seed in seeds]
    played = {doing.what for plan in plans for doing in plan.doings}
    if seeds == (SEED,):
        assert len(played) == 10, "the draw has changed: choose another seed"
    else:
        assert played >= PLAYED, "the draw has changed: choose other seeds"
        for choice in ("pooled", "faults", "round_trip"):
            assert any(getattr(plan, choice) for plan in plans), choice
        assert {plan.unordered for plan in plans} == set(schedules.UNORDERED)
        assert any(plan.rate != 1.0 for plan in plans), "a clock that runs at another rate"
    code, total = run_command("tests.fleet.schedules", ",".join(map(str, seeds)), 590)
    late = total["faults"].pop("healed late", 0)  # a busy machine: how soon a fleet heals is for the campaign
    assert (code, total["faults"]) == (int(late > 0), {}), total["notes"]
    assert total["schedules"] == len(seeds)
