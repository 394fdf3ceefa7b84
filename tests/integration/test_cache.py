"""The signature cache and single-flight: fewer calls, never another message's, another key's or a dead key's answer."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.managers import counters, opened, settle, start, until
from tests.support.size import share
from tests.support.verifiers import is_good

import hsmcore

pytestmark = pytest.mark.integration


def slow(world: Any, shim: Any, **rules: Any) -> dict[str, Any]:
    """A configuration with one worker behind the shim, and a cache."""
    return world.config(settings={"modulePath": shim.path, "sessions": 1}, **{"maxCacheSize": 1000, **rules})


# ---- hits ------------------------------------------------------------------------------------------------------------


async def test_a_cache_hit_is_the_same_signature_and_costs_no_call(world):
    async with opened(world.config(maxCacheSize=100)) as manager:
        first = await manager.sign(b"once")
        assert [await manager.sign(b"once") for _ in range(10)] == [first] * 10
        assert await manager.sign_many([b"once"] * 5) == [first] * 5
        assert await manager.sign(bytearray(b"once")) == first
        assert counters(manager)["signatures"] == 1
        stats = manager.get_cache_stats()
        assert (stats["size"], stats["max_size"], stats["hits"], stats["misses"]) == (1, 100, 16, 1)
        assert stats["hit_rate"] == pytest.approx(16 / 17)
        assert stats["bytes"] > 0


async def test_the_least_recently_used_goes_first(world):
    async with opened(world.config(maxCacheSize=3)) as manager:
        for message in (b"a", b"b", b"c", b"a", b"d"):  # b goes
            await manager.sign(message)
        assert counters(manager)["signatures"] == 4
        for message in (b"a", b"c", b"d"):
            await manager.sign(message)
        assert counters(manager)["signatures"] == 4
        await manager.sign(b"b")
        assert counters(manager)["signatures"] == 5
        stats = manager.get_cache_stats()
        assert (stats["size"], stats["evictions"]) == (3, 2)


@pytest.mark.parametrize("algorithm", ["ecdsa-p256", "ecdsa-secp256k1"])
async def test_signatures_that_differ_each_time_are_cached_only_on_demand(world, algorithm):
    async with opened(world.config(algorithm)) as manager:
        first, second = await manager.sign(b"once"), await manager.sign(b"once")
        assert first != second
        await asyncio.gather(*(manager.sign(b"together") for _ in range(10)))
        assert counters(manager)["signatures"] == 12
        assert manager.get_cache_stats()["size"] == 0
    async with opened(world.config(algorithm, cacheNonDeterministic=True)) as manager:
        first, second = await manager.sign(b"once"), await manager.sign(b"once")
        assert first == second
        assert is_good(algorithm, manager.public_key, b"once", first)
        assert counters(manager)["signatures"] == 1


async def test_a_failure_is_not_kept(world, shim):
    async with opened(slow(world, shim)) as manager:
        shim.fail("C_Sign", 0x21, times=1)
        with pytest.raises(hsmcore.HsmError):
            await manager.sign(b"x")
        assert manager.get_cache_stats()["size"] == 0
        assert is_good("ed25519", manager.public_key, b"x", await manager.sign(b"x"))


# ---- single-flight ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rules", [{}, {"maxCacheSize": 0, "singleFlight": True}])
async def test_identical_requests_cost_one_call(world, shim, rules):
    async with opened(slow(world, shim, **rules)) as manager:
        before = shim.calls("C_Sign")
        shim.hold()
        tasks = [start(manager.sign(b"same")) for _ in range(195)]
        batch = start(manager.sign_many([b"same"] * 5))
        await shim.until_inside(1)
        await until(lambda: manager.get_cache_stats()["joined"] == 199)
        assert counters(manager)["in_flight"] == 1
        shim.release()
        signatures = await asyncio.gather(*tasks) + await batch
        assert set(signatures) == {signatures[0]}
        assert is_good("ed25519", manager.public_key, b"same", signatures[0])
        assert shim.calls("C_Sign") - before == 1
        assert manager.get_cache_stats()["size"] == (0 if rules else 1)


async def test_it_can_be_switched_off(world, shim):
    async with opened(slow(world, shim, maxCacheSize=0, singleFlight=False)) as manager:
        before = shim.calls("C_Sign")
        await asyncio.gather(*(manager.sign(b"same") for _ in range(20)))
        assert shim.calls("C_Sign") - before == 20


async def test_a_failure_is_shared_by_all_joined_requests(world, shim):
    async with opened(slow(world, shim)) as manager:
        shim.hold()
        shim.fail("C_Sign", 0x21, times=1)
        tasks = [start(manager.sign(b"same")) for _ in range(10)]
        await shim.until_inside(1)
        await until(lambda: manager.get_cache_stats()["joined"] == 9)
        shim.release()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(outcome).__name__ for outcome in outcomes} == {"RequestRejected"}
        assert len({id(outcome) for outcome in outcomes}) == 10, "each has a traceback of its own"
        assert await manager.sign(b"same")


@pytest.mark.parametrize("begun", [True, False], ids=["begun", "queued"])
@pytest.mark.parametrize("end", ["cancelled", "out of time"])
async def test_followers_outlive_a_cancelled_or_late_leader(world, shim, begun, end):
    async with opened(slow(world, shim)) as manager:
        before = shim.calls("C_Sign")
        shim.hold()
        if not begun:
            ahead = start(manager.sign(b"ahead"))
            await shim.until_inside(1)
        leader = start(manager.sign(b"same", timeout=0.2 if end == "out of time" else 50))
        await until(lambda: counters(manager)["in_flight"] == (1 if begun else 2))
        if begun:
            await shim.until_inside(1)
        followers = [start(manager.sign(b"same", timeout=50)) for _ in range(5)]
        batch = start(manager.sign_many([b"same", b"other"], timeout=50))
        await until(lambda: manager.get_cache_stats()["joined"] == 6)
        if end == "cancelled":
            leader.cancel()
        with pytest.raises(asyncio.CancelledError if end == "cancelled" else hsmcore.DeadlineExceeded):
            await leader
        assert not any(task.done() for task in followers)
        shim.release()
        signatures = await asyncio.gather(*followers)
        assert set(signatures) == {(await batch)[0]}
        assert is_good("ed25519", manager.public_key, b"same", signatures[0])
        if not begun:
            await ahead
        await settle(manager)
        assert shim.calls("C_Sign") - before == (2 if begun else 3)
        assert await manager.sign(b"same") == signatures[0]


async def test_a_follower_can_time_out_or_cancel_alone(world, shim):
    async with opened(slow(world, shim)) as manager:
        shim.hold()
        leader = start(manager.sign(b"same", timeout=50))
        await shim.until_inside(1)
        hurried, impatient = start(manager.sign(b"same", timeout=0.1)), start(manager.sign(b"same", timeout=50))
        await until(lambda: manager.get_cache_stats()["joined"] == 2)
        impatient.cancel()
        with pytest.raises(hsmcore.DeadlineExceeded):
            await hurried
        with pytest.raises(asyncio.CancelledError):
            await impatient
        assert not leader.done()
        shim.release()
        assert is_good("ed25519", manager.public_key, b"same", await leader)


async def test_close_answers_followers(world, shim):
    manager = hsmcore.create_key_manager(slow(world, shim))
    await manager.initialize()
    shim.hold()
    tasks = [start(manager.sign(b"%d" % (n % 5))) for n in range(100)]
    await until(lambda: manager.get_cache_stats()["joined"] == 95)
    closing = start(manager.close())
    shim.release()
    for n, answer in enumerate(await asyncio.gather(*tasks)):
        assert is_good("ed25519", manager.public_key, b"%d" % (n % 5), answer)
    await closing


# ---- another key -----------------------------------------------------------------------------------------------------


async def test_a_request_in_flight_keeps_its_key_and_no_request_for_the_next_key_joins_it(world, shim):
    first, second = world.keys["ed25519"], world.keys["second"]
    async with opened(slow(world, shim)) as manager:
        await manager.set_current_key_id(second.id)
        await manager.set_current_key_id(first.id)
        shim.hold()
        old = start(manager.sign(b"x"))
        await shim.until_inside(1)
        await manager.set_current_key_id(second.id)
        new = [start(manager.sign(b"x")) for _ in range(5)]
        await until(lambda: manager.get_cache_stats()["joined"] == 4)
        shim.release()
        assert is_good("ed25519", first.public_key, b"x", await old)
        for signature in await asyncio.gather(*new):
            assert is_good("ed25519", second.public_key, b"x", signature)
        assert is_good("ed25519", second.public_key, b"x", await manager.sign(b"x"))


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("use"), st.sampled_from(["ed25519", "second", "rfc8032"])),
        st.tuples(st.just("sign"), st.sampled_from([b"a", b"b", b"c"])),
        st.tuples(st.just("batch"), st.sampled_from([b"a", b"b", b"c"])),
        st.tuples(st.just("wait"), st.none()),
    ),
    max_size=40,
)


def test_no_key_ever_answers_for_another(run, world):
    manager = hsmcore.create_key_manager(world.config(maxCacheSize=2, queueSize=4))
    run(manager.initialize())
    try:

        @settings(max_examples=share(60))
        @given(STEPS)
        def holds(steps: list[tuple[str, Any]]) -> None:
            run(scenario(steps))

        async def scenario(steps: list[tuple[str, Any]]) -> None:
            asked: list[tuple[bytes, bytes, asyncio.Task[Any]]] = []
            for step, value in steps:
                if step == "use":
                    await manager.set_current_key_id(world.keys[value].id)
                elif step == "wait":
                    await asyncio.gather(*(task for _, _, task in asked))
                else:
                    call = manager.sign(value) if step == "sign" else manager.sign_many([value, value])
                    asked.append((manager.public_key, value, start(call)))
                    await asyncio.sleep(0)  # the call begins now, under the key that is current now
            for public_key, message, task in asked:
                answer = await task
                for signature in answer if isinstance(answer, list) else [answer]:
                    assert is_good("ed25519", public_key, message, signature)

        holds()
    finally:
        run(manager.close())


# ---- a deactivated key -----------------------------------------------------------------------------------------------


async def test_a_deactivated_key_is_not_served_from_the_cache(fresh_token):
    async with opened(fresh_token().config()) as manager:
        await manager.sign(b"x")
        assert await manager.sign(b"x")
        await manager.deactivate_key(await manager.get_current_key_id())
        for call in (manager.sign(b"x"), manager.sign_with_receipt(b"x"), manager.sign_many([b"x"])):
            with pytest.raises(hsmcore.KeyDeactivated):
                await call
        assert manager.get_cache_stats()["size"] == 0
        assert counters(manager)["signatures"] == 1


async def test_what_a_key_signs_while_it_is_deactivated_is_not_kept(fresh_token, shim):
    async with opened(slow(fresh_token(), shim)) as manager:
        key_id = await manager.get_current_key_id()
        shim.hold()
        begun = start(manager.sign(b"x"))
        await shim.until_inside(1)
        queued = [start(manager.sign(b"%d" % (n % 3))) for n in range(9)]
        await until(lambda: manager.get_cache_stats()["joined"] == 6)
        deactivating = start(manager.deactivate_key(key_id))
        await until(lambda: manager.keys()[0].state == "deactivated")
        shim.release()
        await deactivating
        assert is_good("ed25519", manager.public_key, b"x", await begun), "it was inside the token already"
        outcomes = await asyncio.gather(*queued, return_exceptions=True)
        assert Counter(map(type, outcomes)) == {hsmcore.KeyDeactivated: 9}
        assert manager.get_cache_stats()["size"] == 0
