"""One signature for a whole batch, on the module: who is answered with what, and that no number has two roots."""

from __future__ import annotations

import asyncio
import gzip
import json
from base64 import b64decode
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from random import Random

import pytest
from tests.integration.test_policy import policed, records
from tests.support import c2sp
from tests.support.batches import Case, by_hsmcore, by_node, by_python
from tests.support.chaos import CHAOS, Chaos, copy_of, wrap
from tests.support.levels import OTHER, SAME, Site
from tests.support.loops import one_loop
from tests.support.managers import counters, opened, start, until
from tests.support.policed import key, moving, ordered

import hsmcore
from hsmcore import metrics
from hsmcore.base.payload import MOST_POSITION
from hsmcore.cli.app import run as cli
from hsmcore.config.policy import MOST_ROOT_BYTES
from hsmcore.errors import (
    AlgorithmUnsupported,
    AuditUnavailable,
    BadArgument,
    ConfigurationError,
    DeadlineExceeded,
    EmptyMessage,
    EngineClosed,
    HsmError,
    MemberDown,
    MessageTooLarge,
    NotInitialized,
    PolicyRefused,
    QueueFull,
    RequestCancelled,
)
from hsmcore.state import StoreNotGenuine
from hsmcore.tlog import batch_proof

pytestmark = pytest.mark.integration
KINDS = ["batch-root"]


def batching(token, folder, kinds=KINDS, *, key="ed25519", rules=None, policy=None, leaves=None, **settings):
    more = {"batching": settings | ({"kinds": leaves} if leaves else {}), **(rules or {})}
    return policed(token, folder, kinds, key=key, rules=more, **(policy or {}))


def device(folder, fresh_token):
    """A token of its own behind the chaos module."""
    wrapped = wrap(fresh_token())
    wrapped = replace(wrapped, module=str(copy_of(Path(wrapped.module), folder)))
    return Chaos(folder, wrapped, module=copy_of(CHAOS, folder))


def said(signature, message):
    """What its proof says."""
    found = batch_proof.read(signature.public_key, message, signature.proof)
    assert found is not None
    return found


async def test_messages_are_signed_together(world, tmp_path):
    messages = [b"message %d" % i for i in range(1000)]
    async with opened(batching(world, tmp_path)) as manager:
        signed = await asyncio.gather(*map(manager.sign_batched, messages))
        assert {one.public_key for one in signed} == {manager.public_key}
        assert [one.index for one in signed] == list(range(1000))
        assert {one.key_id for one in signed} == {await manager.get_current_key_id()}
        for message, one in zip(messages, signed, strict=True):
            assert hsmcore.verify_batched(manager.public_key, message, one.proof, domain="default", kind="raw")
            assert not hsmcore.verify_batched(manager.public_key, message + b"!", one.proof)
        cases = [Case("", m, one.proof, manager.public_key) for m, one in zip(messages, signed, strict=True)]
        assert by_python(cases) == by_node(cases) == [True] * 1000
        roots = await records(manager, operation="sign")
        assert len(roots) == len({one.root for one in signed}) == counters(manager)["signatures"]
        assert {record["seq"] for record in roots} == {one.audit_seq for one in signed}
        assert sum(record["count"] for record in roots) == 1000
        assert {(record["kind"], record["domain"]) for record in roots} == {("batch-root", "default/batch-root")}
        assert [record["position"] for record in roots] == [record["first"] + record["count"] - 1 for record in roots]


async def test_a_batch_closes_at_its_size_or_its_age(world, tmp_path):
    async with opened(batching(world, tmp_path, intervalMs=60_000, maxLeaves=3)) as manager:
        signed = await asyncio.gather(*(manager.sign_batched(b"m%d" % i) for i in range(6)))
        assert [said(one, b"m%d" % i).size for i, one in enumerate(signed)] == [3] * 6
        lone = start(manager.sign_batched(b"lone"))
        await until(lambda: manager._batches._open is not None)
    assert said(await lone, b"lone").size == 1  # closing did not wait for a minute
    async with opened(batching(world, tmp_path, intervalMs=1)) as manager:
        one = await manager.sign_batched(b"lone")
        assert (said(one, b"lone").size, one.index) == (1, 7)


async def test_batches_are_counted(world, tmp_path):
    async with opened(batching(world, tmp_path, intervalMs=60_000, maxLeaves=3)) as manager:
        await asyncio.gather(*(manager.sign_batched(b"m%d" % i) for i in range(6)))
        lone = start(manager.sign_batched(b"lone"))
        await until(lambda: manager._batches._open is not None)
        text, _ = await asyncio.to_thread(metrics.render, manager)
        lines = set(text.decode().splitlines())
        expected = {"closed_total{reason=\"full\"}": 2, "closed_total{reason=\"interval\"}": 0, "failures_total": 0,
                    "messages_total": 6, "messages_waiting": 1, "seconds_count": 2}  # fmt: skip
        assert {f"hsmcore_batch_{name} {count}" for name, count in expected.items()} <= lines
    await lone
    assert manager._batches.figures.closed == {"full": 2, "interval": 0, "close": 1}
    assert manager._batches.figures.waiting == 0


async def test_the_next_batch_collects_while_a_root_is_signed(fresh_token, tmp_path):
    chaos = device(tmp_path, fresh_token)
    chaos.write(latency={"C_Sign": {"kind": "constant", "microseconds": 150_000}})
    config = chaos.config(stateFile=str(tmp_path / "state.db"), policy={"kinds": KINDS}, batching={"intervalMs": 1})
    async with opened(config) as manager:
        before = counters(manager)["signatures"]
        first = start(manager.sign_batched(b"first"))
        await until(lambda: manager._batches._open is None and manager._batches._signing.is_open)
        more = [start(manager.sign_batched(b"m%d" % i)) for i in range(500)]
        assert said(await first, b"first").size == 1
        assert {said(await one, b"m%d" % i).size for i, one in enumerate(more)} == {500}
        assert counters(manager)["signatures"] - before == 2


async def test_any_bytes_are_in_a_batch_of_a_key_that_signs_nothing_else(world, tmp_path):
    chance = Random(6)
    messages = [
        b"\x82\xa6height\x07\xa4hash\xc4\x01a",  # MessagePack
        b"\xa2fheight\x07dhashAa",  # CBOR
        *(text.encode() for text in ("é", "Привет", "你好")),
        gzip.compress(b"m"),
        bytes(32),
        moving(key(1), 5),
        ordered(1),
        b"\xffhsmcore probe\0",
        batch_proof.checkpoint("default", 0, 1, bytes(32), 0, 1),
        *(bytes([byte]) for byte in range(256)),
        *(chance.randbytes(chance.randrange(1, 300)) for _ in range(1000)),
    ]
    async with opened(batching(world, tmp_path)) as manager:
        one_by_one = await asyncio.gather(*map(manager.sign_batched, messages))
        listed = await manager.sign_batched_many([*messages, bytearray(b"m")])
        for message, *both in zip([*messages, b"m"], [*one_by_one, listed[-1]], listed, strict=True):
            assert {said(one, message).kind for one in both} == {"raw"}
        cases = [Case("", m, one.proof, manager.public_key) for m, one in zip(messages, one_by_one, strict=True)]
        assert by_hsmcore(cases) == by_python(cases) == by_node(cases) == [True] * len(messages)
        before = counters(manager)["signatures"]
        for message in messages:
            with pytest.raises(PolicyRefused):
                await manager.sign(message)
        assert counters(manager)["signatures"] == before


async def test_a_claim_or_the_list_decides_what_a_leaf_may_be(world, tmp_path):
    transaction, packed = moving(key(1), 5), b"\x82\xa1a\x07\xa1b\x08"
    async with opened(batching(world, tmp_path)) as manager:
        for message, kind in ((transaction, "tx-v0"), (bytes(32), "digest32"), (b"m", "raw")):
            assert said(await manager.sign_batched(message, kind=kind), message).kind == kind
            [one] = await manager.sign_batched_many([message], kind=kind)
            assert said(one, message).kind == kind
        refused = (
            (packed, "raw", PolicyRefused),
            (bytes(32), "raw", PolicyRefused),
            (b"m", "tx-v0", PolicyRefused),
            (ordered(1), "block", BadArgument),
            (b"m", "batch-root", BadArgument),
            (b"m", "nonsense", BadArgument),
        )
        for message, kind, error in refused:
            with pytest.raises(error):
                await manager.sign_batched(message, kind=kind)
            with pytest.raises(error):
                await manager.sign_batched_many([message], kind=kind)
        assert manager._guard.refused.total() == 6
    async with opened(batching(world, tmp_path, leaves=["tx-v0", "digest32"])) as manager:
        for message, kind in ((transaction, "tx-v0"), (bytes(32), "digest32")):
            assert said(await manager.sign_batched(message), message).kind == kind
        for message in (b"m", packed, ordered(1)):
            with pytest.raises(PolicyRefused, match="by batching: "):
                await manager.sign_batched(message)


async def test_callers_have_batches_signed_by_a_rule_of_its_own(world, tmp_path):
    callers = {
        "a": {"inFlight": 2},
        "b": {"kinds": ["block"]},
        "c": {"kinds": ["block"], "batch": True},
        "d": {"batch": False},
    }
    kinds, message = ["block", "batch-root"], b"\x82\xa1a\x07\xa1b\x08"
    async with opened(batching(world, tmp_path, kinds, policy={"callers": callers})) as manager:
        for name in ("a", "c"):
            with hsmcore.caller(name):
                assert said(await manager.sign_batched(message), message).kind == "raw"
        for name in ("b", "d"):
            with hsmcore.caller(name), pytest.raises(PolicyRefused, match='"batch": true'):
                await manager.sign_batched(message)
        with pytest.raises(PolicyRefused, match="does not say who"):
            await manager.sign_batched(message)
        with hsmcore.caller("a"):
            both = [start(manager.sign_batched(message)) for _ in range(3)]
            outcomes = await asyncio.gather(*both, return_exceptions=True)
            assert sorted(type(one).__name__ for one in outcomes) == ["BatchedSignature"] * 2 + ["QueueFull"]
            await manager.sign_batched(message)  # those that were answered count no more
            with pytest.raises(EmptyMessage):
                await manager.sign_batched(b"")
            await manager.sign(ordered(1))
        refused = await records(manager, operation="sign-batched")
        assert [record["result"] for record in refused] == ["error"] * 5
        roots = await records(manager, operation="sign", kind="batch-root")
        assert [record["count"] for record in roots] == [1, 1, 2, 1]
        assert all("caller" not in record for record in roots)


async def test_no_caller_has_a_root_signed(world, tmp_path):
    """Nor any other text over which a signature is one of a checkpoint, to a verifier that is not ours."""
    text = batch_proof.checkpoint("default", 0, 1, bytes(32), 0, 1)
    log = b"".join(text.splitlines(keepends=True)[:3])
    texts = (
        text,
        log,
        text + b"more\n",
        log + b"\xff",
        b"cosignature/v1\ntime 7\n" + log,
        b"default/0\n007\n" + log[12:],
    )
    assert texts[-1].count(b"\n") == 3
    async with opened(batching(world, tmp_path, ["raw", "batch-root"])) as manager:
        for one in texts:
            for sign in (manager.sign, manager.sign_with_receipt):
                for claimed in (None, "raw"):
                    with pytest.raises(PolicyRefused):
                        await sign(one, kind=claimed)
                with pytest.raises(BadArgument):
                    await sign(one, kind="batch-root")
            with pytest.raises(PolicyRefused):
                await manager.sign_many([one])
        assert counters(manager)["signatures"] == 0
        head = await manager.sign_batched(b"m")
        note = head.proof.partition(b"\n\n")[2]
        assert c2sp.checkpoint(note, "default/0", manager.public_key) == ("default/0", 1, head.root)
    async with opened(policed(world, tmp_path, ["raw"])) as manager:
        with pytest.raises(PolicyRefused):
            await manager.sign(text)
        with pytest.raises(BadArgument, match='Add "batch-root"'):
            await manager.sign_batched(b"m")
    async with opened(world.config()) as manager:
        with pytest.raises(BadArgument, match='Add "batch-root"'):
            await manager.sign_batched(b"m")


@pytest.mark.parametrize("faulty", [
    {"intervalMs": -1}, {"intervalMs": 0.5}, {"maxLeaves": 0}, {"blind": 1}, {"keepLeaves": True}, {"more": 1},
    {"leaves": ["block"]}, {"leaves": ["raw", "raw"]}, {"leaves": ["prehashed"]},
])  # fmt: skip
def test_wrong_settings_are_named(world, tmp_path, faulty):
    with pytest.raises(ConfigurationError) as caught:
        hsmcore.create_key_manager(batching(world, tmp_path, **faulty))
    assert caught.value.path.startswith("$.sequencer.keyManager.batching.")


def test_the_longest_root_is_as_long_as_the_settings_say():
    most = batch_proof.checkpoint("d" * 64, MOST_POSITION, 1_048_576, bytes(32), MOST_POSITION, 2**63 - 1)
    assert len(most) == MOST_ROOT_BYTES


def test_settings_that_do_not_fit_together_are_named(world, tmp_path):
    domains = ({"domain": name} for name in ("a b", "a+b", "ä"))
    for config in (batching(world, tmp_path, ["raw"]), *(batching(world, tmp_path, policy=one) for one in domains),
                   batching(world, tmp_path, ["prehashed", "batch-root"]), world.config(batching={}),
                   batching(world, tmp_path, rules={"maxMessageBytes": MOST_ROOT_BYTES - 1})):  # fmt: skip
        with pytest.raises(ConfigurationError):
            hsmcore.create_key_manager(config)


async def test_other_keys_sign_no_batch(world, tmp_path):
    manager = hsmcore.create_key_manager(batching(world, tmp_path, key="ecdsa-p256"))
    with pytest.raises(AlgorithmUnsupported):
        await manager.initialize()
    with pytest.raises(NotInitialized):
        await manager.sign_batched(b"m")


async def test_cancelling_one_caller_does_not_touch_the_others(world, tmp_path):
    async with opened(batching(world, tmp_path, intervalMs=50)) as manager:
        tasks = [start(manager.sign_batched(b"m%d" % i)) for i in range(10)]
        await until(lambda: manager._batches._open is not None and manager._batches._open.count == 10)
        for task in tasks[::2]:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(one, asyncio.CancelledError) for one in outcomes[::2])
        assert [said(outcomes[i], b"m%d" % i).size for i in range(1, 10, 2)] == [5] * 5
        before = counters(manager)["signatures"]
        alone = start(manager.sign_batched(b"alone"))
        await until(lambda: manager._batches._open is not None)
        alone.cancel()
        await until(lambda: not manager._batches._signing.is_open)
        assert counters(manager)["signatures"] == before  # nobody waited for that root
        assert manager._batches.figures.closed.total() == 1


async def test_one_caller_that_withdraws_takes_no_room_from_the_others(world, tmp_path):
    async with opened(batching(world, tmp_path, intervalMs=60_000, maxLeaves=4)) as manager:
        for i in range(40):  # more than all batches that may wait have room for
            task = start(manager.sign_batched(b"withdrawn %d" % i))
            await asyncio.sleep(0)
            task.cancel()
        late = [start(manager.sign_batched(b"late %d" % i, timeout=0.01)) for i in range(2)]
        outcomes = await asyncio.gather(*late, return_exceptions=True)
        assert [type(one) for one in outcomes] == [DeadlineExceeded] * 2
        good = await asyncio.gather(*(manager.sign_batched(b"m%d" % i) for i in range(4)))
        assert [said(one, b"m%d" % i).size for i, one in enumerate(good)] == [4] * 4
        assert [one.index for one in good] == [0, 1, 2, 3]
        assert [record["count"] for record in await records(manager, operation="sign")] == [4]


async def test_a_patient_caller_makes_no_batch_wait_longer_than_a_request_does(fresh_token, tmp_path):
    chaos = device(tmp_path, fresh_token)
    rules = {"stateFile": str(tmp_path / "state.db"), "policy": {"kinds": KINDS}, "batching": {"intervalMs": 1}}
    async with opened(chaos.config(**rules, requestTimeoutMs=500)) as manager:
        chaos.fault("C_Sign", "hang", forever=True)
        patient = start(manager.sign_batched(b"patient", timeout=100_000))
        with pytest.raises(HsmError):
            await patient
        chaos.release()


@pytest.mark.parametrize("open_batch", [True, False])
async def test_a_task_that_an_application_cancels_leaves_no_caller_waiting(fresh_token, tmp_path, open_batch):
    chaos = device(tmp_path, fresh_token)
    rules = {"intervalMs": 60_000 if open_batch else 0, "maxLeaves": 10}
    config = chaos.config(stateFile=str(tmp_path / "state.db"), policy={"kinds": KINDS}, batching=rules)
    async with opened(config) as manager:
        chaos.fault("C_Sign", "hang", every=1, forever=True)
        batches = manager._batches
        tasks = [start(manager.sign_batched(b"m%d" % i)) for i in range(25 if open_batch else 5)]
        await until(lambda: batches._signing.is_open)
        await batches._signing.close()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        chaos.clear()
        chaos.release()
        assert {type(one) for one in outcomes} == {RequestCancelled}
        assert all(one.maybe_signed for one in outcomes)
        assert (batches.figures.waiting, batches.figures.messages) == (0, 0)
        again = [start(manager.sign_batched(b"again %d" % i)) for i in range(10)]
        assert {said(one, b"again %d" % i).size for i, one in enumerate(await asyncio.gather(*again))} == {10}
        assert batches.figures.failed >= 1


async def test_numbers_that_are_used_up_sign_nothing(world, tmp_path):
    config = batching(world, tmp_path)
    floor = ["policy", "floor", "set", "batch-root", str(MOST_POSITION - 2), "--reason", "test"]
    async with opened(config) as manager:
        assert (await manager.sign_batched(b"m")).index == 0
    assert await asyncio.to_thread(cli, [*floor, "--config", _written(tmp_path, config)]) == 0
    async with opened(config) as manager:
        outcomes = await asyncio.gather(*(manager.sign_batched(b"m%d" % i) for i in range(3)), return_exceptions=True)
        assert {type(one) for one in outcomes} == {PolicyRefused}
        one, other = await asyncio.gather(manager.sign_batched(b"a"), manager.sign_batched(b"b"))
        assert {one.index, other.index} == {MOST_POSITION - 1, MOST_POSITION}
        assert said(one, b"a").size == said(other, b"b").size == 2
        with pytest.raises(PolicyRefused, match="used up"):
            await manager.sign_batched(b"c")


async def test_the_record_of_a_root_says_who_asked_for_its_messages(world, tmp_path):
    folder = tmp_path / "leaves"
    config = batching(world, tmp_path, intervalMs=60_000, maxLeaves=7, keepLeaves=str(folder))
    async with opened(config) as manager:
        tasks = []
        for caller in ("a", "b", "b", None, "a"):
            if caller is None:
                tasks.append(start(manager.sign_batched(b"nobody's")))
            else:
                with hsmcore.caller(caller):
                    tasks.append(start(manager.sign_batched(b"one of " + caller.encode())))
            await asyncio.sleep(0)
        with hsmcore.caller("b"):
            await manager.sign_batched_many([b"one", b"two"])
        await asyncio.gather(*tasks)
        [root] = await records(manager, operation="sign")
        assert root["callers"] == [{"caller": "b", "count": 4}, {"caller": "a", "count": 2}]
        assert root["count"] == 7
        assert "caller" not in root
        [kept] = [json.loads(line) for path in folder.iterdir() for line in path.read_text().splitlines()]
        assert kept["callers"] == [["a", 1], ["b", 2], [None, 1], ["a", 1], ["b", 2]]


async def test_a_list_is_signed_as_its_messages_are(world, tmp_path):
    limits = {"leaves": ["raw"], "rules": {"maxMessageBytes": 205}}
    async with opened(batching(world, tmp_path, maxLeaves=100, **limits)) as manager:
        single = start(manager.sign_batched(b"single"))
        await asyncio.sleep(0)
        messages = [b"m%d" % i for i in range(950)]  # in more batches than may wait
        signed = await manager.sign_batched_many(messages)
        assert [one.index for one in signed] == list(range(1, 951))
        for message, one in zip(messages, signed, strict=True):
            assert said(one, message).index == one.index
        assert said(await single, b"single").size == 100
        assert await manager.sign_batched_many([]) == []
        mixed = [bytearray(b"x"), b"y"]
        assert [said(one, bytes(m)).kind for m, one in zip(mixed, await manager.sign_batched_many(mixed), strict=True)]
        before = counters(manager)["signatures"]
        for wrong, error in (([b"m", b""], EmptyMessage), ([b"m", b"x" * 206], MessageTooLarge)):
            with pytest.raises(error) as refused:
                await manager.sign_batched_many(wrong)
            assert refused.value.index == 1
        for wrong in ([b"m", bytes(32)], [b"n", bytes(32), b"o"], [b"m", "text"], [bytearray(b"m"), b""]):
            with pytest.raises(HsmError) as refused:
                await manager.sign_batched_many(wrong)
            assert (refused.value.maybe_signed, refused.value.index) == (False, 1)
        await until(lambda: not manager._batches._signing.is_open)
        assert counters(manager)["signatures"] == before
        assert (await manager.sign_batched(b"next")).index == 953  # none of those beside what was refused has a number
        lists = [start(manager.sign_batched_many([b"%d %d" % (k, i) for i in range(30)])) for k in range(3)]
        await asyncio.sleep(0)
        lists[1].cancel()
        first, gone, last = await asyncio.gather(*lists, return_exceptions=True)
        assert isinstance(gone, asyncio.CancelledError)
        assert said(first[29], b"0 29").root == said(last[0], b"2 0").root
        assert said(last[0], b"2 0").size == 60


async def test_a_list_of_callers_is_judged_whole_and_gives_its_places_back(world, tmp_path):
    callers = {"a": {"inFlight": 8}}
    limits = {"leaves": ["raw"], "policy": {"callers": callers}}
    async with opened(batching(world, tmp_path, **limits, intervalMs=60_000)) as manager:
        with hsmcore.caller("a"):
            for wrong, error in (([b"m"] * 7 + [bytes(32)], PolicyRefused), ([b"m"] * 9, BadArgument)):
                with pytest.raises(error):
                    await manager.sign_batched_many(wrong)
            waits = start(manager.sign_batched_many([b"m%d" % i for i in range(8)]))  # all that it may have open
            await asyncio.sleep(0)
            with pytest.raises(QueueFull, match="8 requests open"):
                await manager.sign_batched(b"one more")
            manager.hurry_batches()
            assert [(one.index, said(one, b"m%d" % at).size) for at, one in enumerate(await waits)] == [
                (at, 8) for at in range(8)
            ]
            again = start(manager.sign_batched_many([b"again"]))
            await asyncio.sleep(0)
            manager.hurry_batches()
            assert [one.index for one in await again] == [8]


async def test_each_caller_has_a_deadline_of_its_own(fresh_token, tmp_path):
    chaos = device(tmp_path, fresh_token)
    chaos.write(latency={"C_Sign": {"kind": "constant", "microseconds": 400_000}})
    config = chaos.config(stateFile=str(tmp_path / "state.db"), policy={"kinds": KINDS}, batching={"intervalMs": 1})
    async with opened(config) as manager:
        short = [start(manager.sign_batched(b"short %d" % i, timeout=0.05 * (i + 1))) for i in range(3)]
        long = start(manager.sign_batched(b"long", timeout=20))
        outcomes = await asyncio.gather(*short, return_exceptions=True)
        assert [type(one) for one in outcomes] == [DeadlineExceeded] * 3
        assert not long.done()
        assert said(await long, b"long").size == 4
        with pytest.raises(hsmcore.InvalidTimeout):
            await manager.sign_batched(b"m", timeout=0)


async def test_a_root_that_fails_fails_its_callers_each_once(fresh_token, tmp_path):
    chaos = device(tmp_path, fresh_token)
    rules = {"stateFile": str(tmp_path / "state.db"), "policy": {"kinds": KINDS}, "batching": {"intervalMs": 20}}
    async with opened(chaos.config(**rules, auditLogFile=str(tmp_path / "audit.log"))) as manager:
        before = await manager.sign_batched(b"before")
        gone = {"every": 1, "action": "return", "ckr": "CKR_DEVICE_REMOVED"}
        faults = [{"function": name, **gone} for name in ("C_SignInit", "C_OpenSession")]
        chaos.write(faults=faults)  # also for a module that is initialized again
        for fault in faults:
            chaos.ask("fault", **fault)
        tasks = [start(manager.sign_batched(b"m%d" % i, timeout=0.4)) for i in range(20)]
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(one, HsmError) for one in outcomes)
        assert len({id(one) for one in outcomes}) == 20
        assert manager._batches.figures.failed == 1
        chaos.write()
        chaos.clear()
        after = await manager.sign_batched(b"after", timeout=20)
        # The numbers of the batch that failed are given to no other one.
        assert (before.index, after.index) == (0, 21)


async def test_failover_in_the_middle_gives_a_batch_one_key(fresh_token, tmp_path):
    site = Site(tmp_path, fresh_token, SAME, OTHER)
    rules = {"policy": {"kinds": KINDS}, "batching": {"intervalMs": 5}}
    accept = {"acceptOtherKeys": ["secondary"]}
    async with opened(site.config(failover=accept, **rules)) as manager:
        keys: dict[bytes, bytes] = {}
        seen = set()

        async def caller(number: int) -> None:
            for i in range(200):
                message = b"%d %d" % (number, i)
                try:
                    one = await manager.sign_batched(message, timeout=20)
                except MemberDown:
                    continue
                assert said(one, message).root == one.root
                assert keys.setdefault(one.root, one.public_key) == one.public_key
                assert one.index not in seen
                seen.add(one.index)
                if i == 50 and number == 0:
                    site.kill(0)

        await asyncio.gather(*map(caller, range(16)))
        assert len(set(keys.values())) == 2


@one_loop
async def test_a_rotation_in_the_middle_gives_a_batch_one_key(fresh_token, tmp_path):
    token = fresh_token({"name": "ed25519", "kind": "ed25519"}, {"name": "second", "kind": "ed25519"})
    async with opened(batching(token, tmp_path, intervalMs=1)) as manager:
        keys, done = {}, asyncio.Event()

        async def caller(number):
            while not done.is_set():
                message = b"%d %d" % (number, len(keys))
                one = await manager.sign_batched(message, timeout=20)
                assert said(one, message).root == one.root
                assert keys.setdefault(one.root, (one.public_key, one.key_id)) == (one.public_key, one.key_id)

        callers = [start(caller(number)) for number in range(16)]
        for name in ("second", "ed25519", "second"):
            before = len(keys)
            await until(lambda before=before: len(keys) > before + 5)
            await manager.set_current_key_id(token.keys[name].id)
        before = len(keys)
        await until(lambda: len(keys) > before + 5)
        done.set()
        await asyncio.gather(*callers)
        assert set(keys.values()) == {(key.public_key, key.id) for key in token.keys.values()}


async def test_two_key_managers_on_one_store_number_apart(world, tmp_path):
    config = batching(world, tmp_path, intervalMs=0)
    del config["sequencer"]["keyManager"]["auditLogFile"]
    async with opened(config) as one, opened(config) as other:
        signed = await asyncio.gather(
            *((manager, b"%d %d" % (k, i)) and _signed(manager, b"%d %d" % (k, i))
              for i in range(60) for k, manager in enumerate((one, other)))
        )  # fmt: skip
        later = [await _signed(manager, b"later %d" % i) for i in range(10) for manager in (one, other)]
    numbers = [signature.index for signature, _ in [*signed, *later]]
    assert sorted(numbers) == list(range(140))
    for signature, message in [*signed, *later]:
        assert said(signature, message).index == signature.index


async def _signed(manager, message):
    return await manager.sign_batched(message), message


async def test_a_restart_goes_on_behind_the_last_number(world, tmp_path):
    config = batching(world, tmp_path)
    last = -1
    for _ in range(3):
        async with opened(config) as manager:
            one = await manager.sign_batched(b"m")
            assert one.index == last + 1
            last = one.index
    floor = ["policy", "floor", "set", "batch-root", "100", "--reason", "test", "--config", _written(tmp_path, config)]
    assert await asyncio.to_thread(cli, floor) == 0
    async with opened(config) as manager:
        assert (await manager.sign_batched(b"m")).index == 101


def _written(folder, config):
    path = folder / "hsmcore.json"
    path.write_text(json.dumps(config))
    return str(path)


async def test_a_store_that_goes_back_signs_no_second_root(world, tmp_path):
    config = batching(world, tmp_path)
    async with opened(config) as manager:
        await manager.sign_batched(b"first")
        guard = manager._batches._guard
        await manager.sign_batched(b"second")
        text = batch_proof.checkpoint("default", 0, 1, bytes(32), 1, 1)
        with pytest.raises(PolicyRefused) as caught:
            await guard.bind_own("batch-root", text, 1, 1, 0, 5.0)
        assert caught.value.next == 2
        manager._batches._next = 7  # as if five more had been bound here
        with pytest.raises(StoreNotGenuine):
            await manager.sign_batched(b"third")


async def test_closing_answers_every_caller(world, tmp_path):
    manager = hsmcore.create_key_manager(batching(world, tmp_path, intervalMs=60_000, maxLeaves=40))
    await manager.initialize()
    tasks = [start(manager.sign_batched(b"m%d" % i)) for i in range(100)]
    await until(lambda: manager._batches._open is not None and manager._batches._open.count == 20)
    closing = start(manager.close())
    await asyncio.sleep(0)
    with pytest.raises(EngineClosed):
        await manager.sign_batched(b"late")
    await closing
    assert [said(await task, b"m%d" % i).size for i, task in enumerate(tasks)] == [40] * 80 + [20] * 20
    with pytest.raises(EngineClosed):
        await manager.sign_batched(b"late")
    await manager.initialize()
    assert (await asyncio.wait_for(_and_close(manager), 10)).index == 100


async def _and_close(manager):
    one = start(manager.sign_batched(b"again"))
    await until(lambda: manager._batches._open is not None)
    await manager.close()
    return await one


async def test_batches_that_wait_are_bounded(fresh_token, tmp_path):
    chaos = device(tmp_path, fresh_token)
    chaos.write(latency={"C_Sign": {"kind": "constant", "microseconds": 200_000}})
    rules = {"stateFile": str(tmp_path / "state.db"), "policy": {"kinds": KINDS}, "batching": {"maxLeaves": 2}}
    async with opened(chaos.config(**rules)) as manager:
        outcomes = await asyncio.gather(*(manager.sign_batched(b"m%d" % i) for i in range(40)), return_exceptions=True)
        kinds = [type(one) for one in outcomes]
        assert set(kinds) == {hsmcore.BatchedSignature, QueueFull}
        assert kinds.count(hsmcore.BatchedSignature) >= 8


async def test_leaves_are_kept_so_that_a_proof_can_be_made_again(world, tmp_path, monkeypatch):
    folder = tmp_path / "leaves"
    async with opened(batching(world, tmp_path, blind=True, keepLeaves=str(folder))) as manager:
        messages = [b"m%d" % i for i in range(50)]
        signed = await asyncio.gather(*map(manager.sign_batched, messages))
        rows = [json.loads(line) for path in sorted(folder.iterdir()) for line in path.read_text().splitlines()]
        leaves = b"".join(b64decode(row["leaves"]) for row in rows)
        for i, (message, one) in enumerate(zip(messages, signed, strict=True)):
            leaf = leaves[65 * i : 65 * i + 65]
            extra = b64decode(one.proof.split(b"\n")[1][6:])
            assert leaf == extra[:1] + sha256(message).digest() + extra[9:]
        assert all(any(one.proof.endswith(row["note"].encode()) for row in rows) for one in signed)
        assert [await manager.batched_proof(one.index) for one in signed] == [one.proof for one in signed]
        with pytest.raises(BadArgument, match="has number 50"):
            await manager.batched_proof(50)
        for index in (-1, 2**63, True, "1", None):
            with pytest.raises(BadArgument, match="0 to"):
                await manager.batched_proof(index)
    for place, domain in (("other", "a/../b"), ("third", "default")):  # of the same number, into the same folder
        (tmp_path / place).mkdir()
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / place))  # another host, with the same key
        config = batching(world, tmp_path / place, keepLeaves=str(folder), policy={"domain": domain})
        async with opened(config) as manager:
            assert (await manager.sign_batched(b"m")).index == 0
    names = sorted(path.name.rsplit("-", 1)[0] for path in folder.iterdir())
    assert names == sorted([f"default-0-{0:019d}"] * 2 + [f"a%2F..%2Fb-0-{0:019d}"])
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state-home"))
    async with opened(batching(world, tmp_path, keepLeaves=str(blocked / "leaves"))) as manager:
        with pytest.raises(AuditUnavailable) as failure:
            await manager.sign_batched(b"m")
        assert failure.value.maybe_signed  # the root is


async def test_a_proof_is_made_again_after_restarts_and_rotations(fresh_token, tmp_path, capfdbinary):
    rules = {"keyRotation": {"overlapDays": 0}, "stateFile": str(tmp_path / "state.db")}
    config = batching(fresh_token(), tmp_path, rules=rules, keepLeaves=str(tmp_path / "leaves"), maxLeaves=4)
    made = {}
    for _ in range(2):
        async with opened(config) as manager:
            for _ in range(2):
                messages = [b"message %d" % number for number in range(10)]
                made |= {one.index: one for one in await manager.sign_batched_many(messages)}
                await manager.rotate_key("test")
            assert [await manager.batched_proof(index) for index in made] == [one.proof for one in made.values()]
    assert (sorted(made), len({one.public_key for one in made.values()})) == (list(range(40)), 4)
    (tmp_path / "hsmcore.json").write_text(json.dumps(config))
    given = ["batch", "proof", "--config", str(tmp_path / "hsmcore.json")]
    for index in (0, 39):
        assert await asyncio.to_thread(cli, [*given, str(index)]) == 0
        assert capfdbinary.readouterr().out == made[index].proof
    own = ["--public-key", made[7].public_key.hex()]
    assert await asyncio.to_thread(cli, [*given, "7", *own, "--output", str(tmp_path / "7")]) == 0
    assert (tmp_path / "7").read_bytes() == made[7].proof
    capfdbinary.readouterr()
    assert await asyncio.to_thread(cli, [*given, "7", *own, "--json"]) == 0
    shown = json.loads(capfdbinary.readouterr().out)
    assert shown == {"domain": "default", "epoch": 0, "index": 7, "kind": "raw", "proof": made[7].proof.decode()}
    assert await asyncio.to_thread(cli, [*given, "39", *own]) == 1, "another key signed it"
    assert b"that a known key signed, has number 39" in capfdbinary.readouterr().err
    del config["sequencer"]["keyManager"]["batching"]["keepLeaves"]
    async with opened(config) as manager:
        with pytest.raises(BadArgument, match="keeps no leaves") as failure:
            await manager.batched_proof(0)
        assert "batching.keepLeaves" in failure.value.hint


def test_the_command_line_verifies_a_proof(world, tmp_path, capsys):
    async def signed():
        async with opened(batching(world, tmp_path)) as manager:
            return await manager.sign_batched(b"hello")

    one = asyncio.run(signed())
    (tmp_path / "hello.tlog-proof").write_bytes(one.proof)
    given = ["verify", "--batched", str(tmp_path / "hello.tlog-proof"), "--public-key", one.public_key.hex(), "--json"]
    assert cli([*given, "--text", "hello"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["valid"], shown["domain"], shown["index"], shown["kind"]) == (True, "default", 0, "raw")
    assert cli([*given, "--text", "hallo"]) == 1
    assert json.loads(capsys.readouterr().out) == {"valid": False}
    assert cli([*given, "--text", "hello", "--domain", "default", "--kind", "raw", "--epoch", "0"]) == 0
    capsys.readouterr()
    for option, other, found in (("domain", "other", "default"), ("kind", "tx-v0", "raw"), ("epoch", "1", "0")):
        assert cli([*given, "--text", "hello", f"--{option}", other]) == 1
        assert json.loads(capsys.readouterr().out) == {"valid": False, "problem": f"it is of {option} {found}"}
    assert cli([*given, "--text", "hello", "--kind", "block"]) == 2
    assert cli(["verify", "--signature", "00", "--text", "hello", "--domain", "default"]) == 2
    assert cli(["verify", "--batched", "x", "--signature", "00", "--text", "hello"]) == 2
