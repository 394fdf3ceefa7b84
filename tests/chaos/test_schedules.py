"""Random fault schedules: a few of them here, ten thousand by the command line of schedules.py."""

from __future__ import annotations

from collections import Counter

import pytest
from tests.chaos import schedules
from tests.support.chaos import needs_chaos
from tests.support.paths import NOOP
from tests.support.seeds import added, run_command

from hsmcore.members.supervisor import HOST_PROGRAM

pytestmark = [
    pytest.mark.integration,
    needs_chaos,
    pytest.mark.skipif(not (NOOP.is_file() and HOST_PROGRAM.is_file()), reason="the tools are not built"),
]


def test_a_seed_determines_the_schedule():
    assert schedules.plan(7) == schedules.plan(7)
    assert schedules.plan(7) != schedules.plan(9)


def test_the_schedules_are_of_every_kind():
    plans = [schedules.plan(seed) for seed in range(400)]
    assert {plan.mode for plan in plans[::2]} == {"thread"}
    assert {plan.mode for plan in plans[1::2]} == {"process"}
    assert all(0.01 <= plan.random["probability"] <= 0.1 for plan in plans)
    actions = Counter(a["action"] if isinstance(a, dict) else a for plan in plans for a in plan.random["actions"])
    assert actions.keys() == {*schedules.LOSSES, *schedules.LIES, "return", "hang"}
    assert min(actions.values()) > 100
    assert {plan.noop for plan in plans} == {True, False}


def test_faults_of_verdicts_are_added():
    verdict = schedules.Verdict(schedules.plan(1))
    verdict.fault("lost", "nothing", 0)
    verdict.fault("lost", "two", 2)
    total = added([verdict.as_dict(), verdict.as_dict()])
    assert total["faults"] == {"lost": 4}
    assert total["schedules"] == 2
    assert total["notes"] == ["seed 1 (process): lost: two"] * 2


def test_nothing_is_lost_by_random_faults(softhsm):
    code, total = run_command("tests.chaos.schedules", "0-23", 120)
    assert total["faults"] == {}, total["notes"]
    assert code == 0
    assert (total["schedules"], total["requests"]) == (24, 24 * schedules.REQUESTS)
    assert total["modes"] == {"thread": 12, "process": 12}
    # The faults did strike, and there was something left to lose.
    assert total["wrong signatures caught"] > 0
    assert len(total["recoveries"]) > 5
    assert total["answers"]["signed"] > 24 * schedules.REQUESTS / 4
