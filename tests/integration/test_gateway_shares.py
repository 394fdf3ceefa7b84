"""Fair shares through the whole gateway: a client that floods it, in any size, and another one."""

import asyncio
import ssl
import subprocess
import sys

import pytest
from nacl.signing import VerifyKey
from tests.support.authority import Authority
from tests.support.flood import KINDS
from tests.support.loops import one_loop
from tests.support.managers import until
from tests.support.wire import read_signed
from tests.support.wire_site import ME, many, sign, site

from hsmcore.gateway import Client, jobs
from hsmcore.gateway.intake import (
    AT_ONCE,
    PLAIN_COST,
    SHARED,
    SIGN_COST,
)
from hsmcore.gateway.jobs import Queue
from hsmcore.gateway.wire import messages as wire
from hsmcore.gateway.wire.frames import Type

pytestmark = pytest.mark.integration
FLOOD, BATCH = [b"flood %d" % number for number in range(2000)], 250
BATCHES = [FLOOD[at : at + BATCH] for at in range(0, len(FLOOD), BATCH)]
AT_THE_KEY = 8
"""Messages, at most."""


async def signed_one_by_one(peer):
    peer.send(*(sign(number, message) for number, message in enumerate(FLOOD, 1)))
    found = [await peer.next() for _ in FLOOD]
    assert {one.type for one in found} == {Type.SIGNED}
    return [read_signed(one.body).signature for one in sorted(found, key=lambda one: one.request)]


async def signed_many(peer):
    peer.send(*(many(number, *batch) for number, batch in enumerate(BATCHES, 1)))
    found = sorted([await peer.next() for _ in BATCHES], key=lambda one: one.request)
    return [one for answer in found for one in wire.read_signed_many(answer.body)[1]]


@pytest.mark.parametrize("flooded", [signed_one_by_one, signed_many])
@one_loop
async def test_a_flood_of_one_client_does_not_keep_another_from_its_turn(world, tmp_path, flooded, monkeypatch):
    meanwhile = counted_for(monkeypatch, "quiet")
    authority = Authority(tmp_path)
    own = authority.issue("gateway", ips=["127.0.0.1"])
    files = {"certificateFile": own.certificate, "keyFile": own.key, "clientCaFile": authority.file}
    clients = {
        "flood": {**ME["app"], "inFlight": 2000},
        "quiet": {"names": ["dns:quiet.example"], "keys": ["default"]},
    }
    listen = [f"unix:{tmp_path}/sign.sock", "tls:127.0.0.1:0"]
    config = world.config(maxCacheSize=0, requestTimeoutMs=60_000)
    async with site(config, tmp_path, clients, listen=listen, tls=files, inFlight=AT_THE_KEY) as gateway:
        issued = authority.issue("quiet", dns=["quiet.example"])
        context = ssl.create_default_context(cafile=authority.file)
        context.load_cert_chain(issued.certificate, issued.key)
        desk = gateway.server.desk
        async with gateway.peer() as peer, gateway.over_tls(context) as quiet:
            await quiet.hello()
            flood = asyncio.create_task(flooded(peer))
            await until(lambda: desk.open > 300)
            for number in range(1, 11):
                await quiet.signed(sign(number, b"quiet %d" % number))
                assert desk.queues["default"].turns.under_way <= AT_THE_KEY
                # What was at the key manager goes before it, and at most as much again while it is answered.
                assert meanwhile[-1] <= 5 * AT_THE_KEY
                assert len(meanwhile) == number
            assert not flood.done()
            key = VerifyKey(gateway.manager.public_key)
            for message, signature in zip(FLOOD, await flood, strict=True):
                key.verify(message, signature)
        turns = desk.queues["default"].turns
        assert (desk.open, turns.under_way, turns.waiting) == (0, 0, 0)


def counted_for(monkeypatch, name):
    """How many signatures there were from the admission of each request of a client to its answer. What its bytes wait
    for on their way is not counted."""
    found, began, go_on, answer = [], {}, Queue.go_on, jobs.answer_signs

    def entered(queue, begun, waits):
        begun, waits = list(begun), list(waits)
        for job in (*begun, *waits):
            if job.account.client.name == name:
                began[job] = signed(job.counter.manager)
        go_on(queue, begun, waits)

    def answered(requests, *rest):
        known = [job for job in requests if job in began]
        found.extend(signed(job.counter.manager) - began.pop(job) for job in known)
        return answer(requests, *rest)

    monkeypatch.setattr(Queue, "go_on", entered)
    monkeypatch.setattr(jobs, "answer_signs", answered)
    return found


def signed(manager):
    """Signatures so far."""
    return sum(stats["signatures"] for stats in manager.get_stats().values())


@pytest.mark.parametrize("kind", KINDS)
@one_loop
async def test_what_a_client_sends_that_costs_no_signature_keeps_no_other_from_its_turn(world, tmp_path, kind):
    """Another process floods over two connections. In a turn of the event loop few of its frames are taken, so that
    what others wait for is seldom behind many of them."""
    authority = Authority(tmp_path)
    own, issued = authority.issue("gateway", ips=["127.0.0.1"]), authority.issue("quiet", dns=["quiet.example"])
    files = {"certificateFile": own.certificate, "keyFile": own.key, "clientCaFile": authority.file}
    clients = {"flood": ME["app"], "quiet": {"names": ["dns:quiet.example"], "keys": ["default"]}}
    listen = [f"unix:{tmp_path}/sign.sock", "tls:127.0.0.1:0"]
    context = ssl.create_default_context(cafile=authority.file)
    context.load_cert_chain(issued.certificate, issued.key)
    async with site(world.config(maxCacheSize=0), tmp_path, clients, listen=listen, tls=files) as gateway:
        async with gateway.over_tls(context) as quiet:
            await quiet.hello()
            command = [sys.executable, "-m", "tests.support.flood", gateway.path, kind, "2"]
            flood = await asyncio.create_subprocess_exec(*command, stdin=subprocess.PIPE)
            try:
                await until(lambda: frames_of(gateway, "flood") > 1000)
                taken = asyncio.create_task(most_in_a_turn(lambda: frames_of(gateway, "flood")))
                before = frames_of(gateway, "flood")
                for number in range(1, 51):
                    await quiet.signed(sign(number, b"quiet %d" % number))
                assert frames_of(gateway, "flood") - before > 50  # it did flood
            finally:
                flood.stdin.close()
                await flood.wait()
            taken.cancel()
            # Those that were left of one turn and those of the next lie between two looks.
            assert await taken <= 2 * max(AT_ONCE, SHARED) // (PLAIN_COST if kind == "ping" else SIGN_COST) + 2
        await until(lambda: gateway.server.desk.open == 0)


def frames_of(gateway, client):
    """Frames that were taken of a client's connections."""
    return sum(one.frames for one in gateway.server.connections if one.client.name == client)


async def most_in_a_turn(count):
    """Until it is cancelled: the most by which the count grew in a turn of the event loop."""
    most, last = 0, count()
    try:
        while True:
            await asyncio.sleep(0)
            now = count()
            most, last = max(most, now - last), now
    except asyncio.CancelledError:
        return most


@one_loop
async def test_workers_of_one_client_refuse_each_other_nothing(world, tmp_path):
    """Each of them may have as much open as the client; all together have more."""
    clients = {"app": {**ME["app"], "inFlight": 64}}
    async with site(world.config(maxCacheSize=0, requestTimeoutMs=60_000), tmp_path, clients) as gateway:
        workers = [Client(gateway.addresses[0], timeout=60) for _ in range(4)]
        await asyncio.gather(*(worker.initialize() for worker in workers))
        assert [worker._outbox.credits for worker in workers] == [64] * 4
        asked = [worker.sign(b"%d of %d" % (number, at)) for at, worker in enumerate(workers) for number in range(750)]
        assert all(type(one) is bytes for one in await asyncio.gather(*asked))
        await asyncio.gather(*(worker.close() for worker in workers))
        outcomes = {outcome for _, outcome in gateway.server.desk.requests}
        assert outcomes == {"OK"}
