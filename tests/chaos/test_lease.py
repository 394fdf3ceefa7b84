"""The lease at the native boundary: nothing is asked of an HSM, and nothing handed out, once it is over."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from tests.support.chaos import Chaos, engine_of, wrap
from tests.support.levels import OTHER, QUICK, SAME, Site
from tests.support.managers import counters, opened, start, until
from tests.support.verifiers import is_good

import hsmcore
from hsmcore._native import Lease
from hsmcore.errors import NotHolder

pytestmark = [pytest.mark.integration]

WAYS: dict[str, Callable[[hsmcore.KeyManager, bytes], Awaitable[Any]]] = {
    "sign": lambda manager, message: manager.sign(message),
    "sign_with_receipt": lambda manager, message: manager.sign_with_receipt(message),
    "sign_many": lambda manager, message: manager.sign_many([message, message + b"!"]),
}
each_way = pytest.mark.parametrize("way", list(WAYS))


def a_lease() -> Lease:
    """A lease that outlasts the test."""
    lease = Lease()
    lease.until = time.clock_gettime_ns(time.CLOCK_BOOTTIME) + 3_600_000_000_000
    lease.holder, lease.epoch, lease.reason = "somewhere:1:0", 7, "epoch 7 was claimed elsewhere"
    return lease


async def errors_of(manager: hsmcore.KeyManager) -> list[Any]:
    """What the audit log says of refused signatures."""
    return [record["result"] async for record in manager.audit.query(match={"error": "NOT_HOLDER"})]


@each_way
async def test_a_lease_that_is_over_costs_no_call(world, tmp_path, way):
    chaos = Chaos(tmp_path, wrap(world))
    async with opened(chaos.config(auditLogFile=str(tmp_path / "audit.log"))) as manager:
        lease = a_lease()
        engine_of(manager).hand_out_under(lease)
        await WAYS[way](manager, b"in time")
        lease.until = 0
        calls = chaos.calls("C_Sign"), chaos.calls("C_SignInit")
        with pytest.raises(NotHolder, match="epoch 7 was claimed elsewhere") as caught:
            await WAYS[way](manager, b"late")
        assert (caught.value.epoch, caught.value.holder) == (7, "somewhere:1:0")
        assert caught.value.retryable
        assert (chaos.calls("C_Sign"), chaos.calls("C_SignInit")) == calls
        assert await errors_of(manager) == ["error"]
        lease.until = a_lease().until
        await WAYS[way](manager, b"late")


@each_way
@pytest.mark.parametrize("audited", [True, False])
async def test_a_signature_that_comes_after_the_end_is_not_handed_out(world, tmp_path, way, audited):
    chaos = Chaos(tmp_path, wrap(world))
    log = {"auditLogFile": str(tmp_path / "audit.log")} if audited else {}
    async with opened(chaos.config(settings={"sessions": 1, "hangAfterMs": 60_000}, **log)) as manager:
        lease = a_lease()
        engine_of(manager).hand_out_under(lease)
        chaos.fault("C_Sign", "hang", forever=True)
        asked = start(WAYS[way](manager, b"begun in time"))
        await until(lambda: chaos.stats()["hung"] == 1)
        lease.until = 0
        chaos.release()
        with pytest.raises(NotHolder):
            await asked
        await until(lambda: counters(manager)["in_flight"] == 0)
        if audited:
            refused = await errors_of(manager)
            assert refused
            assert set(refused) == {"error"}
            assert [record async for record in manager.audit.query(match={"operation": "sign", "result": "ok"})] == []


async def test_a_batch_keeps_what_was_in_time(world, tmp_path):
    chaos = Chaos(tmp_path, wrap(world))
    async with opened(chaos.config(settings={"sessions": 1, "hangAfterMs": 60_000})) as manager:
        lease = a_lease()
        engine_of(manager).hand_out_under(lease)
        chaos.fault("C_Sign", "hang", forever=True, nth=2)
        asked = start(manager.sign_many([b"first", b"second"], return_exceptions=True))
        await until(lambda: chaos.stats()["hung"] == 1)
        lease.until = 0
        chaos.release()
        answers = await asked
        assert isinstance(answers[1], NotHolder)
        if isinstance(answers[0], bytes):  # else it was taken together with the second one
            assert is_good("ed25519", manager.public_key, b"first", answers[0])


async def test_a_cached_answer_obeys_too(world, tmp_path):
    chaos = Chaos(tmp_path, wrap(world))
    async with opened(chaos.config(maxCacheSize=100)) as manager:
        lease = a_lease()
        engine_of(manager).hand_out_under(lease)
        signature = await manager.sign(b"again")
        lease.until = 0
        for way in WAYS.values():
            with pytest.raises(NotHolder):
                await way(manager, b"again")
        lease.until = a_lease().until
        assert await manager.sign(b"again") == signature
        assert counters(manager)["signatures"] == 1


async def test_an_answer_that_is_held_for_its_record_obeys_too(world, tmp_path):
    chaos = Chaos(tmp_path, wrap(world))
    async with opened(chaos.config(auditLogFile=str(tmp_path / "audit.log"))) as manager:
        engine, lease = engine_of(manager), a_lease()
        engine.hand_out_under(lease)
        number = manager.audit.journal.next
        answer = engine.submit(b"held")
        while manager.audit.journal.next == number:  # the loop has no turn, so that nothing is handed out
            engine._drain()
        assert not answer.done()
        lease.until = 0
        with pytest.raises(NotHolder):
            await answer
        assert await errors_of(manager) == ["error"]


async def test_what_hsmcore_itself_has_signed_needs_no_lease(world, tmp_path):
    chaos = Chaos(tmp_path, wrap(world))
    async with opened(chaos.config(auditLogFile=str(tmp_path / "audit.log"))) as manager:
        engine_of(manager).hand_out_under(Lease())
        signature = await manager._path.sign_as(manager.keys()[0], b"a probe")
        assert is_good("ed25519", manager.public_key, b"a probe", signature)
        own = engine_of(manager).submit(b"shared", None, manager.keys()[0].index, b"", own=True)
        assert is_good("ed25519", manager.public_key, b"shared", own if isinstance(own, bytes) else await own)
        with pytest.raises(NotHolder):
            await manager.sign(b"a probe")


@each_way
async def test_no_other_member_is_asked_and_the_message_stays_bound(tmp_path, fresh_token, way):
    site = Site(tmp_path, fresh_token, SAME, OTHER)
    once = {**QUICK, "secondaryRetryIntervalMs": 3_600_000}  # the standby is probed as it begins, and then not again
    config = site.config(failover={**once, "acceptOtherKeys": ["secondary"]}, auditLogFile=str(tmp_path / "audit.log"))
    async with opened(config) as manager:
        lease, (first, second) = a_lease(), site.members
        await until(lambda: second.calls("C_Sign") == 1)
        for member in manager.members():
            member.member.engine.hand_out_under(lease)
        first.fault("C_Sign", "hang", forever=True)
        asked = start(WAYS[way](manager, b"bound"))
        await until(lambda: first.stats()["hung"] == 1)
        lease.until = 0
        first.release()
        with pytest.raises(NotHolder):
            await asked
        assert second.calls("C_Sign") == 1
        assert manager._path.router.bindings.any_elsewhere((b"bound",), b"another key")
        with pytest.raises(NotHolder):
            await WAYS[way](manager, b"never begun")
        assert not manager._path.router.bindings.any_elsewhere((b"never begun",), b"another key")
        assert all(member.condition == "ready" for member in manager.members())
        assert "error" in await errors_of(manager)
