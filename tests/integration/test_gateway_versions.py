"""The numbers of a key's versions on the wire: those of the key ring, also after a restart, and of each key manager."""

import pytest
from nacl.signing import VerifyKey
from tests.integration.test_rotation import rules
from tests.support.loops import one_loop
from tests.support.wire_site import many, sign, site

from hsmcore.errors import HsmError
from hsmcore.gateway.wire import messages as wire
from hsmcore.gateway.wire.frames import Type

pytestmark = pytest.mark.integration
M = b"a message"


async def told(peer, wanted):
    """Whether the client is told of these versions: the current one last."""
    while True:
        found = await peer.next()
        if found.type is Type.KEYS:
            keys = wire.read_keys(found.body)
            if sorted((one.version, one.current) for one in keys) == wanted:
                return keys


@one_loop
async def test_a_version_has_the_number_of_the_ring_and_keeps_it(fresh_token, tmp_path):
    config = fresh_token().config(**rules(tmp_path))
    async with site(config, tmp_path) as gateway, gateway.peer() as peer:
        [first] = peer.welcome.keys
        assert (first.version, first.current) == (1, True)
        await gateway.manager.rotate_key("test")
        keys = {one.version: one for one in await told(peer, [(1, False), (2, True)])}
        signed = await peer.signed(sign(1, M, version=2))
        assert signed.version == 2
        VerifyKey(keys[2].public_key).verify(M, signed.signature)
        assert (await peer.signed(sign(2, M))).version == 2
        refused = await peer.refused(sign(3, M, version=1))
        assert (refused.status, refused.maybe_signed) == ("KEY_NOT_CURRENT", False)
        assert (await peer.refused(sign(4, M, version=3))).status == "KEY_NOT_FOUND"
    async with site(config, tmp_path) as gateway, gateway.peer() as peer:
        assert {one.version: one for one in peer.welcome.keys} == keys
        assert await peer.signed(sign(1, M, version=2)) == signed


@one_loop
async def test_a_number_that_was_told_before_the_ring_was_read_holds(fresh_token, tmp_path, monkeypatch):
    async def silent(_keys):
        raise HsmError("the state store does not answer", status="SYSTEM")

    async with site(fresh_token().config(**rules(tmp_path)), tmp_path) as gateway, gateway.peer() as peer:
        versions = gateway.server.desk.versions["default"]
        with monkeypatch.context() as patched:
            patched.setattr(type(versions), "learn", silent)
            await gateway.manager.rotate_key("test")
            made = versions.number(gateway.manager.public_key)
            assert made >= 1 << 30
            await told(peer, [(1, False), (made, True)])
        gateway.server.keys_changed()
        await told(peer, [(1, False), (2, True)])
        # A request that was made before is sent again as it was, and its answer names the version that it names.
        for number, version in enumerate((made, 2), 1):
            assert (await peer.signed(sign(number, M, version=version))).version == version
        found = await peer.ask(many(3, M, b"other", version=made))
        assert wire.read_signed_many(found.body)[0] == made
