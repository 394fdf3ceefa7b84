"""Signatures through the whole path, on a real token, judged by verifiers that share no code with it."""

from __future__ import annotations

import array
import asyncio
import copy
import ctypes
import hashlib
import mmap
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.managers import counters, opened, start
from tests.support.size import share
from tests.support.softhsm import ALGORITHMS
from tests.support.verifiers import is_good, is_low_s

import hsmcore
from hsmcore.errors import InvalidMessageType, RequestRejected

pytestmark = pytest.mark.integration

CKR_DATA_LEN_RANGE = 0x21
BUFFERS = {
    "bytes": lambda data: data,
    "bytearray": bytearray,
    "memoryview": memoryview,
    "read-only view of a bytearray": lambda data: memoryview(bytearray(data)).toreadonly(),
    "every second byte": lambda data: memoryview(bytes(x for byte in data for x in (byte, 0)))[::2],
    "backwards": lambda data: memoryview(data[::-1])[::-1],
    "two dimensions": lambda data: memoryview(data).cast("B", shape=[2, len(data) // 2]),
    "array of integers": lambda data: array.array("I", data),
    "ctypes array": lambda data: (ctypes.c_ubyte * len(data)).from_buffer_copy(data),
}
RFC_8032 = [  # section 7.1, TEST 2: the message and its one signature
    (
        "72",
        (
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
            "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
        ),
    )
]


# ---- the verifiers themselves ----------------------------------------------------------------------------------------


# ---- one message -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_a_signature_is_good_and_every_bit_of_it_counts(world, algorithm):
    key = world.keys[algorithm]
    async with opened(world.config(algorithm)) as manager:
        assert manager.public_key == key.public_key
        assert await manager.get_current_key_id() == key.id
        signature = await manager.sign(b"a transfer")
        assert len(signature) == 64
        assert is_good(algorithm, key.public_key, b"a transfer", signature)
        assert not is_good(algorithm, key.public_key, b"a transfes", signature)
        assert await manager.verify(b"a transfer", signature)
        assert not await manager.verify(b"a transfes", signature)
        for bit in (0, 255, 256, 511):
            spoiled = bytearray(signature)
            spoiled[bit // 8] ^= 1 << bit % 8
            assert not await manager.verify(b"a transfer", bytes(spoiled))
        for wrong in (b"", signature[:-1], signature + b"\0"):
            assert not await manager.verify(b"a transfer", wrong)


@pytest.mark.parametrize("algorithm", ["ecdsa-p256", "ecdsa-secp256k1"])
async def test_s_is_always_low(world, algorithm):
    key = world.keys[algorithm]
    messages = [f"message {n}".encode() for n in range(64)]
    async with opened(world.config(algorithm)) as manager:
        signatures = await manager.sign_many(messages)
    assert all(is_low_s(algorithm, signature) for signature in signatures)
    for message, signature in list(zip(messages, signatures, strict=True))[::8]:
        assert is_good(algorithm, key.public_key, message, signature)


@pytest.mark.parametrize(("message", "signature"), RFC_8032)
async def test_ed25519_is_that_of_rfc_8032(world, message, signature):
    async with opened(world.config("rfc8032", maxCacheSize=0)) as manager:
        assert await manager.sign(bytes.fromhex(message)) == bytes.fromhex(signature)


@pytest.mark.parametrize("kind", BUFFERS)
async def test_whatever_is_bytes_like_is_signed(world, kind):
    data = bytes(range(64))
    message = BUFFERS[kind](data)
    async with opened(world.config(maxCacheSize=0)) as manager:
        signature, [also] = await manager.sign(message), await manager.sign_many([message])
    assert signature == also
    assert is_good("ed25519", world.keys["ed25519"].public_key, bytes(memoryview(message)), signature)


async def test_a_memory_map_is_signed_and_can_be_closed(world):
    async with opened(world.config()) as manager:
        with mmap.mmap(-1, 4096) as page:
            page[:5] = b"hello"
            signature = await manager.sign(page)
            expected = page[:]
    assert is_good("ed25519", world.keys["ed25519"].public_key, expected, signature)


async def test_what_is_signed_is_what_the_message_was_when_it_was_given(world, shim):
    message = bytearray(b"pay 1 to Bob")
    async with opened(world.config(settings={"modulePath": shim.path, "sessions": 1})) as manager:
        shim.hold()
        tasks = [start(manager.sign(b"first")), start(manager.sign(message)), start(manager.sign_many([message] * 2))]
        await shim.until_inside(1)
        message[:] = b"pay 9 to Eve"
        shim.release()
        _, signature, both = await asyncio.gather(*tasks)
    assert is_good("ed25519", world.keys["ed25519"].public_key, b"pay 1 to Bob", signature)
    assert both == [signature, signature]


@pytest.mark.parametrize("limit", [1, 100, 256, 257, 1_048_575])
async def test_the_limit_is_what_the_configuration_says(world, limit):
    longest = random.Random(limit).randbytes(limit)
    async with opened(world.config(maxMessageBytes=limit, queueSize=8)) as manager:
        signature = await manager.sign(longest)
        assert is_good("ed25519", manager.public_key, longest, signature)
        with pytest.raises(hsmcore.MessageTooLarge, match=str(limit)):
            await manager.sign(longest + b"!")
        with pytest.raises(hsmcore.MessageTooLarge):
            await manager.sign_many([b"!", longest + b"!"])
        assert await manager.sign(longest) == signature


def test_any_message_gets_its_signature(run, world):
    manager = hsmcore.create_key_manager(world.config(maxCacheSize=50))
    run(manager.initialize())
    try:

        @settings(max_examples=share(80))
        @given(st.lists(st.binary(min_size=1, max_size=700) | st.sampled_from([b"a", b"b", b"a\0"]), max_size=12))
        def holds(messages: list[bytes]) -> None:
            async def scenario() -> list[bytes]:
                return await asyncio.gather(*map(manager.sign, messages))

            alone, together = run(scenario()), run(manager.sign_many(messages))
            assert alone == together, "Ed25519 is deterministic"
            for message, signature in zip(messages, together, strict=True):
                assert is_good("ed25519", manager.public_key, message, signature)

        holds()
    finally:
        run(manager.close())


# ---- many messages ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", [0, 3, 10_000])
async def test_a_batch_keeps_its_order_and_its_duplicates(world, cache):
    messages = [f"message {n % 7}".encode() for n in range(100)]
    async with opened(world.config(maxCacheSize=cache)) as manager:
        signatures = await manager.sign_many(messages)
        single = {message: await manager.sign(message) for message in set(messages)}
        assert signatures == [single[message] for message in messages]
        assert all(is_good("ed25519", manager.public_key, *pair) for pair in single.items())


async def test_a_batch_may_be_longer_than_the_queue(world):
    messages = [n.to_bytes(4) for n in range(1, 1001)]
    async with opened(world.config(queueSize=16, maxCacheSize=0)) as manager:
        signatures = await manager.sign_many(messages)
        assert counters(manager)["signatures"] == len(messages)
        assert counters(manager)["in_flight"] == counters(manager)["waiting"] == 0
    public_key = world.keys["ed25519"].public_key
    assert all(is_good("ed25519", public_key, *pair) for pair in zip(messages, signatures, strict=True))


async def test_batches_and_single_messages_wait_for_each_other_in_a_short_queue(world):
    async with opened(world.config(queueSize=4, maxCacheSize=0)) as manager:
        batches = [[f"{b} {n}".encode() for n in range(40)] for b in range(10)]
        singles = [f"single {n}".encode() for n in range(100)]
        work = [manager.sign_many(batch) for batch in batches] + [manager.sign(single) for single in singles]
        answers = await asyncio.gather(*work)
        for batch, signatures in zip(batches, answers, strict=False):
            assert all(is_good("ed25519", manager.public_key, *pair) for pair in zip(batch, signatures, strict=True))
        for pair in zip(singles, answers[10:], strict=True):
            assert is_good("ed25519", manager.public_key, *pair)


async def test_an_invalid_message_is_refused_before_anything_is_signed(world, shim):
    async with opened(world.config(settings={"modulePath": shim.path})) as manager:
        before = shim.calls("C_SignInit")
        for return_exceptions in (False, True):
            with pytest.raises(hsmcore.InvalidMessage) as refused:
                await manager.sign_many([b"good", b"", b"good too"], return_exceptions=return_exceptions)
            assert (refused.value.index, refused.value.__notes__) == (1, ["message 1 of the batch"])
        with pytest.raises(InvalidMessageType) as refused:
            await manager.sign_many(b"not a list of messages")
        assert refused.value.index == 0
        assert shim.calls("C_SignInit") == before
        assert counters(manager)["in_flight"] == 0


async def test_return_exceptions_puts_each_failure_in_its_place(world, shim):
    messages = [n.to_bytes(2) for n in range(1, 41)]
    config = world.config(settings={"modulePath": shim.path, "sessions": 1}, maxCacheSize=0)
    async with opened(config) as manager:
        shim.fail("C_Sign", CKR_DATA_LEN_RANGE, times=5)
        results = await manager.sign_many(messages, return_exceptions=True)
        failed = [result for result in results if isinstance(result, hsmcore.HsmError)]
        assert len(results) == len(messages)
        assert [type(error) for error in failed] == [RequestRejected] * 5
        assert failed[0].ckr == CKR_DATA_LEN_RANGE
        assert failed[0].call == "C_Sign"
        assert not failed[0].retryable
        assert failed[0].index is None, "its place in the list says it"
        for message, result in zip(messages, results, strict=True):
            assert isinstance(result, hsmcore.HsmError) or is_good("ed25519", manager.public_key, message, result)
        assert counters(manager)["failures"] == 5


async def test_without_it_the_first_failure_is_raised_and_nothing_stays_behind(world, shim):
    config = world.config(settings={"modulePath": shim.path, "sessions": 1}, maxCacheSize=0)
    async with opened(config) as manager:
        assert len(await manager.sign_many([b"well", b"and well"])) == 2
        shim.fail("C_Sign", CKR_DATA_LEN_RANGE, times=2)
        with pytest.raises(RequestRejected, match="CKR_DATA_LEN_RANGE") as failed:
            await manager.sign_many([n.to_bytes(2) for n in range(1, 41)])
        assert failed.value.index == 0, "one session signs them in order"
        assert copy.copy(failed.value).index == 0
        shim.fail("C_Sign", 0, times=0)  # the second message may have been given up before it was tried
        assert is_good("ed25519", manager.public_key, b"next", await manager.sign(b"next"))
        await manager.close()


# ---- receipts --------------------------------------------------------------------------------------------------------


async def test_a_receipt_names_key_member_and_level(world):
    key = world.keys["ed25519"]
    async with opened(world.config()) as manager:
        receipt = await manager.sign_with_receipt(b"an invoice")
        assert is_good("ed25519", key.public_key, b"an invoice", receipt.signature)
        assert receipt.key_id == key.id
        assert receipt.public_key == key.public_key
        assert receipt.member == f"softhsm:{world.label}"
        assert receipt.level == "primary"
        assert receipt.cached is False
        assert receipt.latency_ns > 0
        assert receipt.audit_seq is None
        again = await manager.sign_with_receipt(b"an invoice", timeout=30)
        assert again.cached is True
        assert again.signature == receipt.signature


async def test_a_receipt_names_its_audit_record(world, tmp_path):
    log = tmp_path / "audit.log"
    async with opened(world.config(auditLogFile=str(log))) as manager:
        receipts = [await manager.sign_with_receipt(b"an invoice") for _ in range(3)]
        found = {r["seq"]: r async for r in manager.audit.query(match={"operation": "sign"})}
    assert [receipt.audit_seq for receipt in receipts] == list(found)
    for receipt in receipts:
        record = found[receipt.audit_seq]
        assert record["signature"] == receipt.signature.hex()
        assert record["message_sha256"] == hashlib.sha256(b"an invoice").hexdigest()
        assert record["cached"] is receipt.cached


# ---- at the same time ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", [0, 10_000])
async def test_five_hundred_tasks_each_get_the_signature_of_their_own_message(world, cache):
    chosen = random.Random(5)
    messages = [chosen.randbytes(chosen.choice([1, 40, 200, 300, 1232, 9000])) for _ in range(450)]
    messages += chosen.choices(messages, k=50)
    answers: dict[int, list[bytes]] = {}

    async def caller(number: int) -> None:
        answers.setdefault(number, []).append(await manager.sign(messages[number]))

    async with opened(world.config(maxCacheSize=cache)) as manager:
        await asyncio.gather(*(caller(number) for number in range(500)))
        stats = counters(manager)
        assert stats["signatures"] == (len(set(messages)) if cache else 500)
        assert stats["failures"] == stats["expired"] == stats["cancelled"] == stats["in_flight"] == 0
    assert sorted(answers) == list(range(500))
    public_key = world.keys["ed25519"].public_key
    for number, signatures in answers.items():
        assert len(signatures) == 1
        assert is_good("ed25519", public_key, messages[number], signatures[0])


async def test_the_ways_of_asyncio_to_await(world):
    async with opened(world.config(maxCacheSize=0)) as manager:
        task = asyncio.create_task(manager.sign(b"task"))
        limited = await asyncio.wait_for(manager.sign(b"limited"), 30)
        shielded = await asyncio.shield(manager.sign(b"shielded"))
        async with asyncio.timeout(30):
            timed = await manager.sign(b"timed")
        async with asyncio.TaskGroup() as group:
            grouped = [group.create_task(manager.sign(b"%d" % n)) for n in range(30)]
        finished = {}
        for answer in asyncio.as_completed([manager.sign(b"first"), manager.sign(b"second")]):
            finished[await answer] = True
        pairs = [(b"task", await task), (b"limited", limited), (b"shielded", shielded), (b"timed", timed)]
        pairs += [(b"%d" % n, task.result()) for n, task in enumerate(grouped)]
        assert all(is_good("ed25519", manager.public_key, *pair) for pair in pairs)
        assert finished.keys() == {await manager.sign(b"first"), await manager.sign(b"second")}


async def test_a_task_group_that_fails_leaves_nothing(world, shim):
    async with opened(world.config(settings={"modulePath": shim.path, "sessions": 1}, maxCacheSize=0)) as manager:
        shim.hold()

        async def fail() -> None:
            await shim.until_inside(1)
            raise LookupError

        with pytest.raises(ExceptionGroup):  # noqa: PT012  # the group is what is tested
            async with asyncio.TaskGroup() as group:
                for n in range(20):
                    group.create_task(manager.sign(b"%d" % n))
                group.create_task(fail())
        shim.release()
        assert is_good("ed25519", manager.public_key, b"after", await manager.sign(b"after"))
