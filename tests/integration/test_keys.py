"""The key ring on a real token: generate, make current, deactivate, verify, and what a restart finds."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from solders.pubkey import Pubkey
from tests.support.managers import counters, opened, start, until
from tests.support.softhsm import ALGORITHMS
from tests.support.verifiers import is_good
from tests.support.wire_site import site

import hsmcore
from hsmcore.gateway import Client
from hsmcore.members.control import KeyNotExportable

pytestmark = pytest.mark.integration

CKR_FUNCTION_NOT_SUPPORTED = 0x54


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_the_lifecycle_of_a_key(fresh_token, algorithm):
    token = fresh_token({"name": "old", "kind": algorithm})
    old = token.keys["old"]
    async with opened(token.config("old")) as manager:
        before = await manager.sign(b"x")
        new = await manager.generate_key()
        assert new != old.id
        assert await manager.get_current_key_id() == old.id, "a new key is not current by itself"
        assert manager.public_key == old.public_key
        assert [version.id for version in manager.keys()] == [old.id, new]  # noqa: SIM118

        await manager.set_current_key_id(new)
        assert await manager.get_current_key_id() == new
        assert manager.public_key != old.public_key
        receipt = await manager.sign_with_receipt(b"x")
        assert receipt.key_id == new
        assert receipt.public_key == manager.public_key
        assert is_good(algorithm, manager.public_key, b"x", receipt.signature)

        await manager.deactivate_key(old.id)
        with pytest.raises(hsmcore.KeyDeactivated):
            await manager.set_current_key_id(old.id)
        assert [version.state for version in manager.keys()] == ["deactivated", "active"]  # noqa: SIM118
        assert await manager.get_current_key_id() == new
        assert is_good(algorithm, manager.public_key, b"y", await manager.sign(b"y"))

        assert await manager.verify(b"x", before), "a signature outlives its key's time as a signer"
        assert await manager.verify(b"x", before, key_id=old.id)
        assert not await manager.verify(b"x", before, key_id=new)
        assert await manager.verify(b"x", receipt.signature)
        assert await manager.verify(b"x", receipt.signature, key_id=new)

    with pytest.raises(hsmcore.KeyDeactivated, match="CKA_SIGN"):
        await hsmcore.create_key_manager(token.config("old")).initialize()
    async with opened(token.config(None, settings={"keyId": new})) as manager:
        assert await manager.get_current_key_id() == new
        assert manager.public_key == receipt.public_key
        assert await manager.sign(b"x")
        with pytest.raises(hsmcore.KeyDeactivated):
            await manager.set_current_key_id(old.id)


async def test_deactivating_the_current_key_stops_signing_until_another_is_current(fresh_token):
    token = fresh_token({"name": "ed25519", "kind": "ed25519"}, {"name": "next", "kind": "ed25519"})
    async with opened(token.config()) as manager:
        current = await manager.get_current_key_id()
        await manager.deactivate_key(current)
        assert await manager.get_current_key_id() == current, "no other key takes its place by itself"
        with pytest.raises(hsmcore.KeyDeactivated) as caught:
            await manager.sign(b"x")
        assert not caught.value.retryable
        with pytest.raises(hsmcore.KeyDeactivated):
            await manager.sign_many([b"x"])
        await manager.deactivate_key(current)
        await manager.set_current_key_id(token.keys["next"].id)
        assert is_good("ed25519", token.keys["next"].public_key, b"x", await manager.sign(b"x"))


async def test_a_token_that_cannot_enforce_it_is_not_asked_to_sign_either(fresh_token, shim):
    token = fresh_token({"name": "ed25519", "kind": "ed25519"}, {"name": "next", "kind": "ed25519"})
    shim.fail("C_SetAttributeValue", CKR_FUNCTION_NOT_SUPPORTED)
    async with opened(token.config(settings={"modulePath": shim.path})) as manager:
        told: list[dict] = []
        manager.on("key-deactivated", told.append)
        old = await manager.get_current_key_id()
        await manager.deactivate_key(old)
        assert [event["enforced"] for event in told] == [False]
        calls = shim.calls("C_SignInit")
        with pytest.raises(hsmcore.KeyDeactivated):
            await manager.sign(b"x")
        with pytest.raises(hsmcore.KeyDeactivated):
            await manager.set_current_key_id(old)
        assert shim.calls("C_SignInit") == calls


@pytest.mark.parametrize("spelling", [str.upper, lambda key_id: " ".join((key_id[:2], key_id[2:]))])
async def test_a_deactivated_key_does_not_come_back_under_another_spelling(fresh_token, shim, spelling):
    token = fresh_token({"name": "ed25519", "kind": "ed25519", "id": "abcd01"}, {"name": "next", "kind": "ed25519"})
    shim.fail("C_SetAttributeValue", CKR_FUNCTION_NOT_SUPPORTED)
    async with opened(token.config(settings={"modulePath": shim.path})) as manager:
        old = await manager.get_current_key_id()
        await manager.deactivate_key(old)
        for key_id in (spelling(old), old):
            with pytest.raises(hsmcore.HsmError):
                await manager.set_current_key_id(key_id)
            with pytest.raises(hsmcore.KeyDeactivated):
                await manager.sign(b"x")


@pytest.mark.parametrize("key_id", ["00ff", "", "no hexadecimal", "abc", "label:ed25519-key", "ff" * 100])
async def test_a_key_that_is_not_there(world, key_id):
    async with opened(world.config()) as manager:
        current = await manager.get_current_key_id()
        with pytest.raises(hsmcore.KeyNotFound):
            await manager.set_current_key_id(key_id)
        with pytest.raises(hsmcore.KeyNotFound):
            await manager.deactivate_key(key_id)
        assert await manager.get_current_key_id() == current
        assert await manager.sign(b"x")


async def test_a_key_that_may_not_sign_is_not_made_current(world):
    async with opened(world.config()) as manager:
        current = await manager.get_current_key_id()
        for name in ("no-sign", "no-public", "p384"):
            with pytest.raises(hsmcore.HsmError):
                await manager.set_current_key_id(world.keys[name].id)
        assert await manager.get_current_key_id() == current
        assert len(manager.keys()) == 1


async def test_the_address_is_that_of_the_ed25519_key_that_signs(world, tmp_path):
    async with site(world.config(), tmp_path) as served, Client(f"unix:{served.path}") as km:
        for name in ("second", "ed25519"):
            key = world.keys[name]
            await served.manager.set_current_key_id(key.id)
            await until(lambda key=key: km.public_key == key.public_key)
            assert served.manager.address == km.address == str(Pubkey(key.public_key))
        for name in ("ecdsa-p256", "ecdsa-secp256k1"):
            key = world.keys[name]
            await served.manager.set_current_key_id(key.id)
            await until(lambda key=key: km.public_key == key.public_key)
            for one in (served.manager, km):
                with pytest.raises(hsmcore.AlgorithmUnsupported, match="Sign with an Ed25519 key"):
                    _ = one.address


async def test_asking_for_the_same_key_at_the_same_time_loads_it_once(world):
    second = world.keys["second"]
    async with opened(world.config()) as manager:
        await asyncio.gather(*(manager.set_current_key_id(second.id) for _ in range(100)))
        assert await manager.get_current_key_id() == second.id
        assert is_good("ed25519", second.public_key, b"x", await manager.sign(b"x"))


async def generated(manager: hsmcore.KeyManager) -> str:
    """A new key. SoftHSM 2.6.1 now and then refuses to make one while it signs: then again, as the error allows."""
    for attempt in range(10):
        try:
            return await manager.generate_key()
        except hsmcore.MemberDown as error:
            if not error.retryable or attempt == 9:
                raise
    raise AssertionError


async def test_changing_the_key_under_load_loses_nothing(world):
    known = {world.keys[name].public_key for name in ("ed25519", "second")}
    async with opened(world.config(maxCacheSize=100, queueSize=16)) as manager:
        tasks = []
        for n in range(60):
            tasks += [start(manager.sign_with_receipt(b"%d" % (m % 7))) for m in range(10)]
            await asyncio.sleep(0)
            await manager.set_current_key_id(world.keys["second" if n % 2 else "ed25519"].id)
        receipts = await asyncio.gather(*tasks)
        assert len(receipts) == 600
        for n, receipt in enumerate(receipts):
            assert receipt.public_key in known
            assert is_good("ed25519", receipt.public_key, b"%d" % (n % 10 % 7), receipt.signature)
        assert counters(manager)["failures"] == 0


async def test_events_tell_of_keys(fresh_token):
    told: list[tuple[str, dict]] = []
    token = fresh_token()
    manager = hsmcore.create_key_manager(token.config())
    names = ("initialized", "key-generated", "key-changed", "key-deactivated", "closed")
    ends = [manager.on(name, lambda details, name=name: told.append((name, dict(details)))) for name in names]
    old = token.keys["ed25519"].id
    async with manager:
        new = await manager.generate_key()
        await manager.set_current_key_id(new)
        await manager.deactivate_key(old)
    assert [name for name, _ in told] == list(names)
    details = dict(told)
    assert details["initialized"]["key_id"] == old
    assert details["key-generated"]["key_id"] == new
    assert details["key-changed"] == {"key_id": new, "previous": old}
    assert details["key-deactivated"] == {"key_id": old, "enforced": True}
    for end in ends:
        end()
    async with opened(token.config(None, settings={"keyId": new})):
        pass
    assert len(told) == len(names)


async def test_a_key_that_cannot_be_exported_is_refused(world):
    async with opened(world.config()) as manager:
        with pytest.raises(KeyNotExportable):
            await manager.export_key_backup(await manager.get_current_key_id())
        assert await manager.sign(b"x")


async def test_verifying_knows_every_key_of_the_ring(world):
    async with opened(world.config()) as manager:
        signatures = {}
        for name in (*ALGORITHMS, "second"):
            await manager.set_current_key_id(world.keys[name].id)
            signatures[name] = await manager.sign(b"x")
        for name, signature in signatures.items():
            assert await manager.verify(b"x", signature)
            hits = [other for other in signatures if await manager.verify(b"x", signature, world.keys[other].id)]
            assert hits == [name]
        many = await asyncio.gather(*(manager.verify(b"x", signatures["second"]) for _ in range(200)))
        assert Counter(many) == {True: 200}
