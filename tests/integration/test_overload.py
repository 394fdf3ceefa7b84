"""Overload: a request that cannot meet its deadline is rejected at once, the others are served."""

from __future__ import annotations

import asyncio
import random
import re
import statistics
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
from tests.support.chaos import Chaos, wrap
from tests.support.kms import config as kms_config
from tests.support.levels import SAME, Site
from tests.support.loops import one_loop
from tests.support.managers import counters, opened, settle, start, until
from tests.support.verifiers import is_good

import hsmcore
from hsmcore.failover.levels import Levels

pytestmark = [pytest.mark.integration]

RATE = 40
"""Signatures per second that the slow device makes: so few that a busy machine changes little of it."""
SLOW = 2 / RATE


@pytest.fixture(params=["pkcs11", pytest.param("aws-kms", marks=pytest.mark.deep)])
def place(request, tmp_path, world) -> tuple[Callable[..., dict], Callable[[float], None]]:
    """Configurations of a member that makes two signatures at once, and a way to say how many seconds one takes."""
    if request.param == "pkcs11":
        chaos = Chaos(tmp_path, wrap(world))
        return partial(chaos.config, settings={"sessions": 2}), partial(takes, chaos)
    kms = request.getfixturevalue("kms")
    key = kms.store.make("ECC_NIST_EDWARDS25519")

    def config(**rules: Any) -> dict:
        return kms_config(kms, key, {"concurrency": 2}, **{"maxCacheSize": 0, **rules})

    return config, partial(setattr, kms.faults, "latency")


def takes(chaos: Chaos, seconds: float) -> None:
    chaos.ask("latency", function="C_Sign", kind="constant", microseconds=round(seconds * 1e6))


async def measured(manager: hsmcore.KeyManager, signatures: int = 2 * RATE) -> None:
    """Let the manager find out how fast its device is."""
    await manager.sign_many([b"measured %d" % n for n in range(signatures)], timeout=60)


async def in_time_or_late(work: Awaitable[object]) -> None:
    """On a busy machine a request may be late. Whether one was refused is counted elsewhere."""
    with suppress(hsmcore.DeadlineExceeded):
        await work


@one_loop
async def test_no_request_is_refused_while_nothing_is_in_flight(place):
    """What was measured once does not keep requests from showing that it has changed."""
    config, takes = place
    async with opened(config()) as manager:
        takes(0.3)
        await measured(manager, 8)
        takes(0.005)
        for number in range(20):
            await in_time_or_late(manager.sign(b"lone %d" % number, timeout=0.2))
        takes(0.3)
        await measured(manager, 8)
        takes(0.005)
        await asyncio.sleep(0.8)
        # A batch that would be late by what was measured then, and nothing else comes.
        await in_time_or_late(manager.sign_many([b"batch %d" % n for n in range(20)], timeout=0.75))
        assert counters(manager)["refused"] == 0


@one_loop
async def test_admission_does_not_count_a_call_that_hangs(world, tmp_path):
    """Once its caller has been answered and another worker has taken its place."""
    chaos = Chaos(tmp_path, wrap(world))
    async with opened(chaos.config(settings={"sessions": 1, "hangAfterMs": 100})) as manager:
        takes(chaos, 0.3)
        await measured(manager, 4)
        takes(chaos, 0.002)
        chaos.fault("C_Sign", "hang", forever=True)
        with pytest.raises(hsmcore.DeadlineExceeded):
            await manager.sign(b"hangs", timeout=0.2)
        await until(lambda: counters(manager)["stuck"] == 1)
        for number in range(20):
            await in_time_or_late(manager.sign(b"beside it %d" % number, timeout=0.25))
        await until(lambda: counters(manager)["in_flight"] == 1)
        assert counters(manager)["refused"] == 0
        assert chaos.release() == 1


@one_loop
async def test_who_cannot_be_in_time_is_refused_at_once_and_nobody_else(place):
    config, takes = place
    async with opened(config()) as manager:
        takes(SLOW)
        await measured(manager)
        # They have ten times the time that they take.
        await asyncio.gather(*[manager.sign(b"few %d" % n, timeout=10) for n in range(RATE)])
        assert counters(manager)["refused"] == 0
        many = [start(manager.sign(b"many %d" % n, timeout=10)) for n in range(30 * RATE)]
        await until(lambda: any(task.done() and isinstance(task.exception(), hsmcore.QueueFull) for task in many))
        assert not all(task.done() for task in many), "a refusal waits for nobody's answer"
        takes(0)
        ends = await asyncio.gather(*many, return_exceptions=True)
        kinds = Counter(map(type, ends))
        assert kinds.keys() == {bytes, hsmcore.QueueFull}, "who is admitted is signed for"
        assert kinds[hsmcore.QueueFull] == counters(manager)["refused"] > kinds[bytes] >= RATE
        for number, end in enumerate(ends):
            assert not isinstance(end, bytes) or is_good("ed25519", manager.public_key, b"many %d" % number, end)
    refusal = next(end for end in ends if isinstance(end, hsmcore.QueueFull))
    assert refusal.retryable
    assert isinstance(refusal, hsmcore.DeadlineExceeded), "a caller that handles deadlines handles it"
    assert re.search(r"[1-9]\d* requests wait, which takes about [\d.]+ s; the timeout is 10 s", str(refusal))


@one_loop
async def test_a_batch_is_refused_as_a_whole_or_served_in_part(place):
    config, takes = place
    async with opened(config()) as manager:
        takes(SLOW)
        await measured(manager)
        calls = counters(manager)["signatures"]
        with pytest.raises(hsmcore.QueueFull):
            await manager.sign_many([b"x %d" % n for n in range(30 * RATE)], timeout=10)
        assert counters(manager)["signatures"] == calls, "nothing is signed of what is refused"
        some = await manager.sign_many([b"y %d" % n for n in range(5 * RATE)], timeout=1.0, return_exceptions=True)
        kinds = Counter(map(type, some))
        assert kinds[bytes] >= 1
        assert kinds[bytes] + kinds[hsmcore.DeadlineExceeded] == len(some)
        await settle(manager)
        assert len(await manager.sign_many([b"z %d" % n for n in range(10)], timeout=60)) == 10


@one_loop
async def test_what_the_cache_knows_is_never_refused(place):
    config, takes = place
    async with opened(config(maxCacheSize=10)) as manager:
        takes(SLOW)
        await measured(manager)
        known = await manager.sign(b"known")
        waiting = [start(manager.sign(b"x %d" % n, timeout=60)) for n in range(RATE)]
        await asyncio.sleep(0)
        with pytest.raises(hsmcore.QueueFull):
            await manager.sign(b"unknown", timeout=0.02)
        assert await manager.sign(b"known", timeout=0.02) == known
        takes(0)
        await asyncio.gather(*waiting)


@one_loop
async def test_a_pause_refuses_no_request(world, shim):
    settings = {"modulePath": shim.path, "sessions": 2}
    async with opened(world.config(settings=settings, maxCacheSize=0)) as manager:
        await manager.sign_many([b"%d" % n for n in range(3000)])
        for _ in range(3):
            shim.hold()
            tasks = [start(manager.sign(b"%d" % n, timeout=10)) for n in range(300)]
            await asyncio.sleep(0.5)
            shim.release()
            assert len(await asyncio.gather(*tasks)) == 300
        assert counters(manager)["refused"] == 0


@one_loop
async def test_each_queued_request_has_its_own_deadline(world, shim):
    """Also where later requests have less time."""
    async with opened(world.config(settings={"modulePath": shim.path, "sessions": 2}, queueSize=1)) as manager:
        shim.hold()
        first = start(manager.sign(b"first", timeout=30))
        await until(lambda: counters(manager)["in_flight"] == 1)
        timeouts = [0.05 + 0.002 * n for n in range(100)]
        random.Random(7).shuffle(timeouts)
        late: list[float] = []

        async def hurried(number: int, timeout: float) -> None:
            begun = time.monotonic()
            with pytest.raises(hsmcore.DeadlineExceeded):
                await manager.sign(b"%d" % number, timeout=timeout)
            late.append(time.monotonic() - begun - timeout)

        patient = [start(manager.sign(b"patient %d" % n, timeout=30)) for n in range(5)]
        await asyncio.gather(*[hurried(n, timeout) for n, timeout in enumerate(timeouts)])
        assert counters(manager)["waiting"] == 5
        assert min(late) >= 0
        assert statistics.median(late) < 2.0, "the first one has 30 s"
        shim.release()
        assert len(await asyncio.gather(first, *patient)) == 6


@one_loop
async def test_a_worker_that_hangs_holds_up_no_other_answer(world, tmp_path):
    """An answer may wait a moment for another that is about to come, but not for one that does not."""
    chaos = Chaos(tmp_path, wrap(world))
    async with opened(chaos.config(settings={"sessions": 2}, requestTimeoutMs=30_000)) as manager:
        chaos.fault("C_Sign", "hang", forever=True)
        hung = start(manager.sign(b"hangs"))
        await until(lambda: counters(manager)["busy"] == 1 and chaos.stats()["hung"] == 1)
        for n in range(200):
            await manager.sign(b"%d" % n)
        assert not hung.done()
        assert chaos.release() == 1
        await hung


# ---- levels ----------------------------------------------------------------------------------------------------------


@one_loop
async def test_too_much_for_the_primary_is_no_failure_of_it(tmp_path, fresh_token):
    site = Site(tmp_path, fresh_token, SAME, SAME)
    async with opened(site.config()) as manager:
        moves: list[dict] = []
        manager.on("failover", moves.append)
        await asyncio.to_thread(takes, site.members[0], SLOW)
        await measured(manager)
        many = [start(manager.sign(b"%d" % n, timeout=20)) for n in range(60 * RATE)]
        await until(lambda: any(task.done() for task in many))
        await asyncio.to_thread(takes, site.members[0], 0)
        kinds = Counter(map(type, await asyncio.gather(*many, return_exceptions=True)))
        assert kinds.keys() == {bytes, hsmcore.QueueFull}
        # The secondary level, which has time for all of them, is for a primary that fails.
        assert kinds[hsmcore.QueueFull] > kinds[bytes] >= RATE
        assert moves == []
        assert [member["condition"] for member in manager._path.health.describe()["members"]] == ["ready"] * 2


@one_loop
async def test_what_is_too_much_for_one_member_goes_to_another_of_its_level(tmp_path, fresh_token):
    site = Site(tmp_path, fresh_token, SAME, SAME, SAME)
    async with opened(site.config(primary=2)) as manager:
        levels: Levels = manager._path.router.levels
        levels.members[0].engine.set_down(True, "QUEUE_FULL")
        makers = {(await manager.sign_with_receipt(b"%d" % n)).member for n in range(40)}
        assert makers == {site.name(1)}
        receipts = await asyncio.gather(*[manager.sign_with_receipt(b"x %d" % n) for n in range(40)])
        assert {receipt.member for receipt in receipts} == {site.name(1)}
        levels.members[1].engine.set_down(True, "QUEUE_FULL")
        for n in range(40):
            with pytest.raises(hsmcore.QueueFull):
                await manager.sign(b"y %d" % n)
        assert all(member["condition"] == "ready" for member in manager._path.health.describe()["members"])
        for member in levels.members[:2]:
            member.engine.set_down(False)
        assert len({(await manager.sign_with_receipt(b"z %d" % n)).level for n in range(40)}) == 1
