"""Builds that are broken on purpose are caught, so the checker and the schedules see what they are for. test_checker.py
gives the checker such histories in `make test`."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from tests.fleet.breakages import BREAKAGES
from tests.fleet.nodes import needs_postgres
from tests.support.paths import ROOT

import hsmcore
from hsmcore.fleet.machine import Machine

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.deep,
    pytest.mark.slow("whole schedules for each broken build"),
    needs_postgres,
]

HEALS = 25
"""Seconds of a machine with time after which a broken build counts as one that does not heal."""
LOST = {"two digests", "not bound"}
SEEN = {
    "forgetful": ("rows_back", "0-1", LOST),
    "let_go": ("emptied", "1,3,10-11,13-14", LOST),
    "misfinished": ("kill", "0-1", {"wrong message"}),
    "not_synchronous": ("fail_over", "0-5", LOST),
    "reclaimed_by_age": ("kill", "0-3", LOST),
    "uncounted": ("clone", "0-1", {"two copies"}),
    "unfenced": ("claim", "0-3", {"two holders", "epoch went back"}),
    "unheld": ("switch_over", "5,9", LOST),
    "unshared": ("late", "0-3", {"epoch went back"}),
    "unwitnessed": ("lose", "0-5", LOST),
    "walled": ("kill", "0-3", {"not healed"}),
}
"""What goes wrong again and again, in which schedules, and what is said of one of them at least."""

NEEDS = {"uncounted": hasattr(Machine, "is_copied"), "misfinished": hasattr(hsmcore.KeyManager, "unfinished")}


def test_each_breakage_is_played():
    assert set(SEEN) == set(BREAKAGES)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("breakage", SEEN)
def test_it_is_caught(breakage):
    only, seeds, faults = SEEN[breakage]
    if not NEEDS.get(breakage, True):
        pytest.skip("there is nothing of that kind to break yet")
    command = [sys.executable, "-m", "tests.fleet.schedules", "--seeds", seeds, "--jobs", "1", "--only", only]
    command += ["--broken", breakage, "--heals", f"{HEALS}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=1700)
    assert done.returncode == 1, done.stdout
    assert set(json.loads(done.stdout)["faults"]) & faults
