"""A record says by which way its request came: who connected, on which connection, with which number."""

import asyncio
import json
import os
import subprocess

import pytest
from tests.support.gateways import gateway
from tests.support.loops import one_loop
from tests.support.terminal import PROGRAM
from tests.support.wire_site import ME, many, sign, site

from hsmcore.base.traceparent import TraceParent
from hsmcore.gateway import Client
from hsmcore.gateway.wire import messages as wire
from hsmcore.gateway.wire.frames import Type, traced

pytestmark = pytest.mark.integration


async def records(manager, **match):
    """What the audit log has, without its context."""
    await manager.audit.flush()
    return [record async for record in manager.audit.query(match=match)]


def way(connection, request):
    """That of this process."""
    peer = f"uid {os.getuid()}, gid {os.getgid()}"
    return {"peer": peer, "pid": os.getpid(), "connection": connection, "request": request}


@one_loop
async def test_each_request_is_found_by_its_process_its_connection_and_its_number(fresh_token, tmp_path):
    config = fresh_token().config(maxCacheSize=0, auditLogFile=str(tmp_path / "audit.log"))
    clients = {"app": {**ME["app"], "manages": True}}
    async with site(config, tmp_path, clients) as served, served.peer() as one, served.peer() as two:
        [key] = [found for found in one.welcome.keys if found.current]
        one.send(*(sign(number, b"one %d" % number) for number in range(1, 41)))
        two.send(*(sign(number, b"two %d" % number) for number in range(5, 45)))
        for peer in (one, two):
            assert {(await peer.next()).type for _ in range(40)} == {Type.SIGNED}
        parent = TraceParent(bytes(range(16)), bytes(range(8)), 1)
        await one.signed(traced(sign(50, b"traced", kind=""), parent))
        await one.refused(sign(51, b""))
        assert (await one.ask(many(52, b"a", b"b"))).type is Type.SIGNED_MANY
        assert (await one.ask(wire.verify(53, wire.Verify("", bytes(64), b"m")))).type is Type.VERIFIED
        assert (await one.ask(wire.manage(54, wire.Manage("generate", "")))).type is Type.DONE
        found = [record for record in await records(served.manager) if "caller" in record]
        asked = {}
        for record in found:
            asked.setdefault((record["via"]["connection"], record["via"]["request"]), []).append(record)
        assert all(record["via"] == way(*which) for which, those in asked.items() for record in those)
        first, second = sorted({connection for connection, _ in asked})
        numbers = [*range(1, 41), 50, 51, 52, 53, 54]
        assert sorted(asked) == [
            *((first, number) for number in numbers),
            *((second, number) for number in range(5, 45)),
        ]
        assert [len(asked[first, number]) for number in (1, 51, 52)] == [1, 1, 2]
        [traced_one] = await records(served.manager, trace_id=parent.trace_id.hex())
        assert traced_one["via"]["request"] == 50
        assert asked[first, 51][0]["result"] == "error"
        # Each signature's record is that of its own request, whatever else was signed at the time.
        some = await records(served.manager, **{"via.request": 7, "via.connection": second, "operation": "sign"})
        assert [record["message_bytes"] for record in some] == [len(b"two 7")]
        assert await records(served.manager, **{"via.request": 7, "via.connection": second + 1}) == []
        assert key.current


@pytest.mark.usefixtures("terminal")
@one_loop
async def test_the_command_finds_a_request_of_another_process(world, tmp_path):
    folder = tmp_path / "audit.log"
    config = world.config(maxCacheSize=0, auditLogFile=str(folder))
    async with gateway(tmp_path, config) as process, Client(process.addresses[0]) as km:
        receipts = [await km.sign_with_receipt(b"%d" % number) for number in range(3)]
    query = ["audit", "query", "--folder", str(folder), "--where", f"via.pid={os.getpid()}", "--where", "via.request=2"]
    shown = await asyncio.to_thread(subprocess.check_output, [*PROGRAM, *query, "--json"], timeout=60)
    [record] = map(json.loads, shown.splitlines())
    assert record["seq"] == receipts[1].audit_seq
    assert record["caller"] == "test"
