"""Strangers and clients that misbehave at the gateway's wire face: refused, recorded, no call of the HSM, and the
others are served."""

import asyncio
import os
import resource
import socket
import subprocess
import sys
from contextlib import AsyncExitStack, suppress

import pytest
from tests.support.chaos import Chaos, wrap
from tests.support.loops import one_loop
from tests.support.managers import until
from tests.support.wire_site import ME, bad_frames, refusals, sign, site

from hsmcore.errors import PolicyRefused
from hsmcore.gateway import Client, connection, server
from hsmcore.gateway.wire import messages as wire
from hsmcore.gateway.wire.frames import Type, frame

pytestmark = pytest.mark.integration
M = b"a message"
BAD = bad_frames()


@one_loop
async def test_a_user_that_is_no_client_is_refused_and_recorded(world, tmp_path):
    chaos, log = Chaos(tmp_path, wrap(world)), tmp_path / "audit.jsonl"
    clients = {"app": {"uid": [os.getuid() + 1], "keys": ["default"]}}
    async with site(chaos.config(auditLogFile=str(log)), tmp_path, clients) as gateway:
        calls = chaos.calls("C_Sign")
        async with gateway.connection() as peer:
            refusal = await peer.refused(wire.hello(bytes(16), "x") + sign(1, M))
            assert refusal.status == "POLICY_REFUSED"
            assert await peer.ends() == b""
        assert chaos.calls("C_Sign") == calls
        assert gateway.server.desk.strangers == 1
    [record] = refusals(log)
    assert f"uid {os.getuid()}" in record["label"]


@one_loop
async def test_a_group_is_a_client_too_and_a_user_goes_before_its_group(world, tmp_path):
    clients = {"group": {"gid": [os.getgid()], "keys": ["default"]}}
    async with site(world.config(), tmp_path, clients) as gateway, gateway.peer() as peer:
        assert peer.welcome.client == "group"
    async with site(world.config(), tmp_path, {**clients, **ME}) as gateway, gateway.peer() as peer:
        assert peer.welcome.client == "app"


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives a process other groups")
@one_loop
async def test_a_supplementary_group_is_a_client_too(world, tmp_path):
    gid = 54_321
    clients = {"group": {"gid": [gid], "keys": ["default"]}}
    asks = [sys.executable, "-c", "from tests.integration.test_gateway_hostile import says; says()", str(tmp_path)]
    async with site(world.config(), tmp_path, clients):
        for groups, said in (([gid], "group"), ([gid + 1, gid], "group"), ([gid + 1], ""), (range(gid, gid + 300), "")):
            done = await asyncio.to_thread(
                subprocess.run, asks, extra_groups=list(groups), check=True, capture_output=True, text=True
            )
            assert done.stdout.strip() == said


def says():
    """Write as which client this process is known."""

    async def run():
        async with Client(f"unix:{sys.argv[1]}/sign.sock") as client:
            return client.describe()["client"]

    with suppress(PolicyRefused):
        sys.stdout.write(asyncio.run(run()))


@one_loop
async def test_strangers_cannot_fill_the_disk(world, tmp_path):
    chaos, log = Chaos(tmp_path, wrap(world)), tmp_path / "audit.jsonl"
    clients = {"app": {"uid": [os.getuid() + 1], "keys": ["default"]}}
    async with site(chaos.config(auditLogFile=str(log)), tmp_path, clients) as gateway:
        for _ in range(200):
            async with gateway.connection() as peer:
                peer.send(b"x")
                await peer.ends()
        assert gateway.server.desk.strangers == 200
    found = refusals(log)
    assert len(found) < 100
    assert sum(one["count"] for one in found) == 200  # also those behind the last record of the crowd


@pytest.mark.parametrize("what", BAD)
@one_loop
async def test_a_frame_that_breaks_the_protocol_ends_the_connection(world, tmp_path, what):
    log = tmp_path / "audit.jsonl"
    async with site(world.config(auditLogFile=str(log)), tmp_path) as gateway:
        async with gateway.peer() as peer:
            found = await peer.ask(BAD[what] + sign(7, M))
            refusal = wire.read_error(found.body)
            assert (found.request, refusal.status, refusal.retryable) == (0, "BAD_ARGUMENT", False)
            assert await peer.ends() == b""
        async with gateway.peer() as peer:
            await peer.signed(sign(1, M))
        assert gateway.server.desk.open == 0
        assert gateway.server.desk.requests["app", "OK"] == 1
    [record] = refusals(log)
    assert record["label"].startswith("app (uid")


@pytest.mark.parametrize("first", [sign(1, M), frame(Type.PING, 1), b"\x00" * 16, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"])
@one_loop
async def test_whatever_comes_before_hello_is_refused(world, tmp_path, first):
    async with site(world.config(), tmp_path) as gateway, gateway.connection() as peer:
        assert (await peer.refused(first)).status == "BAD_ARGUMENT"
        assert await peer.ends() == b""


@one_loop
async def test_hello_may_come_byte_by_byte_and_with_requests_behind_it(world, tmp_path):
    async with site(world.config(), tmp_path) as gateway:
        async with gateway.connection() as peer:
            for byte in wire.hello(os.urandom(16), "slow"):
                peer.send(bytes([byte]))
                await peer.writer.drain()
                await asyncio.sleep(0)
            assert (await peer.next()).type is Type.WELCOME
        async with gateway.connection() as peer:
            found = await peer.ask(wire.hello(os.urandom(16), "quick") + sign(1, M))
            assert found.type is Type.WELCOME
            assert (await peer.next()).type is Type.SIGNED


@one_loop
async def test_a_stranger_has_no_more_memory_than_hello_needs(world, tmp_path):
    async with site(world.config(), tmp_path) as gateway, gateway.connection() as peer:
        head = (1 << 20).to_bytes(4, "little") + bytes([Type.SIGN]) + bytes(11)
        assert (await peer.refused(head)).status == "BAD_ARGUMENT"


@one_loop
async def test_a_frame_that_comes_slowly_is_waited_for_and_one_that_trickles_is_not(world, tmp_path, monkeypatch):
    monkeypatch.setattr(server, "TICK_SECONDS", 3600.0)
    batch = wire.sign_many(1, wire.SignMany("", 0, 0, [b"%1000d" % at for at in range(20)]))
    async with site(world.config(), tmp_path) as gateway, gateway.peer() as peer:
        [link] = gateway.server.connections

        async def looked(part):
            before = gateway.server.bytes_in
            peer.send(part)
            await until(lambda: gateway.server.bytes_in == before + len(part))
            return link.stalls()

        least = connection.LEAST_BYTES
        link.stalls()
        assert [await looked(batch[at * least : (at + 1) * least]) for at in range(12)] == [0] * 12
        trickle = batch[12 * least :]
        assert [await looked(trickle[at : at + 1]) for at in range(12)] == list(range(1, 13))
        assert await looked(trickle[12:]) == 0


@one_loop
async def test_half_a_frame_is_not_waited_for(world, tmp_path, monkeypatch):
    monkeypatch.setattr(server, "TICK_SECONDS", 0.02)
    monkeypatch.setattr(server, "STALLED_SECONDS", 3)
    async with site(world.config(), tmp_path) as gateway, gateway.peer() as idle, gateway.peer() as peer:
        assert (await peer.refused(sign(1, M)[:-1])).status == "BAD_ARGUMENT"
        assert await peer.ends() == b""
        await idle.signed(sign(1, M))  # it said nothing for as long, and is welcome


@one_loop
async def test_a_connection_without_hello_is_closed_and_recorded(world, tmp_path, monkeypatch):
    monkeypatch.setattr(server, "HELLO_SECONDS", 0.2)
    log = tmp_path / "audit.jsonl"
    async with site(world.config(auditLogFile=str(log)), tmp_path) as gateway, gateway.connection() as half:
        async with gateway.connection() as silent:
            half.send(wire.hello(bytes(16), "x")[:5])
            assert await silent.ends() == b""
            assert await half.ends() == b""
            assert not gateway.server.connections
        monkeypatch.setattr(server, "HELLO_SECONDS", 60)
        async with gateway.connection(), gateway.peer() as peer:
            await peer.signed(sign(1, M))
            await gateway.served.drain()  # whom the end finds silent has done nothing wrong
    assert {(one["label"], one["why"]) for one in refusals(log)} == {
        (f"uid {os.getuid()}, gid {os.getgid()}", why) for why in ("it said nothing", "no HELLO in time")
    }


@pytest.mark.parametrize("count", [1000, pytest.param(10_000, marks=[pytest.mark.deep])])
@one_loop
async def test_idle_connections_keep_no_client_out(world, tmp_path, count, monkeypatch):
    monkeypatch.setattr(server, "CONNECTIONS", min(server.CONNECTIONS, count // 2))
    log = tmp_path / "audit.jsonl"
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 2 * count + 1000), hard))
    try:
        config = world.config(auditLogFile=str(log))
        async with site(config, tmp_path) as gateway, AsyncExitStack() as rest:
            peer = await rest.enter_async_context(gateway.peer())
            for number in range(count):
                one = rest.enter_context(socket.socket(socket.AF_UNIX))
                one.setblocking(False)
                while True:
                    try:
                        one.connect(gateway.path)
                        break
                    except BlockingIOError:  # the queue is full: the gateway accepts
                        await asyncio.sleep(0.001)
                if number % 500 == 0:
                    await peer.signed(sign(number + 1, M))
            async with gateway.peer() as another:
                await another.signed(sign(1, M))
            gave_way = gateway.server.desk.strangers
            assert gave_way >= count - server.CONNECTIONS
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    found = refusals(log)
    assert sum(one["count"] for one in found) == gave_way
    assert {one["why"] for one in found} == {"it said nothing"}


@one_loop
async def test_the_connections_of_one_client_are_limited(world, tmp_path, monkeypatch):
    monkeypatch.setattr(connection, "OF_ONE_CLIENT", 2)
    async with site(world.config(), tmp_path) as gateway, gateway.peer() as peer, gateway.peer():
        async with gateway.connection() as one_more:
            refusal = await one_more.refused(wire.hello(bytes(16), "x"))
            assert (refusal.status, refusal.retry_after_ms) == ("QUEUE_FULL", 1000)
        await peer.signed(sign(1, M))


@one_loop
async def test_a_client_that_does_not_read_is_not_read_and_delays_nobody(world, tmp_path, monkeypatch):
    monkeypatch.setattr(connection, "UNREAD_BYTES", 4096)
    monkeypatch.setattr(connection, "UNREAD_SECONDS", 0.5)
    async with site(world.config(), tmp_path) as gateway, gateway.peer() as peer:
        with socket.socket(socket.AF_UNIX) as slow:
            slow.setblocking(False)
            slow.connect(gateway.path)
            slow.send(wire.hello(os.urandom(16), "slow"))
            ping, sent = frame(Type.PING, 1, bytes(64)) * 16, 0
            while sent < 64 << 20:  # it would be answered with as much
                try:
                    sent += slow.send(ping)
                except BlockingIOError:
                    break  # nothing is read any more
                await asyncio.sleep(0)
            assert sent < 64 << 20
            await peer.signed(sign(1, M))
            await until(lambda: len(gateway.server.connections) == 1)
        await peer.signed(sign(2, M))
