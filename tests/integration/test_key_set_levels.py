"""Sets of keys with levels of failover: when the keys of other levels are listed, and that verifiers can follow."""

from __future__ import annotations

import pytest
from tests.support.levels import OTHER, SAME, Site
from tests.support.loops import one_loop
from tests.support.managers import opened, until

from hsmcore.tlog.key_set import KeySet

pytestmark = [pytest.mark.integration]


def config_of(site, **failover):
    return site.config(
        failover={"emergencyModeEnabled": True, **failover},
        auditLogFile=str(site.folder / "audit.log"),
        policy={"kinds": ["raw", "key-set"], "domain": "my-rollup"},
        keyRotation={"intervalDays": 30, "overlapDays": 0},
    )


def newest(manager):
    note = manager.key_set()
    return KeySet.remembered(note) if note else None


async def listed(manager, *states):
    """Wait until the newest set has keys of these states, and no others."""
    await until(lambda: (found := newest(manager)) is not None and [key.state for key in found.keys] == list(states))
    return newest(manager)


@one_loop
async def test_an_emergency_key_is_listed_as_soon_as_another_key_can_vouch_for_it(fresh_token, tmp_path):
    site = Site(tmp_path, fresh_token, SAME)
    async with opened(config_of(site)) as manager:
        first = await listed(manager, "current")
        site.kill(0)
        made = await manager.sign_with_receipt(b"in the emergency", timeout=20)
        assert made.level == "emergency"
        assert first.verify(b"in the emergency", made.signature) is None
        await until(lambda: manager._keys._sets._emergencies)
        assert manager.key_set() == first.note, "no key that is known can sign another one"
        site.revive(0)
        over = await listed(manager, "current", "retired")
        assert first.follow(manager.key_set(since=first.serial)).note == over.note
        entry = over.keys[1]
        assert (entry.public_key, entry.version, entry.algorithm) == (made.public_key, None, "ed25519")
        assert first.time <= entry.not_before <= entry.not_after <= over.time
        assert not over.accepts(made.public_key)
        assert over.serial == first.serial + 1, "none was bound in vain"
    async with opened(config_of(site)) as manager:  # which says the same
        await until(lambda: manager._keys._sets._role.held)
        await manager._keys._sets.look()
        assert manager.key_set() == over.note


@one_loop
async def test_a_level_with_a_key_of_its_own_is_listed_before_it_signs_and_an_emergency_is_none(fresh_token, tmp_path):
    """An emergency that an operator has begun, too: then the current key does not sign."""
    site = Site(tmp_path, fresh_token, SAME, OTHER)
    async with opened(config_of(site, acceptOtherKeys=["secondary"])) as manager:
        first = await listed(manager, "current", "other")
        site.kill(0)
        made = await manager.sign_with_receipt(b"from the secondary level", timeout=20)
        assert made.level == "secondary"
        found = first.verify(b"from the secondary level", made.signature, kind="raw")
        assert (found.state, found.public_key) == ("other", made.public_key)
        site.revive(0)
        failover = manager._path
        await until(lambda: failover.levels.active == 0)
        for _ in range(2):
            await failover.health._desired.set("force", "emergency", "a drill")
            await until(lambda: failover.router.in_emergency)
            await manager._keys._sets.look()
            await failover.health._desired.set("force", None, "")
            await until(lambda: failover.levels.active == 0)
        over = await listed(manager, "current", "other", "retired", "retired")
        assert first.follow(manager.key_set(since=first.serial)).note == over.note
        assert over.entry(made.public_key).state == "other"
