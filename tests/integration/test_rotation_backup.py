"""Backups that rotation makes: written, restored for a try, put back after a loss, refused when they are not right."""

from __future__ import annotations

import os
import random
import stat
from base64 import b64decode, b64encode
from dataclasses import replace

import orjson
import pytest
from nacl.public import PrivateKey
from nacl.signing import SigningKey
from tests.integration.test_rotation import M, rules, stored
from tests.support.loops import one_loop
from tests.support.managers import opened
from tests.support.softhsm import Token

from hsmcore.base.places import PlaceError, place_at
from hsmcore.config import load
from hsmcore.errors import HsmError, KeyUnusable
from hsmcore.manager.rotation.backup.envelope import BackupInvalid, Statement, open_envelope
from hsmcore.manager.rotation.backup.inspect import look, opens, put_back
from hsmcore.members.control import ControlError, ControlPlane
from hsmcore.members.control.keys import Sweep
from hsmcore.state import Backups, Store

pytestmark = [pytest.mark.integration, one_loop]
RECOVERY = PrivateKey(bytes(range(1, 33)))


def with_backups(tmp_path, **more):
    return rules(tmp_path, backupEnabled=True, backupLocation=str(tmp_path / "backups"), overlapDays=2, **more)


def plane(config):
    """A control plane of its own on the token of a configuration."""
    return ControlPlane.for_settings(load(config).key_manager.config, log_in=True)


async def rows(tmp_path):
    store = await Store.open(tmp_path / "state.db")
    try:
        return await Backups(store).of()
    finally:
        await store.close()


async def test_backup_destroy_restore_sign(fresh_token, tmp_path):
    token: Token = fresh_token({"name": "p256", "kind": "ecdsa-p256"})
    config = token.config("p256", **with_backups(tmp_path))
    async with opened(config) as manager:
        new = await manager.rotate_key()
        public_key = manager.public_key
    [row] = await rows(tmp_path)
    assert (row.key_id, row.public_key, row.method) == (new, public_key, "wrapped")
    assert row.drilled_ns
    file = tmp_path / "backups" / row.name
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    _, _, steps = await stored(tmp_path)
    details = {step["step"]: step["details"] for step in steps if step["outcome"] == "done"}
    assert "not extractable" in details["backup-old"]["skipped"]
    assert details["drill"]["restored"] == "under a scratch id"
    async with plane(config) as control:
        assert len(await control.list_keys()) == 2
        await control.destroy(new)
        record = await put_back(open_envelope(file.read_bytes(), public_key), control, None)
        assert (record.id, record.public_key) == (new, public_key)
        with pytest.raises(ControlError, match="already"):
            await put_back(open_envelope(file.read_bytes()), control, None)
    async with opened(config) as manager:
        assert await manager.get_current_key_id() == new
        assert await manager.verify(M, await manager.sign(M))
        await manager.rotate_key()  # now the old key has a backup already
    _, _, steps = await stored(tmp_path)
    [again] = [
        s["details"] for s in steps if s["step"] == "backup-old" and s["rotation_id"] == 2 and "name" in s["details"]
    ]
    assert again["name"] == row.name


async def test_a_backup_whose_key_signs_for_another_public_key_is_not_kept(fresh_token, tmp_path):
    """The wrapped key of one envelope in the statement of another: what only a signature can show."""
    token = fresh_token({"name": "p256", "kind": "ecdsa-p256"})
    config = token.config("p256", **with_backups(tmp_path))
    async with opened(config) as manager:
        await manager.rotate_key()
        await manager.rotate_key()
        current = await manager.get_current_key_id()
    first, second = (open_envelope((tmp_path / "backups" / row.name).read_bytes()) for row in await rows(tmp_path))
    inner = orjson.loads(second.payload) | {"wrapped": orjson.loads(first.payload)["wrapped"]}
    async with plane(config) as control:
        await control.destroy(current)
        before = await control.list_keys()
        with pytest.raises(BackupInvalid, match="not the one"):
            await put_back(replace(second, payload=orjson.dumps(inner)), control, None)
        assert await control.list_keys() == before


async def test_with_a_warning_it_rotates_without_a_backup(fresh_token, tmp_path):
    config = fresh_token().config(**with_backups(tmp_path, backupPolicy="warn"))
    async with opened(config) as manager:
        new = await manager.rotate_key()
        assert await manager.get_current_key_id() == new
    assert await rows(tmp_path) == []
    _, _, steps = await stored(tmp_path)
    assert any("cannot wrap" in str(step["details"].get("warning")) for step in steps if step["step"] == "backup-new")


@pytest.mark.parametrize("isolation", ["thread", "process"])
async def test_a_key_ceremony_for_tokens_that_cannot_wrap(fresh_token, tmp_path, isolation):
    ceremony = {"recoveryPublicKey": bytes(RECOVERY.public_key).hex()}
    config = fresh_token().config(settings={"isolation": isolation}, **with_backups(tmp_path, keyCeremony=ceremony))
    async with opened(config) as manager:
        new = await manager.rotate_key()
        public_key = manager.public_key
        [record] = [r for r in await manager._path.member.control.list_keys() if r.id == new]
        assert record.sensitive
        assert not record.extractable
    [row] = await rows(tmp_path)
    assert row.method == "sealed"
    statement = open_envelope((tmp_path / "backups" / row.name).read_bytes(), public_key)
    assert opens(statement, bytearray(bytes(RECOVERY)))
    assert not opens(statement, bytearray(32 * b"\x07"))
    settings = load(config).key_manager.config
    async with ControlPlane.for_settings(settings, log_in=True, isolated=isolation == "process") as control:
        await control.destroy(new)
        with pytest.raises(HsmError, match="recovery key"):
            await put_back(statement, control, None)
        with pytest.raises(KeyUnusable, match="cannot be opened"):
            await put_back(statement, control, bytearray(32 * b"\x07"))
        recovery = bytearray(bytes(RECOVERY))
        restored = await put_back(statement, control, recovery)
        assert restored.public_key == public_key
        assert recovery == bytes(32)
    async with opened(config) as manager:
        assert manager.public_key == public_key
        assert await manager.verify(M, await manager.sign(M))


async def test_a_yubihsm_s_backup_is_tried_in_place(yubihsm, tmp_path):
    from tests.support.yubihsm.rig import ADMIN

    rig = yubihsm()
    config = rig.config(ADMIN, **with_backups(tmp_path))
    async with opened(config) as manager:
        new = await manager.rotate_key()
        public_key = manager.public_key
        assert await manager.verify(M, await manager.sign(M))
        await manager._path.member.control.destroy(new)
    _, _, steps = await stored(tmp_path)
    drilled = [step["details"] for step in steps if step["step"] == "drill" and step["outcome"] == "done"]
    assert drilled[0]["restored"] == "in place, before its first use"
    names = {row.key_id: row.name for row in await rows(tmp_path)}
    async with plane(config) as control:
        restored = await put_back(open_envelope((tmp_path / "backups" / names[new]).read_bytes()), control, None)
        assert restored.public_key == public_key
    async with opened(config) as manager:
        assert await manager.get_current_key_id() == new
        assert await manager.verify(M, await manager.sign(M))


WRAPPING = {"name": "wrapping", "kind": "aes", "label": "hsmcore-backup", "value": "5a" * 32}


@pytest.mark.parametrize("shared", [True, False])
async def test_another_token_shows_that_it_could_take_over(fresh_token, tmp_path, shared):
    """The drill token: a backup is tried where it would be restored after the loss of the first one."""
    p256 = {"name": "p256", "kind": "ecdsa-p256"}
    token, spare = (
        fresh_token(dict(p256), dict(WRAPPING)),
        fresh_token(WRAPPING | ({} if shared else {"label": "other"})),
    )
    provider = spare.config(None)["sequencer"]["keyManager"]
    config = token.config("p256", **with_backups(tmp_path, drill=provider))
    async with opened(config) as manager, plane(spare.config(None, settings={"keyLabel": "none"})) as there:
        if shared:
            new = await manager.rotate_key()
            assert await manager.verify(M, await manager.sign(M), key_id=new)
        else:
            with pytest.raises(HsmError, match="does not hold the wrapping key"):
                await manager.rotate_key()
            assert [key.id for key in await manager._path.member.control.list_keys()] == [token.keys["p256"].id]
        assert await there.list_keys() == [], "the drill leaves nothing behind"
    if shared:
        _, _, steps = await stored(tmp_path)
        [drilled] = [s["details"] for s in steps if s["step"] == "drill" and s["outcome"] == "done"]
        assert drilled == {"restored": "under a scratch id", "token": "drill"}
        [row] = await rows(tmp_path)
        assert row.drilled_ns
        async with plane(spare.config(None, settings={"keyLabel": "none"})) as there:  # and so it can
            record = await put_back(open_envelope((tmp_path / "backups" / row.name).read_bytes()), there, None)
            assert record.public_key == row.public_key


@pytest.mark.timeout(180)
async def test_the_token_accepts_none_of_a_thousand_damaged_backups(fresh_token, tmp_path):
    """Each as a file, and each past the check of the envelope: then the token itself refuses the key."""
    config = fresh_token({"name": "p256", "kind": "ecdsa-p256"}).config("p256", **with_backups(tmp_path))
    async with opened(config) as manager:
        await manager.rotate_key()
        current = await manager.get_current_key_id()
    [row] = await rows(tmp_path)
    data = (tmp_path / "backups" / row.name).read_bytes()
    whole = open_envelope(data)
    inner = orjson.loads(whole.payload)
    wrapped = b64decode(inner["wrapped"])
    chance = random.Random(11)
    async with plane(config) as control:
        await control.destroy(current)
        before = await control.list_keys()
        for number in range(1000):
            with pytest.raises(BackupInvalid):
                await put_back(open_envelope(damaged(data, number, chance)), control, None)
            broken = orjson.dumps(inner | {"wrapped": b64encode(damaged(wrapped, number, chance)).decode()})
            with pytest.raises(HsmError):
                await put_back(replace(whole, payload=broken), control, None)
        assert await control.list_keys() == before
        assert await control.do(Sweep(current)) == 0
        record = await put_back(whole, control, None)
        assert record.public_key == row.public_key


def damaged(data, number, chance):
    """One way or the other, never the same as before."""
    while True:
        place, changed = chance.randrange(len(data)), bytearray(data)
        if number % 4 == 0:
            changed[place] ^= 1 << chance.randrange(8)
        elif number % 4 == 1:
            del changed[place : place + chance.randrange(1, 40)]
        elif number % 4 == 2:
            changed[place:place] = bytes([chance.randrange(256)])
        else:
            changed = changed[:place]
        if changed != data:
            return bytes(changed)


async def test_a_folder_never_overwrites(tmp_path):
    place = place_at(f"file://{tmp_path}/made")
    await place.create("x.hsmbackup", b"one")
    with pytest.raises(PlaceError, match=r"made: x\.hsmbackup: File exists") as failure:
        await place.create("x.hsmbackup", b"two")
    assert "keyRotation" not in failure.value.hint  # the state store's backups have places as well
    assert await place.read("x.hsmbackup") == b"one"
    assert await place.read("y.hsmbackup") is None
    assert await place.names() == ["x.hsmbackup"]
    assert {entry.name for entry in os.scandir(tmp_path / "made")} == {"x.hsmbackup"}, "a temporary file was left"


async def test_files_are_compared_with_what_is_known(fresh_token, tmp_path):
    config = fresh_token({"name": "p256", "kind": "ecdsa-p256"}).config("p256", **with_backups(tmp_path))
    async with opened(config) as manager:
        await manager.rotate_key()
    place = place_at(str(tmp_path / "backups"))
    known = await rows(tmp_path)
    keys, _, _ = await stored(tmp_path)
    [name] = await place.names()
    assert (await look(place, name, keys, known)).problem is None
    file = tmp_path / "backups" / name
    data = file.read_bytes()
    file.chmod(0o600)
    file.write_bytes(data.replace(b'"algorithm"', b'"Algorithm"'))
    assert "wrote" in (await look(place, name, keys, known)).problem
    (tmp_path / "backups" / "gone.hsmbackup").write_bytes(data)
    assert (await look(place, "gone.hsmbackup", keys, known)).problem is None
    assert (await look(place, "none.hsmbackup", keys, known)).problem == "it is not there"
    other = SigningKey.generate()
    forged = Statement(keys[-1].key_id, "x", "ed25519", bytes(other.verify_key), "sealed", "ab" * 32, "m", 1, bytes(80))
    await place.create("forged.hsmbackup", forged.enclose(other.sign(forged.to_sign()).signature))
    assert "holds another key" in (await look(place, "forged.hsmbackup", keys, known)).problem
