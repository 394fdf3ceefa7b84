"""AWS KMS in a failover chain: what KMS says of its key, and what it only throttled, is no end of a request."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from tests.integration.test_kms_credentials import two_levels
from tests.support.kms import KmsServer
from tests.support.loops import one_loop
from tests.support.managers import opened, until

import hsmcore

pytestmark = [pytest.mark.integration, one_loop]
STATES = ["Disabled", "PendingDeletion"]


@pytest.fixture
def elsewhere() -> Iterator[KmsServer]:
    """Another KMS."""
    with KmsServer() as server:
        yield server


@pytest.mark.parametrize("state", STATES)
async def test_a_key_that_kms_says_is_out_of_use_fails_over_and_comes_back(kms, elsewhere, tmp_path, state):
    given = two_levels(kms, elsewhere, tmp_path)
    key = kms.store.find(given["keyManager"]["config"]["keyId"])
    async with opened(given) as manager:
        assert (await manager.sign_with_receipt(b"before", 5)).level == "primary"
        key.state = state
        for number in range(50):
            assert (await manager.sign_with_receipt(b"%d" % number, 5)).level == "secondary"
        [primary, _] = manager.members()
        assert primary.breakers == {"unusable": "open"}
        key.state = "Enabled"
        await until(lambda: manager.members()[0].condition in ("ready", "ramping"))
        assert (await manager.sign_with_receipt(b"after", 5)).public_key == key.raw_public


async def test_what_kms_only_throttles_is_signed_elsewhere_within_its_deadline(kms, elsewhere, tmp_path):
    async with opened(two_levels(kms, elsewhere, tmp_path)) as manager:
        kms.faults.error("ThrottlingException", times=10**6)
        messages = [b"%d" % number for number in range(16)]
        receipts = await asyncio.gather(*(manager.sign_with_receipt(message, 30) for message in messages))
        assert {receipt.level for receipt in receipts} == {"secondary"}
        assert "busy" in manager.members()[0].breakers


@pytest.mark.parametrize("fault", ["ThrottlingException", "ExpiredTokenException"])
async def test_what_kms_refused_to_its_deadline_is_bound_to_no_key(kms, elsewhere, tmp_path, fault):
    """KMS has signed none of them, so another key may once it is there.

    A request that is on the wire at its deadline may be signed for all that is known, so the deadlines differ.
    """
    given = two_levels(kms, elsewhere, tmp_path)
    key = kms.store.find(given["keyManager"]["config"]["keyId"])
    async with opened(given) as manager:
        elsewhere.stop_listening()
        await until(lambda: manager.members()[1].condition == "open")
        kms.faults.error(fault, times=10**6)
        tried = {b"%d" % number: 0.8 + number / 10 for number in range(8)}
        late = await asyncio.gather(*(manager.sign(*one) for one in tried.items()), return_exceptions=True)
        messages = [message for message, error in zip(tried, late, strict=True) if not error.maybe_signed]
        assert messages
        key.state = "Disabled"
        kms.faults.queue.clear()
        elsewhere.start_listening()
        await until(lambda: manager.members()[1].condition in ("ready", "ramping"))
        for message in messages:
            assert (await manager.sign_with_receipt(message, 30)).level == "secondary"


async def test_what_kms_may_have_signed_stays_bound_though_it_is_throttled_afterwards(kms, elsewhere, tmp_path):
    async with opened(two_levels(kms, elsewhere, tmp_path)) as manager:
        elsewhere.stop_listening()
        await until(lambda: manager.members()[1].condition == "open")
        kms.faults.add("drop")  # signed, and the answer is lost
        kms.faults.error("ThrottlingException", times=10**6)
        with pytest.raises(hsmcore.HsmError) as caught:
            await manager.sign(b"x", 0.8)
        assert caught.value.maybe_signed
        elsewhere.start_listening()
        await until(lambda: manager.members()[1].condition in ("ready", "ramping"))
        with pytest.raises(hsmcore.HsmError):
            await manager.sign(b"x", 0.5)
        kms.faults.queue.clear()
        await until(lambda: manager.members()[0].condition in ("ready", "ramping"))  # no request waits for it so long
        assert (await manager.sign_with_receipt(b"x", 30)).level == "primary"


async def test_what_was_never_sent_is_bound_to_no_key(kms, elsewhere, tmp_path, monkeypatch):
    """The deadline passed while a connection was made: another key may sign it."""
    given = two_levels(kms, elsewhere, tmp_path)
    async with opened(given) as manager:
        elsewhere.stop_listening()
        await until(lambda: manager.members()[1].condition == "open")
        primary = manager._path.endpoints[0].member
        primary._client._pool.drop()
        loop = asyncio.get_running_loop()

        async def unreachable(*_args: object, **_named: object) -> None:
            await asyncio.Event().wait()

        monkeypatch.setattr(type(loop), "create_connection", unreachable, raising=False)
        with pytest.raises(hsmcore.DeadlineExceeded) as caught:
            await manager.sign(b"x", 0.3)
        assert not caught.value.maybe_signed
