"""Key managers of one gateway, apart: one that is slow or hangs costs the clients of another one nothing."""

import asyncio
import ssl
from contextlib import asynccontextmanager

import pytest
from tests.support.authority import Authority
from tests.support.chaos import Chaos, wrap, wrap_noop
from tests.support.loops import one_loop
from tests.support.managers import until
from tests.support.wire_site import ME, sign, site

from hsmcore.gateway.wire import messages as wire
from hsmcore.gateway.wire.frames import Type

pytestmark = [pytest.mark.integration]
LONG = {"timeout_ms": 60_000}
HELD_OPEN = 64
"""More than the gateway has at all key managers together."""
FAST, SLOW = 0, 1
"""The slots of a client that may use both."""


@asynccontextmanager
async def two_keys(world, tmp_path, chaos, rules=None, slow=None, **gateway):
    """A gateway with the keys "fast" and "slow". This user may use both; "other", over TLS, the fast one."""
    authority = Authority(tmp_path)
    own, issued = authority.issue("gateway", ips=["127.0.0.1"]), authority.issue("other", dns=["other.example"])
    files = {"certificateFile": own.certificate, "keyFile": own.key, "clientCaFile": authority.file}
    context = ssl.create_default_context(cafile=authority.file)
    context.load_cert_chain(issued.certificate, issued.key)
    blocks = {
        "fast": world.config(maxCacheSize=0)["sequencer"]["keyManager"],
        "slow": chaos.config(**(slow or {}))["sequencer"]["keyManager"],
    }
    clients = {
        "app": {**ME["app"], "keys": ["fast", "slow"], **(rules or {})},
        "other": {"names": ["dns:other.example"], "keys": ["fast"]},
    }
    listen = [f"unix:{tmp_path}/sign.sock", "tls:127.0.0.1:0"]
    config = {"sequencer": {"keyManagers": blocks}}
    async with site(config, tmp_path, clients, listen=listen, tls=files, **gateway) as found:
        found.context = context
        yield found


async def signs(peer, count, first=1, slot=FAST):
    """Have so many messages signed, eight at a time. Returns the types of the answers."""
    numbers, found = iter(range(first, first + count)), []
    for number in (next(numbers) for _ in range(8)):
        peer.send(sign(number, b"%d" % number, slot=slot, **LONG))
    while len(found) < count:
        found.append((await peer.next()).type)
        if (number := next(numbers, None)) is not None:
            peer.send(sign(number, b"%d" % number, slot=slot, **LONG))
    return found


@one_loop
async def test_one_that_hangs_stops_no_client_of_another(world, tmp_path):
    chaos = Chaos(tmp_path, wrap_noop())
    async with two_keys(world, tmp_path, chaos) as gateway, gateway.peer() as peer:
        calls = chaos.calls("C_Sign")
        chaos.fault("C_Sign", "hang", forever=True, every=1)
        peer.send(*(sign(number, b"hsmcore hangs", slot=SLOW, **LONG) for number in range(1, HELD_OPEN + 1)))
        await until(lambda: chaos.calls("C_Sign") > calls and gateway.server.desk.open == HELD_OPEN)
        async with gateway.over_tls(gateway.context) as other:
            await other.hello()
            assert set(await signs(other, 200)) == {Type.SIGNED}
        # The same client's requests for the other key, on the same connection, too.
        assert set(await signs(peer, 200, first=1000)) == {Type.SIGNED}
        assert gateway.server.desk.open == HELD_OPEN
        chaos.clear()
        chaos.release()
        assert {(await peer.next()).type for _ in range(HELD_OPEN)} == {Type.SIGNED}


def signed(gateway, name):
    """Signatures of a key manager so far."""
    return sum(stats["signatures"] for stats in gateway.served.managers[name].get_stats().values())


@one_loop
async def test_what_a_client_has_open_is_counted_for_each_key(world, tmp_path):
    chaos = Chaos(tmp_path, wrap_noop())
    async with two_keys(world, tmp_path, chaos, {"inFlight": 4}) as gateway, gateway.peer() as peer:
        chaos.fault("C_Sign", "hang", forever=True, every=1)
        peer.send(*(sign(number, b"hsmcore hangs", slot=SLOW, **LONG) for number in range(1, 7)))
        await until(lambda: gateway.server.desk.open == 4)
        assert set(await signs(peer, 40, first=1000)) == {Type.SIGNED}
        chaos.clear()
        chaos.release()
        assert {(await peer.next()).type for _ in range(6)} == {Type.SIGNED}


@one_loop
async def test_keys_are_managed_while_as_much_is_open_as_may_be(fresh_token, tmp_path):
    chaos = Chaos(tmp_path, wrap(fresh_token()))
    clients = {"app": {**ME["app"], "inFlight": 1, "manages": True}}
    async with site(chaos.config(), tmp_path, clients) as gateway, gateway.peer() as sibling, gateway.peer() as peer:
        calls = chaos.calls("C_Sign")
        chaos.fault("C_Sign", "hang", forever=True)
        sibling.send(sign(1, b"hangs", **LONG), sign(2, b"waits", **LONG))
        await until(lambda: chaos.calls("C_Sign") > calls)
        found = await peer.ask(wire.manage(1, wire.Manage("generate", "")))
        assert found.type is Type.DONE, wire.read_error(found.body)
        found = await peer.ask(wire.manage(2, wire.Manage("set-current", wire.read_text(found.body))))
        assert found.type is Type.DONE, wire.read_error(found.body)
        chaos.release()


@one_loop
async def test_a_client_does_not_say_how_long_a_device_may_hang(world, tmp_path):
    chaos = Chaos(tmp_path, wrap_noop())
    async with (
        two_keys(world, tmp_path, chaos, slow={"requestTimeoutMs": 100}, maxTimeoutMs=100) as gateway,
        gateway.peer() as peer,
    ):
        chaos.fault("C_Sign", "hang", forever=True)
        peer.send(sign(1, b"hsmcore hangs", slot=SLOW, timeout_ms=2**32 - 1))
        found = await asyncio.wait_for(peer.next(), 50)
        assert wire.read_error(found.body).status == "DEADLINE_EXCEEDED"
        chaos.release()
