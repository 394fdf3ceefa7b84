"""No kill makes two signatures at one position."""

from __future__ import annotations

import pytest
from tests.support.policy_kills import config_of, sign_under_kills

pytestmark = pytest.mark.chaos


@pytest.mark.timeout(180)
def test_no_kill_makes_two_signatures_at_one_position(fresh_token, tmp_path):
    """A thousand kills: tests/chaos/policy_kills_at_length.py."""
    counts = sign_under_kills(config_of(fresh_token(), tmp_path), kills=20, seed=1)
    assert counts["positions"] >= 20
    assert counts["signatures"] > counts["positions"]
