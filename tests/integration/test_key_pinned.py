"""`key_id`: a caller names the key that signs its message, and no other one does."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.integration.test_key_binding import fail_back, fail_over, key_of
from tests.support.levels import OTHER, QUICK, SAME, Site
from tests.support.managers import opened, start, until
from tests.support.size import crossed
from tests.support.verifiers import is_good

import hsmcore
from hsmcore.failover.errors import AllLevelsFailed

pytestmark = [pytest.mark.integration]

LEVELS = {"acceptOtherKeys": ["secondary"]}
WAYS = {
    "sign": lambda manager, message, **pin: manager.sign(message, **pin),
    "sign_many": lambda manager, message, **pin: manager.sign_many([message, message + b"'"], **pin),
    "sign_with_receipt": lambda manager, message, **pin: manager.sign_with_receipt(message, **pin),
}


@pytest.fixture
def site(tmp_path, fresh_token):
    """Makes a site: one member for each key."""
    return lambda *keys: Site(tmp_path, fresh_token, *keys)


def id_of(manager: hsmcore.KeyManager, public_key: bytes) -> str:
    """The key ring's id of a public key."""
    ring = manager.keys()
    return next(version.id for version in ring if version.public_key == public_key)


def completed(manager: hsmcore.KeyManager) -> int:
    """Requests that the engines have answered."""
    return sum(one.member.engine.completed for one in manager.members() if one.member is not None)


def signatures(answer: Any) -> list[bytes]:
    """The signatures of an answer of one of WAYS."""
    return answer if isinstance(answer, list) else [getattr(answer, "signature", answer)]


@pytest.mark.parametrize(("levels", "way"), crossed([False, True], WAYS))
async def test_a_key_that_is_no_longer_current_signs_nothing(site, way, levels):
    async with opened(site(SAME).config(failover={"enabled": levels})) as manager:
        first = await manager.get_current_key_id()
        assert await WAYS[way](manager, b"before", key_id=first)
        second = await manager.generate_key()
        with pytest.raises(hsmcore.KeyNotCurrent):
            await WAYS[way](manager, b"early", key_id=second)
        await manager.set_current_key_id(second)
        answered = completed(manager)
        with pytest.raises(hsmcore.KeyNotCurrent, match=manager.public_key.hex()) as refused:
            await WAYS[way](manager, b"late", key_id=first)
        assert not refused.value.maybe_signed
        assert completed(manager) == answered
        [signature, *_] = signatures(await WAYS[way](manager, b"now", key_id=second))
        assert is_good("ed25519", manager.public_key, b"now", signature)
        with pytest.raises(hsmcore.KeyNotFound):
            await WAYS[way](manager, b"now", key_id="00ff")


@pytest.mark.parametrize("way", WAYS)
async def test_no_level_with_another_key_signs_it(site, way):
    place = site(SAME, OTHER)
    once = {f"{level}RetryIntervalMs": 3_600_000 for level in ("primary", "secondary")}  # none is probed
    async with opened(place.config(failover={**QUICK, **LEVELS, **once})) as manager:
        one, other = (id_of(manager, key_of(place, number)) for number in (0, 1))
        await fail_over(manager)
        answered = completed(manager)
        async with asyncio.timeout(60):  # it does not wait for the first level to come back
            with pytest.raises(hsmcore.KeyNotCurrent):
                await WAYS[way](manager, b"message", timeout=600, key_id=one)
        assert completed(manager) == answered
        [signature, *_] = signatures(await WAYS[way](manager, b"other", key_id=other))
        assert is_good("ed25519", key_of(place, 1), b"other", signature)
        await fail_back(manager)
        with pytest.raises(hsmcore.KeyNotCurrent):
            await WAYS[way](manager, b"message", key_id=other)
        [signature, *_] = signatures(await WAYS[way](manager, b"message", key_id=one))
        assert is_good("ed25519", key_of(place, 0), b"message", signature)


@pytest.mark.parametrize("way", WAYS)
async def test_a_level_with_the_same_key_signs_it(site, way):
    place = site(SAME, SAME)
    async with opened(place.config(failover=QUICK)) as manager:
        await fail_over(manager)
        [signature, *_] = signatures(await WAYS[way](manager, b"message", key_id=id_of(manager, key_of(place, 0))))
        assert is_good("ed25519", key_of(place, 0), b"message", signature)


async def test_a_message_that_may_be_signed_already_keeps_its_key(site):
    place = site(SAME, OTHER)
    async with opened(place.config(failover={**QUICK, **LEVELS})) as manager:
        other = id_of(manager, key_of(place, 1))
        place.members[0].fault("C_Sign", "hang", forever=True, every=1)
        asked = start(manager.sign(b"message", 20))
        await until(lambda: place.members[0].stats()["hung"] == 1)
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        place.members[0].clear()
        place.members[0].release()
        await fail_over(manager)
        with pytest.raises(hsmcore.KeyNotCurrent) as refused:
            await manager.sign(b"message", key_id=other)
        assert refused.value.maybe_signed
        signature = await manager.sign(b"message", key_id=other, allow_other_key=True)
        assert is_good("ed25519", key_of(place, 1), b"message", signature)


async def test_it_waits_while_nothing_signs(site):
    place = site(SAME, OTHER)
    async with opened(place.config(failover={**QUICK, **LEVELS})) as manager:
        one = id_of(manager, key_of(place, 0))
        for endpoint in manager._path.endpoints:
            await manager._path.health._desired.set(f"drain:{endpoint.name}", "yes", "a test")
        await manager._path.health._follow()
        with pytest.raises(AllLevelsFailed) as failed:
            await manager.sign(b"message", 0.2, key_id=one)
        assert not isinstance(failed.value, hsmcore.KeyNotCurrent)
        assert not failed.value.maybe_signed
