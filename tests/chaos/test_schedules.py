"""Random fault schedules: a few of them here, ten thousand by the command line of schedules.py."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from tests.chaos import schedules
from tests.support.disobedient import ACTIONS, SURVIVED
from tests.support.liveness import Liveness
from tests.support.seeds import added, run_command

pytestmark = [
    pytest.mark.integration,
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
    for many in ("kills", "away", "poisoned", "leaving", "second"):
        assert 40 < sum(bool(getattr(plan, many)) for plan in plans) < 360, many
    assert sum(plan.destroyed_at is not None for plan in plans) > 40
    assert sum(plan.slow["kind"] != "none" for plan in plans) > 40
    disobeying = [plan for plan in plans if plan.disobeys]
    assert 60 < len(disobeying) < 140
    assert {each for plan in disobeying for each in plan.disobeys} == {*ACTIONS}
    assert all({*plan.disobeys} <= SURVIVED.keys() for plan in disobeying if plan.mode == "thread")


def test_faults_of_verdicts_are_added():
    verdict = schedules.Verdict(schedules.plan(1))
    verdict.fault("lost", "nothing", 0)
    verdict.fault("lost", "two", 2)
    total = added([verdict.as_dict(), verdict.as_dict()])
    assert total["faults"] == {"lost": 4}
    assert total["schedules"] == 2
    assert total["notes"] == ["seed 1 (process): lost: two"] * 2


# ---- the oracle ------------------------------------------------------------------------------------------------------


def history(*requests: tuple[float, float, float, str], key: int = 1) -> Liveness:
    """Requests as (begun, ended, deadline, status)."""
    made = Liveness()
    asked = [made.ask(key, begun, deadline - begun) for begun, _, deadline, _ in requests]
    for one, (_, ended, _, status) in zip(asked, requests, strict=True):
        made.end(one, ended, status)
    return made


def found(made: Liveness, **more: Any) -> dict[str, int]:
    return {kind: len(several) for kind, several in made.without_need(**more).items()}


def test_who_gives_up_while_others_are_signed_was_refused_without_need():
    signed = (0.0, 0.30, 1.0, "OK")
    assert found(history((0.0, 0.29, 1.0, "SESSION_LOST"), signed)) == {"given up": 1}
    assert found(history((0.0, 0.31, 1.0, "SESSION_LOST"), signed)) == {}  # nothing shows that a session was healthy
    assert found(history((0.0, 0.29, 0.31, "SESSION_LOST"), signed)) == {}  # too late for it
    ended = history((0.0, 0.29, 1.0, "TOKEN_LOST"), (0.0, 0.29, 1.0, "TOKEN_LOST"), signed)
    assert found(ended, ends=1) == {"given up": 1}  # each thread that the module ends takes one request along
    for status in ("OK", "CANCELLED", "MESSAGE_REJECTED", "MODULE_FATAL"):
        assert found(history((0.0, 0.29, 1.0, status), signed)) == {}


def test_a_member_may_be_down_after_a_silence():
    before, after = (0.0, 0.1, 1.0, "OK"), (0.0, 0.5, 1.0, "OK")
    assert found(history(before, (0.0, 0.12, 1.0, "TOKEN_LOST"), after)) == {"given up": 1}
    assert found(history(before, (0.0, 0.14, 1.0, "TOKEN_LOST"), after)) == {}  # its answer took up to MARGIN


def test_who_is_overtaken_for_long_was_refused_without_need():
    late = (0.0, 1.0, 1.0, "DEADLINE_EXCEEDED")
    assert found(history(late, (0.01, 0.4, 2.0, "OK"))) == {"overtaken": 1}
    assert found(history(late, (0.01, 0.6, 2.0, "OK"))) == {}
    assert found(history((0.02, 1.0, 1.0, "DEADLINE_EXCEEDED"), (0.01, 0.4, 2.0, "OK"))) == {}  # it came first
    assert found(history(late, late, (0.01, 0.4, 2.0, "OK")), hangs=[(0.9, 1.1)]) == {"overtaken": 1}
    assert found(history(late, (0.01, 0.4, 2.0, "OK")), hangs=[(0.5, 0.9)]) == {"overtaken": 1}


def test_who_is_turned_away_without_a_backlog_was_refused_without_need():
    quick = [(0.0, 0.001 * number, 1.0, "OK") for number in range(1, 400)]
    refused = (0.2, 0.2, 0.5, "QUEUE_FULL")
    many, few = history(*quick, *[refused] * 2), history(*quick[:201], refused)
    for one in [*many._asked, *few._asked]:
        one.ahead = 90
    assert found(many) == {"turned away": 2}
    assert found(few) == {}  # no signature after it shows that there was time
    many._asked[-1].ahead = 200
    assert found(many) == {"turned away": 1}


def test_other_keys_and_own_faults_are_no_matter():
    made = history((0.0, 0.1, 1.0, "TOKEN_LOST"), (0.0, 0.12, 1.0, "HOST_LOST"))
    made.end(made.ask(2, 0.0, 1.0), 0.14)
    assert found(made) == {}
    made.end(made.ask(1, 0.0, 1.0), 0.14)
    assert found(made) == {"given up": 2}
    assert found(made, kills=[0.05, 0.06]) == {"given up": 1}
    made._asked[0].own = True
    assert found(made, kills=[0.05, 0.06]) == {}


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
