"""The soak, for a few seconds in each mode. It runs in a process of its own, whose memory it measures."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from tests.support.paths import ROOT
from tests.support.softhsm import find_module

SECONDS = 5

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow("a load of seconds in each way of signing"),
]


SOUND, CHAOS = [], ["--chaos"]


@pytest.mark.parametrize(
    ("module", "faults", "isolation"),
    [
        pytest.param("softhsm", CHAOS, "thread", id="softhsm-chaos-thread", marks=pytest.mark.deep),
        pytest.param("softhsm", CHAOS, "process", id="softhsm-chaos-process"),
        pytest.param("noop", SOUND, "process", id="noop-sound-process", marks=pytest.mark.deep),
        pytest.param("softhsm", SOUND, "thread", id="softhsm-sound-thread", marks=pytest.mark.deep),
        pytest.param("softhsm", SOUND, "process", id="softhsm-sound-process", marks=pytest.mark.deep),
        pytest.param("noop", SOUND, "thread", id="noop-sound-thread", marks=pytest.mark.deep),
        pytest.param("noop", CHAOS, "thread", id="noop-chaos-thread", marks=pytest.mark.deep),
        pytest.param("noop", CHAOS, "process", id="noop-chaos-process", marks=pytest.mark.deep),
    ],
)
def test_nothing_is_lost_and_nothing_left(module, faults, isolation):
    if module == "softhsm" and find_module() is None:
        pytest.skip("SoftHSM is not installed")
    options = [f"--module={module}", f"--seconds={SECONDS}", f"--isolation={isolation}", *faults]
    command = [sys.executable, "-m", "tests.soak.soak", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=100)
    assert done.stdout, done.stderr
    summary = json.loads(done.stdout)
    assert summary["faults"] == []
    assert (done.returncode, summary["ok"]) == (0, True)
    assert {"sign", "receipt", "batched", "short", "cancelled", "verified"} <= summary["done"].keys()
    if faults:
        assert summary["recoveries"]
