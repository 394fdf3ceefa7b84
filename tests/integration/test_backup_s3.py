"""Backups in a bucket: moto's S3 in the place of AWS's."""

from __future__ import annotations

import asyncio
import secrets

import pytest

pytest.importorskip("obstore")
import boto3
import obstore
from obstore.store import MemoryStore
from tests.integration.test_rotation import rules, stored
from tests.support.aws import CREDENTIALS, OFFLINE, REGION, UNSET, moto_server
from tests.support.loops import one_loop
from tests.support.managers import opened

from hsmcore.base.places import PlaceError, place_at
from hsmcore.errors import HsmError
from hsmcore.manager.rotation.backup.envelope import open_envelope

pytestmark = pytest.mark.integration


async def _warm():
    """The runtime under obstore keeps some descriptors from its first use on: here, before they are counted."""
    await obstore.put_async(MemoryStore(), "x", b"x")


asyncio.run(_warm())


@pytest.fixture
def bucket(monkeypatch):
    """The endpoint of a server that has the bucket "keys"."""
    for name in UNSET:
        monkeypatch.delenv(name, raising=False)
    for name, value in (OFFLINE | CREDENTIALS | {"AWS_REGION": REGION}).items():
        monkeypatch.setenv(name, value)
    with moto_server() as address:
        boto3.client("s3", endpoint_url=address).create_bucket(Bucket="keys")
        yield address


@pytest.fixture
def prefix():
    """A place of its own for each test: moto's servers share their buckets."""
    return secrets.token_hex(8)


@one_loop
async def test_a_bucket_never_overwrites(bucket, prefix):
    place = place_at(f"s3://keys/{prefix}", bucket)
    assert await place.names() == []
    await place.create("x.hsmbackup", b"one")
    with pytest.raises(PlaceError, match=prefix):
        await place.create("x.hsmbackup", b"two")
    assert await place.read("x.hsmbackup") == b"one"
    assert await place.read("y.hsmbackup") is None
    assert await place.names() == ["x.hsmbackup"]


@one_loop
async def test_a_rotation_backs_up_to_a_bucket(bucket, prefix, fresh_token, tmp_path):
    block = {
        "backupEnabled": True,
        "backupLocation": f"s3://keys/{prefix}",
        "backupEndpointUrl": bucket,
        "overlapDays": 2,
    }
    config = fresh_token({"name": "p256", "kind": "ecdsa-p256"}).config("p256", **rules(tmp_path, **block))
    async with opened(config) as manager:
        new = await manager.rotate_key()
        public_key = manager.public_key
    place = place_at(f"s3://keys/{prefix}", bucket)
    [name] = await place.names()
    assert open_envelope(await place.read(name), public_key).key_id == new
    _, _, steps = await stored(tmp_path)
    assert any(step["step"] == "drill" and "restored" in step["details"] for step in steps)


@one_loop
async def test_a_bucket_that_is_not_there_stops_the_rotation(bucket, fresh_token, tmp_path):
    block = {"backupEnabled": True, "backupLocation": "s3://nowhere", "backupEndpointUrl": bucket, "overlapDays": 2}
    config = fresh_token({"name": "p256", "kind": "ecdsa-p256"}).config("p256", **rules(tmp_path, **block))
    async with opened(config) as manager:
        old = await manager.get_current_key_id()
        with pytest.raises(HsmError, match="s3://nowhere"):
            await manager.rotate_key()
        assert await manager.get_current_key_id() == old
