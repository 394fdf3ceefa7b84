"""A member that is only late: a suspicion takes no emergency key, and a process that waits for a processor is none."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from tests.support.chaos import send_signal
from tests.support.levels import SAME, Site
from tests.support.loops import one_loop
from tests.support.managers import opened, start, until
from tests.support.verifiers import is_good

from hsmcore.failover import health, plan
from hsmcore.failover.health import HealthMonitor

pytestmark = [pytest.mark.integration]
FOREVER = 3_600
LOOKS = 15
"""More looks at the members than a suspicion takes."""


@pytest.fixture
def looks(monkeypatch):
    """The number of looks at the members so far. Neither a probe nor a suspicion ends by itself."""
    count, tick = [0], HealthMonitor._tick

    async def counted(monitor):
        count[0] += 1
        return await tick(monitor)

    monkeypatch.setattr(HealthMonitor, "_tick", counted)
    monkeypatch.setattr(health, "PROBE_S", FOREVER)
    monkeypatch.setattr(plan, "SUSPICION_NS", FOREVER * 10**9)
    return count


async def some(looks):
    least = looks[0] + LOOKS
    await until(lambda: looks[0] >= least)


def went(manager):
    """The events that this key manager has told of, so far."""
    seen = []
    for kind in ("member-down", "failover"):
        manager.on(kind, lambda details, kind=kind: seen.append((kind, details.get("reason", ""))))
    return seen


@one_loop
async def test_a_suspicion_does_not_begin_the_emergency(tmp_path, fresh_token, looks):
    place = Site(tmp_path, fresh_token, SAME)
    failover = {"emergencyModeEnabled": True, "primaryRetryIntervalMs": FOREVER * 1000}
    async with opened(place.config(failover=failover)) as manager:
        seen = went(manager)
        good = await manager.sign(b"before")
        place.members[0].fault("C_Sign", "hang", forever=True, every=1, count=2)
        asked = [start(manager.sign(b"%d" % number, timeout=FOREVER)) for number in range(4)]
        await until(lambda: any(kind == "member-down" for kind, _ in seen))
        await some(looks)
        place.members[0].clear()
        place.members[0].release()
        signed = [await each for each in asked]
        status = await manager._path.budget.status()
    assert [kind for kind, _ in seen] == ["member-down"]
    assert len({good, *signed}) == 5
    assert (status.episode, status.reserved) == (None, 0)


def states_of(process):
    """The states of a process's threads, as in proc(5)."""
    stats = [path.read_text() for path in Path(f"/proc/{process}/task").glob("*/stat")]
    return [text.rpartition(")")[2].split()[0] for text in stats]


@one_loop
async def test_a_host_that_waits_for_a_processor_does_not_hang(fresh_token, tmp_path, looks):
    token = fresh_token(SAME)
    config = token.config(
        settings={"isolation": "process"},
        maxCacheSize=0,
        stateFile=str(tmp_path / "state.db"),
        failover={"emergencyModeEnabled": True, "emergencyDelayMs": 0},
    )
    async with opened(config) as manager:
        seen = went(manager)
        assert is_good("ed25519", token.keys["ed25519"].public_key, b"before", await manager.sign(b"before"))
        engine = manager._path.levels.members[0].member.engine
        await until(lambda: engine.stats()["busy"] == 0)
        host = engine.host_pid
        assert send_signal(host, signal.SIGSTOP)
        await until(lambda: set(states_of(host)) == {"T"})  # else a worker may still take the request, and stop inside
        asked = start(manager.sign_with_receipt(b"meanwhile", timeout=FOREVER))
        await some(looks)  # the supervisor may have ended it by now, and started another
        send_signal(host, signal.SIGCONT)
        assert (await asked).level == "primary"
    assert seen == []
