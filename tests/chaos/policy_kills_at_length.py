"""As test_policy_kills.py, a thousand times; `make check-deep` runs it."""

from __future__ import annotations

import pytest
from tests.support.policy_kills import config_of, sign_under_kills


@pytest.mark.timeout(1800)
def test_a_thousand_kills(fresh_token, tmp_path):
    counts = sign_under_kills(config_of(fresh_token(), tmp_path), kills=1000, seed=2)
    assert counts["positions"] >= 1000
    assert counts["signatures"] > counts["positions"]
