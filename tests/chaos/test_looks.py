"""Looks at the state store beside a signer that is killed: a seed of `tests/chaos/looks.py`. `make check-deep` has
two hundred."""

from __future__ import annotations

import pytest
from tests.support.seeds import run_command
from tests.support.size import share

pytestmark = [pytest.mark.integration, pytest.mark.chaos]


def test_what_is_committed_after_a_look_survives_a_kill():
    code, verdict = run_command("tests.chaos.looks", f"4-{3 + share(4)}", 110)
    assert verdict["notes"] == []
    assert verdict["schedules"] == share(4)
    assert code == 0
