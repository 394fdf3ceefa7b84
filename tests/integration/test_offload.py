"""What every kind of member has in common: the native Engine on SoftHSM, and OffloadEngine before KMS and in memory."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from tests.support.kms import config as kms_config
from tests.support.managers import counters, opened, settle, start, until
from tests.support.verifiers import is_good

import hsmcore
from hsmcore.errors import EmptyMessage, InvalidMessageType, InvalidTimeout

pytestmark = pytest.mark.integration


@dataclass
class Place:
    """One kind of member: its configuration, and how to keep it from answering."""

    kind: str
    settings: Any
    hold: Any
    release: Any

    def config(self, algorithm: str = "ed25519", **rules: Any) -> dict[str, Any]:
        return self.settings(algorithm, {"maxCacheSize": 0, **rules})


SPECS = {"ed25519": "ECC_NIST_EDWARDS25519", "ecdsa-p256": "ECC_NIST_P256", "ecdsa-secp256k1": "ECC_SECG_P256K1"}


@pytest.fixture(params=["softhsm", "aws-kms"])
def place(request: pytest.FixtureRequest) -> Place:
    """A place that works on two requests at once and can be held."""
    return make(request, request.param)


@pytest.fixture(params=["softhsm", "aws-kms", "ephemeral"])
def anywhere(request: pytest.FixtureRequest) -> Place:
    """Every kind of member."""
    return make(request, request.param)


def make(request: pytest.FixtureRequest, kind: str) -> Place:
    if kind == "softhsm":
        shim = request.getfixturevalue("shim")
        world = request.getfixturevalue("world")
        module = {"modulePath": shim.path, "sessions": 2}
        return Place(kind, lambda key, rules: world.config(key, settings=module, **rules), shim.hold, shim.release)
    if kind == "aws-kms":
        server = request.getfixturevalue("kms")

        def of_kms(algorithm: str, rules: dict[str, Any]) -> dict[str, Any]:
            return kms_config(server, server.store.make(SPECS[algorithm]), {"concurrency": 2}, **rules)

        return Place(kind, of_kms, server.hold, server.release)
    consent = {"allowEphemeralPrimary": True}
    return Place(kind, lambda _, rules: {"keyManager": {"type": "ephemeral", "config": consent, **rules}}, None, None)


@pytest.fixture(autouse=True)
def prepared(request: pytest.FixtureRequest) -> None:
    """What lasts longer than a test is made before anything is counted."""
    request.getfixturevalue("world")
    request.getfixturevalue("shim_library")


# ---- signatures ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["ecdsa-p256", "ecdsa-secp256k1"])
async def test_ecdsa_is_over_sha_256_and_not_cached(place, algorithm):
    async with opened(place.config(algorithm, maxCacheSize=10)) as manager:
        first, second = await manager.sign(b"x"), await manager.sign(b"x")
        assert first != second
        for signature in (first, second):
            assert is_good(algorithm, manager.public_key, b"x", signature)


async def test_counters_have_the_same_names(anywhere, world):
    seen = []
    for config in (world.config(), anywhere.config()):
        async with opened(config) as manager:
            await manager.sign(b"x")
            stats = counters(manager)
            assert [sum(count for _, count in stats[name]) for name in ("hsm_ns", "queue_ns")] == [1, 1]
            seen.append((stats.keys(), manager.get_cache_stats().keys()))
    assert seen[0] == seen[1]


# ---- bad input -------------------------------------------------------------------------------------------------------


async def test_bad_input_is_refused_alike(anywhere):
    async with opened(anywhere.config(maxMessageBytes=100)) as manager:
        for message, kind in (
            ("text", InvalidMessageType),
            (None, InvalidMessageType),
            (5, InvalidMessageType),
            ([1, 2], InvalidMessageType),
            (b"", EmptyMessage),
            (bytearray(), EmptyMessage),
            (bytes(101), hsmcore.MessageTooLarge),
        ):
            with pytest.raises(kind) as caught:
                await manager.sign(message)
            assert type(caught.value) is kind
            with pytest.raises(kind):
                await manager.sign_many([b"good", message])
        for timeout in (0, -1, float("nan"), float("inf"), True, "1", 10**400):
            with pytest.raises(InvalidTimeout):
                await manager.sign(b"x", timeout=timeout)
        assert await manager.sign_many([]) == []
        assert counters(manager)["signatures"] == 0
        message = bytearray(b"mine")
        pending = start(manager.sign(message))
        await asyncio.sleep(0)
        message[:] = b"your"
        assert is_good("ed25519", manager.public_key, b"mine", await pending)
        strided = memoryview(b"m0i0n0e0")[::2]
        assert is_good("ed25519", manager.public_key, b"mine", await manager.sign(strided))


async def test_it_belongs_to_one_loop_and_one_process(anywhere):
    async with opened(anywhere.config()) as manager:
        failures: list[BaseException] = []

        def elsewhere() -> None:
            try:
                asyncio.run(manager.sign(b"x"))
            except hsmcore.HsmError as error:
                failures.append(error)

        thread = threading.Thread(target=elsewhere)
        thread.start()
        await asyncio.to_thread(thread.join)
        assert [type(error) for error in failures] == [hsmcore.WrongEventLoop]
        engine = manager._path.member.engine
        assert in_a_child(lambda: engine.submit(b"x")) == 0


def in_a_child(work: Callable[[], object]) -> int:
    """0 if the work raises EngineForked in a forked child."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
        except hsmcore.EngineForked:
            code = 0
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1]


# ---- cache and single-flight -----------------------------------------------------------------------------------------


async def test_the_cache_answers_what_it_has_seen_last(anywhere):
    async with opened(anywhere.config(maxCacheSize=3)) as manager:
        signatures = {message: await manager.sign(message) for message in (b"a", b"b", b"c")}
        assert await manager.sign(b"a") == signatures[b"a"]
        await manager.sign(b"d")  # b goes
        assert await manager.sign_many([b"a", b"c"]) == [signatures[b"a"], signatures[b"c"]]
        assert (await manager.sign_with_receipt(b"a")).cached
        assert counters(manager)["signatures"] == 4
        await manager.sign(b"b")
        assert counters(manager)["signatures"] == 5
        stats = manager.get_cache_stats()
        assert (stats["size"], stats["evictions"], stats["hits"], stats["misses"]) == (3, 2, 4, 5)
        assert stats["bytes"] > 0


@pytest.mark.parametrize("kind", ["aws-kms", "ephemeral"])  # test_cache.py has it for tokens
async def test_a_key_change_wipes_the_cache(request, kind):
    async with opened(make(request, kind).config(maxCacheSize=10)) as manager:
        old_id, old_key = await manager.get_current_key_id(), manager.public_key
        old = await manager.sign(b"x")
        await manager.set_current_key_id(await manager.generate_key())
        assert manager.get_cache_stats()["size"] == 0
        new = await manager.sign(b"x")
        assert is_good("ed25519", manager.public_key, b"x", new)
        await manager.set_current_key_id(old_id)
        assert await manager.sign(b"x") == old
        assert is_good("ed25519", old_key, b"x", old)
        await manager.deactivate_key(old_id)
        with pytest.raises(hsmcore.KeyDeactivated):
            await manager.sign(b"x")


@pytest.mark.parametrize("rules", [{"maxCacheSize": 10}, {"singleFlight": True}])
async def test_identical_requests_cost_one_call(place, rules):
    async with opened(place.config(**rules)) as manager:
        place.hold()
        tasks = [start(manager.sign(b"same")) for _ in range(20)]
        batch = start(manager.sign_many([b"same", b"other", b"same"]))
        await until(lambda: counters(manager)["busy"] == 2)
        tasks[0].cancel()  # the one that the others follow
        await asyncio.sleep(0)
        place.release()
        signatures = await asyncio.gather(*tasks[1:])
        first, _, third = await batch
        assert {first, third, *signatures} == {first}
        assert counters(manager)["signatures"] == 2
        assert manager.get_cache_stats()["joined"] == 21


async def test_one_deadline_does_not_end_what_others_wait_for(place):
    async with opened(place.config(singleFlight=True)) as manager:
        place.hold()
        hasty = start(manager.sign(b"same", timeout=0.05))
        patient = start(manager.sign(b"same"))
        with pytest.raises(hsmcore.DeadlineExceeded):
            await hasty
        assert not patient.done()
        place.release()
        assert is_good("ed25519", manager.public_key, b"same", await patient)


async def test_no_request_joins_one_in_flight_from_before_a_wipe(place):
    async with opened(place.config(maxCacheSize=10)) as manager:
        place.hold()
        before = start(manager.sign(b"x"))
        await until(lambda: counters(manager)["busy"] == 1)
        manager._path.member.engine.clear_cache()
        after = start(manager.sign(b"x"))
        await asyncio.sleep(0)
        place.release()
        await asyncio.gather(before, after)
        assert counters(manager)["signatures"] == 2
        assert manager.get_cache_stats()["size"] == 1


# ---- deadlines, the queue, cancellation ------------------------------------------------------------------------------


async def test_a_deadline_is_kept_while_nothing_answers(place):
    async with opened(place.config(requestTimeoutMs=100)) as manager:
        place.hold()
        tasks = [start(manager.sign(b"%d" % n)) for n in range(5)]
        batch = start(manager.sign_many([b"a", b"b"], timeout=0.05, return_exceptions=True))
        outcomes = [*await asyncio.gather(*tasks, return_exceptions=True), *await batch]
        assert {type(outcome) for outcome in outcomes} == {hsmcore.DeadlineExceeded}
        assert all(outcome.retryable and isinstance(outcome, TimeoutError) for outcome in outcomes)
        place.release()
        await settle(manager)
        await until(lambda: not counters(manager)["down"])
        assert is_good("ed25519", manager.public_key, b"x", await manager.sign(b"x", timeout=10))


async def test_a_full_queue_makes_callers_wait(place):
    async with opened(place.config(queueSize=4)) as manager:
        place.hold()
        tasks = [start(manager.sign(b"%d" % n)) for n in range(20)]
        await until(lambda: counters(manager)["busy"] == 2)
        stats = counters(manager)
        assert (stats["in_flight"], stats["waiting"]) == (4, 16)
        with pytest.raises(hsmcore.DeadlineExceeded):
            await manager.sign(b"late", timeout=0.02)
        place.release()
        for n, signature in enumerate(await asyncio.gather(*tasks)):
            assert is_good("ed25519", manager.public_key, b"%d" % n, signature)


async def test_cancelled_requests_that_queue_are_not_begun(place):
    async with opened(place.config()) as manager:
        place.hold()
        tasks = [start(manager.sign(b"%d" % n)) for n in range(12)]
        batch = start(manager.sign_many([b"a", b"b", b"c"]))
        await until(lambda: counters(manager)["busy"] == 2)
        for task in (*tasks[2:], batch):
            task.cancel()
        await asyncio.gather(*tasks[2:], batch, return_exceptions=True)
        place.release()
        await asyncio.gather(*tasks[:2])
        await settle(manager)
        assert counters(manager)["signatures"] == 2
        assert counters(manager)["cancelled"] == 13


# ---- the end ---------------------------------------------------------------------------------------------------------


async def test_retiring_a_key_refuses_what_is_queued(place):
    async with opened(place.config()) as manager:
        place.hold()
        tasks = [start(manager.sign(b"%d" % n)) for n in range(10)]
        await until(lambda: counters(manager)["busy"] == 2)
        manager._path.member.engine.retire_key(0)
        place.release()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert sum(isinstance(outcome, bytes) for outcome in outcomes) == 2
        assert sum(isinstance(outcome, hsmcore.KeyDeactivated) for outcome in outcomes) == 8
        with pytest.raises(hsmcore.KeyDeactivated):
            await manager.sign(b"x")
