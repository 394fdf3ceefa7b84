"""kill -9 between and inside all steps of a rotation: always one key that signs, nothing lost, nothing left."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from tests.support.rotation import Lives

from hsmcore.manager.rotation.machine import STEPS

pytestmark = [pytest.mark.integration, pytest.mark.chaos]
MOMENTS = ("before", "begun", "effect", "recorded")
FORWARD = [f"do:{step.name}:{moment}" for step in STEPS for moment in MOMENTS]
BACK = [f"undo:{step.name}:{moment}" for step in STEPS if step.undone for moment in MOMENTS]


def lives(fresh_token, tmp_path, times):
    """Each time with a token and a store of its own: the time that a life takes must not grow with all those before."""
    chance = random.Random(7)
    for number in range(times):
        token, folder = fresh_token({"name": "p256", "kind": "ecdsa-p256"}), tmp_path / str(number)
        folder.mkdir()
        everywhere(token, folder, chance)
        token.remove()


def everywhere(token, folder, chance):
    rotation = {"overlapDays": 0, "destroyAfterDays": 0, "backupEnabled": True}
    rotation["backupLocation"] = str(folder / "backups")
    config = token.config(
        "p256",
        settings={"sessions": 1},
        maxCacheSize=0,
        requestTimeoutMs=50,
        stateFile=str(folder / "state.db"),
        keyRotation=rotation,
    )
    root = Path(__file__).parents[2]
    environment = {**token.environment, "PYTHONPATH": f"{root / 'core'}{os.pathsep}{root}", "PYTHONWARNINGS": "ignore"}
    common = {"config": config, "chain": str(folder / "authority")}
    with Lives(environment) as child:
        assert child.live(kill="begun", fails=False, **common)
        for point in FORWARD:
            assert child.live(kill=point, fails=False, **common), f"{point} was not reached"
        for point in BACK:
            assert child.live(kill=point, fails=True, **common), f"{point} was not reached"
        for point in FORWARD[1::4] + BACK[1::4]:  # within the effect, wherever that may be
            fails = point in BACK
            child.live(kill=point, delay=chance.uniform(0.0002, 0.006), fails=fails, **common)
        assert not child.live(kill=None, fails=False, **common)


@pytest.mark.timeout(240)
def test_two_kills_at_every_point(fresh_token, tmp_path):
    lives(fresh_token, tmp_path, 2)


@pytest.mark.slow("twenty kills at every point of a rotation")
@pytest.mark.timeout(1800)
def test_twenty_kills_at_every_point(fresh_token, tmp_path):
    lives(fresh_token, tmp_path, 20)
