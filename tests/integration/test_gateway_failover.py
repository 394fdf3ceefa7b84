"""The gateway before several levels: its requests without a coroutine fail over as all others do."""

import json

import pytest
from nacl.signing import VerifyKey
from tests.support.levels import OTHER, SAME, Site
from tests.support.loops import one_loop
from tests.support.wire import read_signed
from tests.support.wire_site import sign, site

from hsmcore.gateway.wire import messages as wire
from hsmcore.gateway.wire.frames import Type

pytestmark = [pytest.mark.integration]
M = b"a message"
LONG = {"timeout_ms": 60_000}


@pytest.fixture
def levels(tmp_path, fresh_token):
    return lambda *keys: Site(tmp_path, fresh_token, *keys)


@one_loop
async def test_no_request_fails_when_the_primary_dies_under_load(levels, tmp_path):
    place = levels(SAME, SAME)
    log = tmp_path / "audit.jsonl"
    async with site(place.config(auditLogFile=str(log)), tmp_path) as gateway, gateway.peer() as peer:
        [key] = [one for one in peer.welcome.keys if one.current]
        assert (await peer.signed(sign(1, M, **LONG))).level == "primary"
        number, seen = 1, set()
        for round_ in range(6):
            if round_ == 2:
                place.kill(0)
            sent = range(number + 1, number + 41)
            number += 40
            # With and without the version: both ways go on at the other level.
            peer.send(*(sign(one, b"%d" % one, version=key.version * (one % 2), **LONG) for one in sent))
            for _ in sent:
                found = await peer.next()
                assert found.type is Type.SIGNED, wire.read_error(found.body)
                answer = read_signed(found.body)
                VerifyKey(key.public_key).verify(b"%d" % found.request, answer.signature)
                assert answer.version == key.version
                seen.add(answer.level)
        assert seen == {"primary", "secondary"}
        assert gateway.server.desk.open == 0
    records = [json.loads(line) for line in log.read_text().splitlines()]
    signed = [one for one in records if one["operation"] == "sign" and one["result"] == "ok"]
    assert {one.get("caller") for one in signed} == {"app"}


@one_loop
async def test_a_version_is_not_replaced_by_another_level_s(levels, tmp_path):
    place = levels(SAME, OTHER)
    config = place.config(failover={"acceptOtherKeys": ["secondary"]})
    async with site(config, tmp_path) as gateway, gateway.peer() as peer:
        [first] = [one for one in peer.welcome.keys if one.current]
        assert (await peer.signed(sign(1, M, version=first.version, **LONG))).version == first.version
        place.kill(0)
        number = 1
        while True:  # the first ones find out that the primary is gone
            number += 1
            found = await peer.ask(sign(number, b"any %d" % number, **LONG))
            while found.type is not Type.SIGNED:
                found = await peer.next()
            if read_signed(found.body).level == "secondary":
                break
        number += 1
        peer.send(sign(number, b"pinned", version=first.version, timeout_ms=300))
        while (found := await peer.next()).type is not Type.ERROR:
            assert found.type is Type.KEYS
        assert wire.read_error(found.body).status == "KEY_NOT_CURRENT"
