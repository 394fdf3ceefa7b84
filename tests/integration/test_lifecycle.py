"""Opening and closing: repeatedly, two at a time, interrupted, and always with nothing left."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.support.leaks import holdings, surplus_since
from tests.support.managers import counters, opened, start, until
from tests.support.verifiers import is_good

import hsmcore
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


async def test_two_managers_on_two_tokens(world, fresh_token):
    other = fresh_token()
    async with opened(world.config()) as first, opened(other.config()) as second:
        signatures = await asyncio.gather(*(manager.sign(b"x") for manager in (first, second) * 20))
        assert len(set(signatures)) == 2
        assert is_good("ed25519", other.keys["ed25519"].public_key, b"x", signatures[1])


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


async def test_initialize_twice(world):
    manager = hsmcore.create_key_manager(world.config())
    first, second = await asyncio.gather(manager.initialize(), manager.initialize(), return_exceptions=True)
    assert first is None
    assert isinstance(second, hsmcore.HsmError)
    with pytest.raises(BadArgument, match="already"):
        await manager.initialize()
    assert await manager.sign(b"x")
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
