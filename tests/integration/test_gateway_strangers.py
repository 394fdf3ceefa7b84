"""Strangers at one address have a rate, at all faces; clients at the same address are not counted, and a Unix socket
has no address."""

import asyncio
import ssl

import pytest
from tests.support.authority import Authority
from tests.support.loops import one_loop
from tests.support.managers import until
from tests.support.vault_site import TOKEN, near_pumps, near_site
from tests.support.wire_site import ME, sign, site

from hsmcore.base.listening.rates import AddressBuckets
from hsmcore.gateway.front.core import UNKNOWN
from hsmcore.gateway.vault import asker
from hsmcore.gateway.wire import messages as wire

pytestmark = pytest.mark.integration
LONG_AGO = 1e9
WHY = "too many connections of its address have not shown who they are"


@one_loop
async def test_handshakes_of_strangers_are_counted_and_those_of_clients_are_not(world, tmp_path):
    authority = Authority(tmp_path)
    own = authority.issue("gateway", ips=["127.0.0.1"])
    known, other = (authority.issue(name, dns=[f"{name}.example"]) for name in ("known", "other"))
    files = {"certificateFile": own.certificate, "keyFile": own.key, "clientCaFile": authority.file}
    clients = {**ME, "known": {"names": ["dns:known.example"], "keys": ["default"]}}
    contexts = []
    for issued in (known, other):
        contexts.append(ssl.create_default_context(cafile=authority.file))
        contexts[-1].load_cert_chain(issued.certificate, issued.key)
    buckets = AddressBuckets(3, LONG_AGO)  # of which nothing comes back while the test runs
    async with (
        site(world.config(), tmp_path, clients, tls=files) as gateway,
        near_pumps(gateway.served, buckets) as (port, core),
    ):
        gateway.addresses.append(f"tls:127.0.0.1:{port}")
        for _ in range(10):
            async with gateway.over_tls(contexts[0]) as peer:
                await peer.hello()
                await peer.signed(sign(1, b"m"))
        await until(lambda: round(buckets.left("127.0.0.1")) == 3)
        for _ in range(3):
            async with gateway.over_tls(contexts[1]) as peer:
                assert wire.read_error((await peer.next()).body).status == "POLICY_REFUSED"
        for context in contexts:
            with pytest.raises((OSError, EOFError)):
                async with gateway.over_tls(context) as peer:
                    await peer.next()
        async with gateway.peer() as peer:
            await peer.signed(sign(1, b"m"))
        assert [said[2:4] for said in core.told() if said[0] == "refused"][-2:] == [["127.0.0.1", WHY]] * 2


@one_loop
async def test_requests_of_strangers_are_counted_and_those_of_clients_are_not(world, tmp_path, monkeypatch):
    monkeypatch.setattr(asker, "WAIT_SECONDS", 0.0)
    async with near_site(world.config(), tmp_path) as (vault, core):
        core.unknown = AddressBuckets(3, LONG_AGO)
        health = "/v1/sys/health"
        for _ in range(10):
            assert (await vault.asked("GET", health)).status == 200
        assert (await vault.asked("GET", health, token=None)).status == 200
        assert (await vault.asked("GET", "/v1/nothing", token=None)).status == 404
        assert (await vault.asked("GET", "/v1/transit/keys/default", token=TOKEN[::-1])).status == 403
        for token in (None, TOKEN[::-1]):
            with pytest.raises(OSError):  # noqa: PT011  # closed without an answer
                await vault.asked("GET", health, token=token)
        assert (await vault.asked("GET", health)).status == 200


@one_loop
async def test_a_flood_of_strangers_waits_for_its_turns(world, tmp_path):
    """More than there is at once are all answered, later: none is refused that came one after the other."""
    async with near_site(world.config(), tmp_path) as (vault, core):
        core.unknown = AddressBuckets(2, 1 / UNKNOWN)
        replies = await asyncio.gather(*(vault.asked("GET", "/v1/sys/health", token=None) for _ in range(12)))
        assert {one.status for one in replies} == {200}
