"""Lives of processes that lead a rotation: a few here, a thousand by rotation_leaders_at_length.py."""

from __future__ import annotations

import pytest

pytest.importorskip("solders")
from tests.chaos import rotation_model
from tests.support.size import share

from hsmcore.errors import BadArgument
from hsmcore.manager.rotation.context import skipped
from hsmcore.manager.rotation.service import RotationService
from hsmcore.manager.rotation.steps import handover

pytestmark = [pytest.mark.integration, pytest.mark.chaos, pytest.mark.timeout(240)]


def verdicts(seeds):
    return [rotation_model.run_one(seed) for seed in seeds]


def test_the_key_that_the_chain_obeys_signs_whatever_leads_and_wherever_it_ends():
    found = rotation_model.added(verdicts(range(share(12))))
    assert found["faults"] == {}, found["notes"]
    assert found["counts"]["took over in a handover"] > 0
    assert found["counts"]["rotations done"] > 0


def test_the_model_sees_a_key_destroyed_by_a_process_without_the_handover(monkeypatch):
    """What led before: any process that may rotate, and without a handover nothing had been handed over."""

    async def leads(service):
        return None if service._rotates else BadArgument("it only follows")

    async def nothing(_ctx):
        return skipped("nothing was handed over")

    async def no_doubt(_ctx):
        return None

    monkeypatch.setattr(RotationService, "_must_follow", leads)
    monkeypatch.setattr(handover, "_held", nothing)
    monkeypatch.setattr(handover, "why_not_settled", no_doubt)
    [verdict] = verdicts([8])
    assert verdict["notes"] == ["seed 8: at load: the chain obeys a key that is destroyed"]


@pytest.mark.parametrize(("answer", "seed"), [("old", 0), ("new", 0)])
def test_the_model_sees_that_the_chain_is_not_asked(monkeypatch, answer, seed):
    async def guess(*_arguments):
        return answer, "guessed"

    monkeypatch.setattr(handover, "_ask", guess)
    [verdict] = verdicts([seed])
    assert verdict["faults"] == {"broken": 1}
