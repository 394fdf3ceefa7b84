"""No kill, and no other process on the store, puts a number into two trees."""

from __future__ import annotations

import pytest
from tests.support.batch_kills import batches_under_kills

pytestmark = pytest.mark.chaos


@pytest.mark.timeout(180)
def test_no_kill_makes_two_roots_for_one_number(fresh_token, tmp_path):
    config = fresh_token().config(
        stateFile=str(tmp_path / "state.db"), policy={"kinds": ["batch-root"]}, batching={"intervalMs": 1}
    )
    config["sequencer"]["stateSecret"] = "s" * 32
    counts = batches_under_kills(config, kills=10, seed=1)
    assert counts["roots"] >= 20
    assert counts["signatures"] > counts["roots"]
