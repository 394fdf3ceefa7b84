"""The emergency budget at length: a thousand signatures, twenty kills. Run it by its path; see `make failover-long`."""

from __future__ import annotations

import pytest
from tests.support.budget_kills import spend_under_kills


@pytest.mark.timeout(300)
def test_a_thousand_and_not_one_more_leave_whatever_is_killed(fresh_token, tmp_path):
    spend_under_kills(fresh_token, tmp_path / "state.db", most=1000, kills=20)
