"""Rotation with a key manager on SoftHSM: which key signs, which ones verify, what a restart and a failure leave."""

from __future__ import annotations

import asyncio
import time

import pytest
from tests.support.loops import one_loop
from tests.support.managers import becomes, opened, start, until

import hsmcore
from hsmcore.base import steady
from hsmcore.errors import BadArgument, HsmError, KeyDeactivated, KeyUnusable
from hsmcore.manager.rotation import service
from hsmcore.manager.rotation.machine import NAMES
from hsmcore.manager.rotation.service import RotationService
from hsmcore.manager.rotation.store import Rotations
from hsmcore.state import Keys, Store

pytestmark = pytest.mark.integration
M = b"a message"


def rules(tmp_path, **rotation):
    """Configuration beside the provider: no cache, and requests that end soon, because the overlap outlasts them."""
    block = {"intervalDays": 30, "overlapDays": 0, **rotation}
    return {"maxCacheSize": 0, "requestTimeoutMs": 200, "stateFile": str(tmp_path / "state.db"), "keyRotation": block}


async def stored(tmp_path):
    """Key versions, rotations and steps, as the store has them."""
    store = await Store.open(tmp_path / "state.db")
    try:
        rotations = Rotations(store)
        return await Keys(store).all(), await rotations.last(), await rotations.steps()
    finally:
        await store.close()


async def follows(manager, key_id):
    return await manager.get_current_key_id() == key_id


async def test_a_rotation_from_end_to_end(fresh_token, tmp_path):
    token = fresh_token()
    config = token.config(**rules(tmp_path))
    events = []
    async with opened(config) as manager:
        for name in ("rotation-begun", "key-rotated", "key-changed"):
            manager.on(name, lambda details, name=name: events.append(name))
        old, first = await manager.get_current_key_id(), await manager.sign(M)
        new = await manager.rotate_key("test")
        assert new != old == token.keys["ed25519"].id
        second = await manager.sign(M)
        assert await manager.get_current_key_id() == new
        assert second != first
        assert await manager.verify(M, first)
        assert await manager.verify(M, first, key_id=old)
        assert not await manager.verify(M, first, key_id=new)
        assert await manager.verify(M, second, key_id=new)
        assert events == ["rotation-begun", "key-changed", "key-rotated"]

        async def ended():
            return (await stored(tmp_path))[1][0].run.status == "done"

        await becomes(ended)
        with pytest.raises(KeyDeactivated):
            await manager.set_current_key_id(old)
    keys, [rotation], steps = await stored(tmp_path)
    assert [(key.key_id, key.state) for key in keys] == [(old, "deactivated"), (new, "active")]
    assert rotation.reason == "test"
    assert [step["step"] for step in steps if step["outcome"] == "done"] == list(NAMES)
    async with opened(config) as manager:  # what the configuration names is the key that the ring began with
        assert await manager.get_current_key_id() == new
        assert await manager.sign(M) == second
        assert await manager.verify(M, first)


@one_loop
async def test_a_key_that_is_chosen_by_hand_signs_after_a_restart_too(fresh_token, tmp_path):
    config = fresh_token().config(**rules(tmp_path, overlapDays=2))
    async with opened(config) as manager:
        old = await manager.get_current_key_id()
        other = await manager.generate_key()
        await manager.set_current_key_id(other)
    async with opened(config) as manager:
        assert await manager.get_current_key_id() == other
        await manager.set_current_key_id(old)
    async with opened(config) as manager:
        assert await manager.get_current_key_id() == old


@pytest.fixture
def later(monkeypatch):
    """Let so many days pass for rotations, whose clock has left its mark before: without one, a day is believed."""
    passed, begin = [0], RotationService.begin

    async def begins(rotation, *arguments):
        await begin(rotation, *arguments)
        await rotation._time.look()

    monkeypatch.setattr(RotationService, "begin", begins)
    monkeypatch.setattr(service, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(RotationService, "clock", staticmethod(lambda: time.time_ns() + passed[0]))
    monkeypatch.setattr(RotationService, "boot", staticmethod(lambda: steady.boottime() + passed[0]))

    def pass_days(days):
        passed[0] += days * 86_400_000_000_000

    return pass_days


@one_loop
async def test_a_key_that_was_displaced_by_hand_ends_like_a_rotated_one(fresh_token, tmp_path, later):
    config = fresh_token().config(**rules(tmp_path, overlapDays=2, destroyAfterDays=1))
    async with opened(config) as manager:
        old, signed = await manager.get_current_key_id(), await manager.sign(M)
        await manager.set_current_key_id(await manager.generate_key())
        later(3)

        async def ended():
            return not await manager._background.rotation.rotations.open()

        await becomes(ended)
        with pytest.raises(KeyDeactivated):
            await manager.set_current_key_id(old)
        assert await manager.verify(M, signed, key_id=old)
        assert len(await manager._path.member.control.list_keys()) == 2, "what a person displaced a person destroys"
    keys, [change], steps = await stored(tmp_path)
    assert [(key.state, key.note) for key in keys] == [
        ("deactivated", "displaced by hand: version 2 was chosen"),
        ("active", ""),
    ]
    assert (change.cause, change.old, change.new) == ("chosen", 1, 2)
    assert [step["step"] for step in steps if step["outcome"] == "done"] == ["activate", "deactivate", "destroy"]


@one_loop
async def test_going_back_to_the_old_key_within_the_overlap(fresh_token, tmp_path, later):
    config = fresh_token().config(**rules(tmp_path, overlapDays=2, destroyAfterDays=1))
    async with opened(config) as manager:
        old = await manager.get_current_key_id()
        new = await manager.rotate_key()
        later(1)
        await manager.set_current_key_id(old)
        later(5)

        async def ended():
            return not await manager._background.rotation.rotations.open()

        await becomes(ended)
        assert await manager.get_current_key_id() == old
        assert await manager.verify(M, await manager.sign(M), key_id=old)
        with pytest.raises(KeyDeactivated):
            await manager.set_current_key_id(new)
        assert len(await manager._path.member.control.list_keys()) == 2
    keys, _, _ = await stored(tmp_path)
    assert [key.state for key in keys] == ["active", "deactivated"]


@one_loop
async def test_a_current_key_that_was_deactivated_does_not_come_back_with_a_restart(fresh_token, tmp_path):
    token = fresh_token({"name": "ed25519", "kind": "ed25519"}, {"name": "other", "kind": "ed25519"})
    async with opened(token.config(**rules(tmp_path))) as manager:
        await manager.deactivate_key(await manager.get_current_key_id())
    with pytest.raises((KeyDeactivated, KeyUnusable)):
        await hsmcore.create_key_manager(token.config(**rules(tmp_path))).initialize()
    async with opened(token.config("other", **rules(tmp_path))) as manager:  # what to do about it
        assert await manager.get_current_key_id() == token.keys["other"].id


@one_loop
async def test_without_rotation_nothing_is_rotated_and_no_store_is_made(world, tmp_path):
    config = world.config(maxCacheSize=0, stateFile=str(tmp_path / "state.db"))
    async with opened(config) as manager:
        with pytest.raises(BadArgument, match="not enabled"):
            await manager.rotate_key()
    assert list(tmp_path.iterdir()) == []


class Handover:
    """A chain that obeys one key, in memory. `fails`: how often it fails after it has moved."""

    def __init__(self, fails=0):
        self.fails, self.calls, self.obeys = fails, [], None

    async def handover(self, old, new, km):
        self.calls.append(("handover", old.id, new.id))
        assert old.public_key == km.public_key
        assert await km.verify(M, await old.sign(M), key_id=old.id)
        assert len(await new.sign(M)) == 64
        self.obeys = new.public_key
        if self.fails:
            self.fails -= 1
            raise ValueError("the chain says no")
        return {"done": True}

    async def revert(self, old, new, km):
        self.calls.append(("revert", old.id, new.id))
        self.obeys = old.public_key

    async def settled(self, old, new):
        return "new" if self.obeys == new.public_key else "old"


@one_loop
async def test_a_handover_that_fails_leaves_the_old_key_signing_and_no_other(fresh_token, tmp_path):
    token = fresh_token()
    manager = hsmcore.create_key_manager(token.config(**rules(tmp_path)))
    handover = Handover(fails=1)
    manager.on_rotation(handover)
    async with manager:
        old = await manager.get_current_key_id()
        with pytest.raises(HsmError, match="the chain says no"):
            await manager.rotate_key()
        assert await manager.get_current_key_id() == old
        assert [key.id for key in await manager._path.member.control.list_keys()] == [old]
        assert [key.id for key in manager.keys()] == [old]  # noqa: SIM118
        new = await manager.rotate_key()
        assert [call[0] for call in handover.calls] == ["handover", "revert", "handover"]
        assert handover.calls[-1] == ("handover", old, new)
    keys, _, _ = await stored(tmp_path)
    assert [key.state for key in keys] == ["overlap", "destroyed", "active"]
    assert keys[1].note == "the rotation failed; its key was destroyed"


@one_loop
async def test_a_required_handover_that_is_not_registered_stops_the_rotation(fresh_token, tmp_path):
    async with opened(fresh_token().config(**rules(tmp_path, requireHandover=True))) as manager:
        with pytest.raises(HsmError, match="registered no handover"):
            await manager.rotate_key()


async def test_no_request_fails_while_the_key_is_switched(fresh_token, tmp_path):
    config = fresh_token().config(settings={"sessions": 2}, **rules(tmp_path) | {"requestTimeoutMs": 10_000})
    async with opened(config) as manager:
        stop = False
        failed, made = [], 0

        async def caller(number):
            nonlocal made
            count = 0
            while not stop:
                count += 1
                message = b"%d/%d" % (number, count)
                try:
                    receipt = await manager.sign_with_receipt(message)
                except HsmError as error:
                    failed.append(error)
                    return
                made += 1
                if count % 50 == 0:
                    assert await manager.verify(message, receipt.signature, key_id=receipt.key_id)

        callers = [start(caller(number)) for number in range(32)]
        await until(lambda: made > 500)
        await manager.rotate_key()
        after = made
        await until(lambda: made > after + 500)
        stop = True
        await asyncio.gather(*callers)
        assert failed == []
