"""Connections of clients that are none any more: removed, with a certificate that has ended, or whose authority was
taken away. They are told to go, answered what is open, and closed; others notice nothing."""

import asyncio
import http.client
import json
import ssl
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from tests.support.authority import Authority
from tests.support.chaos import Chaos, wrap
from tests.support.loops import one_loop
from tests.support.managers import becomes, until
from tests.support.vault_site import TOKEN
from tests.support.wire_site import ME, refusals, sign, site

from hsmcore.config.loading import load_each
from hsmcore.gateway.gateway import settings_of
from hsmcore.gateway.wire import messages as wire
from hsmcore.gateway.wire.frames import Type

pytestmark = pytest.mark.integration
NAMED = {name: {"names": [f"dns:{name}.example"], "keys": ["default"]} for name in ("one", "two")}
NONCE = bytes(range(16))
DAY = 86_400


class Revoking:
    """A gateway with clients of two authorities, at all faces."""

    def __init__(self, folder):
        self.folder, self.log = folder, folder / "audit.jsonl"
        self.authorities = [Authority(folder, name) for name in ("first", "second")]
        self.own = self.authorities[0].issue("gateway", ips=["127.0.0.1"])
        self.issued = {
            name: authority.issue(name, dns=[f"{name}.example"])
            for name, authority in zip(("one", "two"), self.authorities, strict=True)
        }
        self.file = folder / "clients.pem"
        self.trust(*self.authorities)

    def reissue(self, name, seconds):
        """Give a client of the first authority a certificate that ends so soon."""
        self.issued[name] = self.authorities[0].issue(name, dns=[f"{name}.example"], days=seconds / DAY)

    def trust(self, *authorities):
        """Have these authorities in clientCaFile."""
        self.file.write_text("# ours\n" + "\n".join(Path(one.file).read_text() for one in authorities))

    def context(self, name):
        """That of a client."""
        made = ssl.create_default_context(cafile=self.authorities[0].file)
        made.load_cert_chain(self.issued[name].certificate, self.issued[name].key)
        return made

    @asynccontextmanager
    async def running(self, config, clients=None, **more):
        """It runs."""
        config["sequencer"]["keyManager"]["auditLogFile"] = str(self.log)
        files = {"certificateFile": self.own.certificate, "keyFile": self.own.key, "clientCaFile": str(self.file)}
        block = {"listen": [f"unix:{self.folder}/sign.sock", "tls:127.0.0.1:0", "https:127.0.0.1:0"], "tls": files}
        self.clients = clients or {**ME, **NAMED}
        async with site(config, self.folder, self.clients, **block, **more) as gateway:
            self.gateway, self.config, self.block = gateway, config, {**block, **more}
            yield gateway

    async def reload(self, clients=None):
        """As SIGHUP does."""
        document = {**self.config["sequencer"], "gateway": {**self.block, "clients": clients or self.clients}}
        assert await self.gateway.served.reload(lambda: settings_of(load_each(document)))

    def https(self, name):
        """A connection that stays."""
        where = next(one for one in self.gateway.addresses if one.startswith("https:"))
        return http.client.HTTPSConnection(
            "127.0.0.1", int(where.rsplit(":", 1)[1]), context=self.context(name), timeout=60
        )


def status(link, **headers):
    """Of a request over a connection that stays."""
    link.request("GET", "/v1/auth/token/lookup-self", headers=headers)
    answer = link.getresponse()
    answer.read()
    return answer.status


async def recorded(gateway, log):
    """Whether a refusal is in the audit log: fronts tell of them a little later."""
    await gateway.manager.audit.flush()
    return bool(refusals(log))


async def is_sent_away(peer):
    """It is told to go, why, and closed."""
    found = [await peer.next() for _ in range(2)]
    assert [one.type for one in found] == [Type.GOAWAY, Type.ERROR]
    assert wire.read_error(found[1].body).status == "POLICY_REFUSED"
    assert await peer.ends() == b""


@one_loop
async def test_a_certificate_that_ends_ends_its_connections(world, tmp_path):
    revoking = Revoking(tmp_path)
    async with revoking.running(world.config()) as gateway, gateway.peer() as other:
        for seconds in (4, 16, 64):  # the first one that a machine of whatever speed can use
            revoking.reissue("one", seconds)
            link = revoking.https("one")
            with suppress(OSError, EOFError):
                async with gateway.over_tls(revoking.context("one")) as one:
                    await one.hello()
                    await one.signed(sign(1, b"m"))
                    if await asyncio.to_thread(status, link) == 200:
                        await is_sent_away(one)
                        break
            link.close()
        assert await asyncio.to_thread(status, link) == 403
        link.close()
        await other.signed(sign(1, b"m"))
        await gateway.manager.audit.flush()
        told = [(one["label"], one["why"]) for one in refusals(revoking.log)]
    assert ("one (127.0.0.1)", "the certificate of this connection vouches for no client any more") in told


@one_loop
async def test_an_authority_that_is_taken_away_ends_the_connections_that_may_be_of_it(world, tmp_path):
    revoking = Revoking(tmp_path)
    async with revoking.running(world.config()) as gateway:
        links = [revoking.https(name) for name in ("one", "two")]
        async with gateway.over_tls(revoking.context("one")) as one, gateway.over_tls(revoking.context("two")) as two:
            for peer in (one, two):
                await peer.hello(NONCE)
            first = await one.signed(sign(1, b"m"))
            assert [await asyncio.to_thread(status, link) for link in links] == [200, 200]
            await revoking.reload()
            assert await one.signed(sign(1, b"m", again=True)) == first  # nothing was taken away
            revoking.trust(revoking.authorities[0])
            await revoking.reload()
            await is_sent_away(two)
            await is_sent_away(one)  # which authority was whose is not known
        async with gateway.over_tls(revoking.context("one")) as one:
            await one.hello(NONCE)
            assert await one.signed(sign(1, b"m", again=True)) == first
        with pytest.raises((OSError, EOFError)):
            async with gateway.over_tls(revoking.context("two")) as two:
                await two.hello()
        assert [await asyncio.to_thread(status, link) for link in links] == [403, 403]
        for link in links:
            link.close()
        link = revoking.https("two")
        with pytest.raises(OSError):  # noqa: PT011  # whatever the handshake says
            await asyncio.to_thread(status, link)
        link.close()
        link = revoking.https("one")
        assert await asyncio.to_thread(status, link) == 200
        link.close()


@one_loop
async def test_what_a_removed_client_has_open_is_answered(fresh_token, tmp_path):
    chaos, revoking = Chaos(tmp_path, wrap(fresh_token())), Revoking(tmp_path)
    async with revoking.running(chaos.config()) as gateway, gateway.over_tls(revoking.context("one")) as one:
        await one.hello()
        calls = chaos.calls("C_Sign")
        chaos.fault("C_Sign", "hang", forever=True)
        one.send(sign(1, b"m"))
        await until(lambda: chaos.calls("C_Sign") > calls)
        await revoking.reload({**ME})
        assert (await one.next()).type is Type.GOAWAY
        chaos.release()
        assert (await one.next()).type is Type.SIGNED
        assert (await one.next()).type is Type.ERROR
        assert await one.ends() == b""


@one_loop
async def test_a_token_that_expires_is_refused_and_recorded_as_that(world, tmp_path):
    ends = ("1970-01-01T00:01:00Z", "2999-01-01T00:00:00Z")
    tokens = [{"token": TOKEN, "expires": ends[0]}, {"token": TOKEN[::-1], "expires": ends[1]}, {"token": "t" * 32}]
    revoking = Revoking(tmp_path)
    async with revoking.running(world.config(), {"web": {"tokens": tokens, "keys": ["default"]}}) as gateway:
        link = revoking.https("one")
        headers = [{"X-Vault-Token": one["token"]} for one in tokens]
        assert [await asyncio.to_thread(status, link, **one) for one in headers] == [403, 200, 200]
        link.close()
        await becomes(lambda: recorded(gateway, revoking.log))
        await gateway.manager.audit.flush()
        text = revoking.log.read_text()
        assert refusals(revoking.log)[-1]["why"] == "the token of 'web' expired at 1970-01-01T00:01:00Z"
        assert not any(one["token"] in text for one in tokens)
        assert json.dumps(refusals(revoking.log)[-1]["label"]) == '"127.0.0.1"'
