"""A request can be followed from its caller to the audit record: trace ids over HTTPS and over the wire."""

from __future__ import annotations

import asyncio
import json
import subprocess
import uuid

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NonRecordingSpan, SpanContext, StatusCode, TraceFlags, use_span
from tests.support.loops import one_loop
from tests.support.terminal import PROGRAM
from tests.support.vault_site import b64, site
from tests.support.wire_site import sign
from tests.support.wire_site import site as wire_site

import hsmcore
from hsmcore.base.traceparent import TraceParent
from hsmcore.gateway import Client
from hsmcore.gateway.wire import messages as wire
from hsmcore.gateway.wire.frames import Flag, Type, frame, traced
from hsmcore.tracing import instrument

pytestmark = pytest.mark.integration
TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{SPAN}-01"
SIGN, VERIFY = "/v1/transit/sign/default", "/v1/transit/verify/default"


PARENTS = TraceParent(bytes(range(16)), bytes(range(8)), 1), TraceParent(bytes(range(1, 17)), bytes(range(1, 9)), 1)
SPANS = [(int.from_bytes(one.trace_id, "big"), int.from_bytes(one.span_id, "big"), True) for one in PARENTS]


async def records(manager, **match):
    """What the audit log has."""
    await manager.audit.flush()
    return [record async for record in manager.audit.query(match=match)]


@pytest.mark.usefixtures("terminal")
@one_loop
async def test_vault_s_request_is_found_by_its_trace_and_by_its_request_id(world, tmp_path):
    config = world.config(maxCacheSize=0, auditLogFile=str(tmp_path / "audit.log"))
    async with site(config, tmp_path) as vault:
        headers = {"traceparent": PARENT}
        signed = (await vault.asked("POST", SIGN, {"input": b64(b"m")}, headers=headers)).json()
        batch = {"batch_input": [{"input": b64(b"a")}, {"input": b64(b"b")}, {"input": b64(b"c"), "kind": "block"}]}
        many = (await vault.asked("POST", SIGN, batch, headers=headers)).json()
        good = {"input": b64(b"m"), "signature": signed["data"]["signature"]}
        checked = (await vault.asked("POST", VERIFY, good, headers=headers)).json()
        plain = (await vault.asked("POST", SIGN, {"input": b64(b"n")})).json()
        found = await records(vault.manager, trace_id=TRACE)
        [last] = await records(vault.manager, request_id=plain["request_id"])
        query = ["audit", "query", "--folder", str(tmp_path / "audit.log"), "--where", f"trace_id={TRACE}", "--json"]
        shown = await asyncio.to_thread(subprocess.check_output, [*PROGRAM, *query], timeout=60)
    assert [json.loads(line) for line in shown.splitlines()] == found
    asked = [(signed, "sign", "ok"), (many, "sign", "ok"), (many, "sign", "ok"), (many, "sign", "error")]
    asked.append((checked, "verify", None))
    told = {(one["request_id"], one["operation"], one.get("result"), one["caller"]) for one in found}
    assert told == {(reply["request_id"], what, result, "app") for reply, what, result in asked}
    assert len(found) == len(asked)
    assert (last["operation"], last["caller"], "trace_id" in last) == ("sign", "app", False)
    assert uuid.UUID(plain["request_id"]).version == 4


# ---- the wire --------------------------------------------------------------------------------------------------------


def asked_within(parent):
    """A context manager: OpenTelemetry's current span is this one, of another process."""
    context = SpanContext(
        int.from_bytes(parent.trace_id, "big"), int.from_bytes(parent.span_id, "big"), True, TraceFlags(parent.flags)
    )
    return use_span(NonRecordingSpan(context))


@one_loop
async def test_the_client_s_span_is_that_of_the_gateway_s_records_and_spans(world, tmp_path):
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    config = world.config(maxCacheSize=0, auditLogFile=str(tmp_path / "audit.log"))
    async with wire_site(config, tmp_path) as served, Client(f"unix:{served.path}") as km:
        key_id = await km.get_current_key_id()
        for instrumented in (False, True):
            if instrumented:
                instrument(served.manager, provider)
            with asked_within(PARENTS[instrumented]):
                await asyncio.gather(km.sign(b"m"), km.sign(b"by its id", key_id=key_id), km.sign(b"a" * 16_000))
                await km.sign_many([b"a", b"b"])
                await km.sign(b"m")
                with pytest.raises(hsmcore.BadArgument):
                    await km.sign(b"n", kind="block")
        await km.sign(b"outside")
        found = {one.trace_id: await records(served.manager, trace_id=one.trace_id.hex()) for one in PARENTS}
        [*_, outside] = await records(served.manager, operation="sign")
    signed = ["error", *["ok"] * 6]
    for trace in found.values():
        assert {one["caller"] for one in trace} == {"app"}
        assert sorted(one["result"] for one in trace if one["operation"] == "sign") == signed
    spans = exporter.get_finished_spans()
    told = [one for one in spans if one.parent is not None]
    parent = SPANS[True]
    assert {(one.parent.trace_id, one.parent.span_id, one.parent.is_remote) for one in told} == {parent}
    assert sorted(one.name for one in told) == ["hsmcore.sign"] * 5 + ["hsmcore.sign_many"]
    [own] = [one for one in spans if one.parent is None]
    assert (own.name, f"{own.context.trace_id:032x}") == ("hsmcore.sign", outside["trace_id"])
    failed = [one for one in told if one.status.status_code is StatusCode.ERROR]
    assert [one.attributes["error.type"] for one in failed] == ["BAD_ARGUMENT"]
    numbers = {one.attributes["hsmcore.audit_seq"] for one in told if "hsmcore.audit_seq" in one.attributes}
    assert numbers <= {one["seq"] for one in found[PARENTS[True].trace_id]}
    assert len(numbers) == 4


@one_loop
async def test_a_trace_is_no_part_of_what_a_request_asks_for(world, tmp_path):
    config = world.config(maxCacheSize=0, auditLogFile=str(tmp_path / "audit.log"))
    parent, other = PARENTS
    async with wire_site(config, tmp_path) as served, served.peer() as peer:
        first = await peer.signed(traced(sign(1, b"m"), parent))
        assert await peer.signed(traced(sign(1, b"m", again=True), other)) == first
        assert await peer.signed(sign(1, b"m", again=True)) == first
        assert await peer.signed(traced(sign(2, b"m"), other._replace(flags=0xFF)))
        found = [one["trace_id"] for one in await records(served.manager, operation="sign")]
    assert found == [parent.trace_id.hex(), other.trace_id.hex()]


@one_loop
async def test_a_trace_that_is_none_ends_its_connection_only(world, tmp_path):
    parent = PARENTS[0]
    zero = parent._replace(trace_id=bytes(16)), parent._replace(span_id=bytes(8))
    broken = [traced(sign(1, b"m"), one) for one in zero]
    broken += [frame(Type.SIGN, 1, bytes(size), flags=Flag.TRACED) for size in (0, 24, 25)]
    broken += [frame(kind, 1, parent.packed, flags=Flag.TRACED) for kind in (Type.CANCEL, Type.ACK, Type.PING)]
    broken += [frame(Type.SIGN, 1, parent.packed + bytes(16), flags=Flag.TRACED)]
    async with wire_site(world.config(), tmp_path) as served, served.peer() as good:
        for data in broken:
            async with served.peer() as peer:
                found = await peer.ask(data)
                assert (found.type, found.request, wire.read_error(found.body).status) == (
                    Type.ERROR,
                    0,
                    "BAD_ARGUMENT",
                )
                assert await peer.ends() == b""
        assert await good.signed(traced(sign(1, b"m"), parent))
