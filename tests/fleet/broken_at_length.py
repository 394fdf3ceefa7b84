"""The broken builds that need more schedules than `make test` has time for: each is caught within twenty."""

from __future__ import annotations

import pytest
from tests.fleet.breakages import BREAKAGES
from tests.fleet.test_broken_builds import caught

SEEDS = {
    "reclaimed_by_age": "0-3",
    "not_synchronous": "0-3",
    "let_go": "6,9",
    "unwitnessed": "18-19",
    "unfenced": "0-3",
    "unshared": "0-7",
}


def test_each_breakage_is_played():
    assert set(SEEDS) == set(BREAKAGES)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("breakage", SEEDS)
def test_it_is_caught(breakage):
    assert caught(breakage, SEEDS[breakage], 1700) & {"two digests", "not bound", "two holders", "epoch went back"}
