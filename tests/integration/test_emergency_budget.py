"""The emergency level's restrictions hold: under 64 signers, across kill -9, and back and forth."""

from __future__ import annotations

import asyncio

import pytest
from tests.support.budget_kills import spend_under_kills
from tests.support.emergency import Rig
from tests.support.levels import SAME, Site
from tests.support.loops import one_loop
from tests.support.managers import opened, until
from tests.support.size import share
from tests.support.verifiers import is_good

from hsmcore.errors import MemberDown
from hsmcore.failover.budget import Emergency, Limits
from hsmcore.failover.errors import AllLevelsFailed, EmergencyRefused
from hsmcore.failover.history import History
from hsmcore.state import Store

pytestmark = pytest.mark.integration


@pytest.mark.timeout(120)
def test_so_many_and_not_one_more_leave_whatever_is_killed(fresh_token, tmp_path):
    """Twenty kills and a thousand: tests/chaos/budget_at_length.py."""
    spend_under_kills(fresh_token, tmp_path / "state.db", most=200, kills=share(4, 2))


@one_loop
async def test_units_of_a_block_can_be_used_when_the_store_has_no_more(tmp_path):
    store = await Store.open(tmp_path / "s.db")
    first, second = (Emergency(store, Limits(40, 3600)) for _ in range(2))
    assert await first.spend()  # and 15 more are reserved
    for _ in range(24):
        assert await second.spend()
    assert not (await second.status()).usable
    assert (await first.status()).usable
    assert (await first.begin()).usable
    for _ in range(15):
        assert await first.spend()
    assert not (await first.status()).usable
    for budget in (first, second):
        with pytest.raises(EmergencyRefused):
            await budget.spend()
    await store.close()


@one_loop
async def test_leaving_destroys_the_key_and_keeps_the_count(fresh_token, tmp_path):
    token = fresh_token({"name": "a", "kind": "ed25519"}, {"name": "b", "kind": "ed25519"})
    rig = Rig([token.config(name, maxCacheSize=0) for name in "ab"], tmp_path / "state.db", most=20)
    operations = []
    async with rig:
        rig.events.on("emergency-operation", lambda details: operations.append(dict(details)))
        router = rig.service.router
        for round_ in range(2):
            await rig.drop()
            for number in range(5):
                answer = await router.ask(f"{round_} {number}".encode())
                assert answer.level == "emergency"
            await rig.restore()
            assert (await router.ask(b"back")).level == "primary"
        assert len(operations) == 10
        assert {o["operation"] for o in operations} == {"sign"}
        assert (await rig.service.budget.status()).left <= 10
        await rig.drop()
        answers = await asyncio.gather(*(router.sign(f"n{n}".encode()) for n in range(40)), return_exceptions=True)
        good = [answer for answer in answers if isinstance(answer, bytes)]
        assert len(good) == 10
        for error in answers:
            if not isinstance(error, bytes):
                assert isinstance(error, AllLevelsFailed)
                assert isinstance(error.causes["emergency"], EmergencyRefused), error
                assert "drained" in str(error.causes["primary"])
    store = await Store.open(tmp_path / "state.db")
    kinds = [row["kind"] for row in await History(store).query()]
    assert kinds.count("emergency-entered") == kinds.count("emergency-left") == 3
    assert kinds.count("emergency-exhausted") == 1
    # After a reset, there is a whole budget again.
    await Emergency(store, Limits(20, 3600)).reset("an exercise is over")
    await store.close()
    async with Rig([token.config(name, maxCacheSize=0) for name in "ab"], tmp_path / "state.db", most=20) as rig:
        await rig.drop()  # still drained, from before
        assert len(await asyncio.gather(*(rig.service.router.sign(f"m{n}".encode()) for n in range(20)))) == 20


@pytest.mark.parametrize("maybe_signed", [False, True])
@one_loop
async def test_a_unit_comes_back_only_if_nothing_was_signed_for_it(fresh_token, tmp_path, monkeypatch, maybe_signed):
    token = fresh_token({"name": "a", "kind": "ed25519"}, {"name": "b", "kind": "ed25519"})
    async with Rig([token.config(name, maxCacheSize=0) for name in "ab"], tmp_path / "s.db", most=20) as rig:
        await rig.drop()
        asked = []

        def fails(*_args):
            asked.append(asyncio.get_running_loop().create_future())
            asked[-1].set_exception(MemberDown("gone", maybe_signed=maybe_signed))
            return asked[-1]

        monkeypatch.setattr(rig.endpoints[1], "ask", fails)
        with pytest.raises(AllLevelsFailed):
            await rig.service.router.sign(b"m", 0.2)
        found = await rig.service.budget.status()
        assert asked
        assert found.reserved - found.held == (len(asked) if maybe_signed else 0)


@one_loop
async def test_an_emergency_key_that_goes_between_its_unit_and_its_signature_signs_nothing(
    fresh_token, tmp_path, monkeypatch
):
    token = fresh_token({"name": "a", "kind": "ed25519"}, {"name": "b", "kind": "ed25519"})
    async with Rig([token.config(name, maxCacheSize=0) for name in "ab"], tmp_path / "s.db", most=20) as rig:
        await rig.drop()
        budget, endpoint = rig.service.budget, rig.endpoints[1]
        spend = budget.try_spend

        def another_key_since(units=1):
            endpoint.key = b"k" * 32
            return spend(units)

        monkeypatch.setattr(budget, "try_spend", another_key_since)
        with pytest.raises(AllLevelsFailed, match="destroyed meanwhile"):
            await rig.service.router.sign(b"m", 0.2)


@one_loop
async def test_the_customer_s_flat_form_from_the_first_failure_to_the_return(fresh_token, tmp_path):
    """One provider, a failover block with the customer's keys and no list: the emergency key is made in memory."""
    place = Site(tmp_path, fresh_token, SAME)
    restrictions = {"maxTransactions": 30, "maxTimeSeconds": 3600, "allowedOperations": ["sign"]}
    config = place.config(
        failover={"emergencyModeEnabled": True, "emergencyModeRestrictions": restrictions},
        auditLogFile=str(tmp_path / "audit.log"),
    )
    keys, left, heard = [], [], []
    for round_ in range(2):  # the second time with a new key manager on the same store
        async with opened(config) as manager:
            for name in ("failover", "failback", "emergency-operation"):
                manager.on(name, lambda details, name=name: heard.append(name))
            usual = manager.public_key
            place.kill(0)
            signed = []
            for number in range(10):
                receipt = await manager.sign_with_receipt(f"{round_} {number}".encode(), 20.0)
                assert receipt.level == "emergency"
                assert is_good("ed25519", receipt.public_key, f"{round_} {number}".encode(), receipt.signature)
                assert await manager.verify(f"{round_} {number}".encode(), receipt.signature)
                signed.append(receipt)
            keys.append(manager.public_key)
            assert {receipt.public_key for receipt in signed} == {manager.public_key} != {usual}
            for refused in (manager.generate_key(), manager.export_key_backup(receipt.key_id)):
                with pytest.raises(EmergencyRefused, match="allowedOperations"):
                    await refused
            left.append((await manager._path.budget.status()).left)
            place.revive(0)
            await until(lambda m=manager: m._path.levels.active == 0)
            assert manager.public_key == usual
            await until(lambda m=manager: not m._path.endpoints[-1].member)
            records = [record async for record in manager.audit.query(match={"operation": "emergency-left"})]
            assert [record["public_key"] for record in records] == [key.hex() for key in keys]
    assert keys[0] != keys[1]
    assert left[0] <= 20
    assert left[1] <= 10
    assert heard == ["failover", *["emergency-operation"] * 10, "failback"] * 2
    async with opened(config) as manager:
        place.kill(0)
        done = [manager.sign(f"last {n}".encode(), 20.0) for n in range(30)]
        results = await asyncio.gather(*done, return_exceptions=True)
        assert sum(isinstance(result, bytes) for result in results) <= 10
        assert all(isinstance(r, bytes) or isinstance(r.causes["emergency"], EmergencyRefused) for r in results)
        place.revive(0)


@one_loop
async def test_a_signature_is_credited_to_the_key_that_made_it(fresh_token, tmp_path, monkeypatch):
    """Also if the emergency key is destroyed, and another one made, while a request waits for its unit."""
    place = Site(tmp_path, fresh_token, SAME)
    async with opened(place.config(failover={"emergencyModeEnabled": True})) as manager:
        router, emergency = manager._path.router, manager._path.endpoints[-1]
        place.kill(0)
        first = (await manager.sign_with_receipt(b"first", 20.0)).public_key
        begun, gate = asyncio.Event(), asyncio.Event()
        spend = router._spend

        async def slowly(*asked):
            begun.set()
            await gate.wait()
            return await spend(*asked)

        monkeypatch.setattr(router, "_spend", slowly)
        asking = asyncio.ensure_future(manager.sign_with_receipt(b"patient", 20.0))
        await begun.wait()
        place.revive(0)
        await until(lambda: router.levels.active == 0 and emergency.member is None)
        place.kill(0)
        failing = asyncio.ensure_future(manager.sign_with_receipt(b"impatient", 20.0))
        await until(lambda: router.in_emergency)
        gate.set()
        for message, asked in ((b"patient", asking), (b"impatient", failing)):
            receipt = await asked
            assert receipt.public_key != first
            assert is_good("ed25519", receipt.public_key, message, receipt.signature)
        place.revive(0)
