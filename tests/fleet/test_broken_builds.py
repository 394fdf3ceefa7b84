"""Builds that are broken on purpose are caught, so the checker and the schedules see what they are for. test_checker.py
gives the checker such histories in `make test`."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from tests.fleet.nodes import needs_postgres
from tests.support.chaos import needs_chaos
from tests.support.paths import ROOT

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.deep,
    pytest.mark.slow("whole schedules for each broken build"),
    needs_chaos,
    needs_postgres,
]


def caught(breakage: str, seeds: str, seconds: float = 590) -> set[str]:
    """What the checker says of a broken build."""
    command = [sys.executable, "-m", "tests.fleet.schedules", "--seeds", seeds, "--jobs", "2", "--broken", breakage]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=seconds)
    assert done.returncode == 1, done.stdout
    return set(json.loads(done.stdout)["faults"])


@pytest.mark.timeout(600)
def test_a_row_that_is_reclaimed_by_age_is_seen():
    assert caught("reclaimed_by_age", "3") & {"two digests", "not bound"}


@pytest.mark.timeout(600)
def test_a_bind_that_locks_nothing_is_seen():
    assert "epoch went back" in caught("unshared", "0-1")


@pytest.mark.timeout(600)
def test_a_bind_without_fence_is_seen():
    assert "two holders" in caught("unfenced", "5")
