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

from hsmcore.tlog.key_set import KeySet

pytestmark = [pytest.mark.integration, pytest.mark.chaos]


def sets(folder):
    """The sets of a store, oldest first, and what was bound to each serial."""
    with closing(sqlite3.connect(folder / "state.db")) as raw:
        notes = raw.execute("SELECT serial, note FROM key_set ORDER BY serial").fetchall()
        bound = dict(raw.execute("SELECT position, digest FROM bound WHERE domain = 'my-rollup/key-set'"))
    return [(serial, KeySet.remembered(note.encode())) for serial, note in notes], bound


def children(token):
    return Lives({**token.environment, "PYTHONPATH": f"{ROOT / 'core'}{os.pathsep}{ROOT}", "PYTHONWARNINGS": "ignore"})


def request_of(token, folder, timeout_ms, **rotation):
    """What each life is told: a key manager that signs sets of keys, and the chain's authority."""
    config = token.config(
        settings={"sessions": 1},
        maxCacheSize=0,
        requestTimeoutMs=timeout_ms,
        stateFile=str(folder / "state.db"),
        policy={"kinds": ["raw", "key-set"], "domain": "my-rollup"},
        keyRotation={"destroyAfterDays": 0, "backupEnabled": False, **rotation},
    )
    return {"config": config, "chain": str(folder / "authority")}


def lives(token, folder, points):
    common, killed = request_of(token, folder, 50, overlapDays=0), 0
    with children(token) as child:
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


def speaking_lives(token, folder, points, rotations):
    """Each life is two days behind the one before, and an overlap has one: it ends in the life after. Goes on without
    kills until there were so many rotations. Returns how many lives were killed."""
    common = request_of(token, folder, 30_000, overlapDays=1, intervalDays=365) | {"said": str(folder / "said")}
    killed, points, number = [], [None, *points], 0
    with children(token) as child:
        while number < len(points) or switches(folder) < rotations:
            point = points[number] if number < len(points) else None
            number += 1
            if child.live(kill=point, fails=point in BACK, ahead=number * 2 * DAY, **common):
                killed.append(point)
    return killed


def switches(folder):
    """Rotations whose new key signed."""
    with closing(sqlite3.connect(folder / "state.db")) as raw:
        done = "SELECT count(*) FROM key_version WHERE activated_ns IS NOT NULL AND state != 'pending'"
        return raw.execute(done).fetchone()[0] - 1


def check_spoken(folder):
    """The rule, for each signature that was handed out and verifiers whose clocks are five minutes wrong: no gap; the
    old key until its end; the new one from its start; never a retired one. Returns signatures and keys."""
    known = dict(sets(folder)[0])
    spoken = [line.split() for line in (folder / "said").read_text().splitlines()]
    signed, ended = set(), set()
    for time_, public, message, signature, before, after in spoken:
        now, key = float(time_), bytes.fromhex(public)
        signed.add(key)
        for skew in SKEWS:
            kept = known[int(before)]
            if kept.entry(key) is None:
                kept = known[int(after)]  # as a verifier that does not know a key: it fetches, and looks again
            entry = kept.verify(bytes.fromhex(message), bytes.fromhex(signature), now + skew, 300, "raw")
            assert entry is not None, f"a gap: {key.hex()} at {now} by set {kept.serial}, clock {skew:+}"
        assert entry.state != "overlap" or now <= entry.not_after, "the former key signs after its end"
    for serial, one in sorted(known.items()):
        for key in one.keys:
            for skew in SKEWS:
                if key.state == "overlap":
                    assert one.accepts(key.public_key, key.not_after + skew), "a gap: before its end"
                    assert not one.accepts(key.public_key, key.not_after + 601 + skew), "after its end"
                if key.state in ("current", "next"):
                    assert one.accepts(key.public_key, key.not_before + skew), "a gap: after its start"
                    assert not one.accepts(key.public_key, key.not_before - 601 + skew), "before its start"
            if key.state == "retired":
                ended.add(key.public_key)
                assert not any(one.accepts(key.public_key, key.not_before + at) for at in (0, 60, DAY)), "retired"
        good = {key.public_key for key in one.keys if key.state != "retired"}
        assert not good & ended, f"a key that had ended is good again in set {serial}"
    for skew in SKEWS:
        kept = known[min(known)]
        for serial in sorted(known)[1:]:
            kept = kept.follow(known[serial].note, known[serial].time + skew)
    return len(spoken), signed, ended


SKEWS = (-300, 0, 300)
DAY = 86_400


@pytest.mark.timeout(240)
def test_each_signature_is_good_by_the_set_of_its_time_and_no_retired_key_is(fresh_token, tmp_path):
    drawn = ["do:activate:effect", random.Random(7).choice(FORWARD)]
    assert speaking_lives(fresh_token(), tmp_path, drawn, 3)
    spoken, signed, ended = check_spoken(tmp_path)
    assert spoken >= 20
    assert len(signed) >= 3
    assert ended


@pytest.mark.deep
@pytest.mark.timeout(3000)
def test_fifty_rotations_with_kills_leave_no_gap(fresh_token, tmp_path):
    """A life for each point of a rotation at which it is to be killed, in an order that is drawn."""
    every = random.Random(5).sample(FORWARD + BACK, len(FORWARD + BACK))
    killed = speaking_lives(fresh_token(), tmp_path, every, 50)
    spoken, signed, ended = check_spoken(tmp_path)
    counts = f"{len(set(killed))} of {len(every)} points, {switches(tmp_path)} rotations, {spoken} signatures"
    (tmp_path / "counts").write_text(counts)
    assert len(set(killed)) >= 35  # one pass does not reach each of them
    assert switches(tmp_path) >= 50
    assert (spoken > 500, len(signed) >= 45, len(ended) >= 45) == (True, True, True)
