"""Rotation of keys in AWS KMS: a new key, the alias moves to it, the old one is disabled, none is forgotten."""

from __future__ import annotations

import asyncio

import pytest
from tests.integration.test_rotation import Handover, M, later, rules, stored  # noqa: F401  # later is a fixture
from tests.support.kms import config
from tests.support.loops import one_loop
from tests.support.managers import becomes, opened, start, until
from tests.support.rotation import cancel_rotation_at, is_rotating

pytestmark = pytest.mark.integration


def hexadecimal(key):
    return key.id.replace("-", "")


def rotating(kms, tmp_path, name="alias/sequencer", **rotation):
    block = rules(tmp_path, **{"overlapDays": 2, **rotation}) | {"requestTimeoutMs": 10_000}
    return config(kms, name, **block)


async def all_done(manager):
    return not await manager._background.rotation.rotations.open()


@one_loop
@pytest.mark.parametrize("spec", ["ECC_NIST_EDWARDS25519", "ECC_NIST_P256", "ECC_SECG_P256K1"])
async def test_the_alias_moves_and_the_old_key_is_disabled(kms, tmp_path, later, spec):  # noqa: F811
    old = kms.store.make(spec, alias="sequencer")
    kms.store.make(spec, alias="somebody-else-s")
    given = rotating(kms, tmp_path, destroyAfterDays=1)
    async with opened(given) as manager:
        before = await manager.sign(M)
        new = await manager.rotate_key()
        held = kms.store.keys[kms.store.aliases["alias/sequencer"]]
        assert (hexadecimal(held), held.raw_public, held.spec) == (new, manager.public_key, spec)
        assert await manager.verify(M, await manager.sign(M), key_id=new)
        assert await manager.verify(M, before, key_id=hexadecimal(old))
        assert (old.state, held.state) == ("Enabled", "Enabled"), "the overlap goes on"
        assert held.description.startswith("sequencer-")
        later(3)
        await until(lambda: old.state == "Disabled")
        later(2)
        await until(lambda: old.state == "PendingDeletion")

        await becomes(lambda: all_done(manager))
        assert await manager.verify(M, await manager.sign(M), key_id=new)
        assert await manager.verify(M, before)
    async with opened(given) as manager:
        assert await manager.get_current_key_id() == new
    states = sorted(key.state for key in kms.store.keys.values())
    assert states == ["Enabled", "Enabled", "PendingDeletion"]
    keys, _, _ = await stored(tmp_path)
    assert [key.state for key in keys] == ["destroyed", "active"]


@one_loop
async def test_an_alias_that_may_not_be_moved_holds_up_the_end_of_the_old_key_only(kms, tmp_path, later):  # noqa: F811
    old = kms.store.make(alias="sequencer")
    moves = kms.store.operations.pop("UpdateAlias")
    async with opened(rotating(kms, tmp_path)) as manager:
        new = await manager.rotate_key()
        assert await manager.verify(M, await manager.sign(M), key_id=new)
        assert kms.store.aliases["alias/sequencer"] == old.id
        later(3)

        async def tried():
            return any(s["step"] == "deactivate" and s["outcome"] == "failed" for s in (await stored(tmp_path))[2])

        await becomes(tried)
        assert old.state == "Enabled", "clients that use the alias need it"
        kms.store.operations["UpdateAlias"] = moves
        later(1)
        await until(lambda: old.state == "Disabled")
        assert hexadecimal(kms.store.keys[kms.store.aliases["alias/sequencer"]]) == new


POINTS = ["do:generate:begun", "between", "do:generate:effect", "do:pin:effect", "do:activate:effect",
          "do:activate:recorded", "do:deactivate:effect"]  # fmt: skip


@one_loop
@pytest.mark.parametrize("point", POINTS)
async def test_a_rotation_cancelled_at_any_step_resumes_and_loses_no_key(kms, tmp_path, monkeypatch, later, point):  # noqa: F811
    old = kms.store.make(alias="sequencer")
    reached = cancel_rotation_at(monkeypatch, point)
    if point == "between":  # the key is there, its alias is not
        alias = kms.store.operations["CreateAlias"]

        def no_alias(request):
            if not reached:
                reached.append(request)
                for task in manager._background.rotation._scope._tasks:
                    task.cancel()
                return {}
            return alias(request)

        kms.store.operations["CreateAlias"] = no_alias
    given = rotating(kms, tmp_path, overlapDays=0, destroyAfterDays=0) | {}
    given["keyManager"]["requestTimeoutMs"] = 500
    async with opened(given) as manager:
        rotation = start(manager.rotate_key())
        await until(lambda: bool(reached) and not is_rotating(manager))
        if not rotation.done():
            rotation.cancel()
        await asyncio.wait({rotation})
    async with opened(given) as manager:
        await becomes(lambda: all_done(manager))
        current = await manager.get_current_key_id()
        assert await manager.verify(M, await manager.sign(M, timeout=30), key_id=current)
    enabled = [key for key in kms.store.keys.values() if key.state == "Enabled"]
    assert [hexadecimal(key) for key in enabled] == [current]
    assert kms.store.aliases["alias/sequencer"] == enabled[0].id
    assert enabled[0] is not old
    assert len(kms.store.keys) == 2, "no second key was made"
