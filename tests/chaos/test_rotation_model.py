"""Lives of processes that lead a rotation: a few here, a thousand by rotation_leaders_at_length.py."""

from __future__ import annotations

import pytest

pytest.importorskip("solders")
from tests.chaos import rotation_model
from tests.support.size import share

pytestmark = [pytest.mark.integration, pytest.mark.chaos, pytest.mark.timeout(240)]


def verdicts(seeds):
    return [rotation_model.run_one(seed) for seed in seeds]


def test_the_key_that_the_chain_obeys_signs_whatever_leads_and_wherever_it_ends():
    found = rotation_model.added(verdicts(range(share(12))))
    assert found["faults"] == {}, found["notes"]
    assert found["counts"]["took over in a handover"] > 0
    assert found["counts"]["rotations done"] > 0
