"""Rotation beside members that are away, that lack the key, or that the configuration does not name any more."""

from __future__ import annotations

import asyncio
import json
from contextlib import contextmanager

import pytest
from tests.integration.test_rotation import M, later, rules, stored
from tests.integration.test_rotation_members import pair, same_p256, two_members
from tests.support.loops import one_loop
from tests.support.managers import becomes, opened

from hsmcore.cli.app import run as run_command
from hsmcore.config import load
from hsmcore.manager.rotation.steps import switch
from hsmcore.members.control import ControlPlane

__all__ = ["later", "pair"]  # fixtures
pytestmark = [pytest.mark.integration, one_loop]


@contextmanager
def away(token):
    """Take a token out, and put it back."""
    there = token.folder.rename(token.folder.parent.parent / token.label)
    try:
        yield
    finally:
        there.rename(token.folder)


async def held(token):
    """The keys on a token by id: whether each signs."""
    settings = load(token.config("p256", settings={"isolation": "process"})).key_manager.config
    async with ControlPlane.for_settings(settings, log_in=True, isolated=True) as plane:
        return {key.id: key.can_sign for key in await plane.list_keys()}


def name(token):
    return f"softhsm:{token.label}"


async def steps_of(tmp_path, step):
    return [row for row in (await stored(tmp_path))[2] if row["step"] == step]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(switch, "ASK_AGAIN_NS", 20_000_000)


@pytest.mark.parametrize("change", ["removed", "renamed"])
async def test_a_member_that_the_configuration_does_not_name_any_more_blocks_no_rotation(pair, tmp_path, change):
    await same_p256(*pair)
    config = two_members(pair, tmp_path, destroyAfterDays=0, overlapDays=0)
    async with opened(config):
        pass
    [second] = config["keyManager"]["failover"]["primary"]
    if change == "removed":
        del config["keyManager"]["failover"]["primary"]
    else:
        second["type"] = "pkcs11"
        second["config"] |= {"quirks": "softhsm"}
    async with opened(config) as manager:
        new = await manager.rotate_key()
        assert await manager.verify(M, await manager.sign(M), key_id=new)

        async def over():
            return (await stored(tmp_path))[1][0].run.status == "done"

        await becomes(over)
    assert new in await held(pair[0])
    assert "0a0b0c" not in await held(pair[0])
    assert (new in await held(pair[1])) == (change == "renamed")
    assert ("0a0b0c" in await held(pair[1])) == (change == "removed"), "destroyed where it can be reached"
    async with opened(config) as manager:
        assert await manager.get_current_key_id() == new
        assert {m.condition for m in manager.members()} == {"ready"}


async def test_a_member_that_is_renamed_goes_on_with_the_key_of_the_ring(fresh_token, tmp_path):
    """The only member; the key that the configuration names is destroyed by now."""
    token = fresh_token()
    config = token.config(**rules(tmp_path, overlapDays=0, destroyAfterDays=0))
    async with opened(config) as manager:
        new = await manager.rotate_key()

        async def over():
            return (await stored(tmp_path))[1][0].run.status == "done"

        await becomes(over)
    config["sequencer"]["keyManager"]["type"] = "pkcs11"
    async with opened(config) as manager:
        assert await manager.get_current_key_id() == new
        newest = await manager.rotate_key()
        assert await manager.verify(M, await manager.sign(M), key_id=newest)
    keys, _, _ = await stored(tmp_path)
    assert keys[-1].members == (f"pkcs11:{token.label}",)


async def test_a_member_without_the_current_key_is_left_out_at_the_start_until_it_is_given_it(pair, tmp_path):
    await same_p256(*pair)
    config = two_members(pair, tmp_path, backupEnabled=True, backupLocation=str(tmp_path / "backups"))
    async with opened(config) as manager:
        other = await manager.generate_key()
        await manager.set_current_key_id(other)
    assert [set(key.members) for key in (await stored(tmp_path))[0]] == [{name(t) for t in pair}, {name(pair[0])}]
    async with opened(config) as manager:
        assert await manager.get_current_key_id() == other
        assert [m.condition == "ready" for m in manager.members()] == [True, False]
        assert await manager.verify(M, await manager.sign(M), key_id=other)
        new = await manager.rotate_key()  # the member that lacks the key holds up no rotation
        assert await manager.verify(M, await manager.sign(M), key_id=new)
    async with opened(config) as manager:
        assert [m.condition == "ready" for m in manager.members()] == [True, False]
        (tmp_path / "hsm.json").write_text(json.dumps(config))
        command = ["keys", "replicate", new, "--to", name(pair[1]), "--config", str(tmp_path / "hsm.json")]
        assert await asyncio.to_thread(run_command, command) == 0

        async def back():
            return {m.condition for m in manager.members()} <= {"ready", "ramping"}

        await becomes(back)


async def test_the_old_key_is_refused_by_a_member_that_was_away_at_its_end(pair, tmp_path, later):
    await same_p256(*pair)
    config = two_members(pair, tmp_path)
    async with opened(config) as manager:
        await manager.rotate_key()
    with away(pair[1]):
        async with opened(config):
            later(3)

            async def waits():
                return any(row["outcome"] == "waiting" and "away" in row["details"]
                           for row in await steps_of(tmp_path, "deactivate"))  # fmt: skip

            await becomes(waits)
            (tmp_path / "hsm.json").write_text(json.dumps(config))
            await asyncio.sleep(0.2)
            assert (await stored(tmp_path))[1][0].run.step == "deactivate"
        assert not (await held(pair[0]))["0a0b0c"]
    assert (await held(pair[1]))["0a0b0c"]
    async with opened(config):

        async def over():
            return (await stored(tmp_path))[1][0].run.status == "done"

        await becomes(over)
    assert not (await held(pair[1]))["0a0b0c"]
    [done] = [row for row in await steps_of(tmp_path, "deactivate") if row["outcome"] == "done"]
    assert done["details"]["enforced"] is True


async def test_a_key_is_destroyed_when_every_member_has_said_so(pair, tmp_path, later, capsys):
    await same_p256(*pair)
    config = two_members(pair, tmp_path, destroyAfterDays=1)
    async with opened(config) as manager:
        await manager.rotate_key()
        later(3)

        async def deactivated():
            return (await stored(tmp_path))[1][0].run.step == "destroy"

        await becomes(deactivated)
    with away(pair[1]):
        async with opened(config):
            later(2)

            async def waits():
                return any(row["outcome"] == "waiting" for row in await steps_of(tmp_path, "destroy"))

            await becomes(waits)
            await asyncio.sleep(0.2)
            keys, [rotation], _ = await stored(tmp_path)
            assert (keys[0].state, rotation.run.step) == ("deactivated", "destroy")
            (tmp_path / "hsm.json").write_text(json.dumps(config))
            assert (
                await asyncio.to_thread(run_command, ["rotate", "status", "--config", str(tmp_path / "hsm.json")]) == 0
            )
            assert f"it waits for {name(pair[1])}" in capsys.readouterr().out
    assert "0a0b0c" not in await held(pair[0])
    assert "0a0b0c" in await held(pair[1])
    async with opened(config):

        async def over():
            return (await stored(tmp_path))[1][0].run.status == "done"

        await becomes(over)
    keys, _, _ = await stored(tmp_path)
    assert keys[0].state == "destroyed"
    assert "0a0b0c" not in await held(pair[1])
    [done] = [row for row in await steps_of(tmp_path, "destroy") if row["outcome"] == "done"]
    assert sorted(done["details"]["members"]) == sorted(name(token) for token in pair)
