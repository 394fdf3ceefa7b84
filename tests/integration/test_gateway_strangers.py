"""Strangers at one address have a rate, at all faces; clients at the same address are not counted, and a Unix socket
has no address."""

import asyncio
import socket
import ssl

import pytest
from tests.support.authority import Authority
from tests.support.loops import one_loop
from tests.support.managers import until
from tests.support.vault_site import TOKEN
from tests.support.vault_site import site as vault_site
from tests.support.wire_site import ME, refusals, sign, site

from hsmcore.base.listening.rates import AddressBuckets
from hsmcore.gateway.admission import UNKNOWN
from hsmcore.gateway.vault import asker, face
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
    listen, log = [f"unix:{tmp_path}/sign.sock", "tls:127.0.0.1:0"], tmp_path / "audit.jsonl"
    contexts = []
    for issued in (known, other):
        contexts.append(ssl.create_default_context(cafile=authority.file))
        contexts[-1].load_cert_chain(issued.certificate, issued.key)
    config = world.config(auditLogFile=str(log))
    async with site(config, tmp_path, clients, listen=listen, tls=files) as gateway:
        buckets = AddressBuckets(3, LONG_AGO)  # of which nothing comes back while the test runs
        [door] = [one for one in gateway.server._doors if one._listening.family is not socket.AF_UNIX]
        door._handshakes = buckets
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
        await gateway.manager.audit.flush()
        assert [(one["label"], one["why"]) for one in refusals(log)][-2:] == [("127.0.0.1", WHY)] * 2


@one_loop
async def test_requests_of_strangers_are_counted_and_those_of_clients_are_not(world, tmp_path, monkeypatch):
    monkeypatch.setattr(asker, "WAIT_SECONDS", 0.0)
    async with vault_site(world.config(), tmp_path) as vault:
        desk = vault.served.server.desk
        desk.unknown = AddressBuckets(3, LONG_AGO)
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
async def test_health_is_looked_up_ten_times_a_second_at_most(world, tmp_path, monkeypatch):
    looked, now = [0], [1000.0]
    async with vault_site(world.config(), tmp_path) as vault:
        monkeypatch.setattr(face, "monotonic", lambda: now[0])
        sealed = face.Transit._sealed
        monkeypatch.setattr(face.Transit, "_sealed", lambda self: looked.append(1) or sealed(self))
        for _ in range(5):
            assert (await vault.asked("GET", "/v1/sys/health", token=None)).status == 200
        assert len(looked) <= 2
        now[0] += face.LOOK_SECONDS
        before = len(looked)
        await vault.asked("GET", "/v1/sys/seal-status", token=None)
        assert len(looked) == before + 1


@one_loop
async def test_a_flood_of_strangers_waits_for_its_turns(world, tmp_path):
    """More than there is at once are all answered, later: none is refused that came one after the other."""
    async with vault_site(world.config(), tmp_path) as vault:
        desk = vault.served.server.desk
        desk.unknown = AddressBuckets(2, 1 / UNKNOWN)
        replies = await asyncio.gather(*(vault.asked("GET", "/v1/sys/health", token=None) for _ in range(12)))
        assert {one.status for one in replies} == {200}


@one_loop
async def test_connections_over_https_of_clients_are_given_back(world, tmp_path):
    async with vault_site(world.config(), tmp_path) as vault:
        [door] = vault.served.vaults[0]._server._doors
        door._handshakes = AddressBuckets(3, LONG_AGO)
        health = "/v1/sys/health"
        for _ in range(10):
            assert (await vault.asked("GET", health)).status == 200
        for _ in range(3):
            assert (await vault.asked("GET", health, token=None)).status == 200
        with pytest.raises(OSError):  # noqa: PT011  # closed before the handshake
            await vault.asked("GET", health)
