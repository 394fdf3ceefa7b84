"""Batched signatures through the gateway: one tree for all clients, a proof for each, and what a client believes."""

from __future__ import annotations

import asyncio
import os
from random import Random

import pytest
from tests.integration.test_batching import batching, said
from tests.integration.test_policy import policed, records
from tests.support import batches
from tests.support.gateways import FakeGateway, gateway
from tests.support.loops import one_loop
from tests.support.managers import counters, until
from tests.support.policed import ordered
from tests.support.wire import placed, read_batched
from tests.support.wire_site import one_of, refusals, sign, site

from hsmcore.errors import BadArgument, HsmError, SignatureInvalid
from hsmcore.gateway import Client
from hsmcore.gateway.wire import messages as wire
from hsmcore.gateway.wire.frames import Type, frame

pytestmark = pytest.mark.integration
LONG = {"timeout_ms": 120_000}
APP = {"uid": [os.getuid()], "keys": ["default"]}


def place(answer):
    """What a BATCHED says."""
    assert answer.type is Type.BATCHED, wire.read_error(answer.body)
    return read_batched(answer.body)


@one_loop
async def test_messages_of_all_connections_share_a_tree(world, tmp_path):
    config = batching(world, tmp_path, intervalMs=60_000, maxLeaves=6)
    async with site(config, tmp_path) as gate, gate.peer() as one, gate.peer() as other:
        assert all(key.batches for key in one.welcome.keys)
        assert one.welcome.keys[0].kinds == wire.BATCHES | wire.TRACES
        for number, message in enumerate((b"a", b"b", b"c"), 1):
            one.send(one_of(number, message))
            other.send(one_of(number, message + b"!", kind="raw"))
        found = {}
        for peer, more in ((one, b""), (other, b"!")):
            for _ in range(3):
                answer = await peer.next()
                found[b"abc"[answer.request - 1 : answer.request] + more] = place(answer)
        assert {one.public_key for one in found.values()} == {gate.manager.public_key}
        assert {said(answer, message).index for message, answer in found.items()} == set(range(6))
        assert len({said(answer, message).root for message, answer in found.items()}) == 1
        assert counters(gate.manager)["signatures"] == 1
        [root] = await records(gate.manager, operation="sign")
        assert {answer.audit_seq for answer in found.values()} == {root["seq"]}
        assert {answer.key_id for answer in found.values()} == {root["key_id"]}
        assert root["callers"] == [{"caller": "app", "count": 6}]
        assert gate.server.desk.open == 0


@one_loop
async def test_a_batch_is_larger_than_what_the_gateway_has_signed_at_a_time(world, tmp_path):
    config = batching(world, tmp_path, ["raw", "batch-root"], intervalMs=60_000, maxLeaves=50)
    async with site(config, tmp_path, inFlight=1) as gate, gate.peer() as peer:
        peer.send(*(one_of(number, b"m", **LONG) for number in range(1, 50)))
        await until(lambda: gate.server.desk.open == 49)
        await peer.signed(sign(100, b"signed beside it", **LONG))
        peer.send(one_of(50, b"m", **LONG))
        assert {said(place(await peer.next()), b"m").size for _ in range(50)} == {50}


@one_loop
async def test_a_drain_waits_for_no_batch_to_be_old_enough(world, tmp_path):
    async with site(batching(world, tmp_path, intervalMs=60_000), tmp_path) as gate, gate.peer() as peer:
        peer.send(one_of(1, b"m", **LONG))
        await until(lambda: gate.server.desk.open == 1)
        assert await gate.server.drain(50, "test")
        assert (await peer.next()).type is Type.GOAWAY
        assert said(place(await peer.next()), b"m").size == 1


@one_loop
async def test_the_same_number_gets_the_same_proof_and_no_second_place(world, tmp_path):
    nonce = os.urandom(16)
    async with site(batching(world, tmp_path, intervalMs=1), tmp_path) as gate:
        async with gate.peer(nonce) as peer:
            first = place(await peer.ask(one_of(1, b"m")))
        async with gate.peer(nonce) as peer:
            assert place(await peer.ask(one_of(1, b"m", again=True))) == first
            for other in (one_of(1, b"n", again=True), sign(1, b"m", again=True), one_of(1, b"m", kind="raw")):
                assert (await peer.refused(other)).status == "BAD_ARGUMENT"
            assert said(place(await peer.ask(one_of(2, b"m"))), b"m").index == 1  # another number: another request
        assert gate.server.repeated == 1
        assert counters(gate.manager)["signatures"] == 2


@one_loop
async def test_a_connection_that_ends_withdraws_no_message(world, tmp_path):
    nonce = os.urandom(16)
    async with site(batching(world, tmp_path, intervalMs=60_000, maxLeaves=2), tmp_path) as gate:
        async with gate.peer(nonce) as peer:
            peer.send(one_of(1, b"m", **LONG))
            await until(lambda: gate.server.desk.open == 1)
        await until(lambda: not gate.server.connections)
        async with gate.peer(nonce) as latest, gate.peer(nonce) as late:
            latest.send(one_of(1, b"m", again=True, **LONG))
            await until(lambda: gate.server.repeated == 1)
            late.send(one_of(1, b"m", **LONG))  # read last, of a connection that broke before
            await until(lambda: gate.server.repeated == 2)
            latest.send(one_of(2, b"n", **LONG))
            found = {answer.request: place(answer) for answer in (await latest.next(), await latest.next())}
            assert said(found[1], b"m").size == said(found[2], b"n").size == 2
            assert place(await late.next()) == found[1]


@one_loop
async def test_what_a_client_may_not_have_signed_is_in_no_batch(world, fresh_token, tmp_path):
    kinds = ["block", "batch-root"]
    clients = {"app": {**APP, "kinds": ["block"], "batch": True, "perSecond": 8, "inFlight": 4}}
    log = tmp_path / "audit.jsonl"
    config = batching(world, tmp_path, kinds, leaves=["raw"], rules={"auditLogFile": str(log)}, intervalMs=1)
    async with site(config, tmp_path, clients) as gate, gate.peer() as peer:
        refused = {
            "POLICY_REFUSED": [one_of(1, bytes(32)), one_of(2, ordered(1)), one_of(3, b"m", slot=1)],
            "BAD_ARGUMENT": [one_of(4, ordered(1), kind="block")],
        }
        for status, requests in refused.items():
            for request in requests:
                found = await peer.refused(request)
                assert (found.status, found.maybe_signed) == (status, False), found
        found = await peer.refused(one_of(5, b"m", kind="prehashed"))
        assert found.error_class == "REQUEST_FATAL"
        assert said(place(await peer.ask(one_of(6, b"m"))), b"m").kind == "raw"
        peer.send(*(one_of(number, b"m", **LONG) for number in range(10, 20)))
        answers = [await peer.next() for _ in range(10)]
        full = [wire.read_error(one.body).status for one in answers if one.type is Type.ERROR]
        assert set(full) == {"QUEUE_FULL"}  # of the rate, or of what it may have open
        assert len(full) >= 6
        assert gate.server.desk.open == 0
    assert [one["why"] for one in refusals(log)] == ["key not listed"]
    clients["app"].pop("batch")
    async with site(batching(world, tmp_path, kinds), tmp_path, clients) as gate, gate.peer() as peer:
        assert not any(key.batches for key in peer.welcome.keys)
        found = await peer.refused(one_of(1, b"m"))
        assert (found.status, '"batch": true' in found.text) == ("POLICY_REFUSED", True)
    other = fresh_token()  # the key of before has bound blocks
    async with site(policed(other, tmp_path, ["raw"]), tmp_path) as gate, gate.peer() as peer:
        assert not any(key.batches for key in peer.welcome.keys)
        assert (await peer.refused(one_of(1, b"m"))).status == "BAD_ARGUMENT"
        await peer.signed(sign(2, b"m"))  # on the same connection


@one_loop
async def test_a_withdrawn_message_hurts_no_other_one(world, tmp_path):
    async with site(batching(world, tmp_path, intervalMs=60_000, maxLeaves=3), tmp_path) as gate:
        async with gate.peer() as one, gate.peer() as other:
            one.send(one_of(1, b"withdrawn", **LONG), frame(Type.CANCEL, 1))
            assert wire.read_error((await one.next()).body).status == "CANCELLED"
            late = wire.read_error((await one.ask(one_of(2, b"late", timeout_ms=20))).body)
            assert (late.status, late.maybe_signed) == ("DEADLINE_EXCEEDED", True)
            other.send(one_of(1, b"a", **LONG), one_of(2, b"b", **LONG), one_of(3, b"c", **LONG))
            found = [place(await other.next()) for _ in range(3)]
            assert {said(found[0], b"a").root, said(found[2], b"c").root} == {said(found[1], b"b").root}
        assert gate.server.desk.open == 0


@one_loop
async def test_what_a_key_manager_does_a_client_does(world, tmp_path):
    config = batching(world, tmp_path, blind=True)
    async with gateway(tmp_path, config) as served, Client(served.addresses[0], connections=2) as km:
        messages = [b"message %d" % number for number in range(300)]
        signed = await asyncio.gather(*map(km.sign_batched, messages))
        for message, one in zip(messages, signed, strict=True):
            found = said(one, message)
            assert (found.index, found.root, found.kind) == (one.index, one.root, "raw")
        assert sorted(one.index for one in signed) == list(range(300))
        assert {one.public_key for one in signed} == {km.public_key}
        assert {one.key_id for one in signed} == {await km.get_current_key_id()}
        assert {type(one.audit_seq) for one in signed} == {int}
        assert (await km.sign_batched(memoryview(b"m"), kind="raw")).index == 300
        for message, kind in ((b"m", "block"), (b"", None), (b"m", "nonsense")):
            with pytest.raises(HsmError):
                await km.sign_batched(message, kind=kind)


class Liar:
    """A gateway that answers SIGN_BATCHED with `answer`."""

    def __init__(self, answer: tuple[int, str, bytes, bytes]) -> None:
        self.answer = answer

    def __call__(self, _served, connection, one):
        if one.type is Type.SIGN_BATCHED:
            connection.transport.write(placed(one.request, *self.answer))


@one_loop
async def test_a_client_believes_no_gateway(tmp_path):
    path = str(tmp_path / "fake.sock")
    good, other = await batches.signed([b"message", b"other"], first=7)
    [foreign] = await batches.signed([b"message"], key=batches.OTHER_KEY)
    note = good.proof.index(b"default/0")
    signature = good.proof.rindex("\u2014 ".encode())
    more = good.proof + b"\xe2\x80\x94 someone AAAAAAAA\n"
    wrong = [b"", b"proof", other.proof, foreign.proof, good.proof[:-1], good.proof + b"\n", more,
             good.proof[:note] + foreign.proof[foreign.proof.index(b"default/0") :],
             good.proof[:signature] + foreign.proof[foreign.proof.rindex("\u2014 ".encode()) :]]  # fmt: skip
    cases = await asyncio.to_thread(lambda: list(batches.manipulated(Random(1), 300)))
    async with FakeGateway(path) as fake:
        fake.kinds = wire.BATCHES | 1 << 8
        async with Client(f"unix:{path}", timeout=20) as km:
            fake.answer = liar = Liar((3, "01", batches.PUBLIC, good.proof))
            for _ in range(2):  # the second time, the signature of the root is known
                found = await km.sign_batched(b"message")
                assert (found.index, found.root, found.audit_seq, found.key_id) == (7, good.root, 3, "01")
                for proof in wrong:
                    liar.answer = (3, "01", batches.PUBLIC, proof)
                    with pytest.raises(SignatureInvalid) as failure:
                        await km.sign_batched(b"message")
                    assert failure.value.maybe_signed
                for key in (bytes(batches.OTHER_KEY.verify_key), batches.PUBLIC[:-1], b""):
                    liar.answer = (3, "01", key, good.proof)
                    with pytest.raises(SignatureInvalid):
                        await km.sign_batched(b"message")
                liar.answer = (3, "01", batches.PUBLIC, good.proof)
                for message, kind in ((b"message!", None), (b"other", None), (b"message", "tx-v0")):
                    with pytest.raises(SignatureInvalid):
                        await km.sign_batched(message, kind=kind)
            for case in cases:
                if case.message:
                    liar.answer = (3, "01", case.public_key, case.proof)
                    with pytest.raises(SignatureInvalid):
                        await km.sign_batched(case.message)
            assert fake.accepted == 1  # a bad proof costs its own request only


@one_loop
async def test_a_gateway_of_another_release_is_not_asked(tmp_path):
    path = str(tmp_path / "fake.sock")
    for kinds in (wire.ALL_KINDS, 1 << 8, 0):
        async with FakeGateway(path) as fake:
            fake.kinds = kinds
            async with Client(f"unix:{path}") as km:
                with pytest.raises(BadArgument, match="signs no batches"):
                    await km.sign_batched(b"m")
                assert await km.sign(b"m")
                assert not fake.received(Type.SIGN_BATCHED)
