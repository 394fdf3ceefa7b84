"""Random schedules of a fleet: a few of them here, hundreds by the command line of schedules.py."""

from __future__ import annotations

from collections import Counter

import pytest
from tests.fleet import schedules
from tests.fleet.nodes import needs_postgres
from tests.support.chaos import needs_chaos
from tests.support.seeds import run_command

pytestmark = [pytest.mark.chaos, pytest.mark.slow, needs_chaos, needs_postgres]


def test_the_schedules_are_of_every_kind():
    plans = [schedules.plan(seed) for seed in range(1000)]
    assert plans[7] == schedules.plan(7)
    counts = Counter(doing.what for plan in plans for doing in plan.doings)
    assert set(counts) == {*schedules.DOINGS, *schedules.CHANGES, schedules.LATE} - {""}
    assert min(counts.values()) > 100
    for choice in ("strict", "pooled", "faults"):
        assert min(Counter(getattr(plan, choice) for plan in plans).values()) > 200, choice


@pytest.mark.timeout(600)
def test_no_position_is_signed_twice_whatever_happens():
    code, total = run_command("tests.fleet.schedules", "3-4", 590)
    assert (code, total["faults"]) == (0, {}), total["notes"]
    assert total["schedules"] == 2
    assert total["positions bound"] > 20
    assert total["answers"]["released"] > 100
