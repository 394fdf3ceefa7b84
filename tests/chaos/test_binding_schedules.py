"""Random schedules of callers that give up and ask again: some of them here, a thousand by the command line of
binding_schedules.py."""

from __future__ import annotations

from collections import Counter

import pytest
from tests.chaos import binding_schedules as schedules
from tests.support.seeds import run_command
from tests.support.size import FULL

pytestmark = [
    pytest.mark.chaos,
]


def test_the_schedules_are_of_every_kind():
    plans = [schedules.plan(seed) for seed in range(1000)]
    assert plans[7] == schedules.plan(7)
    assert {(caller.asks, caller.gives_up) for plan in plans for caller in plan.callers} == {
        (asks, gives_up) for asks in schedules.ASKING for gives_up in schedules.GIVING_UP
    }
    for choice in ("kms", "members", "hedging", "audited", "moves_early"):
        assert min(Counter(getattr(plan, choice) for plan in plans).values()) > 250, choice
    assert min(Counter(plan.restarts for plan in plans).values()) > 250


@pytest.mark.timeout(240)
def test_no_message_is_signed_by_two_keys_however_its_caller_gave_up():
    count = 32 if FULL else 4
    code, total = run_command("tests.chaos.binding_schedules", f"0-{count - 1}", 200)
    assert (code, total["faults"]) == (0, {}), total["notes"]
    # Messages were bound, over restarts too, and others were not.
    assert total["schedules"] == count
    assert total["doings"]["bound"] > 3 * count
    assert total["doings"]["restart"] > count // 4
    assert total["answers"]["signed"] > 12 * count


@pytest.mark.timeout(120)
def test_kms_may_sign_what_it_does_not_answer():
    """Of this seed the connections ended after KMS had signed, and the other level signed the message too."""
    code, total = run_command("tests.chaos.binding_schedules", "38", 100)
    assert (code, total["faults"]) == (0, {}), total["notes"]
