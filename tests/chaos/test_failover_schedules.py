"""Random schedules over levels: a few of them here, a thousand by the command line of failover_schedules.py."""

from __future__ import annotations

from collections import Counter

import pytest
from tests.chaos import failover_schedules as schedules
from tests.chaos.failover_load import Verdict
from tests.support.levels_model import Reference
from tests.support.seeds import added, run_command

from hsmcore.failover.levels import Level, Levels
from hsmcore.failover.member_state import MemberState

pytestmark = [
    pytest.mark.chaos,
]


def test_a_seed_determines_the_schedule():
    assert schedules.plan(7) == schedules.plan(7)
    assert schedules.plan(7) != schedules.plan(8)


def test_the_schedules_are_of_every_kind():
    plans = [schedules.plan(seed) for seed in range(1000)]
    doings = Counter(doing.what for plan in plans for doing in plan.doings)
    assert doings.keys() == schedules.DOINGS.keys()
    assert min(doings.values()) > 100
    for choice in ("mode", "members", "other_key", "emergency", "hedging", "audited"):
        assert len({getattr(plan, choice) for plan in plans}) == 2, choice
    assert sum(bool(plan.isolated) for plan in plans) > 100


def test_the_checker_sees_a_level_that_is_not_what_the_facts_say():
    levels = [Level("primary", 3, 50), Level("secondary", 3, 50)]
    members = [MemberState("a", 0, 50), MemberState("b", 1, 50)]
    machine, reference = Levels(levels, members), Reference(levels, [0, 1])
    for number, member in enumerate(members):
        machine.started(member, b"key", 1)
        reference.started(number, b"key")
    assert reference.differences(machine) == []
    reference.failed(0, "down", others=False)
    assert len(reference.differences(machine)) == 3
    reference.failed(1, "down", others=False)
    machine.failed(members[0], "down", "", 1)
    machine.failed(members[1], "down", "", 1)
    assert reference.differences(machine) == []


def test_faults_of_verdicts_are_added():
    verdict = Verdict("seed 1")
    verdict.fault("lost", "nothing", 0)
    verdict.fault("lost", "two", 2)
    total = added([verdict.as_dict(), verdict.as_dict()])
    assert (total["faults"], total["schedules"]) == ({"lost": 4}, 2)
    assert total["notes"] == ["seed 1: lost: two"] * 2


def test_nothing_is_lost_over_the_levels():
    code, total = run_command("tests.chaos.failover_schedules", "0-11", 110)
    assert total["faults"] == {}, total["notes"]
    assert (code, total["schedules"]) == (0, 12)
    # There was something to lose, every level has signed, and not all was well.
    assert total["schedules by level used"].keys() == {"primary", "secondary", "emergency"}
    assert total["answers"]["signed"] > 12 * 100
    assert total["transitions"] > 24
    assert total["emergency signatures"] > 0
    assert total["audit records of signatures"] > 100


def test_a_hedge_that_ends_unsure_binds_its_message():
    """Of this seed the second member's attempt ended at its deadline, and the emergency key signed the message too."""
    code, total = run_command("tests.chaos.failover_schedules", "352", 60)
    assert (code, total["faults"]) == (0, {}), total["notes"]
