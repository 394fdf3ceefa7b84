"""Two hundred rotations in one process: it ends with as many sessions, threads, descriptors and native bytes as it had
after the first few, and the engine never runs out of places for keys."""

from __future__ import annotations

import pytest
from tests.integration.test_rotation import M, rules
from tests.support.leaks import holdings, surplus_since
from tests.support.loops import one_loop
from tests.support.managers import becomes, opened

from hsmcore.manager.rotation import service

pytestmark = [pytest.mark.integration, pytest.mark.chaos, pytest.mark.timeout(600)]


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(service, "LOOK_SECONDS", 0.02)


async def rotate(manager, times):
    """So many rotations, each to its end."""
    for _ in range(times):
        await manager.rotate_key()
        assert await manager.verify(M, await manager.sign(M, timeout=30), key_id=await manager.get_current_key_id())
        await becomes(lambda: ended(manager))


async def ended(manager):
    return not await manager._background.rotation.rotations.open()


async def two_hundred(config):
    async with opened(config) as manager:
        await rotate(manager, 3)
        before = holdings()
        await rotate(manager, 197)
        assert surplus_since(before) == []
        assert len(await manager._path.member.control.list_keys()) == 1
        keys = await manager._background.rotation.keys.all()
        assert [key.state for key in keys] == ["destroyed"] * 200 + ["active"]
        assert len(manager._path.member._known) <= 2


@one_loop
@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_two_hundred_rotations(run, fresh_token, tmp_path, isolation):
    block = rules(tmp_path, overlapDays=0, destroyAfterDays=0) | {"requestTimeoutMs": 20}
    run(two_hundred(fresh_token().config(settings={"isolation": isolation}, **block)), timeout=500)
