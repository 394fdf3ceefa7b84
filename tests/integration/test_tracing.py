"""OpenTelemetry: spans, and what joins logs and audit records to them; nothing where it is not set up."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import StatusCode
from structlog.testing import capture_logs
from tests.support.managers import opened

import hsmcore
from hsmcore.base.log import add_trace, get_logger
from hsmcore.tracing import instrument

pytestmark = pytest.mark.integration


@pytest.fixture
def spans():
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield provider, exporter
    provider.shutdown()


async def records(manager):
    return [record async for record in manager.audit.query(match={"operation": "sign"})]


async def test_every_argument_of_a_key_manager_s_methods_is_passed_on(world, tmp_path, spans):
    rules = {"kinds": ["raw", "block"]}
    async with opened(world.config(stateFile=str(tmp_path / "state.db"), policy=rules)) as manager:
        instrument(manager, spans[0])
        key = await manager.get_current_key_id()
        for sign in (manager.sign, manager.sign_with_receipt):
            assert await sign(b"m", 5, kind="raw", key_id=key)
            with pytest.raises(hsmcore.PolicyRefused, match="no position"):
                await sign(b"m", 5, position=3)
        assert await manager.sign_many([b"m"], 5, key_id=key)
        with pytest.raises(hsmcore.KeyNotFound):
            await manager.sign(b"m", key_id="00ff")


async def test_a_span_names_the_signer_and_its_trace_is_in_the_audit_log(world, tmp_path, spans):
    provider, exporter = spans
    async with opened(world.config(maxCacheSize=0, auditLogFile=str(tmp_path / "audit.log"))) as manager:
        instrument(manager, provider)
        instrument(manager, provider)
        with provider.get_tracer("application").start_as_current_span("block"):
            assert await manager.verify(b"m", await manager.sign(b"m"))
        receipt = await manager.sign_with_receipt(b"n")
        with hsmcore.audit_tag("batch 7"):
            assert len(await manager.sign_many([b"a", b"b"])) == 2
        found = await records(manager)
        key_id = await manager.get_current_key_id()
    sign, block, traced, many = exporter.get_finished_spans()
    assert [span.name for span in (sign, block, traced, many)] == [
        "hsmcore.sign", "block", "hsmcore.sign", "hsmcore.sign_many",
    ]  # fmt: skip
    assert sign.parent is not None
    assert sign.parent.span_id == block.context.span_id
    assert dict(sign.attributes) == {
        "hsmcore.member": receipt.member,
        "hsmcore.level": "primary",
        "hsmcore.key_id": key_id,
        "hsmcore.cached": False,
        "hsmcore.audit_seq": found[0]["seq"],
    }
    assert traced.attributes["hsmcore.audit_seq"] == receipt.audit_seq
    assert many.attributes["hsmcore.messages"] == 2
    assert [(record["trace_id"], record.get("tag")) for record in found] == [
        (f"{span.context.trace_id:032x}", tag)
        for span, tag in ((sign, None), (traced, None), (many, "batch 7"), (many, "batch 7"))
    ]


async def test_an_error_is_on_the_span_and_reaches_the_caller(world, spans):
    provider, exporter = spans
    async with opened(world.config()) as manager:
        instrument(manager, provider)
        with pytest.raises(hsmcore.HsmError):
            await manager.sign(b"")
    [span] = exporter.get_finished_spans()
    assert span.status.status_code is StatusCode.ERROR
    assert span.attributes["error.type"] == "BAD_ARGUMENT"


async def test_a_span_that_is_not_recorded_has_the_caller_s_trace_in_the_audit_log_or_none(world, tmp_path):
    provider = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)
    async with opened(world.config(maxCacheSize=0, auditLogFile=str(tmp_path / "audit.log"))) as manager:
        instrument(manager, provider)
        assert await manager.verify(b"m", await manager.sign(b"m"))
        with provider.get_tracer("application").start_as_current_span("block") as span:
            await manager.sign(b"m")
        alone, known = await records(manager)
    assert "trace_id" not in alone
    assert known["trace_id"] == f"{span.get_span_context().trace_id:032x}"


async def test_log_lines_bear_the_trace(spans):
    provider, _ = spans
    with capture_logs(processors=[add_trace]) as lines:
        get_logger().info("outside")
        with provider.get_tracer("application").start_as_current_span("block") as span:
            get_logger().info("inside")
    outside, inside = lines
    assert "trace_id" not in outside
    assert inside["trace_id"] == f"{span.get_span_context().trace_id:032x}"
    assert inside["span_id"] == f"{span.get_span_context().span_id:016x}"


PROGRAM = """
import asyncio, json, sys
import hsmcore
config, traced = json.load(sys.stdin)
if traced:
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
async def main():
    async with hsmcore.create_key_manager(config) as manager:
        await manager.sign(b"m")
        return "sign" in vars(manager)
wrapped = asyncio.run(main())
spans = [span.name for span in exporter.get_finished_spans()] if traced else []
print(json.dumps([wrapped, spans, any(name.startswith("opentelemetry") for name in sys.modules)]))
"""


@pytest.mark.parametrize(("traced", "expected"), [(True, [True, ["hsmcore.sign"], True]), (False, [False, [], False])])
def test_only_an_application_with_a_provider_gets_spans(world, traced, expected):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps([world.config(), traced]), capture_output=True, text=True, check=False, env=world.environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == expected
