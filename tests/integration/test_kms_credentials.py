"""Credentials of AWS KMS: it locks nothing, so a refusal heals by itself, and renewal survives what the SDK raises."""

from __future__ import annotations

import asyncio
import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.kms import KmsServer, config, set_credentials
from tests.support.levels import QUICK
from tests.support.loops import one_loop
from tests.support.managers import opened, until
from tests.support.scrapes import Scrape
from tests.support.size import share
from tests.support.verifiers import is_good

import hsmcore
from hsmcore.providers.kms import member as kms_member

pytestmark = pytest.mark.integration

REFUSALS = ["AccessDeniedException", "ExpiredTokenException", "InvalidSignatureException"]
NEVER = 1e6
"""Seconds."""


def two_levels(kms: KmsServer, elsewhere: KmsServer, folder: Path, **failover: Any) -> dict[str, Any]:
    """Another KMS is the secondary level, with a key of its own."""
    secondary = config(elsewhere, elsewhere.store.make())["keyManager"]
    block = {**QUICK, "acceptOtherKeys": ["secondary"], "secondary": [secondary], **failover}
    return config(kms, kms.store.make(), maxCacheSize=0, failover=block, stateFile=str(folder / "state.db"))


@pytest.fixture
def issue(tmp_path, monkeypatch) -> Callable[..., None]:
    """Has the SDK find temporary credentials, valid for so many minutes, under this access key."""
    set_credentials(monkeypatch, None)
    given, settings = tmp_path / "credentials.json", tmp_path / "config"
    settings.write_text(f"[default]\ncredential_process = cat {given}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(settings))

    def issued(access_key: str, minutes: float = 5) -> None:
        soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=minutes)
        keys = {"AccessKeyId": access_key, "SecretAccessKey": "temporary", "SessionToken": f"token of {access_key}"}
        fresh = tmp_path / "fresh.json"
        fresh.write_text(json.dumps({"Version": 1, "Expiration": soon.isoformat(), **keys}))
        fresh.replace(given)

    return issued


@pytest.mark.parametrize("name", REFUSALS)
@one_loop
async def test_a_refusal_that_passes_heals_by_itself(kms, name, tmp_path, monkeypatch):
    """Of a policy that takes a moment to spread, a token that expired, a clock that was stepped."""
    with KmsServer() as elsewhere:
        async with opened(two_levels(kms, elsewhere, tmp_path)) as manager:
            own = manager.public_key
            kms.faults.error(name, times=3)
            receipt = await manager.sign_with_receipt(b"x", 5)
            assert receipt.level == "secondary"
            [primary, _] = manager.members()
            assert primary.breakers == {"access": "open"}
            await until(lambda: manager.members()[0].condition in ("ready", "ramping"))
            assert (await manager.sign_with_receipt(b"y", 5)).public_key == own


@pytest.mark.parametrize("name", REFUSALS[1:])
@one_loop
async def test_without_levels_requests_wait_and_one_of_them_asks(kms, name):
    """KMS locks nothing. It is asked again with throttling's pause, and no request fails for another's refusal."""
    async with opened(config(kms, kms.store.make(), maxCacheSize=0)) as manager:
        kms.calls.clear()
        refusals = share(20, 8)
        kms.faults.error(name, times=refusals)
        messages = [b"%d" % number for number in range(50)]
        signatures = await asyncio.gather(*(manager.sign(message, 30) for message in messages))
        for message, signature in zip(messages, signatures, strict=True):
            assert is_good("ed25519", manager.public_key, message, signature)
        assert kms.calls["Sign"] == len(messages) + refusals


@one_loop
async def test_credentials_that_stay_refused_end_with_the_deadline(kms):
    async with opened(config(kms, kms.store.make(), maxCacheSize=0)) as manager:
        kms.calls.clear()
        kms.faults.error("ExpiredTokenException", times=10**6)
        late = await asyncio.gather(*(manager.sign(b"%d" % n, 0.8) for n in range(30)), return_exceptions=True)
        assert {type(error) for error in late} == {hsmcore.DeadlineExceeded}
        assert kms.calls["Sign"] < 60, "one asks, with a pause that grows"


@one_loop
async def test_a_policy_that_denies_is_asked_for_each_request(kms):
    async with opened(config(kms, kms.store.make(), maxCacheSize=0)) as manager:
        kms.faults.error("AccessDeniedException")
        with pytest.raises(hsmcore.AccessDenied, match="AccessDeniedException"):
            await manager.sign(b"x")
        assert is_good("ed25519", manager.public_key, b"x", await manager.sign(b"x"))


@one_loop
async def test_new_credentials_are_fetched_and_tried_as_soon_as_the_old_ones_are_refused(
    kms, issue, tmp_path, monkeypatch
):
    monkeypatch.setattr(kms_member, "RENEW_SECONDS", NEVER)
    issue("ASIAFIRST")
    kms.secrets = {"ASIAFIRST": "temporary"}
    with KmsServer() as elsewhere:
        elsewhere.secrets = {"ASIAFIRST": "temporary", "ASIASECOND": "temporary"}
        # Without the new credentials the next probe is an hour away: another member signs.
        hour = {"primaryRetryIntervalMs": 3_600_000}
        async with opened(two_levels(kms, elsewhere, tmp_path, **hour)) as manager:
            issue("ASIASECOND")
            kms.secrets = {"ASIASECOND": "temporary"}
            primary = manager._path.endpoints[0]
            assert (await manager.sign_with_receipt(b"x", 5)).level == "secondary"
            await until(lambda: primary.half_open)
            assert primary.member._client.credentials.access_key == "ASIASECOND"


@one_loop
async def test_temporary_credentials_are_renewed_by_the_sdk(kms, issue, tmp_path, monkeypatch):
    monkeypatch.setattr(kms_member, "RENEW_SECONDS", 0.02)
    issue("ASIAFIRST")
    kms.secrets = {"ASIAFIRST": "temporary"}
    async with opened(config(kms, kms.store.make(), maxCacheSize=0)) as manager:
        await manager.sign(b"x")
        issue("ASIASECOND")
        await until(lambda: manager._path.member._client.credentials.access_key == "ASIASECOND")
        kms.secrets = {"ASIASECOND": "temporary"}
        assert is_good("ed25519", manager.public_key, b"x", await manager.sign(b"x"))
        (tmp_path / "credentials.json").unlink()  # the SDK fails: what is valid goes on being used
        assert is_good("ed25519", manager.public_key, b"x", await manager.sign(b"x"))


@one_loop
async def test_expired_credentials_at_the_start_are_an_error_of_ours(kms, issue):
    issue("ASIAEXPIRED", minutes=-5)
    with pytest.raises(hsmcore.AccessDenied, match="RuntimeError"):
        await hsmcore.create_key_manager(config(kms, kms.store.make())).initialize()
    assert not kms.calls


# ---- the clock -------------------------------------------------------------------------------------------------------

OFF = [600.0, -600.0, 86_400.0]


@pytest.mark.parametrize("ahead", OFF)
@one_loop
async def test_a_clock_that_is_off_refuses_no_request(kms, ahead, caplog):
    """Each answer has KMS's time: what it refused for the time is signed again once, with that."""
    async with opened(config(kms, kms.store.make(), maxCacheSize=0)) as manager:
        kms.calls.clear()
        kms.faults.clock_ahead = ahead
        messages = [b"%d" % number for number in range(20)]
        signatures = await asyncio.gather(*(manager.sign(message, 30) for message in messages))
        for message, signature in zip(messages, signatures, strict=True):
            assert is_good("ed25519", manager.public_key, message, signature)
        assert kms.calls["Sign"] <= len(messages) + 8, "only what was with KMS is sent twice"
        assert caplog.text.count("clock and AWS KMS's differ") == 1
        kms.faults.clock_ahead = 0.0  # this machine's was stepped
        assert is_good("ed25519", manager.public_key, b"x", await manager.sign(b"x", 30))


@one_loop
async def test_a_wrong_secret_is_not_taken_for_a_wrong_clock(kms, monkeypatch):
    set_credentials(monkeypatch, secret_key="another one")
    kms.faults.clock_ahead = 600.0
    with pytest.raises(hsmcore.AccessDenied, match="InvalidSignatureException"):
        await hsmcore.create_key_manager(config(kms, kms.store.make())).initialize()
    assert sum(kms.calls.values()) == 2, "one more try, with KMS's time"


# ---- the share of the quota ------------------------------------------------------------------------------------------


@one_loop
async def test_requests_beyond_the_share_wait_in_the_order_in_which_they_came(kms):
    given = config(kms, kms.store.make(), {"maxPerSecond": 50, "concurrency": 4}, maxCacheSize=0)
    async with opened(given) as manager:
        loop, signed = asyncio.get_running_loop(), kms.store.signed
        signed.clear()
        begun = loop.time()
        messages = [b"%d" % number for number in range(30)]
        await asyncio.gather(*(manager.sign(message, 30) for message in messages))
        assert loop.time() - begun >= 28 / 50, "never faster, whatever the machine"
        assert [message for _, message in signed] == messages


@one_loop
async def test_requests_are_counted_by_operation_and_outcome(kms):
    async with opened(config(kms, kms.store.make(), maxCacheSize=0)) as manager:

        def count(operation: str, outcome: str) -> float:
            scrape = Scrape.of(manager)
            return scrape("hsmcore_kms_requests_total", operation=operation, outcome=outcome)

        assert (count("DescribeKey", "ok"), count("GetPublicKey", "ok"), count("Sign", "ok")) == (1, 1, 1)
        kms.faults.error("ThrottlingException", times=3)
        kms.faults.error("ExpiredTokenException")
        kms.faults.error("KMSInternalException", status=500)
        kms.faults.add("drop")
        await manager.sign(b"x", 30)
        outcomes = {name: count("Sign", name) for name in ("ok", "throttled", "refused", "failed", "lost")}
        assert outcomes == {"ok": 2, "throttled": 3, "refused": 1, "failed": 1, "lost": 1}
        kms.faults.add("hang")
        with pytest.raises(hsmcore.DeadlineExceeded):
            await manager.sign(b"y", 0.2)
        await until(lambda: count("Sign", "cancelled") == 1)
