"""What AWS KMS signed has a record, whether its caller waits for it or not."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.kms import KmsServer, config
from tests.support.levels import QUICK
from tests.support.loops import one_loop
from tests.support.managers import opened, start, until

import hsmcore

pytestmark = pytest.mark.integration


@pytest.fixture(params=[False, True], ids=["alone", "levels"])
def recorded(request, kms, tmp_path) -> Callable[..., dict[str, Any]]:
    """A configuration with an audit log."""
    rules: dict[str, Any] = {"auditLogFile": str(tmp_path / "audit.log"), "maxCacheSize": 0}
    if request.param:
        rules |= {"failover": QUICK, "stateFile": str(tmp_path / "state.db")}
    return lambda key: config(kms, key, **rules)


async def signs(log: Path | None, manager: hsmcore.KeyManager) -> list[tuple[str, str | None, bool]]:
    """Result, error and whether there is a signature, of each record of a signature of b"m"."""
    assert log is not None
    digest = hashlib.sha256(b"m").hexdigest()
    found = [r async for r in manager.audit.query(match={"operation": "sign", "message_sha256": digest})]
    return [(record["result"], record.get("error"), "signature" in record) for record in found]


async def begun(kms: KmsServer, manager: hsmcore.KeyManager, timeout: float = 20) -> asyncio.Task[bytes]:
    """A request that KMS has and does not answer yet."""
    kms.calls.clear()
    kms.hold()
    asked = start(manager.sign(b"m", timeout))
    await until(lambda: kms.calls["Sign"] == 1)
    return asked


@one_loop
async def test_a_signature_whose_caller_went_away_is_unclaimed(kms, recorded):
    async with opened(recorded(kms.store.make())) as manager:
        asked = await begun(kms, manager)
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        kms.release()
        await until(lambda: not manager.members()[0].in_flight)
        assert await signs(manager.audit.file, manager) == [("unclaimed", None, True)]


@one_loop
async def test_a_signature_whose_deadline_passed_has_a_record_of_its_unknown_outcome(kms, recorded):
    async with opened(recorded(kms.store.make())) as manager:
        asked = await begun(kms, manager, 0.2)
        with pytest.raises(hsmcore.DeadlineExceeded):
            await asked
        kms.release()
        await until(lambda: not manager.members()[0].in_flight)
        assert ("error", "DEADLINE_EXCEEDED", False) in await signs(manager.audit.file, manager)


@one_loop
async def test_what_kms_had_when_it_was_closed_has_a_record(kms, recorded):
    async with opened(recorded(kms.store.make())) as manager:
        asked = await begun(kms, manager)
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
    kms.release()
    [(result, error, _)] = await signs(manager.audit.file, manager)
    assert (result, error) in (("error", "CANCELLED"), ("error", "CLOSED"))
