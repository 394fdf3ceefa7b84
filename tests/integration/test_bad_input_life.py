"""Nothing is lost: used at the wrong time or place, closed, cancelled, out of time, or with a full queue."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from tests.support.child import in_fork
from tests.support.loops import one_loop
from tests.support.managers import counters, opened, settle, start, until
from tests.support.verifiers import is_good

import hsmcore
from hsmcore import _native

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
]

CALLS: dict[str, Callable[[hsmcore.KeyManager], Any]] = {
    "sign": lambda manager: manager.sign(b"x"),
    "sign_many": lambda manager: manager.sign_many([b"x"]),
    "sign_many of nothing": lambda manager: manager.sign_many([]),
    "sign_with_receipt": lambda manager: manager.sign_with_receipt(b"x"),
    "generate_key": lambda manager: manager.generate_key(),
    "set_current_key_id": lambda manager: manager.set_current_key_id("00"),
    "deactivate_key": lambda manager: manager.deactivate_key("00"),
    "export_key_backup": lambda manager: manager.export_key_backup("00"),
}


def slow(world: Any, shim: Any, **rules: Any) -> dict[str, Any]:
    """A configuration with one worker behind the shim and no cache."""
    return world.config(settings={"modulePath": shim.path, "sessions": 1}, **{"maxCacheSize": 0, **rules})


# ---- at the wrong time -----------------------------------------------------------------------------------------------


@one_loop
@pytest.mark.parametrize("call", CALLS)
async def test_before_initialize(world, call):
    manager = hsmcore.create_key_manager(world.config())
    with pytest.raises(hsmcore.NotInitialized, match="initialize"):
        await CALLS[call](manager)
    await manager.close()


async def test_what_is_asked_before_initialize(world):
    manager = hsmcore.create_key_manager(world.config())
    with pytest.raises(hsmcore.NotInitialized):
        _ = manager.public_key
    with pytest.raises(hsmcore.NotInitialized):
        _ = manager.address
    with pytest.raises(hsmcore.NotInitialized):
        manager.get_cache_stats()
    with pytest.raises(hsmcore.NotInitialized):
        await manager.get_current_key_id()
    with pytest.raises(hsmcore.NotInitialized):
        await manager.verify(b"x", bytes(64))
    assert manager.keys() == []


@one_loop
@pytest.mark.parametrize("call", CALLS)
async def test_after_close(world, call):
    async with opened(world.config()) as manager:
        await manager.sign(b"x")
    with pytest.raises(hsmcore.EngineClosed) as caught:
        await CALLS[call](manager)
    assert not isinstance(caught.value, hsmcore.NotInitialized)
    assert not caught.value.retryable


async def test_verifying_after_close(world):
    async with opened(world.config()) as manager:
        signature = await manager.sign(b"x")
        assert await manager.verify(b"x", signature)
    with pytest.raises(hsmcore.EngineClosed):
        await manager.verify(b"x", signature)


# ---- in the wrong place ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["sign", "sign_many", "sign_many of nothing", "sign_with_receipt"])
async def test_in_another_event_loop(world, call):
    async with opened(world.config()) as manager:

        async def elsewhere() -> None:
            with pytest.raises(hsmcore.WrongEventLoop):
                await CALLS[call](manager)

        await asyncio.to_thread(asyncio.run, elsewhere())
        assert await manager.sign(b"x"), "the right one is not disturbed"


@pytest.mark.parametrize("call", ["generate_key", "set_current_key_id", "deactivate_key", "export_key_backup"])
async def test_keys_are_for_the_same_event_loop_too(fresh_token, call):
    async with opened(fresh_token().config()) as manager:
        keys = len(manager.keys())

        async def elsewhere() -> str:
            try:
                await CALLS[call](manager)
            except hsmcore.HsmError as error:
                return type(error).__name__
            return "done"

        assert await asyncio.to_thread(asyncio.run, elsewhere()) == "WrongEventLoop"
        assert len(manager.keys()) == keys


async def test_closing_from_another_event_loop_is_refused(world):
    async with opened(world.config()) as manager:

        async def elsewhere() -> None:
            with pytest.raises(hsmcore.WrongEventLoop):
                await manager.close()

        await asyncio.to_thread(asyncio.run, elsewhere())
        assert await manager.sign(b"x")


async def test_in_a_thread_without_an_event_loop(world):
    async with opened(world.config()) as manager:

        def by_hand() -> str:
            coroutine = manager.sign(b"x")
            try:
                coroutine.send(None)
            except hsmcore.HsmError as error:
                return type(error).__name__
            finally:
                coroutine.close()
            return "began"

        assert await asyncio.to_thread(by_hand) == "WrongEventLoop"


async def test_a_thread_may_ask_through_the_loop(world):
    async with opened(world.config()) as manager:
        loop = asyncio.get_running_loop()

        def ask() -> list[bytes]:
            asked = [asyncio.run_coroutine_threadsafe(manager.sign(b"%d" % n), loop) for n in range(50)]
            return [one.result(30) for one in asked]

        for n, signature in enumerate(await asyncio.to_thread(ask)):
            assert is_good("ed25519", manager.public_key, b"%d" % n, signature)


FORKED: dict[str, Callable[[hsmcore.KeyManager], Any]] = {
    **{name: CALLS[name] for name in ("sign", "sign_many", "sign_with_receipt", "generate_key", "export_key_backup")},
    "set_current_key_id": lambda manager: manager.set_current_key_id("0011"),
    "deactivate_key": lambda manager: manager.deactivate_key(manager.keys()[0].id),
}


@one_loop
@pytest.mark.parametrize(
    "call",
    list(FORKED),
)
async def test_after_fork(world, call):
    async with opened(world.config()) as manager:
        await manager.sign(b"x")

        async def attempt() -> None:
            await FORKED[call](manager)

        outcome = in_fork(lambda: asyncio.run(attempt()), seconds=5)
        assert outcome == "EngineForked"
        messages = [b"%d" % n for n in range(50)]
        for pair in zip(messages, await manager.sign_many(messages), strict=True):
            assert is_good("ed25519", manager.public_key, *pair)
        assert manager.keys()[0].state == "active"


@one_loop
async def test_verifying_after_fork_does_not_hang(world):
    async with opened(world.config()) as manager:
        signature = await manager.sign(b"x")
        assert await manager.verify(b"x", signature)
        outcome = in_fork(lambda: asyncio.run(manager.verify(b"x", signature)), seconds=5)
        assert outcome in (True, "EngineForked")


@one_loop
async def test_closing_after_fork_does_not_hang_and_leaves_the_parent_alone(world):
    async with opened(world.config()) as manager:
        await manager.sign(b"x")
        outcome = in_fork(lambda: asyncio.run(manager.close()), seconds=5)
        assert outcome in (None, "EngineForked")
        assert await manager.sign(b"y")


async def test_a_child_that_is_forked_while_requests_are_in_flight(world, shim):
    async with opened(slow(world, shim)) as manager:
        shim.hold()
        tasks = [start(manager.sign(b"%d" % n)) for n in range(20)]
        await shim.until_inside(1)
        outcome = in_fork(lambda: asyncio.run(manager.sign(b"x")), seconds=5)
        shim.release()
        assert outcome == "EngineForked"
        for n, signature in enumerate(await asyncio.gather(*tasks)):
            assert is_good("ed25519", manager.public_key, b"%d" % n, signature)


async def test_a_child_cannot_initialize_beside_its_parent_but_a_fresh_process_can(world):
    async with opened(world.config()) as manager:
        await manager.sign(b"x")
        other = hsmcore.create_key_manager(world.config())
        assert in_fork(lambda: asyncio.run(other.initialize()), seconds=20) == "EngineForked"


# ---- close -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("queue", "cache"), [(4096, 0), (64, 0), (8, 100)])
async def test_close_answers_all_requests(world, shim, queue, cache):
    manager = hsmcore.create_key_manager(slow(world, shim, queueSize=queue, maxCacheSize=cache))
    await manager.initialize()
    shim.hold()
    tasks = [start(manager.sign(b"%d" % n)) for n in range(400)]
    tasks += [start(manager.sign_many([b"%d %d" % (n, m) for m in range(5)])) for n in range(20)]
    await shim.until_inside(1)
    await until(lambda: counters(manager)["in_flight"] == min(queue, 500))
    closing = start(manager.close())
    late = [start(manager.sign(b"late %d" % n)) for n in range(100)]
    await asyncio.sleep(0.01)
    assert not closing.done(), "a request is inside the module"
    shim.release()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    await closing
    refused = await asyncio.gather(*late, return_exceptions=True)

    assert Counter(map(type, refused)) == {hsmcore.EngineClosed: 100}
    kinds = Counter(map(type, answers))
    assert sum(kinds.values()) == 420
    assert kinds.keys() <= {bytes, list, hsmcore.EngineClosed}
    for n, answer in enumerate(answers[:400]):
        assert isinstance(answer, hsmcore.EngineClosed) or is_good("ed25519", manager.public_key, b"%d" % n, answer)
    for n, answer in enumerate(answers[400:]):
        for m, signature in enumerate(answer if isinstance(answer, list) else ()):
            assert is_good("ed25519", manager.public_key, b"%d %d" % (n, m), signature)


async def test_close_after_all_callers_have_cancelled(world, shim):
    manager = hsmcore.create_key_manager(slow(world, shim))
    await manager.initialize()
    shim.hold()
    tasks = [start(manager.sign(b"%d" % n)) for n in range(50)]
    await shim.until_inside(1)
    for task in tasks:
        task.cancel()
    closing = start(manager.close())
    shim.release()
    await closing
    assert all(task.cancelled() for task in tasks)


# ---- cancelled -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", [0, 1000])
async def test_a_cancelled_await_is_accounted_for(world, shim, cache):
    async with opened(slow(world, shim, maxCacheSize=cache)) as manager:
        await manager.sign(b"for which the worker makes what verifies")
        before = _native.leaks()["allocations"] - manager.get_cache_stats()["size"]
        calls = shim.calls("C_Sign")
        shim.hold()
        messages = [b"%d" % n for n in range(100)]
        tasks = [start(manager.sign(message)) for message in messages]
        await shim.until_inside(1)
        await until(lambda: counters(manager)["in_flight"] == 100)
        for task in tasks[::2]:
            task.cancel()
        await asyncio.sleep(0)
        assert all(task.cancelled() for task in tasks[::2]), "a cancelled caller does not wait for the token"
        await asyncio.sleep(0.02)  # what is cancelled is taken from the workers a moment later, all at once
        shim.release()
        for message, signature in zip(messages[1::2], await asyncio.gather(*tasks[1::2]), strict=True):
            assert is_good("ed25519", manager.public_key, message, signature)
        await settle(manager)
        stats = counters(manager)
        assert stats["signatures"] + stats["cancelled"] == 101
        assert stats["cancelled"] >= 49, "all but the one that the token was at"
        assert shim.calls("C_Sign") - calls == stats["signatures"] - 1
        assert _native.leaks()["allocations"] == before + manager.get_cache_stats()["size"]


@pytest.mark.parametrize("place", ["in flight", "waiting"])
async def test_the_memory_of_a_cancelled_message_is_freed(world, shim, place):
    message = bytes(16_000) + place.encode()
    async with opened(slow(world, shim, queueSize=64 if place == "in flight" else 1)) as manager:
        shim.hold()
        first = start(manager.sign(b"first"))
        await shim.until_inside(1)
        references = sys.getrefcount(message)
        task = start(manager.sign(message))
        await until(lambda: counters(manager)["in_flight"] + counters(manager)["waiting"] == 2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        del task
        shim.release()
        assert await first
        await settle(manager)
        assert counters(manager)["waiting"] == 0
        assert sys.getrefcount(message) == references


async def test_wait_for_that_gives_up(world, shim):
    async with opened(slow(world, shim)) as manager:
        shim.hold()
        outcomes = await asyncio.gather(
            *(asyncio.wait_for(manager.sign(b"%d" % n), 0.05) for n in range(30)), return_exceptions=True
        )
        assert Counter(map(type, outcomes)) == {TimeoutError: 30}
        assert counters(manager)["in_flight"] >= 1
        shim.release()
        await settle(manager)
        assert is_good("ed25519", manager.public_key, b"after", await manager.sign(b"after"))


async def test_a_cancelled_batch_is_accounted_for(world, shim):
    async with opened(slow(world, shim, queueSize=16)) as manager:
        shim.hold()
        batch = start(manager.sign_many([b"%d" % n for n in range(200)]))
        other = start(manager.sign(b"other"))
        await shim.until_inside(1)
        batch.cancel()
        with pytest.raises(asyncio.CancelledError):
            await batch
        shim.release()
        assert is_good("ed25519", manager.public_key, b"other", await other)
        await settle(manager)
        assert counters(manager)["signatures"] < 20, "the rest of the batch was not signed in vain"


async def test_cancelling_what_is_done_changes_nothing(world):
    async with opened(world.config()) as manager:
        task = start(manager.sign(b"x"))
        signature = await task
        assert not task.cancel()
        assert await manager.sign(b"x") == signature


# ---- deadlines -------------------------------------------------------------------------------------------------------


async def test_a_deadline_is_kept_while_the_token_hangs(world, shim):
    async with opened(slow(world, shim)) as manager:
        calls = shim.calls("C_Sign")
        shim.hold()
        first = start(manager.sign(b"first", timeout=0.1))
        queued = [start(manager.sign(b"%d" % n, timeout=0.1)) for n in range(10)]
        batch = start(manager.sign_many([b"a", b"b"], timeout=0.1))
        patient = start(manager.sign(b"patient", timeout=50))
        outcomes = await asyncio.gather(first, *queued, batch, return_exceptions=True)
        assert Counter(map(type, outcomes)) == {hsmcore.DeadlineExceeded: 12}
        assert all(outcome.retryable for outcome in outcomes)
        assert shim.inside >= 1, "the token still hangs"
        assert not patient.done()
        shim.release()
        assert is_good("ed25519", manager.public_key, b"patient", await patient)
        await settle(manager)
        assert shim.calls("C_Sign") - calls == 2, "cancelled requests were not signed"
        assert counters(manager)["expired"] + counters(manager)["cancelled"] == 12


@pytest.mark.parametrize("call", ["sign", "sign_many", "sign_many with exceptions"])
async def test_the_default_deadline_is_the_configured_one(world, shim, call):
    async with opened(slow(world, shim, requestTimeoutMs=100)) as manager:
        shim.hold()
        if call == "sign_many with exceptions":
            late = await manager.sign_many([b"x", b"y"], return_exceptions=True)
            assert [type(error) for error in late] == [hsmcore.DeadlineExceeded] * 2
        else:
            with pytest.raises(hsmcore.DeadlineExceeded):
                await (manager.sign(b"x") if call == "sign" else manager.sign_many([b"x", b"y"]))
        shim.release()
        await settle(manager)


# ---- the queue -------------------------------------------------------------------------------------------------------


async def test_a_full_queue_makes_callers_wait_and_loses_none(world, shim):
    async with opened(slow(world, shim, queueSize=8)) as manager:
        allocations = _native.leaks()["allocations"]
        shim.hold()
        messages = [b"%d" % n for n in range(1000)]
        tasks = [start(manager.sign(message)) for message in messages]
        await shim.until_inside(1)
        await until(lambda: counters(manager)["waiting"] == 992)
        assert counters(manager)["in_flight"] == 8
        assert _native.leaks()["allocations"] == allocations, "waiting requests cost nothing in the core"
        shim.release()
        for message, signature in zip(messages, await asyncio.gather(*tasks), strict=True):
            assert is_good("ed25519", manager.public_key, message, signature)
        assert counters(manager)["signatures"] == 1000
        assert counters(manager)["waiting"] == counters(manager)["in_flight"] == 0


async def test_waiting_requests_are_served_in_order(world, shim):
    order: list[int] = []

    async def caller(number: int) -> None:
        await manager.sign(b"%d" % number)
        order.append(number)

    async with opened(slow(world, shim, queueSize=1)) as manager:
        shim.hold()
        tasks = [start(caller(n)) for n in range(50)]
        await until(lambda: counters(manager)["waiting"] == 49)
        shim.release()
        await asyncio.gather(*tasks)
    assert order == list(range(50))


async def test_a_deadline_in_a_full_queue(world, shim):
    async with opened(slow(world, shim, queueSize=8)) as manager:
        calls = shim.calls("C_Sign")
        shim.hold()
        patient = [start(manager.sign(b"patient %d" % n, timeout=50)) for n in range(8)]
        await until(lambda: counters(manager)["in_flight"] == 8)
        hurried = [start(manager.sign(b"hurried %d" % n, timeout=0.1)) for n in range(20)]
        batch = start(manager.sign_many([b"a", b"b"], timeout=0.1))
        last = start(manager.sign(b"last", timeout=50))
        outcomes = await asyncio.gather(*hurried, batch, return_exceptions=True)
        assert Counter(map(type, outcomes)) == {hsmcore.DeadlineExceeded: 21}
        assert counters(manager)["waiting"] == 1
        shim.release()
        signatures = await asyncio.gather(*patient, last)
        assert is_good("ed25519", manager.public_key, b"last", signatures[-1])
        assert shim.calls("C_Sign") - calls == 9, "a request that never had a slot costs no call"


async def test_identical_callers_wait_in_a_full_queue_too(world, shim):
    async with opened(slow(world, shim, queueSize=2, maxCacheSize=100)) as manager:
        shim.hold()
        tasks = [start(manager.sign(b"%d" % (n % 10))) for n in range(300)]
        await shim.until_inside(1)
        shim.release()
        for n, signature in enumerate(await asyncio.gather(*tasks)):
            assert is_good("ed25519", manager.public_key, b"%d" % (n % 10), signature)
        assert counters(manager)["signatures"] == 10


async def test_cancelled_while_waiting_for_the_queue(world, shim):
    async with opened(slow(world, shim, queueSize=2)) as manager:
        shim.hold()
        tasks = [start(manager.sign(b"%d" % n)) for n in range(60)]
        await until(lambda: counters(manager)["waiting"] == 58)
        for task in tasks[2::3]:
            task.cancel()
        await asyncio.sleep(0)
        shim.release()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        for n, answer in enumerate(answers):
            if n % 3 == 2:
                assert isinstance(answer, asyncio.CancelledError)
            else:
                assert is_good("ed25519", manager.public_key, b"%d" % n, answer)
        await settle(manager)
        assert counters(manager)["waiting"] == 0
        assert counters(manager)["signatures"] == 40
