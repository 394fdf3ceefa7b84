"""kill -9 at each point of rotations: no serial has two sets, and a verifier follows through all that were made."""

from __future__ import annotations

import hashlib
import os
import random
import sqlite3
import time
from contextlib import closing

import pytest
from tests.chaos.test_rotation_kills import BACK, FORWARD
from tests.support.paths import ROOT
from tests.support.rotation import Lives

from hsmcore.audit.key_set import KeySet

pytestmark = [pytest.mark.integration, pytest.mark.chaos]


def sets(folder):
    """The sets of a store, oldest first, and what was bound to each serial."""
    with closing(sqlite3.connect(folder / "state.db")) as raw:
        notes = raw.execute("SELECT serial, note FROM key_set ORDER BY serial").fetchall()
        bound = dict(raw.execute("SELECT position, digest FROM bound WHERE domain = 'my-rollup/key-set'"))
    return [(serial, KeySet.remembered(note.encode())) for serial, note in notes], bound


def lives(token, folder, points):
    config = token.config(
        settings={"sessions": 1},
        maxCacheSize=0,
        requestTimeoutMs=50,
        stateFile=str(folder / "state.db"),
        policy={"kinds": ["raw", "key-set"], "domain": "my-rollup"},
        keyRotation={"overlapDays": 0, "destroyAfterDays": 0, "backupEnabled": False},
    )
    environment = {**token.environment, "PYTHONPATH": f"{ROOT / 'core'}{os.pathsep}{ROOT}", "PYTHONWARNINGS": "ignore"}
    common = {"config": config, "chain": str(folder / "authority")}
    killed = 0
    with Lives(environment) as child:
        for point, delay in points:
            more = {} if delay is None else {"delay": delay}
            killed += child.live(kill=point, fails=point in BACK, **more, **common)
        assert not child.live(kill=None, fails=False, **common)
    return killed


def check(folder):
    found, bound = sets(folder)
    for serial, one in found:
        assert one.serial == serial
        assert hashlib.sha256(one.text).hexdigest() == bound[serial], "a set that was not bound"
    kept, retired, signed = found[0][1], set(), set()
    for skew in (-300, 300):
        kept = found[0][1]
        for _, one in found[1:]:
            kept = kept.follow(one.note, time.time() + skew)
            ended = {key.public_key for key in one.keys if key.state == "retired"}
            assert retired <= ended or skew > 0, "a key that had ended is good again"
            retired |= ended
            signed.add(one.current.public_key)
            assert not any(kept.accepts(key, time.time() + skew) for key in ended)
        assert kept is found[-1][1] or kept.note == found[-1][1].note
    return len(found), len(signed)


def points(chance, count):
    """Some points of all steps, before and within effects; the step that has a set signed more often."""
    every = [(point, None) for point in FORWARD + BACK]
    within = [(point, chance.uniform(0.0002, 0.02)) for point in FORWARD[1::4]]
    notify = [point for point in FORWARD if ":notify:" in point or ":activate:" in point or ":deactivate:" in point]
    return chance.sample(every + within, min(count, len(every + within))) + [
        (point, chance.choice((None, chance.uniform(0.0002, 0.02)))) for point in chance.choices(notify, k=count // 2)
    ]


@pytest.mark.timeout(240)
def test_kills_around_the_switch_leave_one_set_for_a_serial(fresh_token, tmp_path):
    assert lives(fresh_token(), tmp_path, points(random.Random(3), 4)) >= 3
    assert check(tmp_path)[1] >= 2


@pytest.mark.deep
@pytest.mark.timeout(1800)
def test_fifty_rotations_with_kills_leave_no_gap(fresh_token, tmp_path):
    assert lives(fresh_token(), tmp_path, points(random.Random(5), 60)) >= 50
    made, signed = check(tmp_path)
    assert signed >= 30
    assert made >= 90
