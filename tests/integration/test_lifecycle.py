"""Opening and closing: repeatedly, two at a time, interrupted, and always with nothing left."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.support.leaks import holdings, surplus_since
from tests.support.managers import counters, opened, start, until
from tests.support.verifiers import is_good

import hsmcore
from hsmcore import _native
from hsmcore.errors import BadArgument

pytestmark = pytest.mark.integration


async def test_fifty_openings_and_closings_leave_nothing(world):
    async with opened(world.config()) as manager:
        await manager.sign(b"x")
    del manager
    before = holdings()
    for n in range(50):
        manager = hsmcore.create_key_manager(world.config())
        await manager.initialize()
        assert is_good("ed25519", manager.public_key, b"%d" % n, await manager.sign(b"%d" % n))
        await manager.close()
        del manager
    assert surplus_since(before) == []


async def test_one_manager_can_be_opened_again(world):
    manager = hsmcore.create_key_manager(world.config())
    for n in range(5):
        async with manager:
            assert is_good("ed25519", manager.public_key, b"%d" % n, await manager.sign(b"%d" % n))
        with pytest.raises(hsmcore.EngineClosed):
            await manager.sign(b"x")


async def test_two_managers_on_one_token(world):
    async with opened(world.config()) as first:
        async with opened(world.config("ecdsa-p256")) as second:
            one, other = await asyncio.gather(first.sign_many([b"x"] * 10), second.sign_many([b"x"] * 10))
            assert is_good("ed25519", first.public_key, b"x", one[9])
            assert is_good("ecdsa-p256", second.public_key, b"x", other[9])
        assert is_good("ed25519", first.public_key, b"y", await first.sign(b"y")), "the login was not taken from it"


async def test_the_manager_that_opened_first_can_close_first(world):
    first, second = (hsmcore.create_key_manager(world.config(name)) for name in ("ed25519", "second"))
    await first.initialize()
    await second.initialize()
    await first.sign(b"x")
    await first.close()
    for n in range(20):
        assert is_good("ed25519", second.public_key, b"%d" % n, await second.sign(b"%d" % n))
    await first.initialize()
    assert is_good("ed25519", first.public_key, b"z", await first.sign(b"z"))
    await asyncio.gather(first.close(), second.close())


async def test_two_managers_on_two_tokens(world, fresh_token):
    other = fresh_token()
    async with opened(world.config()) as first, opened(other.config()) as second:
        signatures = await asyncio.gather(*(manager.sign(b"x") for manager in (first, second) * 20))
        assert len(set(signatures)) == 2
        assert is_good("ed25519", other.keys["ed25519"].public_key, b"x", signatures[1])


async def test_a_manager_serves_keys_while_another_comes_and_goes(world):
    async with opened(world.config(maxCacheSize=0)) as steady:
        signing = [start(steady.sign(b"%d" % n)) for n in range(500)]
        for _ in range(5):
            async with opened(world.config("second")) as passing:
                await passing.sign(b"x")
        for n, signature in enumerate(await asyncio.gather(*signing)):
            assert is_good("ed25519", steady.public_key, b"%d" % n, signature)
        assert counters(steady)["failures"] == 0


async def test_a_failed_initialize_leaves_nothing_and_can_be_repeated(world, fresh_token):
    token = fresh_token()
    before = holdings()
    bad = [
        world.config(settings={"keyLabel": "no-such-key"}),
        world.config(settings={"tokenLabel": "no-such-token"}),
        world.config(settings={"modulePath": "/nonexistent.so"}),
        world.config("twin-1"),
        world.config("p384"),
    ]
    for config in bad * 2:
        with pytest.raises(hsmcore.HsmError):
            await hsmcore.create_key_manager(config).initialize()
    await asyncio.sleep(0)  # until then, asyncio holds the future that brought the last error
    assert surplus_since(before) == []

    manager = hsmcore.create_key_manager(token.config(settings={"keyLabel": "later-key"}))
    for _ in range(2):
        with pytest.raises(hsmcore.KeyNotFound):
            await manager.initialize()
    token.add_keys([{"name": "later", "kind": "ed25519"}])
    async with manager:
        assert manager.public_key == token.keys["later"].public_key


async def test_an_error_in_the_body_goes_through_and_closes(world):
    manager = hsmcore.create_key_manager(world.config())
    with pytest.raises(LookupError, match="body"):  # noqa: PT012  # leaving the body is what is tested
        async with manager:
            await manager.sign(b"x")
            raise LookupError("body")
    with pytest.raises(hsmcore.EngineClosed):
        await manager.sign(b"x")
    with pytest.raises(hsmcore.KeyNotFound):
        async with hsmcore.create_key_manager(world.config(settings={"keyLabel": "no"})):
            pytest.fail("the body must not run")


async def test_initialize_twice(world):
    manager = hsmcore.create_key_manager(world.config())
    first, second = await asyncio.gather(manager.initialize(), manager.initialize(), return_exceptions=True)
    assert first is None
    assert isinstance(second, hsmcore.HsmError)
    with pytest.raises(BadArgument, match="already"):
        await manager.initialize()
    assert await manager.sign(b"x")
    await manager.close()


async def test_close_is_no_error_before_and_twice_and_at_once(world):
    manager = hsmcore.create_key_manager(world.config())
    await manager.close()
    await manager.initialize()
    await asyncio.gather(*(manager.close() for _ in range(3)))
    await manager.close()


async def test_a_second_close_waits_for_the_first(world, shim):
    manager = hsmcore.create_key_manager(world.config(settings={"modulePath": shim.path, "sessions": 1}))
    await manager.initialize()
    shim.hold()
    task = start(manager.sign(b"x"))
    await shim.until_inside(1)
    first, second = start(manager.close()), start(manager.close())
    await asyncio.sleep(0.01)
    waited = not second.done()
    shim.release()
    await asyncio.gather(first, second, task)
    assert waited, "close() returned while the token was still in use"


async def test_a_close_that_is_cancelled_can_be_repeated(world, shim):
    manager = hsmcore.create_key_manager(world.config(settings={"modulePath": shim.path, "sessions": 1}))
    await manager.initialize()
    shim.hold()
    task = start(manager.sign(b"x"))
    await shim.until_inside(1)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(manager.close(), 0.05)
    shim.release()
    await task
    await manager.close()
    assert shim.calls("C_Finalize") == 1, "the module was let go"


@pytest.mark.parametrize("delay", [0, 0.0005, 0.002, 0.005, 0.02])
async def test_an_initialize_that_is_cancelled_leaves_nothing(world, delay):
    manager = hsmcore.create_key_manager(world.config())
    task = start(manager.initialize())
    await asyncio.sleep(delay)
    task.cancel()
    outcome = (await asyncio.gather(task, return_exceptions=True))[0]
    if outcome is None:  # it was faster
        await manager.close()
    else:
        assert isinstance(outcome, asyncio.CancelledError)
    async with manager:
        assert await manager.sign(b"x")


async def test_close_during_initialize_does_not_leave_it_open(world):
    manager = hsmcore.create_key_manager(world.config())
    opening = start(manager.initialize())
    await asyncio.sleep(0)
    await manager.close()
    await asyncio.gather(opening, return_exceptions=True)
    try:
        with pytest.raises(hsmcore.EngineClosed):
            await manager.sign(b"x")
    finally:
        await manager.close()


async def test_a_manager_that_is_never_opened_holds_no_token(world):
    before = _native.leaks()
    managers = [hsmcore.create_key_manager(world.config()) for _ in range(20)]
    assert all(count <= before[name] for name, count in _native.leaks().items())
    del managers


@pytest.mark.filterwarnings("ignore:a key manager was not closed:ResourceWarning")
def test_an_unreferenced_manager_is_collected_with_its_loop(world):
    async def careless() -> None:
        manager = hsmcore.create_key_manager(world.config())
        await manager.initialize()
        await manager.sign(b"x")

    before = holdings()
    asyncio.run(careless())
    assert surplus_since(before) == []


async def test_as_many_sessions_as_asked(world, shim):
    async with opened(world.config(settings={"modulePath": shim.path, "sessions": 16}, maxCacheSize=0)) as manager:
        assert counters(manager)["workers"] == 16
        assert shim.calls("C_OpenSession") == 17, "one for each worker and one for the login"
        shim.hold()
        tasks = [start(manager.sign(b"%d" % n)) for n in range(40)]
        await shim.until_inside(16)
        assert counters(manager)["busy"] == 16
        shim.release()
        for n, signature in enumerate(await asyncio.gather(*tasks)):
            assert is_good("ed25519", manager.public_key, b"%d" % n, signature)
    assert shim.calls("C_CloseSession") == 17
    assert shim.calls("C_Finalize") == shim.calls("C_Initialize") == 1


async def test_the_module_may_be_named_by_a_link(world, tmp_path):
    link = tmp_path / "module.so"
    link.symlink_to(world.module)
    async with (
        opened(world.config(settings={"modulePath": str(link)})) as one,
        opened(world.config("second")) as other,
    ):
        assert is_good("ed25519", one.public_key, b"x", await one.sign(b"x"))
        assert is_good("ed25519", other.public_key, b"x", await other.sign(b"x"))


@pytest.mark.parametrize("isolation", ["thread", "process"])
@pytest.mark.parametrize("verify", ["always", "sample", "never"])
async def test_signatures_are_verified_as_often_as_asked(world, verify, isolation):
    messages = [b"%d" % n for n in range(200)]
    settings = {"verifySignatures": verify, "isolation": isolation}
    async with opened(world.config(settings=settings, maxCacheSize=0)) as manager:
        for pair in zip(messages, await manager.sign_many(messages), strict=True):
            assert is_good("ed25519", manager.public_key, *pair)


VERIFIED = {"verifySignatures": "always", "isolation": "process"}


def verifying_threads() -> int:
    return sum(path.read_text() == "hsm-verifier\n" for path in Path("/proc/self/task").glob("*/comm"))


async def test_a_close_while_signatures_are_verified_answers_every_caller(world):
    manager = hsmcore.create_key_manager(world.config(settings=VERIFIED, maxCacheSize=0))
    for n in range(5):
        await manager.initialize()
        await until(lambda: verifying_threads() == 1)
        messages = [b"%d" % n for n in range(300)]
        callers = [start(manager.sign(message)) for message in messages]
        await asyncio.wait(callers, return_when=asyncio.FIRST_COMPLETED)
        for caller in callers[n::7]:
            caller.cancel()
        await manager.close()
        for message, answer in zip(messages, await asyncio.gather(*callers, return_exceptions=True), strict=True):
            if isinstance(answer, bytes):
                assert is_good("ed25519", manager.public_key, message, answer)
            else:
                assert isinstance(answer, hsmcore.EngineClosed | asyncio.CancelledError)
        await until(lambda: verifying_threads() == 0)


async def test_a_deadline_holds_while_signatures_are_verified(world):
    async with opened(world.config(settings=VERIFIED, maxCacheSize=0)) as manager:
        messages = [b"%d" % n for n in range(300)]
        signing = (manager.sign(message, 0.002 * (1 + n % 5)) for n, message in enumerate(messages))
        for message, answer in zip(messages, await asyncio.gather(*signing, return_exceptions=True), strict=True):
            if isinstance(answer, bytes):
                assert is_good("ed25519", manager.public_key, message, answer)
            else:
                assert isinstance(answer, hsmcore.DeadlineExceeded | hsmcore.QueueFull)
        assert is_good("ed25519", manager.public_key, b"after", await manager.sign(b"after"))


@pytest.mark.parametrize("settings", [{}, VERIFIED], ids=["bare", "verified"])
@pytest.mark.parametrize("rules", [{"spinMicros": 0}, {"wakeCoalesceMicros": 0}, {"wakeCoalesceMicros": 1_000_000}])
async def test_all_requests_are_answered_with_any_tuning(world, rules, settings):
    async with opened(world.config(settings=settings, maxCacheSize=0, **rules)) as manager:
        for n in range(20):
            assert await manager.sign(b"%d" % n)
        assert len(await asyncio.gather(*(manager.sign(b"%d" % n) for n in range(200)))) == 200
