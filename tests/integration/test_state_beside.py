"""A reader of the state store costs the process that signs nothing: not its locks, not what it writes later."""

from __future__ import annotations

import json
import subprocess
import time

import pytest
from tests.support.state_holder import Holder
from tests.support.terminal import PROGRAM

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("terminal")]


@pytest.fixture
def hsmcore(fresh_token, tmp_path):
    """The command line in a process of its own, on a configuration with levels and rotation: what it says as JSON."""
    token = fresh_token()
    config = token.config(
        maxCacheSize=0,
        requestTimeoutMs=200,
        stateFile=str(tmp_path / "state.db"),
        failover={"emergencyModeEnabled": True, "primaryRetryIntervalMs": 50},
        keyRotation={"overlapDays": 1},
    )
    (tmp_path / "config.json").write_text(json.dumps(config))

    def hsmcore(*arguments):
        command = [*PROGRAM, *arguments, "--json", "--config", str(tmp_path / "config.json")]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    hsmcore.member = f"softhsm:{token.label}"
    return hsmcore


def until(condition, what):
    """What the condition gives once it is true."""
    end = time.monotonic() + 60
    while not (found := condition()):
        assert time.monotonic() < end, f"never: {what}"
    return found


def test_what_is_written_after_a_look_survives_a_kill(hsmcore, tmp_path):
    with Holder("store", tmp_path / "state.db") as holder:
        holder.ask("before")
        hsmcore("failover", "status")
        holder.ask("after")
        deleted = holder.deleted()
        holder.kill()
    assert [event["reason"] for event in hsmcore("failover", "history")] == ["before", "after"]
    assert deleted == []


@pytest.mark.slow("a process for each life")
def test_a_key_that_was_rotated_after_a_look_signs_after_a_kill(hsmcore, tmp_path):
    with Holder("manager", tmp_path / "config.json") as manager:
        old = manager.ask("key")
        hsmcore("failover", "status")
        new = manager.ask("rotate")
        assert new != old
        manager.kill()
    with Holder("manager", tmp_path / "config.json") as manager:
        assert manager.ask("key") == new
        hsmcore("failover", "status")
        until(lambda: hsmcore("failover", "status")["running"], "a process that looked before sees that it runs")


def test_emergency_signatures_after_a_look_are_counted_after_a_kill(hsmcore, tmp_path):
    with Holder("manager", tmp_path / "config.json") as manager:
        hsmcore("failover", "status")
        hsmcore("failover", "drain", hsmcore.member, "--reason", "firmware", "--yes")
        until(lambda: manager.ask("sign 1") == "emergency", "the drain is followed")
        assert manager.ask("sign 300") == "emergency"
        manager.kill()
    assert hsmcore("emergency", "status")["left"] <= 1000 - 301
