"""What one request costs the gateway, in calls of Python functions: each hand-over on its way is one."""

import asyncio
import sys
from collections import Counter

import pytest
from tests.support.loops import one_loop
from tests.support.managers import until
from tests.support.wire_site import ME, many, sign, site

from hsmcore.failover import single
from hsmcore.gateway import server
from hsmcore.gateway.wire.frames import Type

pytestmark = pytest.mark.integration
OF_A_SIGNATURE = 53
OF_A_BATCH = 105
"""Of a SIGN_MANY, beside OF_A_MESSAGE for each message."""
OF_A_MESSAGE = 1
"""Where the client's kinds are listed: which of them it is."""


async def calls(gateway, peer, number, data):
    """The calls in the product from the first byte of a request to its answer, and until nothing is left to do."""
    found = Counter()

    def note(frame, event, _argument):
        if event == "call" and "/core/hsmcore/" in (name := frame.f_code.co_filename):
            found[f"{name.rpartition('/core/hsmcore/')[2]} {frame.f_code.co_name}"] += 1

    frames = next(iter(gateway.server.connections)).frames
    sys.setprofile(note)
    try:
        peer.writer.write(data)
        head = await peer.reader.readexactly(4)  # without the splitter of a Peer, which is the product's
        body = await peer.reader.readexactly(int.from_bytes(head, "little"))
        for _ in range(8):  # turns of the loop: callbacks that the answer has left behind
            await asyncio.sleep(0)
    finally:
        sys.setprofile(None)
    assert body[0] in (Type.SIGNED, Type.SIGNED_MANY)
    assert int.from_bytes(body[4:12], "little") == number
    assert next(iter(gateway.server.connections)).frames == frames + 1
    return found


@one_loop
async def test_a_signature_and_a_batch_cost_the_gateway_so_many_calls(world, tmp_path, monkeypatch):
    monkeypatch.setattr(server, "TICK_SECONDS", 3600)  # what is done by the clock is no part of a request's way
    monkeypatch.setattr(single, "LOOK_SECONDS", 3600)
    settings = {"policy": {"kinds": ["raw"]}, "auditLogFile": str(tmp_path / "audit.jsonl")}
    config = world.config(**settings, stateFile=str(tmp_path / "state.db"))
    clients = {"app": {**ME["app"], "kinds": ["raw"]}}
    async with site(config, tmp_path, clients) as gateway, gateway.peer() as peer:
        [key] = peer.welcome.keys
        one, batch = [], []
        for number in range(1, 11, 2):  # the first ones make what the later ones find
            data = sign(number, b"message %d" % number * 20, version=key.version)
            one.append(await calls(gateway, peer, number, data))
            messages = [b"%d of %d" % (number, each) for each in range(64)]
            batch.append(await calls(gateway, peer, number + 1, many(number + 1, *messages)))
        await until(lambda: gateway.server.desk.open == 0)
    least = min(one, key=Counter.total)
    assert least.total() <= OF_A_SIGNATURE, least
    # How often the journal tells that records are durable, and asks then whether it seals, is a matter of the disk.
    disk = ("audit/", "base/scope.py")
    batch = [Counter({name: count for name, count in each.items() if not name.startswith(disk)}) for each in batch]
    least = min(batch, key=Counter.total)
    assert least.total() <= OF_A_BATCH + OF_A_MESSAGE * 64, least
