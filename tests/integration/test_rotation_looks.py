"""What a key manager makes of each look at the store: orders, approvals, the ring of another leader, its own report."""

from __future__ import annotations

import asyncio

import pytest
from tests.integration.test_rotation import M, rules, stored
from tests.support.loops import one_loop
from tests.support.managers import becomes, opened

import hsmcore
from hsmcore.errors import HsmError, KeyDeactivated, KeyUnusable, MemberDown
from hsmcore.manager.rotation import service
from hsmcore.manager.rotation.service import ABORT, RotationService

pytestmark = [pytest.mark.integration, one_loop]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(service, "LOOK_SECONDS", 0.02)


def approved(tmp_path):
    return rules(tmp_path, approvals=1, approvers=[{"name": "alice", "publicKey": "3d" * 32}])


async def test_an_abort_that_comes_between_two_looks_is_followed(fresh_token, tmp_path, monkeypatch):
    """After the rotation was advanced, and before the wishes are read."""
    follow, ordered = RotationService._follow, []

    async def orders(rotation):
        await follow(rotation)
        if not ordered and any(each.run.step == "approve" for each in await rotation.rotations.open()):
            ordered.append(await rotation._desired.set(ABORT, "yes", ""))

    monkeypatch.setattr(RotationService, "_follow", orders)
    async with opened(fresh_token().config(**approved(tmp_path))) as manager:
        with pytest.raises(HsmError, match="aborted") as caught:
            await asyncio.wait_for(manager.rotate_key(), 20)
        assert "rotate history" in caught.value.hint

        async def withdrawn():
            return await manager._background.rotation._desired.all() == {}

        await becomes(withdrawn)


async def test_a_follower_that_cannot_load_the_new_key_signs_no_more_with_the_one_that_has_ended(
    fresh_token, tmp_path, monkeypatch
):
    config = fresh_token().config(**rules(tmp_path))
    async with hsmcore.create_key_manager(config, rotates=False) as follower, opened(config) as leader:
        load, away = follower._path.load_key, [True]

        async def loads(identity):
            if away:
                raise MemberDown("the member is away")
            return await load(identity)

        monkeypatch.setattr(follower._path, "load_key", loads)
        new = await leader.rotate_key()

        async def ended():
            return (await stored(tmp_path))[0][0].state == "deactivated"

        await becomes(ended)

        async def refused():
            try:
                await follower.sign(M)
            except KeyDeactivated:
                return True
            except KeyUnusable:  # the token refuses the key before the follower has looked
                return False
            return False

        await becomes(refused)
        away.clear()

        async def follows():
            return await follower.get_current_key_id() == new

        await becomes(follows)
        assert await follower.verify(M, await follower.sign(M), key_id=new)
