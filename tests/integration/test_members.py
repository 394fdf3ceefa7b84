"""KeyManager.members(): what applications and monitoring see of each member."""

from __future__ import annotations

import asyncio
import os

import pytest
from tests.support.chaos import needs_chaos
from tests.support.levels import OTHER, SAME, Site
from tests.support.managers import opened, until

import hsmcore

pytestmark = pytest.mark.integration


async def test_a_key_manager_that_is_not_open_has_no_members(world):
    manager = hsmcore.create_key_manager(world.config())
    assert manager.members() == ()


@pytest.mark.parametrize("isolation", ["thread", "process"])
async def test_a_single_member(world, isolation):
    async with opened(world.config(settings={"isolation": isolation})) as manager:
        [before] = manager.members()
        await manager.sign_many([b"1", b"2", b"3"])
        [member] = await asyncio.to_thread(manager.members)
        assert member == before
        assert (member.name, member.level, member.condition, member.reason) == (before.name, "primary", "ready", "")
        assert (member.public_key, member.key_id) == (manager.public_key, await manager.get_current_key_id())
        assert (member.signs, member.running, member.in_flight, member.breakers) == (True, True, 0, {})
        assert member.stats()["signatures"] == 3
        assert manager.describe()["members"] == [member.to_json()]
        if isolation == "process":
            os.kill(member.host_pid, 0)
        else:
            assert member.host_pid is None


@needs_chaos
@pytest.mark.chaos
async def test_members_of_levels(tmp_path, fresh_token):
    place = Site(tmp_path, fresh_token, SAME, SAME)
    async with opened(place.config()) as manager:
        first, second = manager.members()
        assert [(m.name, m.level) for m in (first, second)] == [
            (place.name(0), "primary"),
            (place.name(1), "secondary"),
        ]
        assert [(m.condition, m.signs) for m in (first, second)] == [("ready", True), ("ready", False)]
        place.kill(0)
        await manager.sign(b"by the second member")
        await until(lambda: manager.members()[1].signs)
        first, second = manager.members()
        assert (first.condition, first.signs, bool(first.reason)) == ("open", False, True)
        assert "open" in first.breakers.values()
        assert first.next_probe_seconds is not None
        assert (second.public_key, second.stats()["signatures"] > 0) == (manager.public_key, True)
        assert manager.describe()["members"][1] == second.to_json()
        place.revive(0)
        await until(lambda: manager.members()[0].condition == "ready")


@needs_chaos
@pytest.mark.chaos
async def test_a_level_may_sign_with_another_key(tmp_path, fresh_token):
    place = Site(tmp_path, fresh_token, SAME, OTHER)
    async with opened(place.config(failover={"acceptOtherKeys": ["secondary"]})) as manager:
        first, second = manager.members()
        assert first.public_key == manager.public_key
        assert second.public_key != first.public_key
