"""Several devices that hold the same key, as several members."""

from __future__ import annotations

import asyncio
import os

import pytest
from tests.support.loops import one_loop
from tests.support.verifiers import is_good
from tests.support.yubihsm import Device

import hsmcore
from hsmcore.config import members_of

pytestmark = pytest.mark.integration


def test_the_members_of_one_provider_can_be_named(yubihsm):
    rig = yubihsm()
    settings = {"connector": None, "connectors": [rig.connector.url, "http://127.0.0.1:9"]}
    names = [member.name for member in members_of(hsmcore.config.load(rig.config(settings=settings)).key_manager)]
    assert names == [f"yubihsm:{rig.connector.url}", "yubihsm:http://127.0.0.1:9"]


@one_loop
async def test_a_key_manager_uses_all_connectors_and_starts_without_one_that_is_dead(yubihsm, tmp_path):
    secret = os.urandom(32)
    rigs = [yubihsm(device=Device(9_000_001 + n), secret=secret) for n in range(4)]
    settings = {"connector": None, "connectors": [rig.connector.url for rig in rigs], "startTimeoutMs": 3500}
    config = rigs[0].config(settings=settings, stateFile=str(tmp_path / "state.db"))

    async def members() -> set[str]:
        async with hsmcore.create_key_manager(config) as manager:
            messages = [f"message {number}".encode() for number in range(64)]
            signed = await asyncio.gather(*map(manager.sign_with_receipt, messages))
            assert all(
                is_good("ed25519", manager.public_key, m, r.signature) for m, r in zip(messages, signed, strict=True)
            )
            return {receipt.member for receipt in signed}

    assert len(await members()) == 4
    rigs[2].device.inject("hang", count=None)
    try:
        assert len(await members()) == 3
    finally:
        rigs[2].device.faults.clear()
