"""Rotation where several members hold the key: all of them get the new one, or none signs with it."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import pytest
from nacl.public import PrivateKey
from tests.integration.test_rotation import M, rules, stored
from tests.support.loops import one_loop
from tests.support.managers import becomes, opened, start, until
from tests.support.rotation import cancel_rotation_at, is_rotating
from tests.support.softhsm import RFC8032_PUBLIC, RFC8032_SEED
from tests.support.yubihsm import Algorithm, Capability, Device
from tests.support.yubihsm.codes import ALL_CAPABILITIES, Kind
from tests.support.yubihsm.objects import Stored
from tests.support.yubihsm.rig import ADMIN

from hsmcore.cli.app import run as run_command
from hsmcore.config import load
from hsmcore.errors import HsmError, KeyMismatch
from hsmcore.manager.rotation.backup.envelope import open_envelope
from hsmcore.manager.rotation.backup.inspect import opens
from hsmcore.manager.rotation.steps import replicate
from hsmcore.members.control import ControlPlane
from hsmcore.members.control.backup import ExportWrapped, ImportWrapped
from hsmcore.members.control.sealed import ImportTransported

pytestmark = pytest.mark.integration
WRAPPING = {"name": "wrapping", "kind": "aes", "label": "hsmcore-backup", "value": "5a" * 32}


async def same_p256(first, second):
    """Give the second token the first one's key, through the wrapping key that both hold."""
    planes = [
        ControlPlane.for_settings(load(t.config("p256")).key_manager.config, log_in=True) for t in (first, second)
    ]
    async with planes[0] as one, planes[1] as two:
        record = await one.generate_key("ecdsa-p256", "shared", b"\x0a\x0b\x0c", extractable=True)
        await two.do(ImportWrapped(await one.do(ExportWrapped(record.id))))
    return record


def refuse(token, kind):
    """Have a token refuse one kind of verb."""
    do = token.do

    async def refusing(verb):
        if isinstance(verb, kind):
            raise HsmError("this device is full", status="REQUEST_REJECTED")
        return await do(verb)

    token.do = refusing


@pytest.fixture
def pair(fresh_token):
    """Two tokens that hold the same wrapping key."""
    p256 = {"name": "p256", "kind": "ecdsa-p256"}
    return [fresh_token(dict(p256), dict(WRAPPING)) for _ in range(2)]


def two_members(pair, tmp_path, **rotation):
    """A configuration with both tokens on the primary level, signing with the key that they share."""
    providers = []
    for token, where in zip(pair, ("thread", "process"), strict=True):
        settings = {"keyLabel": None, "keyId": "0a0b0c", "isolation": where}
        manager = token.config("p256", settings=settings)["sequencer"]["keyManager"]
        providers.append({"type": manager["type"], "config": manager["config"]})
    block = {"primary": [providers[1]], "primaryRetryIntervalMs": 50}
    return {"keyManager": {**providers[0], "failover": block, **rules(tmp_path, **{"overlapDays": 2, **rotation})}}


@one_loop
async def test_all_members_get_the_new_key(pair, tmp_path):
    record = await same_p256(*pair)
    config = two_members(pair, tmp_path)
    async with opened(config) as manager:
        assert manager.public_key == record.public_key
        new = await manager.rotate_key()
        receipts = await asyncio.gather(*(manager.sign_with_receipt(b"%d" % n) for n in range(200)))
        assert {receipt.key_id for receipt in receipts} == {new}
        members = {receipt.member for receipt in receipts}
        assert members == {f"softhsm:{token.label}" for token in pair}
        assert await manager.verify(M, await manager.sign(M), key_id=new)
        public_key = manager.public_key
    keys, _, _ = await stored(tmp_path)
    assert set(keys[-1].members) == members
    async with opened(config) as manager:  # both start with the new one
        assert manager.public_key == public_key
        receipts = await asyncio.gather(*(manager.sign_with_receipt(b"x%d" % n) for n in range(200)))
        assert len({receipt.member for receipt in receipts}) == 2


@one_loop
async def test_a_member_that_cannot_get_the_key_stops_the_rotation(pair, tmp_path):
    record = await same_p256(*pair)
    config = two_members(pair, tmp_path)
    async with opened(config) as manager:
        for member in manager._keys._holders():
            assert len(await member.control.list_keys()) == 2
        refuse(manager._keys._holders()[1].token, ImportWrapped)
        with pytest.raises(HsmError, match="full"):
            await manager.rotate_key()
        assert manager.public_key == record.public_key
        for member in manager._keys._holders():
            assert len(await member.control.list_keys()) == 2, "the new key is destroyed everywhere"


RECOVERY = PrivateKey(bytes(range(1, 33)))
SHARED = {"name": "shared", "kind": "ed25519", "id": "0a0b0c", "seed": RFC8032_SEED, "public_key": RFC8032_PUBLIC}


def three_that_cannot_wrap(fresh_token, tmp_path, isolation="thread", **rotation):
    """Tokens that share an Ed25519 key which none of them can wrap."""
    tokens = [fresh_token(dict(SHARED)) for _ in range(3)]
    providers = []
    for token, where in zip(tokens, ("thread", isolation, "thread"), strict=True):
        manager = token.config("shared", settings={"isolation": where})["sequencer"]["keyManager"]
        providers.append({"type": manager["type"], "config": manager["config"]})
    block = {"primary": providers[1:2], "secondary": providers[2:], "primaryRetryIntervalMs": 50}
    return tokens, {"keyManager": {**providers[0], "failover": block, **rules(tmp_path, overlapDays=2, **rotation)}}


@one_loop
async def test_members_that_cannot_wrap_get_the_key_through_a_ceremony(fresh_token, tmp_path):
    ceremony = {"recoveryPublicKey": bytes(RECOVERY.public_key).hex()}
    place = {"backupEnabled": True, "backupLocation": str(tmp_path / "backups")}
    tokens, config = three_that_cannot_wrap(fresh_token, tmp_path, "process", keyCeremony=ceremony, **place)
    async with opened(config) as manager:
        new = await manager.rotate_key()
        receipts = await asyncio.gather(*(manager.sign_with_receipt(b"%d" % n) for n in range(200)))
        assert {receipt.key_id for receipt in receipts} == {new}
        assert len({receipt.member for receipt in receipts}) == 2, "both of the primary level sign with it"
        for member in manager._keys._holders():
            [record] = [record for record in await member.control.list_keys() if record.id == new]
            assert (record.public_key, record.sensitive, record.extractable) == (manager.public_key, True, False)
        assert len(manager._keys._holders()) == 3
        public_key = manager.public_key
    keys, _, _ = await stored(tmp_path)
    assert len(keys[-1].members) == 3
    [name] = (file.name for file in (tmp_path / "backups").iterdir())
    assert opens(open_envelope((tmp_path / "backups" / name).read_bytes(), public_key), bytearray(bytes(RECOVERY)))

    # A member that lost it, or came later, gets it from the sealed backup.
    third = ControlPlane.for_settings(load(tokens[2].config("shared")).key_manager.config, log_in=True)
    async with third as plane:
        await plane.destroy(new)
    (tmp_path / "recovery.key").write_text(bytes(RECOVERY).hex())
    (tmp_path / "hsm.json").write_text(json.dumps(config))
    arguments = ["--recovery-key", str(tmp_path / "recovery.key"), "--to", f"softhsm:{tokens[2].label}"]
    command = ["backup", "restore", name, *arguments, "--config", str(tmp_path / "hsm.json"), "--json"]
    assert await asyncio.get_running_loop().run_in_executor(None, run_command, command) == 0
    async with opened(config) as manager:
        assert manager.public_key == public_key
        assert len(manager._keys._holders()) == 3


CUTS = ["do:generate:begun", "sealed", "imported", "do:generate:effect", "do:generate:recorded", "do:activate:begun"]


@one_loop
@pytest.mark.parametrize("point", CUTS)
async def test_a_ceremony_cancelled_at_any_step_ends_with_the_same_keys_on_all_members(
    fresh_token, tmp_path, monkeypatch, point
):
    ceremony = {"recoveryPublicKey": bytes(RECOVERY.public_key).hex()}
    place = {"backupEnabled": True, "backupLocation": str(tmp_path / "backups")}
    _, config = three_that_cannot_wrap(fresh_token, tmp_path, keyCeremony=ceremony, **place)
    reached = cancel_rotation_at(monkeypatch, point)
    async with opened(config) as manager:
        rotation = start(manager.rotate_key())
        if point in ("sealed", "imported"):
            token = manager._keys._holders()[1].token
            do = token.do

            async def taken(verb):
                if not isinstance(verb, ImportTransported):
                    return await do(verb)
                if point == "imported":
                    await do(verb)
                reached.append(point)
                raise asyncio.CancelledError

            token.do = taken
        await until(lambda: bool(reached) and not is_rotating(manager))
        rotation.cancel()
        await asyncio.wait({rotation})
    async with opened(config) as manager:

        async def over():
            return [r.run.status for r in await manager._background.rotation.rotations.last()] == ["overlap"]

        await becomes(over)
        new = await manager.get_current_key_id()
        for member in manager._keys._holders():
            held = {record.id: record.public_key for record in await member.control.list_keys()}
            assert held == {"0a0b0c": bytes.fromhex(RFC8032_PUBLIC), new: manager.public_key}
        assert len(manager._keys._holders()) == 3
        assert await manager.verify(M, await manager.sign(M), key_id=new)
    keys, _, _ = await stored(tmp_path)
    assert [key.state for key in keys] == ["overlap", "active"]
    [file] = (tmp_path / "backups").iterdir()
    assert opens(open_envelope(file.read_bytes(), keys[1].public_key), bytearray(bytes(RECOVERY)))


@one_loop
@pytest.mark.parametrize("is_there", [False, True])
async def test_another_key_under_its_id_is_destroyed_only_if_it_was_just_copied(monkeypatch, is_there):
    wrong, key = SimpleNamespace(id="k", label="new", public_key=b"other"), SimpleNamespace(key_id="k", label="new")
    key.public_key, destroyed = b"mine", []

    class Control:
        async def list_keys(self):
            return [wrong] if is_there else []

        async def destroy(self, key_id):
            destroyed.append(key_id)

    async def gives(*_args):
        return wrong

    monkeypatch.setattr(replicate, "export_key", gives)
    monkeypatch.setattr(replicate, "import_key", gives)
    target = SimpleNamespace(name="softhsm:second", control=Control())
    with pytest.raises(KeyMismatch, match="softhsm:second has another key"):
        await replicate.copy_key(key, target, target)
    assert destroyed == ([] if is_there else ["k"])


def test_replicate_by_hand(pair, tmp_path, capsys):
    config = two_members(pair, tmp_path)
    first = load(pair[0].config("p256")).key_manager.config

    async def make():
        async with ControlPlane.for_settings(first, log_in=True) as plane:
            return await plane.generate_key("ecdsa-p256", "shared", b"\x0a\x0b\x0c", extractable=True)

    record = asyncio.run(make())
    path = tmp_path / "hsm.json"
    path.write_text(json.dumps(config))
    to = f"softhsm:{pair[1].label}"
    for copied in (True, False):
        assert run_command(["keys", "replicate", "--to", to, "--config", str(path), "--json"]) == 0
        done = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert (done["publicKey"], done["copied"]) == (record.public_key.hex(), copied)
    assert run_command(["keys", "replicate", "--to", "nobody", "--config", str(path), "--json"]) == 2

    async def use():
        async with opened(config) as manager:
            return await manager.verify(M, await manager.sign(M))

    assert asyncio.run(use())


@one_loop
async def test_two_yubihsms_get_the_same_new_key(yubihsm, tmp_path):
    capabilities = Capability.EXPORT_WRAPPED | Capability.IMPORT_WRAPPED
    label = b"hsmcore-backup".ljust(40, b"\0")
    rigs = [yubihsm(device=Device(), secret=bytes(range(32))) for _ in range(2)]
    for rig in rigs:
        kind, algorithm = Kind.WRAP_KEY, Algorithm.AES256_CCM_WRAP
        rig.device.store.add(
            Stored(0x50, kind, algorithm, capabilities, 0xFFFF, label, b"\x5a" * 32, delegated=ALL_CAPABILITIES)
        )
    place = str(tmp_path / "backups")
    block = rules(tmp_path, overlapDays=2, backupEnabled=True, backupLocation=place) | {"requestTimeoutMs": 20_000}
    del block["maxCacheSize"]
    urls = [rig.connector.url for rig in rigs]
    config = rigs[0].config(ADMIN, settings={"connector": None, "connectors": urls}, **block)
    async with opened(config) as manager:
        new = await manager.rotate_key()
        receipts = await asyncio.gather(*(manager.sign_with_receipt(b"%d" % n) for n in range(16)))
        assert {receipt.key_id for receipt in receipts} == {new}
        assert len({receipt.member for receipt in receipts}) == 2
    keys, _, _ = await stored(tmp_path)
    assert len(keys[-1].members) == 2
