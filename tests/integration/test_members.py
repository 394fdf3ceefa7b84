"""KeyManager.members(): what applications and monitoring see of each member."""

from __future__ import annotations

import asyncio
import dataclasses
import os
from contextlib import suppress

import pytest
from tests.support.levels import SAME, Site
from tests.support.loops import one_loop
from tests.support.managers import opened, until

import hsmcore
from hsmcore.members import Pkcs11Member

pytestmark = pytest.mark.integration


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


@pytest.mark.chaos
@one_loop
async def test_an_outage_of_the_only_member_is_told(tmp_path, fresh_token):
    place = Site(tmp_path, fresh_token, SAME)
    config = place.config(auditLogFile=str(tmp_path / "audit.log"))
    del config["sequencer"]["keyManager"]["failover"]
    told = []
    async with opened(config) as manager:
        for kind in ("member-down", "member-up"):
            manager.on(kind, lambda details, kind=kind: told.append((kind, details["member"])))
        place.kill(0)
        with suppress(hsmcore.HsmError):
            await manager.sign(b"nobody is there", 1)
        await until(lambda: len(told) == 1)
        place.revive(0)
        await manager.sign(b"requests are what finds out", 20)
        await until(lambda: len(told) == 2)
        await manager.audit.flush()
        operations = [record["operation"] async for record in manager.audit.query()]
    expected = ["member-down", "member-up"]
    assert told == [(kind, place.name(0)) for kind in expected]
    assert [name for name in operations if name in expected] == expected


@pytest.mark.chaos
@one_loop
async def test_a_member_that_starts_and_cannot_load_the_current_key_is_started_again(
    tmp_path, fresh_token, monkeypatch
):
    place = Site(tmp_path, fresh_token, SAME, SAME)
    async with opened(place.config(primary=2)) as manager:
        old, made = await manager.get_current_key_id(), await manager.generate_key()
        for key_id in (made, old):
            await manager.set_current_key_id(key_id)
        service = manager._path
        endpoint = service.endpoints[1]
        asked = []

        async def load_key(member, key_id):
            asked.append(member)
            raise hsmcore.MemberDown("the connection was lost")

        with monkeypatch.context() as patched:
            patched.setattr(Pkcs11Member, "load_key", load_key)
            service.router.current = dataclasses.replace(service.router.current, public_key=b"another", id=made)
            service.levels.stopped(endpoint, 1)  # from here on the next tick starts it again
            await endpoint.stop()
            await until(lambda: len(asked) >= 2)
        await until(lambda: manager.members()[1].condition in ("ready", "ramping"))
        assert len(set(asked)) == len(asked), "each time another one, and none was left running"
